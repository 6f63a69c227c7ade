import pytest
import torch

from paperkit.experiments.studies import compression_identities as study
from paperkit.experiments.studies._stacks import (
    ACTIVATIONS,
    Stack,
    dense_stack,
    dense_stage,
    generator_of,
    relative_error,
    relative_slack,
    spectral,
    volumes,
    worst,
)


def scalar_chain(first: float, second: float, x: float) -> Stack:
    """The linear network f = second · first · x."""
    parameters = {
        "w0": torch.tensor([[first]], dtype=torch.float64),
        "w1": torch.tensor([[second]], dtype=torch.float64),
    }
    stages = dense_stage(0, None), dense_stage(1, None)
    return Stack(stages, ("w0", "w1"), parameters, torch.tensor([[x]], dtype=torch.float64))


def test_a_product_of_two_numbers_has_the_quantities_that_one_works_out():
    stack = scalar_chain(2.0, 3.0, 5.0)
    assert float(stack.outputs()) == 30
    assert [float(jacobian) for jacobian in stack.input_jacobians()] == [6, 3]
    assert stack.weight_norms().flatten().tolist() == [15, 10]
    assert stack.sharpness() == 15**2 + 10**2
    assert stack.input_norms().flatten().tolist() == [5, 10]
    hessian = stack.loss_hessian(torch.tensor([[30.0]]), study.half_squared_error)
    assert hessian.tolist() == [[225, 150], [150, 100]]


def test_the_mixed_second_derivative_is_no_pure_one():
    assert study.pure_second_derivatives(scalar_chain(2.0, 3.0, 5.0)).tolist() == [[[0, 0]]]


def test_equation_5_fails_in_its_first_half_for_short_inputs_and_in_its_second_for_long_ones():
    short = study.stability(scalar_chain(2.0, 3.0, 0.5), "identity", generator_of(0))
    long = study.stability(scalar_chain(2.0, 3.0, 8.0), "identity", generator_of(0))
    assert (short["printed_first"], short["printed_second"]) == pytest.approx((3.0, -0.75))
    assert (long["printed_first"], long["printed_second"]) == pytest.approx((-0.75, 3.0))
    assert short["slack"] == pytest.approx(0.0, abs=1e-15)


def test_slack_and_error_can_show_a_failure():
    assert relative_slack(3.0, 2.0) == -0.5
    assert relative_slack(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0])) == 0.0
    assert relative_error(1.0, 4.0) == 0.75
    assert worst([{"slack": 1.0, "error": 0.0}, {"slack": -1.0, "error": 2.0}]) == {
        "slack": -1.0,
        "error": 2.0,
    }
    assert study.lemma_slack(2.0, 1.0, 0.1) == -1.0


def test_norm_and_volume_of_a_known_matrix():
    matrix = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.5, 0.0]], dtype=torch.float64)
    assert float(spectral(matrix)) == pytest.approx(3.0)
    assert volumes(matrix[None]).tolist() == [1.5]
    assert volumes(matrix.T[None]).tolist() == [0.0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_stack_and_its_module_compute_the_same(activation):
    generator = generator_of(3)
    inputs = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    stack = dense_stack([3, 5, 2], activation, inputs, generator)
    from_module = study.module_of(stack, activation)(inputs)
    torch.testing.assert_close(from_module, stack.outputs(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("configuration", study.STUDY.grid("smoke"), ids=lambda c: c["fact"])
def test_each_fact_of_a_smoke_run_gives_numbers(configuration):
    metrics = study.run(configuration, context=None)
    assert metrics
    assert all(value == value and abs(value) < 1e300 for value in metrics.values())

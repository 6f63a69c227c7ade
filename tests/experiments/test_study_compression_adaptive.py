import math

import pytest
import torch

from paperkit.experiments.studies import compression_adaptive, compression_normalized
from paperkit.experiments.studies._stacks import Stack, dense_stage, generator_of

X = torch.tensor([[1.0, 2.0]], dtype=torch.float64)


def linear(weights) -> Stack:
    """The network f = Wx at x = (1, 2)."""
    parameters = {"w0": torch.tensor(weights, dtype=torch.float64)}
    return Stack((dense_stage(0, None),), ("w0",), parameters, X)


def test_adaptive_sharpness_and_invariant_sensitivity_of_a_linear_map_agree():
    stack = linear([[3.0, 4.0]])
    assert compression_adaptive.scaled_squares(stack) == pytest.approx(73.0)
    assert compression_adaptive.input_invariant(stack) == pytest.approx(73.0)


def test_the_average_over_noise_is_exact_on_a_quadratic_and_the_printed_one_lacks_a_factor():
    stack, targets = linear([[3.0, 4.0]]), torch.tensor([[11.0]], dtype=torch.float64)
    average = compression_adaptive.average_sharpness(stack, targets, 0.1)
    printed = compression_adaptive.average_sharpness(stack, targets, 0.1, factor=False)
    assert average == pytest.approx(73.0, rel=1e-9)
    assert printed == pytest.approx(0.365, rel=1e-9)


def test_the_last_term_is_least_where_its_formula_says():
    jacobian, x = torch.tensor([[3.0, 1.0]], dtype=torch.float64), X[0]
    assert compression_normalized.least_by_search(jacobian, x) == pytest.approx(5.0)
    ones = torch.ones(2, dtype=torch.float64)
    assert compression_normalized.last_term(jacobian, x, ones) == pytest.approx(math.sqrt(50.0))


def test_copies_of_a_hidden_unit_divide_the_first_layer_s_part():
    found = compression_adaptive.split_units(2, generator_of(0))
    assert found["kept_error"] < 1e-12
    assert found["change"] > 0.5


@pytest.mark.parametrize("study", [compression_adaptive, compression_normalized])
def test_each_fact_of_a_smoke_run_gives_numbers(study):
    configurations = study.STUDY.grid("smoke")
    assert {configuration["fact"] for configuration in configurations} == set(study.FACTS)
    for configuration in configurations:
        metrics = study.run(configuration, context=None)
        assert metrics
        assert all(math.isfinite(value) for value in metrics.values())

import math

import pytest
import torch

from paperkit.experiments.studies import compression_bounds as study
from paperkit.experiments.studies._stacks import Stack, dense_stage, generator_of


def product_of_two(first: float = 2.0, second: float = 3.0) -> Stack:
    """The network f = second · first · x at x = 1 and x = 2."""
    parameters = {
        "w0": torch.tensor([[first]], dtype=torch.float64),
        "w1": torch.tensor([[second]], dtype=torch.float64),
    }
    inputs = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    return Stack((dense_stage(0, None), dense_stage(1, None)), ("w0", "w1"), parameters, inputs)


def test_the_steps_of_equation_11_are_those_of_a_calculation_by_hand():
    sides = study.sides_of(product_of_two())
    assert sides.sharpness == (9 + 36 + 4 + 16) / 2
    steps = study.sensitivity_steps(sides, 1)
    assert steps[:2] == [6, 6]
    root = 2 * math.sqrt((1 + 1 / 4) / 2)
    assert steps[3:] == pytest.approx([root * math.sqrt(45 / 2), root * math.sqrt(65 / 2)])


def test_the_steps_of_equation_12_count_every_layer():
    sides = study.sides_of(product_of_two())
    steps = study.sensitivity_steps(sides, None)
    assert steps[0] == 6 + 3
    ratios = 4 * (1 + 1 / 4) + 9 * (1 / 4 + 1 / 16)
    assert steps[-1] == pytest.approx(math.sqrt(ratios / 2 * 65 / 2))


def test_a_volume_of_one_output_is_its_sensitivity():
    sides = study.sides_of(product_of_two())
    assert study.volume_steps(sides, 1)[:3] == [6, 6, 6]


def test_a_chain_out_of_order_has_a_negative_slack():
    assert study.least_slack([1.0, 2.0, 1.0]) == -1.0


def test_rescaling_keeps_a_relu_network_and_changes_its_sharpness():
    one, other = product_of_two(), study.rescaled(product_of_two(), 2.0)
    assert torch.equal(one.outputs(), other.outputs())
    assert one.sharpness() != other.sharpness()


@pytest.mark.parametrize("configuration", study.STUDY.grid("smoke"), ids=lambda c: c["fact"])
def test_each_fact_of_a_smoke_run_gives_numbers(configuration):
    metrics = study.run(configuration, context=None)
    assert metrics
    assert all(math.isfinite(value) for value in metrics.values())


def test_exact_norms_can_show_a_failure():
    found = study.norms("identity", 1, generator_of(0))
    assert found["slack"] >= 0
    assert found["library_error"] < 1e-12

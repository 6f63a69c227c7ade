import math

import pytest
import torch

from paperkit.experiments.studies import compression_losses as study
from paperkit.experiments.studies._stacks import generator_of


def test_losses_are_torch_s():
    outputs = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    targets = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(outputs[None], targets[None])
    torch.testing.assert_close(study.cross_entropy(outputs, targets), expected)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(outputs, targets)
    torch.testing.assert_close(study.logistic(outputs, targets) / 3, expected)


def test_a_margin_gives_its_loss():
    margin = study.margins_of(0.25, 3)
    assert math.log(1 + 2 * math.exp(-margin)) == pytest.approx(0.25)


def test_a_network_attains_its_targets():
    targets = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    stack = study.interpolating(targets, "tanh", generator_of(0))
    torch.testing.assert_close(stack.outputs(), targets, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("configuration", study.STUDY.grid("smoke"), ids=lambda c: c["fact"])
def test_each_fact_of_a_smoke_run_gives_numbers(configuration):
    metrics = study.run(configuration, context=None)
    assert metrics
    assert all(math.isfinite(value) for value in metrics.values())

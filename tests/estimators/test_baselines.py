"""Functions of the losses alone, against torch's own losses."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import every_loss, targets_for
from networks import NAMED
from torch import nn

from paperkit.estimators.baselines import (
    exponential_losses,
    generalization_gap,
    mean_exponential_loss,
    mean_loss,
    sample_losses,
)
from paperkit.network.losses import log_odds_against

RELU_MLP = NAMED["relu MLP"]


def test_losses_keep_their_digits_at_both_ends() -> None:
    outputs = torch.tensor([[60.0, 0.0], [0.0, 60.0], [0.0, 0.0], [0.0, 21.0]])
    targets = torch.tensor([0, 0, 0, 0])
    assert log_odds_against(outputs, targets).tolist() == [-60.0, 60.0, 0.0, 21.0]
    expected = [math.exp(-60), 60.0, math.log(2), 21.0 + math.log1p(math.exp(-21))]
    assert sample_losses(outputs, targets).tolist() == pytest.approx(expected, rel=1e-14)
    odds = [math.exp(-60), math.exp(60), 1.0, math.exp(21)]
    assert exponential_losses(outputs, targets).tolist() == pytest.approx(odds, rel=1e-14)


@every_loss
def test_baselines_count_every_sample_once(loss: str, device: torch.device) -> None:
    model, inputs, targets = NAMED["residual"].make(n=11, device=device)
    targets = targets_for(loss, targets)
    uneven = [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])]
    model.eval()
    losses = sample_losses(model(inputs).detach(), targets, loss)
    reference = {
        "cross_entropy": nn.functional.cross_entropy,
        "half_squared_error": lambda f, y: 0.5 * (f - y).square().sum(dim=1).mean(),
        "mse": nn.functional.mse_loss,
    }[loss]
    expected = float(reference(model(inputs), targets))
    assert float(mean_loss(model, uneven, loss)) == pytest.approx(expected, rel=1e-12)
    exponential = mean_exponential_loss(model, uneven, loss)
    assert float(exponential) == pytest.approx(float(torch.expm1(losses).mean()), rel=1e-12)


def test_the_generalization_gap_is_test_minus_train() -> None:
    model, inputs, targets = RELU_MLP.make(n=30)
    train, test = (inputs[:20], targets[:20]), (inputs[20:], targets[20:])
    gap = generalization_gap(model, train, [test])
    assert (gap.n, gap.num_test) == (20, 10)
    expected = float(mean_loss(model, test)) - float(mean_loss(model, train))
    assert float(gap) == pytest.approx(expected, rel=1e-12)
    hits = model(inputs).argmax(dim=1) == targets
    accuracy_gap = float(hits[:20].double().mean() - hits[20:].double().mean())
    assert gap.accuracy_gap == pytest.approx(accuracy_gap, abs=1e-15)
    one_hot = nn.functional.one_hot(targets, 3).double()
    squared = generalization_gap(
        model, (inputs[:20], one_hot[:20]), (inputs[20:], one_hot[20:]), "mse"
    )
    assert squared.accuracy_gap is None


def test_every_measure_stays_on_the_models_device(device: torch.device, explicit_devices) -> None:
    model, inputs, targets = RELU_MLP.make(n=4, device=device)
    data = inputs, targets
    with explicit_devices():
        mean_loss(model, data)
        mean_exponential_loss(model, data)
        generalization_gap(model, data, data)

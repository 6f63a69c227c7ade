import math

import pytest
import torch
from torch import nn

from paperkit.bounds.renyi import haar_matrices
from paperkit.data import Split
from paperkit.experiments.studies import _divided_digits as digits
from paperkit.experiments.studies import renyi_memorising as study

SWAP = torch.tensor([[0.0, 1.0], [1.0, 0.0]])


def identity() -> nn.Module:
    model = nn.Linear(2, 2, bias=False)
    nn.init.eye_(model.weight)
    return model


def test_parts_hold_every_image_once_and_depend_on_the_seed():
    parts = digits.divided([30, 40], seed=3)
    assert [len(part) for part in parts] == [30, 40, 4930]
    together = torch.cat([part.inputs for part in parts]).flatten(1)
    everything = digits._digits()[0].flatten(1)
    assert torch.equal(together.sum(dim=1).sort().values, everything.sum(dim=1).sort().values)
    assert torch.equal(digits.divided([30, 40], seed=3)[0].inputs, parts[0].inputs)
    assert not torch.equal(digits.divided([30, 40], seed=4)[0].inputs, parts[0].inputs)


def test_random_labels_are_foreseen_by_nothing():
    true, drawn = (digits.divided([], 0, labels)[0] for labels in ("true", "random"))
    assert torch.equal(true.inputs, drawn.inputs)
    agree = float((true.targets == drawn.targets).double().mean())
    assert abs(agree - 0.1) < 0.02  # their standard deviation is 0.004
    assert int(drawn.targets.bincount().min()) > 400


def test_misses_of_two_moves_that_are_worked_out_by_hand():
    sample = Split(torch.eye(2), torch.tensor([0, 1]))
    moves = torch.stack([SWAP, -SWAP])
    # Each input (1, 0) becomes (1, ρ) and (1, −ρ): the first is taken for the other class at ρ > 1.
    assert study.moved_misses(identity(), sample, moves, 0.5).tolist() == [0.0, 0.0]
    assert study.moved_misses(identity(), sample, moves, 2.0).tolist() == [0.5, 0.5]


def test_moving_inputs_is_moving_the_first_weights():
    sample, _ = digits.divided([50], seed=1)
    model, matrices = digits.build("mlp", seed=1), haar_matrices(196, 2, seed=1)
    by_inputs = study.moved_misses(model, sample, matrices, 0.7)
    by_weights = torch.zeros(50, dtype=torch.float64)
    start = model.fc1.weight.detach().clone()
    for matrix in matrices.float():
        model.fc1.weight.data = start + 0.7 * start @ matrix
        by_weights += (model(sample.inputs).argmax(dim=1) != sample.targets) / 2
    # Round-off could turn a tie, and no more than a few.
    assert float((by_inputs - by_weights).abs().sum()) <= 1


def test_both_sides_for_a_network_that_always_gives_one_answer():
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    model.bias.data = torch.tensor([1.0, 0.0])
    wrong = {"sample": 10, "held out": 30, "population": 50}
    parts = [Split(torch.ones(100, 2), (torch.arange(100) < k).long()) for k in wrong.values()]
    found = study.compare(model, *parts, matrices=SWAP[None], rho=1.0)
    width = math.sqrt(math.log(20) / 200)
    assert found["bound"] == pytest.approx(0.1 + width)
    assert found["held_out_bound"] == pytest.approx(0.3 + width)
    assert found["held_out_slack"] == pytest.approx(0.3 + width - 0.5)
    error = math.sqrt(0.25 / 99)  # the mean's, over 100 values of 0 and 1
    assert found["bound_slack"] == pytest.approx(0.1 + width - (0.5 - 4 * error))


def test_a_network_that_recalls_random_labels_breaks_the_bound():
    random, true = study.STUDY.grid("smoke")
    found = study.STUDY.run(random, context=None)
    assert random["labels"] == "random" and true["labels"] == "true"
    assert found["recalls"] and found["population_images"] == 4880
    error, standard_error = found["population_error"], found["population_standard_error"]
    assert abs(error - 0.9) < 5 * standard_error
    assert found["bound_slack"]["0.001"] < 0 < found["held_out_slack"]["0.001"]

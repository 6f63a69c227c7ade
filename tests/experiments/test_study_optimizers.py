"""The comparison of optimizers: fair trials, the choice among them, and what each method is."""

import math
from collections import Counter

import pytest
import torch
from torch import nn

from paperkit.data import load
from paperkit.experiments import Record
from paperkit.experiments.studies import optimizer_comparison, optimizer_tuning
from paperkit.experiments.studies._methods import METHODS
from paperkit.experiments.studies.optimizer_comparison import best
from paperkit.ledger.claims import load_claims
from paperkit.ledger.criteria import matches

OWN = [name for name, method in METHODS.items() if not method.tuned_as]


def test_every_method_has_the_same_number_of_trials_in_every_cell():
    for profile in ("laptop", "paper"):
        counts = Counter((c["cell"], c["method"]) for c in optimizer_tuning.grid(profile))
        assert set(counts.values()) == {6}
        assert {method for _, method in counts} == set(OWN)


def test_a_method_without_trials_takes_over_those_of_another():
    for name in set(METHODS) - set(OWN):
        source = METHODS[name].tuned_as
        borrowed = optimizer_tuning.trials("laptop", "mlp", source)
        assert all(trial in optimizer_tuning.grid("laptop") for trial in borrowed)


def test_equal_gradients_are_as_many_as_two_a_step():
    grid = optimizer_comparison.grid("laptop")
    for c in grid:
        evaluations = METHODS[c["method"]].evaluations
        if c["budget"] == "gradients":
            assert evaluations != 2
            assert math.isclose(c["epochs"] * evaluations, 20 * 2, rel_tol=0.05)
        else:
            assert c["epochs"] == 20
    assert {c["seed"] for c in grid} == {0, 1, 2, 3, 4}
    assert optimizer_tuning.SEED not in {c["seed"] for c in grid}


def trial(accuracy, loss, diverged=False, **chosen):
    metrics = {"accuracy": accuracy, "loss": loss, "diverged": diverged}
    return Record("optimizer_tuning", "laptop", {"seed": 0, **chosen}, metrics, {})


def test_the_best_trial_has_the_best_accuracy_then_the_lowest_loss():
    trials = [
        trial(0.9, 0.3, lr=1),
        trial(0.95, 0.3, lr=2),
        trial(0.95, 0.2, lr=3),
        trial(0.95, 0.2, lr=4),
        trial(0.0, None, diverged=True, lr=5),
    ]
    assert best(trials).configuration["lr"] == 3
    with pytest.raises(ValueError, match="every trial of the method diverged"):
        best(trials[-1:])


@pytest.mark.parametrize("name", METHODS)
def test_a_method_steps_and_takes_the_gradients_that_it_is_said_to(name):
    torch.manual_seed(0)
    method = METHODS[name]
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    inputs = torch.randn(12, 3, dtype=torch.float64)
    targets = torch.arange(12) % 2
    chosen = {**METHODS[method.tuned_as or name].trials()[0], "weight_decay": 0.01}
    optimizer = method.make(model, chosen)(model.parameters())
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        start = calls
        optimizer.step(closure)
        if hasattr(optimizer, "end_epoch"):
            optimizer.end_epoch()
    # The last step: Eigen-SAM iterates in its first, RSAM begins after an epoch.
    assert calls - start == method.evaluations
    assert all((p - q).abs().max() > 0 for p, q in zip(model.parameters(), before, strict=True))


def test_rsam_of_one_layer_moves_the_last_weight_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    chosen = {**METHODS["RSAM"].trials()[0], "weight_decay": 0.0}
    optimizer = METHODS["RSAM, one layer"].make(model, chosen)(model.parameters())
    optimizer.end_epoch()
    model(torch.ones(1, 3, dtype=torch.float64)).square().sum().backward()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.first_step()
    moved = [bool((p != q).any()) for p, q in zip(model.parameters(), before, strict=True)]
    assert moved == [False, False, True, False]


def test_what_igsam_is_compared_with_has_a_longer_step():
    chosen = {"lr": 0.1, "rho": 0.5, "weight_decay": 0.0}
    model = nn.Linear(2, 2)
    optimizer = METHODS["SGD, faster"].make(model, chosen)(model.parameters())
    assert math.isclose(optimizer.param_groups[0]["lr"], 0.15)


def test_every_claim_of_the_comparison_has_all_seeds_on_both_sides():
    claims = [c for c in load_claims() if c.criterion.study == "optimizer_comparison"]
    assert len(claims) >= 14
    for claim in claims:
        grid = optimizer_comparison.grid(claim.profile)
        for side in (claim.criterion.larger, claim.criterion.smaller):
            assert len({c["seed"] for c in grid if matches(c, side.where)}) == 5


def test_a_network_that_has_died_is_measured_as_far_as_it_can_be():
    images = load("digits", device="cpu")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10))
    alive = optimizer_comparison.at_the_end(model, images, 8)
    assert set(alive["renyi_mean"]) == {"0_5", "1_5"} and "renyi_mean" not in alive["missing"]
    with torch.no_grad():
        model[1].bias.fill_(-1e3)  # no unit is ever on
    dead = optimizer_comparison.at_the_end(model, images, 8)
    assert dead["renyi_mean"] == {} and "1" in dead["missing"]["renyi_mean"]
    assert math.isfinite(dead["measures"]["mean_loss"]["value"])

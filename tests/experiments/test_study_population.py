"""The population of networks: its grid against the paper's settings, its metrics by hand."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from paperkit.estimators import Measurement
from paperkit.experiments.studies import population, population_training
from paperkit.experiments.studies.population import by_order, of_layers, sharpness, sides
from paperkit.ledger.claims import load_claims
from paperkit.ledger.criteria import matches


@pytest.mark.parametrize("profile", ["laptop", "paper"])
def test_each_cell_has_thirty_networks_a_seed_by_the_papers_grid(profile):
    grid = population_training.grid(profile)
    for cell, count in Counter((c["cell"], c["seed"]) for c in grid).items():
        assert count == (36 if "Tiny" in cell[0] else 30)
    for configuration in grid:
        smallest = {"sgd": 0.01, "adam": 1e-4}[configuration["optimizer"]]
        scale = 1 if profile == "paper" else 8
        # The paper's rule: the learning rate goes with the batch size, 128 : 384 : 1280.
        multiple = {128: 1, 384: 3, 1280: 10}[configuration["batch_size"] * scale]
        assert math.isclose(configuration["lr"], smallest * multiple)


def test_the_laptops_weights_shrink_as_far_as_the_papers():
    def shrinkage(c):
        return c["lr"] * c["weight_decay"] * c["epochs"] * c["images"] / c["batch_size"]

    def of(profile, cell):
        grid = population_training.grid(profile)
        return [shrinkage(c) for c in grid if c["cell"] == cell and c["seed"] == 0]

    laptop, paper = of("laptop", "resnet"), of("paper", "resnet18, CIFAR-10")
    # The laptop takes 20 epochs of 5,000 / 16 steps at eight times the decay.
    assert all(math.isclose(a / b, 0.64) for a, b in zip(laptop, paper, strict=True))


def test_every_network_is_measured_and_one_cell_at_two_counts():
    trained = population_training.grid("laptop")
    measured = population.grid("laptop")
    assert [c for c in measured if c["n"] == 64] == [{**c, "n": 64} for c in trained]
    assert {c["cell"] for c in measured if c["n"] != 64} == {"mlp"}
    assert max(c["seed"] for c in trained if c["cell"] == "mlp") == 2


def test_every_claim_on_the_population_selects_cells_of_thirty():
    claims = [c for c in load_claims() if c.criterion.study == "population"]
    assert len(claims) > 10
    for claim in claims:
        grid = population.grid(claim.profile)
        selected = [c for c in grid if matches(c, claim.criterion.where)]
        assert set(Counter(c["cell"] for c in selected).values()) <= {30, 36}


def test_sharpness_by_order_and_its_means_over_layers():
    layers = {
        "conv.1": dict.fromkeys(population.ORDERS, -1.0),
        "fc": {alpha: -alpha for alpha in population.ORDERS},
    }
    found = by_order(layers)
    assert found["renyi"]["0_5"] == {"conv/1": -1.0, "fc": -0.5}
    assert (found["renyi_mean"]["1_5"], found["renyi_first"]["2"]) == (-1.25, -1.0)
    assert (found["renyi_last"]["3"], found["layers"]) == (-3.0, ["conv.1", "fc"])


def test_values_of_layers_keep_their_error_and_lose_the_dots_of_their_names():
    exact = Measurement(value=1.0, measure="m", method="exact", n=1)
    rough = Measurement(value=2.0, measure="m", method="lanczos", n=1, standard_error=0.5)
    found = of_layers({"a.b": exact, "c": {0.5: rough}})
    assert found == {"a/b": 1.0, "c": {"0_5": {"value": 2.0, "standard_error": 0.5}}}


@pytest.mark.parametrize(
    ("loss", "learned"), [(math.log(10), False), (0.99 * math.log(10), False), (2.27, True)]
)
def test_a_network_at_the_loss_of_a_uniform_prediction_has_not_learned(loss, learned):
    assert population.has_learned(loss, 10) is learned


def test_a_network_that_has_not_learned_is_told_apart_and_not_measured(tmp_path):
    metrics = dict.fromkeys(population.OF_TRAINING, 0.5) | {"train_loss": math.log(10)}
    context = SimpleNamespace(
        device="cpu",
        record_of=lambda study, setting: SimpleNamespace(metrics=metrics),
        checkpoint_of=lambda study, setting: tmp_path / "never read",
    )
    configuration = population.grid("smoke")[0]
    assert population.run(configuration, context) == {**metrics, "learned": False}


def linear():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 3, bias=False)).double()
    batch = torch.eye(2, dtype=torch.float64), torch.tensor([0, 2])
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[1].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    return model, batch


def test_the_sharpness_is_minus_the_entropy_of_the_layers_block():
    model = nn.Sequential(nn.Linear(2, 3, bias=False)).double()
    nn.init.zeros_(model[0].weight)
    batch = torch.eye(2, dtype=torch.float64), torch.tensor([0, 2])
    # The outputs are 0, so that the softmax's Hessian is (I − 11ᵀ/3)/3 with eigenvalues ⅓, ⅓, 0;
    # the layer's block is its Kronecker product with ½ I: four equal eigenvalues.
    found = sharpness(model, batch, "mlp")
    assert all(math.isclose(found["0"][alpha], -math.log(4)) for alpha in population.ORDERS)


def test_the_gain_of_the_network_bound_compares_both_looseness():
    model, batch = linear()
    found = sides(model, batch)
    first, whole = (
        math.log(found[f"equation {n}"]["right"] / found[f"equation {n}"]["left"])
        for n in ("11", "12")
    )
    assert math.isclose(found["network_gain"], first - whole)
    # Both layers hand their input on: each has a sensitivity of 1.
    assert math.isclose(found["equation 11"]["left"], 1.0)
    assert math.isclose(found["equation 12"]["left"], 2.0)

"""What a step adds, and what that does to the regularizer, on cases that are known."""

import math

import pytest
import torch

from paperkit import data, models
from paperkit.data import Split
from paperkit.experiments import run_study
from paperkit.experiments.studies import renyi_rsam_direction as study
from paperkit.experiments.studies.renyi_regularizer import sign_of
from paperkit.optim import RSAM, SAM


@pytest.fixture(scope="module")
def digits():
    images = data.load("mnist5k", train_size=64).train
    return Split(images.inputs.double(), images.targets)


@pytest.fixture
def model():
    return study.build_network("perceptron", seed=3).double()


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def moved_by(optimizer, model, batch):
    """Return the weights after one step of an optimizer on a batch."""

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(batch.inputs), batch.targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    return flat(model)


@pytest.mark.parametrize(("rule", "tolerance"), [("paper", 1e-9), ("exact", 1e-6)])
def test_what_a_rule_adds_is_what_the_librarys_step_adds(model, digits, rule, tolerance):
    theta, lr = flat(model), 0.1
    landscape = study.Landscape(model)
    gradient = landscape.gradient(theta, digits)
    added = study.added_gradient(landscape, theta, digits, rule, 1.2, 0.65)
    found = moved_by(RSAM(model, mode=rule, rho=0.65, alpha=1.2, lr=lr), model, digits)
    expected = -(found - theta) / lr - gradient
    assert float((added - expected).norm() / expected.norm()) < tolerance


def test_the_plain_step_is_that_of_the_optimizer_with_its_momentum(model, digits):
    options = {"lr": 0.1, "momentum": study.MOMENTUM, "weight_decay": study.DECAY}
    optimizer = torch.optim.SGD(model.parameters(), **options)
    moved_by(optimizer, model, digits)
    state = study.state_of(optimizer, model.parameters())
    expected = state.plain(study.Landscape(model).gradient(state.theta, digits))
    assert torch.allclose(moved_by(optimizer, model, digits), expected, rtol=1e-12)


def test_the_radius_is_the_one_with_which_sam_takes_rsams_step(model, digits):
    theta = flat(model)
    radius = study.radius_of(study.Landscape(model).gradient(theta, digits), 1.2, 0.65)
    assert study.radius_of(torch.tensor([3.0, 4.0]), 2.0, 1.0) == pytest.approx(337 / 625 / 5)
    by_sam = moved_by(SAM(model, rho=radius, lr=0.1), model, digits)
    again = study.build_network("perceptron", seed=3).double()
    by_rsam = moved_by(RSAM(again, rho=0.65, alpha=1.2, lr=0.1), again, digits)
    assert torch.allclose(by_sam, by_rsam, rtol=1e-9)


def test_the_printed_sign_goes_the_other_way(model, digits):
    def displacement(kind):
        network = study.build_network("perceptron", seed=3).double()
        optimizer = kind(network, rho=0.65, alpha=1.2, lr=0.1)
        outputs = network(digits.inputs)
        torch.nn.functional.cross_entropy(outputs, digits.targets).backward()
        optimizer.first_step()
        return flat(network) - flat(model)

    assert torch.allclose(displacement(study.PrintedSign), -displacement(RSAM))


def test_a_short_step_along_the_exact_rule_lowers_the_regularizer(digits, monkeypatch):
    monkeypatch.setattr(study, "TAU", 1e-4)
    model = models.build(
        "mlp", in_channels=1, num_classes=10, input_shape=(1, 28, 28), activation="tanh", seed=3
    )
    theta, alpha = flat(model.double()), 1.2
    landscape = study.Landscape(model)
    added = study.added_gradient(landscape, theta, digits, "exact", alpha, 0.65)
    before = landscape.regularizer(theta, digits, alpha)
    after = landscape.regularizer(theta - 1e-4 * added, digits, alpha)
    # The rule adds the gradient of ρ P, so that P falls by the square of its length over ρ.
    assert before - after == pytest.approx(1e-4 * float(added @ added) / 0.65, rel=0.02)
    assert before * -sign_of(alpha) > 0


def test_where_nothing_is_added_nothing_falls(model, digits):
    state = study.State(flat(model), torch.zeros(26506, dtype=torch.float64), lr=0.0)
    found = study.probe(study.Landscape(model), state, digits, digits, 1.2, 0.65)
    assert all(found[f"fall_{rule}"] == 0 for rule in study.RULES)
    assert found["rise"] > 0 > found["rise_printed"]
    assert found["radius"] == pytest.approx(0.65 * found["ratio"] / found["gradient"])


def test_the_networks_are_those_that_the_grid_names():
    sizes = [
        sum(p.numel() for p in study.build_network(name, 0).parameters())
        for name in ("perceptron", "convolutional")
    ]
    assert sizes == [784 * 32 + 32 + 32 * 32 + 32 + 330, 8 * 17 + 16 * 129 + 7850]
    first, second = (study.build_network("convolutional", seed) for seed in (1, 1))
    assert torch.equal(flat(first), flat(second))


def test_no_two_networks_share_a_seed():
    networks = {}
    for configuration in study.STUDY.grid("laptop"):
        key = configuration["network"], configuration["alpha"], configuration["rho"]
        assert networks.setdefault(configuration["seed"], key) == key
    assert len(networks) == 10


def test_a_run_counts_its_probes_and_follows_the_radius(tmp_path):
    records = run_study("renyi_rsam_direction", "smoke", tmp_path, progress=False)
    assert {r.configuration["trained_by"] for r in records} == set(study.METHODS)
    for record in records:
        metrics = record.metrics
        # An epoch has five batches, so that of the fifteen steps only step 8 is a probe.
        assert metrics["probes"] == 1
        assert metrics["epochs"] == [1]
        assert metrics["radius_start"] == metrics["radius_end"] == metrics["largest_radius"]
        assert all(math.isfinite(value) for value in metrics["mean_fall"].values())
        assert 0 <= metrics["share_ascends"] <= 1

import math

import pytest
import torch
from torch import nn

from paperkit.bounds.renyi import haar_matrices
from paperkit.data import Split
from paperkit.experiments.studies import _divided_digits as digits
from paperkit.experiments.studies import renyi_perturbed_test_loss as study


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_rises_in_one_weight_that_are_worked_out_by_hand():
    model = nn.Linear(1, 2, bias=False)
    model.weight.data = torch.tensor([[1.0], [0.0]])
    part = Split(torch.ones(2, 1), torch.tensor([0, 1]))
    # The weight (1, 0) becomes (1 ± 2, 0), the loss log(1 + exp(∓w)) of the label's margin w.
    changes = study.rises(model, part, model.weight, torch.ones(1, 1, 1), rho=2.0)
    assert changes.shape == (2, 1, 2, 2)
    for change, w in zip(changes[0, 0].tolist(), (3.0, -1.0), strict=True):
        rises = [softplus(-w) - softplus(-1), softplus(w) - softplus(1)]
        assert change == pytest.approx(rises, abs=1e-6)
    assert changes[1, 0].tolist() == [[0.0, 0.0], [1.0, -1.0]]
    assert model.weight.tolist() == [[1.0], [0.0]]


def test_a_summary_of_changes_that_are_written_down():
    changes = torch.tensor([[[3.0, 1.0], [-1.0, 1.0]], [[5.0, 3.0], [-1.0, -3.0]]])
    found = study.summarized(changes.double())
    # The pairs' means by image are (1, 1) and (2, 0): every mean over images or matrices is 1.
    assert found["rise"] == pytest.approx(1.0)
    assert found["standard_error"] == pytest.approx(0.5)  # images (1.5, 0.5); matrices (1, 1)
    assert found["upper_end"] == pytest.approx(3.0)
    assert found["share_that_lower"] == 0.25
    assert found["least_rise_of_a_pair"] == pytest.approx(1.0)
    singles = [2 + 4 * 1, 0 + 4 * 1, 4 + 4 * 1, -2 + 4 * 1]
    assert found["least_single_upper_end"] == pytest.approx(min(singles))


@pytest.mark.parametrize("network", study.NETWORKS)
def test_a_pair_in_the_last_layer_never_lowers_the_loss(network):
    architecture, options = study.NETWORKS[network]
    model, (part, _) = digits.build(architecture, seed=0, **options), digits.divided([40], seed=0)
    *_, last = study.weights(model).values()
    matrices = haar_matrices(last.shape[1], 3, seed=0)
    for rho in (0.1, 1.0):
        losses, _ = study.rises(model, part, last, matrices, rho)
        assert float(losses.mean(dim=1).min()) > -1e-5  # single precision


def test_convolutions_are_moved_over_all_they_read():
    model, (part, _) = digits.build("lenet5", seed=0), digits.divided([10], seed=0)
    shapes = {name: weight.flatten(1).shape[1] for name, weight in study.weights(model).items()}
    assert shapes == {"conv1": 25, "conv2": 150, "fc1": 16, "fc2": 120, "fc3": 84}
    before = study.weights(model)["conv2"].detach().clone()
    changes = study.rises(
        model, part, study.weights(model)["conv2"], haar_matrices(150, 1, 0), rho=1.0
    )
    assert float(changes[0].abs().max()) > 0
    assert torch.equal(study.weights(model)["conv2"].detach(), before)


def test_a_smoke_run_has_a_value_for_each_layer_and_radius():
    (configuration,) = study.STUDY.grid("smoke")
    found = study.STUDY.run(configuration, context=None)
    for name in ("mean_rise", "start_rise", "error_rise_upper_end", "least_single_upper_end"):
        assert list(found[name]) == ["fc1", "fc2", "fc3"], name
        for values in found[name].values():
            assert list(values) == ["0.03", "0.1", "0.3", "1"]
            assert all(math.isfinite(value) for value in values.values())
    assert len(found["last_layer_rise_of_a_pair"]) == 8
    assert min(found["last_layer_rise_of_a_pair"]) > -1e-6

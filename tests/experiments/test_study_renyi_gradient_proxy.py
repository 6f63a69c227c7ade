"""What may stand for the Hessian, on cases that are known."""

import math

import pytest
import torch

from paperkit.experiments.studies import renyi_gradient_proxy as study
from paperkit.experiments.studies.renyi_gradient_proxy import (
    absolute_moment,
    entropies,
    gaussian_bias,
    sample_gradients,
    stand_ins,
    trained,
)

SETTING = {"fact": "network", "activation": "tanh", "steps": 5, "images": 60, "seed": 2}


@pytest.mark.parametrize("configuration", study.STUDY.grid("smoke"), ids=lambda c: c["fact"])
def test_each_fact_of_the_smoke_profile_runs(configuration):
    assert study.run(configuration, context=None)


def test_the_moments_of_a_gaussian_are_the_known_ones():
    moments = [absolute_moment(power) for power in (0, 1, 2, 4)]
    assert moments == pytest.approx([1, math.sqrt(2 / math.pi), 1, 3])
    assert gaussian_bias(2.0) == pytest.approx(-math.log(3))
    # The two values that the audit of the paper has.
    assert gaussian_bias(0.5) == pytest.approx(-0.4516, abs=1e-4)
    assert gaussian_bias(1.5) == pytest.approx(-0.9347, abs=1e-4)


def test_one_draw_of_equal_variances_has_the_bias():
    setting = {"alpha": 1.5, "dimension": 50_000, "decay": 0.0, "seed": 7}
    found = study.run({"fact": "Gaussian draw", **setting}, None)
    assert found["bias"] == pytest.approx(gaussian_bias(1.5), abs=0.02)


def test_where_all_samples_agree_all_squares_do():
    gradients = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64).expand(80, 3)
    found = entropies(stand_ins(gradients, torch.Generator().manual_seed(0)))
    assert found["batch"] == pytest.approx(found["mean_of_squares"])
    assert found["batch"] == pytest.approx(found["square_of_mean"])
    cubes = sum((x / 9) ** 1.5 for x in (1, 4, 4))
    assert found["batch"]["1.5"] == pytest.approx(math.log(cubes) / -0.5)


def test_opposite_gradients_cancel_in_the_mean_and_not_in_the_squares():
    gradients = torch.tensor([[1.0, 1.0, 0.1], [1.0, -1.0, 0.1]], dtype=torch.float64)
    found = stand_ins(gradients.repeat(30, 1), torch.Generator().manual_seed(0))
    assert found["square_of_mean"][0].tolist() == pytest.approx([1.0, 0.0, 0.01])
    assert found["mean_of_squares"][0].tolist() == pytest.approx([1.0, 1.0, 0.01])


def test_the_samples_gradients_have_the_gradient_of_the_loss_as_their_mean():
    model, images = trained(SETTING)
    loss = torch.nn.functional.cross_entropy(model(images.inputs), images.targets)
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    expected = torch.cat([slope.flatten() for slope in slopes])
    found = sample_gradients(model, images)
    assert found.shape == (60, 1482)
    assert torch.allclose(found.mean(0), expected, atol=1e-12)


def test_the_slacks_say_how_far_the_entropies_are_apart():
    metrics = study.run(SETTING, None)
    gaps = [
        metrics["entropy"]["square_of_mean"][order] - metrics["entropy"]["hessian"][order]
        for order in ("1.1", "1.2")
    ]
    assert metrics["proxy_slack"] == pytest.approx([0.5 - abs(gap) for gap in gaps])
    assert metrics["error"]["square_of_mean"]["1.2"] == pytest.approx(gaps[1])
    assert 0 <= metrics["negative_share"] <= 1


def test_more_steps_train_further():
    losses = [study.run({**SETTING, "steps": steps}, None)["loss"] for steps in (0, 200)]
    assert losses[1] < 0.5 * losses[0]

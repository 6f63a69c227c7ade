"""What the facts of Section 3 and Appendices B to D compute, on cases that are known by hand."""

import math

import numpy as np
import pytest

from paperkit.experiments.studies import renyi_bounds, renyi_translation
from paperkit.experiments.studies.renyi_bounds import (
    _divergence_of_gibbs,
    ball_volume,
    memorising_spectrum,
)
from paperkit.experiments.studies.renyi_translation import (
    block_traces,
    deviation_probability,
    mean_rise,
    recalled,
    signed_permutations,
)

SMOKE = [
    pytest.param(study, configuration, id=" ".join(str(v) for v in configuration.values()))
    for study in (renyi_bounds, renyi_translation)
    for configuration in study.grid("smoke")
    if configuration.get("n", 0) < 1000
]


@pytest.mark.parametrize(("study", "configuration"), SMOKE)
def test_each_fact_gives_finite_numbers(study, configuration):
    for value in study.run(configuration, context=None).values():
        assert math.isfinite(value)


def test_the_volumes_of_balls_are_known():
    known = {1: 2.0, 2: math.pi, 3: 4.0 * math.pi / 3.0, 4: math.pi**2 / 2.0}
    for dimension, volume in known.items():
        assert ball_volume(dimension) == pytest.approx(math.log(volume))


def test_the_divergence_of_a_flat_loss_is_zero_and_that_of_a_steep_one_is_below_its_mean():
    divergence, mean = _divergence_of_gibbs(2, 1e-6)
    assert divergence == pytest.approx(0.0, abs=1e-10)
    assert mean == pytest.approx(0.5e-6)
    # In two dimensions Δ is uniform on [0, 1]: a truncated exponential density.
    divergence, mean = _divergence_of_gibbs(2, 1.0)
    normalization = 1.0 - math.exp(-1.0)
    expected = -(1.0 - 2.0 / math.e) / normalization - math.log(normalization)
    assert divergence == pytest.approx(expected)
    assert 0 < divergence < mean == pytest.approx(0.5)


def test_the_memorising_layers_hessian_is_that_of_its_loss():
    n, step = 4, 1e-4
    second = (2.0 * (1.0 - math.cos(math.pi * step)) / 2.0) / (n * step**2)
    assert memorising_spectrum(n) == pytest.approx(np.full(n, second), rel=1e-6)
    for weight in (0.0, 0.3, 1.2):
        losses = [(1.0 - math.cos(math.pi * (weight - label))) / 2.0 for label in (0, 1)]
        assert np.mean(losses) == pytest.approx(0.5)


def test_the_probability_of_a_deviation_is_counted():
    # All three fair tosses must fail for the mean to be more than 0.4 below one half.
    assert deviation_probability(0.5, 3, 0.4) == pytest.approx(1 / 8)
    assert deviation_probability(0.5, 3, 0.1) == pytest.approx(1 / 2)
    assert deviation_probability(0.1, 3, 0.2) == 0


def test_a_sample_is_recalled_and_a_neighbour_of_it_too():
    sample = np.array([[0.0], [1.0], [5.0]])
    assert recalled(sample, np.array([[4.0], [0.1], [0.9]])).tolist() == [2, 0, 1]


def test_signed_permutations_have_the_second_moment_of_rotations():
    group = signed_permutations(3)
    assert len(group) == 48
    moment = np.einsum("kij,kmn->ijmn", group, group) / len(group)
    identity = np.eye(3)
    assert np.allclose(moment, np.einsum("im,jn->ijmn", identity, identity) / 3)


def test_the_mean_rise_of_a_single_row_is_its_length_times_the_trace():
    weight, hessian = np.array([[1.0, 2.0]]), np.diag([3.0, 1.0])
    assert block_traces(weight, hessian) == pytest.approx(5.0)
    assert mean_rise(weight, hessian, signed_permutations(2)) == pytest.approx(5.0)
    # The identity alone is no group, and its rise another one.
    assert mean_rise(weight, hessian, np.eye(2)[None]) == pytest.approx(3.5)


def test_losses_of_a_larger_range_break_the_bound_and_losses_up_to_one_do_not():
    facts = {
        scale: renyi_bounds.run(
            {"fact": "McAllester", "hypotheses": 2, "range": scale, "seed": 0}, context=None
        )
        for scale in (1.0, 10.0)
    }
    assert facts[1.0]["margin"] > 0 > facts[10.0]["margin"]

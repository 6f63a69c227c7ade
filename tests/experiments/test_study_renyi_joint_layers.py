"""What the facts of Appendix F compute, on cases that are known by hand."""

import math

import numpy as np
import pytest

from paperkit.experiments.studies import renyi_joint_layers
from paperkit.experiments.studies.renyi_joint_layers import blocks_of, coupled, joined, power_sum


def numbers(value):
    return list(value.values()) if isinstance(value, dict) else [value]


@pytest.mark.parametrize(
    "configuration",
    renyi_joint_layers.grid("smoke"),
    ids=lambda c: " ".join(str(v) for v in c.values()),
)
def test_each_fact_gives_finite_numbers(configuration):
    for value in renyi_joint_layers.run(configuration, context=None).values():
        assert all(math.isfinite(number) for number in numbers(value))


def test_power_sums_are_known():
    assert power_sum(np.array([3.0, 1.0]), 2.0) == pytest.approx(0.625)
    assert power_sum(np.array([1.0, 1.0, 0.0, -1e-18]), 0.5) == pytest.approx(math.sqrt(2))


def test_a_joined_matrix_is_its_own_block_diagonal_and_a_coupled_one_is_not():
    generator = np.random.default_rng(0)
    matrix = joined([np.array([1.0, 2.0]), np.array([3.0])], generator)
    assert np.allclose(blocks_of(matrix, (2, 1)), matrix)
    assert np.allclose(np.linalg.eigvalsh(matrix), [1.0, 2.0, 3.0])
    mixed = coupled((2, 1), 5, generator)
    assert np.linalg.eigvalsh(mixed).min() > -1e-12
    assert not np.allclose(blocks_of(mixed, (2, 1)), mixed)


def test_pairs_that_are_coupled_have_the_change_that_is_known():
    for alpha, k in ((1.1, 100), (1.2, 10_000)):
        metrics = renyi_joint_layers.run(
            {"fact": "coupling in pairs", "alpha": alpha, "eigenvalues": k, "seed": 0}, None
        )
        assert metrics["ratio"] == pytest.approx(k ** (1.5 - alpha) * (2 ** (alpha - 1) - 1))


def test_small_eigenvalues_that_are_coupled_have_the_change_that_is_known():
    configuration = {"fact": "coupling, order below one", "alpha": 0.5, "exponent": 6, "seed": 0}
    metrics = renyi_joint_layers.run(configuration, None)
    s = 1e-6
    expected = (2 - math.sqrt(2)) * math.sqrt(s / (1 + 2 * s)) / (math.sqrt(2) * s / (1 + 2 * s))
    assert metrics["ratio"] == pytest.approx(expected)

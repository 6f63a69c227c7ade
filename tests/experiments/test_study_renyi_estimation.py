"""What the facts of Sections 4.2 and 5.1 compute, on cases that are known by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest

from paperkit.experiments.studies import renyi_estimation
from paperkit.experiments.studies.renyi_estimation import (
    lanczos_by_hand,
    quadratic_form,
    steps_until,
    tau_written_out,
    tridiagonal,
)


@pytest.mark.parametrize(
    "configuration",
    renyi_estimation.grid("smoke"),
    ids=lambda c: " ".join(str(v) for v in c.values()),
)
def test_each_fact_gives_finite_numbers(configuration):
    for value in renyi_estimation.run(configuration, context=None).values():
        assert math.isfinite(value)


def test_lanczos_by_hand_gives_two_ritz_values_of_a_two_by_two_matrix():
    matrix = np.diag([1.0, 3.0])
    diagonal, betas = lanczos_by_hand(matrix, np.ones(2), steps=2)
    assert np.allclose(tridiagonal(diagonal, betas), [[2.0, 1.0], [1.0, 2.0]])


def test_a_quadratic_form_is_that_of_the_power():
    start = np.array([0.6, 0.8])
    found = quadratic_form(np.diag([4.0, 9.0]), start, steps=2, alpha=0.5)
    assert found == pytest.approx(0.36 * 2 + 0.64 * 3)


def test_steps_are_counted_back_from_the_last_that_errs():
    uniform = [np.array([1.0, 1.0])] * 4
    weights = [np.array([1.0, 1.0])] * 4
    assert steps_until(uniform, weights, math.log(2), 2.0) == 1
    off = [np.array([1.0, 3.0]), *uniform[1:]]
    assert steps_until(off, weights, math.log(2), 2.0) == 2
    late = [*uniform[:2], np.array([1.0, 3.0]), uniform[0]]
    assert steps_until(late, weights, math.log(2), 1.0) == 4


def test_equation_8_counts_pairs_exactly_and_a_tie_as_nothing():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert tau_written_out(x, np.array([1.0, 2.0, 4.0, 3.0])) == Fraction(2, 3)
    assert tau_written_out(x, np.array([1.0, 1.0, 2.0, 3.0])) == Fraction(5, 6)


def test_the_wrong_index_and_the_wrong_scale_are_seen():
    smoke = renyi_estimation.grid("smoke")
    index = next(c for c in smoke if c["fact"] == "index")
    metrics = renyi_estimation.run(index, context=None)
    assert metrics["repaired_error"] < 1e-9 < 0.01 < metrics["printed_error"]
    scale = next(c for c in smoke if c["fact"] == "scale")
    metrics = renyi_estimation.run(scale, context=None)
    assert metrics["printed_offset"] == pytest.approx(abs(math.log(scale["ratio"])))

"""From the determinant to the entropy: what the chain of inequalities yields."""

from __future__ import annotations

import itertools
import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from paperkit.bounds import renyi

ORDERS = (0.25, 0.5, 0.9, 1.0, 1.1, 1.5, 2.0, 3.0)

orders = st.floats(0.1, 5.0)
positive = hnp.arrays(np.float64, st.integers(2, 12), elements=st.floats(1e-4, 1e4))


@given(positive, orders)
def test_the_chain_from_the_determinant_to_the_entropy_holds(values, alpha) -> None:
    bounds = renyi.determinant_chain(values, alpha)
    scale = max(abs(b.left) for b in bounds) + 1
    for bound in bounds:
        assert bound.certified
        assert bound.slack >= -1e-10 * scale
    for lower, upper in itertools.pairwise(bounds):
        assert lower.right == upper.left


@pytest.mark.parametrize("alpha", ORDERS)
def test_at_fixed_trace_the_bound_falls_where_the_determinant_rises(alpha: float) -> None:
    spectra = [[4 - 3 * t, t, t, t] for t in (0.05, 0.2, 0.5, 0.8, 1.0)]
    chains = [renyi.determinant_chain(spectrum, alpha) for spectrum in spectra]
    determinants = [chain[0].left for chain in chains]
    bounds = [chain[-1].right for chain in chains]
    assert determinants == sorted(determinants)
    assert bounds == sorted(bounds, reverse=True)


def test_known_values_of_the_two_ends() -> None:
    uniform = renyi.determinant_chain([1.0] * 4, 1.5)
    assert uniform[0].left == pytest.approx(0, abs=1e-14)
    assert uniform[-1].right == pytest.approx(3 * math.log(4), rel=1e-12)  # ≈ 4.159
    peaked = renyi.determinant_chain([3.85, 0.05, 0.05, 0.05], 1.5)
    assert peaked[0].left == pytest.approx(math.log(3.85 * 0.05**3), rel=1e-12)  # −7.64
    assert peaked[-1].right > 5.4


@given(positive, orders)
def test_the_sum_of_logarithms_is_below_d_entropies_and_so_below_one(values, alpha) -> None:
    printed = renyi.sum_of_logarithms(values, alpha)
    sharper = renyi.sum_of_logarithms(values, alpha, "sharper")
    assert printed.slack >= -1e-9 and sharper.slack >= -1e-9
    assert sharper.right <= printed.right + 1e-12

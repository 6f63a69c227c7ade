r"""Kendall's τ-a over networks, with an interval by the jackknife, for the criteria.

A unit is one network. Networks of different groups (cells) are not compared with each other: τ is
taken in each group, and averaged over the groups. The standard error is the jackknife's, which
leaves out one network at a time; for τ, a U-statistic, it is consistent, and it serves a difference
of two dependent coefficients as well as one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from paperkit.statistics import kendall_tau

Statistic = Callable[[np.ndarray], float]
"""From the rows of one group, a network each, to a number."""


def tau(x: np.ndarray, y: np.ndarray) -> float:
    """Return Kendall's τ-a of two columns."""
    return kendall_tau(torch.from_numpy(x.copy()), torch.from_numpy(y.copy())).value


def jackknife(statistic: Statistic, groups: Sequence[np.ndarray]) -> tuple[float, float, int]:
    """Return the mean of a statistic over groups, its standard error, and its degrees of freedom.

    Parameters
    ----------
    statistic : callable
    groups : sequence of array
        Shape (networks, columns) each, of at least three networks.
    """
    value = float(np.mean([statistic(rows) for rows in groups]))
    variance, freedom = 0.0, 0
    for rows in groups:
        left_out = np.array([statistic(np.delete(rows, i, axis=0)) for i in range(len(rows))])
        n = len(rows)
        variance += (n - 1) / n * float(((left_out - left_out.mean()) ** 2).sum())
        freedom += n - 1
    return value, math.sqrt(variance) / len(groups), freedom

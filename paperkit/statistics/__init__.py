"""Rank correlation, permutation tests and intervals: what is said of numbers from several runs."""

from paperkit.statistics.rank_correlation import (
    kendall_tau,
    kendall_tau_by_group,
    permutation_test,
)

__all__ = ["kendall_tau", "kendall_tau_by_group", "permutation_test"]

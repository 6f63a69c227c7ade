"""Memory budgets: the default one, the error, and how much fits at a time."""

from __future__ import annotations

import torch

GIBIBYTE = 2**30
"""Bytes, and the budget of every measure unless another is given."""


class MemoryBudgetError(ValueError):
    """The result or a temporary does not fit the memory budget.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import top_eigenpairs
    >>> top_eigenpairs(torch.eye(1000), 3, memory_budget=10_000)
    Traceback (most recent call last):
        ...
    paperkit.memory.MemoryBudgetError: memory_budget=10000 is too small for k=3 eigenpairs, whose
        basis holds vectors of 1000 entries: pass at least 64000.
    """


def fitting(available: int, each: float, count: int) -> int:
    """Return how many of ``count`` things fit at a time: one at least.

    Parameters
    ----------
    available : int
        Number of free bytes.
    each : float
        Bytes of a single thing.
    count : int
        Number of things in all.
    """
    return max(1, min(count, int(available / max(each, 1))))


def equal_pieces(count: int, at_once: int, fewest: int = 1) -> list[int]:
    """Cut ``count`` things into pieces whose sizes differ by one at most.

    A small last piece would leave the processor idle.

    Parameters
    ----------
    count : int
        Number of things in all.
    at_once : int
        Largest number that fits at a time.
    fewest : int
        Smallest number that a piece may hold, where ``count`` allows it, also if they do not fit.

    Returns
    -------
    list of int
        Sizes that sum to ``count``.
    """
    pieces = max(1, min(-(-count // max(1, at_once)), count // fewest))
    return [count // pieces + (index < count % pieces) for index in range(pieces)]


def chunk_sizes(
    count: int, elements_each: int, dtype: torch.dtype, memory_budget: int
) -> list[int]:
    """Split ``count`` vectors into chunks whose temporaries fit a memory budget.

    Parameters
    ----------
    count : int
        Number of vectors in all.
    elements_each : int
        Number of entries to store for a vector.
    dtype : torch.dtype
        Format of these entries.
    memory_budget : int
        Bytes that the temporaries may take.

    Returns
    -------
    list of int
        Sizes that sum to ``count``; at least two each where ``count`` allows it, however small
        the budget, because one vector has no spread.
    """
    return equal_pieces(count, memory_budget // (elements_each * dtype.itemsize), min(2, count))

"""Stratified, seeded choices of samples."""

from __future__ import annotations

import numpy as np


def class_quotas(counts: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Divide ``size`` among classes in proportion to their counts.

    Largest remainders; ties (every class, when the set is balanced) are broken at random,
    so that no class is favoured for its number.

    Parameters
    ----------
    counts : numpy.ndarray
        Shape (classes,): samples available in each class.
    size : int
        Samples wanted, at most ``counts.sum()``.
    rng : numpy.random.Generator
        Breaks the ties.

    Returns
    -------
    numpy.ndarray
        Shape (classes,), summing to ``size``, each entry at most its count and within one
        of its exact share.
    """
    whole, remainder = np.divmod(counts * size, counts.sum())
    order = np.lexsort((rng.random(len(counts)), -remainder))
    whole[order[: size - whole.sum()]] += 1
    return whole


def stratified(
    labels: np.ndarray, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Choose ``size`` samples that keep the proportions of the classes.

    Parameters
    ----------
    labels : numpy.ndarray
        Shape (n,), the class of each sample.
    size : int
        Samples to choose, from 0 to n.
    rng : numpy.random.Generator
        Makes the choice, and the order of both results.

    Returns
    -------
    chosen, rest : numpy.ndarray
        Disjoint indices that together cover every sample, each in random order, so that
        a prefix of either is itself a fair sample.
    """
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    quotas = class_quotas(counts, size, rng)
    order = rng.permutation(len(labels))
    is_chosen = np.zeros(len(labels), dtype=bool)
    for k in range(len(classes)):
        is_chosen[order[inverse[order] == k][: quotas[k]]] = True
    return order[is_chosen[order]], order[~is_chosen[order]]

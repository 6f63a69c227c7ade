"""Vectors to multiply a matrix with, some at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from paperkit.curvature.operators import CurvatureOperator
from paperkit.linalg.probes import draw_probes, generator_of

VECTORS_AT_ONCE = 64
"""Products asked for together; more only cost memory."""


def unit_vectors(dimension: int, dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
    """Yield the rows of the identity, some at a time."""
    for start in range(0, dimension, VECTORS_AT_ONCE):
        stop = min(start + VECTORS_AT_ONCE, dimension)
        rows = torch.zeros(stop - start, dimension, dtype=dtype, device=device)
        rows[:, start:stop].fill_diagonal_(1.0)
        yield rows


def sign_vectors(probes: int, operator: CurvatureOperator, seed: int) -> Iterator[Tensor]:
    """Yield Rademacher vectors, some at a time."""
    generator = generator_of(seed)
    for start in range(0, probes, VECTORS_AT_ONCE):
        yield draw_probes(
            min(VECTORS_AT_ONCE, probes - start),
            operator.dimension,
            generator,
            dtype=operator.dtype,
            device=operator.device,
        )

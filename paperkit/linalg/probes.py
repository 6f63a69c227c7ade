r"""Random vectors with :math:`\mathbb E\, v v^\top = I`, the raw material of trace estimators."""

from __future__ import annotations

import torch
from torch import Tensor

GIBIBYTE = 2**30

DISTRIBUTIONS = ("rademacher", "sphere", "normal")
"""Random signs; uniform on the sphere of radius √d; independent standard normal entries."""


def generator_of(seed: int) -> torch.Generator:
    """Return a generator on the CPU, so that a seed means the same probes on every device."""
    return torch.Generator(device="cpu").manual_seed(seed)


def draw_probes(
    count: int,
    dimension: int,
    generator: torch.Generator,
    *,
    distribution: str = "rademacher",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""Draw ``count`` independent vectors with mean zero and :math:`\mathbb E\, v v^\top = I`.

    Parameters
    ----------
    count, dimension : int
        k and d, both at least 1.
    generator : torch.Generator
        On the CPU. Vectors are drawn one after the other: k of them at once are the same as k
        drawn in several calls, so that a memory budget does not change a result.
    distribution : str
        One of ``"rademacher"``, ``"sphere"``, ``"normal"``.
    dtype, device
        Of the vectors.

    Returns
    -------
    Tensor
        Shape (k, d), vectors as rows.

    Raises
    ------
    ValueError
        If ``count`` or ``dimension`` is not positive, or the distribution unknown.
    """
    if count < 1 or dimension < 1:
        raise ValueError(f"count={count} and dimension={dimension} must both be at least 1.")
    if distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"distribution={distribution!r} is unknown: choose one of {', '.join(DISTRIBUTIONS)}."
        )
    rows = []
    for _ in range(count):
        if distribution == "rademacher":
            row = torch.randint(
                2, (dimension,), generator=generator, dtype=torch.int8, device="cpu"
            )
            row.mul_(2).sub_(1)
        else:
            row = torch.randn(dimension, generator=generator, dtype=torch.float64, device="cpu")
        rows.append(row * (dimension**0.5 / row.norm()) if distribution == "sphere" else row)
    return torch.stack(rows).to(device).to(dtype)


def chunk_sizes(
    count: int, elements_each: int, dtype: torch.dtype, memory_budget: int
) -> list[int]:
    """Split ``count`` vectors into chunks whose temporaries fit a memory budget.

    Parameters
    ----------
    count : int
        Vectors in all.
    elements_each : int
        Numbers to store for one of them.
    dtype : torch.dtype
        Of these numbers.
    memory_budget : int
        Bytes.

    Returns
    -------
    list of int
        Sizes that sum to ``count``; at least two each where ``count`` allows it, however small
        the budget, because one vector has no spread.
    """
    fitting = memory_budget // (elements_each * dtype.itemsize)
    pieces = -(-count // max(2, fitting))
    while pieces > 1 and count // pieces < 2:
        pieces -= 1
    return [count // pieces + (index < count % pieces) for index in range(pieces)]

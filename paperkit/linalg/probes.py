r"""Random vectors with :math:`\mathbb E\, v v^\top = I`, the raw material of trace estimators."""

from __future__ import annotations

import torch
from torch import Tensor

from paperkit import arguments

DISTRIBUTIONS = ("rademacher", "sphere", "normal")
"""Random signs; uniform on the sphere of radius √d; independent standard normal entries."""


def generator_of(seed: int) -> torch.Generator:
    """Return a generator on the CPU, so that a seed means the same probes on every device.

    Raises
    ------
    TypeError, ValueError
        If ``seed`` is no integer of at most 64 bits.
    """
    return torch.Generator(device="cpu").manual_seed(arguments.seed("seed", seed))


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
        Distribution of the probes: ``"rademacher"``, ``"sphere"`` or ``"normal"``.
    dtype, device
        Floating format and device of the vectors.

    Returns
    -------
    Tensor
        Shape (k, d), vectors as rows.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import draw_probes
    >>> draw_probes(2, 3, torch.Generator().manual_seed(0))
    tensor([[-1.,  1.,  1.],
            [-1.,  1.,  1.]], dtype=torch.float64)
    >>> on_sphere = draw_probes(1, 3, torch.Generator().manual_seed(0), distribution="sphere")
    >>> round(float(on_sphere.norm() ** 2), 6)  # every length is √d
    3.0
    """
    count = arguments.integer("count", count, at_least=1)
    dimension = arguments.integer("dimension", dimension, at_least=1)
    arguments.instance("generator", generator, torch.Generator)
    if generator.device.type != "cpu":
        raise ValueError(f"generator is on {generator.device}: pass one of the CPU.")
    distribution = arguments.choice("distribution", distribution, DISTRIBUTIONS)
    device, dtype = arguments.device("device", device), arguments.dtype("dtype", dtype)
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

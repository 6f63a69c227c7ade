"""Checks and small parts that the statements of several papers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.network.evaluation import check_inputs, check_outputs
from paperkit.network.losses import get_loss
from paperkit.network.network import network_outputs

Values = Tensor | Sequence[float]


def nonzero_vector(values: Values, name: str) -> Tensor:
    """Return a spectrum or a gradient as float64 on the CPU; refuse one that is entirely zero."""
    vector = arguments.vector(name, values)
    if not bool(vector.any()):
        raise ValueError(f"{name} is entirely zero: the entropy of nothing is undefined.")
    return vector


def symmetric_matrix(matrix: Tensor, name: str = "hessian") -> Tensor:
    """Return a matrix without its round-off asymmetry; refuse one that is entirely zero."""
    values = arguments.square_matrix(name, matrix, symmetric=True)
    if not bool(values.any()):
        raise ValueError(f"{name} is entirely zero: its spectrum has no shape.")
    return 0.5 * (values + values.T)


def eigenvalues_of(matrix: Tensor) -> Tensor:
    """Return the eigenvalues, those at round-off set to zero."""
    values = torch.linalg.eigvalsh(matrix)
    threshold = len(values) * torch.finfo(torch.float64).eps * values.abs().max()
    return torch.where(values.abs() > threshold, values, torch.zeros_like(values))


def is_semidefinite(values: Tensor) -> bool:
    """Whether no eigenvalue is negative beyond round-off of the largest."""
    threshold = len(values) * torch.finfo(torch.float64).eps * values.abs().max()
    return bool(values.min() >= -threshold)


def check_probability(name: str, value: float) -> float:
    """Return a number strictly between 0 and 1."""
    return arguments.number(name, value, above=0, below=1)


def check_nonnegative(name: str, value: float) -> float:
    """Return a number that is not negative."""
    return arguments.number(name, value, at_least=0)


def check_positive(name: str, value: float) -> float:
    """Return a positive number."""
    return arguments.number(name, value, above=0)


def exponential(logarithm: float) -> float:
    """Return the exponential, infinite where it leaves the range of float64."""
    return float(torch.tensor(logarithm, dtype=torch.float64, device="cpu").exp())


def assumptions_of(
    unchecked: Mapping[str, bool | None],
    known: Mapping[str, bool] | None,
    **checked: bool | None,
) -> dict[str, bool | None]:
    """Join the hypotheses that were checked with those that the caller knows."""
    return {**checked, **unchecked, **arguments.known_truths("known", known, unchecked)}


def loss_at(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    loss: str,
) -> Tensor:
    """Return the mean loss with some parameters replaced; call it inside ``evaluation``."""
    check_inputs(inputs)
    outputs = network_outputs(model, dict(parameters), inputs)
    check_outputs(outputs, len(inputs))
    bound = get_loss(loss)
    bound.check(outputs, targets)
    return bound.value(outputs, targets)

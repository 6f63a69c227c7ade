"""The state of a step while it is being taken, and the numbers that are kept of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from paperkit.optim.modules import PassWatch
from paperkit.optim.vector import Vector

Passes = Iterator[None]


@dataclass(frozen=True)
class StepRecord:
    """Numbers of a step, as logged with ``log=True``.

    Attributes
    ----------
    step : int
        Number of the step, from 0; skipped steps count.
    gradient_norm : float
        Norm ‖g‖ of the gradient of the first pass, over all parameters with a gradient.
    perturbation_norm : float
        Norm ‖ε‖ of the perturbation; 0 in a step of the base optimizer alone.
    cosine : float
        Cosine of the angle between ε and g; NaN where one of them is zero.
    regularizer : float
        First-order change gᵀε of the loss by the perturbation, unless the optimizer says otherwise.

    Examples
    --------
    >>> import torch
    >>> from paperkit.optim import SAM
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = SAM([w], rho=0.5, lr=0.1, log=True)
    >>> for move in (optimizer.first_step, optimizer.second_step):
    ...     (0.5 * w.square().sum()).backward()
    ...     move()
    >>> record = optimizer.log[0]
    >>> round(record.gradient_norm, 4), round(record.perturbation_norm, 4), round(record.cosine, 4)
    (5.0, 0.5, 1.0)
    >>> round(record.regularizer, 4)  # gᵀε = ρ ‖g‖
    2.5
    """

    step: int
    gradient_norm: float
    perturbation_norm: float
    cosine: float
    regularizer: float


@dataclass
class OpenStep:
    """The state of the step that is being taken, shared by an optimizer and its wrappers.

    Attributes
    ----------
    running : iterator, optional
        Generator of the step; None between steps.
    active : list of Tensor, optional
        Parameters to which the first pass gave a gradient.
    values : list of Tensor, optional
        The same parameters, with a complex number as a pair of reals.
    saved : list of Tensor, optional
        Copies of ``values`` from before they were moved.
    swapped : list of Tensor
        Tensors that hold the weights of ``values`` meanwhile.
    gradient : Vector, optional
        Gradient that a later pass still needs.
    watch : PassWatch, optional
        Watch over the changes that passes make in modules.
    unscaled : int
        Number of passes that a gradient scaler has unscaled.
    logged : tuple of Tensor
        Numbers of the step's record.
    rounding : list of Tensor
        Pairs of lengths: the part of a displacement that the weights' format took away, and the
        whole displacement.
    first_pass : bool
        Whether a pass that runs now is at the present weights.
    """

    running: Passes | None = None
    active: list[Tensor] | None = None
    values: list[Tensor] | None = None
    saved: list[Tensor] | None = None
    swapped: list[Tensor] = field(default_factory=list)
    gradient: Vector | None = None
    watch: PassWatch | None = None
    unscaled: int = 0
    logged: tuple[Tensor, ...] = ()
    rounding: list[Tensor] = field(default_factory=list)
    first_pass: bool = True

    def forget(self) -> None:
        """Return to the state between steps; the object stays the same."""
        vars(self).update(vars(OpenStep()))


@dataclass
class Home:
    """State and groups of an optimizer that has no base optimizer to hold them."""

    state: defaultdict[Any, Any] = field(default_factory=lambda: defaultdict(dict))
    param_groups: list[dict[str, Any]] = field(default_factory=list)


class UnscaledPass:
    """A stand-in for the optimizer in a single pass.

    A gradient scaler unscales each optimizer once per update, and a step has several passes. So
    every pass hands it an object of its own.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups."""
        return self._optimizer.param_groups

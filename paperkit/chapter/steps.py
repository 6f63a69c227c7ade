"""Steps of the library's optimizers, on problems that a chapter computes by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

from paperkit import arguments


@dataclass(frozen=True)
class Steps:
    """Where an optimizer went, and what it asked for.

    Attributes
    ----------
    weights : Tensor
        Weights after the last step, of shape (d,).
    closures : int
        Calls of the closure.
    evaluations : int
        Gradients that the optimizer says it took; one that does not count takes one each call.
    forwards : int
        Forward passes over the whole batch.
    optimizer : Optimizer
        The optimizer, with its state and its log.

    Examples
    --------
    >>> import torch
    >>> from paperkit.chapter import Steps
    >>> Steps(torch.zeros(2), closures=2, evaluations=2, forwards=2, optimizer=None).closures
    2
    """

    weights: Tensor
    closures: int
    evaluations: int
    forwards: int
    optimizer: Any


def batch_closure(
    network: nn.Module, optimizer: Any, inputs: Tensor, targets: Tensor
) -> Callable[[], Tensor]:
    """Return the closure that an optimizer's step asks for: the mean cross-entropy of a batch.

    Parameters
    ----------
    network : Module
        Network that the optimizer moves.
    optimizer : Optimizer
        Optimizer whose gradients the closure zeroes.
    inputs, targets : Tensor
        Batch of n samples, and their n labels.

    Returns
    -------
    callable
        Zeroes the gradients, computes the loss, calls ``backward`` and returns the loss.

    Examples
    --------
    >>> import torch
    >>> from paperkit.chapter import batch_closure
    >>> network = torch.nn.Linear(1, 2)
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    >>> closure = batch_closure(network, optimizer, torch.zeros(4, 1), torch.tensor([0, 1, 0, 1]))
    >>> bool(optimizer.step(closure) > optimizer.step(closure))
    True
    """
    arguments.module("network", network)
    arguments.instance("optimizer", optimizer, torch.optim.Optimizer)
    _check_batch(inputs, targets)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(inputs), targets)
        loss.backward()
        return loss

    return closure


def take_steps(
    make: Callable[[nn.Module], Any],
    network: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    steps: int = 1,
) -> Steps:
    """Let an optimizer take steps from a network's weights on one batch, and count its calls.

    Parameters
    ----------
    make : callable
        Builds the optimizer around a copy of the network; it may move the copy's weights first.
    network : Module
        Network to start from; it is not changed.
    inputs, targets : Tensor
        Batch of n samples, and their n labels; the loss is the mean cross-entropy.
    steps : int
        Number of steps.

    Returns
    -------
    Steps

    Examples
    --------
    >>> import torch
    >>> from paperkit.chapter import take_steps
    >>> from paperkit.optim import SAM
    >>> network = torch.nn.Linear(1, 2)
    >>> inputs, targets = torch.ones(4, 1), torch.tensor([0, 1, 0, 0])
    >>> taken = take_steps(
    ...     lambda copy: SAM(copy.parameters(), rho=0.05, lr=0.1), network, inputs, targets
    ... )
    >>> taken.closures, taken.forwards, taken.weights.shape
    (2, 2, torch.Size([4]))
    """
    arguments.function("make", make, "a function from a network to an optimizer")
    arguments.module("network", network)
    _check_batch(inputs, targets)
    steps = arguments.integer("steps", steps, at_least=1)
    copy = deepcopy(network)
    optimizer = make(copy)
    before = getattr(optimizer, "gradient_evaluations", 0)
    closure = batch_closure(copy, optimizer, inputs, targets)
    calls = 0
    sizes: list[int] = []

    def counted() -> Tensor:
        nonlocal calls
        calls += 1
        return closure()

    hook = copy.register_forward_hook(lambda module, arguments, f: sizes.append(len(f)))
    for _ in range(steps):
        optimizer.step(counted)
    hook.remove()
    return Steps(
        weights=parameters_to_vector(copy.parameters()).detach(),
        closures=calls,
        evaluations=getattr(optimizer, "gradient_evaluations", calls) - before,
        forwards=sizes.count(len(inputs)),
        optimizer=optimizer,
    )


def follow_quadratic(
    make: Callable[[Sequence[nn.Parameter]], Any],
    hessian: Tensor,
    start: Tensor,
    steps: int,
    minimum: Tensor | float = 0.0,
) -> tuple[Tensor, Any]:
    r"""Let an optimizer take steps on the quadratic ½ (θ − θ*)ᵀ H (θ − θ*).

    Parameters
    ----------
    make : callable
        Builds the optimizer from a list of one parameter, of shape (d,).
    hessian : Tensor
        The matrix H, of shape (d, d).
    start : Tensor
        First point, of shape (d,).
    steps : int
        Number of steps.
    minimum : Tensor or float
        The minimum θ*.

    Returns
    -------
    points : Tensor
        The start and the point after each step, of shape (steps + 1, d).
    optimizer : Optimizer
        The optimizer, with its state.

    Examples
    --------
    >>> import torch
    >>> from paperkit.chapter import follow_quadratic
    >>> hessian, start = torch.eye(1), torch.tensor([8.0])
    >>> points, _ = follow_quadratic(
    ...     lambda parameters: torch.optim.SGD(parameters, lr=0.5), hessian, start, steps=3
    ... )
    >>> points.flatten().tolist()
    [8.0, 4.0, 2.0, 1.0]
    """
    arguments.function("make", make, "a function from a list of parameters to an optimizer")
    start = arguments.tensor("start", start, shape=("d",), floating=True, finite=True)
    square = (len(start), len(start))
    hessian = arguments.tensor("hessian", hessian, shape=square, finite=True).to(start)
    steps = arguments.integer("steps", steps, at_least=1)
    if isinstance(minimum, Tensor) and minimum.ndim > 0:
        minimum = arguments.tensor("minimum", minimum, shape=start.shape, finite=True).to(start)
    else:
        minimum = arguments.number("minimum", minimum)
    theta = nn.Parameter(start.clone())
    optimizer = make([theta])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (theta - minimum) @ hessian @ (theta - minimum)
        loss.backward()
        return loss

    points = [start]
    for _ in range(steps):
        optimizer.step(closure)
        points.append(theta.detach().clone())
    return torch.stack(points), optimizer


def _check_batch(inputs: Tensor, targets: Tensor) -> None:
    arguments.tensor("inputs", inputs)
    arguments.tensor("targets", targets)
    if inputs.ndim == 0:
        raise ValueError("inputs must be a batch: pass a tensor with one row for each sample.")
    if targets.ndim == 0 or len(targets) != len(inputs):
        raise ValueError(f"targets must be one for each of the {len(inputs)} rows of inputs.")

"""The contract of a closure, and how one that breaks it is told.

A closure that breaks it takes a wrong step without a word: a gradient that is not cleared adds to
the next, and a scaled gradient makes the step longer by the scale. A breach that can be repaired is
repaired: gradients are cleared before every pass. All others are refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from paperkit import arguments

Closure = Callable[[], Any]

CONTRACT = (
    "a closure clears the gradients, computes the loss of the whole batch, calls backward and "
    "returns the loss"
)

_LEFT = "_left_by_a_step_at_version"
"""Marks a gradient that a step has used: nothing is lost when it is cleared."""


def clear_gradients(parameters: Iterable[Tensor]) -> None:
    """Let the next backward pass start from nothing."""
    for parameter in parameters:
        parameter.grad = None


def mark_used(gradients: Iterable[Tensor]) -> None:
    """Note that a step has used these gradients as they are now."""
    for gradient in gradients:
        setattr(gradient, _LEFT, gradient._version)


def refuse_uncleared(parameters: Iterable[Tensor]) -> None:
    """Refuse the first pass of a loop by hand that added to the gradients of the step before.

    Each marked gradient was then changed at most once, by the addition; to clear one in place and
    to add another to it changes it twice.

    Raises
    ------
    RuntimeError
        With one sentence.
    """
    ages = [
        parameter.grad._version - getattr(parameter.grad, _LEFT)
        for parameter in parameters
        if parameter.grad is not None and hasattr(parameter.grad, _LEFT)
    ]
    if ages and max(ages) <= 1:
        raise RuntimeError(
            "first_step() found the gradients of the step before: clear them with zero_grad(), "
            "then call backward, then first_step()."
        )


class GradientsBefore:
    """The gradients that the parameters had before a step's first pass.

    Gradients of the step before are cleared. All others came from a backward pass outside, and the
    closure must have cleared them before it adds its own.

    Parameters
    ----------
    parameters : sequence of Tensor
        Parameters of the optimizer.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._foreign: list[tuple[Tensor, Tensor, int]] = []
        self._added = False
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is None:
                continue
            if getattr(gradient, _LEFT, None) == gradient._version:
                parameter.grad = None
            else:
                self._foreign.append((parameter, gradient, gradient._version))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Run the first pass inside; refuse it at its end if it broke the contract.

        Raises
        ------
        ValueError
            With one sentence.
        """
        handles = [
            parameter.register_hook(self._note(parameter, gradient, version))
            for parameter, gradient, version in self._foreign
            if parameter.requires_grad
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if self._added or any(_is_there(*foreign) for foreign in self._foreign):
            raise ValueError(
                "closure left gradients in place that were computed outside of it, so its own "
                f"would add to those of other passes: {CONTRACT}. To accumulate gradients, run "
                "all micro-batches of the step inside the closure."
            )

    def _note(self, parameter: Tensor, gradient: Tensor, version: int) -> Callable[[Tensor], None]:
        def before_addition(_: Tensor) -> None:
            self._added |= _is_there(parameter, gradient, version)

        return before_addition


def _is_there(parameter: Tensor, gradient: Tensor, version: int) -> bool:
    return parameter.grad is gradient and gradient._version == version


def refuse_no_gradient(parameters: Iterable[Tensor]) -> None:
    """Refuse a later pass that left no gradient.

    Raises
    ------
    ValueError
        With one sentence.
    """
    if all(parameter.grad is None for parameter in parameters):
        raise ValueError(f"closure left no gradient in its last call: {CONTRACT}.")


def check_scaler(scaler: object) -> None:
    """Refuse a scaler that is no gradient scaler.

    Raises
    ------
    TypeError
        With one sentence.
    """
    if scaler is not None:
        arguments.instance("scaler", scaler, GradScaler, "torch.amp has it")


def refuse_forgotten_scaler(closure: Closure) -> None:
    """Refuse a closure that holds a gradient scaler in use which the step was not told of.

    Raises
    ------
    ValueError
        With one sentence.
    """
    for held in _held_by(closure):
        owner = held.__self__ if isinstance(held, MethodType) else held
        if isinstance(owner, GradScaler) and owner.is_enabled() and owner._scale is not None:
            raise ValueError(
                "closure scales its loss with a GradScaler, so the gradients are too long by its "
                "scale: call step(closure, scaler=scaler), then scaler.update()."
            )


def _held_by(closure: Any) -> list[Any]:
    """Return the objects that a closure refers to: cells, globals that it names, attributes."""
    held = list(getattr(getattr(closure, "__self__", closure), "__dict__", {}).values())
    function = getattr(closure, "__func__", closure)
    if isinstance(function, FunctionType):
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # a variable that has no value yet
                held.append(cell.cell_contents)
        known = function.__globals__
        held += [known[name] for name in function.__code__.co_names if name in known]
    return held


def refuse_scaler_step(optimizer: Any) -> None:
    """Refuse ``scaler.step(optimizer, closure)``, which scales one pass and not the others.

    Raises
    ------
    RuntimeError
        With one sentence.
    """
    if getattr(optimizer, "grad_scale", None) is not None:
        del optimizer.grad_scale, optimizer.found_inf  # the scaler's, which it leaves behind
        raise RuntimeError(
            "scaler.step(optimizer) unscales one pass, and a step has several: call "
            "optimizer.step(closure, scaler=scaler), then scaler.update(). Of a wrapped optimizer "
            "call the one inside: optimizer.optimizer."
        )


def refuse_accumulation_outside() -> None:
    """Refuse a step for which accelerate would call the closure with the last micro-batch alone.

    Raises
    ------
    RuntimeError
        With one sentence.
    """
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is None:
        return
    steps = accelerate.GradientState().num_steps
    if steps > 1:
        raise RuntimeError(
            f"Accelerator(gradient_accumulation_steps={steps}) calls the closure for the last "
            "micro-batch alone: leave the option out, and run all micro-batches inside the closure."
        )

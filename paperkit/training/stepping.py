"""One optimizer step from one closure, for optimizers that call it once, often, or never."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from paperkit.optim import MultiPassOptimizer

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


class Stepper:
    """An optimizer with gradient clipping and mixed precision around its step.

    Parameters
    ----------
    model : nn.Module
        Model whose gradients a step clears.
    optimizer : Optimizer
        Any optimizer of torch or of :mod:`paperkit.optim`.
    device : torch.device
        Device of the model.
    max_norm : float, optional
        Largest norm of the gradient that the step follows.
    autocast : torch.dtype, optional
        Format of the forward pass in mixed precision; float16 comes with a gradient scaler.

    Raises
    ------
    ValueError
        If the optimizer clips by itself, or cannot be combined with a gradient scaler.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        device: torch.device,
        *,
        max_norm: float | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.max_norm = max_norm
        self.autocast_dtype = autocast
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type) if autocast == torch.float16 else None
        self._needs_closure = _needs_closure(optimizer)
        if isinstance(optimizer, MultiPassOptimizer):
            # Only the optimizer can clip the gradient that it follows and none that it probes with.
            if max_norm is not None:
                if optimizer.max_norm is not None:
                    raise ValueError(
                        f"max_norm={max_norm} is set in the optimizer too, as "
                        f"{optimizer.max_norm}: set it once."
                    )
                optimizer.max_norm = max_norm
        elif self.scaler is not None and self._needs_closure:
            raise ValueError(
                f"autocast=torch.float16 needs a gradient scaler, which {type(optimizer).__name__} "
                "cannot use, because its step calls the closure by itself: use torch.bfloat16."
            )

    def autocast(self) -> AbstractContextManager:
        """Return the region of the forward pass."""
        if self.autocast_dtype is None:
            return nullcontext()
        # Inside another region torch would keep the casts of weights that have moved since.
        torch.clear_autocast_cache()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)

    def backward(self, loss: Tensor) -> None:
        """Differentiate a loss, scaled if there is a scaler; to be called in the closure."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self, closure: Callable[[], Tensor]) -> None:
        """Take one step.

        Parameters
        ----------
        closure : callable
            Function that clears the gradients, computes the loss, calls :meth:`backward` and
            returns the loss.
        """
        if isinstance(self.optimizer, MultiPassOptimizer):
            self.optimizer.step(closure, scaler=self.scaler)
        elif self._needs_closure:
            self.optimizer.step(lambda: self._clipped(closure))
        else:
            # Hooks before the step find the gradients, as in a plain loop.
            self._clipped(closure)
            if self.scaler is None:
                self.optimizer.step()
            else:
                self.scaler.step(self.optimizer)
        if self.scaler is not None:
            self.scaler.update()

    def clear_gradients(self) -> None:
        """Free the gradients of the model and of all that the optimizer moves."""
        self.model.zero_grad(set_to_none=True)
        self.optimizer.zero_grad(set_to_none=True)

    def _clipped(self, closure: Callable[[], Tensor]) -> Any:
        loss = closure()
        if self.max_norm is not None:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.max_norm)
        return loss


def _needs_closure(optimizer: Optimizer) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty

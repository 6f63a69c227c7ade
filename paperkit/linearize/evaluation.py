"""Run a model in evaluation mode and leave it exactly as it was found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def evaluation(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Put the model in evaluation mode; yield copies of its parameters that record gradients.

    The copies share storage with the parameters, are leaves of their own, and are meant for
    :func:`torch.func.functional_call`. So ``.grad`` and ``requires_grad`` of the model's own
    parameters stay untouched, and frozen parameters are measured like any other. Attention runs
    in the kernel that can be differentiated twice. Every module's own mode is restored on exit,
    also after an exception.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    # Tied parameters must stay one leaf: named_parameters lists each tensor once.
    parameters = {
        name: parameter.detach().requires_grad_() for name, parameter in model.named_parameters()
    }
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield parameters
    finally:
        for module, mode in modes:
            module.training = mode


class SavedStorages:
    """The storages that operations save for a backward pass, while within :meth:`noted`.

    Parameters
    ----------
    fixed : iterable of Tensor
        Storages that do not count: parameters and buffers.
    """

    def __init__(self, fixed: Iterable[Tensor]) -> None:
        self._fixed = {tensor.untyped_storage().data_ptr() for tensor in fixed}
        self._saved: dict[int, torch.UntypedStorage] = {}

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what is saved. There can be no backward pass through these operations."""

        # The storages are held here, or another would take the place of one that was freed. The
        # tensors are not: an operation that held its own output by a hook would never be freed.
        def note(tensor: Tensor) -> None:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._fixed:
                self._saved[storage.data_ptr()] = storage

        with saved_tensors_hooks(note, lambda nothing: nothing):
            yield

    def bytes(self) -> int:
        """Return how many bytes they are together, each storage counted once."""
        return sum(storage.nbytes() for storage in self._saved.values())


def check_inputs(inputs: Tensor) -> None:
    """Refuse an empty batch and inputs that are not finite.

    Raises
    ------
    ValueError
        With one sentence that names the argument.
    """
    if inputs.ndim < 1 or inputs.shape[0] == 0:
        raise ValueError("inputs is empty: pass at least one sample.")
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        raise ValueError("inputs has NaN or infinite entries: clean the data first.")


def check_outputs(outputs: Tensor, n: int) -> None:
    """Refuse outputs that are not a finite (n, C) matrix.

    Raises
    ------
    ValueError
        With one sentence that says what the model returned.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[0] != n:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"model returned {shape} for {n} samples: wrap it so that it returns a (n, C) tensor."
        )
    if not bool(torch.isfinite(outputs).all()):
        raise ValueError("model returned NaN or infinite outputs: check its weights.")


def check_targets(targets: Tensor, outputs: Tensor, loss: str) -> None:
    """Refuse targets that do not fit the outputs under the named loss.

    Raises
    ------
    ValueError
        With one sentence that names ``targets`` and what fits.
    """
    n, num_outputs = outputs.shape
    if loss == "cross_entropy":
        if targets.shape != (n,) or targets.is_floating_point():
            raise ValueError(
                f"targets must be {n} integer class labels for cross_entropy, "
                f"not {tuple(targets.shape)} of {targets.dtype}."
            )
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= num_outputs:
            raise ValueError(
                f"targets has labels from {low} to {high}, but the model has "
                f"{num_outputs} outputs: labels must lie in 0..{num_outputs - 1}."
            )
    elif targets.shape != outputs.shape:
        raise ValueError(
            f"targets has shape {tuple(targets.shape)}, the model's outputs {tuple(outputs.shape)}:"
            f" {loss} needs equal shapes."
        )

"""Run a model in evaluation mode and leave it exactly as it was found."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode


@contextmanager
def evaluation(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Put the model in evaluation mode; yield copies of its parameters that record gradients.

    The copies share storage with the parameters, are leaves of their own, and are meant for
    :func:`torch.func.functional_call`. So ``.grad`` and ``requires_grad`` of the model's own
    parameters stay untouched, and frozen parameters are measured like any other. Attention runs
    in the kernel that can be differentiated twice, weight normalisation in operations that can.
    Every module's own mode is restored on exit, also after an exception.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    # Tied parameters must stay one leaf: named_parameters lists each tensor once.
    parameters = {
        name: parameter.detach().requires_grad_() for name, parameter in model.named_parameters()
    }
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _weight_normalisation(model):
            yield parameters
    finally:
        for module, mode in modes:
            module.training = mode


class _WeightNormByParts(TorchFunctionMode):
    """Weight normalisation in operations that can be differentiated twice.

    The second derivative of PyTorch's fused kernel is wrong without an error, and it has no forward
    mode.
    """

    def __torch_function__(
        self,
        function: Callable,
        types: object,
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        replaced = _weight_norm if function is torch._weight_norm else function
        return replaced(*args, **(kwargs or {}))


def _weight_norm(direction: Tensor, length: Tensor, dim: int = 0) -> Tensor:
    return direction * (length / torch.norm_except_dim(direction, 2, dim))


def _weight_normalisation(model: nn.Module) -> AbstractContextManager:
    """Return what the model's weight normalisations need, nothing if it has none."""
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    if any(
        isinstance(part, (WeightNorm, _WeightNorm))
        for part in itertools.chain(model.modules(), hooks)
    ):
        return _WeightNormByParts()
    return nullcontext()


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
        """Note what is saved."""

        # The storages are held here, or another would take the place of one that was freed. What
        # goes back is cut off the graph: an operation that held its own output by a hook would
        # never be freed.
        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._fixed:
                self._saved[storage.data_ptr()] = storage
            return tensor.detach()

        with saved_tensors_hooks(note, lambda tensor: tensor):
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

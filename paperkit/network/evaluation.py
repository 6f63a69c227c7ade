"""Run a model in evaluation mode and leave it exactly as it was found."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch

# torch loads these modules at the first backward pass and the first torch.func gradient, and they
# take 160 MiB. They are imported here so that the first call of a measure does not pay for them
# out of its memory budget.
import torch._dynamo  # noqa: F401
import torch.fx.experimental.symbolic_shapes  # noqa: F401
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from paperkit.network.network import Network, own_parameters
from paperkit.network.precision import one_format, without_autocast
from paperkit.network.replacements import OperationsByParts
from paperkit.network.samples import Inputs, Samples

with warnings.catch_warnings():
    # torch loads this module at the first Jacobian-vector product, and it warns of its own use of
    # torch.jit.script.
    warnings.simplefilter("ignore")
    import torch._decomp.decompositions_for_jvp  # noqa: F401


@contextmanager
def evaluation(
    model: nn.Module, recorded: Collection[str] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Put the model in evaluation mode; yield its parameters, which record gradients meanwhile.

    All of them do, or those whose names are in ``recorded``. They are the model's own, so that it
    does not matter where the forward pass reads them, and each tied one is listed once. ``.grad``
    stays untouched as long as nobody calls ``backward()``, and frozen parameters are measured like
    any other. Attention runs in the kernel that can be differentiated twice, and what else lacks a
    second derivative is done by parts. Weights of several formats, or in half precision, are in one
    meanwhile, and autocast is off: see :mod:`paperkit.network.precision`.

    Modes, ``requires_grad``, hooks on parameters and buffers are restored on exit, also after an
    exception.
    """
    model = Network.of(model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(_restore_modes(model))
        stack.enter_context(_restore_buffers(model))
        stack.enter_context(one_format(model))
        stack.enter_context(without_autocast(model, model.note_autocast))
        parameters = stack.enter_context(_record_gradients(model, recorded))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_unfuse_attention())
        stack.enter_context(_run_uncompiled())
        stack.enter_context(OperationsByParts())
        stack.enter_context(_silence_transforms())
        model.eval()
        yield parameters


@contextmanager
def _restore_modes(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        # A module may do more on a change of mode than set its flag, and does that in a train() of
        # its own. Such modules go first, because their train() may set the flags of submodules.
        for module, mode in modes:
            if module.training != mode and type(module).train is not nn.Module.train:
                module.train(mode)
        for module, mode in modes:
            module.training = mode


@contextmanager
def _restore_buffers(model: nn.Module) -> Iterator[None]:
    """Restore the buffers that a forward pass writes into or replaces by others."""
    saved = [
        (module, name, buffer, buffer._version, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, version, values in saved:
                if buffer._version != version:
                    buffer.copy_(values)
                module._buffers[name] = buffer


@contextmanager
def _record_gradients(
    model: nn.Module, recorded: Collection[str] | None
) -> Iterator[dict[str, Tensor]]:
    """Let parameters record gradients, without the hooks that a training loop has put on them."""
    parameters = own_parameters(model)
    saved = [(p, p.requires_grad, p._backward_hooks) for p in parameters.values()]
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(recorded is None or name in recorded)
            parameter._backward_hooks = None
        yield dict(parameters)
    finally:
        for parameter, before, hooks in saved:
            parameter.requires_grad_(before)
            parameter._backward_hooks = hooks


@contextmanager
def _unfuse_attention() -> Iterator[None]:
    """Switch off fused attention kernels, which lack a second derivative or forward mode."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _run_uncompiled() -> AbstractContextManager:
    """Run compiled functions uncompiled, because compiled ones have no second derivative."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled, and the import takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextmanager
def _silence_transforms() -> Iterator[None]:
    """Hide the warnings of torch's transforms about their own speed and deprecated parts."""
    with warnings.catch_warnings():
        for message in (".torch.jit.script. is deprecated", "There is a performance drop because"):
            warnings.filterwarnings("ignore", message=message)
        yield


def check_inputs(inputs: Inputs) -> None:
    """Refuse an empty batch and inputs that are not finite.

    Raises
    ------
    ValueError
        With one sentence that names the argument.
    """
    if inputs.ndim < 1 or inputs.shape[0] == 0:
        raise ValueError("inputs is empty: pass at least one sample.")
    for tensor in inputs.tensors() if isinstance(inputs, Samples) else [inputs]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
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
    if outputs.shape[1] == 0:
        raise ValueError(f"model returned no outputs for {n} samples: each needs at least one.")
    if not outputs.is_floating_point():
        raise ValueError(
            f"model returned {outputs.dtype} outputs, which have no gradient: return the logits."
        )
    if not bool(torch.isfinite(outputs).all()):
        raise ValueError("model returned NaN or infinite outputs: check its weights.")

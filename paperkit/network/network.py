"""A model as a function of its parameters: any model, its outputs as one matrix.

People do not always pass a module that maps a single tensor to a matrix. :class:`Network` settles
how a model is called and which tensor its outputs are, once and for everybody else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._pytree import tree_leaves

from paperkit import arguments
from paperkit.network.precision import (
    formats_of,
    is_mixed,
    narrowest_format,
    widened,
    working_format,
)
from paperkit.network.samples import Inputs, Samples

Forward = Callable[[nn.Module, Any], Any]
"""``(model, inputs) -> outputs``, for a model that is not called as ``model(inputs)``."""

# Keys and attributes under which models with several outputs return those that enter the loss.
_OUTPUT_KEYS = ("logits", "out")


class Network(nn.Module):
    """A model and how it is called; every measure takes one in place of a model.

    Modules and parameters have the names that they have in the model, and the model's own
    parameters are differentiated, so nothing depends on where it reads its weights.
    ``DataParallel`` and compiled modules are taken out of their wrapping, whose names start with
    another prefix. A model that was built in inference mode is copied.

    Parameters
    ----------
    model : nn.Module
        Any model.
    forward : callable, optional
        ``(model, inputs) -> outputs``; default ``model(inputs)``, with a tuple of inputs as
        arguments and a dict of them as keywords. Outputs are a tensor, samples first, or a dict or
        object that has one under ``logits`` or ``out``, or only one.

    Raises
    ------
    TypeError
        If the model is no module.
    ValueError
        If it has no values yet (meta device, lazy modules), complex parameters, or changes its own
        weights in each forward pass.

    Examples
    --------
    >>> import torch
    >>> from paperkit.curvature import dense_jacobian
    >>> from paperkit.network import Network
    >>> model = torch.nn.Bilinear(1, 1, 1, bias=False)  # takes two inputs
    >>> network = Network(model, forward=lambda model, x: model(x[:, :1], x[:, 1:]))
    >>> dense_jacobian(network, torch.tensor([[2.0, 3.0]]))  # of w · 2 · 3 in w
    tensor([[[6.]]])
    """

    def __init__(self, model: nn.Module, forward: Forward | None = None) -> None:
        super().__init__()
        if forward is not None:
            arguments.function("forward", forward, "a function of model and inputs")
        module = _make_usable(_unwrap(model))
        # Set past nn.Module, because a registered submodule would give all names a prefix.
        object.__setattr__(self, "module", module)
        object.__setattr__(self, "user_forward", forward)
        # Parameters that no gradient reaches although the outputs depend on them; None until a
        # measure has looked for them (see paperkit.network.problem).
        object.__setattr__(self, "cut", None)
        # Parameters without any influence on the outputs.
        object.__setattr__(self, "unused", ())
        formats = formats_of(module)
        if is_mixed(formats) and isinstance(model, nn.parallel.DistributedDataParallel):
            raise ValueError(
                f"model has weights in {_shown(formats)} and is part of a distributed training, "
                "whose hooks a change of format would cut: pass copy.deepcopy(model.module)."
            )
        object.__setattr__(self, "formats", formats)
        object.__setattr__(self, "narrowest", working_format(formats))
        object.__setattr__(self, "autocasts", False)

    module: nn.Module
    user_forward: Forward | None
    cut: tuple[str, ...] | None
    unused: tuple[str, ...]
    # Floating formats of the weights, the narrowest first.
    formats: tuple[torch.dtype, ...]
    # Narrowest floating format in which a pass has been seen to compute.
    narrowest: torch.dtype
    # Whether the model has been seen to switch autocast on.
    autocasts: bool

    @property
    def working_format(self) -> torch.dtype:
        """The floating format in which the network is measured."""
        return working_format(self.formats)

    @property
    def input_format(self) -> torch.dtype | None:
        """The format to which inputs are taken because weights are; None where none is.

        Inputs of a format that no weight has are left to the model, which as a rule refuses them.
        """
        narrow = any(dtype != self.working_format for dtype in self.formats)
        return self.working_format if narrow else None

    def precision_note(self) -> str | None:
        """Return what a result says of its precision; None where all is as in the model."""
        notes = []
        if is_mixed(self.formats):
            notes.append(
                f"weights in {_shown(self.formats)}, computed in {_shown([self.working_format])}"
            )
        if self.narrowest != self.working_format:
            notes.append(f"the model itself computes parts in {_shown([self.narrowest])}")
        if self.autocasts:
            notes.append("without the model's own autocast")
        return "; ".join(notes) or None

    def note_autocast(self) -> None:
        """Remember that the model switches autocast on."""
        object.__setattr__(self, "autocasts", True)

    @classmethod
    def of(cls, model: nn.Module, forward: Forward | None = None) -> Network:
        """Return the model itself if it is a network already."""
        if isinstance(model, cls):
            if forward is not None:
                raise ValueError("forward: the model is a Network, which has one of its own.")
            return model
        return cls(model, forward)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the model's."""
        return self.module.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """Return the model's."""
        return self.module.named_buffers(*args, **kwargs)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """Return the model's, itself under the empty name."""
        return self.module.named_modules(*args, **kwargs)

    def get_parameter(self, target: str) -> nn.Parameter:
        """Return the model's."""
        return self.module.get_parameter(target)

    def get_submodule(self, target: str) -> nn.Module:
        """Return the model's."""
        return self.module.get_submodule(target)

    def train(self, mode: bool = True) -> Network:
        """Set the model's mode."""
        self.module.train(mode)
        return self

    def forward(self, inputs: Inputs) -> Any:
        """Return what the model returns."""
        inputs = widened(inputs, self.input_format)
        if self.user_forward is not None:
            return self.user_forward(self.module, plain(inputs))
        if isinstance(inputs, Samples):
            return inputs.passed_to(self.module)
        return self.module(inputs)

    def __repr__(self) -> str:
        return f"Network({type(self.module).__name__})"


def plain(inputs: Inputs) -> Any:
    """Return inputs as they were handed over."""
    return inputs.parts if isinstance(inputs, Samples) else inputs


def _unwrap(model: object) -> nn.Module:
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):  # torch.compile returns such a module
            model = model._orig_mod
        else:
            break
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}: pass a torch.nn.Module, or "
            "paperkit.network.Network(module, forward)."
        )
    return model


def _make_usable(model: nn.Module) -> nn.Module:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in tensors.items():
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise ValueError(
                f"model has the lazy parameter {name}: call the model on a batch once, which gives "
                "it a shape."
            )
        if tensor.is_meta:
            raise ValueError(
                f"model has {name} on the meta device, without values: move it with "
                "model.to_empty(device=…) and load its weights."
            )
    for name, parameter in model.named_parameters():
        if parameter.is_complex():
            raise ValueError(
                f"model has the complex parameter {name}: keep its real and imaginary parts as one "
                "real parameter and join them by torch.view_as_complex in the forward pass."
            )
        if parameter.layout != torch.strided:
            raise ValueError(f"model has the sparse parameter {name}: make it dense first.")
    for name, module in model.named_modules():
        if getattr(module, "max_norm", None) is not None:
            raise ValueError(
                f"model: layer {name} has max_norm, which rescales its weight in every forward "
                "pass: rescale it once and set max_norm=None."
            )
    if any(tensor.is_inference() for tensor in tensors.values()):
        # Tensors made in inference mode can never record gradients; copies of them can.
        with torch.inference_mode(False):
            model = copy.deepcopy(model)
    return model


def note_formats(model: nn.Module, outputs: Tensor) -> None:
    """Let a network remember the narrowest floating format in the graph of some outputs."""
    if isinstance(model, Network) and isinstance(outputs, Tensor) and outputs.is_floating_point():
        formats = {model.narrowest, narrowest_format(outputs)}
        narrowest = max(formats, key=lambda dtype: torch.finfo(dtype).eps)
        object.__setattr__(model, "narrowest", narrowest)


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that can be differentiated, each once, by its first name."""
    return {n: p for n, p in model.named_parameters() if p.is_floating_point()}


def network_outputs(model: nn.Module, parameters: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
    """Return the outputs as a matrix, at given values of the parameters.

    To be called within :func:`paperkit.network.evaluation.evaluation`.

    Parameters
    ----------
    model : nn.Module
        A model or a :class:`Network`.
    parameters : mapping of str to Tensor
        Values by name. A name that is left out, or whose value is the model's own parameter, keeps
        its own value. Other values that record no gradients are written into the parameter for the
        time of the call, so that the model reads them wherever it holds it; values that record
        gradients take the parameter's place in its modules.
    inputs : Tensor or Samples
        The n samples.

    Returns
    -------
    Tensor
        Shape (n, C), each sample's outputs flattened.

    Raises
    ------
    ValueError
        If the outputs do not have a row for each sample.
    """
    return _matrix(raw_outputs(model, parameters, inputs))


def raw_outputs(model: nn.Module, parameters: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
    """Return the outputs (n, …) as the model has them; for the rest see :func:`network_outputs`."""
    network = Network.of(model)
    try:
        outputs = _call_at(network, parameters, inputs)
    except RuntimeError as error:
        if not is_mixed(network.formats) or "type" not in str(error):
            raise
        raise ValueError(
            f"model has weights in {_shown(network.formats)}, and its forward pass fails with them "
            f"in {_shown([network.working_format])}, in which it is measured: remove its own casts "
            f"({error})."
        ) from error
    return _first_axis(_in_format(output_tensor(outputs), network), len(inputs))


def _in_format(outputs: Tensor, network: Network) -> Tensor:
    """Convert outputs to the working format, in which all that follows is computed."""
    if not network.formats or not outputs.dtype.is_floating_point:
        return outputs
    dtype = network.working_format
    return outputs if outputs.dtype == dtype else outputs.to(dtype)


def _shown(formats: Iterable[torch.dtype]) -> str:
    return " and ".join(str(dtype).removeprefix("torch.") for dtype in formats)


def _call_at(network: Network, parameters: Mapping[str, Tensor], inputs: Inputs) -> Any:
    """Return whatever the network returns at given values of the parameters."""
    own = dict(network.named_parameters())
    changed = {name: value for name, value in parameters.items() if value is not own[name]}
    with _forget_tensors(network):
        if not changed:
            return called(network, inputs)
        if all(_is_plain_value(value) for value in changed.values()):
            with displaced(own, changed):
                return network(inputs)
        with _exchange_parameters(network, {own[name]: value for name, value in changed.items()}):
            return network(inputs)


class ModelFailsError(ValueError, RuntimeError):
    """The model does not take the inputs."""


_PACKAGE = Path(__file__).resolve().parents[1]


def called(model: nn.Module, inputs: Inputs) -> Any:
    """Call the model as it is; say on what it failed, unless the library said so itself.

    Raises
    ------
    ModelFailsError
        A ValueError that names the inputs.
    """
    try:
        return model(inputs)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or _is_our_own(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        kinds = ", ".join(sorted({str(p.dtype) for p in model.parameters()})) or "none"
        shown = [arguments.shown(t) for t in _tensors_of(inputs)]
        raise ModelFailsError(
            f"model fails on inputs {', '.join(shown)} (its parameters: {kinds}): "
            f"{type(error).__name__}: {reason}"
        ) from error


def _tensors_of(inputs: Inputs) -> list[Tensor]:
    return inputs.tensors() if isinstance(inputs, Samples) else [inputs]


def _is_our_own(error: BaseException) -> bool:
    """Whether this library raised the error, so that its sentence already says what to do."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    # A failing operation is the model's, although one of our hooks or modes may have called it.
    if trace is None or isinstance(error, RuntimeError):
        return False
    if trace.tb_frame.f_code.co_name == "__torch_function__":
        return False
    return _PACKAGE in Path(trace.tb_frame.f_code.co_filename).parents


# Attributes that nn.Module itself gives to every module. No tensor of a forward pass is among them.
_INTERNAL = frozenset(vars(nn.Module()))


@contextmanager
def _forget_tensors(network: Network) -> Iterator[None]:
    """Remove the tensors that a forward pass leaves in its modules, also in their dicts and lists.

    The next pass may run at other weights. A module that had kept a tensor which it computed from
    the old ones would use that again.
    """
    states = [
        (module, dict(vars(module)), _containers(module))
        for module in dict.fromkeys(network.modules())
    ]
    try:
        yield
    finally:
        for module, before, containers in states:
            now = vars(module)
            for name in [n for n, value in now.items() if _holds_tensors(value)]:
                if name not in before:
                    del now[name]
                elif now[name] is not before[name]:
                    now[name] = before[name]
            for container, content in containers:
                if _holds_tensors(container):
                    _refill(container, content)


def _containers(module: nn.Module) -> list[tuple[dict | list, dict | list]]:
    """Return the dicts and lists among a module's attributes, each with a copy of its content."""
    return [
        (value, value.copy())
        for name, value in vars(module).items()
        if name not in _INTERNAL and type(value) in (dict, list)
    ]


def _refill(container: dict | list, content: dict | list) -> None:
    if isinstance(container, dict):
        container.clear()
        container.update(content)
    else:
        container[:] = content


# Types of most attributes of a module. They hold no tensor and need no closer look.
_PLAIN_TYPES = frozenset({bool, int, float, str, type(None)})


def _holds_tensors(value: object) -> bool:
    if type(value) in _PLAIN_TYPES:
        return False
    if isinstance(value, dict):
        if not value:
            return False
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(_like_a_tensor(part) for part in value)
    return _like_a_tensor(value)


@contextmanager
def _exchange_parameters(network: Network, values: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Put other tensors in the place of parameters, in every module that holds them.

    A module that stands in the model under two names is visited once. torch.func.functional_call
    visits it twice, and then fails to restore its parameters.
    """
    replaced = []
    flat_weights = []
    try:
        for module in dict.fromkeys(network.modules()):
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter in values:
                    replaced.append((module, name, parameter))
                    module._parameters[name] = values[parameter]  # type: ignore[assignment]
            if isinstance(module, nn.RNNBase):  # holds a second list of its weights
                flat_weights.append((module, module._flat_weights))
                module._flat_weights = [
                    module._parameters.get(name) for name in module._flat_weights_names
                ]
        yield
    finally:
        for module, name, parameter in replaced:
            module._parameters[name] = parameter
        for module, weights in flat_weights:
            module._flat_weights = weights


def _is_plain_value(value: Tensor) -> bool:
    """Whether a value is numbers alone, so that writing them into a parameter loses nothing."""
    return (
        not torch.is_grad_enabled()
        and type(value) in (Tensor, nn.Parameter)
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)
    )


@contextmanager
def displaced(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let parameters hold other values meanwhile, in place; their own come back to the bit.

    Parameters
    ----------
    own : mapping of str to Tensor
        The model's own parameters by name.
    values : mapping of str to Tensor
        Values that some of them take, by the same names.
    """
    before = {name: own[name].detach().clone() for name in values}
    try:
        # Writing through .data leaves the version counters alone, so that autograd does not take
        # parameters that hold their old values again for changed ones.
        for name, value in values.items():
            own[name].data.copy_(value.detach())
        yield
    finally:
        for name, value in before.items():
            own[name].data.copy_(value)


def output_tensor(outputs: Any) -> Tensor:
    """Choose the tensor that enters the loss among all that a model returns.

    Raises
    ------
    ValueError
        If there is none, or several.
    """
    if _like_a_tensor(outputs):
        return outputs
    if isinstance(outputs, Mapping):
        for key in _OUTPUT_KEYS:
            if _like_a_tensor(outputs.get(key)):
                return outputs[key]
    tensors = [leaf for leaf in tree_leaves(outputs, _like_a_tensor) if _like_a_tensor(leaf)]
    if len(tensors) == 1:
        return tensors[0]
    raise ValueError(
        f"model returned a {type(outputs).__name__} with {len(tensors)} tensors: choose the "
        "outputs with forward=lambda model, inputs: model(inputs)[…]."
    )


def _like_a_tensor(value: object) -> bool:
    """Whether a value is a tensor, or an object such as a jet that stands for one in a pass."""
    return hasattr(type(value), "__torch_function__")


def _first_axis(outputs: Tensor, n: int) -> Tensor:
    """Give outputs of a single sample that the model has squeezed their samples' axis back."""
    if not isinstance(outputs, Tensor):
        return outputs
    if n == 1 and (outputs.ndim == 0 or len(outputs) != 1):
        outputs = outputs.unsqueeze(0)
    if outputs.ndim == 0 or len(outputs) != n:
        raise ValueError(
            f"model returned {tuple(outputs.shape)} for {n} samples: wrap it so that it returns "
            "one row a sample, (n, …); a graph or sequence whose parts see each other is one "
            "sample."
        )
    return outputs


def _matrix(outputs: Tensor) -> Tensor:
    """Flatten the outputs (n, …) to (n, C)."""
    if outputs.ndim == 1:
        return outputs.unsqueeze(1)
    return outputs if outputs.ndim == 2 else outputs.flatten(1)


def unreached(outputs: Tensor, parameters: Mapping[str, Tensor]) -> list[str]:
    """Return the parameters that autograd's graph of the outputs lacks, by name."""
    reached = {id(outputs)}
    stack = [outputs.grad_fn] if outputs.grad_fn is not None else []
    visited = set(stack)
    while stack:
        node = stack.pop()
        if hasattr(node, "variable"):
            reached.add(id(node.variable))
        for operand, _ in node.next_functions:
            if operand is not None and operand not in visited:
                visited.add(operand)
                stack.append(operand)
    return [name for name, parameter in parameters.items() if id(parameter) not in reached]

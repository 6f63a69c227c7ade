"""The problem of every measure: a network, its data and a loss that fit each other."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.network.batches import Batches
from paperkit.network.evaluation import evaluation
from paperkit.network.losses import Loss, get_loss
from paperkit.network.network import (
    Forward,
    Network,
    note_formats,
    own_parameters,
    raw_outputs,
    unreached,
)
from paperkit.network.precision import without_autocast

# Number of samples per pass when parameters without a gradient are looked for.
_AT_ONCE = 32

_FORWARD = """
    forward : callable, optional
        ``(model, inputs) -> outputs``, for a model that is not called as ``model(inputs)``; see
        :class:`paperkit.network.Network`."""

P = ParamSpec("P")
R = TypeVar("R")


def settled(
    model: nn.Module, data: object, loss: object = None, forward: Forward | None = None
) -> tuple[Network, Batches, Loss | None]:
    """Return network, data and loss in the form that everything below works with.

    Parameters
    ----------
    model : nn.Module
        Any model; :class:`Network` says how it is called, also with ``forward``.
    data : pair or iterable of pairs
        Inputs and targets in a form that :class:`Batches` accepts; moved to the model's device.
    loss : str, nn.Module or callable, optional
        Loss in a form that :func:`get_loss` accepts; None where none is needed.
    forward : callable, optional
        Function ``(model, inputs) -> outputs``, for a model that is not called as
        ``model(inputs)``.

    Raises
    ------
    TypeError, ValueError
        With one sentence, if one of them cannot be used.
    """
    network = Network.of(model, forward)
    parameters = own_parameters(network)
    device = next((parameter.device for parameter in parameters.values()), None)
    batches = Batches.of(data, device, network.input_format)
    if loss is None:
        return network, batches, None
    return network, batches, bound_loss(network, batches, get_loss(loss))


def bound_loss(network: Network, data: Iterable[tuple[Any, Tensor]], loss: Loss) -> Loss:
    """Return the loss as a mean over the samples of these data; see :meth:`Loss.bound`."""
    inputs, targets = next(iter(data))
    # With a single label a sample, outputs are taken to be a matrix. Most losses then need nothing
    # of the data, and the model need not run.
    if not loss.needs_data(targets.new_empty(0, 1), targets) and targets.ndim == 1:
        return loss
    with evaluation(network) as parameters, torch.no_grad():
        sample = raw_outputs(network, parameters, smallest_batch(network, parameters, inputs))
    if sample.ndim == 1:
        sample = sample.unsqueeze(1)
    if not loss.needs_data(sample, targets):
        return loss
    return loss.bound(sample, lambda: (part for _, part in data))


def unlabelled_loss(network: Network, inputs: Any, loss: Loss) -> Loss:
    """Return the loss where there are no targets; see :meth:`Loss.without_targets`."""
    with evaluation(network) as parameters, torch.no_grad():
        sample = raw_outputs(network, parameters, smallest_batch(network, parameters, inputs))
    return loss.without_targets(sample)


def smallest_batch(network: Network, parameters: dict[str, Tensor], inputs: Any) -> Any:
    """Return a few of the samples, as few as the model takes.

    The first two are returned, since networks that normalise by batch statistics refuse a single
    one; or the only one there is; or all where the model was written for a fixed number.
    """
    few = inputs[:2]
    if len(few) < len(inputs):
        try:
            with torch.no_grad():
                raw_outputs(network, parameters, few)
        except Exception:
            return inputs  # the model raises its own error on all samples, if it has one
    return few


class UnusedParameterWarning(UserWarning):
    """A parameter had no influence on the outputs."""


class CutGraphError(ValueError):
    """The outputs depend on a parameter, but no gradient reaches it."""


def refuse_cut(model: nn.Module, inputs: Any, names: Iterable[str] | None = None) -> None:
    """Raise if the outputs depend on a parameter that no gradient reaches.

    Autograd takes such a parameter for one without influence, and its curvature would come out as
    zero. A parameter that truly has none is told apart by moving it: the outputs stay the same, and
    a warning names it, because a module may have kept a value that was computed from it. The check
    runs once for a network.

    Parameters
    ----------
    model : nn.Module
        Model; a :class:`Network` remembers the result.
    inputs : Tensor or Samples
        Samples on which it is checked.
    names : iterable of str, optional
        Names of the parameters that matter to the caller; default all.

    Raises
    ------
    CutGraphError
        A ValueError that names parameters.
    """
    cut = cut_parameters(model, inputs)
    measured = None if names is None else set(names)
    refused = [name for name in cut if measured is None or name in measured]
    if refused:
        raise CutGraphError(
            f"model: the outputs depend on {_listed(refused)}, but no gradient reaches it: "
            "the forward pass cuts the graph (torch.no_grad, detach, NumPy, a checkpoint with "
            "use_reentrant=True); remove that, use use_reentrant=False, or measure the other "
            "parameters."
        )


def cut_parameters(model: nn.Module, inputs: Any) -> tuple[str, ...]:
    """Return the parameters that :func:`refuse_cut` refuses; a warning names unused ones."""
    network = Network.of(model)
    if network.cut is None:
        cut, unused = _find_unreached(network, inputs)
        object.__setattr__(network, "cut", cut)
        object.__setattr__(network, "unused", unused)
        if unused:
            warnings.warn(
                f"model: {_listed(unused)} had no influence on the outputs and counts as zero "
                "curvature; a module that keeps what it computed from weights (a cache) must be "
                "cleared first, as model.train() does in most.",
                UnusedParameterWarning,
                stacklevel=2,
            )
    assert network.cut is not None
    return network.cut


def refuse_cut_inputs(network: Network, inputs: Any) -> None:
    """Raise if the outputs depend on the inputs, but no gradient reaches these.

    Inputs that have no derivative, integers or several tensors, are not looked at.

    Raises
    ------
    CutGraphError
        A ValueError.
    """
    if not inputs.is_floating_point():
        return
    with evaluation(network) as parameters:
        few = smallest_batch(network, parameters, inputs).detach().clone().requires_grad_()
        outputs = raw_outputs(network, parameters, few)
        if not unreached(outputs, {"inputs": few}):
            return
        with torch.no_grad():
            moved = raw_outputs(network, parameters, 1.37 * few + 0.11)
            if torch.equal(moved, outputs):
                return
    raise CutGraphError(
        "model: the outputs depend on the inputs, but no gradient reaches them: the forward pass "
        "cuts the graph (torch.no_grad, detach, NumPy, a checkpoint with use_reentrant=True); "
        "remove that, or use use_reentrant=False."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _find_unreached(network: Network, inputs: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the parameters that no gradient reaches: those that matter, and the others."""
    with evaluation(network) as parameters:
        few = smallest_batch(network, parameters, inputs)
        sample = raw_outputs(network, parameters, few)
        note_formats(network, sample)
        lost = unreached(sample, parameters)
        parts = [few] if len(few) == len(inputs) else inputs.split(max(_AT_ONCE, len(few)))
        for part in parts:  # another sample may take another path, as in a mixture of experts
            if not lost:
                return (), ()
            lost_here = set(unreached(raw_outputs(network, parameters, part), parameters))
            lost = [name for name in lost if name in lost_here]
        if not lost:
            return (), ()

        def outputs(values: dict[str, Tensor]) -> list[Tensor]:
            return [raw_outputs(network, values, part) for part in parts]

        def same(ones: list[Tensor], others: list[Tensor]) -> bool:
            return all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))

        def have_influence(names: Iterable[str]) -> bool:
            # Each parameter moves far, and by a factor and a shift that are no round numbers, so
            # that the changes of two parameters do not cancel.
            values = {name: 1.37 * parameters[name].detach() + 0.11 for name in names}
            return not same(outputs(values), before)

        with torch.no_grad():
            before = outputs({})
            if not same(outputs({}), before):
                return (), ()  # a model that is random in evaluation mode is refused elsewhere
            if not have_influence(lost):
                return (), tuple(lost)
            cut = tuple(name for name in lost if have_influence([name])) or tuple(lost)
            return cut, tuple(name for name in lost if name not in cut)


# Checks of arguments that mean the same in every measure, made before anything is computed.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "memory_budget": arguments.memory_budget,
    "seed": arguments.seed,
    "max_dense": functools.partial(arguments.integer, at_least=0),
    "max_products": functools.partial(arguments.integer, at_least=0),
    "max_steps": functools.partial(arguments.integer, at_least=1),
    "steps": functools.partial(arguments.integer, at_least=1),
    "per_batch": arguments.flag,
    "replacement": arguments.flag,
    "strict": arguments.flag,
    "probes": functools.partial(arguments.integer, at_least=2, because="one has no spread"),
    "products": functools.partial(arguments.integer, at_least=2, because="one has no spread"),
    "k": functools.partial(arguments.integer, at_least=1),
    "chunk_size": functools.partial(arguments.integer, at_least=1),
    "batch_size": functools.partial(arguments.integer, at_least=1),
    "rho": functools.partial(arguments.number, above=0),
    "damping": functools.partial(arguments.number, at_least=0),
    "weight_decay": functools.partial(arguments.number, at_least=0),
    "width": functools.partial(arguments.number, above=0),
    "tolerance": functools.partial(arguments.number, above=0, below=1),
}


def measure_of(function: Callable[P, R]) -> Callable[P, R]:
    """Let a measure take any model, data and loss, and a keyword ``forward``.

    Its arguments ``model``, ``data`` and ``loss``, as far as it has them, are settled before it
    runs, outside of inference mode.
    """
    signature = inspect.signature(function)
    names = signature.parameters

    @functools.wraps(function)
    def measure(*args: Any, forward: Forward | None = None, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        for name in names:
            # None is not checked where it is the default, since the function then chooses the
            # value.
            if name in _CHECKS and not (given[name] is None is names[name].default):
                given[name] = _CHECKS[name](name, given[name])
        loss = get_loss(given["loss"]) if "loss" in names else None
        with torch.inference_mode(False):
            problem = settled(given["model"], given["data"], loss, forward)
            for name, value in zip(("model", "data", "loss"), problem, strict=True):
                if name in names:
                    given[name] = value
            # Autocast is off for the whole measure, because sums and products after its passes need
            # their digits as much as the passes do.
            with without_autocast(problem[0], problem[0].note_autocast):
                result = function(*bound.args, **bound.kwargs)
            return _note_precision(result, problem[0].precision_note())

    measure.__doc__ = _document_forward(function.__doc__ or "")
    extra = inspect.Parameter(
        "forward", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="Forward | None"
    )
    measure.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*names.values(), extra]
    )
    return measure  # type: ignore[return-value]


def _note_precision(result: Any, precision: str | None) -> Any:
    """Add the sentence on precision to the assumptions of a result, or of each result within it."""
    if precision is None:
        return result
    if isinstance(result, dict):
        noted = copy.copy(result)  # which may know more than its entries
        noted.update({key: _note_precision(value, precision) for key, value in result.items()})
        return noted
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        assumptions = getattr(result, "assumptions", None)
        if isinstance(assumptions, Mapping):
            return dataclasses.replace(result, assumptions={**assumptions, "precision": precision})
        results = getattr(result, "results", None)
        if isinstance(results, dict):
            return dataclasses.replace(result, results=_note_precision(results, precision))
    return result


def _document_forward(docstring: str) -> str:
    """Add the description of ``forward`` to the end of a docstring's parameters."""
    for section in ("    Returns\n", "    Raises\n"):
        before, heading, after = docstring.partition(section)
        if heading:
            return f"{before.rstrip()}{_FORWARD}\n\n{heading}{after}"
    return docstring

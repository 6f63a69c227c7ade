"""What every measure is of: a network, its data and a loss that fit each other."""

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

# Samples of a pass that looks for parameters without a gradient.
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
        Any model; see :class:`Network`, which also takes ``forward``.
    data : pair or iterable of pairs
        See :class:`Batches`; moved to the model's device.
    loss : str, nn.Module or callable, optional
        See :func:`get_loss`; None where none is needed.

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
    # A matrix and labels are so common that the model need not run for it.
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

    Two, which networks that normalise by batch statistics need; one where there is no other; all
    where the model was written for a fixed number.
    """
    few = inputs[:2]
    if len(few) < len(inputs):
        try:
            with torch.no_grad():
                raw_outputs(network, parameters, few)
        except Exception:
            return inputs  # what is wrong with it, it will say itself
    return few


class UnusedParameterWarning(UserWarning):
    """A parameter had no influence on the outputs."""


class CutGraphError(ValueError):
    """The outputs depend on a parameter, but no gradient reaches it."""


def refuse_cut(model: nn.Module, inputs: Any, names: Iterable[str] | None = None) -> None:
    """Raise if the outputs depend on a parameter that no gradient reaches.

    Autograd takes such a parameter for one without influence, and its curvature would come out as
    zero. One that truly has none is told apart by moving it: the outputs stay the same, and a
    warning names it, because a module may have kept a value that was computed from it. The check
    runs once for a network.

    Parameters
    ----------
    model : nn.Module
        A model; a :class:`Network` is checked once for all.
    inputs : Tensor or Samples
        Some samples.
    names : iterable of str, optional
        The parameters that matter; default all.

    Raises
    ------
    CutGraphError
        A ValueError that names parameters.
    """
    cut = cut_parameters(model, inputs)
    wanted = None if names is None else set(names)
    found = [name for name in cut if wanted is None or name in wanted]
    if found:
        raise CutGraphError(
            f"model: the outputs depend on {_listed(found)}, but no gradient reaches it: "
            "the forward pass cuts the graph (torch.no_grad, detach, NumPy, a checkpoint with "
            "use_reentrant=True); remove that, use use_reentrant=False, or measure the other "
            "parameters."
        )


def cut_parameters(model: nn.Module, inputs: Any) -> tuple[str, ...]:
    """Return the parameters that :func:`refuse_cut` refuses; a warning names unused ones."""
    network = Network.of(model)
    if network.cut is None:
        cut, unused = _without_gradient(network, inputs)
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


def _without_gradient(network: Network, inputs: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the parameters that no gradient reaches: those that matter, and the others."""
    with evaluation(network) as parameters:
        few = smallest_batch(network, parameters, inputs)
        sample = raw_outputs(network, parameters, few)
        note_formats(network, sample)
        lacking = unreached(sample, parameters)
        parts = [few] if len(few) == len(inputs) else inputs.split(max(_AT_ONCE, len(few)))
        for part in parts:  # other samples may take other paths, to other experts
            if not lacking:
                return (), ()
            here = set(unreached(raw_outputs(network, parameters, part), parameters))
            lacking = [name for name in lacking if name in here]
        if not lacking:
            return (), ()

        def outputs(moved: dict[str, Tensor]) -> list[Tensor]:
            return [raw_outputs(network, moved, part) for part in parts]

        def same(ones: list[Tensor], others: list[Tensor]) -> bool:
            return all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))

        def matter(names: Iterable[str]) -> bool:
            # Moved far and to no round number, so that no two of them cancel.
            moved = {name: 1.37 * parameters[name].detach() + 0.11 for name in names}
            return not same(outputs(moved), before)

        with torch.no_grad():
            before = outputs({})
            if not same(outputs({}), before):
                return (), ()  # random in evaluation mode, which is refused elsewhere
            if not matter(lacking):
                return (), tuple(lacking)
            cut = tuple(name for name in lacking if matter([name])) or tuple(lacking)
            return cut, tuple(name for name in lacking if name not in cut)


# Arguments that mean the same in every measure, checked before anything is computed.
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
            # None stands where it is the default: the function then chooses.
            if name in _CHECKS and not (given[name] is None is names[name].default):
                given[name] = _CHECKS[name](name, given[name])
        loss = get_loss(given["loss"]) if "loss" in names else None
        with torch.inference_mode(False):
            found = settled(given["model"], given["data"], loss, forward)
            for name, value in zip(("model", "data", "loss"), found, strict=True):
                if name in names:
                    given[name] = value
            # Also what a measure makes of its passes is not for autocast.
            with without_autocast(found[0], found[0].note_autocast):
                result = function(*bound.args, **bound.kwargs)
            return _noted(result, found[0].precision_note())

    measure.__doc__ = _documented(function.__doc__ or "")
    extra = inspect.Parameter(
        "forward", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="Forward | None"
    )
    measure.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*names.values(), extra]
    )
    return measure  # type: ignore[return-value]


def _noted(result: Any, precision: str | None) -> Any:
    """Add what a result says of its precision to its assumptions."""
    if precision is None:
        return result
    if isinstance(result, dict):
        noted = copy.copy(result)  # which may know more than its entries
        noted.update({key: _noted(value, precision) for key, value in result.items()})
        return noted
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        assumptions = getattr(result, "assumptions", None)
        if isinstance(assumptions, Mapping):
            return dataclasses.replace(result, assumptions={**assumptions, "precision": precision})
        results = getattr(result, "results", None)
        if isinstance(results, dict):
            return dataclasses.replace(result, results=_noted(results, precision))
    return result


def _documented(docstring: str) -> str:
    """Add what ``forward`` is to the end of a docstring's parameters."""
    for section in ("    Returns\n", "    Raises\n"):
        before, found, after = docstring.partition(section)
        if found:
            return f"{before.rstrip()}{_FORWARD}\n\n{found}{after}"
    return docstring

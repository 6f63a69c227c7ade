"""A pass of linearization that several measures share.

The pass goes over the data, a chunk of samples at a time. A measure that shares it is a
:class:`PassMeasure`, which says what it keeps of each chunk and what it makes of the parts in the
end. The file of its family ends with it, and :mod:`paperkit.estimators.registry` lists them all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from torch import Tensor, nn

from paperkit import arguments
from paperkit.estimators.input_jacobian import input_jacobians
from paperkit.estimators.result import Measurement, Result
from paperkit.linearize.blocks import last_layer
from paperkit.linearize.costs import held_bytes
from paperkit.linearize.layer import LayerLinearization
from paperkit.linearize.linearization import Linearization, LinearizationBuffer
from paperkit.linearize.linearize import linearize_in_chunks
from paperkit.linearize.weights import Weight, chosen_weights
from paperkit.memory import GIBIBYTE, MemoryBudgetError
from paperkit.network.batches import Batches
from paperkit.network.losses import LOSSES, Loss
from paperkit.network.network import Network
from paperkit.network.problem import cut_parameters

T = TypeVar("T")

NEEDS = ("pairs", "layer_inputs", "network_input", "all_parameters")
"""What a measure may need of a pass; see :class:`PassMeasure`."""


@dataclass(frozen=True)
class PassMeasure:
    """A measure that shares a pass of linearization with others.

    :func:`measure` takes one wherever it takes a measure's name.

    Attributes
    ----------
    name : str
        The measure's name in a report.
    finish : callable
        ``finish(parts, problem)`` returns the result: a :class:`Measurement`, or a mapping of
        them by layer. ``parts`` is the list of what ``of_chunk`` returned, in the order of the
        samples, and ``problem`` a :class:`Problem`. For a measure of all samples jointly it is
        ``finish(linearization, problem)``.
    of_chunk : callable or None
        ``of_chunk(chunk)`` returns what to keep of a :class:`Chunk`, which is freed afterwards.
        None for a measure of all samples jointly.
    otherwise : callable or None
        ``otherwise(problem)`` returns the result of a joint measure where the pairs of all samples
        take more than half of the memory budget. None refuses it there.
    needs : tuple of str
        Things that the pass must record: ``"pairs"``, the layers' inputs and output Jacobians;
        ``"layer_inputs"``, the Jacobians in the layers' inputs; ``"network_input"``, the inputs
        and the Jacobian in them; ``"all_parameters"``, the pairs of all layers and the Jacobians
        in all other parameters. The less, the cheaper.

    Examples
    --------
    The mean length of the outputs:

    >>> import torch
    >>> from paperkit.estimators import Measurement, PassMeasure, measure
    >>> def mean_length(parts, problem):
    ...     lengths = torch.cat(parts)
    ...     return Measurement(
    ...         value=float(lengths.mean()), measure="length", method="exact", n=len(lengths)
    ...     )
    >>> length = PassMeasure(
    ...     "length", mean_length, lambda chunk: chunk.linearization.outputs.norm(dim=1)
    ... )
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> report = measure(model, (torch.tensor([[3.0, 4.0]]), torch.tensor([0])), [length])
    >>> float(report["length"])
    5.0
    """

    name: str
    finish: Callable[[Any, Problem], Result]
    of_chunk: Callable[[Chunk], Any] | None = None
    otherwise: Callable[[Problem], Result] | None = None
    needs: tuple[str, ...] = ("pairs",)

    def __post_init__(self) -> None:
        arguments.instance("name", self.name, str)
        arguments.function("finish", self.finish, "a function of parts and a problem")
        if self.of_chunk is not None:
            arguments.function("of_chunk", self.of_chunk, "a function of a chunk")
        if self.otherwise is not None:
            arguments.function("otherwise", self.otherwise, "a function of a problem")
        object.__setattr__(self, "needs", tuple(arguments.names("needs", self.needs, NEEDS)))


@dataclass
class Problem:
    """What the measures of a pass are computed from.

    Attributes
    ----------
    model : Network
        The network.
    data : Batches
        The data.
    loss : Loss
        The loss, settled for these data.
    layers : sequence of str or None
        Names of the weights that measures of single layers are restricted to.
    orders : tuple of float
        Orders of entropies.
    products : int
        Hessian products that an estimate may take where a layer's block is not exact.
    seed : int
        Seed of every random choice.
    memory_budget : int
        Bytes above the model and its data.
    strict : bool
        Whether a layer that is named and cannot be linearized by itself ends the pass.
    with_targets : bool
        Whether the targets have to fit the loss.
    frugal : bool
        Whether a measure that costs much beside the pass is left out, as nobody named it.

    Examples
    --------
    >>> import torch
    >>> from paperkit.estimators import Problem
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> problem = Problem.of(model, (torch.ones(5, 2), torch.zeros(5, 2)))
    >>> list(problem.weights), problem.last_layer
    (['0', '2'], '2')
    """

    model: Network
    data: Batches
    loss: Loss = field(default_factory=lambda: LOSSES["half_squared_error"])
    layers: Sequence[str] | None = None
    orders: tuple[float, ...] = (0.5, 1.5)
    products: int = 16
    seed: int = 0
    memory_budget: int = GIBIBYTE
    strict: bool = False
    with_targets: bool = True
    frugal: bool = False

    @classmethod
    def of(cls, model: nn.Module, data: object, **options: Any) -> Problem:
        """Return the problem of a model and data that need not be settled."""
        return cls(Network.of(model), Batches.of(data), **options)

    @cached_property
    def pair(self) -> tuple[Any, Tensor]:
        """All inputs and targets."""
        return self.data.joined()

    @cached_property
    def weights(self) -> dict[str, Weight]:
        """All weights that are to be measured one by one, by name."""
        return chosen_weights(self.model, self.layers)

    @cached_property
    def cut(self) -> tuple[str, ...]:
        """Names of the parameters that matter, but that no gradient reaches."""
        return cut_parameters(self.model, self.first_inputs)

    @cached_property
    def last_layer(self) -> str:
        """The layer that the forward pass calls last."""
        return last_layer(self.model, self.first_inputs)

    @property
    def layers_to_linearize(self) -> Sequence[str] | None:
        """Names of the layers that were asked for and whose type is known; None for all layers."""
        if self.layers is None or self.strict:
            return self.layers
        return [name for name, weight in self.weights.items() if weight.obstacle is None]

    @property
    def first_inputs(self) -> Any:
        """The inputs of the first batch."""
        return next(iter(self.data))[0]

    def chosen(self, by_layer: Mapping[str, T]) -> dict[str, T]:
        """Return the entries of the layers that were asked for."""
        return {k: v for k, v in by_layer.items() if self.layers is None or k in self.layers}

    def chosen_layers(
        self, layers: Mapping[str, LayerLinearization]
    ) -> dict[str, LayerLinearization]:
        """Return the linearized layers that were asked for, under the names that were used then.

        A weight under several names is linearized under the name that the forward pass calls first.
        """
        if self.layers is None:
            return dict(layers)
        names: dict[str, str] = {}
        for name, weight in self.weights.items():
            if name in layers or weight.parameter not in names:
                names[weight.parameter] = name
        return {
            names[layer.weight_name]: layer
            for layer in layers.values()
            if layer.weight_name in names
        }

    def own(self, function: Callable[..., Any], **options: Any) -> Any:
        """Call a measure's own function with as much of the problem as it takes."""
        known = {
            "data": self.data,
            "loss": self.loss,
            "seed": self.seed,
            "memory_budget": self.memory_budget,
        }
        taken = inspect.signature(function).parameters
        known = {name: value for name, value in known.items() if name in taken}
        return function(self.model, **{**known, **options})


@dataclass(eq=False, repr=False)
class Chunk:
    """Consecutive samples of a pass, with what was recorded of them.

    Attributes
    ----------
    problem : Problem
        The pass's network, data and loss.
    targets : Tensor
        The samples' targets.

    Examples
    --------
    >>> import torch
    >>> from paperkit.estimators import Measurement, PassMeasure, measure
    >>> def ranks(chunk):
    ...     print(chunk.num_samples, {name: one.exact_block for name, one in chunk.layers.items()})
    ...     return [layer.spectrum().rank for layer in chunk.layers.values()]
    >>> def largest(parts, problem):
    ...     value = float(max(map(max, parts)))
    ...     return Measurement(value=value, measure="rank", method="exact", n=5)
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> data = torch.ones(5, 2), torch.zeros(5, dtype=torch.int64)
    >>> report = measure(model, data, [PassMeasure("rank", largest, ranks)])
    5 {'0': True, '2': True}
    >>> float(report["rank"])
    1.0
    """

    problem: Problem
    targets: Tensor
    _linearization: Linearization | None = None
    _inputs: Tensor | None = None
    _input_jacobian: Tensor | None = None
    _computed: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """The number of samples."""
        return len(self.targets)

    @property
    def linearization(self) -> Linearization:
        """The linearization of the samples; missing if all measures need the network's input only.

        Raises
        ------
        ValueError
            If it is missing.
        """
        return _recorded(self._linearization, "linearization", "pairs")

    @property
    def inputs(self) -> Tensor:
        """The samples, (n, …).

        Raises
        ------
        ValueError
            If no measure of the pass needs them.
        """
        return _recorded(self._inputs, "inputs", "network_input")

    @property
    def input_jacobian(self) -> Tensor:
        """The Jacobian of the outputs in the network's input, (n, C, …).

        Raises
        ------
        ValueError
            If no measure of the pass needs it.
        """
        return _recorded(self._input_jacobian, "input_jacobian", "network_input")

    @cached_property
    def layers(self) -> dict[str, LayerLinearization]:
        """The linearized layers that were asked for, by name."""
        return self.problem.chosen_layers(self.linearization.layers)

    def once(self, function: Callable[..., T], *options: Hashable) -> T:
        """Return ``function(chunk, *options)``, computed once for all measures that ask for it."""
        key = (function, *options)
        if key not in self._computed:
            self._computed[key] = function(self, *options)
        return self._computed[key]


def _recorded(value: T | None, name: str, need: str) -> T:
    if value is None:
        raise ValueError(f"chunk has no {name}: the measure must have {need!r} among its needs.")
    return value


def run_pass(
    measures: Sequence[PassMeasure],
    problem: Problem,
    refuse: Callable[[str, Exception], None] | None = None,
) -> dict[str, Result]:
    """Compute measures from one pass over the data.

    Parameters
    ----------
    measures : sequence of PassMeasure
        The measures, with different names.
    problem : Problem
        Network, data and loss.
    refuse : callable, optional
        ``refuse(name, error)`` is told of a measure that fails, and the others go on. By default
        the first error ends the pass.

    Returns
    -------
    dict of str to result
        By name.

    Raises
    ------
    ValueError
        If the data do not fit the model or cannot be linearized; without ``refuse``, as the
        measures.
    """
    refused: set[str] = set()

    def attempt(measure: PassMeasure, compute: Callable[..., T], *options: Any) -> T | None:
        try:
            return compute(*options)
        except Exception as error:
            if refuse is None:
                raise
            refused.add(measure.name)
            refuse(measure.name, error)
            return None

    needs = frozenset(need for measure in measures for need in measure.needs)
    joint = [measure for measure in measures if measure.of_chunk is None]
    held = _bytes_of_all_pairs(problem, needs) if joint else None
    budget = problem.memory_budget
    # The chunks are made beside the pairs of all samples where these are kept.
    room = budget if held is None else (budget - held) // 2
    parts: dict[str, list[Any]] = {one.name: [] for one in measures if one.of_chunk is not None}
    buffer: LinearizationBuffer | None = None
    # Closing ends what a half-used stream has begun, such as the model's evaluation mode.
    with closing(_chunks(problem, needs, room)) as stream:
        for chunk in stream:
            for one in measures:
                if one.of_chunk is not None and one.name not in refused:
                    parts[one.name].append(attempt(one, one.of_chunk, chunk))
            if held is not None:
                buffer = buffer or LinearizationBuffer(chunk.linearization, len(problem.pair[1]))
                buffer.add(chunk.linearization)
            del chunk  # or it would live on while the next is made
    results: dict[str, Result | None] = {}
    whole = None if buffer is None else buffer.linearization(budget)
    for one in joint:
        results[one.name] = attempt(one, _joint_result, one, whole, problem)
    del whole, buffer  # because the other measures may need the memory
    for one in measures:
        if one.of_chunk is not None and one.name not in refused:
            results[one.name] = attempt(one, _result, one, parts[one.name], problem)
    return {name: result for name, result in results.items() if result is not None}


def run_alone(measure: PassMeasure, problem: Problem) -> Any:
    """Compute a single measure from a pass of its own."""
    return run_pass([measure], problem)[measure.name]


def _bytes_of_all_pairs(problem: Problem, needs: frozenset[str]) -> int | None:
    """Return what the pairs of all samples take; None where that is too much to keep them."""
    held = held_bytes(problem.model, problem.pair[0], all_parameters="all_parameters" in needs)
    return held if held <= problem.memory_budget // 2 else None


def _result(measure: PassMeasure, parts: Any, problem: Problem) -> Result:
    """Finish a measure, and look at what it returns."""
    result = measure.finish(parts, problem)
    if not isinstance(result, Measurement | Mapping):
        raise TypeError(
            f"finish of the measure {measure.name!r} returned a {type(result).__name__}: return a "
            "Measurement, or a mapping of them."
        )
    return result


def _joint_result(measure: PassMeasure, whole: Linearization | None, problem: Problem) -> Result:
    """Finish a measure of all samples, whose pairs there may be no room for."""
    if whole is not None:
        return _result(measure, whole, problem)
    if measure.otherwise is not None:
        return measure.otherwise(problem)
    raise MemoryBudgetError(
        f"memory_budget={problem.memory_budget} is too small for {measure.name}, which needs the "
        "pairs of all samples at once: raise it, or measure fewer samples."
    )


def _chunks(problem: Problem, needs: frozenset[str], memory_budget: int) -> Generator[Chunk]:
    """Yield all samples, with what the measures need of them."""
    if needs == {"network_input"}:
        # Backward passes to the inputs alone cost less than a linearization.
        for x, targets, jacobian in input_jacobians(problem.model, problem.data, memory_budget):
            yield Chunk(problem, targets, None, x, jacobian)
            del x, jacobian  # or they would live on while the next are made
        return
    every_parameter = "all_parameters" in needs
    layers = None if every_parameter else problem.layers_to_linearize
    if layers is not None and not layers and needs == {"pairs"}:
        return  # nothing that was asked for can be linearized
    stream = linearize_in_chunks(
        problem.model,
        problem.data,
        problem.loss,
        layers or None,
        input_jacobians=bool(needs & {"layer_inputs", "network_input"}),
        all_parameters=every_parameter,
        with_targets=problem.with_targets,
        output_jacobians=bool(needs & {"pairs", "all_parameters"}),
        strict=problem.strict,
        memory_budget=memory_budget,
    )
    with_input = "network_input" in needs
    inputs: Any = problem.pair[0] if with_input else None
    start = 0
    for linearization, targets in stream:
        samples = slice(start, start + linearization.num_samples)
        start = samples.stop
        yield Chunk(
            problem,
            targets,
            linearization,
            inputs[samples] if with_input else None,
            linearization.input_jacobian if with_input else None,
        )
        del linearization  # or it would live on while the next is made


def over_linearizations(
    function: Callable[[Linearization, Tensor], T], problem: Problem, **options: Any
) -> list[T]:
    """Apply a function of (linearization, targets) to all samples, a chunk at a time.

    Parameters
    ----------
    function : callable
        The function.
    problem : Problem
        Network, data and loss.
    **options
        Options of :func:`paperkit.linearize.linearize_in_chunks`.
    """
    stream = linearize_in_chunks(
        problem.model,
        problem.data,
        problem.loss,
        with_targets=problem.with_targets,
        memory_budget=problem.memory_budget,
        **options,
    )
    # Unlike a loop, map holds no chunk while the next one is made.
    return list(map(lambda chunk: function(*chunk), stream))

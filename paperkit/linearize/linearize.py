"""A forward pass and C backward passes → inputs and output Jacobians of every layer."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.curvature.dense import hessian_product
from paperkit.linearize.costs import SampleCosts, possible_step, sample_costs
from paperkit.linearize.linearization import Linearization
from paperkit.linearize.pairs import Results, allocate, fill, keep_calls
from paperkit.linearize.recording import (
    JacobianOptions,
    UnfitError,
    candidate_layers,
    record,
    refusal,
)
from paperkit.linearize.remainder import per_sample_jacobians
from paperkit.linearize.sample_order import refuse_other_order, refuse_unseen, seen_in_order
from paperkit.memory import GIBIBYTE, MemoryBudgetError, equal_pieces, fitting
from paperkit.network.evaluation import check_inputs, evaluation
from paperkit.network.interaction import refuse_changed
from paperkit.network.losses import Loss, LossLike, get_loss
from paperkit.network.network import Network
from paperkit.network.precision import widened
from paperkit.network.problem import (
    refuse_cut,
    refuse_cut_inputs,
    settled,
    unlabelled_loss,
)
from paperkit.network.samples import Inputs, as_inputs


def linearize(
    model: nn.Module,
    inputs: Inputs,
    loss: LossLike = "cross_entropy",
    layers: Sequence[str] | None = None,
    *,
    input_jacobians: bool = False,
    all_parameters: bool | Sequence[str] = False,
    targets: Tensor | None = None,
    verify: bool = False,
    strict: bool = True,
    chunk_size: int | None = None,
    memory_budget: int = GIBIBYTE,
) -> Linearization:
    """Record the inputs and output Jacobians of linear and convolution layers.

    The model is run in evaluation mode and left as it was. For each layer the result says
    whether its Gauss–Newton block is its Hessian block, decided from the operations that autograd
    recorded between the layer and the outputs.

    Parameters
    ----------
    model : nn.Module
        Network that is called as ``model(inputs)`` and returns (n, C), a row a sample.
    inputs : Tensor
        Inputs of all samples, shape (n, …), on the model's device.
    loss : str, nn.Module or callable
        Loss in a form that :func:`paperkit.network.get_loss` accepts.
    layers : sequence of str, optional
        Module names; default every linear, convolution and transposed convolution layer that the
        forward pass calls. Only a module that does exactly what its class does counts: a subclass
        with a forward pass of its own does not, nor does a module whose weight is computed from
        other parameters.
    input_jacobians : bool
        Whether the Jacobians of the outputs in each layer's input and in the network's are recorded
        too.
    all_parameters : bool or sequence of str
        Whether the Jacobian in all other parameters is recorded too: biases, normalisation,
        embeddings, and the weights of layers of other kinds. True needs ``layers=None``. Names of
        parameters restrict it to these; then ``layers`` may be empty.
    targets : Tensor, optional
        Targets for ``verify``, and for losses whose output Hessian depends on them; that of
        cross-entropy and of squared errors does not.
    verify : bool
        Whether a random probe of each layer is compared with the Hessian product of autograd. A
        block is not called exact where they differ.
    strict : bool
        Whether a layer in ``layers`` that cannot be linearized by itself is refused: its weight is
        used elsewhere too, or it does not see the samples first and in their order. Else it is left
        out, as a layer that is not named is, with its reason in ``left_out``.
    chunk_size : int, optional
        Number of samples of a forward pass; default as many as a quarter of the budget lets pass
        backward.
    memory_budget : int
        Bytes. The result may take half of them, the temporaries of its methods the other half.

    Returns
    -------
    Linearization
        Pairs (a, B) of all samples: about C times the memory of the layers' outputs.

    Raises
    ------
    ValueError
        If the inputs are empty or not finite; if a layer that is named cannot be linearized by
        itself; if ``verify`` lacks targets.
    CutGraphError
        A ValueError: if no gradient reaches the weight of a layer that is named, a parameter, or
        the inputs, where their Jacobian is asked for and the outputs depend on them.
    MemoryBudgetError
        A ValueError: if the result would not fit; :func:`linearize_in_chunks` serves measures that
        are sums over samples.
    SamplesInteractError
        A ValueError: if the outputs for some sample depend on the others in its batch.
    RandomModelError
        A ValueError: if the model gives other outputs for the same inputs.

    Notes
    -----
    What a model detaches on one of several ways is invisible here, as it is to autograd's own
    Hessian.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.linearize import linearize
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 2))
    >>> for name, layer in linearize(model, torch.eye(2)).layers.items():
    ...     print(name, layer.exact_block, layer.obstacle)
    0 False Gelu is not known to be piecewise linear
    2 True None
    """
    model, inputs, loss = Network.of(model), as_inputs(inputs), get_loss(loss)
    memory_budget = arguments.memory_budget("memory_budget", memory_budget)
    if chunk_size is not None:
        chunk_size = arguments.integer("chunk_size", chunk_size, at_least=1)
    if arguments.flag("verify", verify) and targets is None:
        raise ValueError("verify=True needs targets: pass the labels of the inputs.")
    strict = arguments.flag("strict", strict)
    options = JacobianOptions.of(model, input_jacobians, all_parameters, layers)
    chosen, left_out = candidate_layers(model, layers, options)
    if strict and layers is not None:
        for name, reason in left_out.items():
            raise refusal(name, reason)
    if targets is not None:
        model, batch, settled_loss = settled(model, (inputs, targets), loss)
        assert settled_loss is not None
        inputs, targets = batch.joined()
        loss = settled_loss
    check_inputs(inputs)
    inputs = widened(inputs, Network.of(model).input_format)
    if targets is None:
        loss = unlabelled_loss(model, inputs, loss)
    _refuse_cut_jacobians(model, inputs, options)
    result = _linearize_within_budget(
        model, (inputs, targets), loss, chosen, left_out, options, chunk_size, memory_budget
    )
    if strict and layers is not None:
        _refuse_left_out(model, inputs, chosen, result)
    if verify:
        _verify(model, inputs, targets, result)
    return result


def _refuse_cut_jacobians(model: Network, inputs: Inputs, options: JacobianOptions) -> None:
    """Raise if a Jacobian was asked for in parameters or inputs that no gradient reaches."""
    if options.input_jacobians or (options.all_parameters and not options.only):
        refuse_cut(model, inputs)
    elif options.only:
        refuse_cut(model, inputs, options.only)
    if options.input_jacobians:
        refuse_cut_inputs(model, inputs)


def _linearize_within_budget(
    model: Network,
    data: tuple[Inputs, Tensor | None],
    loss: Loss,
    chosen: dict[str, nn.Module],
    left_out: Mapping[str, str],
    options: JacobianOptions,
    chunk_size: int | None,
    memory_budget: int,
    costs: SampleCosts | None = None,
) -> Linearization:
    inputs, _ = data
    with evaluation(model) as parameters:
        costs = costs or sample_costs(model, chosen, parameters, inputs, options)
        needed = len(inputs) * costs.stored
        if needed > memory_budget // 2:
            raise MemoryBudgetError(
                f"inputs: the pairs of {len(inputs)} samples take {needed / GIBIBYTE:.2g} GiB, "
                f"more than half of memory_budget={memory_budget}; raise it to at least "
                f"{2 * needed}, or pass fewer samples or layers."
            )
        step = fitting(memory_budget // 4, costs.graph, len(inputs))
        step = possible_step(chunk_size or step, costs, len(inputs), memory_budget)
        if step == 1:
            refuse_unseen(model, parameters, inputs, costs, memory_budget)
        excluded: dict[str, str] = {}
        while True:
            try:
                result = _linearize_by_chunks(
                    model, data, loss, chosen, parameters, options, step, memory_budget, excluded
                )
                break
            except UnfitError as unfit:  # shown by all samples together; leave these layers out
                excluded |= unfit.reasons
        first = costs.outputs[: len(inputs)]
        refuse_changed(model, parameters, inputs, first, result.outputs)
    return replace(result, left_out={**left_out, **result.left_out})


def _refuse_left_out(
    model: Network, inputs: Inputs, chosen: Mapping[str, nn.Module], result: Linearization
) -> None:
    """Raise if a layer that was named is not among the result's."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    missing = [name for name in chosen if name not in result.layers]
    cut = [name for name in missing if name in result.left_out]
    refuse_cut(model, inputs, [names[id(chosen[name].get_parameter("weight"))] for name in cut])
    for name in missing:
        raise refusal(name, result.left_out.get(name, "it shares the weight of another layer"))


def _changed_layers_error(names: Sequence[str], later: Linearization) -> ValueError:
    """Return the error for layers that later samples call otherwise than the first ones did."""
    lost = [name for name in names if name not in later.layers]
    if not lost:
        return ValueError("model calls its layers in another order for later samples.")
    reason = later.left_out.get(lost[0], "the forward pass does not call it")
    return ValueError(
        f"layers: {lost[0]} cannot be linearized by itself on later samples, because {reason}; "
        "leave it out."
    )


def linearize_in_chunks(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    layers: Sequence[str] | None = None,
    *,
    input_jacobians: bool = False,
    all_parameters: bool | Sequence[str] = False,
    with_targets: bool = True,
    output_jacobians: bool = True,
    strict: bool = True,
    memory_budget: int = GIBIBYTE,
) -> Iterator[tuple[Linearization, Tensor]]:
    """Linearize a stream of batches, as many samples at a time as fit the memory budget.

    This serves measures that are sums over samples, on data of any length. A loop that deletes each
    linearization before it asks for the next one has larger chunks.

    Parameters
    ----------
    model, loss, layers, input_jacobians, all_parameters, strict, memory_budget
        As in :func:`linearize`. The first samples decide which layers are left out.
    data : pair or iterable of pairs
        Inputs and targets in a form that :class:`~paperkit.network.Batches` accepts.
    with_targets : bool
        Whether the targets must fit the loss and its output Hessian may depend on them.
    output_jacobians : bool
        Whether the Jacobians B are recorded. A measure that needs the layers' inputs alone fits
        more samples at a time without them; their entries are NaN then.

    Yields
    ------
    tuple of Linearization and Tensor
        Linearization of consecutive samples, and their targets; every sample once.

    Raises
    ------
    ValueError
        As :func:`linearize`; a :class:`MemoryBudgetError` if a single sample does not fit; if a
        layer that the first samples do not leave out has to be left out for later ones.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.linearize import linearize_in_chunks
    >>> model, n = nn.Linear(2, 1, bias=False), 5
    >>> data = [(torch.ones(2, 2), torch.zeros(2, 1)), (torch.ones(3, 2), torch.zeros(3, 1))]
    >>> chunks = linearize_in_chunks(model, data, "half_squared_error")
    >>> sum(float(chunk.layers[""].jacobian().square().sum()) for chunk, _ in chunks) / n  # ‖x‖²
    2.0
    """
    memory_budget = arguments.memory_budget("memory_budget", memory_budget)
    with_targets = arguments.flag("with_targets", with_targets)
    strict, given_loss = arguments.flag("strict", strict), get_loss(loss)
    model, stream, settled_loss = settled(model, data, given_loss if with_targets else None)
    options = JacobianOptions.of(model, input_jacobians, all_parameters, layers)
    output_jacobians = arguments.flag("output_jacobians", output_jacobians)
    options = replace(options, output_jacobians=output_jacobians)
    settled_loss = settled_loss or given_loss
    chosen, left_out = candidate_layers(model, layers, options)
    if strict and layers is not None:
        for name, reason in left_out.items():
            raise refusal(name, reason)
    names: list[str] | None = None  # names of the layers, once the first samples have shown them
    last: weakref.ref[Linearization] | None = None
    for inputs, targets in stream:
        check_inputs(inputs)
        if names is None:
            _refuse_cut_jacobians(model, inputs, options)
        with evaluation(model) as parameters:
            costs = sample_costs(model, chosen, parameters, inputs, options)
        start, checked = 0, False
        while start < len(inputs):
            # The caller's loop may still hold the last chunk while the next one is made. If it
            # does, each may take half of the memory, so that both fit.
            room = memory_budget // (2 if last is None or last() is None else 4)
            remaining = len(inputs) - start
            step = min(
                fitting(room, costs.stored, remaining),
                fitting(memory_budget // 4, costs.graph, remaining),
            )
            step = possible_step(step, costs, remaining, memory_budget)
            if step == 1 and not checked:
                with evaluation(model) as parameters:
                    refuse_unseen(model, parameters, inputs[start:], costs, memory_budget)
                checked = True
            chunk = slice(start, start + _slices(remaining, step)[0].stop)
            start = chunk.stop
            labels = targets[chunk] if with_targets else None
            linearization = _linearize_within_budget(
                model,
                (inputs[chunk], labels),
                settled_loss,
                chosen,
                left_out,
                options,
                step,
                memory_budget,
                costs if chunk.start == 0 else None,
            )
            if names is None:
                if strict and layers is not None:
                    _refuse_left_out(model, inputs, chosen, linearization)
                names, left_out = list(linearization.layers), dict(linearization.left_out)
                chosen = {name: module for name, module in chosen.items() if name not in left_out}
            elif names != list(linearization.layers):
                raise _changed_layers_error(names, linearization)
            last = weakref.ref(linearization)
            yield linearization, targets[chunk]
            del linearization  # a reference here would keep it alive while the next one is made


def _linearize_by_chunks(
    model: nn.Module,
    data: tuple[Inputs, Tensor | None],
    loss: Loss,
    chosen: dict[str, nn.Module],
    parameters: dict[str, Tensor],
    options: JacobianOptions,
    step: int,
    memory_budget: int,
    excluded: Mapping[str, str],
) -> Linearization:
    inputs, targets = data
    outputs: list[Tensor] = []
    results: Results | None = None
    for samples in _slices(len(inputs), step):
        recording = record(
            model, chosen, parameters, inputs[samples], options, excluded, follow=True
        )
        outputs.append(recording.outputs.detach())
        if results is None:
            results = allocate(model, recording, parameters, chosen, len(inputs), options)
        keep_calls(results, recording)
        in_order = seen_in_order(recording)
        if not in_order:
            refuse_other_order(
                recording,
                lambda part: record(model, chosen, parameters, part, options, excluded),
                inputs[samples],
            )
        fill(results, recording, samples, check_order=not in_order)
        if results.differentiated:
            jacobians = per_sample_jacobians(
                model, parameters, results.differentiated, inputs[samples]
            )
            for name, jacobian in jacobians.items():
                results.parameters[name][samples] = jacobian
    assert results is not None
    all_outputs = torch.cat(outputs)
    if targets is not None:
        loss.check(all_outputs, targets)
    factor = _hessian_factor(loss, all_outputs, targets, step)
    for layer in results.layers.values():
        layer.hessian_factor = factor
        layer.memory_budget = memory_budget // 2
    return Linearization(
        all_outputs,
        factor,
        results.layers,
        loss,
        results.input_jacobian,
        results.parameters if options.all_parameters else None,
        memory_budget,
        results.exact_parameters,
        results.left_out,
        model.narrowest if isinstance(model, Network) else all_outputs.dtype,
    )


def _slices(n: int, step: int) -> list[slice]:
    """Cut n samples into chunks of almost equal sizes, with two samples at least where they fit."""
    sizes = equal_pieces(n, step, min(2, step, n))
    ends = itertools.accumulate(sizes)
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _hessian_factor(loss: Loss, outputs: Tensor, targets: Tensor | None, step: int) -> Tensor:
    """Return R of all samples, made for ``step`` at a time because it passes through float64."""
    factor: Tensor | None = None
    for start in range(0, len(outputs), step):
        samples = slice(start, start + step)
        part = loss.hessian_factor(outputs[samples], None if targets is None else targets[samples])
        if factor is None:
            factor = part.new_empty(len(outputs), *part.shape[1:])
        factor[samples] = part
    assert factor is not None
    return factor


def _verify(
    model: nn.Module, inputs: Inputs, targets: Tensor | None, result: Linearization
) -> None:
    """Compare a probe of each exact block with autograd; where they differ, call it not exact."""
    assert targets is not None
    generator = torch.Generator(device="cpu").manual_seed(0)
    for layer in result.layers.values():
        if not layer.exact_block:
            continue
        probe = torch.randn(
            1, *layer.weight_shape, generator=generator, dtype=torch.float64, device="cpu"
        )
        probe = probe.to(result.outputs)
        ours = layer.gauss_newton_product(probe).flatten()
        exact = hessian_product(
            model, inputs, targets, probe.flatten(), result.loss, [layer.weight_name]
        )
        tolerance = 100.0 * torch.finfo(ours.dtype).eps ** 0.5
        if float((ours - exact).norm()) > tolerance * float(exact.norm()):
            layer.obstacle = "a probe of the Hessian block differs from the Gauss–Newton block"

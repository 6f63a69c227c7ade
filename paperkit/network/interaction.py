"""Refuse models whose samples see each other or change places, and models that are random.

Every measure is a mean over samples and computes them in pieces; the pairs (a, B) of a layer take
row k of its input and of its gradient for sample k. Both hold if the outputs for a sample depend on
that sample alone, and no row is another sample's. The operations of the forward pass show that for
most models (:mod:`paperkit.network.sample_axes`); for the others the numbers decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

import torch
from torch import Tensor, nn

from paperkit.network.network import network_outputs
from paperkit.network.sample_axes import SampleAxes
from paperkit.network.samples import Inputs

T = TypeVar("T")

# A random number may change no output in a given pass, so several passes on several samples are
# compared before a model is taken for one that draws none.
_REPETITIONS = 8
_SAMPLES_FOR_CHANCE = 8

# Advice of the error messages for inputs whose samples see each other on purpose, as do the nodes
# of a graph.
_ONE_SAMPLE = (
    "make samples that see each other one sample: pass (inputs[None], targets[None]) and "
    "forward=lambda model, inputs: model(inputs[0])[None]"
)


class SamplesInteractError(ValueError):
    """The model's outputs for one sample depend on the others, or rows change places inside.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.linearize import linearize
    >>> model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1, track_running_stats=False))
    >>> linearize(model, torch.rand(4, 2), "mse")
    Traceback (most recent call last):
        ...
    paperkit.network.interaction.SamplesInteractError: model gives other values for the same sample
        in another batch: it mixes samples or changes their order (operation native_batch_norm);
        freeze batch statistics, put samples first (batch_first=True), or make samples that see each
        other one sample: pass (inputs[None], targets[None]) and forward=lambda model, inputs:
        model(inputs[0])[None].
    """


class RandomModelError(ValueError):
    """The model gives other outputs for the same inputs in evaluation mode.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linearize import linearize
    >>> class Noisy(torch.nn.Linear):
    ...     def forward(self, x):
    ...         return super().forward(x) + torch.randn(len(x), 1)
    >>> linearize(torch.nn.Sequential(Noisy(2, 1)), torch.ones(3, 2), "mse")
    Traceback (most recent call last):
        ...
    paperkit.network.interaction.RandomModelError: model is random in evaluation mode, it gives
        other outputs for the same inputs: switch off dropout called with training=True, sampling
        and added noise first.
    """


def following(model: nn.Module, inputs: Inputs, run: Callable[[], T]) -> tuple[T, SampleAxes]:
    """Run a forward pass and follow the samples' axis through it.

    Parameters
    ----------
    model : nn.Module
        Model or network.
    inputs : Tensor or Samples
        The very tensors that ``run`` calls the model with.
    run : callable
        Function without arguments that runs the pass.
    """
    axes = SampleAxes(model, inputs)
    try:
        with axes.followed():
            return run(), axes
    except Exception:
        # Run again without following. If the pass fails again, its error is the model's and goes to
        # the caller; if not, only the following failed, and nothing is known of the axes.
        axes.give_up()
    return run(), axes


def seen_apart(model: nn.Module, parameters: dict[str, Tensor], inputs: Inputs) -> bool:
    """Check, without a graph, that the outputs for each sample depend on that sample alone.

    Parameters
    ----------
    model, parameters, inputs
        As in :func:`separate_outputs`, which this does without a graph.

    Returns
    -------
    bool
        Whether the operations show it, so that it holds for other samples of the same number and
        shape too. Otherwise it was checked on these numbers and holds for these samples.
    """
    with torch.no_grad():
        outputs, axes = _with_axes(model, parameters, inputs)
        if axes.apart(outputs):
            return True
        _refuse_interaction(model, parameters, inputs, outputs, axes)
    return False


def _with_axes(
    model: nn.Module, parameters: dict[str, Tensor], inputs: Inputs
) -> tuple[Tensor, SampleAxes]:
    return following(model, inputs, lambda: network_outputs(model, parameters, inputs))


def separate_outputs(model: nn.Module, parameters: dict[str, Tensor], inputs: Inputs) -> Tensor:
    """Return the outputs (n, C) if those for each sample depend on that sample alone.

    To be called within :func:`paperkit.network.evaluation.evaluation`. The outputs come from a
    forward pass that records gradients where they are enabled. Where its operations do not show
    that samples are apart, the numbers decide, with 2⌈log₂ n⌉ further passes on subsets: each
    sample of any pair is without the other in some pass, and all change places.

    Parameters
    ----------
    model : nn.Module
        Model or network.
    parameters : dict of str to Tensor
        Values of the parameters by name.
    inputs : Tensor or Samples
        The n samples.

    Raises
    ------
    SamplesInteractError
        A ValueError: if they depend on other samples, or on the place in the batch.
    RandomModelError
        A ValueError: if they depend on chance.
    """
    outputs, axes = _with_axes(model, parameters, inputs)
    if not axes.apart(outputs):
        _refuse_interaction(model, parameters, inputs, outputs, axes)
    return outputs


def _refuse_interaction(
    model: nn.Module,
    parameters: dict[str, Tensor],
    inputs: Inputs,
    outputs: Tensor,
    axes: SampleAxes,
) -> None:
    run = _pass(model, parameters)
    with torch.no_grad():
        if axes.random:
            refuse_chance(run, inputs, outputs.detach())
        for subset, alone in parts_alone(run, inputs, axes):
            refuse_other_outputs(run, inputs, outputs.detach(), alone, subset, axes)


def _pass(model: nn.Module, parameters: dict[str, Tensor]) -> Callable[[Inputs], Tensor]:
    return lambda inputs: network_outputs(model, parameters, inputs)


def parts_alone(
    run: Callable[[Inputs], T], inputs: Inputs, axes: SampleAxes
) -> Iterator[tuple[Tensor, T]]:
    """Yield subsets of the samples, in random order, and the result of a pass for each alone.

    The samples are numbered at random. Every binary place of the numbers gives a pair of subsets:
    samples whose number has a one there, and samples with a zero. Any two numbers differ at some
    place, so each sample of any pair is in some subset without the other.

    Parameters
    ----------
    run : callable
        Function from samples to the result of a pass.
    inputs : Tensor or Samples
        All n samples.
    axes : SampleAxes
        Axes that the pass for all samples has followed; they name the operation to blame.

    Raises
    ------
    SamplesInteractError
        A ValueError: if the model fails on fewer samples.
    """
    for subset in _separating_subsets(len(inputs)):
        try:
            alone = run(inputs[subset.to(inputs.device)])
        except Exception as error:
            raise SamplesInteractError(
                f"model fails on {len(subset)} of the {len(inputs)} samples ({error}), and its "
                f"{_culprit(axes)} may mix them: put samples first, or {_ONE_SAMPLE}."
            ) from error
        yield subset, alone


def refuse_other_outputs(
    run: Callable[[Inputs], Tensor],
    inputs: Inputs,
    together: Tensor,
    alone: Tensor,
    subset: Tensor,
    axes: SampleAxes,
) -> None:
    """Raise if the outputs for a subset are not what they are among all samples.

    Parameters
    ----------
    run : callable
        Function from samples to outputs.
    inputs : Tensor or Samples
        All n samples.
    together, alone : Tensor
        Outputs for all samples, (n, C), and for the subset.
    subset : Tensor
        Positions of the subset's samples among all.
    axes : SampleAxes
        Axes that the pass for all samples has followed.
    """
    rows = together[subset.to(together.device)]
    if not agree(alone, rows, together, axes.narrowest):
        refuse_chance(run, inputs, together)
        _refuse_mixing(_culprit(axes))


def _refuse_mixing(culprit: str) -> NoReturn:
    raise SamplesInteractError(
        "model gives other values for the same sample in another batch: it mixes samples or "
        f"changes their order ({culprit}); freeze batch statistics, put samples first "
        f"(batch_first=True), or {_ONE_SAMPLE}."
    )


def _culprit(axes: SampleAxes) -> str:
    return f"operation {axes.obstacle}" if axes.obstacle else "forward pass"


def refuse_changed(
    model: nn.Module,
    parameters: dict[str, Tensor],
    inputs: Inputs,
    first: Tensor,
    outputs: Tensor,
) -> None:
    """Raise if the first samples' outputs were not what they are among all.

    Some influences pass through no operation of torch: a random number of Python's, or a division
    by the number of samples. They show in the numbers.

    Parameters
    ----------
    model, parameters, inputs
        As in :func:`separate_outputs`.
    first : Tensor
        Outputs (m, C) of the first m samples, from a pass of their own.
    outputs : Tensor
        Outputs (n, C) of all samples.
    """
    if not agree(first, outputs[: len(first)], outputs, getattr(model, "narrowest", None)):
        with torch.no_grad():
            refuse_chance(_pass(model, parameters), inputs[: len(first)], first)
        _refuse_mixing("the number of samples in a batch counts")


def refuse_random(
    model: nn.Module, parameters: dict[str, Tensor], inputs: Inputs, outputs: Tensor
) -> None:
    """Raise if the model gives other outputs for the same inputs: one pass on few samples.

    Parameters
    ----------
    model, parameters, inputs
        As in :func:`separate_outputs`.
    outputs : Tensor
        Outputs (m, C) of the first m samples.
    """
    with torch.no_grad():
        again, axes = _with_axes(model, parameters, inputs[: len(outputs)])
        if axes.random or not agree(again, outputs, outputs):
            # More samples make it likelier that a random number changes an output.
            many = inputs[: max(_SAMPLES_FOR_CHANCE, len(outputs))]
            run = _pass(model, parameters)
            refuse_chance(run, many, run(many))


def refuse_chance(run: Callable[[Inputs], Tensor], inputs: Inputs, before: Tensor) -> None:
    """Raise if one of several passes gives other outputs for the same inputs.

    Parameters
    ----------
    run : callable
        Function from samples to outputs.
    inputs : Tensor or Samples
        Samples on which the passes are run.
    before : Tensor
        Outputs of these samples in an earlier pass.
    """
    for _ in range(_REPETITIONS):
        if not agree(run(inputs), before, before):
            raise RandomModelError(
                "model is random in evaluation mode, it gives other outputs for the same inputs: "
                "switch off dropout called with training=True, sampling and added noise first."
            )


def agree(
    values: Tensor, expected: Tensor, reference: Tensor, narrowest: torch.dtype | None = None
) -> bool:
    """Whether rows are equal up to the round-off of another order of additions.

    Parameters
    ----------
    values, expected : Tensor
        Rows to compare.
    reference : Tensor
        Tensor whose largest entry is the scale of the round-off.
    narrowest : torch.dtype, optional
        Narrowest format in which an operation computes; default the format of ``reference``.
    """
    if values.shape != expected.shape:
        return False
    if not reference.is_floating_point() and not reference.is_complex():
        return torch.equal(values, expected)
    if not reference.numel():
        return True
    eps = max(torch.finfo(dtype).eps for dtype in (reference.dtype, narrowest or reference.dtype))
    tolerance = eps**0.5 * float(reference.abs().max())
    return float((values - expected).abs().max()) <= tolerance


def _separating_subsets(n: int) -> Iterator[Tensor]:
    """Yield subsets such that each sample of any pair is in some subset without the other."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    numbers = torch.randperm(n, generator=generator, device="cpu")
    for place in range(math.ceil(math.log2(n)) if n > 1 else 0):
        ones = (numbers >> place) % 2 == 1
        for subset in (ones, ~ones):
            members = subset.nonzero().flatten()
            order = torch.randperm(len(members), generator=generator, device="cpu")
            yield members[order]

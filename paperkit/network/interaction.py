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

# A small chance that a draw shows in one pass shows in several.
_REPETITIONS = 8
_SAMPLES_FOR_CHANCE = 8

# What to do with the nodes of a graph, say.
_ONE_SAMPLE = (
    "make samples that see each other one sample: pass (inputs[None], targets[None]) and "
    "forward=lambda model, inputs: model(inputs[0])[None]"
)


class SamplesInteractError(ValueError):
    """The model's outputs for one sample depend on the others, or rows change places inside."""


class RandomModelError(ValueError):
    """The model gives other outputs for the same inputs in evaluation mode."""


def following(model: nn.Module, inputs: Inputs, run: Callable[[], T]) -> tuple[T, SampleAxes]:
    """Run a forward pass and follow the samples' axis through it.

    Parameters
    ----------
    model : nn.Module
        A model or a network.
    inputs : Tensor or Samples
        The very tensors that ``run`` calls the model with.
    run : callable
        The pass.
    """
    axes = SampleAxes(model, inputs)
    try:
        with axes.followed():
            return run(), axes
    except Exception:
        # What fails without it too is the caller's; what does not is no reason to fail.
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
        shape; else the numbers decided for these.
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

    To be called within :func:`paperkit.network.evaluation.evaluation`. One forward pass, which
    records gradients where they are enabled. Where its operations do not show that samples are
    apart, the numbers decide, with ⌈log₂ n⌉ further passes: of each pair of samples one is without
    the other in some pass, and all change places.

    Parameters
    ----------
    model, parameters, inputs
        As in :func:`paperkit.network.network.network_outputs`.

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
    """Yield subsets of the samples, in random order, and what a forward pass gives for each alone.

    Of each pair of samples each is in one of them without the other: those whose number has a one
    at some binary place, and those with a zero, for every place.

    Parameters
    ----------
    run : callable
        Some samples → the result of a pass.
    inputs : Tensor or Samples
        All n samples.
    axes : SampleAxes
        What is known from the pass for all.

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
        Some samples → outputs.
    inputs : Tensor or Samples
        All n samples.
    together, alone : Tensor
        Outputs for all, (n, C), and for the subset.
    subset : Tensor
        The samples' numbers.
    axes : SampleAxes
        What is known from the pass for all.
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

    What no operation shows, a random number of Python's or a division by the number of samples,
    shows here.

    Parameters
    ----------
    model, parameters, inputs
        As in :func:`separate_outputs`.
    first : Tensor
        Outputs (m, C) of the first m samples, from a pass of their own.
    outputs : Tensor
        Of all samples.
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
        Of the first m samples.
    """
    with torch.no_grad():
        again, axes = _with_axes(model, parameters, inputs[: len(outputs)])
        if axes.random or not agree(again, outputs, outputs):
            # A draw shows sooner in more samples.
            many = inputs[: max(_SAMPLES_FOR_CHANCE, len(outputs))]
            run = _pass(model, parameters)
            refuse_chance(run, many, run(many))


def refuse_chance(run: Callable[[Inputs], Tensor], inputs: Inputs, before: Tensor) -> None:
    """Raise if one of several passes gives other outputs for the same inputs.

    Parameters
    ----------
    run : callable
        Some samples → outputs.
    inputs : Tensor or Samples
        The samples.
    before : Tensor
        Their outputs in the pass before.
    """
    for _ in range(_REPETITIONS):
        if not agree(run(inputs), before, before):
            raise RandomModelError(
                "model is random in evaluation mode, it gives other outputs for the same inputs: "
                "switch off dropout called with training=True, sampling and added noise first."
            )


def agree(
    found: Tensor, expected: Tensor, whole: Tensor, narrowest: torch.dtype | None = None
) -> bool:
    """Whether rows are equal up to the round-off of another order of additions.

    Parameters
    ----------
    found, expected : Tensor
        Equal but for round-off.
    whole : Tensor
        Its largest entry is the scale.
    narrowest : torch.dtype, optional
        What some operation computes in; default the format of ``whole``.
    """
    if found.shape != expected.shape:
        return False
    if not whole.is_floating_point() and not whole.is_complex():
        return torch.equal(found, expected)
    if not whole.numel():
        return True
    eps = max(torch.finfo(dtype).eps for dtype in (whole.dtype, narrowest or whole.dtype))
    tolerance = eps**0.5 * float(whole.abs().max())
    return float((found - expected).abs().max()) <= tolerance


def _separating_subsets(n: int) -> Iterator[Tensor]:
    """Yield subsets such that of each pair each sample is in one without the other."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    numbers = torch.randperm(n, generator=generator, device="cpu")
    for place in range(math.ceil(math.log2(n)) if n > 1 else 0):
        ones = (numbers >> place) % 2 == 1
        for subset in (ones, ~ones):
            members = subset.nonzero().flatten()
            order = torch.randperm(len(members), generator=generator, device="cpu")
            yield members[order]

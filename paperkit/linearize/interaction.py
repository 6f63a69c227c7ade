"""Refuse models whose samples see each other or change places, and models that are random.

Every measure is a mean over samples and computes them in pieces; the pairs (a, B) of a layer take
row k of its input and of its gradient for sample k. Both hold if the outputs for a sample depend on
that sample alone, and no row is another sample's. The operations of the forward pass show that for
most models (:mod:`paperkit.linearize.sample_axes`); for the others the numbers decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TypeVar

import torch
from torch import Tensor, nn

from paperkit.linearize.network import network_outputs
from paperkit.linearize.sample_axes import SampleAxes
from paperkit.linearize.samples import Inputs

T = TypeVar("T")

# A small chance that a draw shows in one pass shows in several.
_REPETITIONS = 8


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


def separate_outputs(model: nn.Module, parameters: dict[str, Tensor], inputs: Inputs) -> Tensor:
    """Return the outputs (n, C) if those for each sample depend on that sample alone.

    To be called within :func:`paperkit.linearize.evaluation.evaluation`. One forward pass, which
    records gradients where they are enabled; where its operations do not show that samples are
    apart, :func:`refuse_interaction` adds ⌈log₂ n⌉.

    Parameters
    ----------
    model, parameters, inputs
        As in :func:`paperkit.linearize.network.network_outputs`.

    Raises
    ------
    SamplesInteractError
        A ValueError: if they depend on other samples, or on the place in the batch.
    RandomModelError
        A ValueError: if they depend on chance.
    """
    outputs, axes = following(model, inputs, lambda: network_outputs(model, parameters, inputs))
    if not axes.apart(outputs):
        refuse_interaction(model, parameters, inputs, outputs, axes)
    return outputs


def refuse_interaction(
    model: nn.Module,
    parameters: dict[str, Tensor],
    inputs: Inputs,
    outputs: Tensor,
    axes: SampleAxes,
) -> None:
    """Raise if the outputs for some sample change when others are left out or change places.

    For each pair of samples there is a pass in which one is without the other: those whose number
    has a one at some binary place, and those with a zero, for every place, in random order.

    Parameters
    ----------
    model, parameters, inputs
        As in :func:`separate_outputs`.
    outputs : Tensor
        For all n samples together.
    axes : SampleAxes
        What is known from the pass.
    """

    def run(part: Inputs) -> list[Tensor]:
        return [network_outputs(model, parameters, part)]

    with torch.no_grad():
        compare_subsets(run, inputs, [outputs.detach()], axes)


def compare_subsets(
    run: Callable[[Inputs], Sequence[Tensor]],
    inputs: Inputs,
    together: Sequence[Tensor],
    axes: SampleAxes,
) -> None:
    """Raise if what a forward pass gives for subsets is not what it gives for all samples.

    Parameters
    ----------
    run : callable
        Some samples → tensors with a row for each.
    inputs : Tensor or Samples
        All n samples.
    together : sequence of Tensor
        What ``run`` gives for all.
    axes : SampleAxes
        What is known from that pass.
    """
    if axes.random:
        _refuse_chance(run, inputs, together)
    for subset in _separating_subsets(len(inputs)):
        try:
            alone = run(inputs[subset.to(inputs.device)])
        except Exception as error:
            raise SamplesInteractError(
                f"model fails on {len(subset)} of the {len(inputs)} samples ({error}), and its "
                f"{_culprit(axes)} may mix samples: remove that, or make the batch one sample."
            ) from error
        rows = [tensor[subset.to(tensor.device)] for tensor in together]
        if not all(
            len(a) == len(b) and agree(a, b, whole)
            for a, b, whole in zip(alone, rows, together, strict=True)
        ):
            _refuse_chance(run, inputs, together)
            refuse_mixing(axes)


def refuse_mixing(axes: SampleAxes) -> NoReturn:
    """Raise."""
    raise SamplesInteractError(
        "model gives other values for the same sample in another batch: it mixes samples or "
        f"changes their order ({_culprit(axes)}); freeze batch statistics, put samples first "
        "(batch_first=True), or make samples that see each other one sample."
    )


def _culprit(axes: SampleAxes) -> str:
    return f"operation {axes.obstacle}" if axes.obstacle else "forward pass"


def refuse_chance(model: nn.Module, parameters: dict[str, Tensor], inputs: Inputs) -> None:
    """Raise if the model gives other outputs for the same inputs.

    Parameters
    ----------
    model, parameters, inputs
        As in :func:`separate_outputs`.
    """

    def run(part: Inputs) -> list[Tensor]:
        return [network_outputs(model, parameters, part)]

    with torch.no_grad():
        _refuse_chance(run, inputs, run(inputs))


def _refuse_chance(
    run: Callable[[Inputs], Sequence[Tensor]], inputs: Inputs, before: Sequence[Tensor]
) -> None:
    for _ in range(_REPETITIONS):
        again = run(inputs)
        if not all(
            a.shape == b.shape and agree(a, b, b) for a, b in zip(again, before, strict=True)
        ):
            raise RandomModelError(
                "model is random in evaluation mode, it gives other outputs for the same inputs: "
                "switch off dropout called with training=True, sampling and added noise first."
            )


def agree(found: Tensor, expected: Tensor, whole: Tensor) -> bool:
    """Whether rows are equal up to the round-off of another order of additions.

    Parameters
    ----------
    found, expected : Tensor
        Equal but for round-off.
    whole : Tensor
        Its largest entry is the scale.
    """
    if not whole.is_floating_point() and not whole.is_complex():
        return torch.equal(found, expected)
    if not whole.numel():
        return True
    tolerance = torch.finfo(whole.dtype).eps ** 0.5 * float(whole.abs().max())
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

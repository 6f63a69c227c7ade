"""Check that a layer sees the samples in the order of the outputs, each by itself."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from paperkit.linearize.costs import SampleCosts
from paperkit.linearize.recording import Recording, UnfitError
from paperkit.memory import fitting
from paperkit.network.interaction import (
    agree,
    parts_alone,
    refuse_chance,
    refuse_other_outputs,
    seen_apart,
)
from paperkit.network.samples import Inputs

OUT_OF_ORDER = "it sees the samples mixed, or in another order than the outputs"


def _tensors_read(recording: Recording) -> dict[str, list[Tensor]]:
    """Return the tensors that each recorded module reads, by the module's name."""
    tensors: dict[str, list[Tensor]] = {}
    for call in recording.calls:
        tensors.setdefault(call.name, []).append(call.inputs)
    for normalization in recording.normalizations:
        tensors.setdefault(normalization.name, []).append(normalization.normalized)
    return tensors


def seen_in_order(recording: Recording) -> bool:
    """Whether the operations show that no sample sees another.

    Raises
    ------
    UnfitError
        If they do, but a module reads something else than the samples in their order.
    """
    axes = recording.axes
    assert axes is not None
    if not axes.apart(recording.outputs):
        return False
    unfit = {
        name: OUT_OF_ORDER
        for name, read in _tensors_read(recording).items()
        if not all(axes.apart(tensor) for tensor in read)
    }
    if unfit:
        raise UnfitError(unfit)
    return True


def refuse_other_order(
    recording: Recording, record: Callable[[Inputs], Recording], inputs: Inputs
) -> None:
    """Raise if outputs for a sample, or the tensors that a module reads, depend on the others.

    Raises
    ------
    UnfitError
        With the names of the modules.
    SamplesInteractError
        If outputs depend on other samples.
    """
    axes = recording.axes
    assert axes is not None

    def run(part: Inputs) -> Tensor:
        return record(part).outputs.detach()

    if axes.random:
        refuse_chance(run, inputs, recording.outputs.detach())
    unfit: dict[str, str] = {}
    for samples, alone in parts_alone(record, inputs, axes):
        refuse_other_outputs(
            run, inputs, recording.outputs.detach(), alone.outputs.detach(), samples, axes
        )
        read_alone = _tensors_read(alone)
        for name, together in _tensors_read(recording).items():
            parts = read_alone.get(name, [])
            if name in alone.misfits:
                unfit[name] = alone.misfits[name]
            elif len(parts) != len(together) or not all(
                agree(part, tensor[samples.to(tensor.device)], tensor, axes.narrowest)
                for part, tensor in zip(parts, together, strict=True)
            ):
                unfit[name] = OUT_OF_ORDER
    if unfit:
        raise UnfitError(unfit)


def refuse_unseen(
    model: nn.Module,
    parameters: dict[str, Tensor],
    inputs: Inputs,
    costs: SampleCosts,
    memory_budget: int,
) -> None:
    """Raise if samples interact; used where chunks of a single sample would not show it."""
    size = max(2, fitting(memory_budget // 4, costs.graph, len(inputs)))
    apart: set[tuple] = set()
    for part in inputs.split(size):
        key = (part.shape, part.dtype)
        if key not in apart and seen_apart(model, parameters, part):
            apart.add(key)

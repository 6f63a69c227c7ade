"""Inputs of several parts, as if they were one tensor with samples first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from paperkit import arguments
from paperkit.network.precision import widened


class Samples:
    """n samples whose inputs are several tensors, each with the samples first.

    The attributes and methods are those of a tensor that the handling of batches needs.

    Parameters
    ----------
    parts : mapping, tuple or list
        Tensors (n, …). A part that is no tensor belongs to all samples.

    Raises
    ------
    TypeError, ValueError
        If there is no tensor, or they have different numbers of samples.

    Examples
    --------
    >>> import torch
    >>> from paperkit.network import Samples
    >>> samples = Samples({"ids": torch.arange(6).reshape(3, 2), "mask": torch.ones(3, 2)})
    >>> len(samples), samples.shape
    (3, (3, torch.Size([2]), torch.Size([2])))
    >>> samples[1:].parts["ids"]
    tensor([[2, 3],
            [4, 5]])
    """

    def __init__(self, parts: Mapping[str, Any] | tuple | list) -> None:
        if not isinstance(parts, Mapping | tuple | list):
            raise TypeError(
                f"inputs={arguments.shown(parts)} must be a Tensor, or a tuple, list or dict of "
                "Tensors as the parts of an input."
            )
        self.parts: dict[str, Any] | tuple = (
            dict(parts) if isinstance(parts, Mapping) else tuple(parts)
        )
        for tensor in self.tensors():
            refuse_unusable("inputs", tensor)
        sizes = {len(tensor) if tensor.ndim else 0 for tensor in self.tensors()}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                "inputs: their parts must be tensors with the same number of samples first, not "
                f"{[tuple(tensor.shape) for tensor in self.tensors()]}; what belongs to all "
                "samples, the edges of a graph, goes into "
                "forward=lambda model, inputs: model(inputs, edges)."
            )
        self._n = sizes.pop()

    def tensors(self) -> list[Tensor]:
        """Return the parts that are tensors, in order."""
        values = self.parts.values() if isinstance(self.parts, dict) else self.parts
        return [part for part in values if isinstance(part, Tensor)]

    def map(self, function: Callable[[Tensor], Tensor]) -> Samples:
        """Apply a function to each tensor."""

        def apply(part: Any) -> Any:
            return function(part) if isinstance(part, Tensor) else part

        if isinstance(self.parts, dict):
            return Samples({name: apply(part) for name, part in self.parts.items()})
        return Samples(tuple(apply(part) for part in self.parts))

    def passed_to(self, module: nn.Module) -> Any:
        """Call a module with the parts as its arguments."""
        if isinstance(self.parts, dict):
            return module(**self.parts)
        return module(*self.parts)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: Any) -> Samples:
        if isinstance(index, int):
            index = slice(index, index + 1)
        return self.map(
            lambda part: part[index.to(part.device)] if isinstance(index, Tensor) else part[index]
        )

    def split(self, sizes: int | Sequence[int]) -> list[Samples]:
        """Cut into pieces, as a tensor is."""
        if isinstance(sizes, int):
            sizes = [min(sizes, self._n - start) for start in range(0, self._n, sizes)]
        return list(self._pieces(sizes))

    def _pieces(self, sizes: Sequence[int]) -> Iterator[Samples]:
        start = 0
        for size in sizes:
            yield self[start : start + size]
            start += size

    def to(self, *args: Any, **kwargs: Any) -> Samples:
        """Move each tensor."""
        return self.map(lambda part: part.to(*args, **kwargs))

    def clone(self) -> Samples:
        """Copy each tensor."""
        return self.map(torch.clone)

    def detach(self) -> Samples:
        """Cut each tensor off its graph."""
        return self.map(torch.detach)

    def widened(self, dtype: torch.dtype) -> Samples:
        """Take each tensor of a narrower floating format to another."""
        return self.map(lambda part: widened(part, dtype))

    def is_floating_point(self) -> bool:
        """Return False: nothing is differentiated in inputs of several parts."""
        return False

    @property
    def shape(self) -> tuple[Any, ...]:
        """The number of samples, and the parts' shapes."""
        return (self._n, *(tensor.shape[1:] for tensor in self.tensors()))

    @property
    def ndim(self) -> int:
        """At least 1, because samples come first."""
        return len(self.shape)

    @property
    def dtype(self) -> tuple[torch.dtype, ...]:
        """The parts' dtypes."""
        return tuple(tensor.dtype for tensor in self.tensors())

    @property
    def device(self) -> torch.device:
        """The device of the first part."""
        return self.tensors()[0].device

    @property
    def requires_grad(self) -> bool:
        """Return False, as :meth:`is_floating_point`."""
        return False

    def numel(self) -> int:
        """Return the number of entries of all parts."""
        return sum(tensor.numel() for tensor in self.tensors())


Inputs = Tensor | Samples
"""What a model is called with: one tensor, samples first, or several."""


def as_inputs(inputs: object) -> Inputs:
    """Return inputs of one part as they are, and several parts as samples.

    Raises
    ------
    TypeError, ValueError
        If it is neither a tensor with samples first nor parts.
    """
    if not isinstance(inputs, Tensor | Samples):
        return Samples(inputs)  # type: ignore[arg-type]
    if isinstance(inputs, Tensor) and not inputs.is_nested and inputs.ndim == 0:
        raise ValueError("inputs is a single number: samples come first, (n, …).")
    if isinstance(inputs, Tensor):
        refuse_unusable("inputs", inputs)
    return inputs


def refuse_unusable(name: str, tensor: Tensor) -> None:
    """Raise if a tensor has no values, or not the kind that a mean over samples can be made of.

    Raises
    ------
    ValueError
        If it is on the meta device, sparse, nested or complex.
    """
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device, without values: pass the data themselves.")
    if tensor.is_nested or tensor.layout != torch.strided:
        raise ValueError(
            f"{name} is a nested or sparse tensor: pass a dense one (to_dense(), to_padded_tensor)."
        )
    if tensor.is_complex():
        raise ValueError(
            f"{name} is complex: pass its real and imaginary parts (torch.view_as_real) and join "
            "them in the model."
        )


def concatenate(parts: Sequence[Inputs]) -> Inputs:
    """Join batches of inputs."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    columns = [tree_leaves(part.parts) for part in parts if isinstance(part, Samples)]
    joined = [
        torch.cat(column) if isinstance(column[0], Tensor) else column[0]
        for column in zip(*columns, strict=True)
    ]
    return Samples(tree_unflatten(joined, tree_flatten(first.parts)[1]))

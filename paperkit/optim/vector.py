"""A model's tensors as one vector, so that an optimizer's equation reads as it is printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from paperkit import arguments


class Vector:
    """A vector, held as the tensors of a model's parameters.

    Its operations are those of :class:`torch.Tensor` that the optimizers' equations use, one fused
    ``torch._foreach_*`` call each; norms and products run over all entries of all tensors and stay
    on the device. The tensors may lie on several devices.

    Parameters
    ----------
    tensors : sequence of Tensor
        Dense tensors of floating point, at least one.

    Examples
    --------
    >>> import torch
    >>> from paperkit.optim import Vector
    >>> g = Vector([torch.tensor([3.0]), torch.tensor([[4.0]])])  # a bias and a weight
    >>> round(float(g.norm()), 4)
    5.0
    >>> (g * 2.0 - g).normalized().tensors
    (tensor([0.6000]), tensor([[0.8000]]))
    >>> round(float(g.dot(g)), 4)
    25.0
    """

    __slots__ = ("tensors",)

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors) if isinstance(tensors, Iterable) else ()
        is_single = isinstance(tensors, Tensor) or not isinstance(tensors, Iterable)
        if is_single or not all(isinstance(part, Tensor) for part in self.tensors):
            raise TypeError(f"tensors={arguments.shown(tensors)} must be a sequence of Tensors.")

    def __add__(self, other: Vector) -> Vector:
        return Vector(torch._foreach_add(self.tensors, other.tensors))

    def __sub__(self, other: Vector) -> Vector:
        return Vector(torch._foreach_sub(self.tensors, other.tensors))

    def __mul__(self, other: Vector | Tensor | float) -> Vector:
        if isinstance(other, Vector):
            return Vector(torch._foreach_mul(self.tensors, other.tensors))
        return Vector(torch._foreach_mul(self.tensors, self._on_devices(other)))

    __rmul__ = __mul__

    def __truediv__(self, scalar: Tensor | float) -> Vector:
        return Vector(torch._foreach_div(self.tensors, self._on_devices(scalar)))

    def scaled(self, strengths: Sequence[float], by: Tensor | float = 1.0) -> Vector:
        """Multiply each tensor by its own number, times a common scalar: ``strengths * by``."""
        if len(set(strengths)) == 1:
            return self * (strengths[0] * by)
        if isinstance(by, float):
            return Vector(torch._foreach_mul(self.tensors, [s * by for s in strengths]))
        factors = [
            strength * by.to(tensor.device)
            for strength, tensor in zip(strengths, self.tensors, strict=True)
        ]
        return Vector(torch._foreach_mul(self.tensors, factors))

    def signed_power(self, exponent: float) -> Vector:
        r"""Return :math:`\mathrm{sign}(x)\,|x|^e` entry by entry, and 0 where x is 0."""
        powers = torch._foreach_pow(torch._foreach_abs(self.tensors), exponent)
        # A negative exponent makes the power of a zero infinite, and infinity times its sign 0
        # would be NaN.
        return Vector(
            [
                torch.where(x == 0, x, power * x.sign())
                for x, power in zip(self.tensors, powers, strict=True)
            ]
        )

    def norm(self, order: float = 2.0) -> Tensor:
        """Return the norm over all entries, zero-dimensional, in float32 or better."""
        dtype = _accumulation_dtype(self.tensors)
        norms = torch._foreach_norm(self.tensors, order, dtype)
        home = self.tensors[0].device
        return torch.linalg.vector_norm(torch.stack([x.to(home) for x in norms]), order)

    def dot(self, other: Vector) -> Tensor:
        """Return the inner product, zero-dimensional, in float32 or better."""
        dtype = _accumulation_dtype(self.tensors)
        products = torch._foreach_mul(self.tensors, other.tensors)
        home = self.tensors[0].device
        return torch.stack([x.sum(dtype=dtype).to(home) for x in products]).sum()

    def normalized(self) -> Vector:
        """Divide by the Euclidean norm; the zero vector stays zero."""
        return self / nonzero(self.norm())

    def clone(self) -> Vector:
        """Copy the tensors."""
        return Vector([tensor.detach().clone() for tensor in self.tensors])

    def _on_devices(self, scalar: Tensor | float) -> Tensor | list[Tensor]:
        """Copy a scalar to the devices of the tensors."""
        if not isinstance(scalar, Tensor):
            return scalar  # type: ignore[return-value]  # the stubs want a number's own overload
        if all(tensor.device == scalar.device for tensor in self.tensors):
            return scalar
        return [scalar.to(tensor.device) for tensor in self.tensors]


class FixedVector(Vector):
    """A vector whose entries do not change while it is in use, so its norm is computed once."""

    __slots__ = ("_length",)

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__(tensors)
        self._length: Tensor | None = None

    def norm(self, order: float = 2.0) -> Tensor:
        """Return the norm as :meth:`Vector.norm` does."""
        if order != 2.0:
            return super().norm(order)
        if self._length is None:
            self._length = super().norm()
        return self._length


def nonzero(scalar: Tensor) -> Tensor:
    """Replace 0 by 1, for a denominator whose numerator is then 0 as well."""
    return torch.where(scalar == 0, torch.ones_like(scalar), scalar)


def _accumulation_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return torch.float64
    return torch.float32

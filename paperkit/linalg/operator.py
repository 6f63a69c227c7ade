r"""Symmetric operators: a matrix as products with vectors, which knows its own size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from paperkit import arguments

_WANTED = "a matrix (d, d), or an operator that knows its dimension"


@runtime_checkable
class SymmetricOperator(Protocol):
    """What the algorithms of this package ask of a symmetric matrix A.

    Attributes
    ----------
    dimension : int
        d.
    dtype : torch.dtype
        Floating format of the vectors.
    device : torch.device
        Device of the vectors.
    positive_semidefinite : bool
        Whether A is so by construction; False where nobody knows.
    round_off : float
        Relative round-off of a product, at least that of ``dtype``; larger for a model in double
        precision that computes parts in single.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import SymmetricOperator, as_operator
    >>> A = as_operator(torch.eye(2))
    >>> isinstance(A, SymmetricOperator), A.dimension, A.dtype, A.positive_semidefinite
    (True, 2, torch.float32, False)
    """

    @property
    def dimension(self) -> int: ...  # noqa: D102

    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    @property
    def positive_semidefinite(self) -> bool: ...  # noqa: D102

    @property
    def round_off(self) -> float: ...  # noqa: D102

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return the images of k vectors, rows (k, d)."""
        ...


class FunctionOperator:
    """A symmetric matrix given by a function that multiplies it with vectors.

    Parameters
    ----------
    function : callable
        Maps k vectors as rows, (k, d), to their k images, (k, d).
    dimension : int
        d, at least 1.
    dtype : torch.dtype
        Floating format of the vectors.
    device : torch.device
        Device of the vectors.
    positive_semidefinite : bool
        Whether the matrix is known to be so.
    round_off : float
        Relative round-off of a product; default and least, that of ``dtype``.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range.

    Examples
    --------
    The second difference on a line, without its matrix:

    >>> import torch
    >>> from paperkit.linalg import FunctionOperator, top_eigenpairs
    >>> def second_difference(v):
    ...     padded = torch.nn.functional.pad(v, (1, 1))
    ...     return 2 * v - padded[:, :-2] - padded[:, 2:]
    >>> A = FunctionOperator(second_difference, 3, positive_semidefinite=True)
    >>> round(float(top_eigenpairs(A, 1).eigenvalues), 6)  # 2 + √2
    3.414214
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        dimension: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        positive_semidefinite: bool = False,
        round_off: float = 0.0,
    ) -> None:
        wanted = "a function from (k, d) to (k, d), vectors as rows"
        arguments.function("function", function, wanted)
        self.function = function
        self.dimension = arguments.integer("dimension", dimension, at_least=1)
        self.dtype = arguments.dtype("dtype", dtype)
        self.device = arguments.device("device", device)
        self.positive_semidefinite = arguments.flag("positive_semidefinite", positive_semidefinite)
        round_off = arguments.number("round_off", round_off, at_least=0, below=1)
        self.round_off = max(torch.finfo(self.dtype).eps, round_off)

    @classmethod
    def like(
        cls,
        operator: SymmetricOperator,
        function: Callable[[Tensor], Tensor],
        *,
        positive_semidefinite: bool | None = None,
    ) -> FunctionOperator:
        """Return a function of the vectors of another operator, definite if that one is.

        Parameters
        ----------
        operator : SymmetricOperator
            Operator that gives dimension, dtype, device and round-off.
        function : callable
            Maps k vectors as rows, (k, d), to their k images, (k, d).
        positive_semidefinite : bool, optional
            Whether the new matrix is known to be so; default as the other one's.
        """
        if positive_semidefinite is None:
            positive_semidefinite = operator.positive_semidefinite
        return cls(
            function,
            operator.dimension,
            dtype=operator.dtype,
            device=operator.device,
            positive_semidefinite=positive_semidefinite,
            round_off=operator.round_off,
        )

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return the images of k vectors, rows (k, d)."""
        return self.function(vectors)

    def __repr__(self) -> str:
        definite = ", positive semidefinite" if self.positive_semidefinite else ""
        size = f"{self.dimension} × {self.dimension}, {self.dtype} on {self.device}"
        return f"FunctionOperator({size}{definite})"


def as_operator(
    operator: object, *, positive_semidefinite: bool = False, like: Tensor | None = None
) -> SymmetricOperator:
    """Return a symmetric matrix as an operator.

    Parameters
    ----------
    operator : Tensor, SymmetricOperator or callable
        A dense symmetric matrix (d, d); an operator, returned as it is; or a function of vectors
        (k, d), where ``like`` says what these are.
    positive_semidefinite : bool
        Whether a dense matrix or a function is known to be so; an operator says so itself.
    like : Tensor, optional
        Vectors (k, d) that the operator will be applied to.

    Raises
    ------
    TypeError
        If it is none of these.
    ValueError
        If the matrix is not square, not symmetric beyond round-off, or not finite.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import as_operator
    >>> A = as_operator(torch.diag(torch.tensor([1.0, 2.0])), positive_semidefinite=True)
    >>> A.dimension, A(torch.ones(1, 2))
    (2, tensor([[1., 2.]]))
    """
    positive_semidefinite = arguments.flag("positive_semidefinite", positive_semidefinite)
    if like is not None:
        arguments.tensor("like", like, shape=("k", "d"), floating=True)
    if isinstance(operator, Tensor):
        return _of_matrix(operator, positive_semidefinite)
    if isinstance(operator, SymmetricOperator):
        return operator
    if callable(operator) and like is not None:
        return FunctionOperator(
            operator,
            like.shape[1],
            dtype=like.dtype,
            device=like.device,
            positive_semidefinite=positive_semidefinite,
        )
    if callable(operator):
        raise TypeError(
            "operator is a function that does not know its size: pass "
            "FunctionOperator(function, dimension)."
        )
    raise TypeError(f"operator is {arguments.shown(operator)}: pass {_WANTED}.")


def _of_matrix(matrix: Tensor, positive_semidefinite: bool) -> FunctionOperator:
    arguments.tensor("operator", matrix, shape=("d", "d"), floating=True, dense=True)
    matrix = matrix.detach()
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"operator has shape {tuple(matrix.shape)}: pass a square matrix.")
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError("operator has NaN or infinite entries: check the matrix.")
    eps = torch.finfo(matrix.dtype).eps
    difference = float((matrix - matrix.T).abs().max())
    if difference > eps**0.5 * float(matrix.abs().max()):
        raise ValueError("operator is not symmetric: pass (A + A.T) / 2, or a symmetric matrix.")
    return FunctionOperator(
        lambda vectors: vectors @ matrix,
        len(matrix),
        dtype=matrix.dtype,
        device=matrix.device,
        positive_semidefinite=positive_semidefinite,
    )


def apply(operator: SymmetricOperator, vectors: Tensor) -> Tensor:
    """Return the images of (k, d) vectors, checked.

    Parameters
    ----------
    operator : SymmetricOperator
        Maps (k, d) to (k, d); it is not called for k = 0.
    vectors : Tensor
        Shape (k, d).

    Returns
    -------
    Tensor
        Shape (k, d).

    Raises
    ------
    ValueError
        If the images have another shape, or NaN or infinite entries.
    """
    if len(vectors) == 0:
        return vectors
    images = operator(vectors)
    if not isinstance(images, Tensor) or images.shape != vectors.shape:
        raise ValueError(
            f"operator maps shape {tuple(vectors.shape)} to {arguments.shown(images)}: it must "
            "take and return vectors as rows."
        )
    # The norm is one pass over the numbers; it overflows before they do.
    if not math.isfinite(float(images.norm())) and not bool(torch.isfinite(images).all()):
        raise ValueError("operator returned NaN or infinite entries: check the model.")
    return images

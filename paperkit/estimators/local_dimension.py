r"""The local dimension of a network's representation: how evenly its singular values spread.

Source: compression paper, Section 3. The value is exact on the given samples, so it carries no
standard error.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paperkit.estimators.passes import PassMeasure, Problem, run_alone
from paperkit.estimators.result import Measurement
from paperkit.estimators.singular_values import gram_matrix, in_chunks
from paperkit.memory import GIBIBYTE
from paperkit.network.problem import measure_of


def local_dimensions(jacobian: Tensor) -> Tensor:
    r"""Return the participation ratio of each sample.

    .. math:: D_{PR} = \frac{(\operatorname{Tr} K)^2}{\operatorname{Tr}(K^2)}
        = \frac{(\sum_j \sigma_j^2)^2}{\sum_j \sigma_j^4}, \qquad K = J_x J_x^\top

    Between 1 and the rank; it does not change when f is scaled. Source: compression paper,
    equations 14 and 15.

    Parameters
    ----------
    jacobian : Tensor
        Shape (n, C, …).

    Returns
    -------
    Tensor
        Shape (n,), float64; NaN where the Jacobian is zero.

    Examples
    --------
    >>> import torch
    >>> from paperkit.estimators import local_dimensions
    >>> jacobian = torch.stack([torch.eye(2), torch.diag(torch.tensor([1.0, 0.0]))])
    >>> local_dimensions(jacobian).round(decimals=4)
    tensor([2., 1.], dtype=torch.float64)
    """

    def ratio(rows: Tensor) -> Tensor:
        gram = gram_matrix(rows)
        trace = gram.diagonal(dim1=1, dim2=2).sum(dim=1)
        return (trace / torch.linalg.matrix_norm(gram)).square()

    return in_chunks(ratio, jacobian)


@measure_of
def local_dimension(
    model: nn.Module, data: object, *, memory_budget: int = GIBIBYTE
) -> Measurement:
    """Return the mean participation ratio; see :func:`local_dimensions`.

    Source: compression paper, equation 15. Its public code plots the logarithm of this mean.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them; the targets are not used.
    memory_budget : int
        Bytes above the model and its data.

    Returns
    -------
    Measurement
        The mean over the samples whose Jacobian is not zero; the assumption ``undefined`` counts
        the others. NaN where there is no sample left.

    Raises
    ------
    ValueError
        If the data do not fit the model.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import local_dimension
    >>> model = nn.Linear(3, 3)
    >>> data = torch.eye(3), torch.zeros(3, 3)
    >>> for stretch in ((1.0, 1.0, 1.0), (1.0, 1.0, 0.0), (10.0, 1.0, 0.0)):
    ...     model.weight.data = torch.diag(torch.tensor(stretch))
    ...     print(round(float(local_dimension(model, data)), 2))
    3.0
    2.0
    1.02
    """
    problem = Problem.of(model, data, memory_budget=memory_budget)
    return run_alone(LOCAL_DIMENSION, problem)


def _mean(parts: list[Tensor], _: Problem) -> Measurement:
    """Average each sample's dimension, which may be NaN."""
    values = torch.cat(parts)
    defined = values[~values.isnan()]
    return Measurement(
        value=float(defined.mean()),
        measure="local_dimension",
        method="exact",
        n=len(values),
        assumptions={"undefined": len(values) - len(defined)},
    )


LOCAL_DIMENSION = PassMeasure(
    "local_dimension",
    _mean,
    lambda chunk: local_dimensions(chunk.input_jacobian),
    needs=("network_input",),
)

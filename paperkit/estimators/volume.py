r"""The local volume of a network's representation, at its input and at the inputs of its layers.

The local volume is the product of all C singular values of the Jacobian of the outputs in an
input. Source: compression paper, Section 3 and Appendix E. Values are exact on the given samples,
so they carry no standard error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.estimators.layer_inputs import at_layer_inputs, over_layers, problem_over_layers
from paperkit.estimators.passes import PassMeasure, Problem, run_alone
from paperkit.estimators.result import Measurement
from paperkit.estimators.singular_values import (
    check_jacobian,
    gram_matrix,
    in_chunks,
    singular_values,
)
from paperkit.linalg.row_space import default_tolerance
from paperkit.memory import GIBIBYTE
from paperkit.network.problem import measure_of

AVERAGES = ("volume", "log")


def log_volumes(jacobian: Tensor, k: int | None = None) -> Tensor:
    r"""Return the logarithm of the local volume of each sample.

    .. math:: \log d\mathrm{Vol}(x) = \tfrac12 \log\det J_x J_x^\top
        = \sum_{j=1}^{C} \log \sigma_j(J_x)

    It is the ratio of the volumes of the image of the unit M-ball and of the unit C-ball, not of
    cubes. Equation 7 of the compression paper prints :math:`\nabla f^\top \nabla f`, which is this
    C × C matrix if its Jacobian is inputs × outputs, as in equation 13; equations 4 and 14 have
    outputs × inputs, as we do. All C singular values enter: the product of the nonzero ones alone,
    which the paper names, violates its Lemma 3.2.

    Parameters
    ----------
    jacobian : Tensor
        Shape (n, C, …).
    k : int, optional
        Take only the k largest singular values; default all C.

    Returns
    -------
    Tensor
        Shape (n,), float64, natural logarithm; −inf where fewer than k singular values exceed
        100 √min(C, M) units of round-off (of the Jacobian's own dtype) of the largest, which is
        what the backward pass of a deep network can leave of a singular value of zero.

    Raises
    ------
    ValueError
        If k is not in 1..C.

    Examples
    --------
    >>> import torch
    >>> from paperkit.estimators import log_volumes
    >>> jacobian = torch.stack([torch.eye(2), torch.diag(torch.tensor([3.0, 0.5]))])
    >>> log_volumes(jacobian).exp().round(decimals=4)
    tensor([1.0000, 1.5000], dtype=torch.float64)
    """
    check_jacobian(jacobian)
    num_outputs, num_inputs = jacobian.shape[1], jacobian[0, 0].numel()
    kept = num_outputs
    if k is not None:
        reason = f"there are {num_outputs} outputs"
        kept = arguments.integer("k", k, at_least=1, at_most=num_outputs, because=reason)
    values = _values_in_volume(jacobian)
    if kept > num_inputs:
        return torch.full_like(values[:, 0], -math.inf)
    round_off = default_tolerance(num_outputs, num_inputs, jacobian.dtype)
    positive = values[:, :kept] > round_off * values[:, :1]
    return torch.where(positive, values[:, :kept].log(), -math.inf).sum(dim=1)


def _values_in_volume(jacobian: Tensor) -> Tensor:
    r"""Return all singular values, descending, to the accuracy of the Jacobian's own format.

    Round-off in single precision moves each by up to :math:`\varepsilon_{32} \sigma_1`. The Gram
    matrix in double precision moves it by :math:`C \varepsilon_{64} \sigma_1^2 / 2\sigma_j`, which
    is less for all that exceed :math:`10^{-8} \sigma_1`, and those that do not count as zero.
    """
    if jacobian.dtype == torch.float64:
        return singular_values(jacobian)
    return in_chunks(
        lambda rows: torch.linalg.eigvalsh(gram_matrix(rows)).flip(1).clamp(min=0.0).sqrt(),
        jacobian,
    )


@measure_of
def log_volume(
    model: nn.Module,
    data: object,
    *,
    k: int | None = None,
    average: str = "volume",
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    r"""Return the logarithm of the mean local volume; see :func:`log_volumes`.

    Source: compression paper, Definitions 3.1 and 3.3, corrected. Its public code plots the three
    largest singular values only, ``k=3, average="log"``.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them; the targets are not used.
    k : int, optional
        Take only the k largest singular values; default all C.
    average : str
        ``"volume"``, the logarithm of the samples' mean volume, or ``"log"``, the mean of their
        logarithms.
    memory_budget : int
        Bytes above the model and its data.

    Returns
    -------
    Measurement
        −inf where no sample (``"volume"``) or not every sample (``"log"``) has a volume; the
        assumption ``rank_deficient`` counts the samples without.

    Raises
    ------
    ValueError
        If k or the average is out of range, or the data do not fit the model.

    Examples
    --------
    >>> import math
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import log_volume
    >>> model = nn.Linear(2, 2)
    >>> model.weight.data = torch.diag(torch.tensor([3.0, 0.5]))
    >>> volume = log_volume(model, (torch.eye(2), torch.zeros(2, 2)))
    >>> round(math.exp(float(volume)), 4)  # a unit square becomes 3 × ½
    1.5
    """
    average = arguments.choice("average", average, AVERAGES)
    return run_alone(_log_volume(k, average), Problem.of(model, data, memory_budget=memory_budget))


@measure_of
def network_log_volume(
    model: nn.Module,
    data: object,
    layers: Sequence[str] | None = None,
    *,
    k: int | None = None,
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    """Return the logarithm of the sum over layers of the mean local volume.

    Source: compression paper, Definition 3.5. A layer with fewer inputs than outputs of the
    network adds nothing.

    Parameters
    ----------
    model, data, memory_budget
        As in :func:`log_volume`.
    layers : sequence of str, optional
        Module names; default every linear and convolution layer that can be linearized by itself.
    k : int, optional
        As in :func:`log_volumes`.

    Returns
    -------
    Measurement
        The assumption ``layers`` holds the logarithm of each layer's mean volume.

    Raises
    ------
    ValueError
        If k is out of range, or as :func:`network_maximum_local_sensitivity`.

    Examples
    --------
    >>> import math
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import network_log_volume
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    >>> _ = nn.init.eye_(model[0].weight)
    >>> model[1].weight.data = torch.diag(torch.tensor([3.0, 0.5]))
    >>> volume = network_log_volume(model, (torch.eye(2), torch.zeros(2, 2)))
    >>> round(math.exp(float(volume)), 4)  # 3 × ½ from the input of either layer
    3.0
    """
    problem = problem_over_layers(layers, model, data, memory_budget)
    return run_alone(_network_log_volume(k), problem)


def _mean_volume(values: Tensor, k: int | None, average: str) -> Measurement:
    """Return the log volume from each sample's (n,)."""
    return Measurement(
        value=_log_mean(values) if average == "volume" else float(values.mean()),
        measure="log_volume",
        method="exact",
        n=len(values),
        assumptions={
            "k": k,
            "average": average,
            "rank_deficient": int(torch.isneginf(values).sum()),
        },
    )


def _volume_over_layers(by_layer: dict[str, Tensor], k: int | None) -> Measurement:
    """Return the network's log volume from each layer's and sample's (n,)."""
    layers = {name: _log_mean(values) for name, values in by_layer.items()}
    values = torch.stack(list(by_layer.values()))
    return Measurement(
        value=_log_mean(values.logsumexp(dim=0)),
        measure="network_log_volume",
        method="exact",
        n=values.shape[1],
        assumptions={"k": k, "layers": layers},
    )


def _log_mean(logarithms: Tensor) -> float:
    return float(torch.logsumexp(logarithms, 0)) - math.log(len(logarithms))


# --- The measures of the pass


def _layer_log_volumes(jacobians: list[Tensor], k: int | None) -> Tensor:
    """Add up the volumes of a layer's calls: the logarithm for each sample, (n,)."""
    return torch.stack([log_volumes(jacobian, k) for jacobian in jacobians]).logsumexp(dim=0)


def _log_volume(k: int | None = None, average: str = "volume") -> PassMeasure:
    return PassMeasure(
        "log_volume",
        lambda parts, _: _mean_volume(torch.cat(parts), k, average),
        lambda chunk: log_volumes(chunk.input_jacobian, k),
        needs=("network_input",),
    )


def _network_log_volume(k: int | None = None) -> PassMeasure:
    return PassMeasure(
        "network_log_volume",
        partial(over_layers, partial(_volume_over_layers, k=k)),
        lambda chunk: at_layer_inputs(chunk, partial(_layer_log_volumes, k=k)),
        needs=("layer_inputs",),
    )


LOG_VOLUME = _log_volume()
NETWORK_LOG_VOLUME = _network_log_volume()

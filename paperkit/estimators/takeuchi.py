"""Takeuchi's information criterion, an estimate of the generalization gap."""

from __future__ import annotations

import torch
from torch import nn

from paperkit import arguments
from paperkit.curvature import dense_empirical_fisher, dense_hessian
from paperkit.estimators.information_geometry import information_geometric_sharpness
from paperkit.estimators.result import Measurement
from paperkit.estimators.tolerances import (
    claimed_precision,
    computed_in,
    if_sensitive,
    moves,
    tolerances_around,
)
from paperkit.linalg.symmetric import eigenpairs_of
from paperkit.memory import GIBIBYTE
from paperkit.network.batches import as_batch
from paperkit.network.losses import LossLike
from paperkit.network.problem import measure_of

CURVATURES = ("fisher", "hessian")


@measure_of
def takeuchi_information_criterion(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    *,
    curvature: str = "fisher",
    tolerance: float | None = None,
    max_dense: int = 2048,
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    r"""Estimate the generalization gap by :math:`\frac1n \operatorname{Tr}(H^{-1} \widehat F)`.

    :math:`\widehat F`, the paper's C, is the uncentred second moment of the samples' gradients.
    Source: equation 9 of the information-geometric paper (Takeuchi 1976), on the empirical
    distribution; in the limit that it states, the gap lacks a factor n. It presumes n well above
    the number of parameters and an interior optimum.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them; all n samples count equally.
    loss : str, nn.Module or callable
        See :func:`paperkit.network.get_loss`.
    curvature : str
        ``"fisher"`` puts the Fisher matrix for H, which makes the criterion IGS/n;
        ``"hessian"`` takes the loss Hessian itself, written out.
    tolerance : float, optional
        Relative; eigenvalues of H (singular values of G for ``"fisher"``) up to it are left out.
        Default d times the round-off of the dtype for ``"hessian"``.
    max_dense : int
        The largest number of parameters whose Hessian is written out.
    memory_budget : int
        Bytes above the model and its data.

    Returns
    -------
    Measurement
        ``assumptions`` holds the ``rank`` of the curvature; for ``"hessian"`` also how many of its
        eigenvalues are negative, where the criterion has no justification, and which share of
        the trace of :math:`\widehat F` lies outside its range and is left out.

    Raises
    ------
    ValueError
        If the curvature is unknown, the model too large, or the data do not fit.

    Examples
    --------
    >>> import math
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import takeuchi_information_criterion
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ZeroPad1d((0, 1))).double()
    >>> _ = nn.init.constant_(model[0].weight, math.log(3.0))  # p₀ = 3/4, as in the data
    >>> data = torch.ones(4, 1).double(), torch.tensor([0, 0, 0, 1])
    >>> round(float(takeuchi_information_criterion(model, data, curvature="hessian")), 4)  # d/n
    0.25
    """
    curvature = arguments.choice("curvature", curvature, CURVATURES)
    if curvature == "fisher":
        sharpness = information_geometric_sharpness(
            model, data, loss, tolerance=tolerance, memory_budget=memory_budget
        )
        return Measurement(
            value=sharpness.criterion,
            measure="takeuchi_information_criterion",
            method=sharpness.method,
            n=sharpness.n,
            loss=loss,
            converged=sharpness.converged,
            assumptions={
                "curvature": curvature,
                "rank": sharpness.rank,
                **if_sensitive(
                    sharpness.converged,
                    {key: one / sharpness.n for key, one in sharpness.by_tolerance.items()},
                ),
            },
        )
    dimension = sum(parameter.numel() for parameter in model.parameters())
    if dimension > max_dense:
        raise ValueError(
            f"model has {dimension} parameters, too many to write out their Hessian: use "
            f"curvature='fisher', or raise max_dense={max_dense}."
        )
    inputs, targets = as_batch(data)
    hessian = dense_hessian(model, inputs, targets, loss)
    moment = dense_empirical_fisher(model, inputs, targets, loss).to(torch.float64)
    dtype = computed_in(hessian, model)
    if tolerance is None:
        tolerance = dimension * torch.finfo(dtype).eps
    eigenvalues, vectors = eigenpairs_of(hessian.to(torch.float64))
    sizes = eigenvalues.abs() / eigenvalues.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    spread = torch.einsum("ij,ik,kj->j", vectors, moment, vectors)
    trace = float(spread.sum())
    by_tolerance = {
        at: float((spread / eigenvalues)[sizes > at].sum()) / len(inputs)
        for at in tolerances_around(tolerance, dtype)
    }
    kept, value = sizes > tolerance, by_tolerance[tolerance]
    steady = not moves(value, by_tolerance, claimed_precision(dtype))
    return Measurement(
        value=value,
        measure="takeuchi_information_criterion",
        method="dense",
        n=len(inputs),
        loss=loss,
        converged=steady,
        assumptions={
            "curvature": curvature,
            "rank": int(kept.sum()),
            "negative_eigenvalues": int((eigenvalues[kept] < 0).sum()),
            "outside_range": float(spread[~kept].sum()) / trace if trace > 0 else 0.0,
            **if_sensitive(steady, by_tolerance),
        },
    )

"""Equations 10 and 11: margins."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.bounds.information_geometry.geometry import (
    PAPER,
    ROUND_OFF,
    VERSIONS,
    FisherGeometry,
    check_sample,
    fisher_geometry,
)
from paperkit.bounds.statement import Identity, Inequality, Statement
from paperkit.estimators.baselines import sample_losses


@dataclass(frozen=True)
class _Crossing:
    """A linear model of the shift ε at which a sample meets the boundary: value + slope·ε = 0."""

    value: float
    slope: Tensor


def _crossing(
    geometry: FisherGeometry, sample: int, version: str, competitor: int | None
) -> _Crossing:
    num_outputs = geometry.outputs.shape[1]
    label = int(geometry.targets[sample])
    if version == "printed":
        if num_outputs != 2:
            raise ValueError("version='printed' is for two classes: use version='exact'.")
        loss = float(sample_losses(geometry.outputs, geometry.targets)[sample])
        return _Crossing(loss - math.log(2.0), geometry.gradients[sample])
    if competitor is None:
        competitor = 1 - label if num_outputs == 2 else -1
    if competitor == label or competitor not in range(num_outputs):
        raise ValueError(f"competitor={competitor} must be a class other than {label}.")
    logits, jacobian = geometry.outputs[sample], geometry.jacobian[sample]
    return _Crossing(
        float(logits[label] - logits[competitor]), jacobian[label] - jacobian[competitor]
    )


def margin_length_identity(
    model: nn.Module, data: object, sample: int, index: int, version: str = "printed"
) -> Identity:
    """Equation 10: the squared Fisher length of the shift along eigenvector k that meets x_i.

    Parameters
    ----------
    model : nn.Module
        Small network with two classes, called as ``model(inputs)`` and returning (n, 2).
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them.
    sample, index : int
        Indices i of the sample and k of the eigenvector, eigenvalues in falling order.
    version : str
        ``"printed"`` finds the shift from the loss made linear, as the paper does. The loss is
        convex in the margin, so its tangent lies below it. In a model linear in its parameters the
        shift of a correctly classified sample then overshoots the boundary, by a factor that grows
        exponentially with the confidence (258 at a logit of 8), and the shift of a misclassified
        sample falls short. ``"exact"`` makes the difference of the logits linear, which is exact
        for such a model.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import margin_length_identity
    >>> model = nn.Linear(1, 2, bias=False).double()
    >>> model.weight.data = torch.tensor([[4.0], [-4.0]]).double()  # a logit difference of 8
    >>> data = torch.ones(1, 1).double(), torch.tensor([0])
    >>> printed = margin_length_identity(model, data, sample=0, index=0)
    >>> exact = margin_length_identity(model, data, sample=0, index=0, version="exact")
    >>> round((printed.left / exact.left) ** 0.5)  # the printed shift overshoots
    258
    """
    sample, index = check_sample(data, sample), arguments.integer("index", index, at_least=0)
    version = arguments.choice("version", version, VERSIONS)
    geometry = fisher_geometry(model, data)
    crossing = _crossing(geometry, sample, version, None)
    eigenvalues, directions = geometry.eigenpairs()
    index = arguments.integer("index", index, at_least=0, at_most=len(eigenvalues) - 1)
    epsilon = -crossing.value / (crossing.slope @ directions[:, index])
    shift = epsilon * directions[:, index]
    return Identity(
        statement="(εΔ_k)ᵀ F (εΔ_k) = λ_k ε²",
        source=f"{PAPER}, equation 10 ({version})",
        left=float((geometry.rows @ shift).square().sum() / geometry.num_samples),
        right=float(eigenvalues[index] * epsilon.square()),
        assumptions={"shift reaches the boundary": version == "exact" or None},
    )


def margin_identity(
    model: nn.Module,
    data: object,
    sample: int,
    version: str = "printed",
    competitor: int | None = None,
) -> Identity:
    """Equation 11, and Appendix E (ours) for several classes: Σ_k 1/(ε²λ_k) as a norm under F⁺.

    Parameters
    ----------
    model, data, sample, version
        As in :func:`margin_length_identity`; any number of classes for ``"exact"``.
    competitor : int, optional
        Other class of the boundary; needed for more than two classes.

    Returns
    -------
    Identity
        Statement whose right side is gᵀF⁺g/(log 2 − ℓ)² as printed, and ∂mᵀF⁺∂m/m² with the margin
        m = f_y − f_j as corrected. The denominator matters: a smaller sharpness alone is no larger
        margin.

    Raises
    ------
    ValueError
        If the version is unknown, or the competitor missing or the label itself.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import margin_identity
    >>> model = nn.Linear(2, 2, bias=False).double()
    >>> _ = nn.init.eye_(model.weight)
    >>> data = torch.eye(2).double(), torch.tensor([0, 1])
    >>> margin_identity(model, data, sample=0, version="exact").holds
    True
    >>> margin_identity(model, data, sample=0)
    Identity(information-geometric paper, equation 11 (printed): Σ_k 1/(ε_k² λ_k) = ‖slope‖² under
        F⁺, over the squared distance: 5.09836 = 5.09836, certified)
    """
    sample = check_sample(data, sample)
    version = arguments.choice("version", version, VERSIONS)
    if competitor is not None:
        competitor = arguments.integer("competitor", competitor, at_least=0)
    geometry = fisher_geometry(model, data)
    crossing = _crossing(geometry, sample, version, competitor)
    eigenvalues, directions = geometry.eigenpairs()
    epsilon = -crossing.value / (directions.T @ crossing.slope)
    inverse_norm = geometry.inverse_norms(crossing.slope.unsqueeze(0))
    return Identity(
        statement="Σ_k 1/(ε_k² λ_k) = ‖slope‖² under F⁺, over the squared distance",
        source=f"{PAPER}, equation 11 ({version})",
        left=float((1.0 / (epsilon.square() * eigenvalues)).sum()),
        right=float(inverse_norm / crossing.value**2),
        tolerance=ROUND_OFF,
    )


def margin_loss_bound(model: nn.Module, data: object, sample: int, competitor: int) -> Statement:
    """In full rank the exact margin depends on the outputs alone: ≤ n(1/p_y + 1/p_j)/m² (ours).

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import margin_loss_bound
    >>> model = nn.Linear(1, 2, bias=False).double()
    >>> model.weight.data = torch.tensor([[1.0], [0.0]]).double()
    >>> data = torch.ones(1, 1).double(), torch.tensor([0])
    >>> margin_loss_bound(model, data, sample=0, competitor=1)
    Identity(information-geometric paper, Appendix E (ours): ∂mᵀF⁺∂m/m² = n (1/p_y + 1/p_j)/m²:
        5.08616 = 5.08616, certified)
    """
    sample = check_sample(data, sample)
    competitor = arguments.integer("competitor", competitor, at_least=0)
    geometry = fisher_geometry(model, data)
    crossing = _crossing(geometry, sample, "exact", competitor)
    p = torch.softmax(geometry.outputs[sample], dim=0)
    label = int(geometry.targets[sample])
    full_rank = len(geometry.eigenpairs()[0]) == geometry.dual.num_rows
    norm = geometry.inverse_norms(crossing.slope.unsqueeze(0))
    odds = float(1.0 / p[label] + 1.0 / p[competitor])
    kind, relation = (Identity, "=") if full_rank else (Inequality, "≤")
    return kind(
        statement=f"∂mᵀF⁺∂m/m² {relation} n (1/p_y + 1/p_j)/m²",
        source=f"{PAPER}, Appendix E (ours)",
        left=float(norm) / crossing.value**2,
        right=geometry.num_samples * odds / crossing.value**2,
        tolerance=ROUND_OFF,
    )

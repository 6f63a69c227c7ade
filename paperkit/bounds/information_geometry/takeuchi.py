"""Equations 8 and 9: the generalization gap."""

from __future__ import annotations

import torch
from torch import nn

from paperkit.bounds.information_geometry.geometry import PAPER, STATIONARY, fisher_geometry
from paperkit.bounds.statement import Approximation
from paperkit.curvature import dense_hessian
from paperkit.estimators.baselines import generalization_gap
from paperkit.estimators.takeuchi import takeuchi_information_criterion
from paperkit.network.batches import as_batch


def takeuchi_prediction(
    model: nn.Module, train: object, test: object, curvature: str = "hessian"
) -> Approximation:
    """Equations 8 and 9: test minus training loss ≈ Tr(H⁻¹C)/n, in expectation over training sets.

    One training set gives one draw of the left side. The paper writes the limit of the gap where
    it means that of n times the gap.
    """
    inputs, targets = as_batch(train)
    gap = float(generalization_gap(model, train, test))
    criterion = takeuchi_information_criterion(model, train, curvature=curvature)
    hessian = dense_hessian(model, inputs, targets)
    geometry = fisher_geometry(model, train)
    gradients = geometry.gradients
    eigenvalues = torch.linalg.eigvalsh(hessian)
    return Approximation(
        statement="test loss − training loss ≈ Tr(H⁻¹C)/n, in expectation, up to o(1/n)",
        source=f"{PAPER}, equations 8 and 9",
        left=gap,
        right=float(criterion),
        assumptions={
            "stationary point": bool(
                gradients.mean(dim=0).norm() <= STATIONARY * gradients.norm(dim=1).mean()
            ),
            "positive definite Hessian": bool(eigenvalues[0] > 0),
            "many samples": None,
        },
    )

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
    """Equations 8 and 9: test minus training loss ≈ Tr(H⁻¹F̂)/n, in expectation over training sets.

    A training set gives a single draw of the left side. The paper writes the limit of the gap where
    it means that of n times the gap.

    Examples
    --------
    >>> import math
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import takeuchi_prediction
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ZeroPad1d((0, 1))).double()
    >>> _ = nn.init.constant_(model[0].weight, math.log(3.0))  # p₀ = 3/4, as in the training set
    >>> train = torch.ones(4, 1).double(), torch.tensor([0, 0, 0, 1])
    >>> test = torch.ones(2, 1).double(), torch.tensor([0, 1])
    >>> takeuchi_prediction(model, train, test)  # one parameter, four samples: 1/4
    Approximation(information-geometric paper, equations 8 and 9: test loss − training loss ≈
        Tr(H⁻¹F̂)/n, in expectation, up to o(1/n): 0.274653 ≈ 0.25, not certified: many
        samples=unchecked)
    """
    inputs, targets = as_batch(train)
    gap = float(generalization_gap(model, train, test))
    criterion = takeuchi_information_criterion(model, train, curvature=curvature)
    hessian = dense_hessian(model, inputs, targets)
    geometry = fisher_geometry(model, train)
    gradients = geometry.gradients
    eigenvalues = torch.linalg.eigvalsh(hessian)
    return Approximation(
        statement="test loss − training loss ≈ Tr(H⁻¹F̂)/n, in expectation, up to o(1/n)",
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

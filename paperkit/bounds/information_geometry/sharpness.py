"""Equations 6 and 7: the sharpness, and what leaves it unchanged."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.bounds.information_geometry.geometry import (
    PAPER,
    ROUND_OFF,
    FisherGeometry,
    agree,
    check_sample,
    fisher_geometry,
    flat_parameters,
    random_direction,
    rank_tolerance,
)
from paperkit.bounds.statement import Identity, Inequality, Statement
from paperkit.curvature import dense_empirical_fisher, dense_gauss_newton
from paperkit.estimators.information_geometry import information_geometric_sharpness_from_jacobian
from paperkit.network import get_loss
from paperkit.network.batches import as_batch


def span_identity(
    model: nn.Module, data: object, sample: int, loss: str = "cross_entropy"
) -> Identity:
    """Appendix B (ours): g_i = (R_i J_i)ᵀ u_i, so a gradient lies in the Fisher matrix's range.

    The statement is about the gradient of the loss alone; u_i are its dual coordinates. The
    gradient of a weight penalty does not lie there, and that of other data need not.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import span_identity
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    >>> data = torch.eye(2).double(), torch.tensor([0, 2])
    >>> span_identity(model, data, sample=0).holds, span_identity(model, data, sample=1).holds
    (True, True)
    """
    sample = check_sample(data, sample)
    geometry = fisher_geometry(model, data, loss)
    v = random_direction(geometry.jacobian, geometry.jacobian.shape[2], sample)
    dual = geometry.dual
    rows = dual.factor[sample] @ geometry.jacobian[sample]
    return Identity(
        statement="g_iᵀ v = u_iᵀ R_i J_i v",
        source=f"{PAPER}, Appendix B (ours)",
        left=float(geometry.gradients[sample] @ v),
        right=float(dual.dual_vectors[sample] @ (rows @ v)),
    )


def sharpness_dual_identity(
    model: nn.Module, data: object, loss: str = "cross_entropy"
) -> Identity:
    """Equation 6 in two ways: Tr(F⁺F̂) from d × d matrices, and the projection in the dual.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import sharpness_dual_identity
    >>> model = nn.Linear(1, 3, bias=False).double()
    >>> _ = nn.init.zeros_(model.weight)
    >>> data = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([0, 1])
    >>> sharpness_dual_identity(model, data)  # one direction of x for two samples
    Identity(information-geometric paper, equation 6: Tr(F⁺F̂) = Σ u_iᵀ Π_ii u_i: 2 = 2, certified)
    """
    loss = get_loss(loss).name
    inputs, targets = as_batch(data)
    fisher = dense_gauss_newton(model, inputs, loss)
    moment = dense_empirical_fisher(model, inputs, targets, loss).double()
    geometry = fisher_geometry(model, data, loss)
    sharpness = information_geometric_sharpness_from_jacobian(
        geometry.jacobian, geometry.outputs, geometry.targets, loss
    )
    # The entries' format decides: their round-off is in the smallest eigenvalues.
    tolerance = rank_tolerance(fisher)
    inverse = torch.linalg.pinv(fisher.double(), rtol=tolerance, hermitian=True)
    return Identity(
        statement="Tr(F⁺F̂) = Σ u_iᵀ Π_ii u_i",
        source=f"{PAPER}, equation 6",
        left=float((inverse * moment).sum()),
        right=float(sharpness),
        tolerance=ROUND_OFF,
    )


def sharpness_loss_bound(model: nn.Module, data: object, loss: str = "cross_entropy") -> Statement:
    """IGS ≤ Σ (e^ℓ − 1), or 2 Σ ℓ for a squared error, with equality in full row rank (ours).

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import sharpness_loss_bound
    >>> model = nn.Linear(2, 3, bias=False).double()
    >>> _ = nn.init.zeros_(model.weight)
    >>> labels = torch.tensor([0, 1])
    >>> sharpness_loss_bound(model, (torch.eye(2).double(), labels))  # full rank: two losses log 3
    Identity(information-geometric paper, on equation 6 (ours); Appendix F for squared errors: IGS =
        Σ (e^ℓ_i − 1): 4 = 4, certified)
    >>> sharpness_loss_bound(model, (torch.ones(2, 2).double(), labels))
    Inequality(information-geometric paper, on equation 6 (ours); Appendix F for squared errors: IGS
        ≤ Σ (e^ℓ_i − 1): 2 ≤ 4, certified)
    """
    geometry = fisher_geometry(model, data, loss)
    sharpness = information_geometric_sharpness_from_jacobian(
        geometry.jacobian, geometry.outputs, geometry.targets, loss
    )
    kind, relation = (Identity, "=") if sharpness.full_rank else (Inequality, "≤")
    return kind(
        statement=f"IGS {relation} Σ (e^ℓ_i − 1)"
        if loss == "cross_entropy"
        else f"IGS {relation} 2 Σ ℓ_i",
        source=f"{PAPER}, on equation 6 (ours); Appendix F for squared errors",
        left=float(sharpness),
        right=sharpness.upper_bound,
    )


def expected_sharpness_identity(model: nn.Module, data: object) -> Identity:
    """The mean of IGS over labels drawn from the model itself is the rank of F (ours).

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import expected_sharpness_identity
    >>> model = nn.Linear(2, 3, bias=False).double()
    >>> data = torch.eye(2).double(), torch.tensor([0, 1])
    >>> expected_sharpness_identity(model, data)  # n(C − 1) = 4
    Identity(information-geometric paper, on equation 6 (ours): E_y[IGS] = rank F for labels from
        the model: 4 = 4, certified)
    """
    geometry = fisher_geometry(model, data)
    p = torch.softmax(geometry.outputs, dim=1)
    total = 0.0
    for label in range(p.shape[1]):
        targets = torch.full_like(geometry.targets, label)
        relabelled = FisherGeometry(geometry.outputs, targets, geometry.jacobian, geometry.loss)
        total += float((p[:, label] * relabelled.gradient_gram().diagonal()).mean())
    return Identity(
        statement="E_y[IGS] = rank F for labels from the model",
        source=f"{PAPER}, on equation 6 (ours)",
        left=total,
        right=len(geometry.eigenpairs()[0]),
        tolerance=ROUND_OFF,
    )


def minibatch_identity(
    model: nn.Module, data: object, batch_size: int, *, replacement: bool = False
) -> Identity:
    """Equation 7 and Appendix C (ours): IGS_b over all mini-batches, against its closed form.

    The left side enumerates the batches, n to the power b of them with replacement, so this serves
    a handful of samples only.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import minibatch_identity
    >>> model = nn.Linear(3, 2, bias=False).double()
    >>> _ = nn.init.zeros_(model.weight)
    >>> data = torch.eye(3).double(), torch.tensor([0, 0, 1])
    >>> for size in (1, 2, 3):
    ...     identity = minibatch_identity(model, data, batch_size=size)
    ...     print(size, round(identity.left, 4), identity.holds)
    1 3.0 True
    2 1.5 True
    3 1.0 True
    """
    n = len(as_batch(data)[1])
    batch_size = arguments.integer("batch_size", batch_size, at_least=1, at_most=n)
    replacement = arguments.flag("replacement", replacement)
    geometry = fisher_geometry(model, data)
    gram = geometry.gradient_gram()
    n = geometry.num_samples
    members = (
        torch.cartesian_prod(*[torch.arange(n, device=gram.device)] * batch_size).view(
            -1, batch_size
        )
        if replacement
        else torch.tensor(list(combinations(range(n), batch_size)), device=gram.device)
    )
    means = [float(gram[batch][:, batch].mean()) for batch in members]
    closed = information_geometric_sharpness_from_jacobian(
        geometry.jacobian,
        geometry.outputs,
        geometry.targets,
        batch_size=batch_size,
        replacement=replacement,
    )
    return Identity(
        statement="E_B[g_Bᵀ F⁺ g_B] = c IGS + (1−c) ḡᵀ F⁺ ḡ",
        source=f"{PAPER}, equation 7 and Appendix C (ours)",
        left=sum(means) / len(means),
        right=float(closed),
        tolerance=ROUND_OFF,
    )


def coordinate_invariance(
    model: nn.Module,
    data: object,
    inverse: Callable[[Tensor], Tensor],
    eta: Tensor,
    *,
    batch_size: int | None = None,
    damping: float = 0.0,
) -> Identity:
    """Section 3: IGS is the same in other coordinates, f̃(x; η) = f(x; ψ(η)).

    The identity holds because each gradient lies in the range of F, not because F⁺ transforms like
    a tensor; for a singular F it does not.

    Parameters
    ----------
    model : nn.Module
        Small network, called as ``model(inputs)`` and returning (n, C).
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them.
    inverse : callable
        Function ψ from the other coordinates η to θ, both flat.
    eta : Tensor
        Point η with ψ(η) = θ, the model's parameters.
    batch_size : int, optional
        Size b of the mini-batches of the mini-batch measure.
    damping : float
        Damping, positive for the damped measure, which is not invariant.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import coordinate_invariance, flat_parameters
    >>> model = nn.Linear(1, 3, bias=False).double()
    >>> _ = nn.init.ones_(model.weight)
    >>> data = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([0, 1])
    >>> eta = flat_parameters(model).log()
    >>> coordinate_invariance(model, data, inverse=torch.exp, eta=eta)
    Identity(information-geometric paper, Section 3 after equation 6: IGS(θ) = IGS in the other
        parameters: 2 = 2, certified)
    >>> coordinate_invariance(model, data, inverse=torch.exp, eta=eta, damping=0.1).certified
    False
    """
    arguments.function("inverse", inverse, "a function of a parameter vector")
    arguments.tensor("eta", eta, ndim=1, floating=True, finite=True)
    batch_size, damping = _options(data, batch_size, damping)
    geometry = fisher_geometry(model, data)
    change = torch.func.jacrev(inverse)(eta).detach().to(geometry.jacobian)
    new = FisherGeometry(
        geometry.outputs, geometry.targets, geometry.jacobian @ change, geometry.loss
    )
    return _invariance(
        geometry,
        new,
        source=f"{PAPER}, Section 3 after equation 6",
        assumptions={
            "same point": agree(inverse(eta).detach(), flat_parameters(model)),
            "invertible Jacobian": _invertible(change),
            "undamped": damping == 0,
        },
        batch_size=batch_size,
        damping=damping,
    )


def transformation_invariance(
    model: nn.Module,
    data: object,
    transformation: Callable[[Tensor], Tensor],
    *,
    batch_size: int | None = None,
    damping: float = 0.0,
) -> Identity:
    """Proposition 3.1: IGS(θ) = IGS(φ(θ)) where f(x; θ) = f(x; φ(θ)) on an open set.

    The paper asks for an invertible, differentiable φ (its g). The Jacobian of φ has to be
    invertible too, as that of θ³ is not at zero.

    Parameters
    ----------
    model, data, batch_size, damping
        As in :func:`coordinate_invariance`.
    transformation : callable
        Function φ between flat parameter vectors.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import transformation_invariance
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False)).double()
    >>> _ = nn.init.ones_(model[0].weight), nn.init.ones_(model[1].weight)
    >>> data = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([0, 1])
    >>> factors = torch.tensor([4.0, 0.25, 0.25]).double()
    >>> transformation_invariance(model, data, lambda theta: factors * theta).holds
    True
    """
    arguments.function("transformation", transformation, "a function of a parameter vector")
    batch_size, damping = _options(data, batch_size, damping)
    theta = flat_parameters(model)
    geometry = fisher_geometry(model, data)
    new = fisher_geometry(model, data, theta=transformation(theta))
    return _invariance(
        geometry,
        new,
        source=f"{PAPER}, Proposition 3.1",
        assumptions={
            "same outputs on the data": agree(new.outputs, geometry.outputs),
            "same outputs around the point": None,
            "invertible Jacobian": _invertible(torch.func.jacrev(transformation)(theta)),
            "undamped": damping == 0,
        },
        batch_size=batch_size,
        damping=damping,
    )


def _options(data: object, batch_size: int | None, damping: float) -> tuple[int | None, float]:
    if batch_size is not None:
        n = len(as_batch(data)[1])
        batch_size = arguments.integer("batch_size", batch_size, at_least=1, at_most=n)
    return batch_size, arguments.number("damping", damping, at_least=0)


def _invertible(matrix: Tensor) -> bool:
    values = torch.linalg.svdvals(matrix)
    return bool(values[-1] > rank_tolerance(matrix) * values[0])


def _invariance(
    old: FisherGeometry,
    new: FisherGeometry,
    source: str,
    assumptions: dict[str, bool | None],
    batch_size: int | None,
    damping: float,
) -> Identity:
    sides = [
        float(
            information_geometric_sharpness_from_jacobian(
                geometry.jacobian,
                geometry.outputs,
                geometry.targets,
                geometry.loss,
                batch_size=batch_size,
                damping=damping,
            )
        )
        for geometry in (old, new)
    ]
    return Identity(
        statement="IGS(θ) = IGS in the other parameters",
        source=source,
        left=sides[0],
        right=sides[1],
        assumptions=assumptions,
        tolerance=ROUND_OFF,
    )

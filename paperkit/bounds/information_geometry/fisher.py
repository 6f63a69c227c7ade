"""Equations 1 to 5: the Fisher matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.bounds.information_geometry.geometry import (
    PAPER,
    ROUND_OFF,
    FisherGeometry,
    check_output,
    check_sample,
    fisher_geometry,
    flattened,
    outputs_of_vector,
    random_direction,
)
from paperkit.bounds.statement import Approximation, Identity, Inequality
from paperkit.curvature import dense_gauss_newton
from paperkit.network import get_loss
from paperkit.network.batches import as_batch
from paperkit.network.evaluation import evaluation


def cross_entropy_identity(model: nn.Module, data: object) -> Identity:
    """Equation 1: the loss is the mean negative log-probability of the labels.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import cross_entropy_identity
    >>> data = torch.zeros(3, 4).double(), torch.tensor([0, 1, 2])
    >>> model = nn.Linear(4, 3, bias=False).double()  # equal logits at x = 0: log 3
    >>> cross_entropy_identity(model, data)
    Identity(information-geometric paper, equation 1: L(θ) = mean of −log p(y_i | x_i): 1.09861 =
        1.09861, certified)
    """
    geometry = fisher_geometry(model, data)
    log_p = torch.log_softmax(geometry.outputs, dim=1)
    picked = log_p.gather(1, geometry.targets.unsqueeze(1))
    value = get_loss("cross_entropy").value(geometry.outputs, geometry.targets)
    return Identity(
        statement="L(θ) = mean of −log p(y_i | x_i)",
        source=f"{PAPER}, equation 1",
        left=float(value),
        right=-float(picked.mean()),
    )


def fisher_identity(model: nn.Module, data: object, seed: int = 0) -> Identity:
    """Equation 2: the second moment of the gradients at the model's own labels is Σ JᵀΛJ / n.

    The labels are enumerated on the left.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import fisher_identity
    >>> model = nn.Linear(1, 2, bias=False).double()
    >>> data = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([0, 1])
    >>> fisher_identity(model, data).holds
    True
    >>> relabelled = data[0], torch.tensor([1, 1])
    >>> fisher_identity(model, relabelled).right == fisher_identity(model, data).right
    True
    """
    seed = arguments.seed("seed", seed)
    geometry = fisher_geometry(model, data)
    inputs, _ = as_batch(data)
    _, num_outputs, dimension = geometry.jacobian.shape
    v = random_direction(geometry.jacobian, dimension, seed)
    probabilities = torch.softmax(geometry.outputs, dim=1)
    left = 0.0
    for label in range(num_outputs):
        targets = torch.full_like(geometry.targets, label)
        relabelled = FisherGeometry(geometry.outputs, targets, geometry.jacobian, geometry.loss)
        left += float((probabilities[:, label] * (relabelled.gradients @ v).square()).mean())
    fisher = dense_gauss_newton(model, inputs).double()
    return Identity(
        statement="vᵀ E_y[g gᵀ] v = vᵀ F v",
        source=f"{PAPER}, equation 2",
        left=left,
        right=float(v @ fisher @ v),
    )


def kullback_leibler_expansion(
    model: nn.Module, data: object, step: float, seed: int = 0
) -> Approximation:
    """Equation 3: KL(p_{θ+tv} ‖ p_θ) ≈ ½ t² vᵀFv along a random unit vector, up to O(t³).

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import kullback_leibler_expansion
    >>> model = nn.Linear(1, 2, bias=False).double()
    >>> _ = nn.init.ones_(model.weight)
    >>> data = torch.ones(1, 1).double(), torch.tensor([0])
    >>> near = kullback_leibler_expansion(model, data, step=0.01)
    >>> round(near.left / near.right, 3)
    1.0
    >>> far = kullback_leibler_expansion(model, data, step=1.0)
    >>> far.left < far.right
    True
    """
    step = arguments.number("step", step)
    seed = arguments.seed("seed", seed)
    inputs, _ = as_batch(data)
    geometry = fisher_geometry(model, data)
    v = random_direction(geometry.jacobian, geometry.jacobian.shape[2], seed)
    with evaluation(model) as parameters, torch.no_grad():
        theta = flattened(parameters)
        outputs = outputs_of_vector(model, parameters, inputs)(theta + step * v.to(theta)).double()
    log_new, log_old = (torch.log_softmax(f, dim=1) for f in (outputs, geometry.outputs))
    divergence = (log_new.exp() * (log_new - log_old)).sum(dim=1).mean()
    curvature = (geometry.rows @ v).square().sum() / geometry.num_samples
    return Approximation(
        statement="KL(p_{θ+tv} ‖ p_θ) ≈ ½ t² vᵀFv, difference O(t³)",
        source=f"{PAPER}, equation 3",
        left=float(divergence),
        right=float(0.5 * step * step * curvature),
        assumptions={"infinitesimal step": None},
    )


def _softmax_factor(outputs: Tensor) -> Tensor:
    """Return the factor R = diag(√p)(I − 1pᵀ) of equation 4, (n, C, C)."""
    p = torch.softmax(outputs, dim=1)
    identity = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
    return p.sqrt().unsqueeze(2) * (identity - p.unsqueeze(1))


def fisher_factor_identity(outputs: Tensor, seed: int = 0) -> Identity:
    """Equation 4: diag(p) − ppᵀ = RᵀR with R = diag(√p)(I − 1pᵀ); logits (n, C).

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.information_geometry import fisher_factor_identity
    >>> fisher_factor_identity(torch.tensor([[0.0, 1.0, 2.0]])).holds
    True
    """
    arguments.tensor("outputs", outputs, shape=("n", "C"), floating=True, finite=True)
    outputs = outputs.double()
    p = torch.softmax(outputs, dim=1)
    v = random_direction(outputs, outputs.shape[1], seed)
    variance = p @ v.square() - (p @ v).square()
    return Identity(
        statement="vᵀ(diag(p) − ppᵀ)v = ‖Rv‖², summed over samples",
        source=f"{PAPER}, equation 4",
        left=float(variance.sum()),
        right=float((_softmax_factor(outputs) @ v).square().sum()),
        tolerance=ROUND_OFF,
    )


def logit_gradient_identity(model: nn.Module, data: object, sample: int, output: int) -> Identity:
    """Equation 5: row j of R_i J_i is √p_j (J_j − Σ p_j' J_j'), read along a random vector.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import logit_gradient_identity
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    >>> data = torch.eye(2).double(), torch.tensor([0, 2])
    >>> [logit_gradient_identity(model, data, sample=1, output=j).holds for j in range(3)]
    [True, True, True]
    """
    sample = check_sample(data, sample)
    arguments.integer("output", output, at_least=0)
    geometry = fisher_geometry(model, data)
    output = check_output("output", output, geometry)
    v = random_direction(geometry.jacobian, geometry.jacobian.shape[2], sample)
    response = geometry.jacobian[sample] @ v
    p = torch.softmax(geometry.outputs[sample], dim=0)
    return Identity(
        statement="(R_i J_i)_j v = √p_j (J_ij − Σ p_j' J_ij') v",
        source=f"{PAPER}, equation 5",
        left=float(_softmax_factor(geometry.outputs)[sample, output] @ response),
        right=float(p[output].sqrt() * (response[output] - p @ response)),
    )


def fisher_rank_bound(model: nn.Module, data: object, head: str | None = None) -> Inequality:
    """Structural null directions: rank F ≤ n(C−1), and ≤ d − (h+1) (Section 2.2).

    Parameters
    ----------
    model : nn.Module
        Small network, called as ``model(inputs)`` and returning (n, C).
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them.
    head : str, optional
        Name of a linear layer with bias, over h features, whose outputs are the logits. Adding the
        same vector to all its rows shifts all logits alike, which the softmax does not see.

    Raises
    ------
    ValueError
        If ``head`` is not a linear layer.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import fisher_rank_bound
    >>> model = nn.Linear(2, 3).double()  # 9 parameters
    >>> inputs = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).double()
    >>> bound = fisher_rank_bound(nn.Sequential(model), (inputs, torch.arange(4) % 3))
    >>> bound.left, bound.right  # n(C − 1)
    (6.0, 8.0)
    >>> fisher_rank_bound(nn.Sequential(model), (inputs, torch.arange(4) % 3), head="0").right
    6.0
    """
    arguments.module("model", model)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    if head is not None:
        head = arguments.choice("head", head, linear)
    geometry = fisher_geometry(model, data)
    eigenvalues, _ = geometry.eigenpairs()
    n, num_outputs, dimension = geometry.jacobian.shape
    right = min(n * (num_outputs - 1), dimension)
    assumptions: dict[str, bool | None] = {}
    if head is not None:
        layer = linear[head]
        right = min(right, dimension - layer.in_features - (layer.bias is not None))
        assumptions["head gives the logits"] = None
    return Inequality(
        statement="rank F ≤ min(n(C−1), d − dimension of the logits' common shift)",
        source=f"{PAPER}, Section 2.2 (ours)",
        left=len(eigenvalues),
        right=right,
        assumptions=assumptions,
    )


def class_difference_identity(
    model: nn.Module, data: object, reference: int, seed: int = 0
) -> Identity:
    """Appendix A (ours): F_i = Σ p_j Δ_jᵀΔ_j − (Σ p_jΔ_j)ᵀ(Σ p_jΔ_j), Δ_j = J_j − J_c, exactly.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import class_difference_identity
    >>> model = nn.Linear(2, 3).double()
    >>> data = torch.eye(2).double(), torch.tensor([0, 2])
    >>> [class_difference_identity(model, data, reference).holds for reference in range(3)]
    [True, True, True]
    """
    seed = arguments.seed("seed", seed)
    arguments.integer("reference", reference, at_least=0)
    geometry = fisher_geometry(model, data)
    reference = check_output("reference", reference, geometry)
    v = random_direction(geometry.jacobian, geometry.jacobian.shape[2], seed)
    response = geometry.jacobian @ v
    difference = response - response[:, reference : reference + 1]
    p = torch.softmax(geometry.outputs, dim=1)
    spread = (p * difference.square()).sum(dim=1) - (p * difference).sum(dim=1).square()
    return Identity(
        statement="vᵀFv = mean of Σ p_j (Δ_j v)² − (Σ p_j Δ_j v)²",
        source=f"{PAPER}, Appendix A (ours)",
        left=float((geometry.rows @ v).square().sum() / geometry.num_samples),
        right=float(spread.mean()),
    )


def balanced_prediction_expansion(
    jacobian: Tensor, reference: int, epsilon: float, seed: int = 0
) -> Approximation:
    """Appendix A (ours): where all classes but c have probability ε, F_i ≈ ε Σ Δ_jᵀΔ_j.

    Parameters
    ----------
    jacobian : Tensor
        Jacobian of a sample, (C, d).
    reference : int
        Index c of the likeliest class.
    epsilon : float
        Probability ε of every other class, below 1/(C−1). The difference is O(ε²).
    seed : int
        Seed of the direction along which the matrices are compared.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.information_geometry import balanced_prediction_expansion
    >>> jacobian = torch.eye(3).double()
    >>> gaps = [
    ...     balanced_prediction_expansion(jacobian, reference=0, epsilon=epsilon).difference
    ...     for epsilon in (0.02, 0.01)
    ... ]
    >>> round(gaps[0] / gaps[1], 6)  # of second order
    4.0
    """
    arguments.tensor("jacobian", jacobian, shape=("C", "d"), floating=True, finite=True)
    num_outputs, dimension = jacobian.shape
    reference = arguments.integer("reference", reference, at_least=0, at_most=num_outputs - 1)
    epsilon = arguments.number("epsilon", epsilon, above=0)
    likeliest = 1.0 - (num_outputs - 1) * epsilon
    if not likeliest > 0:
        raise ValueError(f"epsilon={epsilon} must lie between 0 and 1/(C−1).")
    p = torch.full_like(jacobian[:, 0], epsilon)
    p[reference] = likeliest
    response = jacobian @ random_direction(jacobian, dimension, seed)
    difference = response - response[reference]
    return Approximation(
        statement="vᵀF_i v ≈ ε Σ (Δ_j v)², difference O(ε²)",
        source=f"{PAPER}, Appendix A (ours)",
        left=float(p @ difference.square() - (p @ difference).square()),
        right=float(epsilon * difference.square().sum()),
        assumptions={"epsilon small": None},
    )

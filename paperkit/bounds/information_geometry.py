r"""Both sides of the information-geometric paper's statements, on small networks.

Everything is written out in float64 from dense Jacobians, apart from the fast routes that are
under test. An identity is a :class:`Bound` whose sides are equal, which its ``statement`` says with
an equals sign; ``≈`` marks sides that agree to the order named there. An identity between matrices
or vectors is read off along a random direction, where two that differ agree with probability zero.
The paper's appendices are in the supplement of the proceedings, which was not at hand: what stands
here under their letters is derived anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.bounds.statement import Bound
from paperkit.estimators.baselines import generalization_gap, sample_losses
from paperkit.estimators.information_geometry import (
    DualGradients,
    dual_gradients,
    information_geometric_sharpness_from_jacobian,
    takeuchi_information_criterion,
)
from paperkit.linalg.probes import generator_of
from paperkit.linalg.row_space import default_tolerance, row_factors
from paperkit.linearize import dense_empirical_fisher, dense_gauss_newton, dense_hessian, get_loss
from paperkit.linearize.batches import as_batch
from paperkit.linearize.dense import select_parameters
from paperkit.linearize.evaluation import check_inputs, check_outputs, evaluation
from paperkit.linearize.network import Network, network_outputs, own_parameters

PAPER = "information-geometric paper"
VERSIONS = ("printed", "exact")

# Relative; two ways to compute one matrix in float64 agree to this.
_ROUND_OFF = 1e-8

# Relative to the mean gradient of a single sample: below it the point counts as stationary.
_STATIONARY = 1e-4


@dataclass(frozen=True)
class FisherGeometry:
    """The Fisher matrix and all samples' gradients at one point, written out.

    Attributes
    ----------
    outputs : Tensor
        (n, C), float64.
    targets : Tensor
        Labels (n,), or (n, C) for the squared errors.
    jacobian : Tensor
        (n, C, d), float64.
    loss : str
        The loss's name.
    """

    outputs: Tensor
    targets: Tensor
    jacobian: Tensor
    loss: str

    @property
    def num_samples(self) -> int:
        """The number n of samples."""
        return len(self.outputs)

    @property
    def dual(self) -> DualGradients:
        """The gradients in the rows of the Fisher factor."""
        return dual_gradients(self.outputs, self.targets, self.loss)

    @property
    def rows(self) -> Tensor:
        """G, (n r, d), with F = Gᵀ G / n."""
        return (self.dual.factor @ self.jacobian).flatten(0, 1)

    @property
    def gradients(self) -> Tensor:
        """Each sample's loss gradient, (n, d)."""
        residual = get_loss(self.loss).gradient(self.outputs, self.targets)
        return torch.einsum("nc,ncd->nd", residual, self.jacobian)

    def eigenpairs(self) -> tuple[Tensor, Tensor]:
        """Return the nonzero eigenvalues of F, descending, and eigenvectors (d, k)."""
        rows = self.rows
        _, values, right = torch.linalg.svd(rows, full_matrices=False)
        kept = values > _tolerance(rows) * values.max()
        return values[kept].square() / self.num_samples, right[kept].T

    def inverse_norms(self, vectors: Tensor) -> Tensor:
        """Return vᵀ F† v of vectors (k, d) in the range of F."""
        eigenvalues, directions = self.eigenpairs()
        return ((vectors @ directions).square() / eigenvalues).sum(dim=1)

    def gradient_gram(self) -> Tensor:
        """Return g_iᵀ F† g_j of all samples, (n, n), through the dual."""
        dual = self.dual
        rows, scales = self.rows, self.rows.norm(dim=1)
        space = row_factors(lambda: [(rows, scales)]).space(_tolerance(rows))
        basis = space.basis(rows, scales)
        r = dual.directions.shape[1]
        coordinates = torch.einsum("nrk,nr->nk", basis.unflatten(0, (-1, r)), dual.dual_vectors)
        return self.num_samples * coordinates @ coordinates.T


def fisher_geometry(
    model: nn.Module, data: object, loss: str = "cross_entropy", theta: Tensor | None = None
) -> FisherGeometry:
    """Write out Jacobian and outputs of a small model, at its own or other parameters.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them.
    loss : str
        A name from :data:`paperkit.linearize.LOSSES`.
    theta : Tensor, optional
        All parameters as one vector, in the order of ``named_parameters``.

    Raises
    ------
    ValueError
        If the data do not fit the model.
    """
    loss = get_loss(loss).name
    model = Network.of(model)
    select_parameters(own_parameters(model), None)
    inputs, targets = as_batch(data)
    check_inputs(inputs)
    with evaluation(model) as parameters:
        point = _flat(parameters) if theta is None else _point(parameters, theta)
        with torch.no_grad():
            outputs = network_outputs(model, parameters, inputs)
        check_outputs(outputs, len(inputs))
        get_loss(loss).check(outputs, targets)
        function = _of_vector(model, parameters, inputs)
        if theta is not None:
            outputs = function(point)
            check_outputs(outputs, len(inputs))
        jacobian = torch.func.jacrev(function)(point)
    return FisherGeometry(outputs.detach().double(), targets, jacobian.detach().double(), loss)


def _point(parameters: dict[str, Tensor], theta: Tensor) -> Tensor:
    size = sum(parameter.numel() for parameter in parameters.values())
    return arguments.tensor("theta", theta, shape=(size,), floating=True, finite=True).detach()


def _sample(data: object, sample: int) -> int:
    """Return the index of a sample, checked before anything is computed."""
    n = len(as_batch(data)[1])
    return arguments.integer("sample", sample, at_least=0, at_most=n - 1)


def _output(name: str, index: int, geometry: FisherGeometry) -> int:
    last = geometry.outputs.shape[1] - 1
    return arguments.integer(name, index, at_least=0, at_most=last)


def flat_parameters(model: nn.Module) -> Tensor:
    """Return all parameters as one detached vector, in the order of ``named_parameters``."""
    network = Network.of(model)
    select_parameters(own_parameters(network), None)
    return _flat(dict(network.named_parameters()))


def _flat(parameters: dict[str, Tensor]) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters.values()])


def _of_vector(
    model: nn.Module, parameters: dict[str, Tensor], inputs: Tensor
) -> Callable[[Tensor], Tensor]:
    """Return the outputs as a function of one parameter vector."""
    shapes = [parameter.shape for parameter in parameters.values()]

    def function(vector: Tensor) -> Tensor:
        pieces = vector.split([shape.numel() for shape in shapes])
        values = {
            name: piece.view(shape)
            for name, piece, shape in zip(parameters, pieces, shapes, strict=True)
        }
        return network_outputs(model, values, inputs)

    return function


def _tolerance(matrix: Tensor) -> float:
    return default_tolerance(matrix.shape[0], matrix.shape[1], matrix.dtype)


def _direction(like: Tensor, size: int, seed: int) -> Tensor:
    """A random unit vector."""
    vector = torch.randn(size, generator=generator_of(seed), dtype=torch.float64, device="cpu")
    return (vector / vector.norm()).to(like)


def _equal(left: Tensor, right: Tensor) -> bool:
    return float((left - right).norm()) <= _ROUND_OFF * float(right.norm())


# ---------------------------------------------------------------------------------------------
# Equations 1 to 5: the Fisher matrix
# ---------------------------------------------------------------------------------------------


def cross_entropy_identity(model: nn.Module, data: object) -> Bound:
    """Equation 1: the loss is the mean negative log-probability of the labels."""
    geometry = fisher_geometry(model, data)
    log_p = torch.log_softmax(geometry.outputs, dim=1)
    picked = log_p.gather(1, geometry.targets.unsqueeze(1))
    value = get_loss("cross_entropy").value(geometry.outputs, geometry.targets)
    return Bound(
        statement="L(θ) = mean of −log p(y_i | x_i)",
        source=f"{PAPER}, equation 1",
        left=float(value),
        right=-float(picked.mean()),
    )


def fisher_identity(model: nn.Module, data: object, seed: int = 0) -> Bound:
    """Equation 2: the second moment of the gradients at the model's own labels is Σ JᵀΛJ / n.

    The labels are enumerated on the left.
    """
    seed = arguments.seed("seed", seed)
    geometry = fisher_geometry(model, data)
    inputs, _ = as_batch(data)
    _, num_outputs, dimension = geometry.jacobian.shape
    v = _direction(geometry.jacobian, dimension, seed)
    probabilities = torch.softmax(geometry.outputs, dim=1)
    left = 0.0
    for label in range(num_outputs):
        targets = torch.full_like(geometry.targets, label)
        relabelled = FisherGeometry(geometry.outputs, targets, geometry.jacobian, geometry.loss)
        left += float((probabilities[:, label] * (relabelled.gradients @ v).square()).mean())
    fisher = dense_gauss_newton(model, inputs).double()
    return Bound(
        statement="vᵀ E_y[g gᵀ] v = vᵀ F v",
        source=f"{PAPER}, equation 2",
        left=left,
        right=float(v @ fisher @ v),
    )


def kullback_leibler_expansion(model: nn.Module, data: object, step: float, seed: int = 0) -> Bound:
    """Equation 3: KL(p_{θ+tv} ‖ p_θ) ≈ ½ t² vᵀFv along a random unit vector, up to O(t³)."""
    step = arguments.number("step", step)
    seed = arguments.seed("seed", seed)
    inputs, _ = as_batch(data)
    geometry = fisher_geometry(model, data)
    v = _direction(geometry.jacobian, geometry.jacobian.shape[2], seed)
    with evaluation(model) as parameters, torch.no_grad():
        theta = _flat(parameters)
        moved = _of_vector(model, parameters, inputs)(theta + step * v.to(theta)).double()
    log_new, log_old = (torch.log_softmax(f, dim=1) for f in (moved, geometry.outputs))
    divergence = (log_new.exp() * (log_new - log_old)).sum(dim=1).mean()
    curvature = (geometry.rows @ v).square().sum() / geometry.num_samples
    return Bound(
        statement="KL(p_{θ+tv} ‖ p_θ) ≈ ½ t² vᵀFv, difference O(t³)",
        source=f"{PAPER}, equation 3",
        left=float(divergence),
        right=float(0.5 * step * step * curvature),
        assumptions={"infinitesimal step": None},
    )


def _softmax_factor(outputs: Tensor) -> Tensor:
    """M = diag(√p)(I − 1pᵀ) of equation 4, (n, C, C)."""
    p = torch.softmax(outputs, dim=1)
    identity = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
    return p.sqrt().unsqueeze(2) * (identity - p.unsqueeze(1))


def fisher_factor_identity(outputs: Tensor, seed: int = 0) -> Bound:
    """Equation 4: diag(p) − ppᵀ = MᵀM with M = diag(√p)(I − 1pᵀ); logits (n, C)."""
    arguments.tensor("outputs", outputs, shape=("n", "C"), floating=True, finite=True)
    outputs = outputs.double()
    p = torch.softmax(outputs, dim=1)
    v = _direction(outputs, outputs.shape[1], seed)
    variance = p @ v.square() - (p @ v).square()
    return Bound(
        statement="vᵀ(diag(p) − ppᵀ)v = ‖Mv‖², summed over samples",
        source=f"{PAPER}, equation 4",
        left=float(variance.sum()),
        right=float((_softmax_factor(outputs) @ v).square().sum()),
        tolerance=_ROUND_OFF,
    )


def logit_gradient_identity(model: nn.Module, data: object, sample: int, output: int) -> Bound:
    """Equation 5: row j of M_i J_i is √p_j (J_j − Σ p_j' J_j'), read along a random vector."""
    sample = _sample(data, sample)
    arguments.integer("output", output, at_least=0)
    geometry = fisher_geometry(model, data)
    output = _output("output", output, geometry)
    v = _direction(geometry.jacobian, geometry.jacobian.shape[2], sample)
    response = geometry.jacobian[sample] @ v
    p = torch.softmax(geometry.outputs[sample], dim=0)
    return Bound(
        statement="(M_i J_i)_j v = √p_j (J_ij − Σ p_j' J_ij') v",
        source=f"{PAPER}, equation 5",
        left=float(_softmax_factor(geometry.outputs)[sample, output] @ response),
        right=float(p[output].sqrt() * (response[output] - p @ response)),
    )


def fisher_rank_bound(model: nn.Module, data: object, head: str | None = None) -> Bound:
    """Structural null directions: rank F ≤ n(C−1), and ≤ d − (h+1) (Section 2.2).

    Parameters
    ----------
    model, data
        As in :func:`fisher_geometry`.
    head : str, optional
        Name of a linear layer with bias, over h features, whose outputs are the logits. Adding one
        vector to all its rows shifts all logits alike, which the softmax does not see.

    Raises
    ------
    ValueError
        If ``head`` is not a linear layer.
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
    return Bound(
        statement="rank F ≤ min(n(C−1), d − dimension of the logits' common shift)",
        source=f"{PAPER}, Section 2.2 (ours)",
        left=len(eigenvalues),
        right=right,
        assumptions=assumptions,
    )


def class_difference_identity(
    model: nn.Module, data: object, reference: int, seed: int = 0
) -> Bound:
    """Appendix A (ours): F_i = Σ p_j Δ_jᵀΔ_j − (Σ p_jΔ_j)ᵀ(Σ p_jΔ_j), Δ_j = J_j − J_c, exactly."""
    seed = arguments.seed("seed", seed)
    arguments.integer("reference", reference, at_least=0)
    geometry = fisher_geometry(model, data)
    reference = _output("reference", reference, geometry)
    v = _direction(geometry.jacobian, geometry.jacobian.shape[2], seed)
    response = geometry.jacobian @ v
    difference = response - response[:, reference : reference + 1]
    p = torch.softmax(geometry.outputs, dim=1)
    spread = (p * difference.square()).sum(dim=1) - (p * difference).sum(dim=1).square()
    return Bound(
        statement="vᵀFv = mean of Σ p_j (Δ_j v)² − (Σ p_j Δ_j v)²",
        source=f"{PAPER}, Appendix A (ours)",
        left=float((geometry.rows @ v).square().sum() / geometry.num_samples),
        right=float(spread.mean()),
    )


def balanced_prediction_expansion(
    jacobian: Tensor, reference: int, epsilon: float, seed: int = 0
) -> Bound:
    """Appendix A (ours): where all classes but c have probability ε, F_i ≈ ε Σ Δ_jᵀΔ_j.

    Parameters
    ----------
    jacobian : Tensor
        One sample's, (C, d).
    reference : int
        c.
    epsilon : float
        ε, below 1/(C−1). The difference is O(ε²).
    seed : int
        Of the direction along which the matrices are compared.
    """
    arguments.tensor("jacobian", jacobian, shape=("C", "d"), floating=True, finite=True)
    num_outputs, dimension = jacobian.shape
    reference = arguments.integer("reference", reference, at_least=0, at_most=num_outputs - 1)
    epsilon = arguments.number("epsilon", epsilon, above=0)
    rest = 1.0 - (num_outputs - 1) * epsilon
    if not rest > 0:
        raise ValueError(f"epsilon={epsilon} must lie between 0 and 1/(C−1).")
    p = torch.full_like(jacobian[:, 0], epsilon)
    p[reference] = rest
    response = jacobian @ _direction(jacobian, dimension, seed)
    difference = response - response[reference]
    return Bound(
        statement="vᵀF_i v ≈ ε Σ (Δ_j v)², difference O(ε²)",
        source=f"{PAPER}, Appendix A (ours)",
        left=float(p @ difference.square() - (p @ difference).square()),
        right=float(epsilon * difference.square().sum()),
        assumptions={"epsilon small": None},
    )


# ---------------------------------------------------------------------------------------------
# Equations 6 and 7: the sharpness
# ---------------------------------------------------------------------------------------------


def span_identity(
    model: nn.Module, data: object, sample: int, loss: str = "cross_entropy"
) -> Bound:
    """Appendix B (ours): g_i = G_iᵀ a_i, so a gradient lies in the range of the Fisher matrix.

    It is the gradient of the loss alone: that of a weight penalty does not lie there, nor need
    that of other data.
    """
    sample = _sample(data, sample)
    geometry = fisher_geometry(model, data, loss)
    v = _direction(geometry.jacobian, geometry.jacobian.shape[2], sample)
    dual = geometry.dual
    rows = dual.factor[sample] @ geometry.jacobian[sample]
    return Bound(
        statement="g_iᵀ v = a_iᵀ G_i v",
        source=f"{PAPER}, Appendix B (ours)",
        left=float(geometry.gradients[sample] @ v),
        right=float(dual.dual_vectors[sample] @ (rows @ v)),
    )


def sharpness_dual_identity(model: nn.Module, data: object, loss: str = "cross_entropy") -> Bound:
    """Equation 6 two ways: Tr(F†C) from d × d matrices, and the projection in the dual."""
    loss = get_loss(loss).name
    inputs, targets = as_batch(data)
    fisher = dense_gauss_newton(model, inputs, loss).double()
    moment = dense_empirical_fisher(model, inputs, targets, loss).double()
    geometry = fisher_geometry(model, data, loss)
    sharpness = information_geometric_sharpness_from_jacobian(
        geometry.jacobian, geometry.outputs, geometry.targets, loss
    )
    tolerance = _tolerance(fisher)
    inverse = torch.linalg.pinv(fisher, rtol=tolerance, hermitian=True)
    return Bound(
        statement="Tr(F†C) = Σ a_iᵀ Π_ii a_i",
        source=f"{PAPER}, equation 6",
        left=float((inverse * moment).sum()),
        right=float(sharpness),
        tolerance=_ROUND_OFF,
    )


def sharpness_loss_bound(model: nn.Module, data: object, loss: str = "cross_entropy") -> Bound:
    """IGS ≤ Σ (e^ℓ − 1), or 2 Σ ℓ for a squared error, with equality in full row rank (ours)."""
    geometry = fisher_geometry(model, data, loss)
    sharpness = information_geometric_sharpness_from_jacobian(
        geometry.jacobian, geometry.outputs, geometry.targets, loss
    )
    relation = "=" if sharpness.full_rank else "≤"
    return Bound(
        statement=f"IGS {relation} Σ (e^ℓ_i − 1)"
        if loss == "cross_entropy"
        else f"IGS {relation} 2 Σ ℓ_i",
        source=f"{PAPER}, on equation 6 (ours); Appendix F for squared errors",
        left=float(sharpness),
        right=sharpness.upper_bound,
    )


def expected_sharpness_identity(model: nn.Module, data: object) -> Bound:
    """The mean of IGS over labels drawn from the model itself is the rank of F (ours)."""
    geometry = fisher_geometry(model, data)
    p = torch.softmax(geometry.outputs, dim=1)
    total = 0.0
    for label in range(p.shape[1]):
        targets = torch.full_like(geometry.targets, label)
        relabelled = FisherGeometry(geometry.outputs, targets, geometry.jacobian, geometry.loss)
        total += float((p[:, label] * relabelled.gradient_gram().diagonal()).mean())
    return Bound(
        statement="E_y[IGS] = rank F for labels from the model",
        source=f"{PAPER}, on equation 6 (ours)",
        left=total,
        right=len(geometry.eigenpairs()[0]),
        tolerance=_ROUND_OFF,
    )


def minibatch_identity(
    model: nn.Module, data: object, batch_size: int, *, replacement: bool = False
) -> Bound:
    """Equation 7 and Appendix C (ours): IGS_b over all mini-batches, against its closed form.

    The left side enumerates the batches (n to the power b of them with replacement): only for a
    handful of samples.
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
    return Bound(
        statement="E_B[g_Bᵀ F† g_B] = c IGS + (1−c) ḡᵀ F† ḡ",
        source=f"{PAPER}, equation 7 and Appendix C (ours)",
        left=sum(means) / len(means),
        right=float(closed),
        tolerance=_ROUND_OFF,
    )


def coordinate_invariance(
    model: nn.Module,
    data: object,
    inverse: Callable[[Tensor], Tensor],
    eta: Tensor,
    *,
    batch_size: int | None = None,
    damping: float = 0.0,
) -> Bound:
    """Section 3: IGS is the same in other coordinates, f̃(x; η) = f(x; ψ(η)).

    It holds because each gradient lies in the range of F, not because F† transforms like a tensor:
    for a singular F it does not.

    Parameters
    ----------
    model, data
        As in :func:`fisher_geometry`.
    inverse : callable
        ψ, from η to θ, both flat.
    eta : Tensor
        The point with ψ(η) = θ, the model's parameters.
    batch_size : int, optional
        b of the mini-batch measure.
    damping : float
        Positive for the damped measure, which is not invariant.
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
            "same point": _equal(inverse(eta).detach(), flat_parameters(model)),
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
) -> Bound:
    """Proposition 3.1: IGS(θ) = IGS(g(θ)) where f(x; θ) = f(x; g(θ)) on an open set.

    The paper asks for an invertible, differentiable g; its Jacobian has to be invertible too, as
    that of θ³ is not at zero.

    Parameters
    ----------
    model, data
        As in :func:`fisher_geometry`.
    transformation : callable
        g, between flat parameter vectors.
    batch_size, damping
        As in :func:`coordinate_invariance`.
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
            "same outputs on the data": _equal(new.outputs, geometry.outputs),
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
    return bool(values[-1] > _tolerance(matrix) * values[0])


def _invariance(
    old: FisherGeometry,
    new: FisherGeometry,
    source: str,
    assumptions: dict[str, bool | None],
    batch_size: int | None,
    damping: float,
) -> Bound:
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
    return Bound(
        statement="IGS(θ) = IGS in the other parameters",
        source=source,
        left=sides[0],
        right=sides[1],
        assumptions=assumptions,
        tolerance=_ROUND_OFF,
    )


# ---------------------------------------------------------------------------------------------
# Equations 8 and 9: Takeuchi's criterion
# ---------------------------------------------------------------------------------------------


def takeuchi_prediction(
    model: nn.Module, train: object, test: object, curvature: str = "hessian"
) -> Bound:
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
    return Bound(
        statement="test loss − training loss ≈ Tr(H⁻¹C)/n, in expectation, up to o(1/n)",
        source=f"{PAPER}, equations 8 and 9",
        left=gap,
        right=float(criterion),
        assumptions={
            "stationary point": bool(
                gradients.mean(dim=0).norm() <= _STATIONARY * gradients.norm(dim=1).mean()
            ),
            "positive definite Hessian": bool(eigenvalues[0] > 0),
            "many samples": None,
        },
    )


# ---------------------------------------------------------------------------------------------
# Equations 10 and 11: the margin
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Crossing:
    """A linear model of where a sample meets the decision boundary: value + slope·δ = 0."""

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
) -> Bound:
    """Equation 10: the squared Fisher length of the shift along eigenvector k that meets x_i.

    Parameters
    ----------
    model, data
        As in :func:`fisher_geometry`; two classes.
    sample, index : int
        i and k, eigenvalues in falling order.
    version : str
        ``"printed"`` finds the shift from the loss made linear, as the paper does. The loss is
        convex in the margin, so its tangent lies below it: in a model linear in its parameters the
        shift of a correctly classified sample overshoots the boundary, by a factor that grows
        exponentially with the confidence (258 at a logit of 8), and that of a misclassified one
        falls short. ``"exact"`` makes the difference of the logits linear: exact for such a model.
    """
    sample, index = _sample(data, sample), arguments.integer("index", index, at_least=0)
    version = arguments.choice("version", version, VERSIONS)
    geometry = fisher_geometry(model, data)
    crossing = _crossing(geometry, sample, version, None)
    eigenvalues, directions = geometry.eigenpairs()
    index = arguments.integer("index", index, at_least=0, at_most=len(eigenvalues) - 1)
    epsilon = -crossing.value / (crossing.slope @ directions[:, index])
    shift = epsilon * directions[:, index]
    return Bound(
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
) -> Bound:
    """Equation 11, and Appendix E (ours) for several classes: Σ_k 1/(ε²λ_k) as a norm under F†.

    Parameters
    ----------
    model, data, sample, version
        As in :func:`margin_length_identity`; any number of classes for ``"exact"``.
    competitor : int, optional
        The other class of the boundary; needed for more than two classes.

    Returns
    -------
    Bound
        Right: gᵀF†g/(log 2 − ℓ)² as printed, ∂dᵀF†∂d/d² with d = f_y − f_j as corrected. The
        denominator matters: a smaller sharpness alone is no larger margin.

    Raises
    ------
    ValueError
        If the version is unknown, or the competitor missing or the label itself.
    """
    sample = _sample(data, sample)
    version = arguments.choice("version", version, VERSIONS)
    if competitor is not None:
        competitor = arguments.integer("competitor", competitor, at_least=0)
    geometry = fisher_geometry(model, data)
    crossing = _crossing(geometry, sample, version, competitor)
    eigenvalues, directions = geometry.eigenpairs()
    epsilon = -crossing.value / (directions.T @ crossing.slope)
    inverse_norm = geometry.inverse_norms(crossing.slope.unsqueeze(0))
    return Bound(
        statement="Σ_k 1/(ε_k² λ_k) = ‖slope‖² under F†, over the squared distance",
        source=f"{PAPER}, equation 11 ({version})",
        left=float((1.0 / (epsilon.square() * eigenvalues)).sum()),
        right=float(inverse_norm / crossing.value**2),
        tolerance=_ROUND_OFF,
    )


def margin_loss_bound(model: nn.Module, data: object, sample: int, competitor: int) -> Bound:
    """In full rank the exact margin depends on the outputs alone: ≤ n(1/p_y + 1/p_j)/d² (ours)."""
    sample = _sample(data, sample)
    competitor = arguments.integer("competitor", competitor, at_least=0)
    geometry = fisher_geometry(model, data)
    crossing = _crossing(geometry, sample, "exact", competitor)
    p = torch.softmax(geometry.outputs[sample], dim=0)
    label = int(geometry.targets[sample])
    full_rank = len(geometry.eigenpairs()[0]) == geometry.dual.num_rows
    norm = geometry.inverse_norms(crossing.slope.unsqueeze(0))
    odds = float(1.0 / p[label] + 1.0 / p[competitor])
    return Bound(
        statement=f"∂dᵀF†∂d/d² {'=' if full_rank else '≤'} n (1/p_y + 1/p_j)/d²",
        source=f"{PAPER}, Appendix E (ours)",
        left=float(norm) / crossing.value**2,
        right=geometry.num_samples * odds / crossing.value**2,
        tolerance=_ROUND_OFF,
    )


# ---------------------------------------------------------------------------------------------
# Equations 12 and 13: the regularizer
# ---------------------------------------------------------------------------------------------


def _natural_gradient(geometry: FisherGeometry) -> tuple[Tensor, Tensor]:
    """Return the mean gradient g and F†g."""
    gradient = geometry.gradients.mean(dim=0)
    eigenvalues, directions = geometry.eigenpairs()
    return gradient, directions @ ((directions.T @ gradient) / eigenvalues)


def perturbed_loss_expansion(model: nn.Module, data: object, rho: float) -> Bound:
    """Equation 13: L(θ + ρF†g) ≈ L(θ) + ρ gᵀF†g, up to O(ρ²), g the gradient on the data.

    Its right side is one mini-batch's form of the objective L + ρ IGS, equation 12. F†g is long, so
    the second order takes over at ρ of a few thousandths already.
    """
    rho = arguments.number("rho", rho)
    inputs, targets = as_batch(data)
    geometry = fisher_geometry(model, data)
    gradient, natural = _natural_gradient(geometry)
    value = get_loss(geometry.loss).value
    theta = flat_parameters(model)
    with evaluation(model) as parameters, torch.no_grad():
        moved = _of_vector(model, parameters, inputs)(theta + rho * natural.to(theta))
    return Bound(
        statement="L(θ + ρF†g) ≈ L(θ) + ρ gᵀF†g, difference O(ρ²)",
        source=f"{PAPER}, equation 13",
        left=float(value(moved.double(), targets)),
        right=float(value(geometry.outputs, targets) + rho * (gradient @ natural)),
        assumptions={"rho small": None},
    )


def stop_gradient_identity(
    model: nn.Module, data: object, rho: float, version: str = "printed", seed: int = 0
) -> Bound:
    """What the paper's training step descends: the gradient at θ + ρF†g with ρF†g held fixed.

    The paper says that minimizing equation 13 minimizes a stochastic version of equation 12, and
    prints no gradient: what follows is ours. ``"exact"`` is the gradient's first order, g + ρHF†g.
    ``"printed"`` puts F for H, which the paper calls close after training (Section 3.3.1), and
    finds (1+ρ)g: a larger step and no regularizer at all. Where H = F, as in softmax regression,
    this is what happens. The sides are read along a random direction.

    Raises
    ------
    ValueError
        If the version is unknown.
    """
    version = arguments.choice("version", version, VERSIONS)
    rho = arguments.number("rho", rho)
    seed = arguments.seed("seed", seed)
    inputs, targets = as_batch(data)
    geometry = fisher_geometry(model, data)
    gradient, natural = _natural_gradient(geometry)
    theta = flat_parameters(model)
    moved = fisher_geometry(model, data, theta=theta + rho * natural.to(theta))
    hessian = dense_hessian(model, inputs, targets).double()
    fisher = geometry.rows.T @ geometry.rows / geometry.num_samples
    curvature = hessian if version == "exact" else fisher
    v = _direction(gradient, len(gradient), seed)
    assumptions: dict[str, bool | None] = {"rho small": None}
    if version == "printed":
        assumptions["Hessian equals Fisher matrix"] = _equal(hessian, fisher)
    return Bound(
        statement="vᵀ∇L(θ + δ) ≈ vᵀg + ρ vᵀHF†g, difference O(ρ²)"
        if version == "exact"
        else "vᵀ∇L(θ + δ) ≈ (1 + ρ) vᵀg, difference O(ρ²)",
        source=f"{PAPER}, on equation 13 (ours)" + ("" if version == "exact" else ", with F for H"),
        left=float(v @ moved.gradients.mean(dim=0)),
        right=float(v @ (gradient + rho * (curvature @ natural))),
        assumptions=assumptions,
    )

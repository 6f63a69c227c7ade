"""The trace, top eigenvalues and density of a Hessian from converged methods.

All references come from double backward passes, as plain autograd makes them. They are in double
precision unless an estimate's own error is far above round-off.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks import Network, estimates, in_double_precision
from benchmarks.problems import Problem
from benchmarks.quantities import TOP_EIGENVALUES
from paperkit.linalg.lanczos import lanczos

REMAINDER_PROBES = 1000
"""Number of probes of the reference trace; each is multiplied with every sample's Hessian."""

_AT_ONCE = 32
"""Number of products by double backward that a reference takes together."""


@dataclass(frozen=True)
class Reference:
    """References that the tools are compared with, in double precision.

    Attributes
    ----------
    trace, trace_error : float
        Trace Tr H, and its standard error; 0 where it is exact.
    top : Tensor
        Largest eigenvalues, to 1e-8 of the first.
    nodes, weights : Tensor
        Points and masses, of total mass 1, for the density of the eigenvalues.
    moved : float
        Distance of these from the nodes and weights of half the Lanczos steps, as an error of the
        density; 0 where they are the whole spectrum.
    products : list of Tensor
        Products of H with :func:`direction` of the first seeds.
    """

    trace: float
    trace_error: float
    top: Tensor
    nodes: Tensor
    weights: Tensor
    moved: float
    products: list[Tensor] = field(repr=False, default_factory=list)

    @property
    def scale(self) -> float:
        """The mean absolute eigenvalue, the unit of an error of the density."""
        return float((self.weights * self.nodes.abs()).sum())


def dimension(model: nn.Module) -> int:
    """Return the number d of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def direction(model: nn.Module, seed: int) -> Tensor:
    """Return the same standard normal vector (d,) for all tools, drawn in single precision."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    vector = torch.randn(dimension(model), generator=generator, dtype=torch.float32, device="cpu")
    return vector.to(next(model.parameters()))


class DoubleBackward:
    """Products with the Hessian of a mean loss by double backward, through one retained graph.

    Parameters
    ----------
    loss : Tensor
        Scalar loss with its graph.
    model : nn.Module
        Network in whose parameters the loss is differentiated.
    """

    def __init__(self, loss: Tensor, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.gradient = torch.autograd.grad(loss, self.parameters, create_graph=True)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Multiply with a vector (d,), or with k vectors (k, d), one after the other."""
        if vectors.ndim == 2:
            return torch.stack([self(vector) for vector in vectors])
        return self._products(vectors)

    def together(self, vectors: Tensor) -> Tensor:
        """Multiply with k vectors (k, d) in one vectorized pass."""
        return self._products(vectors, is_grads_batched=True)

    def _products(self, vectors: Tensor, **options: bool) -> Tensor:
        pieces = vectors.split(self.sizes, dim=-1)
        # A gradient that is constant in the parameters has no graph of its own.
        pairs = [
            (g, piece.reshape(*vectors.shape[:-1], *g.shape))
            for g, piece in zip(self.gradient, pieces, strict=True)
            if g.requires_grad
        ]
        products = torch.autograd.grad(
            [g for g, _ in pairs],
            self.parameters,
            [v for _, v in pairs],
            retain_graph=True,
            allow_unused=True,
            **options,
        )
        parts = [
            torch.zeros_like(piece) if part is None else part.reshape(piece.shape)
            for part, piece in zip(products, pieces, strict=True)
        ]
        return torch.cat(parts, dim=-1)


def hessian_of(problem: Problem) -> DoubleBackward:
    """Return the Hessian of the mean cross-entropy, with which a plain program would multiply."""
    outputs = problem.model(problem.inputs)
    return DoubleBackward(functional.cross_entropy(outputs, problem.targets), problem.model)


def dense(hessian: DoubleBackward, d: int) -> Tensor:
    """Write the Hessian out, (d, d)."""
    like = hessian.parameters[0]
    unit = torch.eye(d, dtype=like.dtype, device=like.device)
    matrix = torch.cat([hessian.together(rows) for rows in unit.split(_AT_ONCE)])
    return (matrix + matrix.T) / 2


def gauss_newton_trace(problem: Problem) -> float:
    r"""Return the trace of the Gauss–Newton matrix, exactly, by n C backward passes.

    For probabilities p of the classes, the Hessian of the loss in the outputs is
    :math:`\sum_c p_c (e_c - p)(e_c - p)^\top`.
    """
    total = 0.0
    parameters = list(problem.model.parameters())
    for sample in problem.inputs.split(1):
        outputs = problem.model(sample).squeeze(0)
        p = outputs.detach().softmax(dim=0)
        for c in range(len(p)):
            cotangent = functional.one_hot(torch.tensor(c, device=p.device), len(p)) - p
            rows = torch.autograd.grad(outputs, parameters, cotangent, retain_graph=True)
            total += float(p[c]) * sum(float(row.square().sum()) for row in rows)
    return total / len(problem.inputs)


def remainders(problem: Problem) -> Iterator[DoubleBackward]:
    """Yield for each sample its Hessian without the Gauss–Newton part."""
    for sample, target in zip(problem.inputs.split(1), problem.targets.split(1), strict=True):
        outputs = problem.model(sample)
        residual = outputs.detach().softmax(dim=1) - functional.one_hot(target, outputs.shape[1])
        yield DoubleBackward((residual * outputs).sum(), problem.model)


def estimate_remainder(problem: Problem, probes: int) -> tuple[float, float]:
    """Return the mean over samples of the trace of :func:`remainders`, and its standard error.

    Each sample has random signs of its own, so that the errors of the samples average as well.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)
    like = next(problem.model.parameters())
    values, variances = [], []
    for remainder in remainders(problem):
        forms = []
        for start in range(0, probes, _AT_ONCE):
            shape = min(_AT_ONCE, probes - start), sum(remainder.sizes)
            signs = torch.randint(0, 2, shape, generator=generator, device="cpu").to(like) * 2 - 1
            forms.append((signs * remainder.together(signs)).sum(dim=1, dtype=torch.float64))
        estimates_of_sample = torch.cat(forms)
        values.append(float(estimates_of_sample.mean()))
        variances.append(float(estimates_of_sample.var()) / probes)
    return statistics.mean(values), math.sqrt(sum(variances)) / len(values)


def refuse_a_diagonal(problem: Problem) -> None:
    """Raise a RuntimeError if the remainder has a diagonal entry among some drawn at random."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    remainder = next(remainders(problem))
    for i in torch.randperm(len(remainder.sizes), generator=generator, device="cpu")[:8].tolist():
        start = sum(remainder.sizes[:i])
        entry = start + int(
            torch.randint(remainder.sizes[i], (), generator=generator, device="cpu")
        )
        unit = torch.zeros(sum(remainder.sizes), dtype=torch.float64, device=problem.inputs.device)
        unit[entry] = 1.0
        column = remainder(unit)
        if float(column[entry].abs()) > 1e-10 * float(column.norm()):
            raise RuntimeError("the rest of the Hessian has a diagonal: its trace is not known.")


def converged_top(hessian: DoubleBackward, problem: Problem, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues and their vectors (count, d), by ARPACK.

    ARPACK is used so that no tool's own iteration is its reference. Each result λ is checked with a
    new product: an eigenvalue lies within the residual ‖H v − λ v‖ of λ, and within the residual's
    square over the distance to the next eigenvalue. A RuntimeError is raised if one that is asked
    for may be off by more than 1e-8 of the first.
    """
    like = next(problem.model.parameters())
    d = sum(hessian.sizes)

    def product(vector: np.ndarray) -> np.ndarray:
        return hessian(torch.from_numpy(vector.ravel()).to(like)).cpu().numpy()

    # Another eigenvalue is computed beside those asked for, for its distance from the last of them.
    unsorted, columns = eigsh(
        LinearOperator((d, d), matvec=product, dtype=np.float64),
        k=count + 1,
        which="LA",
        v0=direction(problem.model, 10**6).cpu().numpy(),
        tol=1e-6,
    )
    order = np.argsort(unsorted)[::-1]
    values, vectors = unsorted[order], columns[:, order].T
    for i in range(TOP_EIGENVALUES):
        residual = float(np.linalg.norm(product(vectors[i]) - values[i] * vectors[i]))
        gap = float(np.delete(np.abs(values - values[i]), i).min())
        if min(residual, residual**2 / max(gap, 1e-300)) > 1e-8 * values[0]:
            raise RuntimeError(f"eigenvalue {i + 1} of the reference has not converged.")
    return torch.from_numpy(values[:count].copy()), torch.from_numpy(vectors[:count].copy())


def references(network: Network, problem: Problem) -> Reference:
    """Return the references of a network, from double backward passes in float64."""
    precise = in_double_precision(problem)
    d = dimension(precise.model)
    with network.helped():
        hessian = hessian_of(precise)
        vectors = [direction(precise.model, seed) for seed in range(estimates(network, "product"))]
        products = [hessian(vector).cpu() for vector in vectors]
        if network.reference == "dense":
            matrix = dense(hessian, d)
            spectrum = torch.linalg.eigvalsh(matrix).cpu()
            return Reference(
                trace=float(matrix.trace()),
                trace_error=0.0,
                top=spectrum.flip(0)[:TOP_EIGENVALUES].clone(),
                nodes=spectrum,
                weights=torch.full_like(spectrum, 1 / d),
                moved=0.0,
                products=products,
            )
        trace, error = gauss_newton_trace(precise), 0.0
        if network.reference == "exact trace":
            refuse_a_diagonal(precise)
        else:
            # The problem in single precision is enough here and for the density, because the error
            # of the probes is far above round-off.
            remainder, error = estimate_remainder(problem, REMAINDER_PROBES)
            trace += remainder
        count, probes, steps = network.density
        values, vectors = converged_top(hessian, precise, count)
        del hessian
        nodes, weights, moved = quadrature(problem, values, vectors, probes, steps)
    top = values[:TOP_EIGENVALUES].clone()
    return Reference(trace, error, top, nodes, weights, moved, products)


def quadrature(
    problem: Problem, values: Tensor, vectors: Tensor, probes: int, steps: int
) -> tuple[Tensor, Tensor, float]:
    """Return nodes and weights for the density, and their distance from those of half the steps.

    Probes see little of the largest eigenvalues, and each probe another part. So these eigenvalues
    are taken by themselves, and the probes are orthogonal to their eigenvectors.
    """
    hessian = hessian_of(problem)
    top_vectors = vectors.to(next(problem.model.parameters()))
    count, d = top_vectors.shape

    def project_out(rows: Tensor) -> Tensor:
        return rows - (rows @ top_vectors.T) @ top_vectors

    rules: list[list[tuple[Tensor, Tensor]]] = []
    for i in range(probes):
        start = project_out(direction(problem.model, 10**6 + i).sign().unsqueeze(0))
        (matrix,) = lanczos(lambda rows: project_out(hessian(rows)), start, steps).matrices().cpu()
        rules.append([torch.linalg.eigh(matrix[:m, :m]) for m in (len(matrix), len(matrix) // 2)])

    def rule(which: int) -> tuple[Tensor, Tensor]:
        nodes = [values, *(rules[i][which][0] for i in range(probes))]
        masses = [rules[i][which][1][0].square() * (1 - count / d) / probes for i in range(probes)]
        return torch.cat(nodes), torch.cat([torch.full_like(values, 1 / d), *masses])

    nodes, weights = rule(0)
    distance = wasserstein_distance(nodes, rule(1)[0], weights, rule(1)[1])
    return nodes, weights, float(distance / (weights * nodes.abs()).sum())

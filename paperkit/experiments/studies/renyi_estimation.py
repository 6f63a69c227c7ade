r"""Sections 4.2 and 5.1 of the Rényi paper: traces from probes, Algorithm 1, and rank correlation.

Expectations over random signs are means over all sign vectors. Algorithm 1 is written out from its
printed lines, with and without its slips, and compared with powers of the matrix; its probes are
orthonormal bases, over which a trace is exact, so that no noise hides an offset.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import scipy.linalg
import scipy.stats
import torch

from paperkit.estimators import renyi_entropy
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._renyi_facts import (
    Configuration,
    Fact,
    Matrix,
    Metrics,
    Vector,
    entropy,
    facts_grid,
    generator_of,
    matrix_of,
    random_rotation,
    random_spectrum,
    relative,
)
from paperkit.linalg import lanczos
from paperkit.statistics import kendall_tau

ACCURACY = 0.01
"""Error, in nats, that the steps of Lanczos are counted to."""


def _random_signs(configuration: Configuration) -> Metrics:
    """Compare Tr f(H) with the mean of vᵀ f(H) v over all vectors of signs (equation 7)."""
    d, generator = configuration["dimension"], generator_of(configuration)
    eigenvalues = random_spectrum(d, generator)
    eigenvalues = 0.1 + eigenvalues / eigenvalues.max()
    matrix = matrix_of(eigenvalues, generator)
    if configuration["function"] == "exponential":
        value, trace = scipy.linalg.expm(matrix), float(np.exp(eigenvalues).sum())
    else:
        alpha = float(Fraction(configuration["function"]))
        value = np.real(scipy.linalg.fractional_matrix_power(matrix, alpha))
        trace = float((eigenvalues**alpha).sum())
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=d)))
    forms = ((signs @ value) * signs).sum(axis=1)
    return {"trace_error": relative(float(forms.mean()), trace), "spread": float(forms.std())}


# ---------------------------------------------------------------------------------------------
# Algorithm 1
# ---------------------------------------------------------------------------------------------


def lanczos_by_hand(matrix: Matrix, start: Vector, steps: int) -> tuple[Vector, Vector]:
    """Return α_1 … α_m and β_2 … β_m of Algorithm 1's loop, reorthogonalized in full."""
    basis = [start / np.linalg.norm(start)]
    image = matrix @ basis[0]
    diagonal, off_diagonal = [float(image @ basis[0])], []
    image = image - diagonal[0] * basis[0]
    for _ in range(steps - 1):
        for _ in range(2):
            image = image - sum((image @ v) * v for v in basis)
        beta = float(np.linalg.norm(image))
        off_diagonal.append(beta)
        basis.append(image / beta)
        image = matrix @ basis[-1]
        diagonal.append(float(image @ basis[-1]))
    return np.array(diagonal), np.array(off_diagonal)


def tridiagonal(diagonal: Vector, off_diagonal: Vector) -> Matrix:
    """Return the symmetric tridiagonal matrix."""
    return np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)


def _index(configuration: Configuration) -> Metrics:
    """Compare moments e₁ᵀ T^k e₁ with vᵀ H^k v, the off-diagonal as printed and one further on.

    As printed, step 4 asks for β_1, which no line defines: we take it for 0, for 1, the length of
    the probe, and for ‖Hv‖, and report the reading that errs least.
    """
    generator, steps = generator_of(configuration), configuration["steps"]
    eigenvalues = random_spectrum(configuration["dimension"], generator)
    matrix = matrix_of(eigenvalues / eigenvalues.max(), generator)
    start = generator.standard_normal(len(matrix))
    start /= np.linalg.norm(start)
    diagonal, betas = lanczos_by_hand(matrix, start, steps)
    # A quadrature of m points is exact for powers up to 2m − 1.
    exact_orders = range(2, 2 * steps)
    powers = {k: float(start @ np.linalg.matrix_power(matrix, k) @ start) for k in exact_orders}

    def error(off_diagonal: Vector, orders: Iterable[int]) -> float:
        found = tridiagonal(diagonal, off_diagonal)
        return max(
            abs(float(np.linalg.matrix_power(found, k)[0, 0]) / powers[k] - 1.0) for k in orders
        )

    readings = (0.0, 1.0, float(np.linalg.norm(matrix @ start)))
    printed = [error(np.array([first, *betas[:-1]]), (2, 3)) for first in readings]
    by_library = lanczos(torch.from_numpy(matrix), torch.from_numpy(start[None]), steps)
    return {
        "printed_error": min(printed),
        "repaired_error": error(betas, exact_orders),
        "difference_from_library": float(
            np.abs(by_library.off_diagonal[0, :-1].numpy() - betas).max()
        ),
    }


def quadratic_form(matrix: Matrix, start: Vector, steps: int, alpha: float) -> float:
    """Return vᵀ H^α v of a unit probe by the quadrature of ``steps`` Lanczos steps."""
    nodes, vectors = np.linalg.eigh(tridiagonal(*lanczos_by_hand(matrix, start, steps)))
    return float((vectors[0] ** 2 * np.abs(nodes) ** alpha).sum())


def _scale(configuration: Configuration) -> Metrics:
    """Return Algorithm 1's sums over unit probes, as printed and multiplied by d/l.

    The probes are whole orthonormal bases; for fewer probes than dimensions the matrix is a
    multiple of the identity, for which every unit vector gives the trace over d.
    """
    d, alpha, ratio = (configuration[name] for name in ("dimension", "alpha", "ratio"))
    generator = generator_of(configuration)
    probes = round(ratio * d)
    bases = [random_rotation(d, generator) for _ in range(math.ceil(ratio))]
    starts = np.concatenate(bases)[:probes]
    if ratio < 1:
        eigenvalues = np.full(d, generator.uniform(0.5, 2.0))
        above = probes * eigenvalues[0] ** alpha
        below = probes * eigenvalues[0]
    else:
        eigenvalues = random_spectrum(d, generator) + 0.1
        matrix = matrix_of(eigenvalues, generator)
        above = sum(quadratic_form(matrix, v, d, alpha) for v in starts)
        below = sum(quadratic_form(matrix, v, 1, 1.0) for v in starts)
    exact = entropy(eigenvalues, alpha)

    def returned(factor: float) -> float:
        return (math.log(factor * above) - alpha * math.log(factor * below)) / (1.0 - alpha)

    return {
        "printed_offset": abs(returned(1.0) - exact),
        "offset_error": abs(returned(1.0) - exact - math.log(probes / d)),
        "repaired_error": abs(returned(d / probes) - exact),
    }


def steps_until(nodes: list[Vector], weights: list[Vector], exact: float, alpha: float) -> int:
    """Return the steps from which on the entropy stays within the accuracy."""
    needed = len(nodes)
    for steps in range(len(nodes), 0, -1):
        t, w = nodes[steps - 1], weights[steps - 1]
        total = float((w * t).sum())
        if alpha == 1:
            found = math.log(total) - float((w * t * np.log(np.maximum(t, 1e-300))).sum()) / total
        else:
            found = math.log(float((w * t**alpha).sum())) - alpha * math.log(total)
            found /= 1.0 - alpha
        if abs(found - exact) > ACCURACY:
            break
        needed = steps
    return needed


def _cost(configuration: Configuration) -> Metrics:
    """Count the products with H until an entropy is within the accuracy, and until Shannon's is.

    The start has equal components along all eigenvectors, for which Lanczos without any noise
    gives traces; the rules of all steps come from one recurrence, and serve all orders.
    """
    d, alpha = 300, configuration["alpha"]
    eigenvalues = np.arange(1, d + 1) ** -configuration["decay"]
    start = torch.full((1, d), 1.0, dtype=torch.float64, device="cpu")
    found = lanczos(torch.diag(torch.from_numpy(eigenvalues)), start, steps=150)
    diagonal, off_diagonal = found.diagonal[0].numpy(), found.off_diagonal[0].numpy()
    nodes, weights = [], []
    for steps in range(1, len(diagonal) + 1):
        matrix = tridiagonal(diagonal[:steps], off_diagonal[: steps - 1])
        values, vectors = np.linalg.eigh(matrix)
        nodes.append(np.maximum(values, 0.0))
        weights.append(d * vectors[0] ** 2)
    products = {
        order: steps_until(nodes, weights, entropy(eigenvalues, order), order)
        for order in (alpha, 1.0)
    }
    return {
        "products": products[alpha],
        "products_for_shannon": products[1.0],
        "products_ratio": products[alpha] / products[1.0],
        "products_saved": products[1.0] - products[alpha],
        "difference_from_library": abs(
            renyi_entropy(torch.from_numpy(eigenvalues), alpha) - entropy(eigenvalues, alpha)
        ),
    }


# ---------------------------------------------------------------------------------------------
# Rank correlation
# ---------------------------------------------------------------------------------------------


def tau_written_out(x: Vector, y: Vector) -> Fraction:
    """Return equation 8, by its double sum and in exact arithmetic."""
    n = len(x)
    total = sum(
        int(np.sign(x[i] - x[j])) * int(np.sign(y[i] - y[j])) for i in range(n) for j in range(i)
    )
    return Fraction(2 * total, n * (n - 1))


def _kendall(configuration: Configuration) -> Metrics:
    """Compare equation 8 with counts of pairs, and with scipy's τ-b where there are ties."""
    n, generator = configuration["models"], generator_of(configuration)
    x, noise = generator.standard_normal((2, n))
    y = x + noise
    if configuration["ties"]:
        x, y = np.round(x), np.round(y)
    written = float(tau_written_out(x, y))
    counted = kendall_tau(torch.from_numpy(x), torch.from_numpy(y))
    with_ties_left_out = float(scipy.stats.kendalltau(x, y).statistic)
    return {
        "tau_error": abs(written - counted.value),
        "tau_b_difference": abs(with_ties_left_out - written),
        "tau": written,
        "ties": counted.ties_x + counted.ties_y,
    }


FACTS = {
    "random signs": Fact(
        _random_signs,
        {"dimension": (2, 5, 10), "function": ("1/2", "3/2", "3", "exponential")},
    ),
    "index": Fact(_index, {"dimension": (10, 50), "steps": (3, 6)}),
    "scale": Fact(_scale, {"dimension": (6, 12), "alpha": (0.5, 1.5), "ratio": (0.5, 2.0, 3.0)}),
    "cost": Fact(
        _cost, {"alpha": (0.5, 1.5, 2.0, 3.0), "decay": (0.5, 1.0, 1.5, 2.0)}, chance=False
    ),
    "Kendall": Fact(_kendall, {"models": (5, 30, 36), "ties": (False, True)}),
}


def grid(profile: str) -> list[Configuration]:
    """List the configurations: every fact by its options and seeds."""
    return facts_grid(FACTS, profile)


def run(configuration: Configuration, context: RunContext) -> Metrics:
    """Compute both sides of one fact."""
    return FACTS[configuration["fact"]].run(configuration)


STUDY = Study(
    name="renyi_estimation",
    question="Do equations 6 to 8 and Algorithm 1 of the Rényi paper compute what they say?",
    grid=grid,
    run=run,
)

r"""Appendix F of the Rényi paper: the sharpness of all layers jointly, and of each.

Power sums :math:`R_\alpha = \sum_j q_j^\alpha` are computed from dense matrices with random bases
in every block, and compared with the library's statements.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import scipy.linalg
import torch

from paperkit.bounds.renyi import (
    block_decomposition,
    coupling_perturbation,
    coupling_perturbation_below_one,
    layers_are_uniform,
    layerwise_lower_bounds,
    power_sum_range,
)
from paperkit.curvature import dense_hessian
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
from paperkit.experiments.studies.renyi_definitions import network_and_batch
from paperkit.models.symmetries import layerwise, rescale, weight_names

BELOW = (0.25, 0.5, 0.75)
ABOVE = (1.1, 1.5, 2.0, 3.0)
SIZES = {"two layers": (3, 5), "four layers": (2, 10, 4, 20)}


def eigenvalues_of(matrix: Matrix) -> Vector:
    """Return the eigenvalues of a symmetric matrix."""
    return np.asarray(np.linalg.eigvalsh(matrix), dtype=np.float64)


def power_sum(values: Vector, alpha: float) -> float:
    """Return R_α of nonnegative values; negative ones are round-off and count as zero."""
    positive = np.maximum(values, 0.0)
    return float(((positive / positive.sum()) ** alpha).sum())


def layer_spectra(sizes: tuple[int, ...], generator: np.random.Generator) -> list[Vector]:
    """Draw a spectrum for each layer, traces and spreads of their own."""
    return [random_spectrum(size, generator) + 1e-6 for size in sizes]


def joined(spectra: list[Vector], generator: np.random.Generator) -> Matrix:
    """Return a block-diagonal matrix, each block in a random basis."""
    blocks = [matrix_of(spectrum, generator) for spectrum in spectra]
    return np.asarray(scipy.linalg.block_diag(*blocks))


def blocks_of(matrix: Matrix, sizes: tuple[int, ...]) -> Matrix:
    """Return the block diagonal of a matrix."""
    edges = [0, *np.cumsum(sizes)]
    parts = [matrix[a:b, a:b] for a, b in pairwise(edges)]
    return np.asarray(scipy.linalg.block_diag(*parts))


def coupled(sizes: tuple[int, ...], rank: int, generator: np.random.Generator) -> Matrix:
    """Draw a positive semidefinite matrix with coupling between the layers."""
    factor = generator.standard_normal((sum(sizes), rank))
    scales = np.exp(generator.standard_normal(sum(sizes)))
    return (scales[:, None] * factor) @ (scales[:, None] * factor).T / rank


# ---------------------------------------------------------------------------------------------
# Global and layer-wise optima
# ---------------------------------------------------------------------------------------------


def _consequence(configuration: Configuration) -> Metrics:
    """Lower the global sharpness by balancing traces, while the first layer's sharpness rises."""
    alpha, imbalance = configuration["alpha"], configuration["imbalance"]
    generator = generator_of(configuration)
    sizes = SIZES[configuration["layers"]]
    before = [1.0 + 0.1 * generator.uniform(size=size) for size in sizes]
    before[1:] = [imbalance * spectrum for spectrum in before[1:]]
    after = [spectrum / spectrum.mean() for spectrum in before]
    after[0] = after[0] * np.exp(0.4 * generator.standard_normal(sizes[0]))
    after[0] /= after[0].mean()
    fall = entropy(np.concatenate(after), alpha) - entropy(np.concatenate(before), alpha)
    rise = entropy(before[0], alpha) - entropy(after[0], alpha)
    return {"global_fall": fall, "layer_rise": rise, "violation": min(fall, rise)}


def _near_the_optimum(configuration: Configuration) -> Metrics:
    r"""Bound each layer's distance from uniform by the global one, block-diagonal and α > 1.

    With v_l = d_l/d, x_l = w_l/v_l and σ_l = s_l d_l^(1−α), R_α d^(α−1) is Σ v_l x_l^α s_l. All s_l
    are at least 1, and Σ v_l x_l^α too, so that v_l x_l^α (s_l − 1) ≤ R_α d^(α−1) − 1.
    """
    alpha, generator = configuration["alpha"], generator_of(configuration)
    sizes = SIZES[configuration["layers"]]
    nearness = 10.0 ** generator.uniform(-4.0, 0.0)
    spectra = [1.0 + nearness * generator.uniform(size=size) for size in sizes]
    values = eigenvalues_of(joined(spectra, generator))
    d, trace = sum(sizes), float(values.sum())
    delta = power_sum(values, alpha) * d ** (alpha - 1.0) - 1.0
    slacks = []
    for spectrum in spectra:
        share = len(spectrum) / d
        weight = share * (float(spectrum.sum()) / trace / share) ** alpha
        allowed = math.log1p(delta / weight) / (alpha - 1.0)
        slacks.append(allowed - (math.log(len(spectrum)) - entropy(spectrum, alpha)))
    return {"slack": min(slacks), "excess": delta}


def _balancing(configuration: Configuration) -> Metrics:
    """Scale the layers of a network until the traces per weight are equal."""
    network, depth = configuration["network"], configuration["depth"]
    model, inputs, targets, loss = network_and_batch(network, depth, configuration["seed"])
    names = weight_names(model)

    def curvatures(of: torch.nn.Module) -> Vector:
        hessians = [dense_hessian(of, inputs, targets, loss, parameters=[n]) for n in names]
        return np.array([float(h.trace()) / len(h) for h in hessians])

    before = curvatures(model)
    common = float(np.exp(np.log(before).mean()))
    factors = np.sqrt(before / common)
    balanced = rescale(model, layerwise(model, factors.tolist()))
    outputs, moved = (m(inputs).detach().numpy() for m in (model, balanced))
    after = curvatures(balanced)
    errors = {
        "function": float(np.abs(moved - outputs).max() / np.abs(outputs).max()),
        "balance": float(np.abs(after / common - 1.0).max()),
        "product": abs(math.log(float(factors.prod()))),
    }
    return {"errors": errors, "imbalance_before": float(before.max() / before.min())}


# ---------------------------------------------------------------------------------------------
# Power sums
# ---------------------------------------------------------------------------------------------


def _direction(configuration: Configuration) -> Metrics:
    """Average a spectrum, which lowers the sharpness, and see where the power sum goes."""
    alpha, generator = configuration["alpha"], generator_of(configuration)
    values = random_spectrum(configuration["dimension"], generator)
    averaged = random_rotation(len(values), generator) ** 2 @ values
    rise = power_sum(averaged, alpha) - power_sum(values, alpha)
    sharpness_fall = entropy(averaged, alpha) - entropy(values, alpha)
    return {
        "rise_with_falling_sharpness": min(rise, sharpness_fall),
        "slack": min(math.copysign(1.0, 1.0 - alpha) * rise, sharpness_fall),
    }


def _decomposition(configuration: Configuration) -> Metrics:
    """Compare R_α of a block-diagonal matrix with its layers' power sums (Lemma F.2)."""
    alpha, generator = configuration["alpha"], generator_of(configuration)
    sizes = SIZES[configuration["layers"]]
    spectra = layer_spectra(sizes, generator)
    matrix = joined(spectra, generator)
    left = power_sum(eigenvalues_of(matrix), alpha)
    trace = sum(float(s.sum()) for s in spectra)
    right = sum((float(s.sum()) / trace) ** alpha * power_sum(s, alpha) for s in spectra)
    claim = block_decomposition(torch.from_numpy(matrix), sizes, alpha)
    return {
        "decomposition_error": max(
            relative(left / right, 1.0),
            relative(claim.left / right, 1.0),
            relative(claim.right / right, 1.0),
        )
    }


def _power_sum_bound(configuration: Configuration) -> Metrics:
    """Return the slack of Lemma F.3 on random spectra, and its error at equality."""
    alpha, d = configuration["alpha"], configuration["dimension"]
    generator = generator_of(configuration)
    sign = math.copysign(1.0, alpha - 1.0)
    slacks = []
    for _ in range(20):
        values = random_spectrum(d, generator)
        slacks.append(sign * (power_sum(values, alpha) / d ** (1.0 - alpha) - 1.0))
        slacks += [claim.slack for claim in power_sum_range(torch.from_numpy(values), alpha)]
    return {
        "slack": min(slacks),
        "error_at_uniform": abs(power_sum(np.full(d, 0.3), alpha) * d ** (alpha - 1.0) - 1.0),
    }


def _global_optimum(configuration: Configuration) -> Metrics:
    """Return the slack of Theorem F.4, and its error at multiples of the identity.

    Beside them stands how far a matrix is from the minimum whose layers are uniform, and whose
    traces are not balanced.
    """
    alpha, generator = configuration["alpha"], generator_of(configuration)
    sizes = SIZES[configuration["layers"]]
    matrix = joined(layer_spectra(sizes, generator), generator)
    claims = layerwise_lower_bounds(torch.from_numpy(matrix), sizes, alpha)
    d = sum(sizes)
    middle = sum(
        (float(block.trace()) / float(matrix.trace())) ** alpha * len(block) ** (1.0 - alpha)
        for block in (matrix[a:b, a:b] for a, b in pairwise([0, *np.cumsum(sizes)]))
    )
    power = power_sum(eigenvalues_of(matrix), alpha)
    uniform = [np.full(size, 3.0**k) for k, size in enumerate(sizes)]
    return {
        "slack": min(power - middle, middle - d ** (1.0 - alpha), *(c.slack for c in claims)),
        "error_at_identity": abs(
            power_sum(eigenvalues_of(generator.uniform(0.1, 9.0) * np.eye(d)), alpha)
            * d ** (alpha - 1.0)
            - 1.0
        ),
        "excess_of_uniform_layers": power_sum(np.concatenate(uniform), alpha) - d ** (1.0 - alpha),
    }


def _all_orders(configuration: Configuration) -> Metrics:
    """Compare each layer's entropy with its maximum, at the minimum and at every order."""
    generator, sizes = generator_of(configuration), SIZES[configuration["layers"]]
    rotation = random_rotation(sum(sizes), generator)
    matrix = (rotation * generator.uniform(0.1, 9.0)) @ rotation.T
    matrix = 0.5 * (matrix + matrix.T)
    errors = []
    for beta in (*BELOW, 1.0, *ABOVE, 20.0):
        claims = layers_are_uniform(torch.from_numpy(matrix), sizes, beta)
        blocks = [matrix[a:b, a:b] for a, b in pairwise([0, *np.cumsum(sizes)])]
        found = [entropy(eigenvalues_of(block), beta) for block in blocks]
        errors += [abs(f - math.log(size)) for f, size in zip(found, sizes, strict=True)]
        errors += [abs(claim.slack) for claim in claims]
    return {"entropy_error": max(errors)}


# ---------------------------------------------------------------------------------------------
# Couplings between layers
# ---------------------------------------------------------------------------------------------


def _coupling(configuration: Configuration) -> Metrics:
    """Return the slack of Proposition F.6, and of pinching, on random coupled matrices."""
    alpha, generator = configuration["alpha"], generator_of(configuration)
    sizes = SIZES[configuration["layers"]]
    slacks, one_sided = [], []
    for rank in (2, 10, 100):
        matrix = coupled(sizes, rank, generator)
        diagonal = blocks_of(matrix, sizes)
        full, pinched = (eigenvalues_of(m) for m in (matrix, diagonal))
        change = power_sum(full, alpha) - power_sum(pinched, alpha)
        trace, norm = float(matrix.trace()), float(np.linalg.norm(matrix - diagonal))
        largest = max(float(full.max()), float(pinched.max()))
        bound = alpha * (largest / trace) ** (alpha - 1.0) * math.sqrt(len(matrix)) * norm / trace
        claim = coupling_perturbation(torch.from_numpy(matrix), sizes, alpha)
        slacks += [bound - abs(change), claim.slack]
        one_sided.append(change)
    return {"slack": min(slacks), "pinching_slack": min(one_sided)}


def _coupling_in_pairs(configuration: Configuration) -> Metrics:
    """Return |ΔR| over ‖E‖_F / T for k equal eigenvalues that a coupling joins in pairs.

    Each pair of layers of one weight has the block [[1, 1], [1, 1]] / k, of eigenvalues 2/k and 0.
    """
    alpha, k = configuration["alpha"], configuration["eigenvalues"]
    full = np.concatenate([np.full(k // 2, 2.0 / k), np.zeros(k // 2)])
    change = power_sum(full, alpha) - power_sum(np.full(k, 1.0 / k), alpha)
    norm = math.sqrt(k) / k
    return {"ratio": abs(change) / norm, "ratio_less_order": abs(change) / norm - alpha}


def _coupling_below_one(configuration: Configuration) -> Metrics:
    """Return |ΔR| over ‖E‖_F / T for two small eigenvalues beside a large one, α < 1."""
    alpha, small = configuration["alpha"], 10.0 ** -configuration["exponent"]
    sizes = (1, 1, 1)
    matrix = np.asarray(scipy.linalg.block_diag(1.0, np.full((2, 2), small)))
    # The eigenvalues are 1, 2s and 0; numerically a zero would be round-off, and its power not.
    change = power_sum(np.array([1.0, 2.0 * small, 0.0]), alpha)
    change -= power_sum(np.array([1.0, small, small]), alpha)
    norm = math.sqrt(2.0) * small / (1.0 + 2.0 * small)
    claim = coupling_perturbation_below_one(torch.from_numpy(matrix), sizes, alpha, "corrected")
    return {"ratio": abs(change) / norm, "hoelder_slack": claim.right - abs(change)}


def _hoelder(configuration: Configuration) -> Metrics:
    """Return the slack of |ΔR| ≤ d^(1−α) (‖E‖_*/T)^α on random coupled matrices, α < 1."""
    alpha, generator = configuration["alpha"], generator_of(configuration)
    sizes = SIZES[configuration["layers"]]
    slacks = []
    for rank in (sum(sizes), 100):
        matrix = coupled(sizes, rank, generator)
        diagonal = blocks_of(matrix, sizes)
        full, pinched = (eigenvalues_of(m) for m in (matrix, diagonal))
        change = abs(power_sum(full, alpha) - power_sum(pinched, alpha))
        nuclear = float(np.linalg.norm(matrix - diagonal, "nuc")) / float(matrix.trace())
        slacks.append(len(matrix) ** (1.0 - alpha) * nuclear**alpha - change)
    return {"slack": min(slacks)}


_LAYERS = {"layers": tuple(SIZES)}
FACTS = {
    "consequence": Fact(
        _consequence, {**_LAYERS, "alpha": (1.1, 1.5, 2.0), "imbalance": (10.0, 100.0)}
    ),
    "near the optimum": Fact(_near_the_optimum, {**_LAYERS, "alpha": ABOVE}),
    "balancing": Fact(_balancing, {"network": ("relu", "leaky_relu"), "depth": (2, 3, 5)}),
    "direction": Fact(_direction, {"dimension": (2, 10, 100), "alpha": (*BELOW, *ABOVE)}),
    "decomposition": Fact(_decomposition, {**_LAYERS, "alpha": (*BELOW, *ABOVE)}),
    "power sum": Fact(_power_sum_bound, {"dimension": (2, 10, 100), "alpha": (*BELOW, *ABOVE)}),
    "global optimum": Fact(_global_optimum, {**_LAYERS, "alpha": ABOVE}),
    "all orders": Fact(_all_orders, _LAYERS),
    "coupling": Fact(_coupling, {**_LAYERS, "alpha": ABOVE}),
    "coupling in pairs": Fact(
        _coupling_in_pairs,
        {"alpha": (1.1, 1.2), "eigenvalues": (100, 10_000, 1_000_000)},
        chance=False,
    ),
    "coupling, order below one": Fact(
        _coupling_below_one, {"alpha": BELOW, "exponent": (2, 4, 6, 8)}, chance=False
    ),
    "Hölder": Fact(_hoelder, {**_LAYERS, "alpha": BELOW}),
}


def grid(profile: str) -> list[Configuration]:
    """List the configurations: every fact by its options and seeds."""
    return facts_grid(FACTS, profile)


def run(configuration: Configuration, context: RunContext) -> Metrics:
    """Compute both sides of one fact."""
    return FACTS[configuration["fact"]].run(configuration)


STUDY = Study(
    name="renyi_joint_layers",
    question="What does the sharpness of all layers jointly say of each layer's?",
    grid=grid,
    run=run,
)

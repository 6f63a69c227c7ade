r"""Appendices C and D of the Rényi paper: its bounds by the entropy of the Hessian.

Determinants, traces and entropies are compared on spectra that are written down; integrals over
ellipsoids are done by quadrature. The printed bounds are put to a layer that memorises: an input is
given the weight that belongs to its nearest neighbour in the sample, and its label, 0 or 1, is a
fair coin. The loss :math:`(1 - \cos \pi (w - y)) / 2` lies in [0, 1] and is smooth; the training
loss has an isolated minimum of 0, at which every weight is its sample's label and the Hessian a
multiple of the identity; and the population loss is ½ at every w.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy.integrate
import torch

from paperkit.bounds.renyi import (
    determinant_chain,
    ellipsoid_divergence,
    ellipsoid_mean,
    ellipsoid_posterior,
    ellipsoid_posterior_entropy,
    isolated_minimum,
    isolated_minimum_entropy,
    neighbourhood_rise,
    sum_of_logarithms,
)
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._renyi_facts import (
    Configuration,
    Fact,
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

ORDERS = (0.25, 0.5, 0.9, 1.0, 1.1, 1.5, 2.0, 3.0)
_DIMENSIONS = (2, 5, 20, 200)

# ---------------------------------------------------------------------------------------------
# Determinant, trace and entropy
# ---------------------------------------------------------------------------------------------


def _logarithms(configuration: Configuration) -> Metrics:
    """Return the slack of Σ log p ≤ −ℋ and of the chain from the determinant, on random spectra."""
    generator, alpha = generator_of(configuration), configuration["alpha"]
    printed, sharper, differences, chain = [], [], [], []
    for _ in range(20):
        values = random_spectrum(configuration["dimension"], generator)
        p = values / values.sum()
        total = float(np.log(p).sum())
        printed.append(-entropy(p, alpha) - total)
        sharper.append(-len(p) * entropy(p, alpha) - total)
        claim = sum_of_logarithms(torch.from_numpy(values), alpha)
        differences.append(max(relative(claim.left, total), relative(claim.slack, printed[-1])))
        chain += [step.slack for step in determinant_chain(torch.from_numpy(values), alpha)]
    return {
        "slack": min(printed),
        "sharper_slack": min(sharper),
        "chain_slack": min(chain),
        "difference_from_library": max(differences),
    }


def _averaging(configuration: Configuration) -> Metrics:
    """Return both ends of the chain before and after eigenvalues of a fixed trace are averaged."""
    generator, alpha = generator_of(configuration), configuration["alpha"]
    values = random_spectrum(configuration["dimension"], generator)
    averaged = random_rotation(len(values), generator) ** 2 @ values
    before, after = (determinant_chain(torch.from_numpy(v), alpha) for v in (values, averaged))
    entropy_rise = entropy(averaged, alpha) - entropy(values, alpha)
    return {
        "entropy_rise": entropy_rise,
        "sum_rise": after[0].left - before[0].left,
        "bound_fall": before[-1].right - after[-1].right,
        "rise_of_both": min(entropy_rise, after[0].left - before[0].left),
    }


def _entropy_factor(configuration: Configuration) -> Metrics:
    """Return how much of the printed A depends on the entropy at all: the factor exp(−ℋ/d)."""
    d, alpha = configuration["dimension"], configuration["alpha"]
    generator = generator_of(configuration)
    factors = [math.exp(-entropy(random_spectrum(d, generator), alpha) / d) for _ in range(50)]
    spread = math.log(max(factors) / min(factors))
    return {
        "spread_of_the_factor": spread,
        "slack": math.log(d) / d - spread,
        "largest_possible": math.log(d) / d,
    }


# ---------------------------------------------------------------------------------------------
# Ellipsoids
# ---------------------------------------------------------------------------------------------


def ball_volume(dimension: int) -> float:
    """Return the logarithm of the unit ball's volume, slice by slice, without Gamma functions."""
    logarithm = 0.0
    for k in range(1, dimension + 1):
        # A slice at height t is a ball of k − 1 dimensions and of radius √(1 − t²).
        slices, _ = scipy.integrate.quad(lambda x, k=k: math.cos(x) ** k, -math.pi / 2, math.pi / 2)
        logarithm += math.log(slices)
    return logarithm


def _ellipsoid(configuration: Configuration) -> Metrics:
    """Compare the form's mean and the divergence with quadrature and an LU determinant."""
    d, generator = configuration["dimension"], generator_of(configuration)
    eigenvalues = random_spectrum(d, generator) + 0.1
    rho = 0.1
    radius = 2.0 * rho / math.sqrt(eigenvalues.min())
    matrix = matrix_of(eigenvalues, generator)
    # The form's value is ρ² t², t being the radius in the ball, whose density is d t^(d − 1).
    mean, _ = scipy.integrate.quad(lambda t: rho**2 * t**2 * d * t ** (d - 1), 0.0, 1.0)
    sign, log_determinant = np.linalg.slogdet(matrix)
    log_ball = ball_volume(d) + d * math.log(radius)
    log_ellipsoid = ball_volume(d) + d * math.log(rho) - 0.5 * float(log_determinant)
    divergence = ellipsoid_divergence(torch.from_numpy(eigenvalues), rho, radius)
    directions = generator.standard_normal((20000, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    points = rho * directions * generator.uniform(size=(20000, 1)) ** (1.0 / d)
    inverse_root = np.linalg.inv(np.linalg.cholesky(matrix)).T
    forms = np.einsum("ij,jk,ik->i", points @ inverse_root.T, matrix, points @ inverse_root.T)
    error = float(forms.std()) / math.sqrt(len(forms))
    return {
        "mean_error": relative(mean, ellipsoid_mean(d, rho)),
        "divergence_error": relative(log_ball - log_ellipsoid, divergence),
        "errors": max(
            relative(mean, ellipsoid_mean(d, rho)), relative(log_ball - log_ellipsoid, divergence)
        ),
        "sampled_mean_in_standard_errors": abs(float(forms.mean()) - mean) / error,
        "determinant_sign": float(sign),
    }


def _divergence_of_gibbs(d: int, rise: float) -> tuple[float, float]:
    """Return KL(Q, P) and E_P Δ, P uniform on a ball, Δ = rise · t², Q the Gibbs density on it."""

    def mean(function: Callable[[float], float]) -> float:
        value, _ = scipy.integrate.quad(
            lambda u: function(rise * u ** (2.0 / d)), 0.0, 1.0, epsabs=1e-13, epsrel=1e-12
        )
        return float(value)

    normalization = mean(lambda delta: math.exp(-delta))
    posterior_mean = mean(lambda delta: delta * math.exp(-delta)) / normalization
    return -posterior_mean - math.log(normalization), mean(lambda delta: delta)


def _neighbourhood(configuration: Configuration) -> Metrics:
    """Compare the rise over a level ellipsoid by quadrature with the library and the printed A."""
    d, generator = configuration["dimension"], generator_of(configuration)
    eigenvalues = random_spectrum(d, generator) + 0.1
    rise = 10.0 ** generator.uniform(-2, 0.5)
    # The ellipsoid ½ΔᵀHΔ ≤ rise has half-axes √(2 rise / λ).
    log_volume = ball_volume(d) + 0.5 * float(np.log(2.0 * rise / eigenvalues).sum())
    divergence, mean_rise = _divergence_of_gibbs(d, rise)
    claim = neighbourhood_rise(torch.from_numpy(eigenvalues), log_volume)
    return {
        "rise_error": relative(claim.left / mean_rise, 1.0),
        "divergence_slack": mean_rise - divergence,
        "shortfall_of_printed": 1.0 - claim.right / mean_rise,
    }


def _mcallester(configuration: Configuration) -> Metrics:
    """Count samples on which some posterior over k coins exceeds equation 47."""
    n, k, scale = 50, configuration["hypotheses"], configuration["range"]
    epsilon, generator, trials = 0.05, generator_of(configuration), 2000
    p = generator.uniform(0.0, 1.0, size=k)
    losses = scale * generator.binomial(n, p, size=(trials, k)) / n
    gaps = scale * p - losses
    constant = math.log(2.0 * n / epsilon)
    worst = np.full(trials, -np.inf)
    # The posterior that exceeds the bound most is a Gibbs density of the gaps.
    for temperature in (0.0, *np.geomspace(0.1, 1e4, 60)):
        exponents = temperature * gaps
        q = np.exp(exponents - exponents.max(axis=1, keepdims=True))
        q /= q.sum(axis=1, keepdims=True)
        divergence = (q * np.log(np.maximum(q * k, 1e-300))).sum(axis=1)
        bound = np.sqrt((divergence + constant) / (2.0 * (n - 1)))
        worst = np.maximum(worst, (q * gaps).sum(axis=1) - bound)
    failures = int((worst > 0).sum())
    return {
        "failure_rate": failures / trials,
        # The bound would be exceeded on more samples than this were the margin here negative.
        "margin": -float(np.quantile(worst, 1.0 - 0.5 * epsilon)),
        "excess_of_failures": failures / trials - epsilon,
    }


# ---------------------------------------------------------------------------------------------
# The bounds themselves, on a layer that memorises and on angles that are learned
# ---------------------------------------------------------------------------------------------


def memorising_spectrum(n: int) -> Vector:
    """Return the Hessian's eigenvalues at the minimum of the layer that memorises n samples."""
    return np.full(n, 0.5 * math.pi**2 / n)


def _memorising_posterior(configuration: Configuration) -> Metrics:
    """Compare the bounds of Theorems C.2 and 3.2, on the layer that memorises, with ½."""
    n, alpha, radius = configuration["n"], configuration["alpha"], configuration["radius"]
    eigenvalues = memorising_spectrum(n)
    # Every weight of the posterior lies in a ball, where (1 − cos x)/2 is at most x²/4.
    training = 0.25 * math.pi**2 * radius**2 / n
    log_volume = ball_volume(n) + n * math.log(radius)
    point = (0.5, training, 0.0, torch.from_numpy(eigenvalues), log_volume, n, 0.05)
    return {
        "violation_of_determinant": -isolated_minimum(*point).slack,
        "violation_of_entropy": -isolated_minimum_entropy(*point, alpha).slack,
    }


def _memorising_ellipsoid(configuration: Configuration) -> Metrics:
    """Compare Theorem 3.3 with ½: with a constant C of 100, and with the proof's own."""
    n, alpha, rho, epsilon = configuration["n"], configuration["alpha"], 0.01, 0.05
    eigenvalues = memorising_spectrum(n)
    spectrum = torch.from_numpy(eigenvalues)
    radicand = (-0.5 * entropy(eigenvalues, alpha) + 100.0) / (2.0 * (n - 1))
    with_a_constant = 0.5 * ellipsoid_mean(n, rho) + math.sqrt(max(radicand, 0.0))
    # The prior is a ball around the middle of the cube whose corners are the possible labels.
    distance = 0.5 * math.sqrt(n)
    radius = distance + rho / math.sqrt(float(eigenvalues.min()))
    setting = (0.5, 0.0, spectrum, rho, radius, n, epsilon)
    repaired = ellipsoid_posterior(*setting, centre_distance=distance)
    by_entropy = ellipsoid_posterior_entropy(*setting, alpha, centre_distance=distance)
    divergence = ellipsoid_divergence(spectrum, rho, radius)
    constant = divergence + 0.5 * entropy(eigenvalues, alpha)
    return {
        "violation": 0.5 - with_a_constant,
        "slack": min(repaired.slack, by_entropy.slack),
        "constant_of_the_proof": constant,
        "constant_less_half_the_dimension": constant - 0.5 * n,
    }


def _learned_angles(configuration: Configuration) -> Metrics:
    """Put the bound with the determinant to parameters that were learned, in many samples.

    The parameters are d angles of the loss above, averaged; the data are normal. The minimum on a
    sample is the circular mean, so that both losses and the Hessian are closed forms.
    """
    d, n, rho = configuration["dimension"], configuration["n"], 0.02
    generator = generator_of(configuration)
    slacks = []
    for _ in range(50):
        width = generator.uniform(0.05, 0.5)
        data = width * generator.standard_normal((n, d))
        means = np.exp(1j * math.pi * data).mean(axis=0)
        learned, lengths = np.angle(means) / math.pi, np.abs(means)
        population_length = math.exp(-0.5 * (math.pi * width) ** 2)
        population = float((1.0 - population_length * np.cos(math.pi * learned)).mean() / 2.0)
        eigenvalues = 0.5 * math.pi**2 * lengths / d
        half_axis = rho / math.sqrt(float(eigenvalues.min()))
        claim = ellipsoid_posterior(
            population,
            float((1.0 - lengths).mean() / 2.0),
            torch.from_numpy(eigenvalues),
            rho,
            radius=2.0 * math.sqrt(d),
            n=n,
            epsilon=0.05,
            remainder=math.pi**3 / 12.0 * half_axis**3,
            centre_distance=float(np.linalg.norm(learned)),
        )
        if claim.assumptions["prior_contains_ellipsoid"]:
            slacks.append(claim.slack)
    return {"slack": min(slacks), "samples": len(slacks)}


# ---------------------------------------------------------------------------------------------
# What may be called a constant
# ---------------------------------------------------------------------------------------------


def _frozen_trace(configuration: Configuration) -> Metrics:
    """Put two layer-wise scaled copies of one minimum into the bound with the trace absorbed.

    The neighbourhood's volume V stays. The rise over it is that of the scaled Hessian, and the
    printed term that of the canonical one.
    """
    d, alpha = configuration["dimension"], configuration["alpha"]
    generator = generator_of(configuration)
    eigenvalues = random_spectrum(d, generator) + 0.1
    factor = 2.0 ** generator.uniform(3.0, 6.0)
    scaled = eigenvalues * factor**2
    log_volume = ball_volume(d)
    true_rise = neighbourhood_rise(torch.from_numpy(scaled), log_volume).left

    def printed(trace: float, volume: float) -> float:
        exponent = (d * math.log(trace) - entropy(scaled, alpha)) / d
        return (
            d
            / (4.0 * math.pi * math.e)
            * math.exp(2.0 * volume / d + math.log(math.pi) / d + exponent)
        )

    absorbed = printed(float(eigenvalues.sum()), log_volume)
    # The neighbourhood scaled with the weights, by 1/factor in each direction, keeps the product.
    moved = printed(float(scaled.sum()), log_volume - d * math.log(factor))
    return {
        "shortfall": math.log(true_rise / absorbed),
        "product_error": relative(moved / absorbed, 1.0),
    }


def _only_the_determinant(configuration: Configuration) -> Metrics:
    """Compare two Hessians of one determinant and other traces, and one Hessian times 4."""
    d, alpha = configuration["dimension"], configuration["alpha"]
    generator = generator_of(configuration)
    first, second = (random_spectrum(d, generator) + 0.1 for _ in range(2))
    second *= math.exp((np.log(first).sum() - np.log(second).sum()) / d)
    rho = 0.01
    radius = 1.0 + rho / math.sqrt(min(first.min(), second.min()))
    by_determinant = [
        ellipsoid_posterior(0.0, 0.1, torch.from_numpy(v), rho, radius, 1000, 0.05).right
        for v in (first, second)
    ]
    # The constant that the last step leaves: what the divergence and half an entropy add up to.
    constants = [
        ellipsoid_divergence(torch.from_numpy(v), rho, radius) + 0.5 * entropy(v, alpha)
        for v in (first, 4.0 * first)
    ]
    return {
        "determinant_error": relative(*by_determinant),
        "trace_ratio": float(first.sum() / second.sum()),
        "change_of_the_constant": constants[1] - constants[0],
    }


FACTS = {
    "logarithms": Fact(_logarithms, {"dimension": _DIMENSIONS, "alpha": ORDERS}),
    "averaging": Fact(_averaging, {"dimension": _DIMENSIONS, "alpha": ORDERS}),
    "entropy factor": Fact(_entropy_factor, {"dimension": (10, 1000, 100000), "alpha": (0.5, 1.5)}),
    "ellipsoid": Fact(_ellipsoid, {"dimension": (1, 2, 3, 10, 50)}),
    "neighbourhood": Fact(_neighbourhood, {"dimension": (1, 2, 5, 6, 10, 100)}),
    "McAllester": Fact(_mcallester, {"hypotheses": (2, 20, 200), "range": (1.0, 10.0)}),
    "memoriser, Gibbs posterior": Fact(
        _memorising_posterior,
        {"n": (500, 2000), "alpha": (0.5, 1.5), "radius": (0.01, 0.1)},
        chance=False,
    ),
    "memoriser, ellipsoid": Fact(
        _memorising_ellipsoid, {"n": (500, 2000), "alpha": (0.5, 1.5)}, chance=False
    ),
    "learned angles": Fact(_learned_angles, {"dimension": (1, 3, 10), "n": (20, 200)}),
    "frozen trace": Fact(_frozen_trace, {"dimension": (2, 10, 100), "alpha": (0.5, 1.5)}),
    "only the determinant": Fact(
        _only_the_determinant, {"dimension": (2, 10, 100), "alpha": (0.5, 1.5)}
    ),
}


def grid(profile: str) -> list[Configuration]:
    """List the configurations: every fact by its options and seeds."""
    return facts_grid(FACTS, profile)


def run(configuration: Configuration, context: RunContext) -> Metrics:
    """Compute both sides of one fact."""
    return FACTS[configuration["fact"]].run(configuration)


STUDY = Study(
    name="renyi_bounds",
    question="Which of the Rényi paper's generalization bounds hold, and do they say what is said?",
    grid=grid,
    run=run,
)

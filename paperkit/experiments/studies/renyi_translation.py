r"""Section 3 and Appendix B of the Rényi paper: from perturbed data to perturbed weights.

Equation 2 is checked on networks, the mean over orthogonal matrices on groups that can be listed,
and Proposition 3.1 on coins, whose probabilities are summed exactly, and on a predictor that
memorises.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import scipy.stats
import torch
from torch import nn

from paperkit.bounds.renyi import (
    haar_matrices,
    haar_relative_flatness,
    haar_translation,
    perturbation_translation,
)
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._renyi_facts import (
    Configuration,
    Fact,
    Matrix,
    Metrics,
    facts_grid,
    generator_of,
    matrix_of,
    random_rotation,
    random_spectrum,
    relative,
)
from paperkit.experiments.studies.renyi_definitions import network_and_batch


def _input_to_weights(configuration: Configuration) -> Metrics:
    """Compare equation 2's two sides, entry by entry, on the outputs of a network."""
    network, layer, rho = (configuration[name] for name in ("network", "layer", "rho"))
    model, inputs, targets, _ = network_and_batch(network, 3, configuration["seed"])
    generator = generator_of(configuration)
    module = model[layer]
    assert isinstance(module, nn.Linear)
    d = module.in_features
    matrix = torch.from_numpy(random_rotation(d, generator))
    with torch.no_grad():
        hidden = model[:layer](inputs)
        moved_inputs = model[layer:](hidden + rho * hidden @ matrix.T)
        moved_weights = module.weight + rho * module.weight @ matrix
        preactivations = hidden @ moved_weights.T
        if module.bias is not None:
            preactivations = preactivations + module.bias
        moved = model[layer + 1 :](preactivations)
    claim = perturbation_translation(model, (inputs, targets), str(layer), matrix, rho)
    scale = float(moved_inputs.abs().max())
    return {
        "translation_error": max(
            float((moved - moved_inputs).abs().max()) / scale, relative(claim.left, claim.right)
        )
    }


def _convolution(configuration: Configuration) -> Metrics:
    """Return how well any change of a kernel explains a matrix on the inputs' positions.

    The changes of the outputs under all kernels of the layer's size span a space; the share of the
    perturbation outside of it is what no kernel gives.
    """
    generator = generator_of(configuration)
    size, kernel = 8, configuration["kernel"]
    inputs = torch.from_numpy(generator.standard_normal((4, 1, size)))
    weight = torch.from_numpy(generator.standard_normal((1, 1, kernel)))
    matrix = torch.from_numpy(random_rotation(size, generator))

    def convolve(signal: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv1d(signal, taps).flatten()

    change = convolve(inputs @ matrix.T, weight)
    taps = torch.eye(kernel, dtype=torch.float64, device="cpu")
    columns = torch.stack([convolve(inputs, tap.view(1, 1, kernel)) for tap in taps], dim=1)
    fitted = columns @ torch.linalg.lstsq(columns, change.unsqueeze(1)).solution.squeeze(1)
    return {"unexplained": float((change - fitted).norm() / change.norm())}


def signed_permutations(dimension: int) -> Matrix:
    """Return all signed permutation matrices, whose second moment is the Haar measure's."""
    identity = np.eye(dimension)
    return np.stack(
        [
            np.array(signs)[:, None] * identity[list(order)]
            for order in itertools.permutations(range(dimension))
            for signs in itertools.product((-1.0, 1.0), repeat=dimension)
        ]
    )


def mean_rise(weight: Matrix, hessian: Matrix, matrices: Matrix) -> float:
    """Return the mean of ½ vec(WA)ᵀ H vec(WA) over equally likely matrices A."""
    moves = [(weight @ a).ravel() for a in matrices]
    return float(np.mean([0.5 * move @ hessian @ move for move in moves]))


def block_traces(weight: Matrix, hessian: Matrix) -> float:
    """Return Σ ⟨w_s, w_s'⟩ Tr H_ss' / 2d, which is relative flatness over 2d."""
    outputs, d = weight.shape
    total = 0.0
    for s, r in itertools.product(range(outputs), repeat=2):
        block = hessian[s * d : (s + 1) * d, r * d : (r + 1) * d]
        total += float(weight[s] @ weight[r]) * float(np.trace(block))
    return 0.5 * total / d


def _relative_flatness(configuration: Configuration) -> Metrics:
    """Compare the mean rise with block traces, and with that of another basis of one spectrum."""
    d, outputs, generator = configuration["dimension"], 3, generator_of(configuration)
    weight = generator.standard_normal((outputs, d))
    eigenvalues = random_spectrum(outputs * d, generator)
    hessian, turned = (matrix_of(eigenvalues, generator) for _ in range(2))
    group = signed_permutations(d)
    rise, other = (mean_rise(weight, h, group) for h in (hessian, turned))
    by_library = haar_relative_flatness(
        torch.from_numpy(weight), torch.from_numpy(hessian), torch.from_numpy(group)
    )
    flatness = block_traces(weight, hessian)
    rises = np.array(
        [mean_rise(weight, hessian, a[None]) for a in haar_matrices(d, 400, 1).numpy()]
    )
    error = float(rises.std()) / math.sqrt(len(rises))
    return {
        "flatness_error": max(
            relative(rise / flatness, 1.0), relative(by_library.right / flatness, 1.0)
        ),
        "same_spectrum_difference": abs(rise - other) / max(rise, other),
        "sampled_in_standard_errors": abs(float(rises.mean()) - flatness) / error,
    }


def deviation_probability(p: float, n: int, width: float) -> float:
    """Return P(p − mean > width) for n tosses of a coin of probability p, exactly summed."""
    most = math.ceil(n * (p - width)) - 1
    return float(scipy.stats.binom.cdf(most, n, p)) if most >= 0 else 0.0


def _hoeffding(configuration: Configuration) -> Metrics:
    """Check equation 13 on coins, and sum how often Proposition 3.1 fails on fresh data."""
    n, epsilon = configuration["n"], configuration["epsilon"]
    probabilities = np.linspace(0.01, 0.99, 99)
    slopes = np.array([-30.0, -3.0, -0.3, -0.03, 0.03, 0.3, 3.0, 30.0])
    generating = [
        t * t / 8.0 - (t * p + math.log1p(p * math.expm1(-t)))
        for p in probabilities
        for t in slopes
    ]
    width = haar_translation(0.0, [0.0], n=n, epsilon=epsilon).right
    failures = [deviation_probability(p, n, width) for p in probabilities]
    return {
        "slack": epsilon - max(failures),
        "failures": max(failures),
        "generating_slack": n * float(min(generating)),
    }


def recalled(sample: Matrix, inputs: Matrix) -> np.ndarray:
    """Return the index of the nearest neighbour in the sample, for each input."""
    squares = (sample**2).sum(axis=1) - 2.0 * inputs @ sample.T
    return np.asarray(squares.argmin(axis=1))


def _memoriser(configuration: Configuration) -> Metrics:
    """Put Proposition 3.1 to labels that are fair coins: none is foreseen, and all are recalled."""
    n, d, rho = (configuration[name] for name in ("n", "dimension", "rho"))
    generator = generator_of(configuration)
    sample, labels = generator.standard_normal((n, d)), generator.integers(0, 2, size=n)
    rotations = haar_matrices(d, draws=10, seed=configuration["seed"]).numpy()
    perturbed = [
        float((labels[recalled(sample, sample + rho * sample @ a.T)] != labels).mean())
        for a in rotations
    ]
    fresh = generator.standard_normal((4000, d))
    foreseen = labels[recalled(sample, fresh)] != generator.integers(0, 2, size=4000)
    # A label that is a fair coin is missed by half of all guesses, perturbed inputs or not.
    claim = haar_translation(0.5, perturbed, n=n, epsilon=0.05, perturbed_population_loss=0.5)
    return {
        "violation": -claim.slack,
        "perturbed_training_loss": float(np.mean(perturbed)),
        "sampled_population_loss": float(foreseen.mean()),
        "condition_is_met": claim.assumptions["perturbation_raises_population_loss"] is True,
    }


FACTS = {
    "input to weights": Fact(
        _input_to_weights,
        {"network": ("relu", "relu_bias", "gelu"), "layer": (0, 2), "rho": (0.1, 2.0)},
    ),
    "convolution": Fact(_convolution, {"kernel": (2, 3)}),
    "relative flatness": Fact(_relative_flatness, {"dimension": (2, 3, 4)}),
    "Hoeffding": Fact(
        _hoeffding, {"n": (10, 100, 1000), "epsilon": (0.01, 0.05, 0.3)}, chance=False
    ),
    "memoriser": Fact(_memoriser, {"n": (100, 1000), "dimension": (2, 10), "rho": (1e-3, 1e-2)}),
}


def grid(profile: str) -> list[Configuration]:
    """List the configurations: every fact by its options and seeds."""
    return facts_grid(FACTS, profile)


def run(configuration: Configuration, context: RunContext) -> Metrics:
    """Compute both sides of one fact."""
    return FACTS[configuration["fact"]].run(configuration)


STUDY = Study(
    name="renyi_translation",
    question="Where does the perturbation of data lead, and is Proposition 3.1 true?",
    grid=grid,
    run=run,
)

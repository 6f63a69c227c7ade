r"""Section 2 and Appendix E of the Rényi paper: the entropy of a matrix, and what keeps it.

Each fact compares two computations that share no code: the library against a definition written
out, a fractional matrix power, 60-digit arithmetic, or a network built a second time.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from itertools import pairwise

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn

from paperkit.curvature import dense_gauss_newton, dense_hessian
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
from paperkit.experiments.studies.entropy_facts import PAPER_ALPHAS
from paperkit.models.small import build_dense_network
from paperkit.models.symmetries import layerwise, rescale, weight_names

ORDERS = (0.5, 1.0, 1.5, 2.0, 3.0)
ORDERS_CALLED_STABLE = tuple(a for a in PAPER_ALPHAS if a <= 0.9 or 1.2 <= a <= 3.0)
WIDTHS = {2: (6, 7, 4), 3: (6, 7, 6, 4), 5: (6, 6, 6, 5, 5, 4)}
SAMPLES = 24

# ---------------------------------------------------------------------------------------------
# The entropy of a spectrum
# ---------------------------------------------------------------------------------------------


def decimal_entropy(masses: Vector, alpha: Decimal) -> Decimal:
    """Return the Rényi entropy, or Shannon's at order 1, in 60-digit arithmetic."""
    with localcontext() as context:
        context.prec = 60
        exact = [Decimal(float(mass)) for mass in masses]
        total = sum(exact, Decimal(0))
        p = [mass / total for mass in exact]
        if alpha == 1:
            return -sum((q * q.ln() for q in p), Decimal(0))
        power = sum(((alpha * q.ln()).exp() for q in p), Decimal(0))
        return power.ln() / (1 - alpha)


def _shannon_limit(configuration: Configuration) -> Metrics:
    """Compare orders ever closer to 1, on both sides, with the library at order 1."""
    masses = random_spectrum(configuration["dimension"], generator_of(configuration))
    shannon = renyi_entropy(torch.from_numpy(masses), 1.0)
    errors = {
        exponent: max(
            abs(float(decimal_entropy(masses, 1 + side * Decimal(10) ** -exponent)) - shannon)
            for side in (-1, 1)
        )
        for exponent in (3, 6, 13)
    }
    return {
        "limit_error": errors[13],
        "error_by_exponent": list(errors.values()),
        "shannon": shannon,
    }


def _spread(configuration: Configuration) -> Metrics:
    """Slack of the entropy's rise when entries are averaged by a random bistochastic matrix.

    The diagonal of a matrix averages its eigenvalues by the squares of an orthogonal matrix.
    """
    generator, alpha = generator_of(configuration), configuration["alpha"]
    slacks = []
    for _ in range(20):
        eigenvalues = random_spectrum(configuration["dimension"], generator)
        averaged = random_rotation(len(eigenvalues), generator) ** 2 @ eigenvalues
        before = renyi_entropy(torch.from_numpy(eigenvalues), alpha)
        slacks.append(entropy(averaged, alpha) - before)
    return {"slack": min(slacks)}


def _trace_form(configuration: Configuration) -> Metrics:
    """Compare equation 6 by fractional matrix powers with the entropy of eigenvalues."""
    generator, alpha = generator_of(configuration), configuration["alpha"]
    eigenvalues = random_spectrum(configuration["dimension"], generator) + 1e-3
    matrix = matrix_of(eigenvalues, generator)
    power = float(np.trace(np.real(scipy.linalg.fractional_matrix_power(matrix, alpha))))
    right = (math.log(power) - alpha * math.log(float(np.trace(matrix)))) / (1.0 - alpha)
    left = renyi_entropy(torch.linalg.eigvalsh(torch.from_numpy(matrix)), alpha)
    return {"trace_form_error": abs(left - right), "entropy": left}


# ---------------------------------------------------------------------------------------------
# Negative eigenvalues
# ---------------------------------------------------------------------------------------------


def signed_spectrum(dimension: int, negative: float, generator: np.random.Generator) -> Vector:
    """Draw eigenvalues of which the negative ones weigh ``negative`` of the positive ones."""
    values = random_spectrum(dimension, generator)
    half = dimension // 2
    low, high = values[:half], values[half:]
    return np.concatenate([-negative * low / low.sum(), high / high.sum()])


def mixed_entropy(eigenvalues: Vector, alpha: float) -> float:
    """Return what magnitudes in the numerator over the power of the signed trace give."""
    magnitudes = np.abs(eigenvalues)
    power = float((magnitudes**alpha).sum())
    return (math.log(power) - alpha * math.log(float(eigenvalues.sum()))) / (1.0 - alpha)


def outside(value: float, dimension: int) -> float:
    """Return how far a value lies outside of the range of an entropy, [0, log d]."""
    return max(-value, value - math.log(dimension), 0.0)


def _order_one(configuration: Configuration) -> Metrics:
    """How far the mixed formula leaves the range of entropies, near order 1 and elsewhere."""
    dimension = configuration["dimension"]
    values = signed_spectrum(dimension, configuration["negative"], generator_of(configuration))
    anomalies = {a: outside(mixed_entropy(values, a), dimension) for a in PAPER_ALPHAS}
    return {
        "anomaly_where_called_stable": max(anomalies[a] for a in ORDERS_CALLED_STABLE),
        "anomaly_near_one": max(anomalies[a] for a in (0.99, 0.999, 1.001, 1.01)),
    }


def _absolute_value(configuration: Configuration) -> Metrics:
    """Magnitudes in numerator and denominator: in range at every order, and continuous at 1."""
    dimension = configuration["dimension"]
    values = signed_spectrum(dimension, configuration["negative"], generator_of(configuration))
    found = [renyi_entropy(torch.from_numpy(values), a) for a in PAPER_ALPHAS]
    shannon = entropy(np.abs(values), 1.0)
    # The derivative in the order is −Var(log p)/2 at 1 and bounded nearby; 100 exceeds it by far.
    near = [
        100.0 * h - abs(renyi_entropy(torch.from_numpy(values), 1.0 + side * h) - shannon)
        for h in (1e-3, 1e-5)
        for side in (-1, 1)
    ]
    falls = [low - high for low, high in pairwise(found)]
    return {
        "slack": min(min(found), math.log(dimension) - max(found), min(falls)),
        "limit_slack": min(near),
    }


# ---------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------


def network_and_batch(
    network: str, depth: int, seed: int
) -> tuple[nn.Sequential, Tensor, Tensor, str]:
    """Build a small network at random, with Gaussian inputs and random labels."""
    generator = torch.Generator(device="cpu").manual_seed(2000 + seed)
    widths = WIDTHS[depth]
    model = build_dense_network(network, seed, widths)
    inputs = torch.empty(SAMPLES, widths[0], dtype=torch.float64, device="cpu")
    inputs.normal_(generator=generator)
    targets = torch.randint(widths[-1], (SAMPLES,), generator=generator, device="cpu")
    if network.endswith("_brier"):
        one_hot = nn.functional.one_hot(targets, widths[-1]).to(torch.float64)
        return model, inputs, one_hot, "half_squared_error"
    return model, inputs, targets, "cross_entropy"


def descend(model: nn.Module, inputs: Tensor, targets: Tensor, steps: int, lr: float) -> float:
    """Take steps of gradient descent on the mean cross-entropy; return the last loss."""
    parameters = list(model.parameters())
    value = math.nan
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(inputs), targets)
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data.sub_(slope, alpha=lr)
        value = float(loss.detach())
    return value


def negative_share(matrix: Tensor) -> float:
    """Return the weight of the negative eigenvalues among all magnitudes."""
    values = torch.linalg.eigvalsh(matrix)
    return float(values.clamp(max=0).abs().sum() / values.abs().sum())


def _definition(configuration: Configuration) -> Metrics:
    """Return the negative share of the Hessians that the paper takes the entropy of."""
    model, inputs, targets, _ = network_and_batch(
        configuration["network"], 3, configuration["seed"]
    )
    loss = descend(model, inputs, targets, steps=300, lr=0.1)
    names = weight_names(model)
    blocks = [names] if configuration["of"] == "all layers jointly" else [[n] for n in names]
    shares = [negative_share(dense_hessian(model, inputs, targets, parameters=b)) for b in blocks]
    return {"negative_share": max(shares), "training_loss": loss}


def random_factors(count: int, generator: np.random.Generator) -> list[float]:
    """Draw positive factors between ¼ and 4, with product one."""
    logarithms = generator.uniform(-1.0, 1.0, size=count)
    logarithms -= logarithms.mean()
    return [float(4.0**x) for x in logarithms]


def forward_by_hand(model: nn.Module, inputs: Matrix, slope: float) -> Matrix:
    """Return the outputs of a bias-free network, written out; ``slope`` is that below zero."""
    hidden = inputs
    names = weight_names(model)
    for name in names:
        hidden = hidden @ model.get_parameter(name).detach().numpy().T
        if name != names[-1]:
            hidden = np.where(hidden > 0, hidden, slope * hidden)
    return hidden


def _nonzero(matrix: Tensor) -> Vector:
    """Return the eigenvalues above round-off, as magnitudes."""
    values = torch.linalg.eigvalsh(matrix).abs().numpy()
    return values[values > values.max() * len(values) * np.finfo(np.float64).eps]


def _entropy_change(before: Tensor, after: Tensor) -> float:
    first, second = _nonzero(before), _nonzero(after)
    return max(relative(entropy(first, a), entropy(second, a)) for a in ORDERS)


def _layer_scaling(configuration: Configuration) -> Metrics:
    """Scale layers with product one: the function, each layer's Hessian, and the joint one."""
    network, depth = configuration["network"], configuration["depth"]
    model, inputs, targets, loss = network_and_batch(network, depth, configuration["seed"])
    names = weight_names(model)
    factors = random_factors(len(names), generator_of(configuration))
    scaled = rescale(model, layerwise(model, factors))
    slope = {"relu": 0.0, "leaky_relu": 0.01}[network]
    outputs = model(inputs).detach().numpy()
    by_hand = forward_by_hand(scaled, inputs.numpy(), slope)
    errors, printed, changes = [], [], []
    for name, factor in zip(names, factors, strict=True):
        before = dense_hessian(model, inputs, targets, loss, parameters=[name])
        after = dense_hessian(scaled, inputs, targets, loss, parameters=[name])
        scale = float(after.norm())
        errors.append(float((after - factor**-2 * before).norm()) / scale)
        printed.append(float((after - factor**2 * before).norm()) / scale)
        changes.append(_entropy_change(before, after))
    joint = _entropy_change(
        dense_hessian(model, inputs, targets, loss, parameters=names),
        dense_hessian(scaled, inputs, targets, loss, parameters=names),
    )
    return {
        "function_error": float(np.abs(by_hand - outputs).max() / np.abs(outputs).max()),
        "hessian_error": max(errors),
        "positive_exponent_error": max(printed),
        "layer_change": max(changes),
        "joint_change": joint,
        "stricter_slack": joint - max(1e-6, 1000.0 * max(changes)),
    }


def _proxy(configuration: Configuration) -> Metrics:
    """Return how layer-wise scaling changes a proxy's entropy of an indefinite layer."""
    model, inputs, targets, loss = network_and_batch("relu_brier", 3, configuration["seed"])
    factors = [3.0, 1.0, 1.0 / 3.0]
    scaled = rescale(model, layerwise(model, factors))
    name = weight_names(model)[0]
    if configuration["proxy"] == "Gauss-Newton":
        before, after = (
            dense_gauss_newton(m, inputs, loss, parameters=[name]) for m in (model, scaled)
        )
    else:
        before, after = (
            dense_hessian(m, inputs, targets, loss, parameters=[name]) for m in (model, scaled)
        )
    negative = negative_share(dense_hessian(model, inputs, targets, loss, parameters=[name]))
    if configuration["proxy"] == "shift":
        # The first layer's factor is above 1, so that its smallest eigenvalue moves towards zero.
        gamma = 1.5 * float(torch.linalg.eigvalsh(before).abs().max())
        identity = torch.eye(len(before), dtype=before.dtype, device=before.device)
        before, after = before + gamma * identity, after + gamma * identity
    return {"invariance_error": _entropy_change(before, after), "negative_share": negative}


_DIMENSIONS = (2, 10, 100)
FACTS = {
    "Shannon limit": Fact(_shannon_limit, {"dimension": _DIMENSIONS}),
    "spread": Fact(_spread, {"dimension": _DIMENSIONS, "alpha": ORDERS}),
    "trace form": Fact(_trace_form, {"dimension": (2, 5, 20), "alpha": (0.5, 0.9, 1.5, 2.0, 3.0)}),
    "order one": Fact(_order_one, {"dimension": (10, 100), "negative": (0.05, 0.2, 0.5)}),
    "absolute value": Fact(
        _absolute_value, {"dimension": (10, 100), "negative": (0.05, 0.2, 0.5, 1.0)}
    ),
    "definition": Fact(
        _definition,
        {"network": ("relu", "gelu"), "of": ("one layer", "all layers jointly")},
    ),
    "layer scaling": Fact(
        _layer_scaling, {"network": ("relu", "leaky_relu"), "depth": tuple(WIDTHS)}
    ),
    "proxy": Fact(_proxy, {"proxy": ("absolute value", "Gauss-Newton", "shift")}),
}


def grid(profile: str) -> list[Configuration]:
    """List the configurations: every fact by its options and seeds."""
    return facts_grid(FACTS, profile)


def run(configuration: Configuration, context: RunContext) -> Metrics:
    """Compute both sides of one fact."""
    return FACTS[configuration["fact"]].run(configuration)


STUDY = Study(
    name="renyi_definitions",
    question="Is the Rényi entropy of a Hessian what Section 2 and Appendix E say that it is?",
    grid=grid,
    run=run,
)

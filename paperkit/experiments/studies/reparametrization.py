r"""Which measure changes under which change of parameters (chapter 3).

A network is built twice, before and after a change of parameters; every metric compares the two.
The Hessians are dense, in float64, from automatic differentiation, so that an invariance shows as
a relative change at round-off and a failure as a number that no arithmetic explains.

Linear changes multiply every parameter by a positive factor of its own, and are given as such
(:data:`SCALINGS`). Nonlinear changes :math:`\eta = \varphi(\theta)` are given by their inverse
:math:`\psi`, composed with the network (:class:`Reparametrized`).
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from paperkit.curvature import dense_hessian
from paperkit.estimators import renyi_entropy
from paperkit.experiments import RunContext, Study
from paperkit.network import get_loss

ALPHAS = (0.5, 1.0, 1.5, 2.0)
SAME_FUNCTION = 1e-10
"""Outputs that differ by less, relative to the largest, count as the same function."""
APPROXIMATELY = 0.05
"""The largest relative change of an entropy that still counts as approximate invariance."""

RANDOM_WIDTHS = (6, 7, 6, 4)
RANDOM_SAMPLES = 24
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


# ---------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------


class BatchStandardization(nn.Module):
    """Batch normalisation by the statistics of the batch, without affine parameters.

    Unlike ``nn.BatchNorm1d`` it uses the batch's own statistics in every mode: the measures put a
    model in evaluation mode, and it is the dependence on the batch that this study is about.

    Parameters
    ----------
    epsilon : float
        Added to the variance under the root; 0 is allowed.
    """

    def __init__(self, epsilon: float):
        super().__init__()
        self.epsilon = epsilon

    def forward(self, preactivations: Tensor) -> Tensor:
        """Standardise each unit over the batch, (n, width) to (n, width)."""
        centred = preactivations - preactivations.mean(dim=0)
        variance = centred.square().mean(dim=0)
        return centred / torch.sqrt(variance + self.epsilon)


class Residual(nn.Module):
    """The identity plus a branch."""

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``hidden + branch(hidden)``."""
        return hidden + self.branch(hidden)


def _linear(inputs: int, outputs: int, bias: bool, generator: torch.Generator) -> nn.Linear:
    """He-initialised weights (He et al. 2015), and biases that are not zero, in float64."""
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        layer.weight.normal_(0.0, math.sqrt(2.0 / inputs), generator=generator)
        if bias:
            layer.bias.normal_(0.0, 0.3, generator=generator)
    return layer


def build_network(
    network: str, seed: int, widths: Sequence[int] = RANDOM_WIDTHS, epsilon: float = 0.0
) -> nn.Sequential:
    """Build a small fully connected network at random initialisation, in float64.

    Parameters
    ----------
    network : str
        An activation of :data:`ACTIVATIONS`, alone or followed by one of ``_bias``, ``_norm``
        (batch statistics before each activation), ``_residual`` (the second hidden layer becomes
        a residual branch of two layers) and ``_brier`` (softmax outputs, for a squared error).
    seed : int
        Seed of the initialisation.
    widths : sequence of int
        Input, hidden and output widths.
    epsilon : float
        The normalisation's ε, used by ``_norm`` alone.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    activation, _, option = (
        network.rpartition("_") if network not in ACTIVATIONS else (network, "", "")
    )
    if activation not in ACTIVATIONS or option not in ("", "bias", "norm", "residual", "brier"):
        raise ValueError(
            f"network={network!r} is unknown: use one of {', '.join(ACTIVATIONS)}, alone or "
            "followed by _bias, _norm, _residual or _brier."
        )
    generator = torch.Generator(device="cpu").manual_seed(seed)
    act = ACTIVATIONS[activation]

    def linear(inputs: int, outputs: int) -> nn.Linear:
        return _linear(inputs, outputs, option == "bias", generator)

    if option == "residual":
        first, hidden, last = widths[0], widths[1], widths[-1]
        branch = nn.Sequential(linear(hidden, hidden), act(), linear(hidden, hidden))
        return nn.Sequential(linear(first, hidden), Residual(branch), act(), linear(hidden, last))
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        modules.append(linear(inputs, outputs))
        if option == "norm":
            modules.append(BatchStandardization(epsilon))
        modules.append(act())
    modules.append(linear(widths[-2], widths[-1]))
    if option == "brier":
        modules.append(nn.Softmax(dim=1))
    return nn.Sequential(*modules)


def weight_names(model: nn.Module) -> list[str]:
    """Return the names of the layers' weight matrices, first layer first (no biases)."""
    return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]


@dataclass(frozen=True)
class Problem:
    """A network, the batch it is measured on, and the loss's name."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: str = "cross_entropy"


def random_problem(network: str, seed: int, epsilon: float = 0.0) -> Problem:
    """Build a network at random initialisation, with Gaussian inputs and random labels."""
    generator = torch.Generator(device="cpu").manual_seed(1000 + seed)
    inputs = torch.empty(RANDOM_SAMPLES, RANDOM_WIDTHS[0], dtype=torch.float64, device="cpu")
    inputs.normal_(generator=generator)
    classes = RANDOM_WIDTHS[-1]
    targets = torch.randint(classes, (RANDOM_SAMPLES,), generator=generator, device="cpu")
    model = build_network(network, seed, epsilon=epsilon)
    if network.endswith("_brier"):
        one_hot = nn.functional.one_hot(targets, classes).to(torch.float64)
        return Problem(model, inputs, one_hot, "half_squared_error")
    return Problem(model, inputs, targets)


# ---------------------------------------------------------------------------------------------
# Linear changes of parameters: one positive factor for every parameter
# ---------------------------------------------------------------------------------------------


def parse_factors(text: str) -> tuple[float, ...]:
    """Read factors such as ``"3 1/2 2/3"``.

    Raises
    ------
    ValueError
        If an entry is not a number or a fraction.
    """
    try:
        return tuple(float(Fraction(entry)) for entry in text.split())
    except ValueError:
        raise ValueError(
            f"factors={text!r} must be numbers or fractions separated by blanks, as '3 1/2 2/3'."
        ) from None


def _bias_of(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"


def layerwise(model: nn.Module, factors: Sequence[float]) -> dict[str, Tensor]:
    r"""Multiply the weights of layer l by :math:`c_l`, and no bias (Rényi, Prop. 2.2)."""
    names = weight_names(model)
    if len(factors) != len(names):
        raise ValueError(f"factors has {len(factors)} entries: give one for each of {names}.")
    scales = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for name, factor in zip(names, factors, strict=True):
        scales[name] *= factor
    return scales


def layerwise_with_biases(model: nn.Module, factors: Sequence[float]) -> dict[str, Tensor]:
    r"""Multiply :math:`W_l` by :math:`c_l` and :math:`b_l` by :math:`c_1 \cdots c_l`."""
    scales = layerwise(model, factors)
    names = weight_names(model)
    for name, running in zip(names, accumulate(factors, operator.mul), strict=True):
        scales[_bias_of(name)] *= running
    return scales


def nodewise(model: nn.Module, factors: Sequence[float]) -> dict[str, Tensor]:
    r"""Multiply what enters a hidden unit by its factor, and divide what leaves it.

    The units of every hidden layer take the factors c, 1/c, c, … in turn.
    """
    scales = nodewise_uncompensated(model, factors)
    names = weight_names(model)
    units = {name: scales[name][:, 0].clone() for name in names}
    for name, following in pairwise(names):
        scales[following] /= units[name]
    return scales


def nodewise_uncompensated(model: nn.Module, factors: Sequence[float]) -> dict[str, Tensor]:
    """Multiply what enters a hidden unit; a normalisation after it takes the factor out again."""
    (c,) = factors
    scales = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for name in weight_names(model)[:-1]:
        scales[name][0::2].mul_(c)
        scales[name][1::2].div_(c)
    return scales


SCALINGS: dict[str, Callable[[nn.Module, Sequence[float]], dict[str, Tensor]]] = {
    "layerwise": layerwise,
    "layerwise_with_biases": layerwise_with_biases,
    "nodewise": nodewise,
    "nodewise_uncompensated": nodewise_uncompensated,
}


def rescale(model: nn.Module, scales: dict[str, Tensor]) -> nn.Module:
    """Return a copy of the model whose parameters are multiplied by the given factors."""
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in scaled.named_parameters():
            parameter.mul_(scales[name])
    return scaled


# ---------------------------------------------------------------------------------------------
# Nonlinear changes of parameters
# ---------------------------------------------------------------------------------------------


class Reparametrized(nn.Module):
    r"""The same model in other parameters: :math:`\tilde f(x; \eta) = f(x; \psi(\eta))`.

    Parameters
    ----------
    model : nn.Module
        The network in its own parameters θ; it is not changed.
    eta : Tensor
        The new parameters, one flat vector; the module's only parameter.
    inverse : callable
        ψ, from η to θ, twice differentiable.
    """

    def __init__(self, model: nn.Module, eta: Tensor, inverse: Callable[[Tensor], Tensor]):
        super().__init__()
        self.eta = nn.Parameter(eta.detach().clone())
        # In a tuple, so that θ does not appear among this module's parameters.
        self._model = (model,)
        self._inverse = inverse

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the model's outputs, (n, C)."""
        (model,) = self._model
        names, shapes = zip(*((k, p.shape) for k, p in model.named_parameters()), strict=True)
        pieces = self._inverse(self.eta).split([shape.numel() for shape in shapes])
        theta = {
            k: piece.view(shape) for k, piece, shape in zip(names, pieces, shapes, strict=True)
        }
        return functional_call(model, theta, (inputs,))


def flat_parameters(model: nn.Module) -> Tensor:
    """Return all parameters as one detached vector, in the order of ``named_parameters``."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@dataclass(frozen=True)
class RadialMap:
    r"""The radial map of Dinh et al. (2017), :math:`\varphi(\theta) = r^a (\theta - \hat\theta)`.

    :math:`r = |\theta - \hat\theta|^2 + b`. For b > 0 and a > −½ it is a diffeomorphism of the
    whole space that leaves :math:`\hat\theta` (mapped to 0) alone but for a factor.
    """

    centre: Tensor
    a: float
    b: float

    def forward(self, theta: Tensor) -> Tensor:
        """Return η = φ(θ)."""
        difference = theta - self.centre
        return (difference.square().sum() + self.b) ** self.a * difference

    def inverse_near(self, theta: Tensor) -> Callable[[Tensor], Tensor]:
        r"""Return ψ = φ⁻¹ with exact first and second derivatives at φ(θ).

        :math:`\psi(\eta) = \hat\theta + q\,\eta`, where q solves
        :math:`q\,(q^2 |\eta|^2 + b)^a = 1`. At φ(θ) its value is known, and a Newton step from
        there adds one correct order to the derivatives that automatic differentiation sees, the
        next two more: two steps carry the Hessian.
        """
        root = ((theta - self.centre).square().sum() + self.b) ** -self.a

        def inverse(eta: Tensor) -> Tensor:
            squared = eta.square().sum()
            q = root
            for _ in range(2):
                r = q.square() * squared + self.b
                value = q * r**self.a - 1.0
                slope = r**self.a + 2.0 * self.a * q.square() * squared * r ** (self.a - 1.0)
                q = q - value / slope
            return self.centre + q * eta

        return inverse


def reparametrized_by_sinh(model: nn.Module) -> Reparametrized:
    """Write the model in η = sinh θ, coordinate by coordinate."""
    return Reparametrized(model, torch.sinh(flat_parameters(model)), torch.asinh)


def radial_map_at(theta: Tensor, a: float, b: float, distance: float, seed: int) -> RadialMap:
    """Centre a radial map ``distance`` times the norm of ``theta`` away from it.

    The direction is random; a distance of 0 centres the map at ``theta``.
    """
    generator = torch.Generator(device="cpu").manual_seed(2000 + seed)
    direction = torch.empty_like(theta).normal_(generator=generator)
    return RadialMap(theta + distance * theta.norm() * direction / direction.norm(), a, b)


def reparametrized_by(model: nn.Module, radial: RadialMap) -> Reparametrized:
    """Write the model in a radial map's parameters."""
    theta = flat_parameters(model)
    return Reparametrized(model, radial.forward(theta), radial.inverse_near(theta))


def changed_model(
    model: nn.Module, transformation: str, factors: Sequence[float], seed: int
) -> nn.Module:
    """Apply a transformation by its name: one of :data:`SCALINGS`, ``sinh`` or ``radial``.

    The factors of ``sinh`` are none, those of ``radial`` are a, b and the centre's distance; the
    seed chooses the direction of the centre.

    Raises
    ------
    ValueError
        If the name is unknown or the factors do not fit.
    """
    if transformation == "sinh":
        return reparametrized_by_sinh(model)
    if transformation == "radial":
        a, b, distance = factors
        return reparametrized_by(model, radial_map_at(flat_parameters(model), a, b, distance, seed))
    if transformation not in SCALINGS:
        names = ", ".join([*SCALINGS, "sinh", "radial"])
        raise ValueError(f"transformation={transformation!r} is unknown: use one of {names}.")
    return rescale(model, SCALINGS[transformation](model, factors))


# ---------------------------------------------------------------------------------------------
# Measures, before and after
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measures:
    """Everything that is compared: the function, the loss and three families of spectra.

    Attributes
    ----------
    outputs : Tensor
        (n, C).
    loss : float
        Mean over the batch.
    layers, layers_with_bias : list of Tensor
        Eigenvalues of each layer's block: weights alone, weights and bias.
    joint : Tensor
        Eigenvalues of the Hessian in the weights of all layers.
    """

    outputs: Tensor
    loss: float
    layers: list[Tensor]
    layers_with_bias: list[Tensor]
    joint: Tensor


def spectrum(matrix: Tensor) -> Tensor:
    """Return eigenvalues with those at round-off set to zero.

    A block's exact null space returns as eigenvalues of about 1e-17 of the largest; an entropy of
    order ½ sees their square roots. The threshold is that of ``numpy.linalg.matrix_rank``.
    """
    eigenvalues = torch.linalg.eigvalsh(matrix)
    magnitude = eigenvalues.abs()
    threshold = magnitude.max() * len(matrix) * torch.finfo(matrix.dtype).eps
    return torch.where(magnitude > threshold, eigenvalues, torch.zeros_like(eigenvalues))


def _layer_entries(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Positions, in the flat parameter vector, of each layer's weights, and with its bias."""
    entries, start = {}, 0
    for name, parameter in model.named_parameters():
        entries[name] = torch.arange(start, start + parameter.numel(), device=parameter.device)
        start += parameter.numel()
    weights = [entries[name] for name in weight_names(model)]
    with_bias = [
        torch.cat([entries[k] for k in (name, _bias_of(name)) if k in entries])
        for name in weight_names(model)
    ]
    return weights, with_bias


def measure(problem: Problem, original: nn.Module | None = None) -> Measures:
    """Measure a problem; ``original`` says where the layers lie in a reparametrized model."""
    model, inputs, targets = problem.model, problem.inputs, problem.targets
    hessian = dense_hessian(model, inputs, targets, problem.loss)
    with torch.no_grad():
        outputs = model(inputs)
    weights, with_bias = _layer_entries(model if original is None else original)
    joint = torch.cat(weights)
    return Measures(
        outputs=outputs,
        loss=float(get_loss(problem.loss).value(outputs, targets)),
        layers=[spectrum(hessian[block][:, block]) for block in weights],
        layers_with_bias=[spectrum(hessian[block][:, block]) for block in with_bias],
        joint=spectrum(hessian[joint][:, joint]),
    )


def relative_change(before: float, after: float) -> float:
    """Return |after − before| / |before|."""
    return abs(after - before) / abs(before)


def entropy_change(before: Sequence[Tensor], after: Sequence[Tensor], alpha: float) -> float:
    """Return the largest relative change of the Rényi entropy over pairs of spectra."""
    return max(
        relative_change(renyi_entropy(old, alpha), renyi_entropy(new, alpha))
        for old, new in zip(before, after, strict=True)
    )


def compare(before: Measures, after: Measures) -> dict[str, Any]:
    """Return the relative changes, each the largest over layers and orders :data:`ALPHAS`.

    A metric that ends in ``_of_the_same_function`` is 0 where the two networks compute different
    functions: no counterexample to an invariance can come from there. The metric
    ``approximation_slack`` is negative where an entropy changes by more than
    :data:`APPROXIMATELY`, and ``negative_share`` the weight of the negative eigenvalues in the
    original layers' spectra.
    """
    pairs = list(zip(before.layers, after.layers, strict=True))
    by_order = [entropy_change(before.layers, after.layers, alpha) for alpha in ALPHAS]
    changes = {
        "entropy_change": max(by_order),
        "biased_entropy_change": max(
            entropy_change(before.layers_with_bias, after.layers_with_bias, a) for a in ALPHAS
        ),
        "joint_entropy_change": max(
            entropy_change([before.joint], [after.joint], a) for a in ALPHAS
        ),
    }
    function_change = float(
        (after.outputs - before.outputs).abs().max() / before.outputs.abs().max()
    )
    same = function_change <= SAME_FUNCTION
    return {
        "function_change": function_change,
        "loss_change": relative_change(before.loss, after.loss),
        "trace_change": max(relative_change(float(a.sum()), float(b.sum())) for a, b in pairs),
        "lambda_max_change": max(relative_change(float(a[-1]), float(b[-1])) for a, b in pairs),
        **changes,
        "entropy_change_by_order": by_order,
        "approximation_slack": APPROXIMATELY - max(by_order),
        **{f"{k}_of_the_same_function": v if same else 0.0 for k, v in changes.items()},
        "negative_share": max(
            float(values.clamp(max=0).abs().sum() / values.abs().sum()) for values in before.layers
        ),
    }


# ---------------------------------------------------------------------------------------------
# The study
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One row of the chapter's table: a network, and a change of its parameters."""

    name: str
    network: str
    transformation: str
    factors: tuple[str, ...]
    epsilon: float = 0.0


_LAYERWISE = ("3 1/2 2/3", "1/10 1 10")
MODERATE_FACTORS = ("2 1 1/2", "3/2 1 2/3", "2/3 1 3/2", "1/2 1 2", "1 2 1/2", "2 1/2 1")
CASES = (
    Case("layer-wise, ReLU", "relu", "layerwise", _LAYERWISE),
    Case("layer-wise, leaky ReLU", "leaky_relu", "layerwise", _LAYERWISE),
    Case("layer-wise, ReLU, Brier loss", "relu_brier", "layerwise", _LAYERWISE),
    Case("node-wise, ReLU", "relu", "nodewise", ("3", "1/10")),
    Case("with biases, weights scaled alone", "relu_bias", "layerwise", _LAYERWISE),
    Case("with biases, both scaled", "relu_bias", "layerwise_with_biases", _LAYERWISE),
    Case("batch norm, ε = 0", "relu_norm", "layerwise", ("1/20 1 1", "3 1/5 1")),
    Case("batch norm, ε = 1e-5", "relu_norm", "layerwise", ("1/20 1 1", "3 1/5 1"), 1e-5),
    Case("batch norm, ε = 1e-2", "relu_norm", "layerwise", ("1/20 1 1", "3 1/5 1"), 1e-2),
    Case("batch norm, ε = 0, node-wise", "relu_norm", "nodewise_uncompensated", ("3",)),
    Case("residual, product 1 in every branch", "relu_residual", "layerwise", ("3 1/2 2 1/3",)),
    Case("residual, product 1 over all layers", "relu_residual", "layerwise", ("3 1/2 1 2/3",)),
    Case("layer-wise, GELU", "gelu", "layerwise", MODERATE_FACTORS),
    Case("layer-wise, tanh", "tanh", "layerwise", MODERATE_FACTORS),
    Case("nonlinear, sinh", "relu", "sinh", ("",)),
    Case("radial map, at its centre", "relu", "radial", ("1 1/2 0", "-1/4 1/2 0")),
    Case("radial map, off centre", "relu", "radial", ("1 1/2 1/2", "-1/4 1/2 1/2")),
)


def grid_of(cases: Sequence[Case], profile: str) -> list[dict[str, Any]]:
    """List the configurations: every case, its factors and seeds (smoke: the first of each)."""
    seeds = {"smoke": 1, "laptop": 5, "paper": 20}[profile]
    return [
        {
            "case": case.name,
            "network": case.network,
            "epsilon": case.epsilon,
            "transformation": case.transformation,
            "factors": factors,
            "seed": seed,
        }
        for case in cases
        for factors in case.factors[: 1 if profile == "smoke" else None]
        for seed in range(seeds)
    ]


def changes(problem: Problem, before: Measures, configuration: dict[str, Any]) -> dict[str, Any]:
    """Change a measured problem's parameters as a configuration says, and compare."""
    model = changed_model(
        problem.model,
        configuration["transformation"],
        parse_factors(configuration["factors"]),
        configuration["seed"],
    )
    return compare(before, measure(replace(problem, model=model), original=problem.model))


@cache
def _measured(network: str, seed: int, epsilon: float) -> tuple[Problem, Measures]:
    problem = random_problem(network, seed, epsilon)
    return problem, measure(problem)


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure one network before and after one change of its parameters."""
    problem, before = _measured(
        configuration["network"], configuration["seed"], configuration["epsilon"]
    )
    return changes(problem, before, configuration)


STUDY = Study(
    name="reparametrization",
    question="Which measures change when the parameters change and the function does not?",
    grid=partial(grid_of, CASES),
    run=run,
)

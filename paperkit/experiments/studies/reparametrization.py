"""Which measure changes under which change of parameters (chapter 3).

A network is built twice, before and after a change of parameters; every metric compares the two.
The Hessians are dense, in float64, from automatic differentiation, so that an invariance shows as
a relative change at round-off and a failure as a number that no arithmetic explains.

The networks are those of :mod:`paperkit.models.small`, the changes those of
:mod:`paperkit.models.symmetries`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.curvature import dense_hessian
from paperkit.estimators import renyi_entropy
from paperkit.experiments import RunContext, Study
from paperkit.experiments.grids import grid_of
from paperkit.models.small import DENSE_WIDTHS, build_dense_network
from paperkit.models.symmetries import bias_name, changed_model, weight_names
from paperkit.network import get_loss

ALPHAS = (0.5, 1.0, 1.5, 2.0)
SAME_FUNCTION = 1e-10
"""Outputs that differ by less, relative to the largest, count as the same function."""
APPROXIMATELY = 0.05
"""The largest relative change of an entropy that still counts as approximate invariance."""

RANDOM_SAMPLES = 24


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
    inputs = torch.empty(RANDOM_SAMPLES, DENSE_WIDTHS[0], dtype=torch.float64, device="cpu")
    inputs.normal_(generator=generator)
    classes = DENSE_WIDTHS[-1]
    targets = torch.randint(classes, (RANDOM_SAMPLES,), generator=generator, device="cpu")
    model = build_dense_network(network, seed, epsilon=epsilon)
    if network.endswith("_brier"):
        one_hot = nn.functional.one_hot(targets, classes).to(torch.float64)
        return Problem(model, inputs, one_hot, "half_squared_error")
    return Problem(model, inputs, targets)


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
        torch.cat([entries[k] for k in (name, bias_name(name)) if k in entries])
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
    grid=grid_of("reparametrization"),
    run=run,
)

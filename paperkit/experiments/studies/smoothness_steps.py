r"""The SA-SAM paper's statements on step sizes, each decided by itself.

Rates and admissible steps of gradient descent, the bounds on the step of equation 5, Algorithm 1
as it is printed, and what the rule for the radius depends on. The losses are convex, and the
Lipschitz constant of their gradient is known, so that both sides of every statement are numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from paperkit.bounds.smoothness import (
    gradient_descent_rate,
    growth_limit,
    smoothness_along_path,
    step_growth,
    step_lower_bound,
)
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._smoothness import (
    LOSSES,
    ConvexLoss,
    largest_relative_difference,
    library_path,
    quadratic,
    random_numbers,
    written_out_steps,
)
from paperkit.optim import SASAM, SASGD

STEPS = 25
"""Steps of a path that two implementations are compared on, before it comes to a rest."""
FIRST = 0.1
"""First step times β, where two implementations are compared.

After a much smaller step the change of the gradient is a difference of nearly equal numbers.
"""
REST = 1e-4
"""Move, relative to the point, below which a path has come to rest."""
LONG = 300
"""Steps of a path whose largest and smallest step sizes are asked for."""
CYCLES = 6_000
"""Steps after which SA-SAM is on its two-cycle, in five dimensions too."""
RELEASE_START, RELEASE_GOAL = 1e-4, 1e-1
"""Step sizes between which the released code's growth is counted: the ends of the paper's grid."""


def _start(dimension: int, seed: int) -> Tensor:
    return 3.0 * random_numbers(dimension, seed=seed + 500)


def _loss(name: str, dimension: int, seed: int) -> tuple[ConvexLoss, Tensor]:
    return LOSSES[name](dimension, seed), _start(dimension, seed)


def _smooth(known: ConvexLoss) -> Callable[[Tensor, int], Tensor]:
    return lambda w, step: known.value(w)


# ---------------------------------------------------------------------------------------------
# Gradient descent
# ---------------------------------------------------------------------------------------------


def _descend(loss: ConvexLoss, start: Tensor, step: float, steps: int) -> list[Tensor]:
    points = [start]
    for _ in range(steps):
        points.append(points[-1] - step * loss.gradient(points[-1]))
    return points


def _rate(loss: str, dimension: int, seed: int) -> dict[str, float]:
    """Smallest slack of equation 4 over 50 steps of size 1/β, relative to its right side."""
    known, start = _loss(loss, dimension, seed)
    points = _descend(known, start, 1.0 / known.beta, 50)
    distance = float((start - known.minimizer).norm())
    slacks: dict[str, list[float]] = {"printed": [], "sharper": []}
    for count, point in enumerate(points[1:], start=1):
        for version, found in slacks.items():
            bound = gradient_descent_rate(
                known.excess(point), distance, known.beta, count, version=version
            )
            found.append(bound.slack / bound.right)
    return {"slack": min(slacks["printed"]), "sharper_slack": min(slacks["sharper"])}


def huber_excess(beta: Fraction, radius: Fraction, knee: Fraction, step: Fraction, steps: int):
    """Excess loss of a Huber loss with its knee, after steps from a distance, in exact numbers."""
    w = radius
    for _ in range(steps):
        slope = beta * w if abs(w) <= knee else beta * knee * (1 if w > 0 else -1)
        w -= step * slope
    return beta * w * w / 2 if abs(w) <= knee else beta * knee * (abs(w) - knee / 2)


def _rate_attained(steps: int, seed: int) -> dict[str, float]:
    """Difference between the sharper bound and the Huber loss with its knee at R/(2T + 1)."""
    beta, radius = Fraction(3 + seed), Fraction(2, 1 + seed)
    knee = radius / (2 * steps + 1)
    excess = huber_excess(beta, radius, knee, 1 / beta, steps)
    bound = beta * radius**2 / (2 * (2 * steps + 1))
    return {"difference": float(abs(excess - bound) / bound)}


def is_positive_semidefinite(matrix: list[list[Fraction]]) -> bool:
    """Whether all principal minors of a symmetric 3 × 3 matrix of fractions are at least 0."""
    (a, b, c), (_, d, e), (_, _, f) = matrix
    minors = (a, d, f, a * d - b * b, a * f - c * c, d * f - e * e)
    determinant = a * (d * f - e * e) - b * (b * f - c * e) + c * (b * e - c * d)
    return all(minor >= 0 for minor in (*minors, determinant))


def certified_worst_case(size: Fraction, weight: Fraction, rate: Fraction) -> bool:
    r"""Whether one step of ``size``/β leaves at most ``rate`` β R², whatever the convex loss.

    A smooth convex function satisfies :math:`f_i \ge f_j + g_j (x_i - x_j) + |g_i - g_j|^2/2β`
    between any two points. Three of these, from the minimum to both points and from the first to
    the second, with the multipliers ``weight``, 1 − ``weight`` and ``weight``, prove the rate if
    a quadratic form in (x_0, g_0, g_1), written here for β = 1, is not negative.
    """
    half = Fraction(1, 2)
    form = [
        [rate, -weight * half, -(1 - weight) * half],
        [-weight * half, weight, (size - weight) * half],
        [-(1 - weight) * half, (size - weight) * half, half],
    ]
    return is_positive_semidefinite(form)


def _longer_step(beta: int, radius: int, seed: int) -> dict[str, float | bool]:
    """Gain of a step of 3/2β over 1/β, in the worst case over all losses, after one step.

    The loss of the step 1/β is attained, that of the longer one proved.
    """
    b, r = Fraction(beta), Fraction(radius)
    attained = huber_excess(b, r, r / 3, 1 / b, 1)
    proved = certified_worst_case(Fraction(3, 2), Fraction(1, 2), Fraction(1, 8))
    bound = b * r**2 / 8
    return {"proved": proved, "gain": float(attained - bound) if proved else 0.0}


def _longer_steps(steps: int, seed: int) -> dict[str, float]:
    """Relative gain of a longer step over 1/β, in the worst case over Huber losses and parabolas.

    The knee lies anywhere, which includes the parabola; the curvature is β or less. The longer
    step is the one at which :math:`1/(2Th + 1) = (1 - h)^{2T}`.
    """
    low, high = 1.0, 2.0
    for _ in range(60):
        h = 0.5 * (low + high)
        low, high = (
            (h, high) if (1.0 - h) ** (2 * steps) < 1.0 / (2 * steps * h + 1.0) else (low, h)
        )

    def worst(size: float) -> float:
        knees = torch.linspace(0.002, 1.0, 500, dtype=torch.float64, device="cpu")
        curvatures = torch.linspace(0.05, 1.0, 20, dtype=torch.float64, device="cpu")
        knee, beta = torch.meshgrid(knees, curvatures, indexing="ij")
        w = torch.ones_like(knee)
        for _ in range(steps):
            w = w - size * beta * torch.minimum(torch.maximum(w, -knee), knee)
        length = w.abs()
        excess = torch.where(length <= knee, 0.5 * length.square(), knee * (length - 0.5 * knee))
        return float((beta * excess).max())

    return {"gain": 1.0 - worst(low) / worst(1.0), "size": low}


def _admissible(loss: str, dimension: int, size: float, seed: int) -> dict[str, float]:
    """Slack of a proved rate at the step ``size``/β (Nesterov 2004, Theorem 2.1.14), relative.

    The rate tends to 0, so it is convergence.
    """
    known, start = _loss(loss, dimension, seed)
    step = size / known.beta
    points = _descend(known, start, step, 200)
    first, square = known.excess(start), float((start - known.minimizer).square().sum())
    slacks = []
    for count, point in enumerate(points[1:], start=1):
        bound = 2.0 * first * square / (2.0 * square + count * step * (2.0 - size) * first)
        slacks.append((bound - known.excess(point)) / bound)
    return {"slack": min(slacks)}


def _inadmissible(loss: str, dimension: int, size: float, seed: int) -> dict[str, float]:
    """Growth of the distance from the minimum, minus 1, along the steepest eigenvector there."""
    known, _ = _loss(loss, dimension, seed)
    hessian = torch.autograd.functional.hessian(known.value, known.minimizer)
    start = known.minimizer + 1e-3 * torch.linalg.eigh(hessian).eigenvectors[:, -1]
    points = _descend(known, start, size / known.beta, 40)
    distances = [float((point - known.minimizer).norm()) for point in (points[0], points[-1])]
    return {"slack": distances[1] / distances[0] - 1.0}


# ---------------------------------------------------------------------------------------------
# Equation 5 and Algorithm 1
# ---------------------------------------------------------------------------------------------


def _equation_5(loss: str, dimension: int, delta: float, seed: int) -> dict[str, float]:
    """Difference between the library's gradient descent with adaptive steps and the equation."""
    known, start = _loss(loss, dimension, seed)
    eta0 = FIRST / known.beta
    ours = library_path(SASGD, _smooth(known), start, STEPS, rest=REST, eta0=eta0, delta=delta)
    written = written_out_steps(
        lambda w, step: known.gradient(w),
        ours,
        eta0=eta0,
        delta=delta,
        damping=2.0,
        ascent=False,
    )
    return {"difference": largest_relative_difference(ours, written)}


def _algorithm_1(loss: str, dimension: int, delta: float, seed: int) -> dict[str, float]:
    """Difference between the library's SA-SAM and the repaired algorithm, a new batch each step."""
    batches = [LOSSES[loss](dimension, 100 * seed + step) for step in range(STEPS)]
    start, eta0 = _start(dimension, seed), FIRST / batches[0].beta
    ours = library_path(
        SASAM,
        lambda w, step: batches[step].value(w),
        start,
        STEPS,
        rest=REST,
        eta0=eta0,
        delta=delta,
    )
    written = written_out_steps(
        lambda w, step: batches[step].gradient(w),
        ours,
        eta0=eta0,
        delta=delta,
        damping=2.0,
        ascent=True,
    )
    return {"difference": largest_relative_difference(ours, written)}


def undefined_reads(rounds: int, dimension: int, seed: int) -> int:
    r"""Count the numbers that Algorithm 1, line by line, reads before any line has set them.

    Every indexed letter is a place of its own. A number that is missing is taken from the repaired
    algorithm, so that the count goes on.
    """
    known, start = quadratic(dimension, seed), _start(dimension, seed)
    places: dict[tuple[str, int], Any] = {("eta", 0): 1e-3, ("theta", 0): math.inf}
    missing = 0

    def read(letter: str, index: int, otherwise: float) -> Any:
        nonlocal missing
        if (letter, index) not in places:
            missing += 1
            return otherwise
        return places[letter, index]

    def moved(w: Tensor, eta: float, rho: float) -> Tensor:
        g = known.gradient(w)
        return w - eta * known.gradient(w + rho * g / g.norm())

    eta = read("eta", 0, math.nan)
    w, w_new = start, moved(start, eta, read("rho", 0, math.sqrt(eta)))
    for t in range(1, rounds + 1):
        change = known.gradient(w_new) - known.gradient(w)
        first = float((w_new - w).norm() / (2.0 * change.norm()))
        theta = read("theta", t, places["theta", t - 1])
        places["eta", t] = min(first, math.sqrt(1.0 + theta) * places["eta", t - 1])
        places["rho", t] = math.sqrt(places["eta", t])
        w, w_new = w_new, moved(w_new, places["eta", t], places["rho", t])
        places["theta", t] = places["eta", t] / places["eta", t - 1]
    return missing


def _local_smoothness(loss: str, dimension: int, seed: int) -> dict[str, float]:
    """Slack of equation 6 along SA-SAM's path, relative to the global constant."""
    known, start = _loss(loss, dimension, seed)
    points = library_path(
        SASAM, _smooth(known), start, STEPS, rest=REST, eta0=1e-3, delta=0.02
    ).points
    gradients = torch.stack([known.gradient(point) for point in points])
    bound = smoothness_along_path(points, gradients, known.beta)
    return {"slack": bound.slack / bound.right}


def _growth(loss: str, dimension: int, delta: float, eta0: float, seed: int) -> dict[str, float]:
    """Slack of the growth branch from the paper's start, and how much the first step grows."""
    known, start = _loss(loss, dimension, seed)
    etas = library_path(
        SASAM, _smooth(known), start, STEPS, eta0=eta0, delta=delta, full_batch=True
    ).etas
    ratios = [new / old for old, new in pairwise(etas)]
    slacks = [math.sqrt(1.0 + delta * old) / new - 1.0 for old, new in pairwise(ratios)]
    return {"slack": min(slacks), "largest_growth": max(ratios[1:]), "first_growth": ratios[0]}


def _lower_bound(
    loss: str, dimension: int, damping: float, optimizer: str, seed: int
) -> dict[str, float]:
    """By how much the smallest step undercuts 1/β, and the slack of 1/(cβ), both times β."""
    known, start = _loss(loss, dimension, seed)
    method: type[SASGD] | type[SASAM] = SASAM if optimizer == "SA-SAM" else SASGD
    etas = library_path(
        method,
        _smooth(known),
        start,
        STEPS,
        rest=REST,
        eta0=1e-3 / known.beta,
        delta=0.02,
        damping=damping,
    ).etas[1:]
    printed, corrected = (
        step_lower_bound(etas, known.beta, damping, version) for version in ("printed", "corrected")
    )
    return {
        "shortfall": max(0.0, -printed.slack * known.beta),
        "slack": corrected.slack * known.beta,
    }


def _delta_rule(loss: str, dimension: int, seed: int) -> dict[str, float]:
    r"""Growth of the step beyond its limit, with :math:`\sqrt{1 + \delta\theta\eta}` as printed.

    The printed second branch is read with the last ratio and step, the only ones that are known.
    The slack is that of the repaired branch, in the library with the release's finite start.
    """
    known, start = _loss(loss, dimension, seed)
    delta, limit = 0.02, growth_limit(0.02)
    eta, theta, ratios = 1e-4, 1.0, []
    points = [start, start - 1e-4 * known.gradient(start)]
    for _ in range(10):
        w, before = points[-1], points[-2]
        change = (known.gradient(w) - known.gradient(before)).norm()
        first = float((w - before).norm() / (2.0 * change))
        new = min(first, math.sqrt(1.0 + delta * theta * eta))
        eta, theta = new, new / eta
        ratios.append(theta)
        points.append(w - eta * known.gradient(w))
    etas = library_path(
        SASGD, _smooth(known), start, LONG, eta0=1e-4, delta=delta, theta0=1.0, full_batch=True
    ).etas
    bound = step_growth(etas, first_ratio=1.0, delta=delta)
    return {"growth_beyond_limit": max(ratios) / limit - 1.0, "slack": bound.slack / bound.right}


def _initial_step(dimension: int, eta0: float, seed: int) -> dict[str, float]:
    r"""Whether the steps lie in the range that curvature allows from the first iteration on.

    On a quadratic the first branch lies between :math:`1/2\lambda_{\max}` and
    :math:`1/2\lambda_{\min}`. Slack: the smaller of the two distances, as ratios minus 1.
    """
    known, start = quadratic(dimension, seed), _start(dimension, seed)
    hessian = torch.autograd.functional.hessian(known.value, known.minimizer)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    etas = library_path(SASAM, _smooth(known), start, STEPS, eta0=eta0, delta=0.02).etas[1:]
    low, high = (0.5 / float(eigenvalues[index]) for index in (-1, 0))
    return {"slack": min(min(etas) / low, high / max(etas)) - 1.0}


def _release_wait(curvature: float, seed: int) -> dict[str, int]:
    """Steps that the release, from the smallest step of the grid, takes to the largest."""
    start = random_numbers(1, seed=seed)
    etas = library_path(
        SASGD,
        lambda w, step: 0.5 * curvature * w.square().sum(),
        start,
        1000,
        eta0=RELEASE_START,
        variant="release",
        full_batch=True,
    ).etas
    return {"steps": sum(eta < RELEASE_GOAL for eta in etas)}


# ---------------------------------------------------------------------------------------------
# The radius
# ---------------------------------------------------------------------------------------------


def _radius_units(loss: str, dimension: int, unit: float, seed: int) -> dict[str, float]:
    r"""How far SAM's point moves when the loss is measured in another unit, relative to the move.

    Measured in units of 1/κ the gradient and β are κ times as large, and the step 1/2β falls by κ:
    descent does not notice. The rules are the paper's, :math:`\sqrt\eta\, g/\|g\|`, and
    :math:`\sqrt{\eta/\beta}\, g`, the un-normalised ascent of the theorem that it cites.
    """
    known, w = _loss(loss, dimension, seed)

    def moves(scale: float) -> tuple[Tensor, Tensor]:
        g, beta = scale * known.gradient(w), scale * known.beta
        eta = 0.5 / beta
        return math.sqrt(eta) * g / g.norm(), math.sqrt(eta / beta) * g

    changes = [
        float((new - old).norm() / old.norm())
        for old, new in zip(moves(1.0), moves(unit), strict=True)
    ]
    return {"change": changes[0], "repaired_change": changes[1]}


def _two_cycle(dimension: int, damping: float, seed: int) -> dict[str, float]:
    r"""Distance of the end on a quadratic from the cycle of the steepest eigenvector.

    The largest of three: the error of the loss relative to :math:`1/(2c(2c-1)^2)`, 1/36 as printed,
    and, relative to the last point's length, its part off the eigenvector and its sum with the
    point before.
    """
    known, start = quadratic(dimension, seed), _start(dimension, seed)
    path = library_path(
        SASAM, _smooth(known), start, CYCLES, eta0=1e-3, damping=damping, full_batch=True
    )
    floor = 1.0 / (2.0 * damping * (2.0 * damping - 1.0) ** 2)
    before, last = path.points[-2:]
    off_axis = known.gradient(last) / known.beta - last
    errors = (
        known.excess(last) / floor - 1.0,
        off_axis.norm() / last.norm(),
        (last + before).norm() / last.norm(),
    )
    return {"difference": max(abs(float(error)) for error in errors)}


def _undefined(rounds: int, dimension: int, seed: int) -> dict[str, int]:
    return {"undefined_reads": undefined_reads(rounds, dimension, seed)}


FACTS: dict[str, Callable[..., dict[str, Any]]] = {
    "rate": _rate,
    "rate attained": _rate_attained,
    "one longer step": _longer_step,
    "several longer steps": _longer_steps,
    "admissible steps": _admissible,
    "longer than admissible": _inadmissible,
    "equation 5": _equation_5,
    "algorithm 1, repaired": _algorithm_1,
    "algorithm 1, printed": _undefined,
    "local smoothness": _local_smoothness,
    "growth": _growth,
    "lower bound": _lower_bound,
    "delta": _delta_rule,
    "initial step": _initial_step,
    "initial step, release": _release_wait,
    "unit of the loss": _radius_units,
    "two-cycle": _two_cycle,
}
"""Each statement's computation: from the rest of a configuration to its metrics."""


def product(fact: str, seeds: int, **choices: tuple[Any, ...]) -> list[dict[str, Any]]:
    """List the configurations of one fact: every combination of the choices, with each seed."""
    rows: list[dict[str, Any]] = [{"fact": fact}]
    for name, values in choices.items():
        rows = [{**row, name: value} for row in rows for value in values]
    return [{**row, "seed": seed} for row in rows for seed in range(seeds)]


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: each fact by loss, dimension and setting, with its seeds."""
    smoke = profile == "smoke"
    seeds = {"smoke": 1, "laptop": 4, "paper": 10}[profile]
    losses = tuple(LOSSES)[:1] if smoke else tuple(LOSSES)
    sizes = (3,) if smoke else (2, 5, 20)
    usual: dict[str, tuple[Any, ...]] = {"loss": losses, "dimension": sizes}
    deltas = (0.02,) if smoke else (0.02, 1.0)
    counts = (1, 3) if smoke else (1, 2, 3, 5, 10, 30)
    return [
        *product("rate", seeds, **usual),
        *product("rate attained", seeds, steps=counts),
        *product("one longer step", 1, beta=(1, 3, 10), radius=(1, 2)),
        *product("several longer steps", 1, steps=counts),
        *product("admissible steps", seeds, **usual, size=(0.1, 0.5, 1.0, 1.5, 1.9)),
        *product(
            "longer than admissible",
            seeds,
            # The logistic loss is flatter at its minimum than β, and may bear a longer step.
            loss=("quadratic", "log cosh", "smoothed Huber"),
            dimension=sizes,
            size=(2.01, 2.1, 3.0),
        ),
        *product("equation 5", seeds, **usual, delta=deltas),
        *product("algorithm 1, repaired", seeds, **usual, delta=deltas),
        *product("algorithm 1, printed", 1, rounds=(1, 5, 20), dimension=(3,)),
        *product("local smoothness", seeds, **usual),
        *product("growth", seeds, **usual, delta=deltas, eta0=(1e-6, 1e-3)),
        *product("lower bound", seeds, **usual, damping=(1.0, 2.0), optimizer=("SA-SAM", "SA-SGD")),
        *product("delta", seeds, **usual),
        *product("initial step", seeds, dimension=sizes, eta0=(1e-6, 1e-4, 1e-2, 1.0)),
        *product("initial step, release", 1, curvature=(1.0,) if smoke else (0.5, 1.0, 2.0)),
        *product("unit of the loss", seeds, **usual, unit=(0.01, 100.0)),
        *product(
            "two-cycle",
            min(seeds, 2),
            dimension=(1,) if smoke else (1, 2, 5),
            damping=(2.0,) if smoke else (1.0, 2.0),
        ),
    ]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure by how much one statement holds, or fails, on one loss."""
    settings = {name: value for name, value in configuration.items() if name != "fact"}
    return FACTS[configuration["fact"]](**settings)


STUDY = Study(
    name="smoothness_steps",
    question="Which of the SA-SAM paper's statements on step sizes are true, and of which steps?",
    grid=grid,
    run=run,
)

r"""Algorithm 1 of the Rényi paper on trained layers whose spectrum is known exactly.

The algorithm's probes are normal vectors, scaled to length one. Their law is the same in every
orthonormal basis, so that its estimate depends on the eigenvalues of a layer's Hessian block alone:
a probe has independent normal components along the eigenvectors, and the components that it has
among the zeros act as a single one, whose square is :math:`\chi^2` of as many degrees of freedom.
Lanczos's method on these few numbers takes the same coefficients as on all weights of the layer.
This is how the estimates are drawn here from their exact law, hundreds of times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paperkit import data, models
from paperkit.estimators import layer_spectra, renyi_entropy
from paperkit.experiments import RunContext, Study
from paperkit.experiments.grids import grid_of
from paperkit.linalg import FunctionOperator, Spectrum, Tridiagonal, gauss_rule, lanczos, radau_rule
from paperkit.linalg.lanczos import tridiagonal_matrices
from paperkit.linalg.rules import ROUND_OFF, Rule
from paperkit.training import evaluate, train

ALLOWED = 0.1
"""Error of an estimate, in nats, that the claims allow."""

NEGLIGIBLE = 0.01
"""Error of the quadrature, in nats, that counts as none."""

_EPSILON = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Trained:
    """A trained network: the spectra of its layers, and how far it has learned."""

    spectra: Mapping[str, Spectrum]
    train_loss: float
    test_accuracy: float


@dataclass(frozen=True)
class Draws:
    """What Algorithm 1 draws for one layer, many times over.

    Attributes
    ----------
    measure : Rule
        The probes' spectral measures: their nodes are all eigenvalues, their weights the squares
        of the components of probes of length one, (repeats · probes, r).
    gauss, radau : Rule
        Rules of these measures after the given steps.
    printed : tuple of Rule
        Rules of the matrices with β one place off, for each reading of β_1; of the first repeat.
    second : Tensor
        The forms gᵀHg of other probes, (repeats, probes).
    """

    measure: Rule
    gauss: Rule
    radau: Rule
    printed: tuple[Rule, ...]
    second: Tensor

    def traces(self, rule: Rule, alpha: float, dimension: int) -> Tensor:
        """Return the estimate of Tr H^α by each repeat, (repeats,)."""
        return dimension * power_form(rule, alpha).view_as(self.second).mean(dim=1)


def diagonal_operator(spectrum: Spectrum) -> FunctionOperator:
    """Return the diagonal matrix of the nonzero eigenvalues, and of one zero where there are any.

    Parameters
    ----------
    spectrum : Spectrum
        The eigenvalues of a positive semidefinite matrix.
    """
    values = spectrum.eigenvalues
    if spectrum.dimension > len(values):
        values = torch.cat([values, values.new_zeros(1)])
    return FunctionOperator(values.mul, len(values), positive_semidefinite=True)


def unit_probes(spectrum: Spectrum, count: int, generator: np.random.Generator) -> Tensor:
    """Draw normal vectors of length one, by their components in the basis of the eigenvectors.

    Returns
    -------
    Tensor
        Shape (count, r), or (count, r + 1) with the length of what lies among the zeros.
    """
    rank, zeros = spectrum.rank, spectrum.dimension - spectrum.rank
    parts = [generator.standard_normal((count, rank))]
    if zeros > 0:
        parts.append(np.sqrt(generator.chisquare(zeros, (count, 1))))
    components = torch.from_numpy(np.concatenate(parts, axis=1))
    return components / components.norm(dim=1, keepdim=True)


def without_round_off(rule: Rule) -> Rule:
    """Return a rule whose nodes at the round-off of the largest are zero."""
    largest = rule.nodes.abs().amax(dim=1, keepdim=True)
    return Rule(rule.nodes * (rule.nodes.abs() > ROUND_OFF * _EPSILON * largest), rule.weights)


def with_off_diagonal(found: Tridiagonal, off_diagonal: Tensor) -> Rule:
    """Return the rules of matrices with another off-diagonal, which may be indefinite."""
    nodes, vectors = torch.linalg.eigh(tridiagonal_matrices(found.diagonal, off_diagonal))
    return without_round_off(Rule(nodes, vectors[:, 0].square()))


def readings(found: Tridiagonal, image: Tensor) -> list[Tensor]:
    """Return the off-diagonals as printed: β_1, which no line defines, before β_2 to β_{m−1}.

    β_1 is read as 0, as 1, the length of the probe, and as ‖Hv‖.
    """
    beside, ones = found.diagonal.shape[1] - 1, torch.ones_like(image)
    return [
        torch.cat([first.unsqueeze(1), found.off_diagonal], dim=1)[:, :beside]
        for first in (0.0 * ones, ones, image)
    ]


def power_form(rule: Rule, alpha: float) -> Tensor:
    """Return the sum of weights times |node|^α of each probe."""
    return (rule.weights * rule.nodes.abs() ** alpha).sum(dim=1)


def ratio(above: Tensor, below: Tensor, alpha: float) -> Tensor:
    """Return the entropy from estimates of Tr H^α and of Tr H."""
    return (above.log() - alpha * below.log()) / (1.0 - alpha)


@lru_cache(maxsize=1)
def trained(
    dataset: str,
    model: str,
    images: int,
    epochs: int,
    batch_size: int,
    lr: float,
    n: int,
    seed: int,
) -> Trained:
    """Train a network, and return all layers' exact spectra on its first n training images.

    The records of one network, which differ in the order, come one after another and share it.
    """
    everything = data.load(dataset)
    if len(everything.train) > images:
        everything = data.load(dataset, train_size=images)
    network = models.build(
        model,
        in_channels=everything.shape[0],
        num_classes=everything.num_classes,
        input_shape=everything.shape,
        seed=seed,
    )
    train(
        network,
        everything.train,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        progress=False,
    )
    on_training, on_test = evaluate(network, everything.train), evaluate(network, everything.test)
    part = everything.train.inputs[:n].double(), everything.train.targets[:n]
    return Trained(
        layer_spectra(network.double(), part, strict=True), on_training.loss, on_test.accuracy
    )


def draw(spectrum: Spectrum, repeats: int, probes: int, steps: int, seed: list[int]) -> Draws:
    """Run Algorithm 1's loop so many times on a layer; once with its slip of the index, too."""
    generator, operator = np.random.default_rng(seed), diagonal_operator(spectrum)
    squares, gauss, radau, second = [], [], [], []
    printed: tuple[Rule, ...] = ()
    for _ in range(repeats):
        starts = unit_probes(spectrum, probes, generator)
        found = lanczos(operator, starts, steps)
        squares.append(starts[:, : spectrum.rank].square())
        gauss.append(without_round_off(gauss_rule(found)))
        radau.append(without_round_off(radau_rule(found)))
        image = operator(starts).norm(dim=1)
        printed = printed or tuple(
            with_off_diagonal(found, beside) for beside in readings(found, image)
        )
        others = unit_probes(spectrum, probes, generator)
        second.append((others * operator(others)).sum(dim=1))
    measure = Rule(spectrum.eigenvalues.unsqueeze(0), torch.cat(squares))
    return Draws(measure, joined(gauss), joined(radau), printed, torch.stack(second))


def joined(rules: Sequence[Rule]) -> Rule:
    """Return the rules of several sets of probes together."""
    return Rule(
        torch.cat([rule.nodes for rule in rules]), torch.cat([rule.weights for rule in rules])
    )


@lru_cache(maxsize=1)
def drawn(names: tuple[Any, ...], repeats: int, probes: int, steps: int) -> dict[str, Draws]:
    """Draw all layers of the network that :func:`trained` returns for these names."""
    seed = names[-1]
    return {
        layer: draw(spectrum, repeats, probes, steps, [seed, place])
        for place, (layer, spectrum) in enumerate(trained(*names).spectra.items())
    }


def measure(spectrum: Spectrum, draws: Draws, alpha: float) -> dict[str, float]:
    """Return what the estimates of one layer are worth at one order, in nats.

    ``error`` and ``spread`` are mean and standard deviation over the repeats, with one set of
    probes; ``spread_of_two`` is with a second one for the denominator. ``quadrature_error`` is the
    mean by which the Gauss rules change what the same probes would give with all steps, and
    ``radau_error`` that of the Radau rules; ``side_slack`` has the sign of the theorem of sides in
    every repeat. What is said of a single estimate, such as ``accuracy_slack``, is of the first
    repeat. As printed, β_1 is read as errs least.
    """
    d, exact = spectrum.dimension, renyi_entropy(spectrum.eigenvalues, alpha)
    below = draws.traces(draws.measure, 1.0, d)
    gauss, radau, all_steps = (
        ratio(draws.traces(rule, alpha, d), below, alpha)
        for rule in (draws.gauss, draws.radau, draws.measure)
    )
    of_two = ratio(draws.traces(draws.gauss, alpha, d), d * draws.second.mean(dim=1), alpha)
    error, spread = float(gauss.mean()) - exact, float(gauss.std())
    quadrature = gauss - all_steps
    accurate = alpha in (2.0, 3.0)  # the rule is exact for polynomials
    sides = -quadrature.abs() if accurate else quadrature if alpha < 2 else -quadrature
    printed, index = [], []
    for rule in draws.printed:
        forms = power_form(rule, alpha)
        as_printed = ratio(forms.sum(), draws.second[0].sum(), alpha)
        printed.append(float(as_printed) - exact)
        index.append(float(ratio(d * forms.mean(), below[0], alpha)) - exact)
    least = min(range(len(printed)), key=lambda reading: abs(printed[reading]))
    return {
        "entropy": exact,
        "error": error,
        "spread": spread,
        "spread_of_two": float(of_two.std()),
        "spread_of_one_probe_less_two": spread - float(of_two.std()),
        "quadrature_error": float(quadrature.mean()),
        "radau_error": float((radau - all_steps).mean()),
        "side_slack": float(sides.min()),
        "quadrature_slack": NEGLIGIBLE - float(quadrature.abs().max()),
        "bias_less_noise": abs(error) - spread,
        "accuracy_slack": ALLOWED - abs(float(gauss[0]) - exact),
        "printed_error": printed[least],
        "printed_accuracy_slack": ALLOWED - abs(printed[least]),
        "printed_negative_share": float(
            (draws.printed[least].nodes < 0).any(dim=1).double().mean()
        ),
        "index_error": min(index, key=abs),
    }


def nearer_to_dimension(entropy: float, error: float, dimension: int) -> float:
    """Return by how much an estimate is nearer to log d than to the entropy."""
    return abs(error) - abs(entropy + error - math.log(dimension))


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Estimate all layers of one network at one order, and compare with the exact entropies."""
    names = tuple(
        configuration[name]
        for name in ("dataset", "model", "images", "epochs", "batch_size", "lr", "n", "seed")
    )
    repeats, probes, steps, alpha = (
        configuration[name] for name in ("repeats", "probes", "steps", "alpha")
    )
    network = trained(*names)
    draws = drawn(names, repeats, probes, steps)
    by_layer = {
        layer: measure(spectrum, draws[layer], alpha) for layer, spectrum in network.spectra.items()
    }
    metrics: dict[str, Any] = {
        name: {layer: found[name] for layer, found in by_layer.items()}
        for name in next(iter(by_layer.values()))
    }
    # Where most eigenvalues differ from zero, log d is near the entropy of small orders, and a rule
    # has no zeros to stumble over.
    mostly_zeros = {
        layer: spectrum
        for layer, spectrum in network.spectra.items()
        if spectrum.dimension >= 2 * spectrum.rank
    }
    metrics["nearer_to_dimension"] = {
        layer: nearer_to_dimension(
            metrics["entropy"][layer], metrics["error"][layer], spectrum.dimension
        )
        for layer, spectrum in mostly_zeros.items()
    }
    metrics["radau_gain"] = {
        layer: abs(metrics["quadrature_error"][layer]) - abs(metrics["radau_error"][layer])
        for layer in mostly_zeros
    }
    return {
        "layers": list(by_layer),
        "dimension": {layer: s.dimension for layer, s in network.spectra.items()},
        "rank": {layer: s.rank for layer, s in network.spectra.items()},
        "train_loss": network.train_loss,
        "test_accuracy": network.test_accuracy,
        **metrics,
    }


STUDY = Study(
    name="renyi_quadrature_error",
    question="How far are Algorithm 1's estimates, with one probe and with two, from exact "
    "entropies of trained layers?",
    grid=grid_of("renyi_quadrature_error"),
    run=run,
    trained=True,
    # Eigenvalues below this keep fewer than six digits through the round-off of the largest.
    round_off=1e-6,
)

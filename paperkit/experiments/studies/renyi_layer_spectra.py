"""The exact Hessian spectrum of every layer of trained networks, and its kind.

The networks are trained here as those of `population_training`, at the middle pair of learning rate
and batch size and the middle weight decay: of each cell and seed one by SGD, of the perceptrons one
by Adam as well. They are measured on the images on which `population` measures. Cells whose blocks
are no Gauss–Newton blocks are left out, because an exact spectrum would cost a Hessian product for
every weight.

The Rényi paper's Section 4.1 tells two kinds of spectra apart by eye. The rule here was written
before any spectrum was looked at. Take the eigenvalues of at least 1 % of the largest, in
logarithms, and the gaps between neighbours:

* the widest gap is more than three times the next one: *clusters*;
* the widest gap is at most twice the next one: *one cluster*;
* in between, or where fewer than three such eigenvalues leave fewer than two gaps: *neither*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from paperkit.estimators import LayerSpectrum, layer_spectra, renyi_entropy
from paperkit.experiments import RunContext, Study
from paperkit.experiments.grids import grid_of
from paperkit.experiments.studies import population_training as training
from paperkit.experiments.studies.population import OF_TRAINING, has_learned

SMALL = 0.01
"""An eigenvalue counts as small below this fraction of its layer's largest."""

MOSTLY_SMALL = 0.9
"""A spectrum is dominated by values near zero if at least this part of it is small."""

TOP = 0.01
"""Part of the eigenvalues, rounded up, that has to carry more than half of the trace in a heavy
tail."""

APART, ALIKE = 3.0, 2.0
"""Multiples of the next gap: from the first on the widest one parts clusters, up to the second it
is a gap like others."""

CLUSTERS, ONE_CLUSTER, NEITHER = "clusters", "one cluster", "neither"
KINDS = (CLUSTERS, ONE_CLUSTER, NEITHER)

ALLOWED = 0.1
"""Part of a network's layers that may be of neither kind."""

# The eigenvalues themselves are kept for one network of each cell, down to a millionth of the
# largest, which is as far as a figure goes.
KEPT = {"optimizer": "sgd", "seed": 0}
KEPT_DOWN_TO = 1e-6


def setting_of(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of `population_training` that a network has."""
    return {name: value for name, value in configuration.items() if name not in ("network", "n")}


def key(layer: str) -> str:
    """Return a layer's name without dots, by which a criterion leads into dictionaries."""
    return layer.replace(".", "/")


def magnitudes(spectrum: LayerSpectrum) -> Tensor:
    """Return the magnitudes of the nonzero eigenvalues, descending."""
    return spectrum.eigenvalues.abs().sort(descending=True).values


def possible_rank(spectrum: LayerSpectrum) -> int:
    """Return how many eigenvalues can differ from zero."""
    return spectrum.dimension if spectrum.rank_limit is None else spectrum.rank_limit


def gaps(values: Tensor) -> list[float]:
    """Return the gaps between neighbours among the large eigenvalues, in nats, the widest first.

    Parameters
    ----------
    values : Tensor
        Magnitudes, descending; those below :data:`SMALL` of the first do not count.
    """
    large = values[values >= SMALL * values[0]].log()
    return sorted((large[:-1] - large[1:]).tolist(), reverse=True)


def kind_of(values: Tensor) -> str:
    """Return the kind of a spectrum by the rule at the head of this module.

    Parameters
    ----------
    values : Tensor
        Magnitudes, descending.
    """
    found = gaps(values)
    if len(found) < 2:
        return NEITHER
    widest, following = found[:2]
    if widest > APART * following:
        return CLUSTERS
    return ONE_CLUSTER if widest <= ALIKE * following else NEITHER


def small_share(values: Tensor, possible: int) -> float:
    """Return the part of the eigenvalues that can differ from zero which is small."""
    return 1 - int((values >= SMALL * values[0]).sum()) / possible


def top_share(values: Tensor, possible: int) -> float:
    """Return the part of the trace that the largest hundredth of the eigenvalues carries."""
    return float(values[: math.ceil(TOP * possible)].sum() / values.sum())


def measure(spectra: Mapping[str, LayerSpectrum]) -> dict[str, Any]:
    """Return the metrics of a network's spectra, by layer where they are of layers.

    ``layers`` are their names from the input to the output, an order that JSON forgets.
    ``layers_of_a_kind_slack`` is by how much the part of layers of neither kind stays below
    :data:`ALLOWED`; ``widest_gap`` and ``next_gap`` are in nats, 0 where there is none.
    """
    values = {key(name): magnitudes(spectrum) for name, spectrum in spectra.items()}
    possible = {key(name): possible_rank(spectrum) for name, spectrum in spectra.items()}
    small = {name: small_share(own, possible[name]) for name, own in values.items()}
    top = {name: top_share(own, possible[name]) for name, own in values.items()}
    kinds = {name: kind_of(own) for name, own in values.items()}
    both = {name: [*gaps(own), 0.0, 0.0][:2] for name, own in values.items()}
    unclear = sum(kind == NEITHER for kind in kinds.values()) / len(kinds)
    return {
        "layers": list(spectra),
        "dimension": {key(name): s.dimension for name, s in spectra.items()},
        "possible_rank": possible,
        "largest": {name: float(own[0]) for name, own in values.items()},
        "large_eigenvalues": {name: len(gaps(own)) + 1 for name, own in values.items()},
        "small_share": small,
        "top_share": top,
        "heavy_and_zero_dominant": {
            name: small[name] >= MOSTLY_SMALL and top[name] > 0.5 for name in values
        },
        "widest_gap": {name: widest for name, (widest, _) in both.items()},
        "next_gap": {name: following for name, (_, following) in both.items()},
        "kind": kinds,
        "layers_of_a_kind_slack": ALLOWED - unclear,
        "entropy": {
            order: {key(name): renyi_entropy(s.eigenvalues, alpha) for name, s in spectra.items()}
            for order, alpha in (("0_5", 0.5), ("1_5", 1.5))
        },
    }


def kept_eigenvalues(values: Tensor) -> list[float]:
    """Return the magnitudes that a figure shows, with four significant digits."""
    shown = values[values >= KEPT_DOWN_TO * values[0]]
    return [float(f"{value:.4g}") for value in shown.tolist()]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Train one network and measure every layer of it on its first n training images."""
    setting = setting_of(configuration)
    outcome = training.run(setting, context)
    trained = {name: outcome[name] for name in OF_TRAINING}
    images = training.load_images(setting, context.device)
    if not has_learned(trained["train_loss"], images.num_classes):
        return {**trained, "learned": False}
    model = training.load_trained(setting, context.checkpoint, images)
    n = configuration["n"]
    batch = (
        images.train.inputs[:n].to(dtype=next(model.parameters()).dtype),
        images.train.targets[:n],
    )
    spectra = layer_spectra(model, batch)
    metrics = {**trained, "learned": True, **measure(spectra)}
    if {name: configuration[name] for name in KEPT} == KEPT:
        metrics["eigenvalues"] = {
            key(name): kept_eigenvalues(magnitudes(s)) for name, s in spectra.items()
        }
    return metrics


STUDY = Study(
    name="renyi_layer_spectra",
    question="How are the eigenvalues of every layer's Hessian of trained networks distributed, "
    "and are there two kinds of spectra?",
    grid=grid_of("renyi_layer_spectra"),
    run=run,
    trained=True,
    round_off=1e-6,
)

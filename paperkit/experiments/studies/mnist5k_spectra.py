"""The exact Hessian spectrum of every layer of the networks of `mnist5k_training` (chapter 1)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paperkit import data
from paperkit.estimators import LayerSpectrum, layer_spectra, renyi_entropy
from paperkit.experiments import Cost, RunContext, Study
from paperkit.experiments.archive import Archive
from paperkit.experiments.grids import grid_of
from paperkit.experiments.records import key_of
from paperkit.experiments.studies import mnist5k_training as training

ORDERS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
"""Orders of the entropy; the paper uses ½ and 3/2."""

SMALL = 0.01
"""An eigenvalue counts as small below this fraction of its layer's largest."""

# The eigenvalues themselves are kept for one run, which the landing page shows.
KEPT = {"seed": 1, "n": 100}


def entropies(spectra: Mapping[str, LayerSpectrum]) -> dict[str, dict[str, float]]:
    """Return the Rényi entropy by order (written ``"0.5"``) and by layer, in nats."""
    return {
        f"{alpha:g}": {
            name: renyi_entropy(spectrum.eigenvalues, alpha) for name, spectrum in spectra.items()
        }
        for alpha in ORDERS
    }


def small_count(spectrum: LayerSpectrum) -> int:
    """Count the eigenvalues, zeros included, below :data:`SMALL` of the largest."""
    largest = float(spectrum.eigenvalues[0])
    return spectrum.dimension - int((spectrum.eigenvalues >= SMALL * largest).sum())


def halves_slack(
    whole: Mapping[str, LayerSpectrum], halves: Sequence[Mapping[str, LayerSpectrum]]
) -> float:
    """Return by how much the entropy on n samples exceeds the mean of those on its halves.

    The mean is weighted by the halves' traces; the result is the smallest over layers and over
    the orders up to 1, for which concavity makes it non-negative (chapter 1).
    """
    slack = []
    for name, spectrum in whole.items():
        trace = sum(half[name].trace for half in halves)
        for alpha in ORDERS:
            if alpha <= 1:
                mean = sum(
                    half[name].trace / trace * renyi_entropy(half[name].eigenvalues, alpha)
                    for half in halves
                )
                slack.append(renyi_entropy(spectrum.eigenvalues, alpha) - mean)
    return min(slack)


def measure(spectra: Mapping[str, LayerSpectrum]) -> dict[str, Any]:
    """Return the metrics of a record from the spectra of a network's layers.

    ``layers`` are their names from the input to the output, an order that JSON forgets.
    ``small_fraction`` counts all :math:`d_l` eigenvalues of a layer; of
    ``small_fraction_of_cap`` the zeros that the rank bound forces are no part. ``order_slack``
    is the smallest decrease of an entropy from one order to the next, ``cap_slack`` the smallest
    distance of an entropy from the logarithm of the rank bound. ``mean_entropy`` and
    ``first_layer_entropy`` are of order ½.
    """
    by_order = entropies(spectra)
    by_layer = [[by_order[f"{alpha:g}"][name] for alpha in ORDERS] for name in spectra]
    half = by_order["0.5"]
    return {
        "layers": list(spectra),
        "dimension": {name: s.dimension for name, s in spectra.items()},
        "rank": {name: s.rank for name, s in spectra.items()},
        "trace": {name: s.trace for name, s in spectra.items()},
        "largest": {name: float(s.eigenvalues[0]) for name, s in spectra.items()},
        "entropy": by_order,
        "mean_entropy": sum(half.values()) / len(half),
        "first_layer_entropy": next(iter(half.values())),
        "small_fraction": {name: small_count(s) / s.dimension for name, s in spectra.items()},
        "small_fraction_of_cap": {
            name: (small_count(s) - (s.dimension - s.rank_bound)) / s.rank_bound
            for name, s in spectra.items()
        },
        "order_slack": min(
            low - high for values in by_layer for low, high in itertools.pairwise(values)
        ),
        "cap_slack": min(
            math.log(spectrum.rank_bound) - value
            for spectrum, values in zip(spectra.values(), by_layer, strict=True)
            for value in values
        ),
        "exact_blocks": all(s.exact_block for s in spectra.values()),
    }


def kept_eigenvalues(spectrum: LayerSpectrum) -> list[float]:
    """Return as many eigenvalues as the rank bound allows, with seven significant digits.

    Those below the tolerance are 0. Their number may differ by one or two between machines; the
    length of the list does not.
    """
    digits = [float(f"{value:.7g}") for value in spectrum.eigenvalues.tolist()]
    return digits + [0.0] * (spectrum.rank_bound - spectrum.rank)


def spectra_on(model: nn.Module, images: data.ImageData, part: slice) -> dict[str, LayerSpectrum]:
    """Return every layer's exact spectrum on some of the training images."""
    return layer_spectra(model, (images.train.inputs[part], images.train.targets[part]))


def kept_checkpoint(profile: str, store: str | Path | None = None) -> tuple[dict[str, Any], Path]:
    """Return the setting and the weights of a trained network that were kept.

    The published one if there is one, else the first in the working store.

    Raises
    ------
    FileNotFoundError
        If there is neither.
    """
    study, archive = training.STUDY.name, Archive(store)
    settings = {key_of(study, setting): setting for setting in training.STUDY.grid(profile)}
    for shelf in (archive.published, archive.working):
        for key, setting in settings.items():
            path = shelf.checkpoint(study, key)
            if path.is_file():
                return setting, path
    raise FileNotFoundError(
        f"no network of study {study!r} was kept; run `paperkit study run {study}` first."
    )


def setting_of(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the training run that a measurement is of."""
    return {name: value for name, value in configuration.items() if name != "n"}


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure every layer of one trained network on its first n training images."""
    setting = setting_of(configuration)
    path = context.checkpoint_of(training.STUDY.name, setting)
    images = training.load_images(setting, context.device, torch.float64)
    model = training.load_trained(setting, path, images)
    return _measured(configuration, model, images)


def _measured(
    configuration: dict[str, Any], model: nn.Module, images: data.ImageData
) -> dict[str, Any]:
    n = configuration["n"]
    spectra = spectra_on(model, images, slice(n))
    halves = [spectra_on(model, images, part) for part in (slice(n // 2), slice(n // 2, n))]
    metrics = {**measure(spectra), "halves_slack": halves_slack(spectra, halves)}
    if {name: configuration[name] for name in KEPT} == KEPT:
        metrics["eigenvalues"] = {name: kept_eigenvalues(s) for name, s in spectra.items()}
    return metrics


def cost(configuration: dict[str, Any]) -> Cost:
    """Return the kind of a measurement, which is one step: that of a network and n images."""
    name = f"{configuration['model']} on {configuration['n']} images of {configuration['dataset']}"
    return Cost(name, 1, "networks")


def trial(configuration: dict[str, Any], steps: int, context: RunContext) -> None:
    """Measure a network with its initial weights, so many times: weights do not change the time."""
    images = training.load_images(setting_of(configuration), context.device, torch.float64)
    model = training.build_model(configuration, images, configuration["seed"])
    model.to(device=context.device, dtype=torch.float64)
    for _ in range(steps):
        _measured(configuration, model, images)


STUDY = Study(
    name="mnist5k_spectra",
    question="What do the layers' Hessian spectra look like, and how do their entropies move "
    "with the order and with the number of samples?",
    grid=grid_of("mnist5k_spectra"),
    run=run,
    needs=(training.STUDY.name,),
    trained=True,
    # Eigenvalues below this keep fewer than six digits through the round-off of the largest.
    round_off=1e-6,
    cost=cost,
    trial=trial,
)

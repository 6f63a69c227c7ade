"""The exact Hessian spectrum of every layer of the networks of `mnist5k_training` (chapter 1)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch

from paperkit.estimators import LayerSpectrum, layer_spectra, renyi_entropy
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies import mnist5k_training as training

ORDERS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
"""Orders of the entropy; the paper uses ½ and 3/2."""

SAMPLES = {"smoke": (5, 10), "laptop": (50, 100, 200)}
"""Numbers n of training images, the first n of the training part."""

SMALL = 0.01
"""An eigenvalue counts as small below this fraction of its layer's largest."""

# The eigenvalues themselves are kept for one run, which the landing page shows.
KEPT = {"seed": training.SEEDS[0], "n": 100}
_KEPT_DIGITS = 7


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


def measure(spectra: Mapping[str, LayerSpectrum]) -> dict[str, Any]:
    """Return the metrics of a record from the spectra of a network's layers.

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


def rounded(eigenvalues: torch.Tensor) -> list[float]:
    """Return eigenvalues with seven significant digits, to keep a record small."""
    return [float(f"{value:.{_KEPT_DIGITS}g}") for value in eigenvalues.tolist()]


def setting_of(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the training run that a measurement is of."""
    return {name: value for name, value in configuration.items() if name != "n"}


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: every trained network, at every n."""
    return [{**setting, "n": n} for setting in training.grid(profile) for n in SAMPLES[profile]]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure every layer of one trained network on its first n training images."""
    setting = setting_of(configuration)
    path = context.checkpoint_of(training.STUDY.name, setting)
    images = training.load_images(setting, context.device, torch.float64)
    model = training.load_trained(setting, path, images)
    n = configuration["n"]
    spectra = layer_spectra(model, (images.train.inputs[:n], images.train.targets[:n]))
    metrics = measure(spectra)
    if {name: configuration[name] for name in KEPT} == KEPT:
        metrics["eigenvalues"] = {name: rounded(s.eigenvalues) for name, s in spectra.items()}
    return metrics


STUDY = Study(
    name="mnist5k_spectra",
    question="What do the layers' Hessian spectra look like, and how do their entropies move "
    "with the order and with the number of samples?",
    grid=grid,
    run=run,
    needs=(training.STUDY.name,),
    trained=True,
    # The smallest eigenvalues are near 1e-12 of the largest: their last digits are round-off.
    round_off=1e-6,
)

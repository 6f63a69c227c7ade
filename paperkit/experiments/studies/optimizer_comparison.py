"""Every optimizer with the hyper-parameters that its trials chose, over several seeds.

A method's trials are those of `optimizer_tuning`; the one with the best validation accuracy is
taken, the lowest loss deciding among equals, and the network is trained anew on all training images
with seeds of its own. Methods differ in how many gradients a step takes, so that two budgets are
compared: the same number of epochs, and the same number of gradients as a step of two would take.
"""

from __future__ import annotations

import math
import warnings
from statistics import fmean
from typing import Any

from torch import nn

from paperkit import data
from paperkit.estimators import (
    DEFAULT_MEASURES,
    CostWarning,
    Measurement,
    layer_spectra,
    measure,
    renyi_entropy,
)
from paperkit.experiments import Record, RunContext, Study
from paperkit.experiments.studies import optimizer_tuning as tuning
from paperkit.experiments.studies._methods import METHODS
from paperkit.experiments.studies.population_training import build_model, load_images
from paperkit.training import evaluate

SEEDS = {"smoke": 1, "laptop": 5, "paper": 5}
SAMPLES = {"smoke": 8, "laptop": 64, "paper": 2000}
MEASURES = (
    *(name for name in DEFAULT_MEASURES if name != "renyi_sharpness"),
    "hessian_trace",
    "hessian_top_eigenvalues",
)


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: methods by cell, budget and seed.

    Where a step takes two gradients the budgets are one, which is listed under the epochs.
    """
    return [
        {
            **tuning.setting_of(profile, name),
            "profile": profile,
            "epochs": epochs,
            "method": method,
            "budget": budget,
            "n": SAMPLES[profile],
            "seed": seed,
        }
        for name, cell in tuning.CELLS[profile].items()
        for method in tuning.methods_of(profile)
        for budget, epochs in _budgets(method, cell.epochs).items()
        for seed in range(SEEDS[profile])
    ]


def _budgets(method: str, epochs: int) -> dict[str, int]:
    evaluations = METHODS[method].evaluations
    if evaluations == 2:
        return {"epochs": epochs}
    return {"epochs": epochs, "gradients": max(1, round(2 * epochs / evaluations))}


def best(records: list[Record]) -> Record:
    """Return the trial with the best validation accuracy, then the lowest loss; the first of such.

    Raises
    ------
    ValueError
        If every trial diverged.
    """
    usable = [record for record in records if not record.metrics["diverged"]]
    if not usable:
        raise ValueError("every trial of the method diverged: widen what is tried.")
    return max(usable, key=lambda record: (record.metrics["accuracy"], -record.metrics["loss"]))


def at_the_end(model: nn.Module, images: data.ImageData, n: int) -> dict[str, Any]:
    """Return the measures of a trained network on its first n training images.

    Where a layer's block is zero, as in a network whose units have died, there is no entropy.
    """
    model = model.double()
    batch = images.train.inputs[:n].double(), images.train.targets[:n]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CostWarning)
        report = measure(model, batch, MEASURES, strict=False)
    spectra = layer_spectra(model, batch)
    missing, sharpness = dict(report.missing), {}
    if zero := [name for name, spectrum in spectra.items() if not len(spectrum.eigenvalues)]:
        missing["renyi_mean"] = f"the blocks of {', '.join(zero)} are zero."
    else:
        for order, alpha in (("0_5", 0.5), ("1_5", 1.5)):
            entropies = [renyi_entropy(s.eigenvalues, alpha) for s in spectra.values()]
            sharpness[order] = -fmean(entropies)
    whole = {
        name: result.metrics()
        for name, result in report.results.items()
        if isinstance(result, Measurement)
    }
    return {"renyi_mean": sharpness, "measures": whole, "missing": missing}


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Train one network by one method, as its trials chose, and measure it.

    ``gap`` is test loss less training loss; ``curve`` holds the mean training loss of each epoch,
    ``epochs_to_90`` the first epoch of 90 % training accuracy (one more than there are, if none).
    """
    method = METHODS[configuration["method"]]
    source = method.tuned_as or configuration["method"]
    tried = [
        context.record_of(tuning.STUDY.name, trial)
        for trial in tuning.trials(configuration["profile"], configuration["cell"], source)
    ]
    chosen = tuning.chosen_of(best(tried).configuration)
    images = load_images(configuration, context.device)
    model = build_model(configuration, images, configuration["seed"])
    result = tuning.train_by(model, images.train, configuration, context, chosen)
    if result is None:
        return {"diverged": True, "chosen": chosen, "test_accuracy": 1 / images.num_classes}
    on_training, on_test = evaluate(model, images.train), evaluate(model, images.test)
    if not math.isfinite(on_test.loss):
        return {"diverged": True, "chosen": chosen, "test_accuracy": on_test.accuracy}
    reached = [epoch["epoch"] for epoch in result.history if epoch["accuracy"] >= 0.9]
    return {
        "diverged": False,
        "chosen": chosen,
        "gradients": result.steps * method.evaluations,
        "train_loss": on_training.loss,
        "train_accuracy": on_training.accuracy,
        "test_loss": on_test.loss,
        "test_accuracy": on_test.accuracy,
        "gap": on_test.loss - on_training.loss,
        "accuracy_gap": on_training.accuracy - on_test.accuracy,
        "curve": [epoch["loss"] for epoch in result.history],
        "first_loss": result.history[0]["loss"],
        "epochs_to_90": min(reached, default=configuration["epochs"] + 1),
        **at_the_end(model, images, configuration["n"]),
    }


STUDY = Study(
    name="optimizer_comparison",
    question="Which of the optimizers generalizes best, each with its own hyper-parameters chosen "
    "by the same number of trials, at equal epochs and at equal gradients?",
    grid=grid,
    run=run,
    needs=(tuning.STUDY.name,),
    trained=True,
    round_off=1e-6,
)

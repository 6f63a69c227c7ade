"""Studies as they are planned: with what they cost, and those of which only the grid is there.

What a study costs does not change its metrics. The hooks of long studies stand here, where a better
one makes no record stale, unless the study's own module has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from paperkit.experiments.cost import Cost
from paperkit.experiments.grids import grid_named, grid_names, grid_of
from paperkit.experiments.records import Configuration
from paperkit.experiments.sentences import suggestion
from paperkit.experiments.study import RunContext, Study, study_named, study_names
from paperkit.experiments.training_cost import (
    method_cost,
    method_trial,
    training_cost,
    training_trial,
)


def _population_cost(configuration: Configuration) -> Cost:
    return Cost(f"{configuration['cell']}, {configuration['n']} images", 1, "networks")


# Trials are judged on a fifth of the images, and trained on the others.
_FOR_TRAINING = 0.8
_COSTS: dict[str, Callable[[Configuration], Cost]] = {
    "optimizer_comparison": partial(method_cost, part=1.0),
    "optimizer_tuning": partial(method_cost, part=_FOR_TRAINING),
    "population": _population_cost,
    "population_training": training_cost,
    "renyi_layer_spectra": training_cost,
}
_TRIALS = {
    "optimizer_comparison": method_trial,
    "optimizer_tuning": method_trial,
    "population_training": training_trial,
}


def with_hooks(study: Study) -> Study:
    """Return a study with its cost and its trial, as far as they are known.

    Parameters
    ----------
    study : Study
        A study, whose own hooks come first.
    """
    return replace(
        study,
        cost=study.cost or _COSTS.get(study.name),
        trial=study.trial or _TRIALS.get(study.name),
    )


def every_study() -> list[Study]:
    """Return all studies, sorted by name; those of which only the grid is there last."""
    written = study_names()
    return [
        *(with_hooks(study_named(name)) for name in written),
        *(_planned(name) for name in grid_names() if name not in written),
    ]


def any_study(name: str) -> Study:
    """Return the study of that name, though only its grid may be there.

    Parameters
    ----------
    name : str
        Name of the study.

    Raises
    ------
    ValueError
        If there is neither.
    """
    if name in study_names():
        return with_hooks(study_named(name))
    if name in grid_names():
        return _planned(name)
    known = [*study_names(), *grid_names()]
    raise ValueError(f"there is no study {name!r}{suggestion(name, known)}")


def _planned(name: str) -> Study:
    def run(configuration: Configuration, context: RunContext) -> NoReturn:
        raise ValueError(f"study {name!r} is not written yet: only its grid is there.")

    content: dict[str, Any] = grid_named(name)
    return Study(
        name=name,
        question=" ".join(content["about"].split()),
        grid=grid_of(name),
        run=run,
        cost=training_cost,
        trial=training_trial,
    )

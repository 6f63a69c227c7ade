"""Studies of which only the grid is there: they can be planned, and not yet be run."""

from __future__ import annotations

from typing import Any, NoReturn

from paperkit.experiments.grids import grid_named, grid_names, grid_of
from paperkit.experiments.records import Configuration
from paperkit.experiments.sentences import suggestion
from paperkit.experiments.study import RunContext, Study, study_named, study_names
from paperkit.experiments.training_cost import training_cost, training_trial


def every_study() -> list[Study]:
    """Return all studies, sorted by name; those of which only the grid is there last."""
    written = study_names()
    return [
        *map(study_named, written),
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
        return study_named(name)
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

"""A study: a grid of configurations and a function from a configuration to metrics."""

from __future__ import annotations

import importlib
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paperkit import arguments
from paperkit.experiments import studies
from paperkit.experiments.cost import Cost, default_cost
from paperkit.experiments.profiles import PROFILES
from paperkit.experiments.records import Configuration, Record


class RunContext(ABC):
    """What a run may know besides its configuration.

    Attributes
    ----------
    device : torch.device
        Where to compute. A run that does not ask for it computes on the CPU, and its record says
        so.
    store : Path
        The working store.
    checkpoint : Path
        Where this run keeps its checkpoint; the folder exists. A file that is there is this
        very run's, killed before it finished, and made by the same code: resume from it.
    progress : bool
        Whether to show progress bars.

    Examples
    --------
    >>> import torch
    >>> from paperkit.experiments import RunContext
    >>> from paperkit.experiments.studies.entropy_facts import STUDY
    >>> class ByHand(RunContext):
    ...     device, progress = torch.device("cpu"), False
    ...     def record_of(self, study, configuration):
    ...         raise ValueError(f"this study needs no other, not {study}")
    ...     checkpoint_of = record_of
    >>> metrics = STUDY.run(STUDY.grid("smoke")[0], ByHand())
    >>> all(isinstance(name, str) for name in metrics)
    True
    """

    device: torch.device
    store: Path
    checkpoint: Path
    progress: bool

    @abstractmethod
    def record_of(self, study: str, configuration: Configuration) -> Record:
        """Return the record of another study's run; if it is missing, that run comes first.

        Parameters
        ----------
        study : str
            The other study's name, which this study's ``needs`` must list.
        configuration : dict
            The configuration of the other study.

        Raises
        ------
        ValueError
            If the study is not among ``needs``, or its record is stale.
        """

    @abstractmethod
    def checkpoint_of(self, study: str, configuration: Configuration) -> Path:
        """Return the checkpoint of another study's run; if it is missing, that run comes first.

        It is looked for in the working store, then among the published checkpoints. See
        `record_of` for the parameters and errors.
        """


@dataclass(frozen=True)
class Study:
    """What is asked, of which configurations, and how one of them is answered.

    Attributes
    ----------
    name : str
        Also the name of the module in ``paperkit.experiments.studies`` that defines it.
    question : str
        Sentence that says what is to be found out.
    grid : callable
        ``grid(profile)`` lists the configurations of ``"smoke"``, ``"laptop"`` or ``"paper"``:
        dictionaries of plain scalars, each with an integer ``"seed"``. An empty list says that
        the study has nothing to run at that profile.
    run : callable
        ``run(configuration, context)`` returns the metrics: a dictionary of numbers, booleans,
        strings, lists, dictionaries of these, and results with a method ``metrics``. Such a
        result, a measurement or a whole report, goes into the record with its standard error,
        number of samples, method and convergence.
        Everything that decides the outcome is in the configuration. Times are no metrics:
        the record's provenance has them.
    needs : tuple of str
        Names of the studies whose records or checkpoints ``run`` asks the context for.
    trained : bool
        Whether the metrics depend on live training, which differs between machines: an audit
        then compares with the spread across seeds instead of with ``tolerance``.
    tolerance : float
        Largest relative difference from the recorded value that an audit accepts.
    round_off : float
        Magnitude below which two values count as equal in an audit.
    cost : callable, optional
        ``cost(configuration)`` returns a `Cost`: the kind of a run and its number of steps, from
        which `paperkit plan` tells hours. By default runs that differ in their seed alone are of
        one kind.
    trial : callable, optional
        ``trial(configuration, steps, context)`` does what a run does with so few steps, without
        the runs that it needs and without any download, and is timed. Where it takes smaller steps
        than the run's it returns the part of a step's work that each of them is.

    Examples
    --------
    >>> import random
    >>> from paperkit.experiments import Study
    >>> def grid(profile):
    ...     seeds = range(1 if profile == "smoke" else 3)
    ...     return [{"tosses": 100, "seed": seed} for seed in seeds]
    >>> def run(configuration, context):
    ...     toss = random.Random(configuration["seed"]).random
    ...     return {"heads": sum(toss() < 0.5 for _ in range(configuration["tosses"]))}
    >>> study = Study(name="coins", question="Are they fair?", grid=grid, run=run)
    >>> [study.run(configuration, None)["heads"] for configuration in study.grid("laptop")]
    [37, 47, 41]
    """

    name: str
    question: str
    grid: Callable[[str], list[Configuration]]
    run: Callable[[Configuration, RunContext], dict[str, Any]]
    needs: tuple[str, ...] = ()
    trained: bool = False
    tolerance: float = 1e-6
    round_off: float = 1e-10
    cost: Callable[[Configuration], Cost] | None = None
    trial: Callable[[Configuration, int, RunContext], float | None] | None = None

    def __post_init__(self) -> None:
        for name in ("name", "question"):
            arguments.instance(name, getattr(self, name), str)
        arguments.function("grid", self.grid, "a function of a profile")
        arguments.function("run", self.run, "a function of a configuration and a context")
        arguments.strings("needs", self.needs, "a tuple of names of studies")
        arguments.flag("trained", self.trained)
        for name in ("tolerance", "round_off"):
            arguments.number(name, getattr(self, name), at_least=0)
        if self.cost is not None:
            arguments.function("cost", self.cost, "a function of a configuration")
        if self.trial is not None:
            arguments.function("trial", self.trial, "a function of a configuration, steps, context")

    def cost_of(self, configuration: Configuration) -> Cost:
        """Return what a run costs.

        Parameters
        ----------
        configuration : dict
            The configuration of the run.

        Raises
        ------
        TypeError
            If the study's ``cost`` returns something else than a `Cost`.
        """
        if self.cost is None:
            return default_cost(configuration)
        cost = self.cost(dict(configuration))
        if not isinstance(cost, Cost):
            raise TypeError(
                f"cost of study {self.name!r} returned a {type(cost).__name__}; return a Cost."
            )
        return cost


def configurations(study: Study, profile: str) -> list[Configuration]:
    """Return the study's grid at a profile, checked.

    Raises
    ------
    ValueError
        If the profile is unknown, a configuration has no integer seed, or two are the same.
    TypeError
        If a value is not a plain scalar.
    """
    require_profile(profile)
    grid = study.grid(profile)
    seen = set()
    for configuration in grid:
        _require_plain(study, configuration)
        identity = tuple(sorted((name, repr(value)) for name, value in configuration.items()))
        if identity in seen:
            raise ValueError(
                f"study {study.name!r} lists the configuration {configuration} twice at the "
                f"{profile} profile; remove one."
            )
        seen.add(identity)
    return grid


def require_runs(study: Study, profile: str) -> list[Configuration]:
    """Return the study's grid at a profile, which must not be empty.

    Raises
    ------
    ValueError
        If the study has no such profile; the sentence names those that it has.
    """
    grid = configurations(study, profile)
    if not grid:
        others = [name for name in PROFILES if name != profile and study.grid(name)]
        has = f"choose {' or '.join(others)}" if others else "its grid is empty"
        raise ValueError(f"study {study.name!r} has no {profile} profile: {has}.")
    return grid


def require_profile(profile: str) -> None:
    """Refuse a profile that does not exist."""
    arguments.choice("profile", profile, PROFILES)


def study_names() -> list[str]:
    """Return the names of the studies in ``paperkit.experiments.studies``, sorted."""
    modules = pkgutil.iter_modules(studies.__path__)
    return sorted(m.name for m in modules if not m.ispkg and not m.name.startswith("_"))


def study_named(name: str) -> Study:
    """Return the study of that name.

    Raises
    ------
    ValueError
        If there is no such study, or its module does not define ``STUDY`` under that name.
    """
    arguments.choice("study", name, study_names())
    module = importlib.import_module(f"{studies.__name__}.{name}")
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study) or study.name != name:
        raise ValueError(f'{module.__file__} must define STUDY = Study(name="{name}", …).')
    return study


def _require_plain(study: Study, configuration: Configuration) -> None:
    seed = configuration.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(
            f"the configuration {configuration} of study {study.name!r} needs an integer 'seed'."
        )
    for name, value in configuration.items():
        if value is not None and not isinstance(value, str | int | float | bool):
            raise TypeError(
                f"{name!r} in a configuration of study {study.name!r} is a "
                f"{type(value).__name__}; give a plain scalar."
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(
                f"{name!r} in a configuration of study {study.name!r} is {value}; "
                "give a finite number, or a string such as 'inf'."
            )

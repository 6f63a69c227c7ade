"""The measures of a monitor as tasks, each with its way of reading and its account."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from paperkit.estimators import PassMeasure, Problem, hessian_top_eigenvalues
from paperkit.estimators.baselines import mean_loss
from paperkit.estimators.hessian import TopEigenvalues
from paperkit.estimators.measure import results_of
from paperkit.estimators.plan import ALONE, CEILING, Gradient
from paperkit.estimators.registry import CHEAP
from paperkit.estimators.result import Result
from paperkit.linearize.weights import chosen_weights
from paperkit.monitor.budget import Account
from paperkit.network import Batches
from paperkit.network.losses import Loss
from paperkit.network.problem import settled

# Gradients that a cheap measure is taken to cost before its first reading.
_CHEAP = 2.0
_TOP = "hessian_top_eigenvalues"

Outcome = tuple[Mapping[str, Result], Mapping[str, str]]
"""Results by measure, and the reasons of those that are missing."""


@dataclass
class Task:
    """Measures that are read together, with their account.

    Attributes
    ----------
    names : tuple of str
        Names of the measures.
    read : callable
        Function that computes them.
    account : Account
        Time that they may take.
    refusals : int
        Number of readings in a row in which nothing could be computed.
    """

    names: tuple[str, ...]
    read: Callable[[], Outcome]
    account: Account
    refusals: int = 0


class Subject:
    """A network and the samples on which it is measured.

    Parameters
    ----------
    problem : Problem
        Network, samples and loss, with the settings of the measures.

    Raises
    ------
    TypeError, ValueError
        If they do not fit each other.
    """

    def __init__(self, problem: Problem) -> None:
        _, batches, loss = settled(problem.model, problem.data, problem.loss)
        data = Batches(batches.joined())
        self._problem = dataclasses.replace(problem, data=data, loss=cast(Loss, loss))
        if not any(True for _ in problem.model.parameters()):
            raise ValueError("model has no parameters: pass the network that is trained.")
        self._problem.own(mean_loss)  # raises if model, data and loss do not fit
        self._top: TopEigenvalues | None = None
        if problem.layers is not None:
            chosen_weights(problem.model, problem.layers)  # raises if a name is unknown

    def tasks(self, measures: Mapping[str, PassMeasure | Callable[..., Any]]) -> list[Task]:
        """Return the tasks of measures, with an estimate of their cost.

        Measures that share the pass of linearization are a single task.
        """
        gradient = Gradient.of(self._problem.model, self._problem.data, self._problem.loss)
        shared = {name: one for name, one in measures.items() if isinstance(one, PassMeasure)}
        tasks = []
        if shared:
            cost = (gradient.pairs() + 2 * CEILING) * gradient.seconds
            tasks.append(Task(tuple(shared), partial(self._read, shared), Account(cost)))
        for name, one in measures.items():
            if not isinstance(one, PassMeasure):
                cost = (_CHEAP if one in CHEAP else ALONE) * gradient.seconds
                tasks.append(Task((name,), partial(self._read, {name: one}), Account(cost)))
        return tasks

    def _read(self, measures: Mapping[str, PassMeasure | Callable[..., Any]]) -> Outcome:
        if measures.get(_TOP) is hessian_top_eigenvalues:
            # The search goes on from where the last one ended.
            measures = {_TOP: partial(hessian_top_eigenvalues, start=self._top)}
        results, missing = results_of(self._problem, measures)
        self._top = cast("TopEigenvalues | None", results.get(_TOP, self._top))
        return results, missing

"""The measures of a monitor as tasks, each with its way of reading and its account."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from paperkit.estimators import PassMeasure, Problem, hessian_top_eigenvalues, measure
from paperkit.estimators.hessian import TopEigenvalues
from paperkit.estimators.measure import reason_of
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
        self._gradient = Gradient.of(problem.model, data, self._problem.loss)
        self._top: TopEigenvalues | None = None
        if problem.layers is not None:
            chosen_weights(problem.model, problem.layers)  # raises if a name is unknown

    def tasks(self, measures: Mapping[str, PassMeasure | Callable[..., Any]]) -> list[Task]:
        """Return the tasks of measures, with an estimate of their cost.

        Measures that share the pass of linearization are a single task.
        """
        gradient = self._gradient
        shared = [one for one in measures.values() if isinstance(one, PassMeasure)]
        tasks = []
        if shared:
            cost = (gradient.pairs() + 2 * CEILING) * gradient.seconds
            names = tuple(one.name for one in shared)
            tasks.append(Task(names, partial(self._from_pass, shared), Account(cost)))
        for name, one in measures.items():
            if not isinstance(one, PassMeasure):
                cost = (_CHEAP if one in CHEAP else ALONE) * gradient.seconds
                tasks.append(Task((name,), partial(self._own, name, one), Account(cost)))
        return tasks

    def _from_pass(self, measures: Sequence[PassMeasure]) -> Outcome:
        problem = self._problem
        try:
            report = measure(
                problem.model,
                problem.data,
                measures,
                problem.loss,
                layers=problem.layers,
                alpha=problem.orders,
                strict=False,
                seed=problem.seed,
                memory_budget=problem.memory_budget,
            )
        except Exception as error:
            return {}, {one.name: reason_of(error) for one in measures}
        return report.results, report.missing

    def _own(self, name: str, function: Callable[..., Any]) -> Outcome:
        options = {"start": self._top} if function is hessian_top_eigenvalues else {}
        try:
            result = self._problem.own(function, **options)
        except Exception as error:
            return {}, {name: reason_of(error)}
        if isinstance(result, TopEigenvalues):
            self._top = result  # the next search goes on from here
        return {name: result}, {}

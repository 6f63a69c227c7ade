"""Schedules: the factor on the learning rate, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable

from paperkit import arguments

SCHEDULES = ("cosine", "constant")

Schedule = str | Callable[[float], float]
"""One of :data:`SCHEDULES`, or a function of the progress after the warm-up, from 0 to 1."""


def learning_rate_factor(
    step: int, *, warmup_steps: int, total_steps: int, schedule: Schedule = "cosine"
) -> float:
    """Return the factor on the learning rate: linear warm-up, then half a cosine.

    Parameters
    ----------
    step : int
        Number of the step, from 0 to ``total_steps`` − 1.
    warmup_steps : int
        Number of steps before the factor reaches 1, which it does at step ``warmup_steps``.
    total_steps : int
        Number of steps of the run; the cosine would reach 0 one step after the last.
    schedule : str or callable
        Factor after the warm-up: ``"cosine"``; ``"constant"``, which is 1; or a function of the
        progress t, from 0 at the end of the warm-up to 1 after the last step, such as
        ``lambda t: 0.1 ** (t >= 0.5) * 0.1 ** (t >= 0.75)``.

    Raises
    ------
    TypeError, ValueError
        If a number is no integer, or out of range; if the schedule is unknown, or its function
        returns no finite number of at least 0.

    Examples
    --------
    >>> from paperkit.training import learning_rate_factor
    >>> factors = [learning_rate_factor(step, warmup_steps=1, total_steps=5) for step in range(5)]
    >>> [round(factor, 3) for factor in factors]
    [0.5, 1.0, 0.854, 0.5, 0.146]
    """
    warmup_steps = arguments.integer("warmup_steps", warmup_steps, at_least=0)
    total_steps = arguments.integer("total_steps", total_steps, at_least=max(1, warmup_steps))
    step = arguments.integer("step", step, at_least=0, at_most=total_steps)
    schedule = checked_schedule(schedule)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    assert callable(schedule)
    return arguments.number(f"schedule({progress:g})", schedule(progress), at_least=0)


def checked_schedule(schedule: object) -> Schedule:
    """Return a schedule that is known or can be called."""
    if callable(schedule):
        return schedule
    if isinstance(schedule, str):
        return arguments.choice("schedule", schedule, SCHEDULES)
    expected = f"{', '.join(map(repr, SCHEDULES))} or a function of the progress from 0 to 1"
    return arguments.function("schedule", schedule, expected)

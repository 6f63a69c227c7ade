"""What a run is given of the machines."""

from __future__ import annotations

from dataclasses import dataclass, fields

from paperkit import arguments


class LostWorkersError(RuntimeError):
    """Workers that died again and again, as where memory is short."""


@dataclass(frozen=True)
class Allotment:
    """What a run is given of the machines; None leaves it to the engine.

    Attributes
    ----------
    jobs : int or None
        Number of runs at a time.
    cpus : int or None
        Cores for a run.
    gpus : float or None
        GPUs for a run, or the part of one.
    memory : int or None
        Bytes of memory for a run.

    Examples
    --------
    >>> from paperkit.experiments import Allotment, run_study
    >>> two = Allotment(jobs=2, cpus=1)
    >>> records = run_study(
    ...     "entropy_facts", "smoke", "store", "processes", progress=False, allotment=two
    ... )
    >>> {record.provenance["threads"] for record in records}
    {1}
    """

    jobs: int | None = None
    cpus: int | None = None
    gpus: float | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        for name in ("jobs", "cpus", "memory"):
            if getattr(self, name) is not None:
                arguments.integer(name, getattr(self, name), at_least=1)
        if self.gpus is not None:
            arguments.number("gpus", self.gpus, at_least=0)

    def refuse_all_but(self, engine: str, *known: str) -> None:
        """Refuse what an engine cannot give.

        Raises
        ------
        ValueError
            If something else is asked for than it knows.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and field.name not in known:
                raise ValueError(
                    f"{field.name}={value} is nothing that the engine {engine!r} gives: "
                    f"take engine='{'processes' if field.name == 'jobs' else 'ray'}'."
                )

"""What a run costs: a kind of work, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paperkit import arguments


@dataclass(frozen=True)
class Cost:
    """How much a run has to compute, known before it is run.

    A plan times one run of each kind and multiplies: a run takes ``steps`` times ``size`` times the
    seconds of its kind.

    Attributes
    ----------
    kind : str
        Name that runs share whose steps differ in size alone, such as ``"resnet20, 3 × 32 × 32"``.
    steps : int
        Number of steps.
    unit : str
        Name of what is counted, in the plural.
    size : float
        Time of a step in that of a step of size 1 of the same kind: a batch twice as large, or two
        gradients instead of one, is 2.

    Examples
    --------
    >>> from paperkit.experiments import Cost
    >>> epochs, images, batch_size = 200, 50_000, 128
    >>> cost = Cost("resnet20", steps=epochs * -(-images // batch_size), unit="optimizer steps")
    >>> cost.steps
    78200
    """

    kind: str
    steps: int = 1
    unit: str = "runs"
    size: float = 1.0

    def __post_init__(self) -> None:
        for name in ("kind", "unit"):
            arguments.instance(name, getattr(self, name), str)
        arguments.integer("steps", self.steps, at_least=1)
        arguments.number("size", self.size, above=0)

    @property
    def amount(self) -> float:
        """Number of steps of size 1 that the run is worth."""
        return self.steps * self.size


def default_cost(configuration: dict[str, Any]) -> Cost:
    """Return the cost of a run whose study tells none: alike are those that differ in seed alone.

    Parameters
    ----------
    configuration : dict
        Configuration of the run.
    """
    rest = sorted((name, value) for name, value in configuration.items() if name != "seed")
    return Cost(", ".join(f"{name}={value}" for name, value in rest) or "all alike")

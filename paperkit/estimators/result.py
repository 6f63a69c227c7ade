"""What every measure returns: a number with its uncertainty and its assumptions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from paperkit.network.losses import Loss


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One value of one measure; ``float(result)`` is the value.

    Attributes
    ----------
    value : float
        The estimate, or the exact value.
    measure : str
        The name of the function that returned it.
    method : str
        How it was computed, in a word or two: ``"exact"``, ``"lanczos"``, ``"hutchinson"``, …
    n : int
        Samples.
    loss : str or None
        The name of the loss, with its reduction; None where the measure has no loss in it. A
        :class:`paperkit.network.Loss` may be given.
    layer : str or None
        The module's name, for a measure of a single layer.
    standard_error : float or None
        Standard error of the mean over probes; None where the value is exact.
    bracket : tuple of float or None
        Lower and upper value between which quadrature puts the probes' mean, without the
        statistical error; or between which round-off in the model's passes leaves an exact value
        open.
    probes : int or None
        Random vectors used; None where the value is exact.
    converged : bool
        False where an iteration met its cap before its tolerance.
    assumptions : mapping of str to object
        Other things that the value depends on, by name: ``exact_block``, ``obstacle``, ``policy``,
        ``rank``, ``tolerance``, …; ``precision`` where the model does not compute in the one
        format of its weights.

    Examples
    --------
    >>> from paperkit.estimators import Measurement
    >>> result = Measurement(
    ...     value=2.5, measure="trace", method="hutchinson", n=64, standard_error=0.12, probes=30
    ... )
    >>> result
    trace(2.5 ± 0.12, n=64, method='hutchinson')
    >>> float(result)
    2.5
    """

    value: float
    measure: str
    method: str
    n: int
    loss: str | Loss | None = None
    layer: str | None = None
    standard_error: float | None = None
    bracket: tuple[float, float] | None = None
    probes: int | None = None
    converged: bool = True
    assumptions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.loss is not None:  # a Loss names itself
            object.__setattr__(self, "loss", str(self.loss))

    def __float__(self) -> float:
        return self.value

    def metrics(self) -> dict[str, Any]:
        """Return the value and what a reader needs to judge it, as JSON knows it.

        Returns
        -------
        dict
            ``value`` and ``standard_error``, floats or None; ``n``, an integer; ``method``, a
            string; ``converged``, a boolean. The value is None where it is NaN or infinite, for
            which JSON has no word; the standard error also where the value is exact.
        """
        return {
            "value": _finite(self.value),
            "standard_error": _finite(self.standard_error),
            "n": int(self.n),
            "method": self.method,
            "converged": bool(self.converged),
        }

    def __repr__(self) -> str:
        parts = [f"{self.value:.6g}"]
        if self.standard_error is not None:
            parts[0] += f" ± {self.standard_error:.2g}"
        if self.layer is not None:
            parts.append(f"layer={self.layer!r}")
        parts += [f"n={self.n}", f"method={self.method!r}"]
        if self.loss is not None:
            parts.append(f"loss={self.loss!r}")
        if self.bracket is not None:
            parts.append("bracket=({:.6g}, {:.6g})".format(*self.bracket))
        if not self.converged:
            parts.append("converged=False")
        parts += [f"{name}={value!r}" for name, value in self.assumptions.items()]
        return f"{self.measure}({', '.join(parts)})"


Result = Measurement | Mapping[str, Measurement] | Mapping[str, Mapping[float, Measurement]]
"""One measurement, or one for each layer, or one for each layer and order."""


def metrics_of(result: Any) -> dict[str, Any]:
    """Return the metrics of a result; those of a mapping of results under its keys as strings.

    Raises
    ------
    TypeError
        If something in it is no :class:`Measurement`.
    """
    if isinstance(result, Measurement):
        return result.metrics()
    if isinstance(result, Mapping):
        return {str(key): metrics_of(one) for key, one in result.items()}
    raise TypeError(f"result is a {type(result).__name__}: only a Measurement has metrics.")


def flatten(result: Any) -> Iterator[Measurement]:
    """Yield every single measurement of a result in order."""
    if isinstance(result, Measurement):
        yield result
    else:
        for one in result.values():
            yield from flatten(one)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)

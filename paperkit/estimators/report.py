"""Measures of one network by name, as a table."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from paperkit.estimators.result import Measurement, Result, flatten, metrics_of
from paperkit.estimators.tables import html_table, plain_table

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, repr=False, eq=False)
class Report(Mapping[str, Any]):
    """Measures of one network on one set of samples, by name.

    It prints as a table, with what could not be computed below it;
    ``report["renyi_sharpness"]["conv1"][0.5]`` is a single result.

    Attributes
    ----------
    results : mapping of str to result
        By measure: one :class:`Measurement`, or one for each layer, or one for each layer and
        order.
    missing : mapping of str to str
        By measure that was asked for and is not in the results: one sentence why.
    uncovered : tuple of str
        Weights with two axes or more that no measure of single layers covers.
    coverage : float or None
        The share of all parameters that belongs to layers measured one by one; None where no
        measure of single layers was asked for.
    unused : tuple of str
        Parameters without influence on the outputs, as far as a measure had to know.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import measure
    >>> tokens = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 2))
    >>> report = measure(tokens, (torch.tensor([[0, 1, 2], [2, 3, 4]]), torch.tensor([0, 1])))
    >>> float(report["mean_loss"]) > 0
    True
    >>> report.missing["maximum_local_sensitivity"]
    "it differentiates in the network's input, which is not a floating-point tensor: leave it out."
    >>> list(report.frame().columns)
    ['measure', 'layer', 'alpha', 'value', 'standard_error', 'lower', 'upper', 'method', 'n',
        'loss', 'converged', 'note']
    """

    results: Mapping[str, Result]
    missing: Mapping[str, str] = field(default_factory=dict)
    uncovered: tuple[str, ...] = ()
    coverage: float | None = None
    unused: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        if name in self.missing:
            raise KeyError(f"{name} was not computed: {self.missing[name]}")
        return self.results[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def measurements(self) -> list[Measurement]:
        """Return every single result in order."""
        return [one for result in self.results.values() for one in flatten(result)]

    def metrics(self) -> dict[str, Any]:
        """Return the plain numbers of all results, by measure, as JSON knows them.

        Returns
        -------
        dict
            :meth:`Measurement.metrics` for each measure; for measures of layers under the layer,
            and for several orders under the order as a string:
            ``{"mean_loss": {"value": …}, "renyi_sharpness": {"fc": {"0.5": {"value": …}}}}``.
            A measure that is missing has none.
        """
        return metrics_of(self.results)

    def frame(self) -> DataFrame:
        """Return a table with one row for each result.

        Columns: measure, layer, alpha, value, standard_error, lower, upper (the bracket), method,
        n, loss, converged, note. What does not apply is missing.

        Raises
        ------
        ModuleNotFoundError
            If pandas is not installed; a report prints itself without it.
        """
        try:
            from pandas import DataFrame
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "frame() returns a pandas frame: install pandas, or print the report itself."
            ) from error
        return DataFrame(self._rows(), columns=list(_COLUMNS))

    def _rows(self) -> list[dict[str, Any]]:
        return [_row(one) for one in self.measurements()]

    def notes(self) -> list[str]:
        """Return what the table does not show: what is missing and why, and what is not covered."""
        notes = [f"not computed: {name}: {reason}" for name, reason in self.missing.items()]
        if self.coverage is not None:
            line = f"measures of single layers cover {self.coverage:.1%} of the parameters"
            if self.uncovered:
                line += f"; not the weights {_listed(self.uncovered)}"
            notes.append(line)
        if self.unused:
            notes.append(f"without influence on the outputs: {_listed(self.unused)}")
        return notes

    def __repr__(self) -> str:
        return "\n".join([plain_table(self._rows(), _SHOWN), *self.notes()])

    def _repr_html_(self) -> str:
        table = html_table(self._rows(), _COLUMNS)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes())
        return f"{table}{notes}"


_SHOWN = ("measure", "layer", "alpha", "value", "standard_error", "method", "note")
_COLUMNS = (*_SHOWN[:5], "lower", "upper", "method", "n", "loss", "converged", "note")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")


def _row(one: Measurement) -> dict[str, Any]:
    lower, upper = one.bracket or (None, None)
    return {
        "measure": one.measure,
        "layer": one.layer,
        "alpha": getattr(one, "alpha", None),
        "value": one.value,
        "standard_error": one.standard_error,
        "lower": lower,
        "upper": upper,
        "method": one.method,
        "n": one.n,
        "loss": one.loss,
        "converged": one.converged,
        "note": _note(one),
    }


def _note(one: Measurement) -> str | None:
    """Return why the value is not to be taken at face value."""
    notes = [str(one.assumptions["reason"])] if one.assumptions.get("reason") else []
    if not one.converged:
        notes.append("not converged")
    if one.assumptions.get("reliable") is False:
        notes.append("unreliable")
    if getattr(one, "tolerance_sensitive", False):
        notes.append("depends on the tolerance")
    return "; ".join(notes) or None

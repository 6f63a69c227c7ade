"""A record: one finished run, with its metrics and where they came from.

Ours, because trackers of experiments keep a run's commit, and DVC hashes the files that one lists
by hand; here a record is stale as soon as the code that its study imports has changed.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import ConfigDict, JsonValue, ValidationError
from typing_extensions import TypedDict

from paperkit.experiments.entries import Entry
from paperkit.experiments.sentences import refusal

Configuration = dict[str, Any]
Profile = Literal["smoke", "laptop", "paper"]


@dataclass(frozen=True)
class Record:
    """One finished run of a study.

    Attributes
    ----------
    study : str
        The study's name.
    profile : str
        The profile under which it was run.
    configuration : dict
        Plain scalars, ``"seed"`` among them.
    metrics : dict
        The metrics that the run returned, plain.
    provenance : dict
        Commit, dirty flag, versions, device, threads, wall time in seconds, peak memory in
        bytes, date in UTC, fingerprint of the code, and the records that the run was given.
    location : str
        The file (and line) it was read from; empty for a record that was just made.

    Examples
    --------
    >>> from paperkit.experiments import Record
    >>> record = Record(
    ...     study="coins",
    ...     profile="laptop",
    ...     configuration={"tosses": 100, "seed": 7},
    ...     metrics={"heads": 48},
    ...     provenance={"dirty": False},
    ... )
    >>> record.seed, record.clean, len(record.key)  # its name is a hash of study and configuration
    (7, True, 20)
    """

    study: str
    profile: str
    configuration: Configuration
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    location: str = field(default="", compare=False)

    @property
    def key(self) -> str:
        """Hash of the study's name and the configuration."""
        return key_of(self.study, self.configuration)

    @property
    def seed(self) -> int:
        """The configuration's seed."""
        return int(self.configuration["seed"])

    @property
    def clean(self) -> bool:
        """Whether the code that made it was committed; an unknown state is not clean."""
        return self.provenance.get("dirty") is False

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the code that the record stands for."""
        return str(self.provenance["fingerprint"])


def key_of(study: str, configuration: Configuration) -> str:
    """Return the 20 hexadecimal digits that name a run: a hash of study and configuration."""
    canonical = json.dumps(
        [study, configuration], sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]


class _Provenance(TypedDict):
    """Where a record came from: what is asked of every record, among more."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    date: str
    dirty: bool | None
    fingerprint: str


class _Line(Entry):
    """A record as it stands in a file."""

    key: str
    study: str
    profile: Profile
    configuration: dict[str, JsonValue]
    metrics: dict[str, JsonValue]
    provenance: _Provenance


def to_json(record: Record) -> str:
    """Return the record as one line of JSON, the same bytes for the same record."""
    content = {name: getattr(record, name) for name in _Line.model_fields}
    return json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)


def from_json(text: str, location: str) -> Record:
    """Read a record from its line of JSON.

    Raises
    ------
    ValueError
        If the text is damaged: no JSON, a field missing or of another type, or a key that is not
        its own. The sentence names the location, the field and the remedy.
    """
    try:
        line = _Line.model_validate_json(text)
    except ValidationError as error:
        place, sentence = refusal(error)
        where = f"{place}: " if place else ""
        raise ValueError(f"{location} is damaged: {where}{sentence} {_REMEDY}") from None
    content = {name: getattr(line, name) for name in _Line.model_fields if name != "key"}
    record = Record(**content, location=location)
    if line.key != record.key:
        raise ValueError(
            f"{location} is damaged: its key is not the hash of its study and configuration. "
            f"{_REMEDY}"
        )
    return record


_REMEDY = "Restore it from git or delete it and run the study again."


@runtime_checkable
class HasMetrics(Protocol):
    """A result that says what a record keeps of it, such as a measurement or a report of several.

    A measurement's metrics are ``{"value", "standard_error", "n", "method", "converged"}``.
    """

    def metrics(self) -> dict[str, Any]:
        """Return the metrics by name, plain or with further such results."""


def plain_metrics(metrics: Any, study: str) -> dict[str, Any]:
    """Return what a run returned as plain JSON values.

    Tensors of one element become numbers; a result with a method ``metrics``, such as a measurement
    or a report, is recorded whole, by what that method returns.

    Raises
    ------
    TypeError
        If it is neither a dictionary with string keys nor such a result, or holds something JSON
        has no word for.
    ValueError
        If a number is not finite.
    """
    if isinstance(metrics, HasMetrics):
        metrics = metrics.metrics()
    if not isinstance(metrics, dict):
        raise TypeError(
            f"run of study {study!r} returned a {type(metrics).__name__}; return a dictionary."
        )
    return {_require_name(k, study): _plain(v, f"{study}.{k}") for k, v in metrics.items()}


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, torch.Tensor | np.ndarray | np.generic) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, HasMetrics):
        value = value.metrics()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"the metric {name} is {value}; record None where there is no number.")
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, name) for item in value]
    if isinstance(value, dict):
        return {_require_name(k, name): _plain(v, f"{name}.{k}") for k, v in value.items()}
    raise TypeError(
        f"the metric {name} is a {type(value).__name__}; "
        "return numbers, booleans, strings, measurements, lists or dictionaries of them."
    )


def _require_name(name: Any, where: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{where} has a metric named {name!r}; names are strings.")
    return name

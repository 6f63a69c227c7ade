"""A record: one finished run, with its metrics and where they came from.

Ours, because trackers of experiments keep a run's commit, and DVC hashes the files that one lists
by hand; here a record is stale as soon as the code that its study imports has changed.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np
import torch

Configuration = dict[str, Any]
FIELDS = ("study", "profile", "configuration", "metrics", "provenance")
SCHEMA = 1
"""Version of a record's line; a line that names none is of the first."""


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


def to_json(record: Record) -> str:
    """Return the record as one line of JSON, the same bytes for the same record."""
    content = {name: getattr(record, name) for name in ("key", *FIELDS)}
    line = {**content, "schema": SCHEMA}
    return json.dumps(line, sort_keys=True, ensure_ascii=False, allow_nan=False)


def from_json(text: str, location: str) -> Record:
    """Read a record from its line of JSON.

    Raises
    ------
    ValueError
        If the text is damaged: no JSON, a field missing, given twice or of another type, a number
        that is not finite, or a key that is not its own; or if a later version of this library
        wrote it. The sentence names the location, the field and the remedy.
    """
    try:
        content = _content(text)
        _require_known_schema(content, location)
        content = _fields()(content)
        record = Record(**{name: content[name] for name in FIELDS}, location=location)
        belongs = content["key"] == record.key
    except LaterSchemaError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{location} is damaged: {error} {_REMEDY}") from None
    if not belongs:
        raise ValueError(
            f"{location} is damaged: its key is not the hash of its study and configuration. "
            f"{_REMEDY}"
        )
    return record


class LaterSchemaError(ValueError):
    """A record that a later version of this library wrote."""


def read_text(path: Path) -> str:
    """Return the text of a file of records.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not UTF-8.
    """
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is damaged: its byte {error.start} is not UTF-8. {_REMEDY}"
        ) from None


def _content(text: str) -> Any:
    try:
        return json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_finite_integer,
            object_pairs_hook=_require_unique,
        )
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("it is not JSON.") from None


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"it holds {word}, and a record holds finite numbers.")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text[:20])


def _finite_integer(text: str) -> int:
    # A longer number is no float, and criteria compute with floats.
    return int(text) if len(text) < sys.float_info.max_10_exp else _refuse_constant(text[:20])


def _require_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} is given twice.")
    return content


def _require_known_schema(content: Any, location: str) -> None:
    schema = content.pop("schema", SCHEMA) if isinstance(content, dict) else SCHEMA
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise ValueError(f"schema is {schema!r}; it is a whole number from 1.")
    if schema > SCHEMA:
        raise LaterSchemaError(
            f"{location} is of schema {schema}, and this version of paperkit reads schemas up to "
            f"{SCHEMA}: install a later version. The record is left as it is."
        )


def _fields() -> Callable[[Any], dict[str, Any]]:
    """Return the schema's check; a plainer one without pydantic, which a GPU's machine may lack."""
    try:
        from paperkit.experiments.record_schema import checked
    except ModuleNotFoundError as error:
        if error.name != "pydantic":
            raise
        return _plain_fields
    return checked


def _plain_fields(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError("it is no mapping.")
    for name in ("key", *FIELDS):
        kind = dict if name in ("configuration", "metrics", "provenance") else str
        if not isinstance(content.get(name), kind):
            raise ValueError(f"the field {name!r} is missing or of another type.")
    for name in ("date", "dirty", "fingerprint"):
        if name not in content["provenance"]:
            raise ValueError(f"provenance: the field {name!r} is missing.")
    return content


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

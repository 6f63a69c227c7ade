"""Schema of a record as it stands in a file: one line of JSON."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, JsonValue, ValidationError
from typing_extensions import TypedDict

from paperkit.experiments.entries import Entry
from paperkit.experiments.profiles import Profile
from paperkit.experiments.sentences import refusal


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


def checked(content: Any) -> dict[str, Any]:
    """Return the fields of a record's line.

    Raises
    ------
    ValueError
        If a field is missing, unknown or of another type. The sentence names the field.
    """
    try:
        line = _Line.model_validate(content)
    except ValidationError as error:
        place, sentence = refusal(error)
        raise ValueError(f"{place}: {sentence}" if place else sentence) from None
    return {name: getattr(line, name) for name in _Line.model_fields}

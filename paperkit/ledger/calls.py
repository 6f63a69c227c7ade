"""How a claim calls a criterion: the criterion's name, the evidence, and its own arguments.

The schema of each call is made from the criterion's signature, so that the two cannot differ.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, Field, WithJsonSchema, create_model, model_validator

from paperkit.experiments.entries import Entry
from paperkit.experiments.sentences import suggestion
from paperkit.experiments.study import study_names
from paperkit.ledger.lists import planned_studies


def _studies() -> list[str]:
    return sorted({*study_names(), *planned_studies()})


def _known_study(study: str) -> str:
    if study not in _studies():
        raise ValueError(f"unknown study {study!r}{suggestion(study, _studies())}")
    return study


def _plain_values(where: dict[str, Any]) -> dict[str, Any]:
    for name, values in where.items():
        for value in values if isinstance(values, list) else [values]:
            if value is not None and not isinstance(value, str | int | float):
                raise ValueError(f"{name} is {value!r}; give a value or a list of values.")
    return where


_SCALAR = {"type": ["string", "number", "boolean", "null"]}
_VALUES = {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR}]}
StudyName = Annotated[
    str,
    AfterValidator(_known_study),
    Field(json_schema_extra=lambda schema: schema.update(enum=_studies())),
]
Where = Annotated[
    dict[str, Any],
    AfterValidator(_plain_values),
    WithJsonSchema({"type": "object", "additionalProperties": _VALUES}),
]


class Side(Entry):
    """One side of an ordering: which records, and which of their metrics."""

    where: Where = Field(default_factory=dict)
    """Which of the selected configurations are on this side; by default all."""
    metric: str | None = None
    """By default the metric of both sides."""


class CriterionCall(Entry):
    """A criterion with its arguments; those of its own are fields of a subclass."""

    name: str
    """A function in `paperkit.ledger.criteria`."""
    study: StudyName
    """The study whose records are the evidence."""
    where: Where = Field(default_factory=dict)
    """Which configurations of the study's grid are evidence: for an entry a value, or a list of
    values of which one must match; by default all."""
    only: str | None = None
    """A metric, true or false: runs of which it is false are no evidence, and are counted."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The criterion's own arguments that the claim gives, by name."""
        own = [name for name in type(self).model_fields if name not in CriterionCall.model_fields]
        return {name: getattr(self, name) for name in own if name in self.model_fields_set}

    @model_validator(mode="after")
    def _require_metrics(self) -> CriterionCall:
        for name, side in self.arguments.items():
            if isinstance(side, Side) and side.metric is self.arguments.get("metric") is None:
                raise ValueError(f"{name} needs a metric, or {self.name} one for both.")
        return self


def call_of(criterion: Callable[..., Any], given: tuple[str, ...]) -> type[CriterionCall]:
    """Make the schema of a criterion's calls from its signature.

    Parameters
    ----------
    criterion : callable
        Its annotations are the types of the arguments, its first line describes it.
    given : tuple of str
        Parameters that do not come from the call.
    """
    hints = get_type_hints(criterion, include_extras=True)
    fields: dict[str, Any] = {"name": (Literal[criterion.__name__], ...)}
    for name, parameter in inspect.signature(criterion).parameters.items():
        if name not in given:
            required = parameter.default is inspect.Parameter.empty
            fields[name] = (hints[name], ... if required else parameter.default)
    summary = (criterion.__doc__ or "").partition("\n")[0]
    return create_model(
        criterion.__name__,
        __base__=CriterionCall,
        __doc__=summary,
        # Its fields stand in no source file, and looking for one takes a tenth of a second.
        __cls_kwargs__={"use_attribute_docstrings": False},
        **fields,
    )

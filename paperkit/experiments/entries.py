"""How entries of YAML and JSON files are read: by their schema, and by no more than that."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from paperkit.experiments.sentences import suggestion


class Entry(BaseModel):
    """An entry of a file, or a part of one: checked when it is made, and fixed afterwards.

    A name that the schema does not know is refused, and no value is converted to another type. A
    string below a field describes it in the JSON schema, which editors show.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, content: Any) -> Any:
        # pydantic refuses unknown names too, but after missing ones and without the nearest name.
        if isinstance(content, dict):
            for name in content:
                if name not in cls.model_fields:
                    known = suggestion(name, cls.model_fields)
                    raise ValueError(f"unknown field {name!r}{known}")
        return content

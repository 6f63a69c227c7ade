"""Sentences that refuse what stands in a file: what is wrong, and what to write instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from paperkit import arguments

if TYPE_CHECKING:
    from pydantic import ValidationError

# By pydantic's names of errors, whose own messages are made for programmers.
_REMEDIES = {
    "string_type": "give text",
    "string_too_short": "give text",
    "float_type": "give a number",
    "finite_number": "give a finite number",
    "int_type": "give a whole number",
    "bool_type": "give true or false",
    "dict_type": "give a mapping",
    "model_type": "give a mapping",
    "model_attributes_type": "give a mapping",
    "list_type": "give a list",
    "tuple_type": "give a list",
}


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that refuses ``name``: the nearest known name, or all."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; choose one of {', '.join(names)}." if names else "; there is none."


def refusal(error: ValidationError, kinds: Collection[str] = ()) -> tuple[str, str]:
    """Return where in an entry the first error is, and a sentence about it.

    Parameters
    ----------
    error : ValidationError
        From a model that reads the entry.
    kinds : collection of str
        Names of the kinds of entry of which one is meant; pydantic puts them into the place.

    Returns
    -------
    place : str
        The fields that lead there, such as ``criterion`` or ``changed[0]``; empty at the top.
    sentence : str
        Begins with the field that is wrong, in small letters.
    """
    first = error.errors(include_url=False)[0]
    kind, context, value = first["type"], first.get("ctx", {}), first["input"]
    steps = [step for step in first["loc"] if step not in kinds]
    if kind == "value_error":
        return _joined(steps), str(context["error"])
    if kind == "json_invalid":
        return "", "it is not JSON."
    if kind == "union_tag_not_found":
        return _joined(steps), f"the field {context['discriminator']} is missing."
    place, field = _joined(steps[:-1]), _joined(steps[-1:]) or "it"
    if kind == "missing":
        return place, f"the field {field!r} is missing."
    if kind == "union_tag_invalid":
        value, known = context["tag"], context["expected_tags"]
        return place, f"unknown {field} {value!r}{_suggestion(value, known)}"
    if kind == "literal_error":
        return place, f"unknown {field} {value!r}{_suggestion(value, context['expected'])}"
    if kind == "greater_than_equal":
        remedy = f"give a number of at least {context['ge']:g}"
    else:
        remedy = _REMEDIES.get(kind, first["msg"].replace("Input should", "it should"))
    return place, f"{field} is {arguments.shown(value)}; {remedy}."


def _suggestion(value: object, quoted: str) -> str:
    return suggestion(str(value), re.findall(r"'(.*?)'", quoted))


def _joined(steps: Iterable[int | str]) -> str:
    text = ""
    for step in steps:
        text += f"[{step}]" if isinstance(step, int) else f", {step}"
    return text.removeprefix(", ")

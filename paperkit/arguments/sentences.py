"""The one sentence with which an argument is refused."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

_LONGEST = 80
_MOST_NAMES = 12
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlong = 40


def shown(value: object) -> str:
    """Return a value in a form that fits a sentence: short, on one line; a tensor by its shape."""
    if isinstance(value, Tensor):
        return f"<Tensor {tuple(value.shape)} of {value.dtype}>"
    if isinstance(value, nn.Module):
        return f"<{type(value).__name__}>"
    if isinstance(value, Mapping):
        value = dict(value)
    try:
        text = " ".join(_SHORT.repr(value).split())
    except Exception:  # repr of some class may fail, as that of an integer of 4,301 digits does
        return f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def sentence(
    name: str, value: object, expected: str, because: str = "", *, kind: bool = False
) -> str:
    """Return the sentence that refuses a value; ``kind`` says that it is of another kind."""
    given = f", not {type(value).__name__}" if kind and value is not None else ""
    return f"{name}={shown(value)} must be {expected}{given}{': ' * bool(because)}{because}."


def join_parts(*parts: str) -> str:
    """Join the parts of an expectation that are not empty."""
    return ", ".join(part for part in parts if part)


def list_of(known: Sequence[str]) -> str:
    """Return the first names of a list in words."""
    omitted = len(known) - _MOST_NAMES
    listed = ", ".join(name or "''" for name in known[:_MOST_NAMES]) or "none"
    return f"{listed}, … ({omitted} more)" if omitted > 0 else listed

"""Names, choices among them, mappings and paths."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paperkit.arguments.numbers import entries_of, flag
from paperkit.arguments.sentences import list_of, sentence, shown


def choice(name: str, value: object, options: Iterable[str]) -> str:
    """Return one of the known strings.

    Raises
    ------
    TypeError, ValueError
        If it is no string, or unknown; a similar option is proposed.
    """
    known = list(options)
    expected = f"one of {list_of(known)}"
    if not isinstance(value, str):
        raise TypeError(sentence(name, value, expected, kind=True))
    if value not in known:
        close = difflib.get_close_matches(value[:80], known, n=1)
        proposal = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"{name}={shown(value)} is unknown{proposal}: choose {expected}.")
    return value


def names(name: str, value: object, known: Iterable[str], *, at_least: int = 1) -> list[str]:
    """Return names out of those that are known, each once, in the order in which they came.

    Parameters
    ----------
    name : str
        Name of the argument.
    value : object
        Iterable of strings. A single string is refused, because it would be read letter by letter.
    known : iterable of str
        Names to choose from.
    at_least : int
        Smallest number of different names.

    Raises
    ------
    TypeError, ValueError
        If it is no iterable of strings, one of them is unknown, or they are too few.
    """
    known = list(known)
    expected = f"a list of names out of {list_of(known)}"
    chosen = list(dict.fromkeys(strings(name, value, expected)))
    unknown = [entry for entry in chosen if entry not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0][:80], known, n=1)
        proposal = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(
            f"{name}={shown(unknown)} not found{proposal}: choose among {list_of(known)}."
        )
    if len(chosen) < at_least:
        raise ValueError(sentence(name, value, f"{expected}, {at_least} at least"))
    return chosen


def strings(name: str, value: object, expected: str = "a list of strings") -> list[str]:
    """Return the strings of an iterable that is not itself a string.

    Raises
    ------
    TypeError
        If it is anything else.
    """
    entries = entries_of(name, value, expected)
    if not all(isinstance(entry, str) for entry in entries):
        raise TypeError(sentence(name, value, expected))
    return entries


def known_truths(
    name: str, value: object, known: Iterable[str], unknown: str = "is unknown"
) -> dict[str, bool]:
    """Return a mapping from known names to True or False; None stands for an empty one.

    Raises
    ------
    TypeError, ValueError
        If it is no mapping, has another name, or a value that is neither.
    """
    known = list(known)
    if value is None:
        return {}
    truths = mapping(name, value, f"a mapping from {list_of(known)} to True or False")
    for key in truths:
        if key not in known:
            raise ValueError(
                f"{name}={shown(value)}: {key!r} {unknown}: choose among {list_of(known)}."
            )
    return {key: flag(f"{name}[{key!r}]", truth) for key, truth in truths.items()}


def mapping(name: str, value: object, expected: str = "a mapping") -> dict[str, Any]:
    """Return a mapping from strings, as a dictionary.

    Raises
    ------
    TypeError
        If it is anything else.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(sentence(name, value, expected, kind=True))
    return dict(value)


def path(name: str, value: object) -> Path:
    """Return a path.

    Raises
    ------
    TypeError, ValueError
        If it is neither a string nor a path, or empty.
    """
    expected = "a path, as a string or a pathlib.Path"
    if not isinstance(value, str | os.PathLike):
        raise TypeError(sentence(name, value, expected, kind=True))
    text = os.fspath(value)
    if not isinstance(text, str):
        raise TypeError(sentence(name, value, expected, kind=True))
    if not text or "\0" in text:
        raise ValueError(sentence(name, value, expected))
    return Path(text)

"""Reads a grid's file and lists its configurations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from paperkit import arguments
from paperkit.experiments.profiles import PROFILES
from paperkit.experiments.records import Configuration
from paperkit.experiments.sentences import suggestion

FOLDER = Path(__file__).resolve().parent
"""Folder of the files, ``NAME.yml``."""

_TOGETHER = "together"


def grid_names(folder: Path | None = None) -> list[str]:
    """Return the names of the studies whose grid is a file, sorted."""
    return sorted(path.stem for path in (folder or FOLDER).glob("*.yml"))


def grid_named(name: str, folder: Path | None = None) -> dict[str, Any]:
    """Return what a grid's file holds, checked.

    Parameters
    ----------
    name : str
        Name of the study.
    folder : Path, optional
        Folder of the file; by default that of this package.

    Raises
    ------
    ValueError
        If there is no such file, or it is damaged. The sentence names place and remedy.
    """
    folder = folder or FOLDER
    if name not in grid_names(folder):
        raise ValueError(f"there is no grid {name!r}{suggestion(name, grid_names(folder))}")
    path = folder / f"{name}.yml"
    return _content(path, path.stat().st_mtime_ns)


def grid_of(
    name: str, options: Mapping[str, str] | None = None, folder: Path | None = None
) -> Callable[[str], list[Configuration]]:
    """Return the function from a profile to the configurations that a grid's file lists.

    The file is read when the function is called.

    Parameters
    ----------
    name : str
        Name of the study.
    options : mapping of str to str, optional
        Options to take where the file leaves a choice, in the place of its own.
    folder : Path, optional
        Folder of the file; by default that of this package.
    """

    def grid(profile: str) -> list[Configuration]:
        arguments.choice("profile", profile, PROFILES)
        return list(_configurations(name, profile, options or {}, folder))

    return grid


def profiles_of(name: str, folder: Path | None = None) -> tuple[str, ...]:
    """Return the profiles that a grid's file has.

    Parameters
    ----------
    name : str
        Name of the study.
    folder : Path, optional
        Folder of the file; by default that of this package.
    """
    content = grid_named(name, folder)
    return tuple(profile for profile in PROFILES if content.get(profile) is not None)


@lru_cache(maxsize=64)
def _content(path: Path, changed: int) -> dict[str, Any]:
    """Read a file; ``changed`` is when it was, so that an edited file is read again."""
    try:
        from paperkit.experiments.plain_yaml import read_yaml
    except ModuleNotFoundError as error:
        if error.name != "yaml":
            raise
        raise ValueError(
            f"{path.name} needs PyYAML to be read: run `pip install pyyaml`."
        ) from None
    content = read_yaml(path)
    check = _check()
    if check is not None:
        check(content, path.name)
    return content


def _check() -> Callable[[Any, str], None] | None:
    """Return the schema's check; none without pydantic, which a GPU's machine may lack."""
    try:
        from paperkit.experiments.grids.schema import check
    except ModuleNotFoundError as error:
        if error.name != "pydantic":
            raise
        return None
    return check


def _configurations(
    name: str, profile: str, options: Mapping[str, str], folder: Path | None
) -> Iterator[Configuration]:
    content = grid_named(name, folder)
    taken = _taken(name, content.get("choices") or {}, options)
    order = content.get("order") or []
    before: list[Configuration] = [{}]
    if content.get("each_of") is not None:
        before = list(_configurations(content["each_of"], profile, {}, folder))
    defaults = content.get("defaults") or {}
    own = [block for block in content.get(profile) or [] if _counts(block, taken)]
    every = [block for block in content.get("every") or [{"values": {}}] if _counts(block, taken)]
    for first, shared, block in itertools.product(before, every, own):
        yield from (
            {**first, **more} for more in _combinations(shared, block, defaults, taken, order)
        )


def _taken(name: str, choices: Mapping[str, Any], options: Mapping[str, str]) -> dict[str, str]:
    for choice, option in options.items():
        if choice not in choices:
            raise ValueError(f"{choice!r} is no choice of {name}.yml{suggestion(choice, choices)}")
        known = choices[choice]["options"]
        if option not in known:
            raise ValueError(f"{option!r} is no option of {choice}{suggestion(option, known)}")
    return {choice: one["take"] for choice, one in choices.items()} | dict(options)


def _counts(block: Mapping[str, Any], taken: Mapping[str, str]) -> bool:
    return all(taken[choice] == option for choice, option in block.get("when", {}).items())


def _combinations(
    shared: Mapping[str, Any],
    block: Mapping[str, Any],
    defaults: Mapping[str, Any],
    taken: Mapping[str, str],
    order: list[str],
) -> Iterator[Configuration]:
    """Yield every combination of a profile's values with those of a shared block, which win."""
    only_first = {*shared.get("only_first", ()), *block.get("only_first", ())}
    factors: dict[str, list[Configuration]] = {}
    # The values that vary together are one loop.
    rows = shared.get("together") or block.get("together")
    if rows:
        factors[_TOGETHER] = [
            {name: _several(value, taken)[0] for name, value in row.items()} for row in rows
        ]
    usual = {} if block.get("like") is None else defaults[block["like"]]
    usual = {name: value for name, value in usual.items() if name not in (rows or [{}])[0]}
    for name, value in {**usual, **block["values"], **shared["values"]}.items():
        several = _several(value, taken)
        factors[name] = [{name: one} for one in several[: 1 if name in only_first else None]]
    names = sorted(factors, key=lambda name: order.index(name) if name in order else len(order))
    for chosen in itertools.product(*(factors[name] for name in names)):
        yield {name: value for part in chosen for name, value in part.items()}


def _several(value: Any, taken: Mapping[str, str]) -> list[Any]:
    if isinstance(value, dict):
        if "by" in value:
            return _several(value["options"][taken[value["by"]]], taken)
        if "first" in value:
            return list(range(value["first"], value["last"] + 1))
        return _several(value["values"] if "values" in value else value["value"], taken)
    return value if isinstance(value, list) else [value]

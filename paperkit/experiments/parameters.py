"""Resolve a notebook's parameters: refuse what it does not know, fill in the profile's rest."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from paperkit import arguments
from paperkit.experiments.engines import engine_named
from paperkit.experiments.profiles import PROFILES
from paperkit.experiments.sentences import suggestion

ALLOWED = (
    "profile",
    "dataset",
    "model",
    "seed",
    "seeds",
    "device",
    "store",
    "engine",
    "threads",
)
DEFAULTS = {"profile": "laptop", "device": "auto", "store": None, "engine": "in-process"}

_PLAIN = (bool, int, float, complex, str, bytes, list, tuple, dict, set, Path, type(None))
_IPYTHON = ("In", "Out")
_RESOLVED = "_paperkit_resolved"


def resolve(
    namespace: dict[str, Any],
    profiles: dict[str, dict[str, Any]],
    allowed: Iterable[str] = ALLOWED,
) -> SimpleNamespace:
    """Resolve the parameters of a notebook, in the cell after its ``parameters`` cell.

    ``p = resolve(globals(), {"smoke": {…}, "laptop": {…}, "paper": {…}})``

    Parameters
    ----------
    namespace : dict
        The notebook's globals. Names that begin with an underscore, modules and callables are
        ignored; any other value must be a parameter. Once this has succeeded in a kernel,
        other names are free, so that the cell can be run again.
    profiles : dict of dict
        For each profile, by name: values for the parameters that are None or absent, and
        further settings of this notebook.
    allowed : iterable of str
        The parameters that this notebook has.

    Returns
    -------
    SimpleNamespace
        The profile's settings overridden by the parameters. ``device`` is a `torch.device`
        (``"auto"`` is CUDA where available, else the CPU), ``store`` a path or None, and
        ``seeds`` a tuple (a count k stands for 0, …, k − 1).

    Raises
    ------
    ValueError
        If a name is no parameter, or the profile, engine or device does not exist.
    TypeError
        If a value has the wrong type.

    Examples
    --------
    >>> from paperkit.experiments import resolve
    >>> profiles = {"smoke": {"steps": 10}, "laptop": {"steps": 1000}}
    >>> p = resolve({"profile": "smoke", "seeds": 3}, profiles)
    >>> p.steps, p.seeds, p.engine
    (10, (0, 1, 2), 'in-process')
    >>> resolve({"sede": 3}, profiles)
    Traceback (most recent call last):
        ...
    ValueError: 'sede' is not a parameter of this notebook; did you mean 'seed'?
    """
    if not isinstance(namespace, dict) or not all(isinstance(key, str) for key in namespace):
        raise TypeError(f"namespace={arguments.shown(namespace)} must be a dict: pass globals().")
    allowed = tuple(arguments.strings("allowed", allowed, "a list of names of parameters"))
    for name, own in arguments.mapping("profiles", profiles).items():
        arguments.mapping(f"profiles[{name!r}]", own)
    if not namespace.get(_RESOLVED, False):
        _refuse_unknown(namespace, allowed)
    given = {n: namespace[n] for n in allowed if namespace.get(n) is not None}
    profile = given.get("profile", DEFAULTS["profile"])
    if profile in PROFILES and profile not in profiles:
        raise ValueError(
            f"this notebook has no {profile} profile: what it does has no settings at that scale. "
            f"Choose {' or '.join(name for name in PROFILES if name in profiles)}."
        )
    if not isinstance(profile, str) or profile not in profiles:
        raise ValueError(f"profile is {profile!r}{suggestion(str(profile), profiles)}")
    filled = {**DEFAULTS, **profiles[profile], "profile": profile}
    values = {n: _checked(n, v, filled.get(n)) for n, v in (filled | given).items()}
    namespace[_RESOLVED] = True
    return SimpleNamespace(**values)


def _refuse_unknown(namespace: dict[str, Any], allowed: tuple[str, ...]) -> None:
    for name, value in namespace.items():
        if name in allowed or name.startswith("_") or name in _IPYTHON:
            continue
        if isinstance(value, ModuleType) or callable(value) or not isinstance(value, _PLAIN):
            continue
        raise ValueError(f"{name!r} is not a parameter of this notebook{suggestion(name, allowed)}")


def _checked(name: str, value: Any, default: Any) -> Any:
    if name in _CHECKS:
        return None if value is None else _CHECKS[name](name, value)
    if value is None or default is None:
        return value
    # A setting of the notebook's own has the type that the profile gives it.
    expected = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, expected) or isinstance(value, bool) != isinstance(default, bool):
        raise TypeError(
            f"{name} is {value!r}, a {type(value).__name__}; give a {type(default).__name__}."
        )
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{name} is {value!r}; give a string.")
    return value


def _whole(name: str, value: Any, at_least: int) -> int:
    return arguments.integer(name, value, at_least=at_least)


def _seeds(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        return tuple(range(_whole(name, value, 1)))
    seeds = tuple(_whole(name, item, 0) for item in value)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"{name} is {value!r}; give at least one seed, each once, or a count.")
    return seeds


def _device(name: str, value: Any) -> torch.device:
    if isinstance(value, torch.device):
        return value
    if value == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return arguments.device(name, value)


def _store(name: str, value: Any) -> Path:
    return arguments.path(name, value)


def _engine(name: str, value: Any) -> str:
    engine_named(_text(name, value))
    return str(value)


_CHECKS = {
    "profile": _text,
    "dataset": _text,
    "model": _text,
    "seed": lambda name, value: _whole(name, value, 0),
    "seeds": _seeds,
    "device": _device,
    "store": _store,
    "engine": _engine,
    "threads": lambda name, value: _whole(name, value, 1),
}

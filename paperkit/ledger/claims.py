"""Claims: what a paper says and our criterion for it, read from ``claims/*.yml``.

Each file is a list of entries::

    - id: renyi-prop-2-2
      paper: Rényi
      place: Proposition 2.2
      kind: identity            # identity, inequality, number, ordering or trend
      statement: our paraphrase, with $mathematics$
      paper_value: {value: 0.91, standard_error: 0.02, unit: nats, measured: true}
      criterion: {name: identity_holds, study: reparametrization, metric: error, at_most: 1e-10}
      profile: laptop           # laptop or paper: whose grid must be finished
      anchor: notebooks/03_reparametrization#prop-2-2
      scale: "{model}, n = {n}"
      changed: [{date: 2026-01-31, was: the former criterion, why: the reason}]

``paper_value`` is for numbers; ``criterion`` may hold ``where``, which selects configurations;
``anchor``, ``scale`` and ``changed`` are optional.
"""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paperkit.experiments.paths import claims_folder
from paperkit.experiments.sentences import suggestion
from paperkit.experiments.study import study_names
from paperkit.ledger.criteria import CRITERIA, KINDS, PaperValue

REQUIRED = ("id", "paper", "place", "kind", "statement", "criterion", "profile")
OPTIONAL = ("paper_value", "anchor", "scale", "changed")
PROFILES = ("laptop", "paper")


@dataclass(frozen=True)
class CriterionCall:
    """A criterion with its arguments.

    Attributes
    ----------
    name : str
        A function in `paperkit.ledger.criteria`.
    study : str
    where : dict
        Which configurations of the study's grid are evidence.
    arguments : dict
        Keyword arguments of the function.
    """

    name: str
    study: str
    where: dict[str, Any]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Change:
    """A criterion that was changed after its first record."""

    date: str
    was: str
    why: str


@dataclass(frozen=True)
class Claim:
    """What a paper claims, in our words, and the criterion that decides it.

    Attributes
    ----------
    id, paper, place, kind, statement, profile : str
        As in the file.
    criterion : CriterionCall
    paper_value : PaperValue or None
    anchor : str
        The notebook and the target in it, ``notebooks/NN_name#target``; may be empty.
    scale : str
        Template over the configurations' entries, ``{seeds}`` and ``{runs}``; if empty the
        scale is computed.
    changed : tuple of Change
    """

    id: str
    paper: str
    place: str
    kind: str
    statement: str
    criterion: CriterionCall
    profile: str
    paper_value: PaperValue | None = None
    anchor: str = ""
    scale: str = ""
    changed: tuple[Change, ...] = ()

    @property
    def chapter(self) -> str:
        """Name of the notebook in the anchor, without folder or target."""
        return chapter_of(self.anchor)


def chapter_of(anchor: str) -> str:
    """Return the name of the notebook that an anchor names, without folder or target."""
    return anchor.partition("#")[0].rpartition("/")[2].removesuffix(".ipynb")


def load_claims(folder: str | Path | None = None) -> list[Claim]:
    """Read and check every claim, in the order of the files' names and of their entries.

    Parameters
    ----------
    folder : path, optional
        By default ``claims/`` in the repository.

    Raises
    ------
    ValueError
        If a file or an entry is malformed; the sentence names the file and the entry.
    """
    folder = claims_folder() if folder is None else Path(folder)
    claims: list[Claim] = []
    places: dict[str, str] = {}
    for path in sorted(folder.glob("*.yml")):
        for entry in _entries(path):
            where = _where(path, entry)
            claim = _claim(entry, where)
            if claim.id in places:
                raise ValueError(f"{where}: the id is taken in {places[claim.id]}; choose another.")
            places[claim.id] = path.name
            claims.append(claim)
    return claims


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without two of its traps: ``1e-10`` is a number and a date stays text."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in pairs if not tag.endswith(":timestamp")]
    for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _entries(path: Path) -> list[Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise ValueError(f"{path.name} is not valid YAML: {detail}") from None
    if content is None:
        return []
    if not isinstance(content, list):
        raise ValueError(f"{path.name} must be a list of claims, each beginning with `- id:`.")
    return content


def _where(path: Path, entry: Any) -> str:
    name = entry.get("id", "an entry without id") if isinstance(entry, dict) else repr(entry)
    return f"{path.name}, {name}"


def _claim(entry: Any, where: str) -> Claim:
    fields = _fields(entry, REQUIRED, OPTIONAL, where)
    for name in ("id", "paper", "place", "statement", "anchor", "scale"):
        if not isinstance(fields.get(name, ""), str):
            raise ValueError(f"{where}: {name} is {fields[name]!r}; give text.")
    if not re.fullmatch(r"([\w./-]+(#[a-z0-9-]+)?)?", fields.get("anchor", "")):
        raise ValueError(
            f"{where}: anchor is {fields['anchor']!r}; give notebooks/NN_name#label, the label of "
            "small letters, digits and hyphens."
        )
    _require_choice(fields["kind"], KINDS, f"{where}: unknown kind")
    _require_choice(fields["profile"], PROFILES, f"{where}: unknown profile")
    paper_value = _paper_value(fields.get("paper_value"), where)
    criterion = _criterion(fields["criterion"], fields["kind"], where)
    _require_decidable(fields["kind"], fields["profile"], paper_value, where)
    return Claim(
        id=fields["id"],
        paper=fields["paper"],
        place=fields["place"],
        kind=fields["kind"],
        statement=" ".join(fields["statement"].split()),
        criterion=criterion,
        profile=fields["profile"],
        paper_value=paper_value,
        anchor=fields.get("anchor", ""),
        scale=fields.get("scale", ""),
        changed=_changes(fields.get("changed", []), where),
    )


def _fields(
    entry: Any, required: tuple[str, ...], optional: tuple[str, ...], where: str
) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: give a mapping with {', '.join(required)}.")
    for name in entry:
        if name not in required + optional:
            raise ValueError(
                f"{where}: unknown field {name!r}{suggestion(name, required + optional)}"
            )
    for name in required:
        if entry.get(name) in (None, ""):
            raise ValueError(f"{where}: the field {name!r} is missing.")
    return entry


def _require_choice(value: Any, choices: tuple[str, ...], what: str) -> None:
    if value not in choices:
        raise ValueError(f"{what} {value!r}{suggestion(value, choices)}")


def _paper_value(entry: Any, where: str) -> PaperValue | None:
    if entry is None:
        return None
    where = f"{where}, paper_value"
    fields = _fields(entry, ("value",), ("standard_error", "unit", "measured"), where)
    for name in ("value", "standard_error"):
        number = fields.get(name, 0.0)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{where}: {name} is {number!r}; give a number.")
        if not math.isfinite(number) or (name == "standard_error" and number < 0):
            raise ValueError(
                f"{where}: {name} is {number}; give a finite number, no negative error."
            )
    if not isinstance(fields.get("measured", True), bool):
        raise ValueError(f"{where}: measured is {fields['measured']!r}; give true or false.")
    return PaperValue(
        float(fields["value"]),
        float(fields.get("standard_error", 0.0)),
        str(fields.get("unit", "")),
        fields.get("measured", True),
    )


def _criterion(entry: Any, kind: str, where: str) -> CriterionCall:
    where = f"{where}, criterion"
    if not isinstance(entry, dict) or not {"name", "study"} <= entry.keys():
        raise ValueError(f"{where}: give a mapping with name, study and the arguments.")
    arguments = dict(entry)
    name, study = arguments.pop("name"), arguments.pop("study")
    selected = arguments.pop("where", {})
    if name not in CRITERIA:
        raise ValueError(f"{where}: unknown criterion {name!r}{suggestion(name, CRITERIA)}")
    if study not in study_names():
        raise ValueError(f"{where}: unknown study {study!r}{suggestion(study, study_names())}")
    if kind not in CRITERIA[name].kinds:
        raise ValueError(
            f"{where}: {name} decides the kinds {', '.join(CRITERIA[name].kinds)}, not {kind!r}."
        )
    if not isinstance(selected, dict):
        raise ValueError(
            f"{where}: where is {selected!r}; give a mapping of configuration entries."
        )
    _require_arguments(name, arguments, where)
    return CriterionCall(name, study, selected, arguments)


def _require_arguments(name: str, arguments: dict[str, Any], where: str) -> None:
    parameters = inspect.signature(CRITERIA[name].function).parameters
    known = {p: spec for p, spec in parameters.items() if p not in ("records", "paper_value")}
    for argument in arguments:
        if argument not in known:
            raise ValueError(
                f"{where}: {name} has no argument {argument!r}{suggestion(argument, known)}"
            )
    for argument, spec in known.items():
        if spec.default is inspect.Parameter.empty and argument not in arguments:
            raise ValueError(f"{where}: {name} needs the argument {argument!r}.")
    for argument, value in arguments.items():
        expected = known[argument].annotation
        if not _fits(value, expected):
            raise ValueError(f"{where}: {argument} is {value!r}; {name} expects a {expected}.")
    if "direction" in arguments:
        _require_choice(arguments["direction"], ("increasing", "decreasing"), f"{where}: direction")
    for side in ("larger", "smaller"):
        if side in arguments:
            _fields(arguments[side], (), ("where", "metric"), f"{where}, {side}")
            if "metric" not in {*arguments, *arguments[side]}:
                raise ValueError(f"{where}: {side} needs a metric, or ordering_holds one for both.")


def _fits(value: Any, expected: str) -> bool:
    if expected == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected == "bool":
        return isinstance(value, bool)
    if expected.startswith("Mapping"):
        return isinstance(value, dict)
    return isinstance(value, str)


def _require_decidable(kind: str, profile: str, value: PaperValue | None, where: str) -> None:
    if (kind == "number") != (value is not None):
        raise ValueError(
            f"{where}: paper_value is what a claim of kind 'number' has, and no other."
        )
    if value is None:
        return
    if value.value == 0:
        raise ValueError(f"{where}: a number of 0 has no order of magnitude; make it an identity.")
    if value.measured and profile != "paper":
        raise ValueError(
            f"{where}: laptop evidence cannot decide a number that the paper measured; "
            "set profile: paper, or measured: false for a closed form."
        )


def _changes(entries: Any, where: str) -> tuple[Change, ...]:
    if not isinstance(entries, list):
        raise ValueError(f"{where}: changed is {entries!r}; give a list of date, was and why.")
    names = ("date", "was", "why")
    checked = [_fields(entry, names, (), f"{where}, changed") for entry in entries]
    return tuple(Change(*(str(entry[name]) for name in names)) for entry in checked)

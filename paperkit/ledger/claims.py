"""Claims: what a paper says and our criterion for it, read from ``claims/*.yml``.

Each file is a list of entries::

    - id: renyi-prop-2-2
      paper: Rényi
      place: Proposition 2.2
      kind: identity            # or definition, algorithm, inequality, number, ordering, trend, …
      statement: our paraphrase, with $mathematics$
      paper_value: {value: 0.91, standard_error: 0.02, unit: nats, measured: true}
      criterion: {name: identity_holds, study: reparametrization, metric: error, at_most: 1e-10}
      profile: laptop           # laptop or paper: whose grid must be finished
      anchor: notebooks/03_reparametrization#prop-2-2
      scale: "{model}, n = {n}"
      covers: [another-id]
      repeats: renyi-prop-2-2   # on other evidence, so that the fact is not counted again
      correction: {fault: slip, printed: what the line says, repair: what should stand there}
      changed: [{date: 2026-01-31, was: the former criterion, why: the reason}]

``paper_value`` is for numbers; ``criterion`` may hold ``where``, which selects configurations, and
name a study that is planned (`paperkit.ledger.lists`); ``anchor`` and what follows it are optional.
The schema in ``claims/schema.json``, from which
editors complete an entry, is :class:`Claim`.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator

from paperkit.experiments.entries import Entry
from paperkit.experiments.paths import claims_folder
from paperkit.experiments.plain_yaml import read_yaml
from paperkit.experiments.sentences import refusal, suggestion
from paperkit.ledger.calls import CriterionCall
from paperkit.ledger.criteria import CRITERIA, Kind, PaperValue
from paperkit.ledger.lists import statements

SCHEMA = "schema.json"
"""Name of the schema's file beside the claims."""

_ANCHOR = r"^([\w./-]+(#[a-z0-9-]+)?)?$"


def _anchor(anchor: str) -> str:
    if not re.match(_ANCHOR, anchor):
        raise ValueError(
            f"{anchor!r} is no anchor; give notebooks/NN_name#label, the label of small letters, "
            "digits and hyphens."
        )
    return anchor


def _one_line(text: str) -> str:
    return " ".join(text.split())


Text = Annotated[str, Field(min_length=1)]
Anchor = Annotated[str, AfterValidator(_anchor), Field(json_schema_extra={"pattern": _ANCHOR})]

if TYPE_CHECKING:
    Call = CriterionCall
else:  # a type checker cannot know which criteria have been registered
    _any_call = reduce(operator.or_, (criterion.call for criterion in CRITERIA.values()))
    Call = Annotated[_any_call, Field(discriminator="name")]


class Change(Entry):
    """A criterion that was changed after its first record."""

    date: Text
    """The day of the change, 2026-01-31."""
    was: Text
    """The former criterion."""
    why: Text
    """The reason."""


class Correction(Entry):
    """What a line of the paper should say instead; the errata list it."""

    fault: Literal["slip", "gap", "false", "vacuous"]
    """A wrong sign, index or word; a condition that is not stated; a false statement; or one that
    holds and says nothing."""
    printed: Annotated[Text, AfterValidator(_one_line)]
    """What the line says, in our words, with mathematics between dollar signs."""
    repair: Annotated[Text, AfterValidator(_one_line)]
    """What should stand there, and why."""


class Claim(Entry):
    """A statement of a paper, in our words, and the criterion that decides it."""

    id: Text
    """A name that no other claim has, in all files."""
    paper: Text
    """The paper's short name."""
    place: Text
    """Where the paper says so: equation, theorem, table, figure."""
    kind: Kind
    statement: Annotated[Text, AfterValidator(_one_line)]
    """Our paraphrase, with mathematics between dollar signs."""
    criterion: Call
    """What decides it, fixed before the first record."""
    profile: Literal["laptop", "paper"]
    """Whose grid of the study must be finished."""
    paper_value: PaperValue | None = None
    """For a claim of kind number, and no other."""
    anchor: Anchor = ""
    """The notebook and the target in it, notebooks/NN_name#target."""
    scale: str = ""
    """Template over the configurations' entries, {seeds} and {runs}; by default it is computed."""
    covers: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    """Ids of other statements of the paper that this claim decides as well."""
    repeats: str = ""
    """Id of the claim whose fact is tried again on other evidence; the fact counts once."""
    correction: Correction | None = None
    """Where the printed line needs one."""
    changed: Annotated[tuple[Change, ...], Field(strict=False)] = ()
    """Every change of the criterion since the first record."""

    @property
    def chapter(self) -> str:
        """Name of the notebook in the anchor, without folder or target."""
        return chapter_of(self.anchor)

    @model_validator(mode="after")
    def _require_decidable(self) -> Claim:
        kinds = CRITERIA[self.criterion.name].kinds
        if self.kind not in kinds:
            raise ValueError(
                f"{self.criterion.name} decides the kinds {', '.join(kinds)}, not {self.kind!r}."
            )
        if (self.kind == "number") != (self.paper_value is not None):
            raise ValueError("paper_value is what a claim of kind 'number' has, and no other.")
        if self.paper_value is None:
            return self
        if self.paper_value.value == 0:
            raise ValueError("a number of 0 has no order of magnitude; make it an identity.")
        if self.paper_value.measured and self.profile != "paper":
            raise ValueError(
                "laptop evidence cannot decide a number that the paper measured; "
                "set profile: paper, or measured: false for a closed form."
            )
        return self


def chapter_of(anchor: str) -> str:
    """Return the name of the notebook that an anchor names, without folder or target."""
    return anchor.partition("#")[0].rpartition("/")[2].removesuffix(".ipynb")


def file_of(claim: Claim) -> str:
    """Return the name of the file in ``claims/`` that holds a claim; empty if none does."""
    entry = re.compile(rf"^- id: {re.escape(claim.id)}\s*$", re.MULTILINE)
    files = sorted(claims_folder().glob("*.yml"))
    found = (path.name for path in files if entry.search(path.read_text(encoding="utf-8")))
    return next(found, "")


def load_claims(folder: str | Path | None = None) -> list[Claim]:
    """Read and check every claim, in the order of the files' names and of their entries.

    Parameters
    ----------
    folder : path, optional
        By default ``claims/`` in the repository.

    Raises
    ------
    ValueError
        If a file or an entry is malformed; the sentence names file, entry, field and remedy.
    """
    folder = claims_folder() if folder is None else Path(folder)
    claims: list[Claim] = []
    places: dict[str, str] = {}
    known = {name for names in statements().values() for name in names}
    for path in sorted(folder.glob("*.yml")):
        for entry in _entries(path):
            where = _where(path, entry)
            claim = _claim(entry, where)
            if claim.id in places:
                raise ValueError(f"{where}: the id is taken in {places[claim.id]}; choose another.")
            places[claim.id] = path.name
            for name in set(claim.covers) - known:
                listed = suggestion(name, known)
                raise ValueError(f"{where}: covers names {name!r}, no statement{listed}")
            claims.append(claim)
    for claim in claims:
        if claim.repeats and claim.repeats not in places:
            listed = suggestion(claim.repeats, places)
            where = f"{places[claim.id]}, {claim.id}"
            raise ValueError(f"{where}: repeats names {claim.repeats!r}, no claim{listed}")
    return claims


def missing(claims: Iterable[Claim]) -> dict[str, list[str]]:
    """Return the statements that no claim decides, by paper."""
    decided = {name for claim in claims for name in (claim.id, *claim.covers)}
    left = {
        paper: [name for name in names if name not in decided]
        for paper, names in statements().items()
    }
    return {paper: names for paper, names in left.items() if names}


def claims_schema() -> str:
    """Return the JSON schema of a file of claims, as the text of ``claims/schema.json``."""
    schema = TypeAdapter(list[Claim]).json_schema()
    return json.dumps({"title": "Claims", **schema}, indent=2, ensure_ascii=False) + "\n"


def _entries(path: Path) -> list[Any]:
    content = read_yaml(path)
    if content is None:
        return []
    if not isinstance(content, list):
        raise ValueError(f"{path.name} must be a list of claims, each beginning with `- id:`.")
    return content


def _where(path: Path, entry: Any) -> str:
    name = entry.get("id", "an entry without id") if isinstance(entry, dict) else repr(entry)
    return f"{path.name}, {name}"


def _claim(entry: Any, where: str) -> Claim:
    try:
        return Claim.model_validate(entry)
    except ValidationError as error:
        place, sentence = refusal(error, kinds=CRITERIA)
        raise ValueError(f"{where}{place and ', '}{place}: {sentence}") from None

"""Schema of a grid's file.

::

    about: what the study runs, in sentences
    order: [network, seed]         # loops, the outermost first; other names follow as they stand
    choices:                       # where a paper leaves open what was done
      rates: {take: scaled, options: {printed: a reason, scaled: a reason}}
    defaults:                      # values for the blocks that are like them
      cifar: {epochs: {value: 200, source: Paper, section}, momentum: 0.9}
    each_of: other_study           # every configuration of another study, at the same profile
    every:                         # blocks that each profile has, combined with its own
      - values: {network: [ReLU MLP, GELU MLP]}
    smoke:
      - values: {seed: 0}
    laptop:
      - values: {seed: {first: 0, last: 2}}
    paper:
      - name: which part of the paper
        source: Paper, section
        when: {rates: scaled}      # only where this option was taken
        like: cifar
        together: [{lr: 0.1, batch_size: 128}, {lr: 0.2, batch_size: 256}]
        values:
          weight_decay: {by: rates, options: {printed: 0.0005, scaled: [0.0001, 0.0005]}}
          seed: [0, 1, 2]

A profile that a file does not name is one that the study does not have. ``only_first`` lists names
of which a block takes the first value alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from paperkit import arguments
from paperkit.experiments.entries import Entry
from paperkit.experiments.sentences import refusal, suggestion


def _scalar(value: Any) -> Any:
    is_plain = value is None or isinstance(value, bool | int | float | str)
    if not is_plain or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(
            f"{arguments.shown(value)} is no plain value; give a finite number, text, true, false "
            "or null."
        )
    return value


def _form(value: Any) -> str:
    if isinstance(value, Setting | dict):
        return "Setting"
    return "list" if isinstance(value, list) else "scalar"


Scalar = Annotated[Any, AfterValidator(_scalar)]
Text = Annotated[str, Field(min_length=1)]
Options = dict[str, Scalar | list[Scalar]]
FORMS = (("first", "last"), ("value",), ("values",), ("by", "options"))


class Setting(Entry):
    """A value, or several, with the place that they come from."""

    value: Scalar = None
    """One value."""
    values: list[Scalar] = Field(default_factory=list)
    """Several values, each of which is combined with all others."""
    first: int | None = None
    """The first of a run of whole numbers."""
    last: int | None = None
    """The last of them."""
    by: Text | None = None
    """The name of the choice that decides."""
    options: Options = Field(default_factory=dict)
    """Value, or list of values, by the option that is taken."""
    source: Text | None = None
    """Where the paper says so."""

    @model_validator(mode="after")
    def _require_one_form(self) -> Setting:
        given = self.model_fields_set - {"source"}
        if not any(given == set(form) for form in FORMS):
            raise ValueError("give value, or values, or first and last, or by and options.")
        if "values" in given and not self.values:
            raise ValueError("values is empty; give one value at least.")
        if self.first is not None and self.last is not None and self.last < self.first:
            raise ValueError(f"last is {self.last}, which is before first, {self.first}.")
        return self


_Single = Annotated[Scalar, Tag("scalar")]
_Sourced = Annotated[Setting, Tag("Setting")]
_Several = Annotated[list[Scalar], Tag("list")]
One = Annotated[_Single | _Sourced, Discriminator(_form)]
Values = dict[str, Annotated[_Single | _Several | _Sourced, Discriminator(_form)]]


class Block(Entry):
    """Values whose combinations are runs."""

    name: Text | None = None
    """What the block is."""
    source: Text | None = None
    """Where the paper says so; for values that name no place of their own."""
    when: dict[str, Text] = Field(default_factory=dict)
    """Options that must have been taken for the block to count."""
    like: Text | None = None
    """Name of the defaults that the block has where it gives no value."""
    together: list[dict[str, One]] = Field(default_factory=list)
    """Values of several names that vary together."""
    only_first: list[Text] = Field(default_factory=list)
    """Names of which the first value alone is taken."""
    values: Values
    """Value or values by name."""

    @model_validator(mode="after")
    def _require_same_names(self) -> Block:
        names = {frozenset(row) for row in self.together}
        if len(names) > 1:
            raise ValueError("together has rows of different names; give each row the same names.")
        twice = sorted({name for row in self.together for name in row} & set(self.values))
        if twice:
            raise ValueError(f"{twice[0]!r} stands in together and in values; keep one.")
        empty = sorted(name for name, value in self.values.items() if value == [])
        if empty:
            raise ValueError(f"values: {empty[0]} is empty; give one value at least.")
        return self


class Choice(Entry):
    """A question that a paper leaves open, with the answers that one can take."""

    take: Text
    """The option that is taken."""
    options: dict[str, Text]
    """Reason for each option."""

    @model_validator(mode="after")
    def _require_known(self) -> Choice:
        if self.take not in self.options:
            raise ValueError(
                f"take is {self.take!r}, which is no option{suggestion(self.take, self.options)}"
            )
        return self


class GridFile(Entry):
    """A grid's file."""

    about: Text
    """What the study runs."""
    order: list[Text] = Field(default_factory=list)
    """Names in the order of their loops, the outermost first."""
    choices: dict[str, Choice] = Field(default_factory=dict)
    """Open questions by name."""
    defaults: dict[str, Values] = Field(default_factory=dict)
    """Values that a block may have without repeating them, by a name that it is like."""
    each_of: Text | None = None
    """Name of the study whose every configuration is continued."""
    every: list[Block] = Field(default_factory=list)
    """Blocks that are combined with each block of a profile."""
    smoke: list[Block] | None = None
    """Blocks of the smoke profile."""
    laptop: list[Block] | None = None
    """Blocks of the laptop profile."""
    paper: list[Block] | None = None
    """Blocks of the paper profile."""

    @model_validator(mode="after")
    def _require_known_choices(self) -> GridFile:
        for usual in self.defaults.values():
            self._require_options(usual)
        for block in self._blocks():
            if block.like is not None and block.like not in self.defaults:
                known = suggestion(block.like, self.defaults)
                raise ValueError(f"like: there are no defaults {block.like!r}{known}")
            self._require_options(block.values)
            for row in block.together:
                self._require_options(row)
            for name, option in block.when.items():
                options = self._choice(name).options
                if option not in options:
                    known = suggestion(option, options)
                    raise ValueError(f"{option!r} is no option of {name}{known}")
        return self

    def _require_options(self, values: Mapping[str, object]) -> None:
        for name, setting in values.items():
            if isinstance(setting, Setting) and setting.by is not None:
                known = self._choice(setting.by).options
                missing = sorted(set(known) ^ set(setting.options))
                if missing:
                    raise ValueError(
                        f"{name} must give a value for each option of {setting.by!r} and no "
                        f"other: see {missing[0]!r}."
                    )

    def _choice(self, name: str) -> Choice:
        if name not in self.choices:
            raise ValueError(f"{name!r} is no choice{suggestion(name, self.choices)}")
        return self.choices[name]

    def _blocks(self) -> list[Block]:
        parts = (self.every, self.smoke, self.laptop, self.paper)
        return [block for part in parts for block in part or []]


def check(content: Any, where: str) -> None:
    """Refuse the content of a grid's file that breaks the schema.

    Parameters
    ----------
    content : object
        Content of the file.
    where : str
        Name of the file.

    Raises
    ------
    ValueError
        In a sentence that names file, place and remedy.
    """
    try:
        GridFile.model_validate(content)
    except ValidationError as error:
        place, sentence = refusal(error, kinds=_FORMS)
        raise ValueError(f"{where}{place and ', '}{place}: {sentence}") from None


# Names that pydantic gives to the forms of a value, which are no part of its place.
_FORMS = ("scalar", "list", "Setting")

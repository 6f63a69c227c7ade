"""Comments, private docstrings and descriptions of parameters say what they are about.

A sentence that begins with "Of", "What", "One", "It" or a number has left its subject in the code
beside it, so a reader has to understand the code before the comment can help. The rule therefore
asks every sentence of these texts for another beginning:

* comments,
* docstrings of private and nested functions, classes and methods,
* descriptions in the sections of every docstring (parameters, attributes, returns, errors).

A description must also stand on its own where the thing that it points to lives in another file:
"As in :func:`other`" sends the reader away, and is allowed only within one file.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = [
    "benchmarks",
    *sorted(
        {
            f"{folder}/{path.relative_to(ROOT / folder).parts[0]}"
            for folder in ("paperkit", "tests")
            for path in (ROOT / folder).rglob("*.py")
        }
    ),
]

NUMBERS = (
    "two three four five six seven eight nine ten eleven twelve twenty hundred thousand half twice"
)
FIRST_WORDS = frozenset(f"of what one it it's {NUMBERS}".split())

# Beginnings that only look like the ones above. English needs each of them, because a name or a
# fixed term starts with the word.
EXCEPTIONS = (
    "One-hot",  # the name of an encoding
    "Half precision",  # the name of a number format
    "Half-squared error",  # the name of a loss
)

# A full stop after these ends no sentence.
ABBREVIATIONS = re.compile(
    r"\b(?:eqs?|secs?|figs?|thms?|props?|defs?|apps?|algs?|ch|cf|vs|pp?|no|al|approx|e\.g|i\.e)\.$",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"[.!?][)\"'”’]?\s+(?=[\"'“(`]*[A-Z0-9])")
NUMERAL = re.compile(r"\d+(?:[.,]\d+)*(?![\w.,]|[-–][A-Za-z])")
DIRECTIVES = re.compile(r"#\s*(?:noqa|type:|fmt:|%%|!|pragma|ruff:|mypy:)")
SECTIONS = frozenset(
    ("Parameters", "Other Parameters", "Attributes", "Returns", "Yields", "Raises", "Warns")
)
POINTER = re.compile(r"As (?:in |for |by )?(?::\w+:`~?([^`]+)`|``([^`]+)``|there\b)")


class Text(NamedTuple):
    """A piece of prose and the line on which it begins."""

    line: int
    kind: str
    prose: str


def sentences(prose: str) -> Iterator[str]:
    """Split prose into sentences; an abbreviation's full stop ends none."""
    prose = " ".join(prose.split())
    start = 0
    for end in SENTENCE_END.finditer(prose):
        if not ABBREVIATIONS.search(prose[: end.start() + 1]):
            yield prose[start : end.end()].strip()
            start = end.end()
    if prose[start:]:
        yield prose[start:]


def begins_badly(sentence: str) -> bool:
    """Whether the first word is one that the rule refuses."""
    if sentence.startswith(EXCEPTIONS):
        return False
    sentence = sentence.lstrip("\"'“(")
    word = re.match(r"[A-Za-z]+(?:['’]s)?", sentence)
    return bool(NUMERAL.match(sentence)) or (
        word is not None and word[0].replace("’", "'").lower() in FIRST_WORDS
    )


def comments(source: str) -> Iterator[Text]:
    """Yield comments; full lines that follow each other are one comment."""
    lines: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or DIRECTIVES.match(token.string):
            continue
        row = token.start[0]
        prose = token.string.lstrip("#: ")
        if not token.line[: token.start[1]].strip() and row == last + 1 and lines:
            lines.append(prose)
        else:
            if lines:
                yield Text(first, "comment", "\n".join(lines))
            lines, first = [prose], row
        # A comment behind code stands alone: no line continues it.
        last = row if not token.line[: token.start[1]].strip() else 0
    if lines:
        yield Text(first, "comment", "\n".join(lines))


def docstrings(source: str) -> Iterator[tuple[int, str, bool]]:
    """Yield each docstring with its first line, and whether its owner is private or nested."""

    def visit(node: ast.AST, private: bool) -> Iterator[tuple[int, str, bool]]:
        for child in ast.iter_child_nodes(node):
            inner = private
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                dunder = child.name.startswith("__") and child.name.endswith("__")
                hidden = child.name.startswith("_") and not dunder
                prose = ast.get_docstring(child)
                if prose is not None:
                    yield child.body[0].lineno, prose, private or hidden
                inner = private or hidden or not isinstance(child, ast.ClassDef)
            yield from visit(child, inner)

    tree = ast.parse(source)
    if (prose := ast.get_docstring(tree)) is not None:
        yield tree.body[0].lineno, prose, False
    yield from visit(tree, False)


def parts_of_docstring(line: int, prose: str) -> Iterator[tuple[str, Text]]:
    """Yield the paragraphs before the first section, and the descriptions in the sections."""
    rows = prose.split("\n")
    section, start, block = "", 0, []

    def flush() -> Iterator[tuple[str, Text]]:
        if any(row.strip() for row in block):
            kind = "description" if section else "docstring"
            yield kind, Text(line + start, section or kind, "\n".join(block))

    for i, row in enumerate(rows):
        underlined = i + 1 < len(rows) and bool(re.fullmatch(r"-{3,}", rows[i + 1].strip()))
        if underlined:
            yield from flush()
            section, block = row.strip(), []
        elif re.fullmatch(r"-{3,}", row.strip()):
            block = []
        elif not row.strip() or (section and not row.startswith(" ")):
            yield from flush()
            block = []
        else:
            if not block:
                start = i
            block.append(row)
    yield from flush()


def names_defined_in(source: str) -> set[str]:
    """Return the names of all functions and classes of a file."""
    return {
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }


def points_elsewhere(prose: str, defined: set[str]) -> bool:
    """Whether a description is only a pointer to something of another file."""
    match = POINTER.match(" ".join(prose.split()))
    if match is None:
        return False
    target = match[1] or match[2]
    return target is None or target.rpartition(".")[2].rstrip("()") not in defined


def faults(source: str) -> Iterator[str]:
    """Yield "line: kind: sentence" for every text that breaks the rule."""
    texts = list(comments(source))
    defined = names_defined_in(source)
    for line, prose, private in docstrings(source):
        for kind, text in parts_of_docstring(line, prose):
            if kind == "description":
                if text.kind not in SECTIONS:
                    continue
                texts.append(text)
                if points_elsewhere(text.prose, defined):
                    yield f"{text.line}: {text.kind} points to another file: {text.prose.strip()}"
            elif private:
                texts.append(text)
    for text in texts:
        for sentence in sentences(text.prose):
            if begins_badly(sentence):
                yield f"{text.line}: {text.kind}: {sentence}"


def files_of(room: str) -> list[Path]:
    """Return the Python files of a room, which may be a single file."""
    path = ROOT / room
    return [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_every_text_says_what_it_is_about(room: str) -> None:
    bad = [
        f"{path.relative_to(ROOT)}:{fault}"
        for path in files_of(room)
        for fault in faults(path.read_text(encoding="utf-8"))
    ]
    assert not bad, "\n" + "\n".join(bad)


def described(section: str, name: str, description: str) -> str:
    """Return the source of a function whose docstring has one description."""
    rows = ['"""Do.', "", section, "-" * len(section), name, f"    {description}", '"""']
    return "def f():\n" + "\n".join(f"    {row}" for row in rows)


@pytest.mark.parametrize(
    "source",
    [
        "# Of the probes.",
        "x = 1  # of the probes",
        "# The first holds.\n# It does not.",
        "# The rule holds. What fails is\n# another matter.",
        "# Two, because a network refuses one.",
        "# See eq. 3. One is enough.",
        "# 3 of them.",
        "def f():\n    'Do. (It may fail.)'\n    def g():\n        'It may fail.'",
        'def _f():\n    """Return x.\n\n    Half of the time.\n    """',
        described("Parameters", "seed : int", "Of the probes."),
        described("Raises", "ValueError", "As :func:`g`."),
    ],
)
def test_a_text_without_its_subject_is_seen(source: str) -> None:
    assert len(list(faults(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "# Seed of the probes; one is enough, and it is the first.",
        "# By eq. 3 it vanishes, cf. Section 2. Nothing is left.",
        "# 2-norms of the rows.",
        "# One-hot rows.",
        "x = 'Of a string'  # noqa: E501",
        "def f():\n    'It is public.'",
        described("Raises", "ValueError", "As :func:`f`."),
        described("Parameters", "seed : int", "Seed of the probes."),
    ],
)
def test_a_text_with_its_subject_passes(source: str) -> None:
    assert not list(faults(source))

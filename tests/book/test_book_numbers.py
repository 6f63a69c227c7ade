"""Numbers in prose are backed by what a chapter computes, and sentences that wait for a study end.

A decimal number or a percentage in the prose of a chapter stands in the chapter's committed outputs
or in its code, rounded as the prose has it, or else in a table below with the computation that
gives it. The outputs are compared with new runs by the tests of outputs, so that a sentence whose
value has moved is found here. Another value of the chapter may agree by chance, the likelier the
more numbers it prints: a test below counts that. Whole numbers and words are not looked at.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from paperkit.experiments.archive import Archive
from paperkit.experiments.study import configurations, study_named, study_names

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "book").rglob("*.md")),
    *sorted((ROOT / "notebooks").glob("[0-9]*.py")),
]

# --- numbers --------------------------------------------------------------------------------------

TYPED = re.compile(r"(?<![\w.,])(\d[\d,]*(?:\.\d+)?)(?:\s?(%))?(?![\w.]*\d)")
COMPUTED = re.compile(r"(?<![\w.])(\d[\d,]*(?:\.\d+)?)(e[+-]?\d+)?")
PLACE = re.compile(
    r"\b(?:Sections?|Definitions?|Theorems?|Propositions?|Lemmas?|Corollar(?:y|ies)|Tables?|"
    r"Figures?|Appendix|Appendices|[Ee]qs?\.|[Ee]quations?)\s[\dA-Z.]+(?:(?: \([^)]*\))?"
    r"(?:, | and |, and )[\dA-Z.]*\d)*"
)
NO_PROSE = re.compile(r"`[^`]*`|\{\w+\}|\]\([^)]*\)")
ALONE = re.compile(r"-?\d[\d,]*(?:\.\d+)?")

# Numbers that a chapter's code and outputs have in another form, with the computation that gives
# them.
ELSEWHERE: dict[tuple[str, str], Callable[[], float]] = {
    # The entropy of order ½ of the shares 1000 and 1 of 1001.
    ("01_five_minutes", "0.061"): lambda: 2 * math.log((math.sqrt(1000) + 1) / math.sqrt(1001)),
    # The growth of the step on a line, 1/c + c^(-3/2), at c = 2.
    ("06_steps_on_a_quadratic", "0.854"): lambda: 1 / 2 + 2**-1.5,
    # The band of SAM in the chapter's RANGES ends at 1.15.
    ("08_sharpness_while_training", "15 %"): lambda: 100 * (1.15 - 1),
    # A single bad one among 27 is met by drawing 24, or 25.
    ("09_from_plan_to_verdict", "0.89"): lambda: 24 / 27,
    ("09_from_plan_to_verdict", "0.93"): lambda: 25 / 27,
    ("11_do_the_bounds_say_it", "1.682"): lambda: 2.9 * 2.9 * 0.2,
    ("11_do_the_bounds_say_it", "16.86"): lambda: 2.9**2 + 2.9**2 + 0.2**2,
    ("13_thirty_networks_four_times", "99.9 %"): lambda: 100 * _interpolates(),
    # The variance of Kendall's coefficient without a relation, 2(2N + 5) / (9N(N - 1)), N = 30.
    ("14_does_it_predict_generalization", "0.129"): lambda: math.sqrt(2 * 65 / (9 * 30 * 29)),
    # Entries of the weights of the paper's ResNet-18, in millions.
    ("12_estimating_it", "11.2"): lambda: _resnet18_weights() / 1e6,
    # The gap between the eigenvalues 0.8 and 0.05 of an exercise.
    ("14_does_it_predict_generalization", "2.77"): lambda: math.log(0.8 / 0.05),
}


def _interpolates() -> float:
    from paperkit.experiments.studies.population_training import INTERPOLATES

    return INTERPOLATES


def _resnet18_weights() -> int:
    from paperkit import models

    model = models.build("resnet18", in_channels=3, num_classes=10)
    return sum(weight.numel() for weight in model.parameters() if weight.ndim > 1)


def running_text(cell: str) -> Iterator[str]:
    """Yield a cell's lines of prose, without formulas, code, links and places in papers."""
    inside, fenced = False, False
    for line in map(str.strip, cell.splitlines()):
        if line.startswith("```"):
            fenced = not fenced and "{dropdown}" not in line
        elif line.startswith("$$"):
            inside = not inside and not (len(line) > 4 and line.endswith("$$"))
        elif not (inside or fenced or line.startswith(("#", "|")) or line.endswith(")=")):
            yield PLACE.sub(" ", NO_PROSE.sub(" ", without_formulas(line)))


def without_formulas(line: str) -> str:
    """Return a line without its formulas, except those that are a number alone."""
    parts = line.split("$")
    return "".join(
        part if i % 2 == 0 or ALONE.fullmatch(part) else " " for i, part in enumerate(parts)
    )


def typed_numbers(cell: str) -> Iterator[tuple[str, float, int, bool]]:
    """Yield decimal numbers and percentages of a cell: text, value, decimals, and whether percent.

    Whole numbers other than percentages are counts and names as often as results.
    """
    for text in running_text(cell):
        for match in TYPED.finditer(text):
            digits = match[1].replace(",", "")
            if "." in digits or match[2]:
                yield match[0], float(digits), len(digits.partition(".")[2]), bool(match[2])


def computed_numbers(text: str) -> list[tuple[float, float]]:
    """Return the numbers of code and outputs without their signs, each with its decimals."""
    found = []
    for digits, power in COMPUTED.findall(text):
        digits = digits.replace(",", "")
        decimals = math.inf if power else len(digits.partition(".")[2])
        found.append((float(digits + power), decimals))
    return found


def backed(value: float, decimals: int, percent: bool, computed: list[tuple[float, float]]) -> bool:
    """Return whether a computed number, rounded so, is the value; a share may be a percentage.

    The computed number has as many decimals at least, because 3 does not say 3.0.
    """
    half = 0.5 * 10**-decimals * (1 + 1e-9)
    for one, known in computed:
        if known >= decimals and abs(one - value) <= half:
            return True
        if percent and known >= decimals + 2 and abs(100 * one - value) <= half:
            return True
    return False


def content(path: Path) -> tuple[list[str], list[tuple[float, float]]]:
    """Return a chapter's cells of prose, and the numbers of its code and outputs."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    parts = []
    for cell in cells:
        if cell["cell_type"] == "code":
            parts.append("".join(cell["source"]))
            for output in cell["outputs"]:
                parts.append("".join(output.get("text", "")))
                data = output.get("data", {}).items()
                parts += ["".join(text) for kind, text in data if kind.startswith("text/")]
    return prose, computed_numbers("\n".join(parts))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_each_number_in_the_prose_is_computed(path):
    prose, computed = content(path)
    bare = []
    for text, value, decimals, percent in (
        found for cell in prose for found in typed_numbers(cell)
    ):
        formula = ELSEWHERE.get((path.stem, text))
        own = computed if formula is None else [(formula(), math.inf)]
        if not backed(value, decimals, percent and formula is None, own):
            bare.append(text)
    assert bare == [], "say it from an output or an assertion, or name its computation in ELSEWHERE"


@pytest.mark.parametrize(("chapter", "text"), ELSEWHERE)
def test_what_is_computed_elsewhere_is_still_in_the_prose(chapter, text):
    prose, computed = content(ROOT / "notebooks" / f"{chapter}.ipynb")
    found = [one for cell in prose for one in typed_numbers(cell) if one[0] == text]
    assert found
    assert not backed(*found[0][1:], computed), "the chapter has it by now: drop the exception"


def test_a_good_part_of_the_numbers_that_moved_would_be_noticed():
    """Each number in turn takes twenty values between its half and its double."""
    noticed = []
    for path in CHAPTERS:
        prose, computed = content(path)
        for _, value, decimals, percent in (n for cell in prose for n in typed_numbers(cell)):
            moved = {round(value * (0.5 + 0.075 * k), decimals) for k in range(21)} - {value}
            noticed += [not backed(other, decimals, percent, computed) for other in moved]
    assert len(noticed) > 1000
    # Chapters that print hundreds of numbers of two decimals leave few free values.
    assert sum(noticed) > len(noticed) / 3


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("The value is 0.83 in one layer.", ["0.83"]),
        ("It falls by 12 %, of 4 networks.", ["12 %"]),
        ("By $1.5$, not by $x = 2.5$ or `3.5`.", ["1.5"]),
        ("See Section 3.2, Definitions 3.7, F.1 and 3.9, and eq. 4.1.", []),
        ("# 0.5\n| 0.5 |\n\n$$\n0.5\n$$\nAnd 1,234.5.", ["1,234.5"]),
        ("```\n0.5\n```\n````{dropdown} Solution\nIt is 0.25.\n````", ["0.25"]),
    ],
)
def test_typed_numbers_are_found(cell, found):
    assert [one[0] for one in typed_numbers(cell)] == found


@pytest.mark.parametrize(
    ("value", "decimals", "percent", "text", "is_backed"),
    [
        (0.83, 2, False, "0.8349", True),
        (0.83, 2, False, "0.8351", False),
        (0.83, 2, False, "−0.83", True),
        (3.0, 1, False, "3", False),
        (3.0, 1, False, "3e0", True),
        (12.0, 0, True, "0.118", True),
        (12.0, 0, False, "0.118", False),
        (1234.5, 1, False, "1,234.5", True),
    ],
)
def test_a_number_is_backed_by_one_that_rounds_to_it(value, decimals, percent, text, is_backed):
    assert backed(value, decimals, percent, computed_numbers(text)) is is_backed


# --- sentences that wait for a study --------------------------------------------------------------

WAITS = re.compile(
    r"\bhas not been run\b|\bha(?:s|ve) not been compared\b|\bnot yet been\b|\bnot run yet\b|"
    r"\bhave not been tried\b|\bstill to be (?:run|written|compared)\b|\bis under way\b"
)

# Such sentences, each by a part of it: the study whose last record ends it, or a file, or in words
# what else would.
WAITING: dict[tuple[str, str], str | Path] = {
    ("README", "are still to be written"): "chapters on the other papers",
    ("index", "are still to be written"): "chapters on the other papers",
    ("README", "have not been tried"): "an allocation of Slurm, or several GPUs",
    ("benchmarks", "not yet been run on a GPU"): ROOT / "results" / "device.json",
    ("what_it_costs", "has not been run on one"): ROOT / "results" / "device.json",
    ("ledger", "a study that has not been run"): "the meaning of a word, whatever is run",
    ("how_to_read_a_verdict", "that has not been run"): "the meaning of a word, whatever is run",
}


def waiting_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if WAITS.search(line)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_sentence_that_waits_for_something_names_what_would_end_it(path):
    lines = waiting_lines(path.read_text(encoding="utf-8"))
    parts = [part for page, part in WAITING if page == path.stem]
    assert [line for line in lines if not any(part in line for part in parts)] == []


@pytest.mark.parametrize(("key", "ends"), WAITING.items(), ids=lambda value: str(value)[:40])
def test_what_a_sentence_waits_for_has_not_come(key, ends):
    page, part = key
    texts = [path.read_text(encoding="utf-8") for path in PAGES if path.stem == page]
    assert any(part in text for text in texts), "the sentence is gone: drop it here, too"
    if ends in study_names():
        runs = len(configurations(study_named(ends), "laptop"))
        published = len(Archive().published.records(ends))
        assert published < runs, f"{ends} is run: say in {page} what it found"
    if isinstance(ends, Path):
        assert not ends.exists(), f"{ends.name} is here: say in {page} what it holds"


def test_a_sentence_that_waits_is_found():
    text = "The study has not been run.\nIt was run.\nThe lines have not been tried."
    assert len(waiting_lines(text)) == 2


def test_the_pages_have_names_of_their_own_or_no_sentence_that_waits():
    waiting = [path.stem for path in PAGES if waiting_lines(path.read_text(encoding="utf-8"))]
    assert all(first != second for first, second in pairwise(sorted(waiting)))

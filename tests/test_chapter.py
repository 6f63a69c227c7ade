"""What chapters do alike, and that each of them does it."""

import ast
import gc
import math
import re
from itertools import pairwise
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pytest
import torch
from nbformat import NotebookNode
from torch import nn

from paperkit import chapter
from paperkit.chapter import Comparisons, distance, follow_quadratic, number, table, take_steps
from paperkit.chapter.start import OF_EVERY_CHAPTER
from paperkit.ledger.claims import load_claims
from paperkit.ledger.render import OPEN
from paperkit.publishing import book
from paperkit.publishing.notebooks import NotebookError, chapters, execute, read_source

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
TEMPLATE = FOLDER / "TEMPLATE.py"
SOURCES = chapters(FOLDER)
LIKE_CHAPTERS = [*SOURCES, TEMPLATE]
LONGEST_CELL = 20
LONGEST_SETUP = 35
COLUMN = 100  # letters in a line of the page
WORDS_A_MINUTE = 100

each_chapter = pytest.mark.parametrize("source", LIKE_CHAPTERS, ids=lambda path: path.stem)


# --- setup ---------------------------------------------------------------------------------------


@pytest.fixture
def own_process(monkeypatch):
    """Let no setting of the process outlive its test."""
    calls = []
    monkeypatch.setattr(gc, "freeze", lambda: calls.append("freeze"))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with matplotlib.rc_context():
        yield calls
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def test_setup_resolves_the_parameters_and_makes_runs_alike(own_process):
    profiles = {"smoke": {"samples": 3, "points": 5}, "laptop": {"samples": 30, "points": 50}}
    draws = []
    for _ in range(2):
        namespace = {"profile": "smoke", "seed": 7, "samples": None, "store": "somewhere"}
        p = chapter.setup(namespace, profiles, ["seed", "samples"], threads=1)
        draws.append(torch.rand(3))
    assert (p.profile, p.seed, p.samples, p.points) == ("smoke", 7, 3, 5)
    assert p.store == Path("somewhere")
    assert torch.equal(*draws)
    assert torch.get_num_threads() == 1
    assert own_process == ["freeze", "freeze"]


def test_setup_leaves_threads_and_draws_alone_where_a_chapter_has_neither(own_process):
    torch.set_num_threads(2)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    chapter.setup({"profile": "smoke"}, {"smoke": {}})
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.rand(1), expected)


def test_setup_refuses_a_parameter_that_the_chapter_has_not(own_process):
    with pytest.raises(ValueError, match="'sampels' is not a parameter"):
        chapter.setup({"sampels": 3}, {"laptop": {"samples": 30}}, ["samples"])


# --- tables --------------------------------------------------------------------------------------


def test_a_number_is_printed_with_its_format_and_round_off_as_a_bound():
    assert number(0.123456) == "0.1235"
    assert number(torch.tensor(2.0), ".2e") == "2.00e+00"
    assert number(12345.678, ".4g") == "1.235e+04"
    assert [number(x) for x in (0.0, -3e-17, 9e-13)] == ["below 1e-12"] * 3
    assert number(5e-11, round_off=1e-10) == "below 1e-10"
    assert (number(math.nan), number(math.inf), number(-math.inf)) == ("–", "∞", "-∞")


@pytest.mark.parametrize("value", [1e-12, -1e-12, 4e-6, -4e-6])
def test_a_number_of_which_the_format_would_leave_zeros_keeps_its_size(value):
    assert float(number(value)) == pytest.approx(value, rel=5e-3)


def test_a_table_is_text_in_a_terminal_and_markdown_in_the_book():
    rows = {("conv", 0.5): (3, 0.25, True), ("head", 1.0): (12, 1e-17, None)}
    shown = table(["layer", "order $\\alpha$", "rank", "trace", "exact|?"], rows)
    assert repr(shown).splitlines() == [
        "layer  order $\\alpha$  rank        trace  exact|?",
        "-----  --------------  ----  -----------  -------",
        "conv              0.5     3       0.2500  yes",
        "head                1    12  below 1e-12  –",
    ]
    assert shown._repr_markdown_().splitlines() == [
        "| layer | order $\\alpha$ | rank | trace | exact\\|? |",
        "| --- | ---: | ---: | ---: | --- |",
        "| conv | 0.5 | 3 | 0.2500 | yes |",
        "| head | 1 | 12 | below 1e-12 | – |",
    ]


def test_rows_come_as_sequences_or_by_their_label_with_one_value_or_several():
    header = ["order", "entropy"]
    expected = (("0.5", "1.2500"), ("2", "1.0000"))
    assert table(header, [(0.5, 1.25), (2, 1.0)]).rows == expected
    assert table(header, {0.5: [1.25], 2: torch.tensor([1.0])}).rows == expected
    assert table(header, {0.5: 1.25, 2: np.float64(1.0)}).rows == expected
    assert table(header, []).rows == ()


def test_columns_may_have_formats_of_their_own():
    shown = table(["a", "b", "c"], [("x", 1.0, 1.0)], spec={"c": ".1e"})
    assert shown.rows == (("x", "1.0000", "1.0e+00"),)


def test_names_that_begin_like_numbers_are_no_numbers():
    assert table(["weight", "x"], {"0.weight": 1.0}).right == (False, True)
    assert table(["weight", "x"], {"1e-05": "13.7 %"}).right == (True, True)


# --- comparisons ---------------------------------------------------------------------------------


def test_the_distance_is_relative_to_the_first_and_the_worst_of_all_entries():
    assert distance(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])) == pytest.approx(0.1)
    assert distance(2.0, torch.tensor(1.0)) == 0.5
    nested = {"a": {"x": 1.0}, "b": torch.ones(2)}
    assert distance(nested, {"a": {"x": 1.5}, "b": torch.ones(2)}) == 0.5
    assert distance(0.0, torch.zeros(())) == 0 and distance(0.0, 1e-300) == math.inf


def test_a_value_that_is_not_a_number_is_never_close():
    assert math.isnan(distance({"a": 0.0, "b": 1.0}, {"a": 0.0, "b": math.nan}))
    with pytest.raises(AssertionError, match="x, against the library: nan"):
        Comparisons().agree("x", 1.0, brute_force=1.0, library=math.nan)


@pytest.mark.parametrize("other", [torch.ones(3), torch.ones(2, 1), torch.ones(())])
def test_results_of_another_shape_are_refused_and_not_stretched(other):
    with pytest.raises(ValueError, match="other has the shape"):
        distance(torch.ones(2), other)


def test_comparisons_hold_both_ways_to_the_tolerance_and_list_it():
    checked = Comparisons()
    checked.agree("exact", 1.0, brute_force=1.0, library=1.0)
    checked.agree("inverted", 1.0, brute_force=1.0 + 5e-7, library=1.0, tolerance=1e-6)
    with pytest.raises(AssertionError, match="wrong, against brute force: 1"):
        checked.agree("wrong", 1.0, brute_force=2.0, library=1.0)
    assert checked.table().rows == (
        ("exact", "below 1e-12", "below 1e-12"),
        ("inverted", "below 1e-06", "below 1e-06"),
    )


# --- steps ---------------------------------------------------------------------------------------


class TwoPasses(torch.optim.SGD):
    """Calls the closure twice and follows the second gradient, as SAM does without a radius."""

    gradient_evaluations = 5  # Steps before those that are counted.

    def step(self, closure):
        closure()
        self.gradient_evaluations += 2
        return super().step(closure)


def test_steps_start_from_a_copy_and_count_what_was_asked_for():
    torch.manual_seed(0)
    network, inputs = nn.Linear(4, 3).double(), torch.randn(6, 4, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    before = [p.detach().clone() for p in network.parameters()]

    def make(copy):
        return TwoPasses(copy.parameters(), lr=0.1)

    taken = take_steps(make, network, inputs, targets, steps=2)
    assert (taken.closures, taken.evaluations, taken.forwards) == (4, 4, 4)
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))
    for _ in range(2):
        loss = nn.functional.cross_entropy(network(inputs), targets)
        for p, gradient in zip(
            network.parameters(), torch.autograd.grad(loss, [*network.parameters()]), strict=True
        ):
            p.data -= 0.1 * gradient
    expected = nn.utils.parameters_to_vector(network.parameters())
    torch.testing.assert_close(taken.weights, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("minimum", [0.0, 1.5, torch.tensor([1.0, -2.0], dtype=torch.float64)])
def test_gradient_descent_on_a_quadratic_contracts_to_its_minimum(minimum):
    hessian = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))
    start = torch.tensor([1.0, 1.0], dtype=torch.float64)
    points, optimizer = follow_quadratic(
        lambda parameters: torch.optim.SGD(parameters, lr=0.2), hessian, start, 3, minimum
    )
    powers = torch.arange(4, dtype=torch.float64)[:, None]
    expected = minimum + torch.tensor([0.2, 0.8], dtype=torch.float64) ** powers * (start - minimum)
    torch.testing.assert_close(points, expected, rtol=1e-14, atol=1e-15)
    assert isinstance(optimizer, torch.optim.SGD) and torch.equal(start, torch.ones_like(start))


# --- the template and the chapters ---------------------------------------------------------------


def code_cells(source: Path) -> list[NotebookNode]:
    return [cell for cell in read_source(source).cells if code(cell)]


def code(cell: NotebookNode) -> bool:
    return cell.cell_type == "code"


def hidden(cell: NotebookNode) -> bool:
    return bool({"hide-input", "remove-input"} & set(cell.metadata.get("tags", [])))


def lines(cell: NotebookNode) -> int:
    return len(cell.source.splitlines())


def header(source: Path) -> list[str]:
    """Return the lines of jupytext's header; a chapter alone names the formats of its pair."""
    text = source.read_text(encoding="utf-8").split("# ---\n")[1]
    return [line for line in text.splitlines() if "formats: " not in line]


def test_the_template_is_no_chapter():
    assert TEMPLATE not in SOURCES
    assert "notebooks/TEMPLATE" not in book.contents(ROOT)
    assert not TEMPLATE.with_suffix(".ipynb").exists()
    assert "formats: " not in TEMPLATE.read_text(encoding="utf-8").split("# ---\n")[1]


def test_the_template_runs(tmp_path):
    execute(TEMPLATE, tmp_path / "run.ipynb", parameters={"profile": "smoke", "store": tmp_path})
    executed = nbformat.read(tmp_path / "run.ipynb", as_version=4)
    shown = [
        output.data
        for cell in executed.cells
        for output in cell.get("outputs", [])
        if "data" in output
    ]
    assert sum("text/markdown" in data for data in shown) == 2
    assert sum("image/svg+xml" in data for data in shown) == 1


def test_plain_papermill_refuses_a_parameter_that_is_misspelt(tmp_path, capfd):
    with pytest.raises(NotebookError, match=r"TEMPLATE\.py failed in cell 2"):
        execute(TEMPLATE, tmp_path / "run.ipynb", parameters={"sampels": 5})
    assert "'sampels' is not a parameter of this notebook; did you mean" in capfd.readouterr().err


def setup_cell(source: Path) -> NotebookNode:
    return next(cell for cell in code_cells(source) if "\np = setup(\n" in cell.source)


@each_chapter
def test_every_chapter_begins_as_the_template_does(source):
    assert header(source) == header(TEMPLATE)
    head, parameters, *others = read_source(source).cells
    assert head.cell_type == "markdown"
    assert parameters.metadata["tags"] == ["parameters", "hide-input"]
    if "show_verdicts(" in others[0].source:
        assert others[0].metadata["tags"] == ["remove-input"]
        others = others[1:]
    start, *others = others
    assert start.source == setup_cell(source).source and hidden(start)
    assert "from paperkit.chapter import" in start.source and lines(start) <= LONGEST_SETUP
    assert not hidden(others[0])
    assert not any("setup(" in c.source or "show_verdicts(" in c.source for c in others if code(c))


def tagged_names(source: Path) -> set[str]:
    """Names that the cell with the tag "parameters" gives values to."""
    (cell,) = [c for c in code_cells(source) if "parameters" in c.metadata.get("tags", [])]
    return {target.id for node in ast.parse(cell.source).body for target in node.targets}


def accepted_names(source: Path) -> set[str]:
    """Names that the set-up cell lets a reader give."""
    calls = [n for n in ast.walk(ast.parse(setup_cell(source).source)) if isinstance(n, ast.Call)]
    (call,) = [c for c in calls if getattr(c.func, "id", "") == "setup"]
    (allowed,) = [k.value for k in call.keywords if k.arg == "allowed"]
    return {*eval(ast.unparse(allowed)), *OF_EVERY_CHAPTER}


@each_chapter
def test_a_chapters_parameters_are_those_of_its_tagged_cell_and_no_others(source):
    assert tagged_names(source) == accepted_names(source)


@each_chapter
def test_a_chapter_offers_the_profiles_that_it_has_settings_for(source):
    calls = [n for n in ast.walk(ast.parse(setup_cell(source).source)) if isinstance(n, ast.Call)]
    (call,) = [c for c in calls if getattr(c.func, "id", "") == "setup"]
    keys = [key.value for key in call.args[1].keys]
    assert keys in (["smoke", "laptop"], ["smoke", "laptop", "paper"])
    words = {2: "# smoke or laptop", 3: "# smoke, laptop or paper"}[len(keys)]
    first = code_cells(source)[0].source.splitlines()[0]
    assert first == f'profile = "laptop"  {words}'
    # A profile with the settings of another one would run that one under its name.
    settings = [ast.unparse(value) for value in call.args[1].values]
    assert len(set(settings)) == len(settings)


@each_chapter
def test_a_chapters_head_has_question_answer_time_and_what_one_needs(source):
    title, *parts = read_source(source).cells[0].source.split("\n\n")
    label, heading = title.splitlines()
    assert label.endswith(")=") and heading.startswith("# ")
    question, answer, time, need, *rest = parts
    assert question.startswith("**Question.** ") and question.endswith("?")
    assert answer.startswith("**Answer.** ") and len(answer.splitlines()) <= 3
    plain = re.sub(r"\{[\w:]+\}`[^`]*`|\$[^$]*\$", "a reference", answer)
    assert len(plain) <= 3 * COLUMN
    assert re.match(r"\*\*Time\.\*\* Reading: about \d+ minutes; running: ", time)
    assert need.startswith("**You need:** ")
    decides = any(claim.chapter == source.stem for claim in load_claims())
    shows = "show_verdicts(" in code_cells(source)[1].source
    assert shows == decides and len(rest) == (not decides)


@each_chapter
def test_a_chapters_reading_time_is_that_of_its_words(source):
    cells = read_source(source).cells
    stated = int(re.search(r"Reading: about (\d+) minutes", cells[0].source)[1])
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    minutes = len(re.findall(r"\w+", re.sub(r"\$[^$]*\$", "formula", text))) / WORDS_A_MINUTE
    assert abs(stated - minutes) <= max(5, 0.2 * minutes)


@each_chapter
def test_a_chapter_chooses_five_of_its_verdicts(source):
    claims = [claim.id for claim in load_claims() if claim.chapter == source.stem]
    call = ast.parse(code_cells(source)[1].source).body[-1]
    if not claims:
        return
    (first,) = [k.value for k in call.value.keywords if k.arg == "first"]
    chosen = ast.literal_eval(first)
    assert call.value.args[0].value == source.stem
    assert len(set(chosen)) == len(chosen) == min(OPEN, len(claims))
    assert set(chosen) <= set(claims)


BY_HAND = {
    r"\bresolve\(|\bbook_style\(|set_num_threads|gc\.freeze": "setup does it",
    r"\bpandas\b|\bpd\.|\"\| |---\|": "table prints it",
    r":class: dropdown": "a solution is a {dropdown}",
    r"below 1e-1[02]\" if": "number prints it",
}


@each_chapter
@pytest.mark.parametrize("pattern", BY_HAND, ids=BY_HAND.values())
def test_no_chapter_does_by_hand_what_all_do_alike(source, pattern):
    cells = code_cells(source) if "class" not in pattern else read_source(source).cells
    found = [cell.source for cell in cells if re.search(pattern, cell.source)]
    assert found == [], BY_HAND[pattern]


@each_chapter
def test_no_hidden_cell_is_longer_than_the_longest_that_is_shown(source):
    cells = [cell for cell in code_cells(source) if cell != setup_cell(source)]
    longest = max(lines(cell) for cell in cells if not hidden(cell))
    assert longest <= LONGEST_CELL
    too_long = [cell.source for cell in cells if hidden(cell) and lines(cell) > longest]
    assert too_long == []


# --- prose ---------------------------------------------------------------------------------------

# A sentence's end, then a sentence's beginning on the same line.
JOINT = re.compile(r"(?<=[.?!])((?:\*\*|[”’\"')*])*)\s+(?=[A-Z“\"*$({`\[‘])")
NO_END = re.compile(r"(?:\b(?:eqs?|cf|e\.g|i\.e|al|vs)\.|\*{1,2}\d\.\*{0,2}|\(\w\)\.?)$")
LABEL = re.compile(r"^(?:\*\*[^*]+[.?!]\*\*|\*[^*]+[.?!:]\*)$")
ITEM = re.compile(r"^\s*(?:[*-]|\d+\.)\s")
ENDED = re.compile(r"(?:[.?!:;][*”’\"')]*|∎)$")


def prose(cell: str) -> list[str]:
    """Return a cell's lines, with an empty one for each that is no running text."""
    found, inside = [], False
    for line in cell.splitlines():
        text = line.strip()
        outside = not text or text.startswith(("|", "#", "```", ":")) or text.endswith(")=")
        if text.startswith("$$"):
            inside, outside = not inside, True
        found.append("" if inside or outside else line)
    return found


def joined_sentences(line: str) -> bool:
    line = ITEM.sub("", line)
    for joint in JOINT.finditer(line):
        before = line[: joint.end(1)]
        if before.count("$") % 2 == 0 and not NO_END.search(before) and not LABEL.match(before):
            return True
    return False


def wrapped(first: str, second: str) -> bool:
    return bool(first and second) and not ENDED.search(first) and not ITEM.match(second)


@pytest.mark.parametrize(
    ("line", "joined"),
    [
        ("This is one sentence, with eq. 5 of the paper (cf. Section 2).", False),
        ("This is one. And this another.", True),
        ("Is this one? Yes.", True),
        ("**Time and hardware.** Two seconds.", False),
        ("* *A point.* Its first sentence.", False),
        ("* *A point.* Its first sentence. Its second.", True),
        ("Let $f. G$ be a formula.", False),
        ("*1.* The first part.", False),
        ("**1.** The first exercise. It asks.", True),
    ],
)
def test_a_second_sentence_on_a_line_is_found(line, joined):
    assert joined_sentences(line) is joined


def test_a_sentence_that_is_wrapped_is_found():
    assert wrapped("This sentence goes", "on here.")
    assert not wrapped("This one ends.", "So does this.")
    assert not wrapped("These points follow", "* first")


@each_chapter
def test_every_line_of_prose_is_one_sentence(source):
    found = []
    for cell in read_source(source).cells:
        if cell.cell_type == "markdown":
            text = prose(cell.source)
            found += [line for line in text if joined_sentences(line)]
            found += [first for first, second in pairwise(text) if wrapped(first, second)]
    assert found == []


@each_chapter
def test_a_sentence_comes_before_every_equation(source):
    bare = []
    for cell in read_source(source).cells:
        if cell.cell_type == "markdown":
            before, inside = "", False
            for line in filter(None, map(str.strip, cell.source.splitlines())):
                if line.startswith("$$"):
                    inside = not inside
                    if inside and (not before or before.startswith(("#", "$$", "```", "|", ":"))):
                        bare.append(f"{before} … {line}")
                before = line
    assert bare == []

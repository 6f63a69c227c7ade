"""CONTRIBUTING names what exists: every file, and every class, function and table in it."""

import re
from pathlib import Path

import pytest

from paperkit import cli

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
QUOTED = re.compile(r"`([^`\n]+)`")
# A reader puts a name of their own in the place of these.
YOURS = re.compile(r"NAME|PAPER|SECTION|NN_")
RECIPES = (
    "A measure",
    "An optimizer",
    "A bound",
    "A layer type",
    "A study with a claim",
    "A chapter",
)


def is_path(quoted: str) -> bool:
    return re.fullmatch(r"[\w./-]+", quoted) is not None and (
        "/" in quoted or quoted.endswith((".md", ".yml", ".toml", ".lock"))
    )


def existing(path: str) -> Path:
    """Return the file, or of a path with a name of one's own the folder that exists."""
    parts = Path(path).parts
    own = next((i for i, part in enumerate(parts) if YOURS.search(part)), len(parts))
    return ROOT.joinpath(*parts[:own])


PATHS = sorted({quoted for quoted in QUOTED.findall(TEXT) if is_path(quoted)})
ITEMS = [
    line
    for recipe in RECIPES
    for line in TEXT.partition(f"### {recipe}\n")[2].partition("\n#")[0].splitlines()
    if re.match(r"\d+\. ", line)
]
COMMANDS = sorted(set(re.findall(r"`\.venv/bin/paperkit ((?:study )?[a-z]+)", TEXT)))


def test_there_is_a_recipe_for_everything_that_the_project_grows_by():
    for recipe in RECIPES:
        steps = TEXT.partition(f"### {recipe}\n")[2].partition("\n#")[0]
        numbers = re.findall(r"^(\d+)\. ", steps, flags=re.MULTILINE)
        assert numbers == [str(i) for i in range(1, len(numbers) + 1)]
        assert len(numbers) >= 5


@pytest.mark.parametrize("path", PATHS)
def test_a_file_that_is_named_exists(path):
    # Built files are named by where they go, and need not be there.
    assert path.startswith(("_build/", ".venv/", "dist/")) or existing(path).exists()


@pytest.mark.parametrize("item", ITEMS)
def test_names_in_a_recipe_are_in_the_files_beside_them(item):
    quoted = QUOTED.findall(item)
    files = [existing(path) for path in quoted if is_path(path)]
    sources = [f for place in files for f in (place.rglob("*") if place.is_dir() else [place])]
    text = "\n".join(f.read_text() for f in sources if f.suffix in (".py", ".yml", ".json"))
    names = {name for name in quoted if re.fullmatch(r"\w+", name) and not YOURS.search(name)}
    assert {name for name in names if not re.search(rf"\b{name}\b", text)} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*command.split(), "--help"])
    assert end.value.code == 0

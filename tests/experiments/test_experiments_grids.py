"""Grids are files: what they list, how they refuse, and that each value names its place."""

import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from paperkit import models
from paperkit.experiments.archive import Archive
from paperkit.experiments.grids import grid_named, grid_names, grid_of, profiles_of, reading
from paperkit.experiments.planned import any_study, every_study
from paperkit.experiments.records import key_of
from paperkit.experiments.study import configurations, study_named, study_names
from paperkit.experiments.training_cost import is_training, training_cost

ROOT = Path(__file__).resolve().parents[2]
PLANNED = ("optimizer_comparison_papers", "population_papers")
HERE = {"renyi_population": "here"}

GRID = """
about: coins
order: [coin, toss]
choices:
  weight: {take: light, options: {light: "it was meant", heavy: "it was printed"}}
defaults:
  usual: {height: 1.5, hand: left}
smoke:
  - values: {toss: 1, seed: 0}
laptop:
  - like: usual
    together:
      - {coin: {by: weight, options: {light: cent, heavy: taler}}, side: head}
      - {coin: mark, side: tail}
    only_first: [hand]
    values:
      toss: {values: [1, 2], source: here}
      hand: [right, left]
      seed: {first: 3, last: 4}
  - when: {weight: heavy}
    values: {toss: 9, seed: 0}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "coins.yml").write_text(GRID)
    return tmp_path


def test_a_block_is_every_combination_of_its_values(folder):
    found = grid_of("coins", folder=folder)("laptop")
    assert len(found) == 2 * 2 * 2
    assert found[0] == {
        "toss": 1,
        "coin": "cent",
        "side": "head",
        "height": 1.5,
        "hand": "right",
        "seed": 3,
    }
    # The loop named first is the outermost, and the values that vary together are one loop.
    order = [(one["toss"], one["coin"], one["seed"]) for one in found]
    assert order[:4] == [(1, "cent", 3), (1, "cent", 4), (1, "mark", 3), (1, "mark", 4)]
    assert grid_of("coins", folder=folder)("paper") == []
    assert profiles_of("coins", folder) == ("smoke", "laptop")


def test_an_option_takes_other_values_and_other_blocks(folder):
    found = grid_of("coins", {"weight": "heavy"}, folder)("laptop")
    assert len(found) == 9 and found[0]["coin"] == "taler" and found[-1] == {"toss": 9, "seed": 0}
    with pytest.raises(
        ValueError, match=r"'wait' is no choice of coins\.yml; did you mean 'weight'"
    ):
        grid_of("coins", {"wait": "heavy"}, folder)("laptop")
    with pytest.raises(ValueError, match="'heave' is no option of weight; did you mean 'heavy'"):
        grid_of("coins", {"weight": "heave"}, folder)("laptop")


def test_blocks_of_every_profile_come_first_and_win(tmp_path):
    (tmp_path / "facts.yml").write_text(
        "about: facts\nevery:\n- values: {fact: [a, b], seed: 0}\n- values: {fact: c}\n"
        "laptop:\n- values: {n: 5, seed: [0, 1]}\n"
    )
    found = [(c["fact"], c["seed"]) for c in grid_of("facts", folder=tmp_path)("laptop")]
    assert sorted(found) == [("a", 0), ("b", 0), ("c", 0), ("c", 1)]


def test_a_grid_may_continue_that_of_another_study(folder):
    (folder / "tosses.yml").write_text(
        "about: more\neach_of: coins\nsmoke:\n- values: {n: [1, 2]}\n"
    )
    found = grid_of("tosses", folder=folder)("smoke")
    assert found == [{"toss": 1, "seed": 0, "n": n} for n in (1, 2)]


def test_a_file_that_was_edited_is_read_again(folder):
    path = folder / "coins.yml"
    assert len(grid_of("coins", folder=folder)("smoke")) == 1
    path.write_text(GRID.replace("{toss: 1, seed: 0}", "{toss: [1, 2], seed: 0}"))
    assert len(grid_of("coins", folder=folder)("smoke")) == 2


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("about: coins", "", "the field 'about' is missing"),
        ("smoke:", "smok:", "unknown field 'smok'; did you mean 'smoke'"),
        ("take: light", "take: lite", "choices, weight: take is 'lite', which is no option; did"),
        ("like: usual", "like: usable", "there are no defaults 'usable'; did you mean 'usual'"),
        ("weight: heavy", "wait: heavy", "'wait' is no choice; did you mean 'weight'"),
        ("when: {weight: heavy}", "when: {weight: heave}", "'heave' is no option of weight"),
        ("heavy: taler}", "havy: taler}", "must give a value for each option of 'weight'"),
        ("by: weight, ", "", "laptop.0., together.0., coin: give value, or values"),
        ("first: 3, last: 4", "first: 4, last: 3", "last is 3, which is before first, 4"),
        ("first: 3, last: 4", "first: 3", "give value, or values, or first and last"),
        ("hand: [right, left]", "hand: []", "values: hand is empty"),
        ("{coin: mark, side: tail}", "{coin: mark}", "rows of different names"),
        ("hand: [right, left]", "side: [right, left]", "'side' stands in together and in values"),
        ("toss: 1, seed", "toss: 1, toss: 2, seed", "the key 'toss' is given twice"),
        ("about: coins", "about: &a coins\nsmoke: *a", "aliases are not read"),
        ("about: coins", "about: [", "is not valid YAML"),
        ("toss: 1, seed", "toss: .inf, seed", "smoke.0., values, toss: inf is no plain value"),
        ("toss: 1, seed", "toss: [[1]], seed", "is no plain value; give a finite number, text"),
    ],
)
def test_a_bad_file_is_refused_in_a_sentence_that_names_it(folder, old, new, sentence):
    assert old in GRID
    (folder / "coins.yml").write_text(GRID.replace(old, new, 1))
    with pytest.raises(ValueError, match=sentence) as caught:
        grid_of("coins", folder=folder)("laptop")
    assert str(caught.value).startswith("coins.yml") and "\n" not in str(caught.value)


def test_a_name_without_a_file_is_refused_with_the_nearest_one(folder):
    with pytest.raises(ValueError, match="there is no grid 'coin'; did you mean 'coins'"):
        grid_of("coin", folder=folder)("smoke")
    assert grid_names(folder) == ["coins"]


def test_a_machine_without_pydantic_reads_a_grid_too(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydantic", None)
    for name in list(sys.modules):
        if name.startswith("paperkit.experiments.grids.schema"):
            monkeypatch.delitem(sys.modules, name)
    reading._content.cache_clear()
    assert len(grid_of("coins", folder=folder)("laptop")) == 8


# --- the papers' own ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize("profile", ["smoke", "laptop", "paper"])
def test_the_papers_grids_list_runs_that_can_be_built(name, profile):
    found = configurations(any_study(name), profile)
    assert found and all(is_training(configuration) for configuration in found)
    assert {c["model"] for c in found} <= set(models.NAMES)
    assert all(training_cost(c).steps >= 1 for c in found)


def test_the_populations_have_the_papers_numbers():
    runs = grid_of("population_papers", HERE)("paper")
    found = Counter((c["paper"], c["dataset"], c["model"]) for c in runs)
    # Kendall's coefficients of the Rényi paper are multiples of 1/435: 30 networks of a kind.
    cifar = ("resnet18", "resnet34")
    assert all(found["rényi", data, m] == 30 for data in ("cifar10", "cifar100") for m in cifar)
    assert found["rényi", "cifar10", "simple_vit"] == 30
    assert found["rényi", "tiny-imagenet", "resnet18_tinyimagenet"] == 36
    assert [n for (paper, *_), n in found.items() if paper == "compression"] == [100, 100, 100]
    assert {paper for paper, *_ in found} == {"rényi", "compression"}
    assumed = grid_of("population_papers", {"igs_population": "assumed"})("paper")
    assert {c["paper"] for c in assumed} == {"compression", "igs"}


def test_the_study_that_trains_the_renyi_papers_networks_has_its_grid():
    def settings(found):
        names = ("dataset", "model", "optimizer", "lr", "batch_size", "weight_decay", "epochs")
        return Counter(tuple(c[name] for name in names) for c in found)

    listed = [c for c in grid_of("population_papers", HERE)("paper") if c["paper"] == "rényi"]
    assert settings(study_named("population_training").grid("paper")) == settings(listed)


def test_the_smallest_rate_follows_the_papers_rule_or_its_print():
    def rates(options):
        found = grid_of("population_papers", {**HERE, **options})("paper")
        own = [c for c in found if c["paper"] == "rényi"]
        return {(c["optimizer"], c["lr"]) for c in own if c["batch_size"] == 128}

    assert rates({}) == {("sgd", 0.01), ("adam", 0.0001)}
    assert rates({"smallest_rate": "printed"}) == {("sgd", 0.001), ("adam", 0.00001)}


def test_the_comparison_has_the_papers_numbers():
    found = grid_of("optimizer_comparison_papers")("paper")
    counts = Counter(c["paper"] for c in found)
    # The Rényi paper's seven rows have five runs of five methods, less Eigen-SAM in the last row.
    assert counts == {"rényi": 7 * 5 * 5 - 5, "sa-sam": 5 * 4 * 4 * 2, "igs": 7 * 5 * 3}
    rsam = {
        (c["dataset"], c["model"]): (c["rho"], c["alpha"], c["plain_epochs"])
        for c in found
        if c["optimizer"] == "rsam"
    }
    assert rsam["cifar10", "resnet20"] == (0.65, 1.2, 5)
    assert rsam["cifar100", "wrn28_10"] == (1.0, 1.1, 5)
    assert rsam["tiny-imagenet", "resnet50_tinyimagenet"] == (1.25, 1.1, 20)
    without = grid_of("optimizer_comparison_papers", {"igs_settings": "left_out"})("paper")
    assert Counter(c["paper"] for c in without)["igs"] == 0


@pytest.mark.parametrize("name", PLANNED)
def test_each_value_of_a_paper_names_its_place(name):
    content = grid_named(name)
    for block in content["paper"]:
        assert block.get("source"), block["name"]
        for key, value in content["defaults"][block["like"]].items() if block.get("like") else ():
            sourced = isinstance(value, dict) and "source" in value
            assert sourced or key == "paper" or value is None, (block["name"], key)


@pytest.mark.parametrize("name", PLANNED)
def test_each_choice_changes_the_runs(name):
    here = HERE if name == "population_papers" else {}
    usual = {key_of(name, c) for c in grid_of(name, here)("paper")}
    for choice, one in grid_named(name)["choices"].items():
        assert len(one["options"]) >= 2
        for option in set(one["options"]) - {here.get(choice, one["take"])}:
            other = {key_of(name, c) for c in grid_of(name, {**here, choice: option})("paper")}
            assert other != usual, (choice, option)


def test_a_study_of_which_only_the_grid_is_there_is_planned_and_not_run():
    waiting = [name for name in grid_names() if name not in study_names()]
    assert [study.name for study in every_study()][len(study_names()) :] == waiting
    for name in waiting:
        with pytest.raises(ValueError, match="is not written yet: only its grid is there"):
            any_study(name).run({}, None)


# --- the studies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in grid_names() if name not in PLANNED])
def test_every_published_record_is_in_the_grid(name):
    study = study_named(name)
    keys = {key_of(name, c) for c in configurations(study, "laptop")}
    assert {record.key for record in Archive().published.records(name)} == keys


def test_the_wheel_takes_the_files_along():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packaged = project["tool"]["setuptools"]["package-data"]
    assert packaged["paperkit.experiments.grids"] == ["*.yml"]
    assert {path.parent.name for path in ROOT.glob("paperkit/**/*.yml")} == {"grids"}


def test_a_study_is_imported_where_yaml_and_pydantic_are_missing():
    code = (
        "import sys; sys.modules.update(yaml=None, pydantic=None); "
        "from paperkit.experiments.study import study_named; study_named('curvature_blocks')\n"
        "try: study_named('curvature_blocks').grid('laptop')\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        done.stdout == "curvature_blocks.yml needs PyYAML to be read: run `pip install pyyaml`.\n"
    )

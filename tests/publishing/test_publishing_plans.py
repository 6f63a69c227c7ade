"""The book's tables of plans say what the grids, the records and the kept timings say."""

import json
import re
from pathlib import Path

import pytest

from paperkit.experiments.planned import every_study
from paperkit.experiments.projections import kept_projections
from paperkit.experiments.timing import kept_timings
from paperkit.experiments.training_cost import timed_as
from paperkit.publishing import plan_pages
from paperkit.publishing.sphinx_extension import DIRECTIVES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "book" / "what_it_costs.md").read_text(encoding="utf-8")


def rows(table):
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.mark.parametrize("profile", ["laptop", "paper"])
def test_a_table_has_a_row_for_each_study_with_the_profile_and_names_the_others(profile):
    table = plan_pages.plan(profile)
    *shown, total = rows(table)
    names = [re.match(r"`(\w+)`", row[0])[1] for row in shown]
    grids = {study.name: len(study.grid(profile)) for study in every_study()}
    assert names == [name for name, runs in grids.items() if runs]
    assert [int(row[1].replace(",", "")) for row in shown] == [n for n in grids.values() if n]
    assert int(total[1].replace(",", "")) == sum(grids.values())
    assert all(f"`{name}`" in table.splitlines()[-1] for name, runs in grids.items() if not runs)


def test_a_time_of_the_page_is_unknown_only_where_no_trial_could_tell_it():
    for study in every_study():
        for profile in ("laptop", "paper"):
            found = plan_pages._plan(study.name, profile)
            assert study.trial is None or not found.unknown, (study.name, profile)


def test_each_directive_of_the_page_has_a_table():
    used = re.findall(r"```\{(plan|projections)\}(.*)\n```", PAGE)
    assert {name for name, _ in used} == {"plan", "projections"} <= set(DIRECTIVES)
    for name, argument in used:
        directive = DIRECTIVES[name]
        table = directive.markdown(None, argument.strip() or None)
        assert rows(table), argument


def test_a_time_that_nobody_measured_is_unknown(monkeypatch):
    monkeypatch.setattr("paperkit.experiments.planning.kept_timings", list)
    table = plan_pages.plan("paper")
    row = next(row for row in rows(table) if row[0].startswith("`population_papers`"))
    assert row[3:] == ["unknown", "unknown", "nothing"]
    assert rows(table)[-1][4].endswith("+ unknown**")


def test_each_kept_timing_is_of_a_kind_that_is_planned():
    kinds = {
        (timed_as(study), study.cost_of(configuration).kind)
        for study in every_study()
        for profile in ("smoke", "laptop", "paper")
        for configuration in study.grid(profile)
    }
    assert {(one.study, one.kind) for one in kept_timings()} <= kinds
    assert all(one.commit and one.seconds > 0 for one in kept_timings())


def test_the_factor_of_the_page_is_that_of_a_run_on_a_real_machine():
    kept = kept_projections()
    assert kept
    assert {row[0] for row in rows(plan_pages.projections())} == {
        f"`{one.study}`, {one.profile}" for one in kept
    }
    raw = json.loads((ROOT / "results" / "projections.json").read_text())
    for one, row, entry in zip(kept, rows(plan_pages.projections()), raw, strict=True):
        assert row[5] == f"{entry['taken'] / entry['projected']:.2f}"
        assert row[6] == f"{entry['processor'] / entry['projected']:.2f}"
        assert one.profile == "laptop" and one.commit
        grid = next(s for s in every_study() if s.name == one.study).grid("laptop")
        assert one.runs == len(grid)

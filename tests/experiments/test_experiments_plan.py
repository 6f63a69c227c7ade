"""What a plan says of runs, steps and time, and that it runs nothing."""

import json
import re
from dataclasses import replace

import pytest
import torch

from paperkit.cli import build_parser, main
from paperkit.experiments import Cost, Record, plan_text, provenance, run_study, timing
from paperkit.experiments.archive import Archive
from paperkit.experiments.cost import default_cost
from paperkit.experiments.outlook import Outlook
from paperkit.experiments.planning import plan_of, timings_of
from paperkit.experiments.projections import kept_projections
from paperkit.experiments.session import Session
from paperkit.experiments.study import configurations, study_named, study_names
from paperkit.experiments.timing import Timing, from_records, kept_timings, measured

CPU = torch.device("cpu")
HERE = provenance.device_name(CPU)

pytestmark = pytest.mark.usefixtures("studies_folder")


def record(configuration, seconds, *, device=HERE, profile="laptop", resumed=False):
    origin = {
        "date": provenance.now(),
        "dirty": False,
        "fingerprint": "0" * 64,
        "device": device,
        "threads": 1,
        "resumed": resumed,
        "seconds": seconds,
    }
    return Record("selftest_costed", profile, configuration, {}, origin)


def configuration(width, seed=0, steps=10):
    return {"width": width, "steps": steps, "seed": seed}


def plan(store, study="selftest_costed", profile="laptop", **options):
    return plan_of(study_named(study), profile, Archive(store), CPU, **options)


# --- the seconds of a kind ------------------------------------------------------------------------


def test_runs_that_differ_in_seed_alone_are_of_one_kind():
    assert default_cost({"a": 1, "seed": 0}) == default_cost({"a": 1, "seed": 7}) == Cost("a=1")
    assert default_cost({"a": 2, "seed": 0}).kind != "a=1"
    assert default_cost({"seed": 0}).kind == "all alike"


def test_the_seconds_of_a_step_are_those_of_all_records_over_all_their_steps():
    study = study_named("selftest_costed")
    records = [record(configuration(1, seed), seconds) for seed, seconds in ((0, 10.0), (1, 50.0))]
    found = from_records(records, study, HERE)
    # Both runs have ten steps of size 2.
    assert found == {"narrow": Timing(1.5, 0.0, HERE, "records, 1 thread", 2)}
    assert found["narrow"].of(Cost("narrow", 4, "steps", size=3.0)) == pytest.approx(18.0)


@pytest.mark.parametrize(
    ("others", "seconds", "device"),
    [
        ([], 1.0, HERE),
        ([record(configuration(1, 1), 900.0, device="cuda:0 (another)")], 1.0, HERE),
        ([record(configuration(1, 1), 900.0, resumed=True)], 1.0, HERE),
        ([record(configuration(1, 1, steps=1), 900.0, profile="smoke")], 1.0, HERE),
        ([record(configuration(1, 1), 60.0)], 2.0, HERE),
    ],
)
def test_records_of_this_device_that_are_whole_and_serious_count_first(others, seconds, device):
    found = from_records(
        [record(configuration(1), 20.0), *others], study_named("selftest_costed"), HERE
    )
    assert (found["narrow"].seconds, found["narrow"].device) == (seconds, device)


def test_records_of_another_device_or_of_smoke_runs_count_where_there_is_nothing_else():
    study, other = study_named("selftest_costed"), "cuda:0 (another)"
    found = from_records([record(configuration(1), 20.0, device=other)], study, HERE)
    assert found["narrow"].device == other
    smoke = record(configuration(100, steps=1), 8.0, profile="smoke")
    assert from_records([smoke], study, HERE)["wide"].seconds == 4.0
    assert from_records([record(configuration(1), 1.0, resumed=True)], study, HERE) == {}


def test_a_trial_tells_set_up_and_steps_apart(monkeypatch):
    asked = []

    def spent(study, configuration, steps, device):
        asked.append(steps)
        return timing._Trial(3.0 + 0.25 * steps, part=0.5)

    monkeypatch.setattr(timing, "_spent", spent)
    found = measured(study_named("selftest_costed"), configuration(100), CPU)
    # A trial's step of 0.25 s is half a step of size 2.
    assert (found.seconds, found.setup, found.records) == (0.25, 3.0, 0)
    # A first trial is not timed. Trials of one step, and of enough for a second, come three times.
    assert asked == [1] + 3 * [1] + [2] + 3 * [5]
    assert found.device == HERE
    assert re.fullmatch(r"timed now, (processor|wall) time of 5 steps, \d+ threads?", found.origin)


def test_the_shortest_of_a_few_trials_counts(monkeypatch):
    shares = iter([1.0, 0.8, 1.0, 0.7] + 100 * [1.0])

    def spent(study, configuration, steps, device):
        share = next(shares)
        return timing._Trial((1.0 + 2.0 * steps) / share)

    monkeypatch.setattr(timing, "_spent", spent)
    found = measured(study_named("selftest_costed"), configuration(100), CPU)
    assert (found.seconds, found.setup) == (1.0, 1.0)


def test_a_trial_that_the_clock_cannot_tell_from_none_ends(monkeypatch):
    monkeypatch.setattr(timing, "_spent", lambda *given: timing._Trial(0.5))
    found = measured(study_named("selftest_costed"), configuration(100), CPU)
    assert (found.seconds, found.setup) == (0.0, 0.5)
    assert "of 65 steps" in found.origin


def test_a_trial_is_given_no_other_run():
    with pytest.raises(ValueError, match="a trial is given no run of study 'selftest_training'"):
        measured(study_named("selftest_costed"), configuration(1), CPU)


def test_a_cost_is_checked():
    with pytest.raises(ValueError, match="steps=0"):
        Cost("kind", steps=0)
    with pytest.raises(ValueError, match="size=0"):
        Cost("kind", size=0)
    study = replace(study_named("selftest_costed"), cost=lambda configuration: 3)
    with pytest.raises(TypeError, match="returned a int; return a Cost"):
        study.cost_of(configuration(1))


# --- the plan -------------------------------------------------------------------------------------


def test_a_plan_counts_what_is_missing_and_runs_nothing(store, committed, log):
    assert [plan(store).runs, plan(store).missing, plan(store).unknown] == [6, 6, 6]
    assert log() == []
    Archive(store).working.add([record(configuration(1, seed), 20.0) for seed in range(2)])
    found = plan(store)
    narrow, wide = found.kinds
    assert (found.finished, found.missing) == (2, 4)
    assert (narrow.steps, narrow.steps_left, wide.steps_left) == (30, 10, 30)
    assert (narrow.seconds_left, narrow.seconds, narrow.seconds_a_step) == (20.0, 60.0, 2.0)
    assert (wide.seconds_left, wide.timing, found.unknown_left) == (None, None, 3)


def test_what_is_not_known_is_said_and_never_guessed(store, capsys):
    Archive(store).working.add([record(configuration(1), 7200.0)])
    assert main(["plan", "selftest_costed", f"--store={store}", "--price-per-hour=3"]) == 0
    shown = capsys.readouterr().out
    row = " ".join(shown.splitlines()[1].split())
    assert row.endswith(" 4.0 h + unknown 6.0 h + unknown 12.00 + unknown")
    assert "unknown: no record of its kind (--measure times a trial)" in shown
    assert main(["plan", "selftest_costed", f"--store={store}", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["seconds_left"], told["missing_runs_of_unknown_time"]) == (None, 3)
    narrow, wide = told["kinds"]
    assert (narrow["seconds_left"], narrow["device"]) == (14400.0, HERE)
    assert (wide["seconds_left"], wide["seconds_a_step"], wide["origin"]) == (None, None, None)


def test_a_price_is_multiplied_by_the_hours_that_are_left(store, capsys):
    records = [record(configuration(width), 7200.0) for width in (1, 100)]
    Archive(store).working.add(records)
    main(["plan", "selftest_costed", f"--store={store}", "--price-per-hour=1.5", "--json"])
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["seconds_left"], told["cost_left"]) == (4 * 7200.0, 12.0)
    assert main(["plan", "--price-per-hour=-1"]) == 1
    assert "price-per-hour=-1" in capsys.readouterr().err


def test_a_study_without_the_profile_is_named_and_not_planned(store, capsys):
    assert main(["plan", "selftest_costed", f"--store={store}", "--profile=paper"]) == 0
    assert capsys.readouterr().out == "without a paper profile: selftest_costed\n"


def test_a_plan_names_what_a_study_needs(store, capsys):
    main(["plan", "selftest_measure", f"--store={store}"])
    shown = capsys.readouterr().out
    assert "\nselftest_measure" in shown and "\nselftest_training" in shown
    assert "unknown: no record of its kind (the study has no trial to time)" in shown


def test_a_plan_may_time_the_kinds_of_which_runs_are_missing(store, monkeypatch, capsys):
    timed = []

    def spent(study, given, steps, device):
        timed.append(given["width"])
        return timing._Trial(3.0 + 2.0 * steps)

    monkeypatch.setattr(timing, "_spent", spent)
    Archive(store).working.add([record(configuration(1, seed), 20.0) for seed in range(3)])
    arguments = ["plan", "selftest_costed", f"--store={store}", "--json", "--measure"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    narrow, wide = json.loads(captured.out)[0]["kinds"]
    assert set(timed) == {100} and "timing selftest_costed: wide" in captured.err
    assert narrow["origin"] == "records, 1 thread"
    # Each run has ten steps of 2 s, and takes 3 s besides.
    assert wide["seconds_left"] == 3 * (3.0 + 10 * 2.0)


def test_a_kept_timing_stands_in_where_there_is_no_record(store, monkeypatch, committed, capsys):
    monkeypatch.setattr(
        timing, "_spent", lambda study, given, steps, device: timing._Trial(2.0 * steps)
    )
    assert main(["plan", "selftest_costed", "--save"]) == 1
    assert "--save keeps what --measure or --check found" in capsys.readouterr().err
    main(["plan", "selftest_costed", f"--store={store}", "--measure", "--save"])
    capsys.readouterr()
    assert {(one.kind, one.seconds) for one in kept_timings()} == {("narrow", 1.0), ("wide", 1.0)}
    found = plan(store)
    assert [kind.seconds for kind in found.kinds] == [60.0, 60.0]
    assert found.kinds[0].timing.origin.startswith("timed, ")
    Archive(store).working.add([record(configuration(1), 60.0)])
    assert [kind.seconds for kind in plan(store).kinds] == [180.0, 60.0]
    # A record of another machine does not count for this one where there is a timing of this one.
    Archive(store).working.add([record(configuration(1), 60.0, device="cuda:0 (another)")])
    assert [kind.seconds for kind in plan(store).kinds] == [60.0, 60.0]


@pytest.mark.parametrize("text", ["{", "[{}]", '[{"study": 1}]', "7"])
def test_a_damaged_file_of_timings_is_named(root, store, text, capsys):
    (root / "results" / "timings.json").write_text(text)
    assert main(["plan", "selftest_costed", f"--store={store}"]) == 1
    told = capsys.readouterr().err
    assert "timings.json is damaged" in told and told.count("\n") == 1


def test_a_dry_run_prints_the_plan_and_runs_nothing(store, log, capsys):
    arguments = ["study", "run", "selftest_measure", f"--store={store}", "--dry-run"]
    assert main(arguments) == 0
    assert "Nothing was run." in capsys.readouterr().out
    assert log() == [] and not (store / "records").exists()


def test_every_finished_study_is_planned_without_an_unknown(monkeypatch):
    monkeypatch.delenv("PAPERKIT_ROOT")
    finished = 0
    for name in study_names():
        published = len(Archive().published.records(name))
        if published and not name.startswith("selftest"):
            found = plan(None, name)
            if published >= found.runs:  # kinds that were never run have no seconds
                finished += 1
                assert found.runs and not found.unknown, name
    assert finished > 10


def test_the_words_of_a_duration_are_in_the_unit_that_a_reader_takes():
    shown = [plan_text.duration(s) for s in (0, 89, 95, 5399, 5400, 36000, 36e5)]
    assert shown == ["0 s", "89 s", "2 min", "90 min", "1.5 h", "10 h", "1,000 h"]


def test_the_command_has_a_help_text_with_examples(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["plan", "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: paperkit plan") and "--price-per-hour" in shown
    assert "examples:\n" in shown


# --- the progress bar -----------------------------------------------------------------------------


@pytest.fixture
def outlook(store, monkeypatch):
    """Two kinds, of which a run takes 1 and 100 seconds by the records of another seed."""
    study = study_named("selftest_costed")
    Archive(store).working.add(
        [record(configuration(1, 7), 1.0), record(configuration(100, 7), 100.0)]
    )
    clock = [0.0]
    monkeypatch.setattr("paperkit.experiments.outlook.time.monotonic", lambda: clock[0])
    session = Session(Archive(store), "laptop", CPU)
    return Outlook(session, study, configurations(study, "laptop")), clock


def test_the_time_that_is_left_is_that_of_the_kinds_and_not_of_a_count(outlook):
    left, clock = outlook
    assert left.seconds() == (pytest.approx(303.0), 0)
    for seed in range(3):
        clock[0] += 1.0
        left.finished(record(configuration(1, seed), 1.0))
    # The finished half of the runs is a hundredth of the work.
    assert left.seconds() == (pytest.approx(300.0), 0)
    assert str(left).startswith("5 min left, until ")


def test_what_is_observed_takes_the_place_of_what_was_recorded(outlook):
    left, clock = outlook
    clock[0] += 2.0
    left.finished(record(configuration(1), 2.0))
    assert left.seconds() == (pytest.approx(2 * 2.0 + 300.0), 0)
    # Runs go on two at a time: four seconds of work took two by the clock.
    clock[0] += 0.0
    left.finished(record(configuration(1, 1), 2.0))
    assert left.seconds() == (pytest.approx((2.0 + 300.0) / 2), 0)


def test_a_kind_that_was_never_timed_is_told_and_not_guessed(store):
    study = study_named("selftest_costed")
    left = Outlook(Session(Archive(store), "laptop", CPU), study, configurations(study, "laptop"))
    assert left.seconds() == (0.0, 6)
    assert str(left) == "no run of its kind was timed yet"
    left.finished(record(configuration(1), 1.0))
    assert left.seconds()[1] == 3
    assert str(left).endswith(" left, and 3 runs of unknown length")


def test_the_runs_that_a_run_needs_are_left_too(store):
    study = study_named("selftest_measure")
    session = Session(Archive(store), "laptop", CPU)
    left = Outlook(session, study, configurations(study, "laptop"))
    assert left.seconds() == (0.0, 6 + 3)
    (first,) = run_study("selftest_training", "smoke", store, progress=False)
    own = replace(first, profile="laptop")
    session.archive.working.add([own])
    left.finished(own)
    assert left.seconds()[1] == 6


def test_the_bar_tells_what_is_left(store, capfd):
    run_study("selftest_costed", "laptop", store)
    shown = capfd.readouterr().err
    assert "0/6 runs" in shown and "no run of its kind was timed yet" in shown and "done" in shown


# --- the check of a projection --------------------------------------------------------------------


def test_a_projection_is_held_against_a_run_in_an_empty_store(store, committed, capsys):
    assert main(["plan", "selftest_costed", "--check", f"--store={store}"]) == 1
    assert "is not known, so that there is no projection to check" in capsys.readouterr().err
    Archive().published.add([record(configuration(width, 7), 20.0) for width in (1, 100)])
    assert main(["plan", "selftest_costed", "--check", "--save"]) == 0
    assert "6 runs took" in capsys.readouterr().out
    (kept,) = kept_projections()
    assert (kept.study, kept.runs, kept.projected) == ("selftest_costed", 6, 120.0)
    assert kept.factor == pytest.approx(kept.taken / 120.0) and kept.factor < 1
    assert kept.origins == [f"2 records, 1 thread on {HERE}"]
    assert not (store / "records").exists()  # the store of the check was thrown away
    assert main(["plan", "--check"]) == 1
    assert "--check runs one study: name it" in capsys.readouterr().err


def test_timings_of_this_device_come_before_those_of_another(store):
    study = study_named("selftest_costed")
    archive = Archive(store)
    archive.working.add([record(configuration(1), 20.0, device="cuda:0 (another)")])
    assert timings_of(study, archive, CPU)["narrow"].device == "cuda:0 (another)"

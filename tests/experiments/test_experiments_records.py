import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from paperkit.experiments import Record, provenance, records_of, run_study
from paperkit.experiments.archive import Archive
from paperkit.experiments.provenance import tree_state
from paperkit.experiments.records import from_json, key_of, plain_metrics, to_json
from paperkit.experiments.study import study_named

RESULTS = Path(__file__).parents[2] / "results"
PROVENANCE = {"date": "2026-01-31T00:00:00.000Z", "dirty": False, "fingerprint": "f"}


def record(seed=0, **changes):
    fields = {"metrics": {"loss": 0.1}, "provenance": PROVENANCE, "profile": "laptop"}
    return Record("study", configuration={"seed": seed}, **{**fields, **changes})


def test_the_key_depends_on_study_and_configuration_and_not_on_the_order_of_its_entries():
    assert key_of("a", {"x": 1, "seed": 0}) == key_of("a", {"seed": 0, "x": 1})
    keys = {key_of("a", {"seed": 0}), key_of("b", {"seed": 0}), key_of("a", {"seed": 1})}
    assert len(keys) == 3


def test_a_record_survives_its_line_of_json_exactly():
    original = record(metrics={"x": 1 / 3, "name": "ü", "list": [1, {"value": 2.5}], "none": None})
    assert from_json(to_json(original), "somewhere") == original


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda text: text[:-5], "it is not JSON. Restore it from git or delete it"),
        (
            lambda text: text.replace('"metrics"', '"metrix"'),
            "unknown field 'metrix'; did you mean 'metrics'?",
        ),
        (lambda text: text.replace('"seed": 0', '"seed": 1'), "its key is not the hash"),
        (lambda text: "[]", r"it is \[\]; give a mapping."),
        (
            lambda text: text.replace('"profile": "laptop", ', ""),
            "the field 'profile' is missing. Restore",
        ),
        (
            lambda text: text.replace('"laptop"', '"labtop"'),
            "unknown profile 'labtop'; did you mean 'laptop'?",
        ),
        (
            lambda text: text.replace('"dirty": false', '"dirty": "no"'),
            "provenance: dirty is 'no'; give true or false.",
        ),
        (
            lambda text: text.replace('"fingerprint": "f"', '"fingerprint": 3'),
            "provenance: fingerprint is 3; give text.",
        ),
        (
            lambda text: text.replace('"date": ', '"data": '),
            "provenance: the field 'date' is missing.",
        ),
        (lambda text: text.replace("0.1", "NaN"), "it holds NaN, and a record holds finite"),
        (lambda text: text.replace("0.1", "-Infinity"), "it holds -Infinity"),
        (lambda text: text.replace("0.1", "1e999"), "it holds 1e999"),
        (lambda text: text.replace("0.1", "9" * 400), "it holds 99999"),
        (lambda text: text.replace("0.1", "[" * 100_000), "it is not JSON"),
        (
            lambda text: text.replace('"metrics": ', '"metrics": {}, "metrics": '),
            "the field 'metrics' is given twice",
        ),
        (lambda text: text.replace('"schema": 1', '"schema": "one"'), "schema is 'one'; it is a"),
    ],
)
def test_a_damaged_line_is_reported_with_file_and_line_number(spoil, sentence, root):
    path = root / "results" / "study.jsonl"
    path.write_text(to_json(record(seed=1)) + "\n" + spoil(to_json(record())) + "\n")
    with pytest.raises(ValueError, match=sentence) as caught:
        records_of("study")
    assert str(caught.value).startswith(f"{path}:2 is damaged: ")
    assert str(caught.value).endswith("run the study again.")


def test_without_pydantic_a_damaged_line_is_refused_as_well(root, monkeypatch):
    monkeypatch.delitem(sys.modules, "paperkit.experiments.record_schema", raising=False)
    monkeypatch.setitem(sys.modules, "pydantic", None)
    line = to_json(record())
    assert from_json(line, "here") == record()
    for old, new, sentence in (
        ('"metrics": {', '"metrics": [], "m": {', "the field 'metrics' is missing or of another"),
        ('"date": ', '"data": ', "provenance: the field 'date' is missing"),
        ("0.1", "NaN", "it holds NaN"),
    ):
        assert old in line
        with pytest.raises(ValueError, match=sentence):
            from_json(line.replace(old, new), "here")


def test_a_record_of_a_later_schema_is_left_alone_and_not_called_damaged(root):
    path = root / "results" / "study.jsonl"
    text = to_json(record()).replace('"schema": 1', '"schema": 2') + "\n"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"is of schema 2, .* install a later version") as caught:
        records_of("study")
    assert "damaged" not in str(caught.value)
    assert "delete" not in str(caught.value)
    assert path.read_text() == text


def test_a_record_without_a_schema_is_of_the_first(root):
    line = to_json(record()).replace(', "schema": 1', "")
    assert "schema" not in line
    assert from_json(line, "here") == record()


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\n"])
def test_marks_of_lines_inside_a_string_cut_no_record(mark, root):
    odd = replace(record(), provenance={**record().provenance, "device": f"cpu{mark}0"})
    published = Archive().published
    published.add([odd, record(seed=1)])
    published.forget("study")
    assert {r.provenance.get("device") for r in published.records("study")} == {f"cpu{mark}0", None}


def test_a_file_that_is_no_text_is_named(root, store):
    path = root / "results" / "study.jsonl"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"study\.jsonl is damaged: its byte 0 is not UTF-8"):
        records_of("study")


def test_a_record_in_the_place_of_another_is_refused_and_says_where_it_belongs(store):
    working = Archive(store).working
    working.add([record()])
    place = working.path("study", record(seed=1).key)
    place.write_bytes(working.path("study", record().key).read_bytes())
    with pytest.raises(ValueError, match=f"move it to .*{record().key}.json"):
        working.records("study")
    assert place.is_file()


def test_the_code_decides_before_the_clock(studies_folder, store, committed, edit, monkeypatch):
    clock = iter([f"2030-01-0{day}T00:00:00.000Z" for day in range(1, 4)])
    monkeypatch.setattr(provenance, "now", lambda: next(clock))
    run_study("selftest_training", "laptop", store, progress=False)
    Archive(store).publish("selftest_training")
    edit("selftest_training.py", '"ordered": True', '"ordered": False')
    monkeypatch.setattr(provenance, "now", lambda: "2026-01-01T00:00:00.000Z")
    new = run_study("selftest_training", "laptop", store, progress=False, rerun=("stale",))
    assert [r.metrics["ordered"] for r in new] == [False] * 3
    Archive(store).publish("selftest_training")
    kept = Archive(store).published.records("selftest_training")
    assert [r.metrics["ordered"] for r in kept] == [False] * 3
    assert {r.provenance["date"][:4] for r in kept} == {"2026"}


def test_a_record_of_another_study_is_reported(root):
    (root / "results" / "other.jsonl").write_text(to_json(record()) + "\n")
    with pytest.raises(ValueError, match=r"other\.jsonl:1 is a record of study 'study'"):
        records_of("other")


def test_metrics_become_plain_numbers():
    metrics = plain_metrics(
        {
            "a": torch.tensor(0.5),
            "b": np.float32(0.25),
            "c": (1, True),
            "d": {"value": np.int64(3)},
        },
        "study",
    )
    assert json.dumps(metrics) == '{"a": 0.5, "b": 0.25, "c": [1, true], "d": {"value": 3}}'


class Measured:
    """A stand-in for a measurement: all that is asked of one is the method."""

    def __init__(self, value, standard_error):
        self.kept = {"value": value, "standard_error": standard_error, "n": 64}
        self.kept |= {"method": "hutchinson", "converged": True}

    def metrics(self):
        return self.kept


class Reported(Measured):
    """A stand-in for a report: measurements by the names of measures."""

    def __init__(self, **measurements):
        self.kept = measurements


def test_a_measurement_goes_into_a_record_whole():
    trace = Measured(torch.tensor(2.0, dtype=torch.float64, device="cpu"), None)
    by_layer = {"conv": Measured(1.0, 0.1), "fc": [Measured(3.0, 0.2)]}
    metrics = plain_metrics({"trace": trace, "layers": by_layer}, "study")
    rest = {"n": 64, "method": "hutchinson", "converged": True}
    assert metrics == {
        "trace": {"value": 2.0, "standard_error": None, **rest},
        "layers": {
            "conv": {"value": 1.0, "standard_error": 0.1, **rest},
            "fc": [{"value": 3.0, "standard_error": 0.2, **rest}],
        },
    }
    original = record(metrics=metrics)
    assert from_json(to_json(original), "somewhere") == original


def test_a_report_is_recorded_by_measure():
    report = Reported(trace=Measured(2.0, 0.5), norm=Measured(1.0, None))
    assert plain_metrics(report, "study") == plain_metrics(report.kept, "study")
    assert plain_metrics({"at the end": report}, "study")["at the end"]["trace"]["value"] == 2.0


def test_a_measurement_that_json_cannot_say_is_refused_by_its_place():
    with pytest.raises(ValueError, match=r"the metric study\.trace\.value is nan"):
        plain_metrics({"trace": Measured(float("nan"), None)}, "study")


def test_the_committed_records_are_read_as_they_are_written():
    lines = [line for path in RESULTS.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(lines) > 500
    for line in lines:
        found = from_json(line, "committed")
        assert to_json(found) == line
        assert found.metrics == json.loads(line)["metrics"]


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ([1.0], "returned a list; return a dictionary"),
        ({"a": {"b": float("nan")}}, r"the metric study\.a\.b is nan; record None"),
        ({"a": torch.zeros(2, device="cpu")}, r"the metric study\.a is a Tensor"),
        ({1: 2}, "metric named 1; names are strings"),
    ],
)
def test_metrics_that_json_cannot_say_are_refused(metrics, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        plain_metrics(metrics, "study")


def test_a_failing_write_leaves_the_old_record_and_no_litter(tmp_path, monkeypatch):
    Archive(tmp_path).working.add([record()])

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        Archive(tmp_path).working.add([record(metrics={"loss": 0.2})])
    assert Archive(tmp_path).working.record("study", record().key) == record()
    assert [p.name for p in (tmp_path / "records" / "study").iterdir()] == [f"{record().key}.json"]


def test_a_run_states_where_it_came_from(studies_folder, store, committed):
    (found,) = run_study("selftest_training", "smoke", store, progress=False)
    provenance = found.provenance
    assert provenance["commit"].startswith("0123") and provenance["dirty"] is False
    assert provenance["versions"]["torch"] == str(torch.__version__)
    assert set(provenance["versions"]) == {"python", "torch", "numpy"}
    assert provenance["device"].startswith("cpu (")
    assert provenance["threads"] == torch.get_num_threads()
    assert provenance["seconds"] >= 0
    assert provenance["peak_memory"]["process"] > 10e6
    assert provenance["date"].endswith("Z")
    assert len(provenance["fingerprint"]) == 64
    assert (found.seed, found.profile) == (0, "smoke")
    assert Archive(store).working.record("selftest_training", found.key) == found


def git(folder, *arguments):
    settings = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    subprocess.run(["git", "-C", folder, *settings, *arguments], check=True, capture_output=True)


def test_the_tree_is_dirty_when_code_changes_and_not_when_prose_does(tmp_path):
    assert tree_state(tmp_path).dirty is None
    (tmp_path / "paperkit").mkdir()
    (tmp_path / "paperkit" / "a.py").write_text("a = 1\n")
    (tmp_path / "book.md").write_text("one\n")
    git(tmp_path, "init")
    assert tree_state(tmp_path).commit is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    assert tree_state(tmp_path).dirty is False
    (tmp_path / "book.md").write_text("two\n")
    assert tree_state(tmp_path).dirty is False
    (tmp_path / "paperkit" / "b.py").write_text("b = 1\n")
    assert tree_state(tmp_path).dirty is True
    (tmp_path / "paperkit" / "b.py").unlink()
    (tmp_path / "paperkit" / "a.py").write_text("a = 2\n")
    assert tree_state(tmp_path).dirty is True
    assert tree_state(tmp_path / "paperkit").commit is None


def test_the_tree_is_this_one_whatever_repository_a_hook_names(tmp_path, monkeypatch):
    ours, other = tmp_path / "ours", tmp_path / "other"
    for folder in (ours, other):
        for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", folder.name]):
            identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
            folder.mkdir(exist_ok=True)
            subprocess.run(["git", "-C", str(folder), *identity, *command], check=True)
    before = tree_state(ours)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert before.commit is not None
    assert tree_state(ours) == before


def test_publishing_again_changes_no_byte(studies_folder, store, committed):
    run_study("selftest_training", "laptop", store, progress=False)
    assert Archive(store).publish("selftest_training").changed == 3
    assert Archive(store).publish("selftest_training").changed == 0
    before = Archive().published.path("selftest_training").read_bytes()
    keys = [json.loads(line)["key"] for line in before.splitlines()]
    assert keys == sorted(keys)
    Archive(store).publish("selftest_training")
    Archive(store.parent / "another store").publish("selftest_training")
    assert Archive().published.path("selftest_training").read_bytes() == before


def test_publishing_merges_with_what_was_published(studies_folder, store, committed):
    run_study("selftest_training", "laptop", store, progress=False)
    Archive(store).publish("selftest_training")
    other = store.parent / "other"
    run_study("selftest_training", "paper", other, progress=False)
    done = Archive(other).publish("selftest_training")
    assert (done.total, done.changed) == (4, 1)
    assert len(records_of("selftest_training", "paper", other)) == 4


def test_publishing_waits_for_who_is_at_the_same_file_and_loses_none_of_its_records(root):
    first, second = record(seed=0), record(seed=1)
    archive = Archive()
    assert archive.published.records("study") == []
    with ThreadPoolExecutor(1) as pool, Archive().published.lock("study"):
        waiting = pool.submit(archive.published.add, [first])
        time.sleep(0.3)  # time enough to write, if it did not wait
        assert not archive.published.path("study").exists()
        Archive().published.add([second])
    waiting.result(60)
    assert {r.seed for r in Archive().published.records("study")} == {0, 1}


def test_the_shelves_are_asked_alike(root, store):
    for shelf in (Archive(store).working, Archive(store).published):
        old, new = record(), record(metrics={"loss": 0.2})
        other = record(seed=1)
        assert shelf.record("study", old.key) is None
        assert shelf.records("study") == []
        shelf.add([old, other])
        shelf.add([new])
        assert shelf.record("study", old.key) == new
        assert shelf.records("study") == sorted([new, other], key=lambda r: r.key)
        assert shelf.checkpoint("study", old.key).name == f"{old.key}.pt"


def test_staleness_is_a_question_to_the_archive(studies_folder, store, edit):
    run_study("selftest_training", "laptop", store, progress=False)
    study, archive = study_named("selftest_training"), Archive(store)
    assert not any(archive.is_stale(study, r) for r in archive.records(study.name))
    edit("selftest_training.py", '"ordered": True', '"ordered": False')
    later, edited = Archive(store), study_named("selftest_training")
    assert all(later.is_stale(edited, r) for r in later.records(study.name))
    # An archive judges by the code that it began with.
    assert not any(archive.is_stale(edited, r) for r in archive.records(study.name))


def test_publishing_leaves_smoke_records_out(studies_folder, store, committed):
    run_study("selftest_training", "smoke", store, progress=False)
    with pytest.raises(ValueError, match="has no laptop or paper record"):
        Archive(store).publish("selftest_training")


def test_publishing_refuses_records_of_uncommitted_code_unless_told(
    studies_folder, store, uncommitted
):
    run_study("selftest_training", "laptop", store, progress=False)
    with pytest.raises(ValueError, match=r"3 of 3 records .* come from uncommitted code; commit"):
        Archive(store).publish("selftest_training")
    assert not Archive().published.path("selftest_training").exists()
    assert Archive(store).publish("selftest_training", allow_dirty=True).total == 3


def test_a_clean_record_is_preferred_to_a_later_dirty_one(studies_folder, store, committed, root):
    run_study("selftest_training", "laptop", store, progress=False)
    Archive(store).publish("selftest_training")
    for found in records_of("selftest_training", "laptop", store):
        later = {**found.provenance, "dirty": True, "date": "2999-01-01T00:00:00.000Z"}
        Archive(store).working.add([replace(found, provenance=later)])
    assert all(found.clean for found in records_of("selftest_training", "laptop", store))
    assert Archive(store).publish("selftest_training").changed == 0


def test_records_come_in_the_order_of_the_grid(studies_folder, store):
    run_study("selftest_measure", "laptop", store, progress=False)
    found = records_of("selftest_measure", "laptop", store)
    assert [(r.seed, r.configuration["part"]) for r in found] == [
        (seed, part) for seed in range(3) for part in ("small", "large")
    ]


def test_a_checkpoint_is_published_only_beside_its_record(studies_folder, store, committed):
    (found, *_) = run_study("selftest_training", "laptop", store, progress=False)
    with pytest.raises(ValueError, match=r"has no published record .* publish it first"):
        Archive(store).publish_checkpoint("selftest_training", found.key)
    Archive(store).publish("selftest_training")
    empty = Archive(store.parent / "empty")
    with pytest.raises(FileNotFoundError, match="run the study in this store first"):
        empty.publish_checkpoint("selftest_training", found.key)
    path = Archive(store).publish_checkpoint("selftest_training", found.key)
    before = path.read_bytes()
    assert empty.publish_checkpoint("selftest_training", found.key) == path
    assert path.read_bytes() == before


def test_the_checkpoint_of_another_run_is_not_published(studies_folder, store, committed):
    (found, *_) = run_study("selftest_training", "laptop", store, progress=False)
    archive = Archive(store)
    archive.publish("selftest_training")
    archive.working.checkpoint("selftest_training", found.key).write_bytes(b"another")
    with pytest.raises(FileNotFoundError, match="is another run's than that of the published"):
        archive.publish_checkpoint("selftest_training", found.key)


def test_a_damaged_file_in_the_store_is_named(tmp_path):
    working = Archive(tmp_path).working
    working.add([record()])
    path = working.path("study", record().key)
    path.write_text("{")
    with pytest.raises(ValueError, match=f"{record().key}.json is damaged"):
        working.record("study", record().key)

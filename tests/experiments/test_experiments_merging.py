"""Stores of several machines become one."""

import json
import shutil
from dataclasses import replace

import pytest

from paperkit.cli import main
from paperkit.experiments import merge, provenance, run_study
from paperkit.experiments.archive import Archive
from paperkit.experiments.provenance import TreeState

STUDY = "selftest_training"

pytestmark = pytest.mark.usefixtures("studies_folder")


def contents(store):
    """Return the bytes of every record and checkpoint."""
    folders = [store / name for name in ("records", "checkpoints")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(store): path.read_bytes() for path in files}


def shared_out(store, root):
    """Share out the runs of a store to two, of which one run is in both."""
    parts = [root / "first", root / "second"]
    records = Archive(store).working.records(STUDY)
    for part, own in zip(parts, (records[:2], records[1:]), strict=True):
        shelf = Archive(part).working
        shelf.add(own)
        for record in own:
            path = shelf.checkpoint(STUDY, record.key)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(Archive(store).checkpoint_of(record), path)
    return parts


def test_two_stores_give_their_union_in_either_order(store, root, committed):
    run_study(STUDY, "laptop", store, progress=False)
    first, second = shared_out(store, root)
    one, other = root / "one", root / "other"
    assert (merge(first, one).added, merge(second, one).added) == (2, 1)
    assert (merge(second, other).added, merge(first, other).kept) == (2, 1)
    assert contents(one) == contents(other) == contents(store)
    again = merge(first, one)
    assert (again.added, again.replaced, again.kept, again.conflicts) == (0, 0, 2, ())


def test_a_merged_store_needs_no_run(store, root, committed, log):
    run_study(STUDY, "laptop", store, progress=False)
    merge(store, root / "here")
    run_study("selftest_measure", "laptop", root / "here", progress=False)
    assert "training" not in (root / "here" / "log").read_text()


def test_records_that_disagree_are_reported_and_neither_is_overwritten(
    store, root, committed, capsys
):
    run_study(STUDY, "laptop", store, progress=False)
    merge(store, root / "here")
    changed = Archive(root / "here").working.records(STUDY)[1]
    wrong = replace(changed, metrics={**changed.metrics, "total": 99.0})
    Archive(root / "here").working.add([wrong])
    before = contents(root / "here"), contents(store)
    assert main(["study", "merge", str(store), "--store", str(root / "here")]) == 1
    told = capsys.readouterr().out
    assert f"conflict in {STUDY}: " in told and f"{changed.key}.json" in told
    assert "0 records are new, 0 replaced older or lesser ones, 2 were here already" in told
    assert (contents(root / "here"), contents(store)) == before


def test_the_record_of_present_code_replaces_a_stale_one_with_its_checkpoint(
    store, root, committed, edit
):
    run_study(STUDY, "laptop", root / "here", progress=False)
    edit("selftest_training.py", "noise[step]}", "2 * noise[step]}")
    new = run_study(STUDY, "laptop", store, progress=False)
    assert merge(store, root / "here").replaced == 3
    archive = Archive(root / "here")
    for record in new:
        assert archive.working.record(STUDY, record.key) == record
        state = json.loads(archive.checkpoint_of(record).read_text())
        assert state["total"] == record.metrics["total"]
    assert merge(root / "here", store).kept == 3  # the stale ones are no more anywhere


def test_runs_in_a_copy_of_the_tree_are_vouched_for_by_the_same_code(
    store, root, monkeypatch, edit
):
    monkeypatch.setattr(provenance, "tree_state", lambda: TreeState(None, None))
    made = run_study(STUDY, "laptop", store, progress=False)
    assert not any(record.clean for record in made)
    monkeypatch.setattr(provenance, "tree_state", lambda: TreeState("abc", True))
    assert merge(store, root / "uncommitted").vouched == 0
    monkeypatch.setattr(provenance, "tree_state", lambda: TreeState("abc", False))
    assert merge(store, root / "here").vouched == 3
    kept = Archive(root / "here").working.records(STUDY)
    assert all(r.clean and r.provenance["commit"] == "abc" for r in kept)
    edit("selftest_training.py", '"ordered": True', '"ordered": False')
    assert merge(store, root / "later").vouched == 0


def test_the_command_tells_of_copies_of_the_tree_where_there_are_any(
    store, root, monkeypatch, capsys
):
    monkeypatch.setattr(provenance, "tree_state", lambda: TreeState(None, None))
    run_study(STUDY, "laptop", store, progress=False)
    monkeypatch.setattr(provenance, "tree_state", lambda: TreeState("abc", False))
    assert main(["study", "merge", str(store), "--store", str(root / "here")]) == 0
    assert "3 come from a tree without git" in capsys.readouterr().out
    assert main(["study", "merge", str(root / "here"), "--store", str(root / "more")]) == 0
    assert "git" not in capsys.readouterr().out


def test_what_is_no_other_store_is_refused(store, root, tmp_path):
    with pytest.raises(ValueError, match="holds no records: name a working store"):
        merge(tmp_path / "nothing", store)
    with pytest.raises(ValueError, match="is the store itself"):
        merge(store, store)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match="is no folder"):
        merge(file, store)

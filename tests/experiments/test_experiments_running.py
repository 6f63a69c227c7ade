import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from paperkit.experiments import archive, records_of, run_study
from paperkit.experiments.archive import Archive
from paperkit.experiments.records import key_of
from paperkit.experiments.session import Session
from paperkit.experiments.study import Study, study_named, study_names

CHILD = """
import signal, sys
# A shell that starts the tests in the background has its children ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from paperkit.experiments import run_study, studies
studies.__path__.append(sys.argv[1])
run_study("selftest_training", "laptop", sys.argv[2], progress=False)
"""


# Seconds by the clock after which a process counts as hanging, also beside much other work.
HANGS = 900


def start_child(studies_folder, store):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", CHILD, str(studies_folder), str(store)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def wait_for(path, child):
    deadline = time.monotonic() + HANGS
    while not path.exists():
        assert child.poll() is None, child.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_studies_are_discovered_by_the_names_of_their_modules(studies_folder):
    assert {"selftest_measure", "selftest_training"} <= set(study_names())
    assert "selftest_parts" not in study_names()
    assert study_named("selftest_measure").needs == ("selftest_training",)


def test_a_misspelt_study_is_refused_with_the_nearest_name(studies_folder):
    with pytest.raises(ValueError, match="did you mean 'selftest_measure'"):
        run_study("selftest_mesure", "smoke")


def test_a_profile_that_a_study_does_not_have_is_refused_in_a_sentence(studies_folder, store):
    with pytest.raises(ValueError, match="has no paper profile: choose smoke or laptop"):
        run_study("selftest_costed", "paper", store)
    assert not (store / "records").exists()


def test_a_module_that_names_its_study_otherwise_is_refused(studies_folder, edit):
    edit("selftest_training.py", 'Study("selftest_training"', 'Study("other"')
    with pytest.raises(ValueError, match='must define STUDY = Study\\(name="selftest_training"'):
        study_named("selftest_training")


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_study_repeats_nothing_that_was_finished(stop, studies_folder, store, log):
    (store / "disturb").write_text("hang")
    child = start_child(studies_folder, store)
    wait_for(store / "hanging", child)
    child.send_signal(stop)
    child.wait(timeout=HANGS)
    assert child.returncode != 0
    assert log() == ["training 0 from step 0", "training 1 from step 0"]
    (store / "disturb").unlink()
    assert start_child(studies_folder, store).wait(timeout=HANGS) == 0
    assert log()[2:] == ["training 1 from step 2", "training 2 from step 0"]
    totals = {r.seed: r.metrics["total"] for r in records_of("selftest_training", store=store)}
    fresh = run_study("selftest_training", "laptop", store / "elsewhere", progress=False)
    assert totals == {record.seed: record.metrics["total"] for record in fresh}


def test_an_exception_loses_only_its_own_run(studies_folder, store, log):
    (store / "disturb").write_text("raise")
    with pytest.raises(RuntimeError, match="disturbed"):
        run_study("selftest_training", "laptop", store, progress=False)
    (store / "disturb").unlink()
    records = run_study("selftest_training", "laptop", store, progress=False)
    assert [record.provenance["resumed"] for record in records] == [False, True, False]
    assert log()[2:] == ["training 1 from step 2", "training 2 from step 0"]


def test_a_second_start_runs_nothing_and_says_nothing(studies_folder, store, log, capfd):
    first = run_study("selftest_training", "laptop", store, progress=False)
    before = log()
    capfd.readouterr()
    assert run_study("selftest_training", "laptop", store) == first
    assert log() == before
    assert capfd.readouterr() == ("", "")


def test_published_records_count_as_finished(studies_folder, store, committed, root, log):
    run_study("selftest_training", "laptop", store, progress=False)
    Archive(store).publish("selftest_training")
    other = root / "empty"
    assert len(run_study("selftest_training", "laptop", other, progress=False)) == 3
    assert not other.exists()


def test_a_smoke_run_starts_from_nothing_and_counts_for_nothing_else(
    studies_folder, store, committed, log
):
    run_study("selftest_training", "smoke", store, progress=False)
    (record,) = records_of("selftest_training", "smoke", store)
    assert record.profile == "smoke"
    assert records_of("selftest_training", "laptop", store) == []
    run_study("selftest_training", "laptop", store, progress=False)
    assert log().count("training 0 from step 0") == 2
    Archive(store).publish("selftest_training")
    run_study("selftest_training", "smoke", store.parent / "fresh", progress=False)
    assert (store.parent / "fresh" / "log").is_file()


def test_a_checkpoint_of_other_code_is_not_resumed(studies_folder, store, edit, log):
    (store / "disturb").write_text("raise")
    with pytest.raises(RuntimeError):
        run_study("selftest_training", "laptop", store, progress=False)
    (store / "disturb").unlink()
    edit("selftest_training.py", '"ordered": True', '"ordered": False')
    run_study("selftest_training", "laptop", store, progress=False)
    assert log()[2:] == ["training 1 from step 0", "training 2 from step 0"]


def test_a_checkpoint_of_uncommitted_code_is_not_resumed_by_committed_code(
    studies_folder, store, uncommitted, log, request
):
    (store / "disturb").write_text("raise")
    with pytest.raises(RuntimeError):
        run_study("selftest_training", "laptop", store, progress=False)
    (store / "disturb").unlink()
    request.getfixturevalue("committed")
    run_study("selftest_training", "laptop", store, progress=False)
    assert log()[2] == "training 1 from step 0"


def test_a_measurement_runs_the_training_that_it_needs_first(studies_folder, store, log):
    records = run_study("selftest_measure", "smoke", store, progress=False)
    assert log() == ["training 0 from step 0", "measuring small 0", "measuring large 0"]
    assert [record.metrics["gap"] for record in records] == [0.0, 0.0]
    key = key_of("selftest_training", {"steps": 4, "seed": 0})
    assert records[0].provenance["inputs"] == {key: "selftest_training"}
    assert Archive(store).working.path("selftest_training", key).is_file()


def test_the_time_of_a_needed_run_is_not_the_measurements(studies_folder, store, edit):
    edit("selftest_training.py", "    _disturb(", "    time.sleep(0.5)\n        _disturb(")
    started = time.monotonic()
    measurements = run_study("selftest_measure", "smoke", store, progress=False)
    elapsed = time.monotonic() - started
    (training,) = records_of("selftest_training", "smoke", store)
    assert training.provenance["seconds"] >= 4 * 0.5
    # Spans that do not overlap add up to no more than the whole, however busy the machine is.
    spans = [one.provenance["seconds"] for one in (training, *measurements)]
    assert sum(spans) <= elapsed + 0.001 * len(spans)  # each is rounded


def test_a_missing_checkpoint_is_made_again_although_its_record_is_published(
    studies_folder, store, committed, root, log
):
    run_study("selftest_training", "laptop", store, progress=False)
    Archive(store).publish("selftest_training")
    other = root / "other"
    run_study("selftest_measure", "laptop", other, progress=False)
    trained = [line for line in (other / "log").read_text().splitlines() if "training" in line]
    assert trained == [f"training {seed} from step 0" for seed in range(3)]


def test_a_published_checkpoint_is_found(studies_folder, store, committed, root):
    run_study("selftest_training", "laptop", store, progress=False)
    Archive(store).publish("selftest_training")
    for record in records_of("selftest_training", "laptop"):
        Archive(store).publish_checkpoint("selftest_training", record.key)
    other = root / "other"
    run_study("selftest_measure", "laptop", other, progress=False)
    assert "training" not in (other / "log").read_text()


def test_a_half_made_checkpoint_beside_a_published_record_is_not_measured(
    studies_folder, store, committed, root
):
    run_study("selftest_training", "laptop", store, progress=False)
    Archive(store).publish("selftest_training")
    other = root / "other"
    key = key_of("selftest_training", {"steps": 4, "seed": 0})
    path = Archive(other).working.checkpoint("selftest_training", key)
    path.parent.mkdir(parents=True)
    path.write_text('{"step": 1, "total": 99.0}')
    records = run_study("selftest_measure", "laptop", other, progress=False)
    assert {record.metrics["gap"] for record in records} == {0.0}


def test_of_two_checkpoints_the_one_of_the_preferred_record_is_measured(
    studies_folder, store, committed, root
):
    run_study("selftest_training", "laptop", store, progress=False)
    Archive(store).publish("selftest_training")
    for record in records_of("selftest_training", "laptop"):
        Archive(store).publish_checkpoint("selftest_training", record.key)
    # A later run of uncommitted code, with a checkpoint of its own, counts for less.
    later = Archive(root / "later")
    for record in records_of("selftest_training", "laptop"):
        provenance = {**record.provenance, "dirty": True, "date": "2999-01-01T00:00:00.000Z"}
        later.working.add([replace(record, provenance=provenance)])
        path = later.working.checkpoint("selftest_training", record.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"step": 4, "total": 99.0}')
    records = run_study("selftest_measure", "laptop", root / "later", progress=False)
    assert {record.metrics["gap"] for record in records} == {0.0}


def test_a_run_that_another_process_is_at_is_waited_for_and_not_repeated(store):
    began, may_end, calls = threading.Event(), threading.Event(), []

    def run(configuration, context):
        calls.append(configuration["seed"])
        began.set()
        assert may_end.wait(HANGS)
        return {"x": 1.0}

    study = Study("any", "?", lambda profile: [{"seed": 0}], run)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run_study, study, "smoke", store, progress=False)
        assert began.wait(HANGS)
        second = pool.submit(run_study, study, "smoke", store, progress=False)
        time.sleep(0.5)  # time enough to begin the run a second time
        may_end.set()
        assert first.result(HANGS) == second.result(HANGS)
    assert calls == [0]


def test_a_study_that_is_not_among_the_needs_is_refused(studies_folder, store, edit):
    edit("selftest_measure.py", 'needs=("selftest_training",)', "needs=()")
    with pytest.raises(ValueError, match=r"add it to needs=\('selftest_training',\)"):
        run_study("selftest_measure", "smoke", store, progress=False)


def test_a_stale_training_record_is_no_ground_for_a_fresh_measurement(
    studies_folder, store, edit, log
):
    run_study("selftest_training", "laptop", store, progress=False)
    edit("selftest_training.py", '"ordered": True', '"ordered": False')
    with pytest.raises(ValueError, match="stale: run `paperkit audit selftest_training`"):
        run_study("selftest_measure", "laptop", store, progress=False)
    run_study("selftest_measure", "laptop", store, progress=False, rerun=["stale"])
    assert [log().count(f"training {seed} from step 0") for seed in range(3)] == [2, 2, 2]


def test_dirty_runs_are_repeated_on_request(studies_folder, store, uncommitted, log, request):
    run_study("selftest_training", "laptop", store, progress=False)
    request.getfixturevalue("committed")
    assert not any(
        record.clean for record in run_study("selftest_training", "laptop", store, progress=False)
    )
    again = run_study("selftest_training", "laptop", store, progress=False, rerun=["dirty"])
    assert all(record.clean and not record.provenance["resumed"] for record in again)
    assert len(log()) == 6


def test_a_clean_measurement_of_a_dirty_training_is_dirty(
    studies_folder, store, uncommitted, request
):
    run_study("selftest_training", "laptop", store, progress=False)
    request.getfixturevalue("committed")
    records = run_study("selftest_measure", "laptop", store, progress=False)
    assert not any(record.clean for record in records)


def test_an_unknown_engine_is_refused_with_a_sentence(studies_folder, store):
    with pytest.raises(ValueError, match="engine='slurm' is unknown: choose one of in-process"):
        run_study("selftest_training", "smoke", store, engine="slurm")


def test_an_unknown_profile_is_refused_with_a_sentence(studies_folder, store):
    with pytest.raises(ValueError, match=r"profile='labtop' is unknown .*'laptop'"):
        run_study("selftest_training", "labtop", store)


@pytest.mark.parametrize(
    ("configuration", "sentence"),
    [
        ({"n": 1}, "needs an integer 'seed'"),
        ({"seed": True}, "needs an integer 'seed'"),
        ({"seed": 0, "widths": [1, 2]}, "'widths' in a configuration .* is a list"),
        ({"seed": 0, "alpha": float("inf")}, "'alpha' .* is inf; give a finite number"),
    ],
)
def test_a_configuration_that_is_not_plain_is_refused(configuration, sentence, store):
    study = Study("any", "?", lambda profile: [configuration], lambda c, context: {})
    with pytest.raises((ValueError, TypeError), match=sentence):
        run_study(study, "smoke", store)


def test_a_configuration_that_is_listed_twice_is_refused(store):
    study = Study("any", "?", lambda profile: [{"seed": 0}, {"seed": 0}], lambda c, context: {})
    with pytest.raises(ValueError, match="twice at the smoke profile"):
        run_study(study, "smoke", store)


def test_a_run_is_seeded_and_leaves_the_global_generator_alone(studies_folder, store, edit):
    import torch

    edit("selftest_training.py", '"ordered": True', '"ordered": torch.rand((), device="cpu")')
    torch.manual_seed(5)
    expected = torch.rand((), device="cpu").item()
    torch.manual_seed(5)
    first = run_study("selftest_training", "smoke", store, progress=False)
    assert torch.rand((), device="cpu").item() == expected
    again = run_study("selftest_training", "smoke", store / "again", progress=False)
    assert first[0].metrics == again[0].metrics


def test_nothing_is_written_to_results_by_running(studies_folder, store):
    run_study("selftest_training", "laptop", store, progress=False)
    assert not Archive().published.path("selftest_training").exists()


def test_what_is_finished_stays_until_its_successor_is(studies_folder, store, committed, edit):
    before = run_study("selftest_training", "laptop", store, progress=False)
    edit("selftest_training.py", '"ordered": True', '"ordered": False')
    (store / "disturb").write_text("raise")
    with pytest.raises(RuntimeError, match="disturbed"):
        run_study("selftest_training", "laptop", store, progress=False, rerun=["stale"])
    archive = Archive(store)
    found = archive.working.records("selftest_training")
    assert [r.metrics["ordered"] for r in sorted(found, key=lambda r: r.seed)] == [
        False,
        True,
        True,
    ]
    # The records that are left still have the checkpoints of their own runs.
    for record in (r for r in found if r.metrics["ordered"]):
        state = json.loads(archive.checkpoint_of(record).read_text())
        assert state == {"step": 4, "total": record.metrics["total"]}
    (store / "disturb").unlink()
    after = run_study("selftest_training", "laptop", store, progress=False, rerun=["stale"])
    assert [r.metrics["total"] for r in after] == [r.metrics["total"] for r in before]
    assert litter(store) == []


def litter(store):
    """List what no finished run should leave: checkpoints and notes under way, partial files."""
    unfinished = [path for path in (store / "unfinished").rglob("*") if path.is_file()]
    return unfinished + [path for path in store.rglob(".*") if path.is_file()]


@pytest.mark.parametrize("moment", ["before the record", "before the checkpoint"])
def test_a_run_killed_while_it_is_put_away_is_whole_afterwards(
    moment, studies_folder, store, committed, monkeypatch, log
):
    class KilledError(Exception):
        pass

    def kill(*arguments):
        raise KilledError

    with monkeypatch.context() as killed, pytest.raises(KilledError):
        if moment == "before the record":
            killed.setattr(archive.WorkingStore, "add", kill)
        else:
            replace_file = os.replace
            killed.setattr(
                os,
                "replace",
                lambda old, new: (kill if str(new).endswith(".pt") else replace_file)(old, new),
            )
        run_study("selftest_training", "smoke", store, progress=False)
    (record,) = run_study("selftest_training", "smoke", store, progress=False)
    path = Archive(store).checkpoint_of(record)
    assert json.loads(path.read_text())["total"] == record.metrics["total"]
    starts = {"before the record": ["0", "4"], "before the checkpoint": ["0"]}
    assert [line[-1] for line in log()] == starts[moment]  # nothing that was done is done again
    assert litter(store) == []


@pytest.mark.parametrize("asks", [True, False])
def test_a_record_names_the_device_that_its_run_asked_for(asks, store, committed):
    def run(configuration, context):
        return {"asked": str(context.device) if asks else "nothing"}

    study = Study("of_a_device", "Where?", lambda profile: [{"seed": 0}], run)
    # A study that makes its tensors on the CPU must not pass for one of a GPU.
    session = Session(Archive(store), "smoke", torch.device("meta"))
    record = session.record(study, {"seed": 0})
    assert record.metrics["asked"] == ("meta" if asks else "nothing")
    assert record.provenance["device"].split(" ")[0] == ("meta" if asks else "cpu")

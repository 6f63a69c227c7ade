"""Engines: the same records whoever makes them, and nothing lost when something dies."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from paperkit.experiments import Allotment, records_of, run_study
from paperkit.experiments.archive import Archive
from paperkit.experiments.engines import ENGINES, LostWorkersError, cluster
from paperkit.experiments.errand import Errand, receive
from paperkit.experiments.session import Session
from paperkit.experiments.study import Study, study_named

HANGS = 900
"""Seconds by the clock after which a process counts as hanging, also beside much other work."""

DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from paperkit.experiments import Allotment, run_study, studies
studies.__path__.append(sys.argv[1])
if __name__ == "__main__":
    two = Allotment(jobs=2)
    run_study(sys.argv[2], "paper", sys.argv[3], "processes", progress=False, allotment=two)
"""


@pytest.fixture
def driver(studies_folder, store, tmp_path):
    """Start a process that runs a study with two workers."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    started = []

    def start(study="selftest_training"):
        command = [sys.executable, str(script), str(studies_folder), study, str(store)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        child = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, start_new_session=True
        )
        started.append(child)
        return child

    yield start
    for child in started:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stderr.close()


def wait_until(condition, child=None):
    deadline = time.monotonic() + HANGS
    while not condition():
        assert child is None or child.poll() is None, child.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def hanging(store, child):
    """Wait for the worker that hangs, and return its number."""
    path = store / "hanging"
    wait_until(lambda: path.is_file() and path.read_text(), child)
    return int(path.read_text())


def is_alive(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended, and nobody has asked how


def plain(records):
    """Return records without what differs between two runs of the same."""
    kept = ("commit", "dirty", "fingerprint", "inputs", "checkpoint")
    return [
        replace(r, provenance={name: r.provenance[name] for name in kept}, location="")
        for r in records
    ]


def test_every_engine_makes_the_same_records(studies_folder, store, committed, root):
    made = {
        name: run_study("selftest_measure", "laptop", root / name, name, progress=False)
        for name in ENGINES
    }
    first, *others = (plain(records) for records in made.values())
    assert len(first) == 6
    assert all(other == first for other in others)
    cores = len(os.sched_getaffinity(0))
    share = max(1, cores // min(cores, 6))
    assert {r.provenance["threads"] for r in made["processes"]} == {share}
    assert {r.provenance["threads"] for r in made["ray"]} == {1}
    for name in ENGINES:
        kept = [root / name / part / "selftest_training" for part in ("records", "checkpoints")]
        assert [len(list(folder.iterdir())) for folder in kept] == [3, 3]


def test_a_training_that_several_runs_need_is_run_once(studies_folder, store, log, committed):
    run_study(
        "selftest_measure", "paper", store, "processes", progress=False, allotment=Allotment(4)
    )
    trained = [line for line in log() if line.startswith("training")]
    assert sorted(trained) == [f"training {seed} from step 0" for seed in range(4)]


def test_a_cluster_runs_what_is_needed_once_and_first(
    studies_folder, store, committed, monkeypatch
):
    delivered = []

    def noting(session, delivery):
        delivered.append((delivery.record.study, delivery.record.seed))
        receive(session, delivery)

    monkeypatch.setattr(cluster, "receive", noting)
    given = Allotment(jobs=4, cpus=1)
    run_study("selftest_measure", "laptop", store, "ray", progress=False, allotment=given)
    trained = [("selftest_training", seed) for seed in range(3)]
    assert sorted(run for run in delivered if run[0] == "selftest_training") == trained
    assert len(delivered) == 9
    again = run_study("selftest_measure", "laptop", store, "ray", progress=False)
    assert len(again) == 6 and len(delivered) == 9


def test_a_cluster_tells_the_exception_of_a_run(studies_folder, store, committed, edit):
    edit(
        "selftest_training.py",
        "    seed = configuration",
        "    assert configuration['seed'] != 1, 'disturbed'\n    seed = configuration",
    )
    with pytest.raises(AssertionError, match="disturbed"):
        run_study("selftest_training", "laptop", store, "ray", progress=False)
    assert {r.seed for r in records_of("selftest_training", "laptop", store)} <= {0, 2}


def test_without_ray_the_engine_says_what_to_install(studies_folder, store, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'paperkit\[ray\]'"):
        run_study("selftest_training", "laptop", store, "ray", progress=False)


def test_an_exception_lets_the_other_runs_finish(studies_folder, store, log, committed):
    (store / "disturb").write_text("raise")
    with pytest.raises(RuntimeError, match="disturbed"):
        run_study(
            "selftest_training", "paper", store, "processes", progress=False, allotment=Allotment(4)
        )
    assert {r.seed for r in records_of("selftest_training", "paper", store)} == {0, 2, 3}


def test_a_worker_that_is_killed_loses_nothing_but_its_hold(driver, store, log):
    (store / "disturb").write_text("hang")
    child = driver()
    records = Archive(store).working
    wait_until(lambda: len(records.records("selftest_training")) == 3, child)
    worker = hanging(store, child)
    (store / "disturb").unlink()
    os.kill(worker, signal.SIGKILL)
    assert child.wait(HANGS) == 0, child.stderr.read().decode()
    assert [r.seed for r in records_of("selftest_training", "paper", store)] == [0, 1, 2, 3]
    # The run that was killed after two steps went on from there; the others ran once.
    assert sorted(log()) == [
        "training 0 from step 0",
        "training 1 from step 0",
        "training 1 from step 2",
        "training 2 from step 0",
        "training 3 from step 0",
    ]


def test_workers_that_die_again_and_again_end_the_study_in_a_sentence(
    studies_folder, store, edit, committed
):
    edit(
        "selftest_training.py",
        "    seed = configuration",
        "    import os\n\n    os._exit(9)\n    seed = configuration",
    )
    with pytest.raises(LostWorkersError, match=r"3 workers in a row died, .* with fewer jobs"):
        run_study(
            "selftest_training",
            "laptop",
            store,
            "processes",
            progress=False,
            allotment=Allotment(1),
        )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_workers_end_with_their_driver(how, driver, store):
    (store / "disturb").write_text("hang")
    child = driver()
    worker = hanging(store, child)
    os.kill(child.pid, how)
    child.wait(HANGS)
    wait_until(lambda: not is_alive(worker))
    (store / "disturb").unlink()
    assert driver().wait(HANGS) == 0
    assert [r.seed for r in records_of("selftest_training", "paper", store)] == [0, 1, 2, 3]


def test_a_run_elsewhere_leaves_no_folder_and_removes_those_of_killed_runs(
    studies_folder, store, committed, tmp_path, monkeypatch
):
    machine = tmp_path / "machine"
    machine.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(machine))
    for name in ("killed", "living", "anything"):
        (machine / f"paperkit-run-{name}" / "records").mkdir(parents=True)
    (machine / "paperkit-run-killed.lock").touch()
    study = study_named("selftest_many")
    errand = Errand.of(Session(Archive(store), "smoke", torch.device("cpu")), study)
    with FileLock(machine / "paperkit-run-living.lock"):
        delivery = errand.elsewhere(study.name, {"seed": 0}, [])
        left = {path.name for path in machine.iterdir()}
    assert delivery.checkpoint is not None
    assert left - {"paperkit-run-living.lock"} == {"paperkit-run-living", "paperkit-run-anything"}


def test_code_that_changes_while_it_runs_stops_the_study(studies_folder, store, committed, edit):
    def edit_then_begin(perform, pending, jobs):
        edit("selftest_training.py", '"ordered": True', '"ordered": False')
        yield from ENGINES["processes"](perform, pending, jobs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "processes-late", edit_then_begin)
        with pytest.raises(RuntimeError, match="was changed while it ran: start it again"):
            run_study("selftest_training", "laptop", store, "processes-late", progress=False)


def test_a_study_that_no_other_process_can_import_is_refused(store):
    study = Study("any", "?", lambda profile: [{"seed": 0}], lambda configuration, context: {})
    with pytest.raises(ValueError, match="study 'any' cannot be imported by another process"):
        run_study(study, "smoke", store, "processes", progress=False)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"jobs": 0}, "jobs=0"),
        ({"jobs": 1.5}, "jobs=1.5"),
        ({"cpus": -1}, "cpus=-1"),
        ({"gpus": -0.5}, "gpus=-0.5"),
        ({"gpus": float("nan")}, "gpus=nan"),
        ({"memory": "much"}, "memory='much'"),
    ],
)
def test_an_allotment_that_is_none_is_refused(wrong, named):
    with pytest.raises((TypeError, ValueError), match=named):
        Allotment(**wrong)


@pytest.mark.parametrize(
    ("engine", "allotment", "sentence"),
    [
        ("in-process", Allotment(jobs=2), "jobs=2 is nothing that the engine 'in-process' gives"),
        ("in-process", Allotment(gpus=1), "take engine='ray'"),
        ("processes", Allotment(memory=10**9), "memory=1000000000 is nothing that the engine"),
    ],
)
def test_an_engine_refuses_what_it_cannot_give(engine, allotment, sentence, studies_folder, store):
    with pytest.raises(ValueError, match=sentence):
        run_study("selftest_training", "laptop", store, engine, progress=False, allotment=allotment)
    assert not Archive(store).working.records("selftest_training")

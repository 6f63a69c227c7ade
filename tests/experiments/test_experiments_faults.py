"""Studies are killed at random moments, again and again, and end as if nothing had happened.

``pytest tests/experiments/test_experiments_faults.py --faults 100 --cluster -n 0
-o faulthandler_timeout=0 --faults-record results/faults.json`` kills a hundred times in every
engine, and then one of two machines that Ray believes in; chapter 9 shows the counts.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from paperkit.experiments import run_study, studies
from paperkit.experiments.archive import Archive
from paperkit.experiments.engines import ENGINES
from paperkit.experiments.errand import _FOLDER
from paperkit.experiments.provenance import describe, tree_state

STUDY = "selftest_many"
RUNS = 60
STUCK = 300  # seconds
# Processes of Ray's own look once a minute whether their machine is still there.
AGENTS = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")


@pytest.fixture
def start(studies_folder, root):
    """Start a process that runs the study in a store, by an engine.

    The process is a fork of a server that has loaded PyTorch, because loading it anew would take
    most of the time between two kills. It is no fork of pytest: other tests may have begun
    threads, as gRPC does, and a fork of a process with threads may wait for them for ever.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["paperkit.experiments"])

    drivers = []

    def start(store, engine):
        driver = server.Process(target=drive, args=(root, studies_folder, store, engine))
        driver.start()
        drivers.append(driver)
        return driver

    yield start
    for driver in drivers:
        driver.kill()  # pytest would wait at its end for a driver that is stuck


def drive(root, studies_folder, store, engine):
    os.environ["PAPERKIT_ROOT"] = str(root)
    os.environ["SELFTEST_LOG"] = str(store / "log")
    sys.dont_write_bytecode = True
    studies.__path__.append(str(studies_folder))
    run_study(STUDY, "paper", store, engine, progress=False)


def children(process):
    """List the processes that a process has begun: workers, and what Python begins for them."""
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def descendants(process):
    own = children(process)
    return own + [other for child in own for other in descendants(child)]


def ended(processes):
    """Wait until processes have ended that see by themselves that their driver is gone.

    Agents of Ray are ended here, because no run depends on when they do so themselves.
    """
    for process in processes:
        if name_of(process).startswith(AGENTS):
            kill(process)
    until = time.monotonic() + 120
    while any(name_of(process) for process in processes):
        assert time.monotonic() < until, "a process outlives its driver"
        time.sleep(0.01)


def workers(process, engine):
    """List the processes that are at a driver's runs, or ready for them."""
    if engine == "in-process":
        return []
    if engine == "processes":
        return [child for child in children(process) if b"spawn_main" in name_of(child)]
    below = [other for child in children(process) for other in children(child)]
    names = {other: name_of(other) for other in below}
    # Without its agents Ray's machine ends itself, which is the next test.
    return [p for p, n in names.items() if n.startswith(b"ray::") and not n.startswith(AGENTS)]


def name_of(process):
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def kill(victim):
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def plain(records):
    """Return records without what differs between two runs of the same."""
    kept = ("commit", "fingerprint", "inputs", "checkpoint")
    return [
        replace(r, provenance={name: r.provenance[name] for name in kept}, location="")
        for r in records
    ]


def starts(store):
    """List the seeds of the runs that were begun, in their order."""
    path = store / "log"
    return [int(line) for line in path.read_text().splitlines()] if path.is_file() else []


def litter(store):
    """List the files that no finished study leaves."""
    files = [path.relative_to(store) for path in store.rglob("*") if path.is_file()]
    known = ("records", "checkpoints", "locks", "log")
    return [path for path in files if path.parts[0] not in known or path.name.startswith(".")]


def finished(store):
    """Return the bytes of every record, by its name."""
    return {path.name: path.read_bytes() for path in (store / "records" / STUDY).glob("*.json")}


def folders_of_runs():
    """List the stores of single runs on this machine, which Ray's workers have."""
    return {p for p in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*") if p.suffix != ".lock"}


def place(*stores):
    """Say what stores tell of the moment at which they are looked at."""
    paths = {path for store in stores for path in files_of(store)}
    if any(path.suffix == ".partial" for path in paths):
        return "a file half written"
    unfinished = [path for path in paths if path.parts[-3] == "unfinished"]
    begun = [path for path in unfinished if path.suffix == ".json"]
    if any(path.parents[2] / "records" / STUDY / path.name in paths for path in begun):
        return "a record written and its checkpoint not put away"
    if any(path.with_suffix(".pt") in paths for path in begun):
        return "a run with a checkpoint"
    return "a run without a checkpoint yet" if begun else "no run in this store"


def files_of(store):
    """List the files of a store; a worker that lives on may remove its own while we look."""
    try:
        return list(store.rglob("*"))
    except FileNotFoundError:
        return []


def disturb(start, store, engine, moments, kills, places):
    """Run the study, killing at random moments at most so often; return how often it was.

    Whatever was finished when something was killed is whole, and is never begun again. Who was
    killed, and at which moment, is counted in ``places``.
    """
    working, states, done = Archive(store).working, [], 0
    while True:
        # Leftovers of an earlier kill say nothing of the next one's moment.
        left, before = folders_of_runs(), (len(starts(store)), len(finished(store)))
        child = start(store, engine)
        victims, killed, below, moment = [], [], [], ""
        until = time.monotonic() + STUCK
        while done < kills and child.is_alive():
            if (len(starts(store)), len(finished(store))) != before:
                time.sleep(moments.uniform(0, 0.3))
                victims = moments.choice([True, False]) and workers(child.pid, engine)
                below = descendants(child.pid)
                killed = [kill(victim) for victim in victims or [child.pid]]
                moment = place(store, *(folders_of_runs() - left))
                break
            assert time.monotonic() < until, "the process does nothing"
            time.sleep(0.005)
        child.join(STUCK)
        assert not child.is_alive(), "the process does not end"
        ended(below)
        # A driver that had ended by itself a moment before was not killed.
        if any(killed) if victims else child.exitcode == -signal.SIGKILL:
            done += 1
            places["worker" if victims else "driver", moment] += 1
        for record in working.records(STUDY):
            assert Archive(store).checkpoint_of(record) is not None
        states.append((len(starts(store)), {r.seed for r in working.records(STUDY)}))
        states[-1] += (finished(store),)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL, "the process ended by itself; see its traceback"
    begun, last = starts(store), finished(store)
    assert set(begun) == set(range(RUNS))
    for at, seeds, records in states:
        assert not seeds.intersection(begun[at:])
        assert records.items() <= last.items()
    return done


def keep(path, name, facts):
    """Add the counts of a test that has passed to a file, where one was asked for."""
    if path is None:
        return
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known[name] = facts | {"provenance": describe(tree_state(), torch.device("cpu"))}
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_study_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    engine, start, root, request, capsys
):
    moments, kills, begun, places = random.Random(0), 0, 0, Counter()
    undisturbed = run_study(STUDY, "paper", root / "undisturbed", progress=False)
    short = 2 if engine == "ray" else 4
    wanted = request.config.getoption("faults") or short
    while kills < wanted:
        store = root / f"disturbed, from {kills} kills on"
        store.mkdir()
        kills += disturb(start, store, engine, moments, wanted - kills, places)
        begun += max(0, len(starts(store)) - RUNS)
        if request.config.getoption("faults"):
            with capsys.disabled():
                print(f"{engine}: {kills} of {wanted} kills, {dict(places)}", flush=True)
        assert litter(store) == []
        assert len(Archive(store).working.records(STUDY)) == RUNS
        assert plain(run_study(STUDY, "paper", store, progress=False)) == plain(undisturbed)
    with capsys.disabled():
        print(f"\n{engine}: {kills} kills, {begun} runs begun more than once")
        for (victim, moment), count in sorted(places.items()):
            print(f"  {count:3d} of a {victim}, at {moment}")
    told = [[victim, moment, count] for (victim, moment), count in sorted(places.items())]
    facts = {"kills": kills, "runs": RUNS, "begun_again": begun, "places": told}
    keep(request.config.getoption("faults_record"), engine, facts)


def test_a_machine_that_is_lost_in_mid_study_loses_no_record(
    studies_folder, root, request, monkeypatch
):
    if not request.config.getoption("cluster"):
        pytest.skip("two machines take half a minute: --cluster runs them")
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    undisturbed = run_study(STUDY, "paper", root / "undisturbed", progress=False)
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    lost = machines.add_node(num_cpus=1)
    ray.init(address=machines.address, log_to_driver=False, logging_level="ERROR")
    store, places = root / "disturbed", set()
    try:
        machines.wait_for_nodes()
        assert ray.cluster_resources()["CPU"] == 2

        def lose_one_in_the_middle():
            while len(finished(store)) < RUNS // 4:
                time.sleep(0.005)
            machines.remove_node(lost, allow_graceful=False)
            places.add(len(finished(store)))

        thread = threading.Thread(target=lose_one_in_the_middle)
        thread.start()
        records = run_study(STUDY, "paper", store, "ray", progress=False)
        thread.join()
    finally:
        ray.shutdown()
        machines.shutdown()
    assert min(places) < RUNS
    assert plain(records) == plain(undisturbed)
    assert litter(store) == []
    facts = {"runs": RUNS, "finished_when_it_was_lost": min(places)}
    keep(request.config.getoption("faults_record"), "a machine of two", facts)

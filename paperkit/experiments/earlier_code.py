"""Runs of a study by the code that made its records, taken from git, on this machine.

A trained network is another one on another processor, so that a new run there says little of a
change of code. The earlier code beside the present one says it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from paperkit.experiments.fingerprint import fingerprint
from paperkit.experiments.provenance import PACKAGE
from paperkit.experiments.records import Record
from paperkit.experiments.study import study_named

# The earlier code runs this in a process of its own.
_SCRIPT = """
import json, pathlib, sys, torch
from paperkit.experiments.archive import Archive
from paperkit.experiments.fingerprint import fingerprint
from paperkit.experiments.records import key_of
from paperkit.experiments.session import Session
from paperkit.experiments.study import study_named

asked = json.load(sys.stdin)
study, device = study_named(asked["study"]), torch.device(asked["device"])
code, folder = fingerprint(study), pathlib.Path(asked["folder"])
needed = {name: fingerprint(study_named(name)) for name in study.needs}
others = asked["store"] if needed == asked["needed"] else folder / "needed" / code
inputs = Session(Archive(others), asked["profile"], device)
session = Session(Archive(folder / code), asked["profile"], device, inputs=inputs)
metrics = []
for one in asked["configurations"]:
    made = session.archive.working.record(study.name, key_of(study.name, one))
    if made is None or made.fingerprint != code:
        made = session.perform(study, one)
    metrics.append(made.metrics)
answer = {"fingerprint": code, "metrics": metrics}
pathlib.Path(asked["answer"]).write_text(json.dumps(answer))
"""


def audits_folder(store: Path) -> Path:
    """Return where a working store keeps what audits by both codes have run on this processor.

    A trained network is another one on another processor, whose runs are therefore kept apart.
    """
    known = [platform.machine(), platform.processor()]
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
        known += [line for line in lines if line.startswith(("model", "stepping", "flags"))]
    return store / "audits" / hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]


def commit_behind(record: Record) -> str | None:
    """Return the commit of the code that a record's fingerprint is of."""
    renewed = record.provenance.get("renewed", [])
    commit = (renewed[-1] if renewed else record.provenance).get("commit")
    return None if commit is None else str(commit)


def metrics_by_earlier_code(
    records: Sequence[Record], store: Path, device: str = "cpu", root: Path = PACKAGE.parent
) -> list[dict[str, Any]]:
    """Run records of one study again, each by the code behind it.

    The runs that they need are those of the working store where the code behind them is the same,
    and are made again elsewhere. What has been run is kept, so that a call that is cut off goes on.

    Parameters
    ----------
    records : sequence of Record
        Published ones.
    store : path
        The working store.
    device : str
    root : path
        The top of the git tree.

    Returns
    -------
    list of dict
        The metrics of each run, in the order of the records.

    Raises
    ------
    ValueError
        If git does not have the commit of a record's code, or that code cannot run or is not what
        made the record.
    """
    found: dict[str, dict[str, Any]] = {}
    for code in dict.fromkeys(record.fingerprint for record in records):
        same = [record for record in records if record.fingerprint == code]
        metrics = _by_the_code_of(same, store, device, root)
        found |= dict(zip((record.key for record in same), metrics, strict=True))
    return [found[record.key] for record in records]


def _by_the_code_of(
    records: Sequence[Record], store: Path, device: str, root: Path
) -> list[dict[str, Any]]:
    """Run records that one code made."""
    first, commit = records[0], commit_behind(records[0])
    needed = {name: fingerprint(study_named(name)) for name in study_named(first.study).needs}
    with tempfile.TemporaryDirectory() as folder:
        tree, answer = Path(folder) / "tree", Path(folder) / "answer.json"
        _extract(root, commit, tree)
        asked = {
            "study": first.study,
            "profile": first.profile,
            "device": device,
            "store": str(store.absolute()),
            "folder": str(audits_folder(store).absolute()),
            "needed": needed,
            "configurations": [record.configuration for record in records],
            "answer": str(answer),
        }
        # The tree's own results serve it, not those of this one, which newer code may have renewed.
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        environment.pop("PAPERKIT_ROOT", None)
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT],
            input=json.dumps(asked),
            text=True,
            capture_output=True,
            cwd=tree,
            env=environment,
            check=False,
        )
        if done.returncode or not answer.is_file():
            last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise ValueError(f"the code of commit {commit} does not run here: {last}")
        found = json.loads(answer.read_text())
    if found["fingerprint"] != first.fingerprint:
        raise ValueError(
            f"the code of commit {commit} is not what made the records of {first.study!r}: their "
            "fingerprints differ."
        )
    metrics: list[dict[str, Any]] = found["metrics"]
    return metrics


def _extract(root: Path, commit: str | None, tree: Path) -> None:
    """Write the files of a commit to a folder."""
    environment = {n: value for n, value in os.environ.items() if not n.startswith("GIT_")}
    command = ["git", "-C", str(root), "archive", "--format=zip", str(commit)]
    try:
        done = subprocess.run(command, capture_output=True, check=True, env=environment)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"git has no commit {commit} in {root}, whose code made the records: fetch the whole "
            "history, or audit without --both-codes."
        ) from error
    with zipfile.ZipFile(io.BytesIO(done.stdout)) as files:
        files.extractall(tree)

"""Runs of a study by the code that made its records, taken from git, on this machine.

A trained network is another one on another processor, so that a new run there says little of a
change of code. The earlier code beside the present one says it.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paperkit.experiments.provenance import PACKAGE
from paperkit.experiments.records import Record

# The earlier code runs this in a process of its own.
_SCRIPT = """
import json, pathlib, sys, tempfile, torch
from paperkit.experiments.archive import Archive
from paperkit.experiments.fingerprint import fingerprint
from paperkit.experiments.session import Session
from paperkit.experiments.study import study_named

asked = json.load(sys.stdin)
study, device = study_named(asked["study"]), torch.device(asked["device"])
with tempfile.TemporaryDirectory() as fresh, tempfile.TemporaryDirectory() as others:
    inputs = Session(Archive(others), asked["profile"], device)
    session = Session(Archive(fresh), asked["profile"], device, inputs=inputs)
    metrics = [session.perform(study, one).metrics for one in asked["configurations"]]
answer = {"fingerprint": fingerprint(study), "metrics": metrics}
pathlib.Path(asked["answer"]).write_text(json.dumps(answer))
"""


def commit_behind(record: Record) -> str | None:
    """Return the commit of the code that a record's fingerprint is of."""
    renewed = record.provenance.get("renewed", [])
    commit = (renewed[-1] if renewed else record.provenance).get("commit")
    return None if commit is None else str(commit)


def metrics_by_earlier_code(
    records: Sequence[Record], device: str = "cpu", root: Path = PACKAGE.parent
) -> list[dict[str, Any]]:
    """Run records of one study again, each by the code behind it.

    The runs that they need are made again, too: those of the working store may be newer code's.

    Parameters
    ----------
    records : sequence of Record
        Published ones.
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
    for fingerprint in dict.fromkeys(record.fingerprint for record in records):
        same = [record for record in records if record.fingerprint == fingerprint]
        metrics = _by_the_code_of(same, device, root)
        found |= dict(zip((record.key for record in same), metrics, strict=True))
    return [found[record.key] for record in records]


def _by_the_code_of(records: Sequence[Record], device: str, root: Path) -> list[dict[str, Any]]:
    """Run records that one code made."""
    first, commit = records[0], commit_behind(records[0])
    with tempfile.TemporaryDirectory() as folder:
        tree, answer = Path(folder) / "tree", Path(folder) / "answer.json"
        _extract(root, commit, tree)
        asked = {
            "study": first.study,
            "profile": first.profile,
            "device": device,
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

"""Runs of a study by the code that made its records, taken from git, on this machine.

A trained network is another one on another processor, so that a new run there says little of a
change of code. The earlier code beside the present one says it, if both are given the same inputs.
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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import override

from paperkit.experiments.provenance import PACKAGE
from paperkit.experiments.records import Configuration, Record, to_json
from paperkit.experiments.session import Session
from paperkit.experiments.study import Study

# The earlier code runs this in a process of its own.
_SCRIPT = """
import json, pathlib, sys, torch
from dataclasses import replace
from paperkit.experiments.archive import Archive
from paperkit.experiments.fingerprint import fingerprint
from paperkit.experiments.records import from_json, key_of
from paperkit.experiments.session import Session
from paperkit.experiments.study import study_named

asked = json.load(sys.stdin)
study, device = study_named(asked["study"]), torch.device(asked["device"])
code, metrics = fingerprint(study), []

def known(text):
    record = from_json(text, "what the audit gives")
    own = {**record.provenance, "fingerprint": fingerprint(study_named(record.study))}
    return replace(record, provenance=own)

class Given(Session):
    def record(self, study, configuration):
        return known(given["records"][key_of(study.name, configuration)])

    def checkpoint(self, study, configuration):
        text, path = given["checkpoints"][key_of(study.name, configuration)]
        return known(text), pathlib.Path(path)

for one, given, name in asked["runs"]:
    archive = Archive(pathlib.Path(asked["folder"]) / code / name)
    inputs = Given(archive, asked["profile"], device)
    made = archive.working.record(study.name, key_of(study.name, one))
    if made is None or made.fingerprint != code:
        session = Session(archive, asked["profile"], device, inputs=inputs)
        made = session.perform(study, one)
    metrics.append(made.metrics)
answer = {"fingerprint": code, "metrics": metrics}
pathlib.Path(asked["answer"]).write_text(json.dumps(answer))
"""


Given = Mapping[str, Mapping[str, Any]]
"""Inputs of a run in plain values, as :class:`NotingSession` has them."""


@dataclass
class NotingSession(Session):
    """A session that notes which records and checkpoints it gives to runs.

    Attributes
    ----------
    given : dict
        In plain values, under ``records`` the JSON of a record by key, under ``checkpoints`` that
        and the path of its checkpoint.
    """

    given: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"records": {}, "checkpoints": {}}
    )

    @override
    def record(self, study: Study, configuration: Configuration) -> Record:
        found = super().record(study, configuration)
        self.given["records"][found.key] = to_json(found)
        return found

    @override
    def checkpoint(self, study: Study, configuration: Configuration) -> tuple[Record, Path]:
        found, path = super().checkpoint(study, configuration)
        self.given["checkpoints"][found.key] = [to_json(found), str(path.absolute())]
        return found, path


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
    records: Sequence[Record],
    given: Sequence[Given],
    store: Path,
    device: str = "cpu",
    root: Path = PACKAGE.parent,
) -> list[dict[str, Any]]:
    """Run records of one study again, each by the code behind it, from given inputs.

    What has been run is kept, so that a call that is cut off goes on.

    Parameters
    ----------
    records : sequence of Record
        Published ones.
    given : sequence of mapping
        For each of them the records and checkpoints of other studies that its run needs, as
        :class:`NotingSession` has them: those that the present code had, whatever made them.
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
        If git does not have the commit of a record's code, or that code cannot run, needs other
        inputs, or is not what made the record.
    """
    found: dict[str, dict[str, Any]] = {}
    for code in dict.fromkeys(record.fingerprint for record in records):
        same = [
            (record, inputs)
            for record, inputs in zip(records, given, strict=True)
            if record.fingerprint == code
        ]
        metrics = _by_the_code_of(same, store, device, root)
        found |= dict(zip((record.key for record, _ in same), metrics, strict=True))
    return [found[record.key] for record in records]


def _by_the_code_of(
    runs: Sequence[tuple[Record, Given]], store: Path, device: str, root: Path
) -> list[dict[str, Any]]:
    """Run records that one code made."""
    first = runs[0][0]
    commit = commit_behind(first)
    with tempfile.TemporaryDirectory() as folder:
        tree, answer = Path(folder) / "tree", Path(folder) / "answer.json"
        _extract(root, commit, tree)
        asked = {
            "study": first.study,
            "profile": first.profile,
            "device": device,
            "folder": str(audits_folder(store).absolute()),
            "runs": [(one.configuration, given, _name_of(given)) for one, given in runs],
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


def _name_of(given: Given) -> str:
    """Return a name for inputs, the same for the same content."""
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]


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

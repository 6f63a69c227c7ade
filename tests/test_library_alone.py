"""The library needs its own dependencies and nothing that belongs to the book, studies or tests."""

import argparse
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from paperkit.cli import ROOMS
from paperkit.experiments.study import configurations, study_named

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LIBRARY = (
    "bounds",
    "curvature",
    "data",
    "estimators",
    "linalg",
    "linearize",
    "models",
    "network",
    "optim",
    "statistics",
    "training",
)
# Names of distributions whose modules are called otherwise.
MODULES = {
    "scikit-learn": "sklearn",
    "pyyaml": "yaml",
    "typing-extensions": "typing_extensions",
    "axe-playwright-python": "axe_playwright_python",
    "import-linter": "importlinter",
    "pytest-xdist": "xdist",
    "types-pyyaml": None,
    "types-tqdm": None,
}
# Imports the modules named after "--" where those before it cannot be found.
ALONE = """
import importlib, sys
cut = sys.argv.index("--")
hidden, finders = set(sys.argv[1:cut]), list(sys.meta_path)

class WithoutHidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            return None
        specs = (finder.find_spec(name, path, target) for finder in finders)
        return next((spec for spec in specs if spec is not None), None)

sys.meta_path[:] = [WithoutHidden()]
for name in sys.argv[cut + 1:]:
    importlib.import_module(name)
"""
USE = """
import torch
from torch import nn
from paperkit.estimators import measure
from paperkit.optim import SAM
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
inputs, targets = torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
report = measure(model, (inputs, targets))
assert "renyi_sharpness" in repr(report) and "<table" in report._repr_html_()
try:
    report.frame()
except ModuleNotFoundError as error:
    assert "install pandas" in str(error)
else:
    raise AssertionError("pandas was not hidden")
optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1)

def closure():
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    return loss

before = float(closure())
optimizer.step(closure)
assert float(closure()) < before
"""
# A study needs data only where it says so; records are read without their schema.
STUDY = """
import sys, tempfile
from paperkit.experiments import records_of, run_study
with tempfile.TemporaryDirectory() as store:
    records = run_study("entropy_facts", "smoke", store, progress=False)
    assert records and len(records_of("entropy_facts", store=store)) >= len(records)
assert "pydantic" not in sys.modules
"""
# A worker of a cluster does this with a run whose grid is a file, on a machine without PyYAML.
WORKER = """
import tempfile
from pathlib import Path
import torch
from paperkit.experiments.archive import Archive
from paperkit.experiments.errand import Errand
from paperkit.experiments.session import Session
from paperkit.experiments.study import study_named
study = study_named("entropy_facts")
with tempfile.TemporaryDirectory() as store:
    session = Session(Archive(store), "smoke", torch.device("cpu"))
    errand = Errand.of(session, study)
    delivery = errand.elsewhere(study.name, CONFIGURATION, [])
    assert delivery.record.configuration == CONFIGURATION
"""
# The command as a compute node calls it, and the commands whose packages it lacks.
COMMAND = """
import os, runpy, sys, tempfile
def command(*words):
    sys.argv = ["paperkit", *words]
    try:
        runpy.run_module("paperkit", run_name="__main__")
    except SystemExit as ended:
        return ended.code
with tempfile.TemporaryDirectory() as store:
    words = "entropy_facts", "--profile", "smoke"
    assert command("study", "run", *words, "--store", store) == 0
    assert len(os.listdir(store + "/records/entropy_facts")) > 10
    assert command("study", "run", *words, "--store", store, "--dry-run") == 0
    assert command("plan", *words, "--store", store) == 0
assert command("claims", "--paper", "renyi", "--json") == 1
assert command("smoke", "01_five_minutes", "--jobs", "2") == 1
assert command("--help") == 0
"""


def _modules_of_extras() -> list[str]:
    names = {
        re.split(r"[<>=\[ ]", text)[0].lower()
        for group in PROJECT["optional-dependencies"].values()
        for text in group
    } - {PROJECT["name"]}
    modules = [MODULES.get(name, name.replace("-", "_")) for name in sorted(names)]
    return [module for module in modules if module is not None]


def _alone(*modules: str, then: str = "", without: tuple[str, ...] = ()) -> str:
    """Import modules and run a script where the extras are hidden; return standard error."""
    hidden = [*_modules_of_extras(), *without]
    command = [sys.executable, "-c", ALONE + then, *hidden, "--", *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_rooms_of_the_library_import_nothing_of_the_extras() -> None:
    _alone(*(f"paperkit.{room}" for room in LIBRARY))


def test_a_network_is_measured_and_trained_without_the_extras() -> None:
    _alone(then=USE)


def test_a_study_runs_and_records_are_read_without_the_extras() -> None:
    _alone(then=STUDY)


def test_a_compute_node_runs_the_command_without_the_extras() -> None:
    told = _alone(then=COMMAND)
    assert "`paperkit claims` needs the package pydantic, which is not installed" in told
    assert "run `pip install 'paperkit[book]'`" in told


def test_a_worker_runs_what_it_is_given_where_pyyaml_is_missing_too() -> None:
    configuration = configurations(study_named("entropy_facts"), "smoke")[0]
    _alone(then=f"CONFIGURATION = {configuration!r}\n{WORKER}", without=("yaml", "pydantic"))


def test_a_room_names_the_commands_that_it_adds() -> None:
    for room, names in ROOMS.items():
        subparsers = argparse.ArgumentParser().add_subparsers()
        importlib.import_module(room).add_commands(subparsers)
        assert set(subparsers.choices) == set(names)


def test_the_extras_are_really_hidden() -> None:
    with pytest.raises(AssertionError, match="No module named 'pandas'"):
        _alone("pandas")

import math
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from paperkit.experiments import resolve

PROFILES = {
    "smoke": {"seeds": 1, "n": 8, "alphas": [0.5], "rate": 0.1},
    "laptop": {"seeds": [0, 1, 2], "n": 64, "alphas": [0.5, 1.5], "rate": 0.1},
    "paper": {"seeds": 5, "n": 5000, "alphas": [0.5, 1.5], "rate": 0.1, "device": "cpu"},
}


def namespace(**parameters):
    """What a notebook's globals hold when the parameters cell was run."""

    def get_ipython():
        return None

    shell = {"In": [""], "Out": {}, "_i1": "", "_oh": {}, "__name__": "__main__"}
    imported = {"get_ipython": get_ipython, "math": math, "Path": Path, "torch": torch}
    return {**shell, **imported, **parameters}


def test_the_laptop_profile_is_the_default_and_gives_the_rest():
    p = resolve(namespace(dataset="digits"), PROFILES)
    assert (p.profile, p.dataset, p.n, p.alphas) == ("laptop", "digits", 64, [0.5, 1.5])
    assert (p.store, p.engine) == (None, "in-process")


def test_none_takes_the_profiles_value_and_a_value_overrides_it():
    assert resolve(namespace(seeds=None, profile="smoke"), PROFILES).seeds == (0,)
    assert resolve(namespace(seeds=2, profile="paper"), PROFILES).seeds == (0, 1)
    assert resolve(namespace(seeds=[7, 3]), PROFILES).seeds == (7, 3)
    assert resolve(namespace(), PROFILES).seeds == (0, 1, 2)


def test_device_and_store_are_ready_to_use(tmp_path):
    p = resolve(namespace(device="cpu", store=str(tmp_path)), PROFILES)
    assert p.device == torch.device("cpu")
    assert p.store == tmp_path
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve(namespace(device="auto"), PROFILES).device.type == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sed", 3),
        ("Seed", None),
        ("seedss", [1, 2]),
        ("stor", "x"),
        ("profle", "smoke"),
        ("datset", {"a": 1}),
        ("threds", 2.0),
    ],
)
def test_a_misspelt_parameter_is_refused_with_the_nearest_name(name, value):
    with pytest.raises(ValueError, match=f"'{name}' is not a parameter of this .* did you mean '"):
        resolve(namespace(**{name: value}), PROFILES)


def test_a_parameter_that_is_like_no_other_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"'wavelength' .*; choose one of dataset, device, engine"):
        resolve(namespace(wavelength=1.0), PROFILES)


def test_a_notebook_may_have_fewer_parameters_or_some_of_its_own():
    with pytest.raises(ValueError, match="'dataset' is not a parameter"):
        resolve(namespace(dataset="digits"), PROFILES, allowed=["profile", "seed"])
    own = ["profile", "n", "rate"]
    assert resolve(namespace(n=16), PROFILES, allowed=own).n == 16
    assert resolve(namespace(n=None), PROFILES, allowed=own).n == 64
    assert resolve(namespace(rate=1), PROFILES, allowed=own).rate == 1
    with pytest.raises(TypeError, match="n is '16', a str; give a int"):
        resolve(namespace(n="16"), PROFILES, allowed=own)
    with pytest.raises(TypeError, match="n is True, a bool"):
        resolve(namespace(n=True), PROFILES, allowed=own)


@pytest.mark.parametrize(
    ("parameters", "error", "sentence"),
    [
        ({"profile": "labtop"}, ValueError, "profile is 'labtop'; did you mean 'laptop'"),
        ({"profile": 1}, ValueError, "profile is 1; choose one of laptop, paper, smoke"),
        ({"dataset": 3}, TypeError, "dataset is 3; give a string"),
        ({"model": ""}, TypeError, "model is ''; give a string"),
        ({"seed": "3"}, TypeError, "seed='3' must be an integer"),
        ({"seed": True}, TypeError, "seed=True must be an integer"),
        ({"seed": -1}, ValueError, "seed=-1 must be at least 0"),
        ({"seeds": 0}, ValueError, "seeds=0 must be at least 1"),
        ({"seeds": []}, ValueError, r"seeds is \[\]; give at least one seed"),
        ({"seeds": [1, 1]}, ValueError, "each once"),
        ({"seeds": "1,2"}, TypeError, "seeds='1,2' must be an integer"),
        ({"device": "gpu"}, ValueError, "device='gpu' must be a device"),
        ({"store": 3}, TypeError, "store=3 must be a path"),
        ({"engine": "slurm"}, ValueError, "engine='slurm' is unknown: choose one of in-process"),
        ({"threads": 0}, ValueError, "threads=0 must be at least 1"),
    ],
)
def test_a_wrong_value_is_refused_in_one_sentence(parameters, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        resolve(namespace(**parameters), PROFILES)
    assert "\n" not in str(caught.value)


def test_a_profile_without_settings_is_refused_and_not_run_with_others():
    with pytest.raises(ValueError, match=r"has no paper profile: .* Choose smoke or laptop\."):
        resolve({"profile": "paper"}, {"smoke": {}, "laptop": {}})


def test_a_profile_that_the_notebook_lacks_is_refused():
    with pytest.raises(ValueError, match=r"has no paper profile: .* Choose smoke\."):
        resolve(namespace(profile="paper"), {"smoke": {}})


def test_the_cell_can_be_run_again_after_the_notebook_has_defined_names():
    cells = namespace(seed=1)
    assert resolve(cells, PROFILES).seed == 1
    cells |= {"losses": [1.0], "seed": 2}
    assert resolve(cells, PROFILES).seed == 2


def test_a_refusal_is_repeated_when_the_cell_is_run_again():
    cells = namespace(sed=1)
    for _ in range(2):
        with pytest.raises(ValueError, match="did you mean 'seed'"):
            resolve(cells, PROFILES)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    cells = [
        nbformat.v4.new_code_cell(
            'profile = "laptop"\nseed = 0\nstore = None', metadata={"tags": ["parameters"]}
        ),
        nbformat.v4.new_code_cell(
            "from paperkit.experiments import resolve\n"
            'p = resolve(globals(), {"smoke": {}, "laptop": {}}, '
            'allowed=["profile", "seed", "store"])\n'
            'print("seed", p.seed, "at", p.profile)'
        ),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = tmp_path_factory.mktemp("notebook") / "tiny.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def papermill(notebook, *parameters):
    command = [sys.executable, "-m", "papermill", str(notebook), "out.ipynb", *parameters]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=notebook.parent, env=environment, capture_output=True, text=True, timeout=900
    )
    return done.returncode, done.stdout + done.stderr


def test_plain_papermill_refuses_a_misspelt_parameter(notebook):
    status, output = papermill(notebook, "-p", "sed", "3")
    assert status != 0
    assert "'sed' is not a parameter of this notebook; did you mean 'seed'?" in output


def test_plain_papermill_accepts_a_parameter(notebook):
    status, output = papermill(notebook, "-p", "seed", "3", "-p", "profile", "smoke")
    assert status == 0, output
    executed = nbformat.read(notebook.parent / "out.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "seed 3 at smoke\n"

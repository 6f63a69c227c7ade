"""The repository's own files agree with each other and hold nothing of one machine."""

import datetime
import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
DEBIAN_12 = "3.11.2"
LARGEST = 2 * 2**20
REGISTRIES = ("pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "anaconda" + ".org")
# Home folders and this kind of checkout; /usr is the same everywhere.
MACHINE_PATH = re.compile(r"(?<![\w.:/<])/(?:root|home|Users|work|opt)/[\w.-]+")


def _lock() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


LOCK = _lock()


def _tracked() -> list[Path]:
    """List the files that git tracks or would track."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    listed = subprocess.run(
        [*command, "--exclude-standard"], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("this copy is not a git repository")
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return [path for path in paths if path.is_file()]


def _requirements() -> list[Requirement]:
    """List what the project asks for to be built, to run, and in its extras."""
    groups = [
        PROJECT["build-system"]["requires"],
        PROJECT["project"]["dependencies"],
        *EXTRAS.values(),
    ]
    requirements = [Requirement(text) for group in groups for text in group]
    return [one for one in requirements if one.name != PROJECT["project"]["name"]]


@pytest.mark.parametrize("requirement", _requirements(), ids=lambda one: one.name)
def test_the_lock_holds_a_release_that_the_project_admits(requirement: Requirement) -> None:
    (locked,) = LOCK[canonicalize_name(requirement.name)].specifier
    assert locked.operator == "=="
    assert requirement.specifier.contains(locked.version, prereleases=True)


@pytest.mark.parametrize("text", PROJECT["project"]["dependencies"])
def test_the_library_asks_for_ranges_with_an_oldest_release(text: str) -> None:
    assert [part.operator for part in Requirement(text).specifier] == [">="]


def test_the_lock_holds_everything_that_its_packages_require() -> None:
    missing = []
    for requirement in LOCK.values():
        try:
            dependencies = requires(requirement.name) or []
        except PackageNotFoundError:
            assert requirement.marker is not None
            continue
        for text in dependencies:
            dependency = Requirement(text)
            if dependency.marker is None or dependency.marker.evaluate({"extra": ""}):
                name = canonicalize_name(dependency.name)
                if (
                    name not in LOCK
                    or not LOCK[name].specifier
                    or not dependency.specifier.contains(
                        str(LOCK[name].specifier).removeprefix("=="), prereleases=True
                    )
                ):
                    missing.append(f"{requirement.name} needs {dependency}")
    assert missing == []


def test_the_installed_packages_are_those_of_the_lock() -> None:
    for requirement in LOCK.values():
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(version(requirement.name), prereleases=True)


def test_the_locked_packages_run_on_the_python_of_debian_12() -> None:
    unsupported = {}
    for requirement in LOCK.values():
        if requirement.marker is None or requirement.marker.evaluate():
            supported = metadata(requirement.name).get("Requires-Python") or ""
            if not SpecifierSet(supported).contains(DEBIAN_12):
                unsupported[requirement.name] = supported
    assert unsupported == {}


def test_packages_for_nvidia_gpus_are_locked_for_linux_on_x86_64_only() -> None:
    expected = Marker('platform_machine == "x86_64" and sys_platform == "linux"')
    gpu = {name for name in LOCK if re.match(r"nvidia-|cuda-|triton$", name)}
    assert gpu
    assert {name for name, requirement in LOCK.items() if requirement.marker == expected} == gpu


def test_conda_environment_takes_its_pins_from_the_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert (pip, packages) == ("pip", {"pip": ["-r requirements.lock", "-e ."]})
    supported = Requirement(f"python{PROJECT['project']['requires-python']}").specifier
    assert supported.contains(python.removeprefix("python=") + ".0")


def test_the_citation_names_the_version_and_a_date() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == PROJECT["project"]["version"]
    assert isinstance(citation["date-released"], datetime.date)


def test_what_is_built_is_ignored_by_git() -> None:
    built = ["build/lib/x.py", "dist/x.whl", "_build/x", ".venv/x", "paperkit.egg-info/x"]
    command = ["git", "-C", str(ROOT), "check-ignore", "--no-index", *built]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 128:
        pytest.skip("this copy is not a git repository")
    assert done.stdout.split() == built


def test_no_file_is_larger_than_two_mebibytes() -> None:
    large = {path.name: path.stat().st_size for path in _tracked()}
    assert {name: size for name, size in large.items() if size > LARGEST} == {}


def test_no_file_names_a_package_registry_or_a_path_of_one_machine() -> None:
    found = []
    for path in _tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        name = path.relative_to(ROOT)
        found += [f"{name}: {host}" for host in REGISTRIES if host in text]
        found += [f"{name}: {match}" for match in MACHINE_PATH.findall(text)]
    assert found == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_make_target_that_a_page_names_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", (ROOT / page).read_text(), flags=re.MULTILINE))
    assert named
    assert named <= targets

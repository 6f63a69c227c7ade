"""Install a wheel into a fresh environment, next to an oldest or a newest PyTorch, and use it.

``python tests/wheel_check.py dist/paperkit-….whl oldest --python python3.11 --folder FOLDER`` makes
the environment FOLDER/oldest and runs ``tests/wheel_use.py`` there. The sets are

* ``oldest``: the lower ends of all ranges in ``pyproject.toml``, with what the tests need;
* ``newest``: the newest releases that the ranges admit, with what the tests need;
* ``alone``: the library by itself, without a package of the book, the studies or the tests.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

HOME = Path(__file__).resolve().parent
EXTRA = {"oldest": "[test]", "newest": "[test]", "alone": ""}
LOWER_END = re.compile(r"([\w.-]+)>=([\w.]+)")


def oldest_pins(project: dict, extra: str) -> list[str]:
    """Return the lower end of every range that the library and one of its extras have."""
    extras = project["optional-dependencies"]
    pins, waiting = [], [*project["dependencies"], *extras[extra]]
    while waiting:
        text = waiting.pop(0)
        own = re.fullmatch(rf"{project['name']}\[(.+)\]", text)
        if own:
            waiting += [one for name in own[1].split(",") for one in extras[name]]
        elif match := LOWER_END.fullmatch(text):
            pins.append(f"{match[1]}=={match[2]}")
        else:
            raise ValueError(f"{text} has no lower end, such as {text}>=1.0")
    return pins


def install(wheel: Path, environment: Path, chosen: str, python: str) -> Path:
    """Make the environment anew; return its interpreter."""
    subprocess.run([python, "-m", "venv", "--clear", str(environment)], check=True)
    interpreter = environment / "bin" / "python"
    pip = [str(interpreter), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    wanted = [f"{wheel.resolve()}{EXTRA[chosen]}", "torchvision"]
    if chosen == "oldest":
        project = tomllib.loads((HOME.parent / "pyproject.toml").read_text())["project"]
        constraints = environment / "oldest.txt"
        constraints.write_text("\n".join(oldest_pins(project, "test")) + "\n")
        wanted += ["--constraint", str(constraints)]
    subprocess.run([*pip, *wanted], check=True)
    subprocess.run([str(interpreter), "-m", "pip", "check"], check=True)
    return interpreter


def use(interpreter: Path, environment: Path, chosen: str) -> dict:
    """Run the script of a user outside the repository; return what it says of itself."""
    done = subprocess.run(
        [str(interpreter.absolute()), "-P", str(HOME / "wheel_use.py")],
        cwd=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{chosen}: {done.stderr}")
    facts = json.loads(done.stdout.splitlines()[-1])
    if not Path(facts["place"]).is_relative_to(environment.resolve()):
        raise SystemExit(f"{chosen}: paperkit was imported from {facts['place']}, not the wheel")
    if chosen == "alone" and (facts["pandas"] or facts["sphinx"]):
        raise SystemExit("alone: the wheel by itself brought packages of the book along")
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("set", choices=EXTRA)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment")
    parser.add_argument("--folder", type=Path, required=True, help="where environments are made")
    asked = parser.parse_args()
    environment = asked.folder.resolve() / asked.set
    interpreter = install(asked.wheel, environment, asked.set, asked.python)
    facts = use(interpreter, environment, asked.set)
    (environment / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    versions = [f"{name} {facts[name]}" for name in ("python", "torch", "torchvision", "numpy")]
    print(f"-- {asked.set}: {', '.join(versions)}: {facts['layers']} layers of a ResNet-18", end="")
    print(f" measured, SAM's step took the loss {facts['loss_before']:.4f} → ", end="")
    print(f"{facts['loss_after']:.4f}")


if __name__ == "__main__":
    main()

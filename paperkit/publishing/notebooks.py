"""Execute the chapters: from ``NN_name.py``, the edited source, to its executed ``.ipynb``.

The conversion goes one way only. Both files hold the same cells; :func:`pair_differences` lists
where they do not, and :func:`normalise` removes whatever would differ between two runs of the same
code on the same machine (time stamps, paths, progress bars, random cell ids).
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat import NotebookNode

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "pygments_lexer": "ipython3",
}
INJECTED = "injected-parameters"
CELL_METADATA = ("tags", "mystnb")
PAIRING = ("cell_metadata_filter", "formats", "notebook_metadata_filter")
# An object's default representation holds its address, which no two runs share.
ADDRESS = re.compile(r"<[^<>\n]* at 0x[0-9a-f]{6,}>")


@dataclass(frozen=True)
class Duration:
    """Time that a run took.

    Attributes
    ----------
    wall : float
        Seconds by the clock, which other work on the machine lengthens.
    processor : float
        Seconds of all processor cores, for the run and the processes that it started.
    """

    wall: float
    processor: float


class NotebookError(RuntimeError):
    """A chapter that cannot be read, executed or published; the message says what to do."""


def chapters(folder: Path, names: Iterable[str] = ()) -> list[Path]:
    """List the chapters' sources in reading order.

    Parameters
    ----------
    folder : Path
        Folder that holds ``NN_name.py``.
    names : iterable of str
        Names of chapters to keep (``"01_five_minutes"``); none keeps all.

    Returns
    -------
    list of Path
        Sources, sorted by name.

    Raises
    ------
    NotebookError
        If a named chapter does not exist.
    """
    sources = {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.py"))}
    chosen = list(names) or list(sources)
    unknown = [name for name in chosen if name not in sources]
    if unknown:
        raise NotebookError(
            f"no chapter {', '.join(unknown)} in {folder}; there are: {', '.join(sources)}"
        )
    return [sources[name] for name in sorted(chosen)]


def read_source(path: Path) -> NotebookNode:
    """Convert a chapter's source to a notebook without outputs.

    Parameters
    ----------
    path : Path
        File in jupytext's ``py:percent`` format.

    Returns
    -------
    NotebookNode
        Notebook with deterministic cell ids and no volatile metadata.
    """
    notebook = jupytext.read(path, fmt="py:percent")
    return normalise(notebook)


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Remove what would differ between two runs of the same notebook on one machine.

    The injected-parameters cell, standard error, time stamps, paths and all metadata but the
    kernel, tags and figure captions go; each cell's id becomes a hash of its place and source.

    Parameters
    ----------
    notebook : NotebookNode
        Any version-4 notebook; it is not changed.

    Returns
    -------
    NotebookNode
        A valid notebook of format 4.5.
    """
    cells = [
        _normalise_cell(cell, position)
        for position, cell in enumerate(
            cell for cell in notebook.cells if INJECTED not in cell.metadata.get("tags", [])
        )
    ]
    metadata: dict[str, Any] = {"kernelspec": dict(KERNEL), "language_info": dict(LANGUAGE)}
    pairing = notebook.metadata.get("jupytext", {})
    if pairing:
        metadata["jupytext"] = {key: pairing[key] for key in PAIRING if key in pairing}
    clean = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    clean.nbformat_minor = 5
    nbformat.validate(clean)
    return clean


def _normalise_cell(cell: NotebookNode, position: int) -> NotebookNode:
    metadata = {key: cell.metadata[key] for key in CELL_METADATA if cell.metadata.get(key)}
    digest = hashlib.sha256(f"{position}\n{cell.cell_type}\n{cell.source}".encode()).hexdigest()
    clean = NotebookNode(
        id=digest[:12],
        cell_type=cell.cell_type,
        metadata=NotebookNode(metadata),
        source=cell.source,
    )
    if cell.cell_type == "code":
        clean.execution_count = cell.get("execution_count")
        clean.outputs = _normalise_outputs(cell.get("outputs", []))
    return clean


def _normalise_outputs(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Drop standard error and join neighbouring pieces of standard output."""
    cleaned: list[NotebookNode] = []
    for output in outputs:
        if output.output_type != "stream":
            cleaned.append(NotebookNode(output))
        elif output.name == "stdout":
            if cleaned and cleaned[-1].output_type == "stream":
                cleaned[-1].text += output.text
            else:
                cleaned.append(nbformat.v4.new_output("stream", name="stdout", text=output.text))
    return cleaned


def pair_differences(source: Path, executed: Path) -> list[str]:
    """Compare a chapter's source with its executed pair.

    Parameters
    ----------
    source, executed : Path
        Files ``NN_name.py`` and ``NN_name.ipynb``.

    Returns
    -------
    list of str
        Sentences, one a cell that differs; empty when the pair agrees.
    """
    if not executed.is_file():
        return [f"{source.name} has no executed pair; run `make refresh` to make it"]
    edited = read_source(source).cells
    committed = normalise(nbformat.read(executed, as_version=4)).cells
    differences = []
    if len(edited) != len(committed):
        differences.append(
            f"{source.name} has {len(edited)} cells, {executed.name} has {len(committed)}"
        )
    for number, (ours, theirs) in enumerate(zip(edited, committed, strict=False)):
        for field in ("cell_type", "source", "metadata"):
            if ours[field] != theirs[field]:
                differences.append(
                    f"{source.name}, cell {number} ({_first_line(ours)!r}): "
                    f"{field} differs from {executed.name}"
                )
                break
    return differences


def execute(
    source: Path,
    target: Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    timeout: int = 1800,
    quiet: bool = False,
) -> Duration:
    """Execute a copy of a chapter with papermill, in a process of its own.

    Parameters
    ----------
    source : Path
        File ``NN_name.py``, which is not changed.
    target : Path
        File for the executed notebook; its folder is the working directory.
    parameters : mapping, optional
        Plain scalars for the chapter's ``parameters`` cell; none leaves its defaults.
    timeout : int
        Seconds by the clock that a cell may take, against a run that never ends.
    quiet : bool
        Show what papermill says only if a cell fails, because other chapters run beside this one.

    Returns
    -------
    Duration
        Time of papermill and the kernel.

    Raises
    ------
    NotebookError
        If a cell fails; the message names the cell and the file that shows the traceback.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    source_notebook = target.with_suffix(".source.ipynb")
    nbformat.write(read_source(source), source_notebook)
    command = [sys.executable, "-m", "papermill", str(source_notebook), str(target)]
    command += ["--cwd", str(target.parent), "--kernel", "python3", "--progress-bar"]
    command += ["--execution-timeout", str(timeout), "--log-level", "ERROR"]
    for name, value in (parameters or {}).items():
        command += ["-p", name, str(value)]
    status, duration, said = _timed(command, quiet=quiet)
    source_notebook.unlink()
    if status:
        sys.stderr.write(said)
        raise NotebookError(
            f"{source.name} failed{_failed_cell(target)}; read the traceback above or in {target}, "
            "correct the cell and run the same command again"
        )
    return duration


@dataclass(frozen=True)
class Parameter:
    """A parameter of a chapter: its name, its default as it is written, and what it is for."""

    name: str
    default: str
    help: str


def parameters_of(source: Path) -> list[Parameter]:
    """List a chapter's parameters in the order of its ``parameters`` cell.

    Parameters
    ----------
    source : Path
        File ``NN_name.py``.

    Returns
    -------
    list of Parameter
    """
    import papermill  # costs a second, which every command would pay

    with tempfile.TemporaryDirectory() as folder:
        notebook = Path(folder) / f"{source.stem}.ipynb"
        nbformat.write(read_source(source), notebook)
        found = papermill.inspect_notebook(notebook)
    return [Parameter(p["name"], p["default"], p["help"]) for p in found.values()]


def papermill_line(notebook: Path, target: Path, parameters: Mapping[str, Any]) -> str:
    """Return the line that executes a chapter by papermill alone."""
    words = ["papermill", str(notebook), str(target)]
    for name, value in parameters.items():
        words += ["-p", name, str(value)]
    return shlex.join(words)


def _timed(command: list[str], *, quiet: bool) -> tuple[int, Duration, str]:
    """Run a command; return its exit status, its time, and what it said if it was to be quiet."""
    with tempfile.TemporaryFile("w+") as log:
        kept = log if quiet else None
        started = time.perf_counter()
        process = subprocess.Popen(command, env=_kernel_environment(), stdout=kept, stderr=kept)
        # The usage is that of this process and its own children, whatever else runs beside it.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        duration = Duration(time.perf_counter() - started, usage.ru_utime + usage.ru_stime)
        log.seek(0)
        return process.returncode, duration, log.read()


def _kernel_environment() -> dict[str, str]:
    """Keep a user's own kernels and IPython settings out of the run."""
    return {
        **os.environ,
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def _failed_cell(target: Path) -> str:
    """Name the cell in which papermill stopped, if it came as far as writing one."""
    if not target.is_file():
        return ""
    # Papermill adds cells of its own, for the parameters and for notes about the failure. They do
    # not count.
    executed = [
        cell
        for cell in nbformat.read(target, as_version=4).cells
        if not {INJECTED, "papermill-error-cell-tag"} & set(cell.metadata.get("tags", []))
    ]
    for number, cell in enumerate(executed):
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            return f" in cell {number}, which begins {_first_line(cell)!r}"
    return ""


def _first_line(cell: NotebookNode) -> str:
    return str(cell.source).partition("\n")[0]


def execute_for_book(
    source: Path, target: Path, *, timeout: int = 1800, quiet: bool = False
) -> None:
    """Execute a chapter at its default parameters and leave it as the book shows it.

    Parameters
    ----------
    source : Path
        File ``NN_name.py``, which is not changed.
    target : Path
        File for the normalised, executed notebook.
    timeout : int
        Seconds that a cell may take.
    quiet : bool
        As in :func:`execute`.

    Raises
    ------
    NotebookError
        If a cell fails, or prints a memory address, which would differ in every run.
    """
    print(f"-- {source.name}: executing a copy at its default parameters", flush=True)
    duration = execute(source, target, timeout=timeout, quiet=quiet)
    notebook = normalise(nbformat.read(target, as_version=4))
    refuse_addresses(notebook, source.name)
    nbformat.write(notebook, target)
    print(f"-- {source.name}: {duration.wall:.0f} s", flush=True)


def refuse_addresses(notebook: NotebookNode, name: str) -> None:
    """Refuse outputs that show a memory address.

    Parameters
    ----------
    notebook : NotebookNode
        Executed notebook.
    name : str
        Name of the notebook in the message.

    Raises
    ------
    NotebookError
        If there is one; the message names the first such cell.
    """
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
            address = ADDRESS.search(text)
            if address:
                raise NotebookError(
                    f"{name}, cell {number} prints {address[0]!r}, which differs in every run; "
                    "end the cell with a semicolon or print something else"
                )

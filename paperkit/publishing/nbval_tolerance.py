"""A pytest plugin: nbval compares a notebook's numbers within a tolerance.

nbval compares text exactly. With ``-p paperkit.publishing.nbval_tolerance``, each recomputed number
that agrees with the committed one, as :mod:`paperkit.publishing.printed_numbers` decides, is
replaced by it before nbval compares, so that only a real difference is left for nbval to find. A
cell's tag such as ``nbval-rtol=1e-3`` sets its relative tolerance. Pictures and standard error are
not compared. Without nbval or its option ``--nbval`` the plugin does nothing.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from paperkit.publishing.printed_numbers import DEFAULT_RTOL, Difference, snap

COMPARED = ("text/plain", "text/html", "text/markdown", "stdout")
# Glued values are stored under this prefix, followed by their type.
GLUED = "application/papermill.record/"
IMAGES = ("image/png", "image/jpeg", "image/svg+xml")
PICTURES = (*IMAGES, *(GLUED + image for image in IMAGES))
RTOL_TAG = re.compile(r"nbval-rtol=(.*)")

Outputs = Sequence[dict[str, Any]]


def pytest_itemcollected(item: Any) -> None:
    """Let a collected notebook cell compare within its tolerance; pytest calls this hook."""
    nbval = sys.modules.get("nbval.plugin")
    if nbval is not None and isinstance(item, nbval.IPyNbCell):
        item.compare_outputs = _tolerant(item, item.compare_outputs)


def _tolerant(cell: Any, exact: Callable[..., bool]) -> Callable[[Outputs, Outputs], bool]:
    """Wrap nbval's exact comparison of one cell."""

    def compare_outputs(test: Outputs, ref: Outputs) -> bool:
        test, ref = _without_stderr(test), _without_stderr(ref)
        differences = snap_outputs(ref, test, cell_rtol(cell.cell.metadata.get("tags", [])))
        same = exact(test, ref, (*cell.parent.skip_compare, *PICTURES))
        if not same:
            place = f"{cell.parent.path.name}, code cell {cell.cell_num}"
            named = [f"{place}: {difference}" for difference in differences]
            cell.comparison_traceback = named + cell.comparison_traceback
        return same

    return compare_outputs


def cell_rtol(tags: Iterable[str]) -> float:
    """Read a cell's relative tolerance from its tags.

    Parameters
    ----------
    tags : iterable of str
        The cell's tags.

    Returns
    -------
    float
        The number in ``nbval-rtol=...``, else :data:`DEFAULT_RTOL`.

    Raises
    ------
    ValueError
        If the tag holds no number between 0 and 1.
    """
    for tag in tags:
        match = RTOL_TAG.fullmatch(tag)
        if match:
            try:
                rtol = float(match[1])
            except ValueError:
                rtol = -1.0
            if not 0 <= rtol < 1:
                raise ValueError(f"the cell tag {tag!r} needs a number from 0 to below 1")
            return rtol
    return DEFAULT_RTOL


def snap_outputs(committed: Outputs, computed: Outputs, rtol: float) -> list[Difference]:
    """Snap a cell's recomputed outputs to the committed ones.

    Parameters
    ----------
    committed, computed : sequence of dict
        Outputs as nbval passes them to its comparison. The second is changed in place.
    rtol : float
        Relative tolerance.

    Returns
    -------
    list of Difference
        The numbers that do not agree.
    """
    references = _texts(committed)
    differences: list[Difference] = []
    for kind, places in _texts(computed).items():
        for (holder, key), (reference, reference_key) in zip(
            places, references.get(kind, []), strict=False
        ):
            holder[key], found = snap(reference[reference_key], holder[key], rtol)
            differences += found
    return differences


def _texts(outputs: Outputs) -> dict[str, list[tuple[dict[str, Any], str]]]:
    """Collect, for each kind of text, where in the outputs it is kept, in order."""
    places = defaultdict(list)
    for output in outputs:
        for key in output.get("data", {}):
            if key.removeprefix(GLUED) in COMPARED:
                places[key].append((output["data"], key))
        if output.get("output_type") == "stream" and output.get("name") in COMPARED:
            places[output["name"]].append((output, "text"))
    return places


def _without_stderr(outputs: Outputs) -> list[dict[str, Any]]:
    """Leave out standard error: a library's warning is no difference."""
    return [output for output in outputs if output.get("name") != "stderr"]

"""Compare committed with recomputed outputs number by number.

nbval compares text exactly. Before it does so, each recomputed number that agrees with the
committed number is replaced by it here, so that only a real difference is left for nbval to find.
Numbers agree when they differ by at most

* the relative tolerance, 1e-6 unless the cell has a tag such as ``nbval-rtol=1e-3``, or
* one unit in the last printed digit, if both are printed to as many decimals and the committed one
  shows at least three significant digits: two values that agree can be rounded apart.

Whole numbers (``64``, but not ``64.0``) are counts and agree only when they are equal.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

DEFAULT_RTOL = 1e-6
COMPARED = ("text/plain", "text/html", "text/markdown", "stdout")
# Glued values are stored under this prefix, followed by their type.
GLUED = "application/papermill.record/"
PICTURES = ("image/png", "image/jpeg", GLUED + "image/png", GLUED + "image/jpeg")
# The pattern matches neither the digits of a name (conv1, mnist5k) nor those of a version (1.2.3).
NUMBER = re.compile(
    r"(?<![\w.])[-+−]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?!\w|\.[0-9])"
)
RTOL_TAG = re.compile(r"nbval-rtol=(.*)")
SIGNIFICANT_DIGITS = 3


@dataclass(frozen=True)
class Difference:
    """A pair of numbers that do not agree.

    Attributes
    ----------
    committed, computed : str
        Numbers as they are printed.
    rtol : float
        Relative tolerance at which they were compared.
    """

    committed: str
    computed: str
    rtol: float

    def __str__(self) -> str:
        """Name both numbers and the tolerance."""
        return (
            f"computed {self.computed}, committed {self.committed} "
            f"(relative tolerance {self.rtol:g})"
        )


def agree(committed: str, computed: str, rtol: float = DEFAULT_RTOL) -> bool:
    """Decide whether two printed numbers agree.

    Parameters
    ----------
    committed, computed : str
        Numbers as :data:`NUMBER` matches them; the first is the reference.
    rtol : float
        Relative tolerance.

    Returns
    -------
    bool
        Whether they agree, as the module's description says.
    """
    reference, value = _decimal(committed), _decimal(computed)
    if _is_whole(committed) and _is_whole(computed):
        return reference == value
    allowed = Decimal(repr(rtol)) * abs(reference)
    digits, exponent = reference.as_tuple().digits, reference.as_tuple().exponent
    is_rounded = _is_rounded(committed) and len(digits) >= SIGNIFICANT_DIGITS
    if is_rounded and exponent == value.as_tuple().exponent:
        allowed = max(allowed, Decimal(1).scaleb(int(exponent)))
    return abs(reference - value) <= allowed


def _decimal(number: str) -> Decimal:
    return Decimal(number.replace("−", "-"))


def _is_whole(number: str) -> bool:
    return not set(number) & set(".eE")


def _is_rounded(number: str) -> bool:
    """Tell ``0.25`` and ``2.50e+02`` from ``250`` and from ``250.``, which may end a sentence."""
    return "." in number.rstrip(".")


def snap(committed: str, computed: str, rtol: float = DEFAULT_RTOL) -> tuple[str, list[Difference]]:
    """Replace every recomputed number that agrees by the committed one.

    Parameters
    ----------
    committed, computed : str
        Texts, of which the first is the reference.
    rtol : float
        Relative tolerance.

    Returns
    -------
    str
        Computed text with agreeing numbers replaced; unchanged if the texts differ in more than
        their numbers.
    list of Difference
        Numbers that do not agree.
    """
    if _skeleton(committed) != _skeleton(computed):
        return computed, []
    references = iter(NUMBER.findall(committed))
    differences: list[Difference] = []

    def replace(match: re.Match[str]) -> str:
        reference = next(references)
        if agree(reference, match[0], rtol):
            return reference
        differences.append(Difference(reference, match[0], rtol))
        return match[0]

    snapped = NUMBER.sub(replace, computed)
    # With every number in agreement, only the space between words can still differ.
    return (snapped if differences else committed), differences


def _skeleton(text: str) -> str:
    """Return a text without its numbers and without the layout that depends on their width.

    A number of another width moves spaces and line ends, and changes the length of ruled lines.
    """
    numberless = re.sub(r"\s*\0\s*", "\0", NUMBER.sub("\0", text))
    return re.sub(r"-{2,}", "--", re.sub(r"\s+", " ", numberless))


def cell_rtol(tags: Iterable[str]) -> float:
    """Read a cell's relative tolerance from its tags.

    Parameters
    ----------
    tags : iterable of str
        Tags of the cell.

    Returns
    -------
    float
        Number in ``nbval-rtol=...``, else :data:`DEFAULT_RTOL`.

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


def snap_outputs(
    committed: Sequence[dict[str, Any]], computed: Sequence[dict[str, Any]], rtol: float
) -> list[Difference]:
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
        Numbers that do not agree.
    """
    references = _texts(committed)
    differences: list[Difference] = []
    for kind, places in _texts(computed).items():
        for (holder, key), (reference, reference_key) in zip(
            places, references.get(kind, []), strict=False
        ):
            holder[key], new = snap(reference[reference_key], holder[key], rtol)
            differences += new
    return differences


def _texts(outputs: Sequence[dict[str, Any]]) -> dict[str, list[tuple[dict[str, Any], str]]]:
    """Collect the places in the outputs that hold text, in order, by the kind of text."""
    places = defaultdict(list)
    for output in outputs:
        for key in output.get("data", {}):
            if key.removeprefix(GLUED) in COMPARED:
                places[key].append((output["data"], key))
        if output.get("output_type") == "stream" and output.get("name") in COMPARED:
            places[output["name"]].append((output, "text"))
    return places


def _without_stderr(outputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [output for output in outputs if output.get("name") != "stderr"]


def install() -> None:
    """Make nbval compare numbers within their tolerance and name the ones that differ."""
    from nbval.plugin import IPyNbCell, IPyNbFile

    exact = IPyNbCell.compare_outputs
    set_up = IPyNbFile.__init__

    def compare_outputs(self: Any, test: Any, ref: Any, skip_compare: Any = None) -> bool:
        # Committed outputs hold no standard error, so that a library's warning is no difference.
        test, ref = _without_stderr(test), _without_stderr(ref)
        rtol = cell_rtol(self.cell.metadata.get("tags", []))
        differences = snap_outputs(ref, test, rtol)
        same = bool(exact(self, test, ref, skip_compare))
        if not same:
            notebook = self.parent.path.name
            self.comparison_traceback = [
                *(f"{notebook}, code cell {self.cell_num}: {text}" for text in differences),
                *self.comparison_traceback,
            ]
        return same

    def skip_pictures(self: Any, *args: Any, **kwargs: Any) -> None:
        set_up(self, *args, **kwargs)
        self.skip_compare = (*self.skip_compare, *PICTURES)

    IPyNbCell.compare_outputs = compare_outputs
    IPyNbFile.__init__ = skip_pictures

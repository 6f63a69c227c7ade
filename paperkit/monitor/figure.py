"""The picture of a monitored run."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

Series = Mapping[str, tuple[list[int], list[float]]]

# Curves in a panel that a legend names.
_NAMED = 8
# Curves differ in these as well as in colour, for those who see none; from the fifth on a marker
# tells them from the first four.
_CURVES = ("-", "--", "-.", ":")
_THRESHOLDS = (":", "--", "-.")


def draw(
    series: Series, measures: Sequence[str], thresholds: Mapping[str, Mapping[str, float]]
) -> Figure:
    """Draw a panel for each measure that was read, with a curve for each layer or order."""
    curves = {
        measure: {name: line for name, line in series.items() if name.split("/", 1)[0] == measure}
        for measure in measures
    }
    shown = {measure: lines for measure, lines in curves.items() if lines}
    figure, panels = plt.subplots(
        len(shown),
        figsize=(7, 1.9 * len(shown) + 0.5),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, (measure, lines) in zip(panels[:, 0], shown.items(), strict=True):
        for i, (name, (steps, values)) in enumerate(lines.items()):
            label = name.partition("/")[2].replace("/", ", order ") or None
            few = len(steps) < 60
            marker = "o" if i >= len(_CURVES) else "." if few else None
            look: dict[str, Any] = {"marker": marker, "markevery": None if few else 0.1}
            axes.plot(steps, values, ls=_CURVES[i % len(_CURVES)], label=label, **look)
        for i, (label, value) in enumerate(thresholds.get(measure, {}).items()):
            line = _THRESHOLDS[i % len(_THRESHOLDS)]
            axes.axhline(value, color="0.35", lw=1.2, ls=line, label=label)
        handles, _ = axes.get_legend_handles_labels()
        if 0 < len(handles) <= _NAMED:
            # Beside the panel it hides no curve.
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes.set_ylabel(textwrap.fill(measure.replace("_", " "), 20))
    panels[-1, 0].set_xlabel("step")
    return figure

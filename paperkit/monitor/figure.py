"""The picture of a monitored run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

Series = Mapping[str, tuple[list[int], list[float]]]

# Curves in a panel that a legend names.
_NAMED = 8
_LINES = (":", "--", "-.")


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
        for name, (steps, values) in lines.items():
            label = name.partition("/")[2].replace("/", ", order ") or None
            marker = "." if len(steps) < 60 else None
            axes.plot(steps, values, marker=marker, label=label)
        for i, (label, value) in enumerate(thresholds.get(measure, {}).items()):
            axes.axhline(value, color="0.35", lw=1.2, ls=_LINES[i % len(_LINES)], label=label)
        handles, _ = axes.get_legend_handles_labels()
        if 0 < len(handles) <= _NAMED:
            # Beside the panel it hides no curve.
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
        axes.set_ylabel(measure.replace("_", " "), fontsize="small")
    panels[-1, 0].set_xlabel("step")
    return figure

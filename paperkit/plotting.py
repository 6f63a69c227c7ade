"""The book's figures: one style, and the pictures that several chapters share.

Every figure is drawn on white, so that it is a light card on a dark page, and tells its curves
apart by lightness and by line style as well as by colour, so that it reads in grey.

``python -m paperkit.plotting`` draws the landing page's figure again from its record.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from paperkit import arguments

if TYPE_CHECKING:
    from paperkit.experiments import Record

INK = "#1f2430"
QUIET = "#6b7280"
LINE_STYLES = ("-", "--", "-.", ":")
# Neighbours differ in lightness, because nothing else of a colour is left in grey.
COLORS = ("#16324f", "#2a9d8f", "#a62639", "#e9a93b", "#6a4c93")

_NIGHT = "#0b0e14"
_STAR = "#dfe4ee"


def book_style() -> None:
    """Set Matplotlib's defaults for every figure of a chapter.

    Examples
    --------
    >>> import matplotlib
    >>> from paperkit.plotting import book_style
    >>> book_style()
    >>> matplotlib.rcParams["figure.dpi"], matplotlib.rcParams["axes.spines.top"]
    (120.0, False)
    """
    styles = [LINE_STYLES[i % len(LINE_STYLES)] for i in range(len(COLORS))]
    mpl.rcParams.update(
        {
            "figure.dpi": 120,
            "savefig.dpi": 120,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.labelsize": 10,
            "legend.fontsize": 9,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": QUIET,
            "xtick.color": QUIET,
            "ytick.color": QUIET,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e3e6eb",
            "grid.linewidth": 0.8,
            "lines.linewidth": 1.8,
            "legend.frameon": False,
            "axes.prop_cycle": cycler(color=COLORS, linestyle=styles),
        }
    )


def layer_styles(layers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return for each layer the keyword arguments of its curve, from dark (first) to light.

    Parameters
    ----------
    layers : sequence of str
        Names of layers, from the input to the output.

    Returns
    -------
    dict
        Arguments ``color`` and ``linestyle`` by layer.

    Examples
    --------
    >>> from paperkit.plotting import layer_styles
    >>> styles = layer_styles(["conv1", "conv2", "fc"])
    >>> [style["linestyle"] for style in styles.values()]  # told apart in grey, too
    ['-', '--', '-.']
    """
    layers = arguments.strings("layers", layers, "a list of names of layers")
    positions = np.linspace(0.0, 0.8, len(layers))
    return {
        name: {
            "color": mpl.colormaps["viridis"](float(position)),
            "linestyle": LINE_STYLES[i % len(LINE_STYLES)],
        }
        for i, (name, position) in enumerate(zip(layers, positions, strict=True))
    }


def plot_layer_spectra(
    eigenvalues: Mapping[str, Any],
    dimensions: Mapping[str, int],
    rank_bound: int,
    *,
    small: float = 0.01,
    columns: int = 4,
) -> Figure:
    """Draw every layer's eigenvalues against their index, a panel a layer, on log axes.

    Parameters
    ----------
    eigenvalues : mapping of str to sequence or Tensor
        Nonzero eigenvalues of each layer, in descending order.
    dimensions : mapping of str to int
        Number d_l of each layer's weights. Eigenvalues between the last nonzero one and d_l are
        zero; this stretch is shaded.
    rank_bound : int
        Bound n(C − 1) of the rank, drawn as a dashed line where it is smaller than d_l.
    small : float
        Fraction of the layer's largest eigenvalue that a dotted line marks.
    columns : int
        Number of panels in a row.

    Returns
    -------
    Figure

    Examples
    --------
    >>> from paperkit.plotting import plot_layer_spectra
    >>> spectra = {"conv1": [3.0, 1.0, 0.1], "fc": [2.0, 0.5]}
    >>> figure = plot_layer_spectra(spectra, dimensions={"conv1": 9, "fc": 4}, rank_bound=3)
    >>> [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    ['conv1', 'fc']
    """
    _check_spectra(eigenvalues, dimensions)
    rank_bound = arguments.integer("rank_bound", rank_bound, at_least=1)
    small = arguments.number("small", small, above=0)
    columns = arguments.integer("columns", columns, at_least=1)
    rows = math.ceil(len(eigenvalues) / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(9.2, 2.25 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    styles = layer_styles(list(eigenvalues))
    for axes, (name, values) in zip(grid.flat, eigenvalues.items(), strict=False):
        descending = np.asarray(values, dtype=float)
        dimension = dimensions[name]
        index = np.arange(1, len(descending) + 1)
        axes.loglog(index, descending, color=styles[name]["color"], linewidth=2.2)
        axes.axvspan(len(descending), dimension, color="#cfd4dc", alpha=0.6, linewidth=0)
        if rank_bound < dimension:
            axes.axvline(rank_bound, color=INK, linestyle="--", linewidth=1)
        axes.axhline(small * descending[0], color=QUIET, linestyle=":", linewidth=1)
        axes.set_title(name, loc="left")
        axes.text(0.04, 0.07, f"$d_l$ = {dimension:,}", transform=axes.transAxes, fontsize=9)
        axes.grid(axis="x", visible=False)
        axes.minorticks_off()
    for axes in grid.flat[len(eigenvalues) :]:
        axes.set_visible(False)
    figure.supxlabel("index $j$ of the eigenvalue", fontsize=10)
    figure.supylabel("eigenvalue $\\lambda_j$", fontsize=10)
    return figure


def plot_curves(axes: Axes, x: Sequence[float], curves: Mapping[str, Sequence[float]]) -> None:
    """Draw one curve a layer in the layers' styles, named beside the axes.

    Parameters
    ----------
    axes : Axes
        Axes to draw on.
    x : sequence of float
        Orders α, or numbers of samples n.
    curves : mapping of str to sequence of float
        Curves by layer, with a value for each x.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from paperkit.plotting import plot_curves
    >>> axes = Figure().add_subplot()
    >>> plot_curves(axes, [0.5, 1.0, 2.0], {"conv1": [1.2, 1.0, 0.8], "fc": [0.7, 0.6, 0.5]})
    >>> [line.get_label() for line in axes.lines]
    ['conv1', 'fc']
    """
    arguments.instance("axes", axes, Axes)
    points = len(arguments.vector("x", x, finite=False))
    for name, values in arguments.mapping("curves", curves, "a mapping to values").items():
        if len(arguments.vector(f"curves[{name!r}]", values, finite=False)) != points:
            raise ValueError(f"curves[{name!r}] has not as many values as x, which has {points}.")
    styles = layer_styles(list(curves))
    for name, values in curves.items():
        axes.plot(x, values, label=name, **styles[name])
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=3)


def plot_layer_profile(
    axes: Axes,
    values: Mapping[str, float],
    others: Sequence[Mapping[str, float]] = (),
    *,
    label: str = "",
    series: int = 0,
) -> None:
    """Draw one value a layer, from the input to the output, before those of other networks.

    Parameters
    ----------
    axes : Axes
        Axes to draw on.
    values : mapping of str to float
        Values by layer, from the input to the output.
    others : sequence of mapping
        Values of other networks, drawn as grey dots.
    label : str
        Name of the series in the legend.
    series : int
        Number of the series on these axes, from 0, which chooses marker and colour.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from paperkit.plotting import plot_layer_profile
    >>> axes = Figure().add_subplot()
    >>> plot_layer_profile(axes, {"conv1": 1.2, "fc": 0.7}, others=[{"conv1": 1.1, "fc": 0.9}])
    >>> [label.get_text() for label in axes.get_xticklabels()]
    ['conv1', 'fc']
    """
    arguments.instance("axes", axes, Axes)
    series = arguments.integer("series", series, at_least=0)
    arguments.instance("label", label, str)
    arguments.mapping("values", values, "a mapping from layers to numbers")
    for name, value in values.items():
        arguments.number(f"values[{name!r}]", value, finite=False)
    for other in arguments.iterable("others", others, "mappings with the same layers"):
        if not isinstance(other, Mapping) or not set(values) <= set(other):
            shown = arguments.shown(other)
            raise ValueError(f"others has {shown}: pass mappings with the layers of values.")
    positions = range(len(values))
    for other in others:
        heights = [other[name] for name in values]
        axes.plot(positions, heights, "o", color="#b4bac4", markersize=5)
    axes.plot(
        positions,
        list(values.values()),
        marker="osD^"[series % 4],
        color=COLORS[series % len(COLORS)],
        linestyle=LINE_STYLES[series % len(LINE_STYLES)],
        linewidth=1,
        label=label or None,
    )
    axes.set_xticks(positions, list(values), rotation=30, ha="right", rotation_mode="anchor")


def _check_spectra(eigenvalues: Mapping[str, Any], dimensions: Mapping[str, int]) -> None:
    spectra = arguments.mapping("eigenvalues", eigenvalues, "a mapping from layers to spectra")
    if not spectra:
        raise ValueError("eigenvalues is empty: pass one layer's at least.")
    arguments.mapping("dimensions", dimensions, "a mapping from layers to dimensions")
    for name, values in spectra.items():
        arguments.vector(f"eigenvalues[{name!r}]", values)
        if name not in dimensions:
            raise ValueError(f"dimensions={arguments.shown(dimensions)} lacks layer {name}.")
        arguments.integer(f"dimensions[{name!r}]", dimensions[name], at_least=1)


def landing_figure(
    eigenvalues: Mapping[str, Sequence[float]], dimensions: Mapping[str, int]
) -> Figure:
    """Draw every layer's spectrum as an emission spectrum: one bright line an eigenvalue.

    Parameters
    ----------
    eigenvalues : mapping of str to sequence of float
        Eigenvalues of each layer; zeros may be left out.
    dimensions : mapping of str to int
        Number d_l of each layer's weights.

    Returns
    -------
    Figure
        Picture on black, for light and dark pages alike.

    Examples
    --------
    >>> from paperkit.plotting import landing_figure
    >>> spectra = {"conv1": [3.0, 0.1], "fc": [2.0]}
    >>> figure = landing_figure(spectra, dimensions={"conv1": 9, "fc": 4})
    >>> figure.axes[0].texts[1].get_text().splitlines()
    ['2 lines', '7 zeros']
    """
    _check_spectra(eigenvalues, dimensions)
    for name, values in eigenvalues.items():
        if not any(value > 0 for value in values):
            raise ValueError(f"eigenvalues[{name!r}] has none that is positive.")
    lines = {
        name: np.log10([value for value in values if value > 0])
        for name, values in eigenvalues.items()
    }
    low = min(positions.min() for positions in lines.values()) - 0.2
    high = max(positions.max() for positions in lines.values()) + 0.25
    with mpl.rc_context({"font.size": 9, "text.color": _STAR, "axes.grid": False}):
        figure, rows = plt.subplots(
            len(eigenvalues),
            1,
            figsize=(9.6, 0.56 * len(eigenvalues) + 0.75),
            sharex=True,
            squeeze=False,
            facecolor=_NIGHT,
        )
        height = figure.get_figheight()
        figure.subplots_adjust(0.135, 0.64 / height, 0.875, 1 - 0.13 / height, hspace=0.28)
        for axes, (name, positions) in zip(rows.flat, lines.items(), strict=True):
            _draw_lines(axes, positions, low, high)
            beside = {"transform": axes.transAxes, "va": "center"}
            axes.text(-0.012, 0.5, name, ha="right", family="monospace", **beside)
            zeros = dimensions[name] - len(positions)
            note = f"{len(positions):,} lines\n{zeros:,} zeros"
            axes.text(1.012, 0.5, note, ha="left", fontsize=7.5, linespacing=1.35, **beside)
        last = rows.flat[-1]
        ticks = range(math.ceil(low), math.floor(high) + 1, 2)
        last.set_xticks(ticks, [f"$10^{{{tick}}}$" for tick in ticks])
        last.tick_params(bottom=True, labelbottom=True, color=_STAR, labelcolor=_STAR)
        last.set_xlabel("eigenvalue of the layer's Hessian block", color=_STAR)
    return figure


def _draw_lines(axes: Axes, positions: np.ndarray, low: float, high: float) -> None:
    axes.set(xlim=(low, high), ylim=(0, 1), facecolor="black")
    axes.tick_params(left=False, labelleft=False, bottom=False, labelbottom=False)
    axes.xaxis.set_minor_locator(NullLocator())
    for spine in axes.spines.values():
        spine.set_visible(False)
    colors = mpl.colormaps["turbo"](0.06 + 0.88 * (positions - low) / (high - low))
    segments = [[(x, 0.0), (x, 1.0)] for x in positions]
    # A wide faint line lies under each thin bright one, so that a glow shows where lines crowd.
    axes.add_collection(LineCollection(segments, colors=colors, linewidths=2.4, alpha=0.16))
    axes.add_collection(LineCollection(segments, colors=colors, linewidths=0.55, alpha=0.85))


def landing_record(store: str | Path | None = None) -> Record:
    """Return the record that the landing page's figure is drawn from: it keeps eigenvalues.

    Raises
    ------
    ValueError
        If no record of the study ``mnist5k_spectra`` at the laptop profile keeps them.

    Examples
    --------
    >>> from paperkit.plotting import landing_record
    >>> record = landing_record()
    >>> record.study, set(record.metrics["eigenvalues"]) == set(record.metrics["layers"])
    ('mnist5k_spectra', True)
    """
    from paperkit.experiments import records_of

    for record in records_of("mnist5k_spectra", "laptop", store):
        if "eigenvalues" in record.metrics:
            return record
    raise ValueError(
        "the study mnist5k_spectra has no laptop record that keeps eigenvalues; run "
        "`paperkit study run mnist5k_spectra` first."
    )


def write_landing(path: Path, record: Record) -> None:
    """Draw the landing page's figure; the file names its record in its metadata.

    Examples
    --------
    >>> from pathlib import Path
    >>> from paperkit.plotting import landing_record, write_landing
    >>> write_landing(Path("landing.png"), landing_record())
    >>> Path("landing.png").stat().st_size > 10_000
    True
    """
    from paperkit.experiments import Record

    path = arguments.path("path", path)
    arguments.instance("record", record, Record, "as landing_record returns")
    eigenvalues = {name: record.metrics["eigenvalues"][name] for name in record.metrics["layers"]}
    figure = landing_figure(eigenvalues, record.metrics["dimension"])
    source = f"study {record.study}, record {record.key} of {record.provenance['date']}"
    figure.savefig(path, dpi=180, metadata={"Source": source}, facecolor=figure.get_facecolor())
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw ``book/_static/landing.png`` again: ``python -m paperkit.plotting``.

    Examples
    --------
    >>> from paperkit.plotting import main
    >>> main(["--target", "landing.png"])  # doctest: +ELLIPSIS
    landing.png: drawn from record ... of mnist5k_spectra (...)
    """
    from paperkit.experiments.paths import repository_root

    parser = argparse.ArgumentParser(description="Draw the landing page's figure from its record.")
    parser.add_argument("--store", help="the working store that is read beside results/")
    parser.add_argument("--target", type=Path, help="the file (book/_static/landing.png)")
    parsed = parser.parse_args(arguments)
    target = parsed.target or repository_root() / "book" / "_static" / "landing.png"
    record = landing_record(parsed.store)
    write_landing(target, record)
    print(f"{target}: drawn from record {record.key} of {record.study} ({record.location})")


if __name__ == "__main__":
    main()

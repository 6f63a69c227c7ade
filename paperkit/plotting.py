"""The book's figures: one style, and the pictures that several chapters share.

Every figure is drawn on white, narrow enough to be read on a telephone, and tells its curves apart
by lightness and by line style or marker as well as by colour, so that it reads in grey. On a dark
page the book's style sheet turns its lightness over and keeps its hues, so one file serves both; in
a notebook it is a light card. Notebooks keep the figures as SVG, which is sharp on any screen.

``python -m paperkit.plotting`` draws the landing page's figure again from its record.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from paperkit import arguments

if TYPE_CHECKING:
    from paperkit.experiments import Record

INK = "#1f2430"
QUIET = "#6b7280"
# The last one is a dash and two dots.
LINE_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (4, 1.2, 1, 1.2, 1, 1.2)))
MARKERS = ("o", "s", "D", "^")
# Neighbours differ in lightness, because nothing else of a colour is left in grey. Every colour has
# a contrast of 3 at least, on white and turned over on the dark page.
COLORS = ("#16324f", "#1f8a7d", "#a62639", "#c77d0a", "#6a4c93")
# Colours of a table's cells. They jump from the pale half, which bears black numbers, to the strong
# one, which bears white ones, so that every number has a contrast of 4.5, turned over as well.
HEAT = ListedColormap(
    mpl.colormaps["YlGnBu"](np.r_[np.linspace(0, 0.48, 128), np.linspace(0.7, 1, 128)]), "heat"
)
# Inches of a chapter's figure: 528 of a page's pixels. Panels stand one below the other.
WIDTH = 5.5
# Points, 14 pixels of a page, of which a telephone that shrinks such a figure leaves 9.
TEXT_SIZE = 10.5

# Files of the landing page's figure, by whether they are drawn narrow, for a telephone.
LANDING = {"landing.png": False, "landing-narrow.png": True}
_WIDE, _NARROW = 8.0, 3.75  # inches
# Share of the trace that the landing page's figure tells the number of directions for.
_SHARE = 0.9


def book_style() -> None:
    """Set Matplotlib's defaults for every figure of a chapter, which a notebook keeps as SVG.

    Examples
    --------
    >>> import matplotlib
    >>> from paperkit.plotting import book_style
    >>> book_style()
    >>> matplotlib.rcParams["font.size"], matplotlib.rcParams["axes.spines.top"]
    (10.5, False)
    """
    texts = ["axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize"]
    texts += ["legend.fontsize", "legend.title_fontsize", "figure.labelsize", "font.size"]
    sizes: dict[Any, float] = dict.fromkeys(texts, TEXT_SIZE)
    mpl.rcParams.update(
        sizes
        | {
            "figure.figsize": (WIDTH, 3.6),
            "figure.constrained_layout.use": True,
            # Parts of a figure that are kept as pixels have two for each of the page's.
            "figure.dpi": 192,
            "savefig.dpi": 192,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            # The same figure is the same file in every run.
            "svg.hashsalt": "paperkit",
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
            "legend.handlelength": 2.6,
            "axes.prop_cycle": cycler(color=COLORS, linestyle=LINE_STYLES),
        }
    )
    _keep_svg()


def _keep_svg() -> None:
    """Let the notebook that runs this, if one does, keep its figures as SVG of their own size."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None:
        return
    from matplotlib_inline.config import InlineBackend

    backend = InlineBackend.instance(parent=shell)
    # A figure that is cut to its contents would be shown at another scale than the others, and a
    # date would make each run's file another one.
    unnamed: dict[str, Any] = {"bbox_inches": None, "metadata": {"Date": None, "Creator": None}}
    backend.print_figure_kwargs = unnamed
    backend.figure_formats = {"svg"}


def layer_styles(layers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return for each layer the keyword arguments of its curve, from dark (first) to light.

    Parameters
    ----------
    layers : sequence of str
        Names of layers, from the input to the output.

    Returns
    -------
    dict
        Arguments ``color`` and ``linestyle`` by layer, and from the sixth layer on, where the
        line styles begin again, ``marker`` and how it is drawn.

    Examples
    --------
    >>> from paperkit.plotting import layer_styles
    >>> styles = layer_styles(["conv1", "conv2", "fc"])
    >>> [style["linestyle"] for style in styles.values()]  # told apart in grey, too
    ['-', '--', '-.']
    """
    layers = arguments.strings("layers", layers, "a list of names of layers")
    positions = np.linspace(0.0, 0.6, len(layers))  # lighter colours are too pale for a line
    styles: dict[str, dict[str, Any]] = {}
    for i, (name, position) in enumerate(zip(layers, positions, strict=True)):
        again, line = divmod(i, len(LINE_STYLES))
        styles[name] = {
            "color": mpl.colormaps["viridis"](float(position)),
            "linestyle": LINE_STYLES[line],
        }
        if again:
            marker = MARKERS[(again - 1) % len(MARKERS)]
            styles[name] |= {"marker": marker, "markersize": 4.5, "markevery": 0.12}
    return styles


def plot_layer_spectra(
    eigenvalues: Mapping[str, Any],
    dimensions: Mapping[str, int],
    rank_bound: int,
    *,
    small: float = 0.01,
    columns: int = 2,
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
        figsize=(WIDTH, 1.7 * rows),
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
        axes.axvspan(len(descending), dimension, color="#dde1e7", linewidth=0)
        if rank_bound < dimension:
            axes.axvline(rank_bound, color=INK, linestyle="--", linewidth=1)
        axes.axhline(small * descending[0], color=QUIET, linestyle=":", linewidth=1)
        axes.set_title(name, loc="left")
        axes.text(0.04, 0.07, f"$d_l$ = {dimension:,}", transform=axes.transAxes)
        axes.grid(axis="x", visible=False)
        axes.minorticks_off()
    for axes in grid.flat[len(eigenvalues) :]:
        axes.set_visible(False)
    figure.supxlabel("index $j$ of the eigenvalue")
    figure.supylabel("eigenvalue $\\lambda_j$")
    return figure


def plot_curves(axes: Axes, x: Sequence[float], curves: Mapping[str, Sequence[float]]) -> None:
    """Draw one curve a layer in the layers' styles, named beside the axes.

    The names stand in the order of the curves' ends, the highest on top.

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
    ordered = sorted(curves, key=lambda name: -float(curves[name][-1]))
    lines = {name: axes.plot(x, curves[name], label=name, **styles[name])[0] for name in curves}
    handles = [lines[name] for name in ordered]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=3.2)


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
        axes.plot(positions, heights, "o", color="#8a93a2", markersize=4, markerfacecolor="none")
    axes.plot(
        positions,
        list(values.values()),
        marker=MARKERS[series % len(MARKERS)],
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
    eigenvalues: Mapping[str, Sequence[float]],
    dimensions: Mapping[str, int],
    *,
    narrow: bool = False,
) -> Figure:
    """Draw every layer's spectrum as a strip with one line an eigenvalue, the large ones strong.

    The fewest directions that carry nine tenths of the trace of all blocks are shaded, and a
    sentence says how many these are.

    Parameters
    ----------
    eigenvalues : mapping of str to sequence of float
        Eigenvalues of each layer; zeros may be left out.
    dimensions : mapping of str to int
        Number d_l of each layer's weights.
    narrow : bool
        Draw it at a telephone's width, without the counts beside the strips.

    Returns
    -------
    Figure

    Examples
    --------
    >>> from paperkit.plotting import landing_figure
    >>> spectra = {"conv1": [3.0, 0.1], "fc": [2.0]}
    >>> figure = landing_figure(spectra, dimensions={"conv1": 9, "fc": 4})
    >>> print(figure.get_suptitle())
    2 of 13 directions (shaded) carry 90 % of the trace
    >>> figure.axes[0].texts[1].get_text().splitlines()
    ['2 lines', '7 zeros']
    """
    _check_spectra(eigenvalues, dimensions)
    narrow = arguments.flag("narrow", narrow)
    for name, values in eigenvalues.items():
        if not any(value > 0 for value in values):
            raise ValueError(f"eigenvalues[{name!r}] has none that is positive.")
    strips = {
        name: np.log10([value for value in values if value > 0])
        for name, values in eigenvalues.items()
    }
    everything = np.concatenate(list(strips.values()))
    low, high = everything.min() - 0.2, everything.max() + 0.25
    count, border = _steep(everything)
    width = _NARROW if narrow else _WIDE
    with mpl.rc_context({"font.size": TEXT_SIZE, "text.color": INK, "axes.grid": False}):
        figure, rows = plt.subplots(
            len(strips),
            1,
            figsize=(width, 0.42 * len(strips) + 1.0),
            sharex=True,
            squeeze=False,
            layout="none",
            facecolor="white",
        )
        height = figure.get_figheight()
        left, right = 1.35 / width, 1 - (0.12 if narrow else 1.05) / width
        top = 0.62 if narrow else 0.4
        figure.subplots_adjust(left, 0.58 / height, right, 1 - top / height, hspace=0.28)
        for axes, (name, positions) in zip(rows.flat, strips.items(), strict=True):
            _draw_strip(axes, positions, low, high)
            axes.axvspan(border, high, color="#ffdf9e", linewidth=0)
            beside: dict[str, Any] = {"transform": axes.transAxes, "va": "center"}
            axes.text(-0.06 / width, 0.5, name, ha="right", family="monospace", **beside)
            if not narrow:
                zeros = dimensions[name] - len(positions)
                note = f"{len(positions):,} lines\n{zeros:,} zeros"
                axes.text(1.012, 0.5, note, ha="left", linespacing=1.05, **beside)
        last = rows.flat[-1]
        ticks = range(math.ceil(low), math.floor(high) + 1, 4 if narrow else 2)
        last.set_xticks(ticks, [f"$10^{{{tick}}}$" for tick in ticks])
        last.tick_params(bottom=True, labelbottom=True, color=INK, labelcolor=INK)
        of_what = "eigenvalue" if narrow else "eigenvalue of the layer's Hessian block"
        last.set_xlabel(of_what, color=INK)
        total = sum(dimensions[name] for name in strips)
        sentence = f"{count:,} of {total:,} directions (shaded){chr(10) if narrow else ' '}"
        sentence += f"carry {100 * _SHARE:.0f} % of the trace"
        look: dict[str, Any] = {"ha": "right", "fontsize": TEXT_SIZE + 1.5, "fontweight": "bold"}
        figure.suptitle(sentence, x=right, y=1 - 0.08 / height, **look)
    return figure


def _steep(logarithms: np.ndarray) -> tuple[int, float]:
    """Count the largest eigenvalues that carry ``_SHARE`` of their sum, and part them off."""
    descending = np.sort(logarithms)[::-1]
    carried = np.cumsum(10**descending) / np.sum(10**descending)
    count = int(np.argmax(carried >= _SHARE)) + 1
    following = descending[count] if count < len(descending) else descending[-1] - 0.2
    return count, float(descending[count - 1] + following) / 2


def _draw_strip(axes: Axes, positions: np.ndarray, low: float, high: float) -> None:
    axes.set(xlim=(low, high), ylim=(0, 1), facecolor="#f3f5f8")
    axes.tick_params(left=False, labelleft=False, bottom=False, labelbottom=False)
    axes.xaxis.set_minor_locator(NullLocator())
    for spine in axes.spines.values():
        spine.set_visible(False)
    strength = (positions - low) / (high - low)
    # The scale of colours runs evenly from pale to dark, so that the faint ones recede.
    colors = mpl.colormaps["YlGnBu"](0.15 + 0.85 * strength**1.5)
    segments = [[(x, 0.0), (x, 1.0)] for x in positions]
    # The lines are kept as pixels, because thousands of them are smaller so.
    lines = LineCollection(segments, colors=colors, linewidths=0.5 + 1.3 * strength**3)
    axes.add_collection(lines).set_rasterized(True)


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


def write_landing(path: Path, record: Record, *, narrow: bool = False) -> None:
    """Draw the landing page's figure; the file names its record in its metadata.

    Parameters
    ----------
    path : Path
        File to write, a PNG.
    record : Record
        Record, as :func:`landing_record` returns it.
    narrow : bool
        Draw it at a telephone's width.

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
    narrow = arguments.flag("narrow", narrow)
    arguments.instance("record", record, Record, "as landing_record returns")
    eigenvalues = {name: record.metrics["eigenvalues"][name] for name in record.metrics["layers"]}
    figure = landing_figure(eigenvalues, record.metrics["dimension"], narrow=narrow)
    source = f"study {record.study}, record {record.key} of {record.provenance['date']}"
    figure.savefig(path, dpi=192, metadata={"Source": source}, bbox_inches=None)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the landing page's figures again: ``python -m paperkit.plotting``.

    Examples
    --------
    >>> from paperkit.plotting import main
    >>> main(["--target", "."])  # doctest: +ELLIPSIS
    landing.png: drawn from record ... of mnist5k_spectra (...)
    landing-narrow.png: drawn from record ... of mnist5k_spectra (...)
    """
    from paperkit.experiments.paths import repository_root

    parser = argparse.ArgumentParser(description="Draw the landing page's figure from its record.")
    parser.add_argument("--store", help="the working store that is read beside results/")
    parser.add_argument("--target", type=Path, help="the folder (book/_static)")
    parsed = parser.parse_args(arguments)
    folder = parsed.target or repository_root() / "book" / "_static"
    record = landing_record(parsed.store)
    for name, narrow in LANDING.items():
        write_landing(folder / name, record, narrow=narrow)
        print(f"{name}: drawn from record {record.key} of {record.study} ({record.location})")


if __name__ == "__main__":
    main()

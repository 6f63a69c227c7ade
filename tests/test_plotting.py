"""The book's figures: what they draw, and that they read at the page's width, in grey and in dark.

The style sheet turns a figure over on the dark page. The tests compute what it makes of a colour,
by the matrix of the filter ``hue-rotate(180deg)`` in the specification of CSS filter effects.
"""

import io
import itertools
import json
import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from paperkit import plotting
from paperkit.experiments import Record
from paperkit.experiments.archive import Archive
from paperkit.experiments.paths import repository_root
from paperkit.monitor.figure import draw

SPECTRA = {"conv1": [4.0, 1.0, 1e-3], "fc": [2.0, 1e-6]}
DIMENSIONS = {"conv1": 3, "fc": 40}

SMALLEST = 12  # pixels of the page, of any text
SMALLEST_ON_A_TELEPHONE = 9
SHOWN = 672  # pixels of the page, of a figure that fills a column which is not at its widest
TELEPHONE = 342  # the same on a telephone 390 pixels wide

DARK = "#121212"
TURNED_HUES = np.array([[-0.574, 1.430, 0.144], [0.426, 0.430, 0.144], [0.426, 1.430, -0.856]])
LAYERS = [f"layer{i}" for i in range(8)]


@pytest.fixture(autouse=True)
def own_settings():
    """Let no figure and no setting outlive its test."""
    with matplotlib.rc_context({"backend": "agg"}):
        yield
        plt.close("all")


def lightness(color):
    """Relative luminance to the power 1/2.2, near what grey print shows."""
    linear = np.array(to_rgb(color)) ** 2.2
    return float(linear @ [0.2126, 0.7152, 0.0722]) ** (1 / 2.2)


def luminance(color):
    """Relative luminance, as the accessibility guidelines define it."""
    color = np.array(to_rgb(color))
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def dark(color):
    """The colour that the dark page shows: turned over, and screened onto the page's ground."""
    turned = np.clip(TURNED_HUES @ (1 - np.array(to_rgb(color))), 0, 1)
    return tuple(1 - (1 - turned) * (1 - np.array(to_rgb(DARK))))


def contrasts(color, ground="white"):
    """Contrasts of a colour with what it stands on, on the light page and on the dark one."""
    return contrast(color, ground), contrast(dark(color), dark(ground))


def smallest_text(figure, shown):
    """Pixels of a figure's smallest text where the page shows the figure so many pixels wide."""
    sizes = [t.get_fontsize() for t in figure.findobj(Text) if t.get_text() and t.get_visible()]
    pixels_per_point = 96 / 72 * min(1, shown / (96 * figure.get_figwidth()))
    return min(sizes) * pixels_per_point


def record(eigenvalues):
    metrics = {"layers": ["fc", "conv1"], "eigenvalues": eigenvalues, "dimension": DIMENSIONS}
    return Record("mnist5k_spectra", "laptop", {"seed": 1}, metrics, {"date": "2026-01-01"})


def test_neighbouring_colours_differ_in_grey():
    values = [lightness(color) for color in plotting.COLORS]
    assert min(abs(a - b) for a, b in itertools.pairwise(values)) > 0.1


def test_text_and_lines_have_contrast_on_the_light_page_and_on_the_dark_one():
    assert min(contrasts(plotting.INK)) > 4.5
    layers = [style["color"] for style in plotting.layer_styles(LAYERS).values()]
    for color in (plotting.QUIET, *plotting.COLORS, *layers):
        assert min(contrasts(color)) >= 3


def test_a_number_on_a_coloured_cell_has_contrast_on_both_pages():
    for share in np.linspace(0, 1, 256):
        number = "white" if share > 0.5 else "black"
        assert min(contrasts(number, plotting.HEAT(share)[:3])) >= 4.5


def test_the_style_sheet_turns_figures_over_on_the_ground_that_the_theme_gives_the_dark_page():
    sheet = (repository_root() / "book" / "_static" / "paperkit.css").read_text()
    assert "filter: invert(1) hue-rotate(180deg);\n  mix-blend-mode: screen;" in sheet
    theme = Path(pytest.importorskip("sphinx_book_theme").__file__).parent
    styles = theme / "theme" / "sphinx_book_theme" / "static" / "styles" / "sphinx-book-theme.css"
    assert f"--pst-color-background:{DARK}" in styles.read_text()


def spectra_of_layers():
    return plotting.plot_layer_spectra(SPECTRA, DIMENSIONS, rank_bound=20)


def curves_of_layers():
    figure, axes = plt.subplots()
    plotting.plot_curves(axes, [1, 2], {"conv1": [3.0, 2.0], "fc": [1.0, 0.5]})
    axes.set(xlabel="order", title="both layers")
    return figure


def profile_of_layers():
    figure, axes = plt.subplots()
    plotting.plot_layer_profile(axes, {"conv1": 3.0, "fc": 1.0}, label="order ½")
    axes.legend(title="entropies")
    return figure


def followed_run():
    series = {f"trace/{layer}": ([1, 2], [3.0, 2.0]) for layer in LAYERS}
    return draw(series, ["trace"], {})


def landing():
    return plotting.landing_figure(SPECTRA, DIMENSIONS)


@pytest.mark.parametrize(
    "helper", [spectra_of_layers, curves_of_layers, profile_of_layers, followed_run, landing]
)
def test_all_text_of_a_figure_has_twelve_pixels_on_the_page(helper):
    plotting.book_style()
    figure = helper()
    figure.canvas.draw()
    assert smallest_text(figure, SHOWN) >= SMALLEST


def test_the_narrow_landing_figure_has_text_of_twelve_pixels_on_a_telephone():
    figure = plotting.landing_figure(SPECTRA, DIMENSIONS, narrow=True)
    assert smallest_text(figure, TELEPHONE) >= SMALLEST


@pytest.mark.parametrize(
    "chapter", sorted((repository_root() / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_all_text_of_a_chapters_figures_can_be_read_on_the_page_and_on_a_telephone(chapter):
    assert chapter.stat().st_size < 2**21
    cells = json.loads(chapter.read_text(encoding="utf-8"))["cells"]
    shown = [o["data"] for cell in cells for o in cell.get("outputs", []) if "data" in o]
    assert not any("image/png" in data for data in shown)
    figures = ["".join(data["image/svg+xml"]) for data in shown if "image/svg+xml" in data]
    assert figures
    for figure in figures:
        points = float(re.search(r'<svg[^>]* width="([\d.]+)pt"', figure)[1])
        # A text is drawn from outlines of a size of 100, upside down.
        sizes = [100 * float(scale) for scale in re.findall(r"scale\(([\d.]+) -", figure)]
        assert min(sizes) * min(96 / 72, SHOWN / points) >= SMALLEST
        assert min(sizes) * min(96 / 72, TELEPHONE / points) >= SMALLEST_ON_A_TELEPHONE


def test_the_same_figure_is_the_same_file():
    plotting.book_style()
    files = []
    for _ in range(2):
        spectra_of_layers().savefig(file := io.BytesIO(), format="svg", metadata={"Date": None})
        files.append(file.getvalue())
    assert files[0] == files[1]


def test_lines_are_told_apart_without_colour():
    assert len(set(plotting.LINE_STYLES)) == len(plotting.COLORS)
    styles = plotting.layer_styles([f"layer{i}" for i in range(20)]).values()
    assert len({(style["linestyle"], style.get("marker")) for style in styles}) == 20
    curves = followed_run().axes[0].get_lines()
    assert len({(line.get_linestyle(), line.get_marker()) for line in curves}) == len(LAYERS)


def test_layers_grow_lighter_from_the_input_to_the_output():
    styles = plotting.layer_styles([f"layer{i}" for i in range(20)])
    values = [lightness(style["color"]) for style in styles.values()]
    assert values == sorted(values)


def test_each_panel_draws_its_layers_eigenvalues_and_the_rank_bound():
    figure = plotting.plot_layer_spectra(SPECTRA, DIMENSIONS, rank_bound=20)
    for axes, (name, values) in zip(figure.axes, SPECTRA.items(), strict=False):
        assert axes.get_title(loc="left") == name
        assert axes.lines[0].get_ydata().tolist() == values
    bounds = [line.get_xdata()[0] for axes in figure.axes for line in axes.lines[1:]]
    assert 20 in bounds


def test_a_layer_that_the_rank_bound_does_not_cut_shows_no_bound():
    figure = plotting.plot_layer_spectra({"conv1": SPECTRA["conv1"]}, DIMENSIONS, rank_bound=20)
    assert all(line.get_xdata()[0] != 20 for line in figure.axes[0].lines)


def test_curves_carry_the_layers_names_and_values():
    _, axes = plt.subplots()
    plotting.plot_curves(axes, [1, 2], {"conv1": [3.0, 2.0], "fc": [1.0, 0.5]})
    assert [line.get_label() for line in axes.lines] == ["conv1", "fc"]
    assert axes.lines[1].get_ydata().tolist() == [1.0, 0.5]


def test_the_landing_figure_has_one_line_for_every_nonzero_eigenvalue():
    figure = plotting.landing_figure({"fc": [2.0, 1e-6, 0.0]}, DIMENSIONS)
    drawn = figure.axes[0].collections[-1].get_segments()
    assert [segment[0][0] for segment in drawn] == pytest.approx([np.log10(2), -6])
    assert figure.axes[0].texts[1].get_text() == "2 lines\n38 zeros"


def test_the_landing_figures_lines_stand_out_the_more_the_larger_their_eigenvalues():
    figure = plotting.landing_figure({"fc": np.logspace(-9, 2, 40)}, {"fc": 40})
    (lines,) = figure.axes[0].collections
    values = [lightness(color[:3]) for color in lines.get_colors()]
    assert values == sorted(values, reverse=True)
    assert lines.get_linewidths() == sorted(lines.get_linewidths())


@pytest.mark.parametrize(
    ("values", "count"), [([4.0, 3.0, 2.0, 1.0], 3), ([1.0] * 10, 9), ([5.0], 1)]
)
def test_the_landing_figure_counts_the_directions_that_carry_nine_tenths(values, count):
    figure = plotting.landing_figure({"fc": values}, {"fc": 40})
    assert figure.get_suptitle() == f"{count} of 40 directions (shaded) carry 90 % of the trace"


def test_the_same_record_gives_the_same_landing_file_which_names_it(tmp_path):
    source = record(SPECTRA)
    for name in ("one.png", "two.png"):
        plotting.write_landing(tmp_path / name, source)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert source.key in Image.open(tmp_path / "one.png").text["Source"]


def test_without_a_record_one_sentence_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERKIT_ROOT", str(tmp_path))
    with pytest.raises(ValueError, match="paperkit study run mnist5k_spectra"):
        plotting.landing_record()


@pytest.mark.skipif(
    not Archive().published.path("mnist5k_spectra").is_file(),
    reason="its study is not published yet",
)
def test_the_landing_page_shows_the_published_record(tmp_path):
    plotting.main(["--target", str(tmp_path), "--store", str(tmp_path)])
    for name in plotting.LANDING:
        shown = Image.open(repository_root() / "book" / "_static" / name)
        assert shown.text["Source"] == Image.open(tmp_path / name).text["Source"]

"""The book's figures: what they draw, and that they read in grey."""

import itertools

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from paperkit import plotting
from paperkit.experiments import Record
from paperkit.experiments.archive import Archive
from paperkit.experiments.paths import repository_root

SPECTRA = {"conv1": [4.0, 1.0, 1e-3], "fc": [2.0, 1e-6]}
DIMENSIONS = {"conv1": 3, "fc": 40}


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


def record(eigenvalues):
    metrics = {"layers": ["fc", "conv1"], "eigenvalues": eigenvalues, "dimension": DIMENSIONS}
    return Record("mnist5k_spectra", "laptop", {"seed": 1}, metrics, {"date": "2026-01-01"})


def test_neighbouring_colours_differ_in_grey():
    values = [lightness(color) for color in plotting.COLORS]
    assert min(abs(a - b) for a, b in itertools.pairwise(values)) > 0.1


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
    plotting.write_landing(tmp_path / "now.png", plotting.landing_record(tmp_path))
    shown = Image.open(repository_root() / "book" / "_static" / "landing.png")
    assert shown.text["Source"] == Image.open(tmp_path / "now.png").text["Source"]

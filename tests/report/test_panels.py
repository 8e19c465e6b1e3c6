"""Figures draw the numbers and images that they are given, and say where there are none."""

import re
from contextlib import contextmanager

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import edm
from edm.analysis.trajectories import even_quantiles
from edm.analysis.trajectories import trajectories as follow
from edm.data.pixels import to_uint8
from edm.report import panels, style
from edm.report.sheet import image_grid

matplotlib.use("Agg")
LINES = {
    "Euler": [(16, 9.0, 8.0, 9.5), (8, 30.0, 29.0, 33.0), (32, 4.0, 3.9, 4.2)],
    "RK45": [(60, 5.0, 4.8, 5.1)],
    "Heun": [],
    "baseline": 2.5,
}
CURVE = {"sigma": [0.01, 0.1, 1.0, 10.0], "mean": [0.9, 0.5, 0.4, 0.8], "std": [0.2, 0.2, 0.1, 1.0]}
DENSITY = {"sigma": [0.01, 0.1, 1.0, 10.0], "density": [0.05, 0.2, 0.3, 0.0]}
TRUNCATION = {
    "num_steps": 4,
    "curves": [
        {"rho": rho, "sigma": [10.0, 1.0, 0.1], "euler": {"mean": [0.3, 0.2, 0.1], "std": [0.1] * 3},
         "heun": {"mean": [0.03, 0.02, 0.01], "std": [0.1] * 3}}
        for rho in (1.0, 7.0)
    ],
}  # fmt: skip
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8), dtype=np.uint8)
PAIRS = {"pairs": [{"seed": 100 + at, "training": 7 * at, "ratio": at / 20} for at in range(12)], "images": 1000,
         "reference_features": 1797, "description": "a classifier", "k": 50, "below": 0.5, "share": 1.25,
         "share_of_reference": 0.5}  # fmt: skip
GREY = np.random.default_rng(1).uniform(-1, 1, (3, 2, 4, 1, 8, 8))  # levels, counts or images, …


def paths():
    z = even_quantiles(12)
    return follow(z, 25.0, 40), follow(z, 1.0, 40)


#: Every kind, drawn from small data: name → function of (path, written).
KINDS = {
    "curves": lambda *to: panels.curves(LINES, "nfe", *to, marked={"Euler": 32}, mark_label="lowest NFE within 3 %"),
    "loss_levels": lambda *to: panels.loss_levels({"F": CURVE}, {"F": CURVE}, {"all": DENSITY}, *to),
    "trajectories": lambda *to: panels.trajectories(*paths(), *to),
    "truncation": lambda *to: panels.truncation(TRUNCATION, *to),
    "noisy_grid": lambda *to: panels.noisy_grid(GREY[:, 0], GREY[:, 1], (0, 0.5, 20), *to),
    "degradation_grid": lambda *to: panels.degradation_grid({1.0: GREY, 1.007: GREY}, (0.1, 1, 5), (0, 100), *to),
    "advice": lambda *to: panels.advice(
        {"sigma": [0.01, 1.0, 10.0], "e0": [9e-5, 0.2, 0.25], "e1": [1e-5, 0.1, 0.25]}, (-1.2, 1.2), *to
    ),
    "sheets": lambda *to: panels.sheets({"VP": {"ODE": IMAGES, "SDE": None}}, *to, columns=4),
    "leakage_sheet": lambda *to: panels.leakage_sheet(IMAGES, IMAGES, IMAGES, {"generated-clean": 1.25}, *to),
    "pairs_sheet": lambda *to: panels.pairs_sheet(IMAGES, IMAGES, PAIRS, *to),
}


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, as they are when they are written."""
    drawn = []
    original = style.page

    @contextmanager
    def recording(*args, **kwargs):
        with original(*args, **kwargs) as figure:
            drawn.append(figure)
            yield figure

    monkeypatch.setattr(style, "page", recording)
    for module in ("sketches", "layout", "lines"):
        monkeypatch.setattr(f"edm.report.panels.{module}.page", recording)
    return drawn


def drawn_lines(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def names(svg):
    """Text in an SVG: matplotlib writes it as outlines, and as a comment."""
    return set(re.findall(r"<!-- (.*?) -->", svg.read_text()))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.filterwarnings("error")
@pytest.mark.first(2)
def test_every_kind_is_written_as_png_and_svg_the_same_bytes_twice(kind, tmp_path):
    results = []
    for attempt in ("one", "two"):
        written = []
        KINDS[kind](tmp_path / attempt / "figure-1.5", written)
        assert [file.name for file in written] == ["figure-1.5.png", "figure-1.5.svg"]
        results.append([file.read_bytes() for file in written])
    assert results[0] == results[1]
    png, svg = results[0]
    assert png.startswith(b"\x89PNG") and b"<svg" in svg[:1000]
    with Image.open(tmp_path / "one" / "figure-1.5.png") as image:
        assert 700 < image.width < 2600
    assert not list(tmp_path.glob("*/.*"))


def test_curves_are_the_points_given_in_order_of_x(figures, tmp_path):
    panels.curves(LINES, "nfe", tmp_path / "f", [], ylabel="FD, lower is better")
    axes = figures[0].axes[0]
    lines = drawn_lines(axes)
    assert lines["Euler"] == ([8, 16, 32], [30.0, 9.0, 4.0])
    assert lines["RK45"] == ([60], [5.0])
    assert lines["baseline"][1] == [2.5, 2.5]
    band = axes.collections[0].get_paths()[0].vertices
    assert {(8, 29.0), (8, 33.0), (16, 8.0), (16, 9.5), (32, 3.9), (32, 4.2)} <= {tuple(v) for v in band}
    (range_of_one,) = axes.collections[1].get_segments()
    assert range_of_one.tolist() == [[60, 4.8], [60, 5.1]]
    assert axes.get_ylabel() == "FD, lower is better" and axes.get_title() == ""
    assert all(line.get_markerfacecolor() == "none" for line in axes.lines[:2])  # one mark shows what is below it


@pytest.mark.slow
def test_axes_are_the_papers(figures, tmp_path):
    for over in ("nfe", "S_churn", "rho", "alpha", "sigma"):
        panels.curves(LINES, over, tmp_path / over, [])
    scales = [(f.axes[0].get_xscale(), f.axes[0].get_yscale()) for f in figures]
    assert scales == [("log", "log"), *[("linear", "log")] * 3, ("log", "log")]
    assert figures[0].axes[0].xaxis.get_transform().base == 2
    assert figures[0].axes[0].get_xlabel() == "network evaluations per image (NFE)"
    assert figures[0].axes[0].get_ylabel() == "FID, lower is better"


@pytest.mark.parametrize("over", ["nfe", "S_churn", "rho", "alpha"])
@pytest.mark.first(1)
def test_values_within_a_factor_of_five_have_a_linear_axis(figures, tmp_path, over):
    for highest in (9.9, 10.1):
        panels.curves({"A": [(1, 2.0, 2.0, highest)], "B": 3.0}, over, tmp_path / "f", [])
    assert [figure.axes[0].get_yscale() for figure in figures] == ["linear", "log"]
    low, high = figures[0].axes[0].get_ylim()
    assert 1 < low < 2 and 9.9 < high < 11


def test_nearly_equal_values_lie_level(figures, tmp_path):
    """0.1 % is no trend: an axis spans a fifth of its values at least. Values that are 0 have an axis, too."""
    panels.curves({"A": [(2, 10.0, 10.0, 10.0), (4, 10.01, 10.01, 10.01)]}, "S_churn", tmp_path / "f", [])
    panels.curves({"A": [(2, 0.0, 0.0, 0.0), (4, 0.0, 0.0, 0.0)]}, "S_churn", tmp_path / "g", [])
    low, high = figures[0].axes[0].get_ylim()
    assert high - low == pytest.approx(2.001) and (low + high) / 2 == pytest.approx(10.005)
    assert figures[1].axes[0].get_ylim() == (-1, 1)


def test_a_line_without_points_is_named_and_draws_nothing(figures, tmp_path):
    written = []
    panels.curves(LINES, "nfe", tmp_path / "f", written)
    assert "Heun (not measured)" in names(written[1])
    assert drawn_lines(figures[0].axes[0])["Heun (not measured)"] == ([], [])
    panels.curves({"A": [], "B": []}, "nfe", tmp_path / "g", written)
    assert {"A (not measured)", "B (not measured)", "nothing measured yet"} <= names(written[3])
    assert not figures[1].axes[0].get_xticks().size and not figures[1].axes[0].get_yticks().size


def test_dots_stand_on_the_points_they_mark(figures, tmp_path):
    written = []
    panels.curves(LINES, "nfe", tmp_path / "f", written, marked={"Euler": 16, "RK45": 60}, mark_label="best")
    assert [(*line.get_xydata()[0], line.get_markersize()) for line in rings(figures[0])] == [(16, 9, 10), (60, 5, 10)]
    assert [line.get_markeredgecolor() for line in rings(figures[0])] == list(style.COLORS[:2])
    assert "best" in names(written[1])
    for wrong in ({"Euler": 17}, {"DDIM": 16}):
        with pytest.raises(KeyError):
            panels.curves(LINES, "nfe", tmp_path / "g", [], marked=wrong)
    assert not list(tmp_path.glob("g*"))


def rings(figure):
    return [line for line in figure.axes[0].lines if line.get_markersize() >= 10 and len(line.get_xdata())]


def test_rings_that_would_hide_one_another_stand_around_one_another(figures, tmp_path):
    lines = {label: [(8, 90.0, 90.0, 90.0), (64, value, value, value)] for label, value in
             (("A", 11.0), ("B", 11.1), ("C", 11.2), ("D", 40.0))}  # fmt: skip
    panels.curves(lines, "nfe", tmp_path / "f", [], marked=dict.fromkeys(lines, 64), mark_label="best")
    assert [line.get_markersize() for line in rings(figures[0])] == [10, 14, 18, 10]


@pytest.mark.parametrize(("low", "high"), [(1.79, 2.1), (2.2, 5.5), (1.9, 90), (2, 900), (0.1, 2000), (1e-7, 1)])
def test_an_axis_of_any_range_names_several_values(figures, tmp_path, low, high):
    panels.curves({"A": [(1, low, low, low), (2, high, high, high)]}, "rho", tmp_path / "f", [])
    axis = figures[0].axes[0].yaxis
    inside = [tick for tick in axis.get_ticklocs() if low <= tick <= high]
    assert 3 <= len(inside) <= 10
    powers = ["10^" in axis.get_major_formatter()(tick) for tick in inside]
    assert all(powers) if high / low > 1e5 else not any(powers)


def test_loss_levels_show_the_means_their_bands_and_the_training_density(figures, tmp_path):
    other = {**CURVE, "mean": [1.5, 1.0, 1.0, 2.0]}
    panels.loss_levels({"F": other}, {"F": CURVE}, {"p of F": DENSITY}, tmp_path / "f", [])
    axes, second = figures[0].axes
    assert drawn_lines(axes) == {"before training: F": (CURVE["sigma"], other["mean"]),
                                 "F": (CURVE["sigma"], CURVE["mean"])}  # fmt: skip
    assert drawn_lines(second) == {"p of F": (DENSITY["sigma"], DENSITY["density"])}
    band = {tuple(vertex) for vertex in axes.collections[1].get_paths()[0].vertices}
    assert {(0.1, 0.7), (0.1, 0.3)} <= band
    assert min(y for _, y in band) == 0  # mean − std is below 0 at σ = 10
    assert axes.get_title() == ""
    assert axes.get_yscale() == "linear" and axes.get_ylim()[0] == 0


@pytest.mark.slow
def test_loss_levels_of_many_models_keep_every_line_and_one_band(figures, tmp_path):
    after = {f"vp-{rung}": CURVE for rung in "ABCDEF"}
    before = {"vp-A": {**CURVE, "mean": [1, 1, 100, 1e4]}, "vp-B": CURVE}
    densities = {"p of A": DENSITY, "p of B": {**DENSITY, "density": [0.1] * 4}}
    panels.loss_levels(before, after, densities, tmp_path / "f", [])
    axes, second = figures[0].axes
    far = "before training: vp-A, leaves the axis"
    assert list(drawn_lines(axes)) == [far, "before training: vp-B", *after]
    assert len(axes.collections) == 1 and axes.get_yscale() == "linear"
    assert axes.get_ylim() == (0, pytest.approx(1.05 * 3 * 0.9))  # three times the highest after training
    colors = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in axes.lines}
    for label, model in ((far, "vp-A"), ("before training: vp-B", "vp-B")):  # a model's colour; dashed before training
        assert colors[label] == (colors[model][0], "--") and colors[model][1] == "-"
    marks = [line.get_markevery() for line in axes.lines[2:]]
    assert marks == [(0, 1)] * 6  # of four levels; with more of them in turn
    assert len({color for color, _ in colors.values()}) == 6
    assert len({line._unscaled_dash_pattern for line in second.lines}) == 2
    panels.loss_levels({}, {}, {}, tmp_path / "g", [])  # nothing measured: empty axes


def test_curves_that_agree_before_training_share_a_line_and_marks_stand_in_turn(figures, tmp_path):
    near = {**CURVE, "mean": [1.019 * mean for mean in CURVE["mean"]]}
    before = {"A: baseline": CURVE, "B: more": {**CURVE, "mean": [1.2] * 4}, "C": near}
    long = {"sigma": list(range(1, 19)), "mean": [0.5] * 18, "std": [0.1] * 18}
    panels.loss_levels(before, dict.fromkeys(before, long), {}, tmp_path / "f", [])
    axes = figures[0].axes[0]
    assert list(drawn_lines(axes)) == ["before training: A, C", "before training: B: more", *before]
    assert [line.get_markevery() for line in axes.lines[2:]] == [(0, 3), (1, 3), (2, 3)]
    assert panels.listed(["A: baseline"]) == "A: baseline" and panels.listed(["A: a", "B: b"]) == "A, B"


def test_a_foot_stands_below_its_sheet_and_takes_a_line(figures, tmp_path):
    written = []
    for feet in ({}, {"VP": {"NFE 13": "FID 2.05"}}):
        panels.sheets({"VP": {"NFE 13": IMAGES, "NFE 35": IMAGES}}, tmp_path / "f", written, feet=feet)
    assert "FID 2.05" in names(written[3])
    plain, with_feet = (figure.get_size_inches()[1] for figure in figures)
    assert with_feet - plain == pytest.approx(42 / 300)
    (foot,) = [text for text in figures[1].texts if text.get_text() == "FID 2.05"]
    assert foot.get_position()[1] < figures[1].axes[0].get_position().y0


@pytest.mark.slow
def test_trajectories_are_drawn_over_t_with_examples_in_black(figures, tmp_path):
    wide, near = paths()
    written = []
    panels.trajectories(wide, near, tmp_path / "f", written, examples=(2, 9))
    assert len(figures[0].axes) == 6
    for axes, panel in zip(figures[0].axes, [*wide.values(), *near.values()], strict=True):
        assert len(axes.lines) == 12 + 2
        black = [line for line in axes.lines if line.get_color() == "black"]
        for line, number in zip(black, (2, 9), strict=True):
            np.testing.assert_array_equal(line.get_ydata(), panel["x"][number].numpy())
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), panel["t"].numpy())
        assert axes.get_xlim() == (0, pytest.approx(float(panel["t"][-1])))
    assert {"(a) Variance preserving ODE", "(b) Variance exploding ODE", "(c) DDIM / our ODE"} <= names(written[1])


def test_truncation_has_a_panel_per_method_and_a_line_per_rho(figures, tmp_path):
    panels.truncation(TRUNCATION, tmp_path / "f", [])
    for axes, method in zip(figures[0].axes, ("euler", "heun"), strict=True):
        lines = drawn_lines(axes)
        assert list(lines) == [r"$\rho$ = 1 (uniform steps)", r"$\rho$ = 7"]
        for (sigma, error), curve in zip(lines.values(), TRUNCATION["curves"], strict=True):
            assert (sigma, error) == (curve["sigma"], curve[method]["mean"])
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def shown(axes):
    return np.asarray(axes.images[0].get_array())


def test_noisy_images_are_calmed_and_denoised_ones_are_not(figures, tmp_path):
    noisy = np.full((2, 3, 1, 8, 8), 20.0)  # levels, images
    denoised = np.stack([np.full((3, 1, 8, 8), value) for value in (-1.0, 0.5)])
    panels.noisy_grid(noisy, denoised, (0.0, 20.0), tmp_path / "f", [])
    above, below = (shown(axes) for axes in figures[0].axes)
    assert above.shape == below.shape == (3 * 9 + 1, 2 * 9 + 1, 3)
    calmed = to_uint8(torch.tensor(20 * 0.5 / (20**2 + 0.5**2) ** 0.5))
    assert (above[1, 1, 0], above[1, 10, 0]) == (255, int(calmed))  # σ = 0: as it is, and clipped
    assert (below[1, 1, 0], below[1, 10, 0]) == (0, 191)
    assert [text.get_text() for text in figures[0].axes[0].get_xticklabels()] == [r"$\sigma$ = 0", "20"]


def test_degradation_stands_in_rows_of_sigma_and_columns_of_counts(figures, tmp_path):
    values = np.linspace(-1, 0.9, 3 * 2 * 4).reshape(3, 2, 4, 1, 1, 1)  # levels, counts, images
    images = np.broadcast_to(values, (3, 2, 4, 1, 8, 8))
    panels.degradation_grid({1.0: images, 1.007: -images}, (0.1, 1, 5), (0, 100), tmp_path / "f", [])
    left, right = figures[0].axes
    for level, count, n in [(0, 0, 0), (1, 0, 3), (2, 1, 1)]:
        place = (level * (4 * 9 + 1 + 2) + 1 + n * 9, 1 + count * 9, 0)  # a gap of 2 pixels between levels
        assert shown(left)[place] == int(to_uint8(torch.tensor(values[level, count, n].item())))
        assert shown(right)[place] == int(to_uint8(torch.tensor(-values[level, count, n].item())))
    assert [text.get_text() for text in left.get_xticklabels()] == ["0", "100"]
    assert [text.get_text() for text in left.get_yticklabels()] == [rf"$\sigma$={s}" for s in ("0.1", "1", "5")]
    assert left.get_yticks().tolist() == [18.0, 57.0, 96.0]
    titles = [text.get_text() for text in figures[0].texts]
    assert r"$S_{noise}$ = 1.007, repetitions:" in titles


def test_sheets_hold_the_same_image_at_the_same_place(figures, tmp_path):
    written = []
    rows = {"CIFAR-10": {"A\nFID 2": IMAGES, "F": IMAGES[::-1]}, "FFHQ": {"A": None, "F": IMAGES[:4]}}
    panels.sheets(rows, tmp_path / "f", written, columns=4, caption="From the same latents.")
    first, second, missing, last = figures[0].axes
    np.testing.assert_array_equal(shown(first), image_grid(IMAGES, 4))
    np.testing.assert_array_equal(shown(second), image_grid(IMAGES[::-1], 4))
    np.testing.assert_array_equal(shown(last), image_grid(IMAGES[:4], 4))
    assert not missing.images
    assert {"not there yet", "CIFAR-10", "FFHQ", "F", "From the same latents."} <= names(written[1])
    widths = {axes.get_position().width for axes in figures[0].axes}
    assert max(widths) - min(widths) < 1e-9


@pytest.mark.parametrize("side", [8, 32, 64])
def test_image_pixels_are_whole_pixels_of_the_page(tmp_path, side):
    """No pixel of an image is wider than its neighbour, or narrower: the PNG holds the sheet, enlarged."""
    images = np.random.default_rng(2).integers(0, 256, (8, 3, side, side), dtype=np.uint8)
    written = []
    panels.sheets({"": {"one": images, "two": images}}, tmp_path / "f", written, columns=4)
    sheet = image_grid(images, 4)
    with Image.open(written[0]) as page:
        pixels = np.asarray(page.convert("RGB"))
    zoom = max(1, round((2160 / 2 - 30) / sheet.shape[1]))
    enlarged = sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)
    height, width, _ = enlarged.shape
    top, left = 15 + 42 + 12, 15
    np.testing.assert_array_equal(pixels[top : top + height, left : left + width], enlarged)


def test_the_leakage_sheet_tells_its_distances(figures, tmp_path):
    written, distances = [], {"generated-clean": 9.574, "generated-augmented": 435.3, "clean-augmented": 447.1}
    panels.leakage_sheet(IMAGES, IMAGES[::-1], IMAGES[:8], distances, tmp_path / "f", written, metric="FID")
    expected = "FID: generated to clean 9.57; generated to augmented 435; clean to augmented 447."
    assert expected in names(written[1])
    for axes, images in zip(figures[0].axes, (IMAGES, IMAGES[::-1], IMAGES[:8]), strict=True):
        np.testing.assert_array_equal(shown(axes), image_grid(images, 8))


def test_a_pair_stands_beside_its_training_image_with_its_ratio_its_seed_and_its_place(figures, tmp_path):
    written, training = [], IMAGES[::-1]
    panels.pairs_sheet(IMAGES, training, PAIRS, tmp_path / "f", written)
    assert {"0.05", "101, 7", "0.55", "111, 77"} <= names(written[1])
    text = " ".join(line.get_text() for line in figures[0].texts)
    assert "nearest of 1,797 training images in the features: a classifier" in text
    assert "below 0.5 for 1.25 % of 1,000 generated images, and for 0.5 % of the training images" in text
    for at, axes in enumerate(figures[0].axes):
        np.testing.assert_array_equal(shown(axes), image_grid(np.stack([IMAGES[at], training[at]]), 2))


def test_no_images_no_sheet(tmp_path):
    with pytest.raises(edm.UserError, match="no images to draw yet"):
        panels.sheets({"VP": {}}, tmp_path / "f", [])
    assert not list(tmp_path.iterdir())


def test_a_label_that_is_no_formula_is_drawn_as_it_is_written(tmp_path):
    """matplotlib would refuse it when the figure is written; a valid formula beside it stays one."""
    lines = {
        r"$\frac{": LINES["Euler"],
        r"$\frac{1}$ and $\sigma$": LINES["RK45"],
        r"$\sigma$": 2.5,
        "$5": LINES["Heun"],
    }
    written = []
    panels.curves(lines, "nfe", tmp_path / "curve", written, ylabel=r"$\nosuch$")
    svg = (tmp_path / "curve.svg").read_text(encoding="utf-8")
    assert [path.suffix for path in written] == [".png", ".svg"]
    assert r"<!-- $\nosuch$ -->" in svg and r"<!-- $\frac{1}$ and $\sigma$ -->" in svg and r"<!-- $\sigma$ -->" in svg


@pytest.mark.parametrize("length, columns", [(5, 2), (40, 1)])
def test_a_legend_is_no_wider_than_its_figure(tmp_path, monkeypatch, length, columns):
    figures = []
    draw = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **how: (figures.append(self), draw(self, *a, **how))[1])
    curve = {"sigma": [0.1, 1.0], "mean": [1.0, 0.5], "s": [0.1, 0.1]}
    panels.bits_per_level({f"{n}{'m' * length}": curve for n in range(4)}, tmp_path / "bits", [])
    figure = figures[0]
    (legend,) = figure.legends
    assert legend._ncols == columns and legend.get_window_extent().width <= figure.bbox.width

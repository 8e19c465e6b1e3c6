"""Curves of a metric vs. a quantity (Figures 2, 4, 5b, 5c, 13c, 15) and the loss per noise level (Figure 5a)."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from edm.report.style import canvas, line_styles, log_ticks, page, show_broken_formulas_as_text

#: The quantities of the x axis: the paper's symbol, and the scale of the axis.
OVER = {
    "nfe": ("network evaluations per image (NFE)", "octaves"),
    "S_churn": ("$S_{churn}$", "linear"),
    "rho": (r"$\rho$", "linear"),
    "alpha": (r"$\alpha$", "linear"),
    "guidance": ("guidance $w$", "linear"),
    "ema": ("relative width of the EMA", "linear"),
    "sigma": (r"noise level $\sigma$", "log"),
}
MOST_LINEAR = 5  # ratio of the values on a linear axis; the paper's Figure 2, with more, has a logarithmic one
LEAST_SPAN = 0.2  # of an axis, relative to its middle: nearly equal values must look nearly equal
HIGHEST_LOSS = 3  # of the axis of Figure 5a, relative to the losses after training: untrained networks may leave it
RING, NEAR = 10, 10  # points: the diameter of a ring, and the distance at which the next ring must be wider
DENSITY_DASHES = ((4, 2, 1, 2), (1, 1), (6, 2), (6, 1, 1, 1, 1, 1))  # distinguishable in black
#: x, y, and the range of its repeats with their errors.
Point = tuple[float, float, float, float]
Curve = Mapping[str, Sequence[float]]


def curves(
    lines: Mapping[str, Sequence[Point] | float],
    over: str,
    path: Path,
    written: list[Path],
    *,
    ylabel: str = "FID, lower is better",
    marked: Mapping[str, float] | None = None,
    mark_label: str = "",
    published: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    beside: Mapping[str, Mapping[str, Sequence[Point]]] | None = None,
    crossed: Mapping[str, Sequence[float]] | None = None,
    cross_label: str = "",
) -> None:
    """A metric vs. ``over`` (a key of ``OVER``, or the text of a linear axis), one line per entry of ``lines``.

    lines: points (x, y, low, high) in any order, the range [low, high] shaded; or one number, drawn as a horizontal
    level for comparison. The legend lists an entry without points as not measured. marked: {line: x of its point to
    mark with a ring}; mark_label: meaning of the rings, for the legend. published: {line: points (x, y)}, in the
    colour of the line and without a line. beside: further panels, {label of the y axis: {line: points}}.
    crossed: {line: x of its points to cross out}; cross_label: meaning of the crosses.
    Raises KeyError for a mark on a missing line or point.
    """
    published, beside = published or {}, beside or {}
    xlabel, scale = OVER.get(over, (over, "linear"))
    styles = dict(zip(lines, line_styles(), strict=False))
    width = 5.4 if not beside else 3.7 * (1 + len(beside))
    with page(path, written, width, height=3.2 + 0.1 * len(lines)) as figure:
        axes, *further = figure.subplots(1, 1 + len(beside), squeeze=False)[0]
        for one in (axes, *further):
            if scale != "linear":
                one.set_xscale("log", base=2 if scale == "octaves" else 10)
                one.xaxis.set_major_formatter("{x:g}")
        for one, (text, others) in zip(further, beside.items(), strict=True):
            for label, points in others.items():
                if points:
                    _line(one, sorted(points), styles[label], label)
            one.set(xlabel=xlabel, ylabel=text)
        for label, line in lines.items():
            color = styles[label]["color"]
            if isinstance(line, int | float):
                axes.axhline(line, color=color, linestyle=(0, (6, 2)), linewidth=1.2, label=label)
            elif not line and label not in published:
                axes.plot([], [], color="0.6", linestyle="none", marker="x", label=f"{label} (not measured)")
            elif line:
                _line(axes, sorted(line), styles[label], label)
            if label in published:  # filled marks, and no line
                named = {} if line else {"label": label}
                axes.plot(*zip(*published[label], strict=True), **(styles[label] | {"linestyle": "none"}), markersize=4,
                          **named)  # fmt: skip
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if scale == "log" and any(lines.values()):
            log_ticks(axes.xaxis)
        if any(lines.values()) or published:
            shown = [value for line in lines.values() for value in _values(line)]
            _value_axis(axes, shown + [y for points in published.values() for _, y in points])
        else:
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_ticks([])
                axis.set_ticks([], minor=True)
            axes.text(0.5, 0.5, "nothing measured yet", color="0.4", ha="center", transform=axes.transAxes)
        doubtful = [_point(lines[label], x) for label, several in (crossed or {}).items() for x in several]
        if doubtful:
            axes.plot(*zip(*doubtful, strict=True), linestyle="none", marker="x", markersize=9, color="black",
                      label=cross_label)  # fmt: skip
        _rings(axes, [(*_point(lines[label], x), styles[label]["color"]) for label, x in (marked or {}).items()])
        if marked and mark_label:
            axes.plot([], [], linestyle="none", marker="o", markersize=RING, color="none", markeredgecolor="black",
                      label=mark_label)  # fmt: skip
        if published:
            axes.plot([], [], linestyle="none", marker="o", markersize=4, color="0.4", label="filled: published")
        _legend_below(axes.figure)


def _line(axes, points: list[Point], style: dict[str, str], label: str) -> None:
    x, y, low, high = zip(*points, strict=True)
    # Hollow marks: one that lies below another stays visible.
    axes.plot(x, y, **style, markersize=5, markerfacecolor="none", markeredgewidth=1.2, linewidth=1.4, label=label)
    if len(points) > 1:
        axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
    else:  # an area at one point has no width
        axes.vlines(x, low, high, color=style["color"], alpha=0.4, linewidth=2.5)


def _values(line: Sequence[Point] | float) -> list[float]:
    """The values that the axis must show: all but a band's end at 0."""
    return [line] if isinstance(line, int | float) else [v for point in line for v in point[1:] if v or not point[1]]


def _point(line: Sequence[Point] | float, x: float) -> tuple[float, float]:
    return x, {point[0]: point[1] for point in (() if isinstance(line, int | float) else line)}[x]


def _value_axis(axes, values: list[float]) -> None:
    low, high = min(values), max(values)
    if high > MOST_LINEAR * low > 0:
        axes.set_yscale("log")
        log_ticks(axes.yaxis)
        return
    middle = (low + high) / 2
    half = max(0.53 * (high - low), LEAST_SPAN / 2 * middle) or 1
    axes.set_ylim(middle - half, middle + half)


def _rings(axes, marked: list[tuple[float, float, str]]) -> None:
    """Rings in the colours of their lines; one near others surrounds them."""
    scale = 72 / axes.figure.dpi
    centres: list[tuple[float, float]] = []
    for x, y, color in marked:
        across, up = axes.transData.transform((x, y))
        near = sum(math.hypot(across - a, up - b) * scale < NEAR for a, b in centres)
        centres.append((across, up))
        axes.plot(x, y, linestyle="none", marker="o", markersize=RING + 4 * near, color="none",
                  markeredgecolor=color, markeredgewidth=1.2)  # fmt: skip


def loss_levels(
    before: Mapping[str, Curve],
    after: Mapping[str, Curve],
    densities: Mapping[str, Curve],
    path: Path,
    written: list[Path],
    *,
    ylabel: str = "loss",
) -> None:
    """Loss per noise level before and after training with its standard deviation, and p_train (Figure 5a).

    before, after: {model: {"sigma", "mean", "std"}} of equal lengths, in display units; a model has one colour,
    dashed before training. Models that agree within 2 % before training share a line. Up to three curves each have a
    band; of more curves only the last one after training, since bands would hide each other. densities: {text:
    {"sigma", "density"}}, of ln σ in training, on a second axis. The loss axis is linear, as the paper's; a curve
    before training may leave it, and the legend says so.
    """
    styles = dict(zip(after, line_styles(), strict=False))
    count = len(before) + len(after)
    top = _highest(before, after)
    with canvas(path, written, width=5.4, height=3.8) as axes:
        for labels in _alike(before):
            curve = before[labels[0]]
            style = {"color": styles[labels[0]]["color"], "linestyle": "--"}
            leaves = ", leaves the axis" if max(curve["mean"]) > top else ""
            _loss(axes, curve, f"before training: {listed(labels)}{leaves}", style, 1.0, band=count <= 3)
        for index, (label, curve) in enumerate(after.items()):
            step = max(1, min(len(after), len(curve["sigma"]) // 3))  # marks in turn, so that none hides another
            style = styles[label] | {"linestyle": "-"}
            last = label == list(after)[-1]
            _loss(axes, curve, label, style, 1.3, band=count <= 3 or last, named=count > 3,
                  markevery=(index % step, step))  # fmt: skip
        axes.set(xscale="log", xlabel=OVER["sigma"][0], ylabel=ylabel, ylim=(0, top))
        axes.xaxis.set_major_formatter("{x:g}")
        second = _density_axis(axes, densities)
        handles, labels = (a + b for a, b in zip(*(x.get_legend_handles_labels() for x in (axes, second)), strict=True))
        _legend_below(axes.figure, handles, labels)


def bits_per_level(curves: Mapping[str, Curve], path: Path, written: list[Path]) -> None:
    """Bits per dimension and e-fold of noise vs. the noise level: the integrand of the bound on the likelihood.

    curves: {model and its bound: {"sigma", "mean", "s"}}, s the standard error; the band is 1.96 s to either side.
    """
    with canvas(path, written, width=5.4, height=3.2 + 0.1 * len(curves)) as axes:
        for (label, curve), style in zip(curves.items(), line_styles(), strict=False):
            sigma, mean, s = (list(curve[key]) for key in ("sigma", "mean", "s"))
            axes.plot(sigma, mean, **style, markersize=4, markerfacecolor="none", linewidth=1.3, label=label)
            low, high = ([m + sign * 1.96 * e for m, e in zip(mean, s, strict=True)] for sign in (-1, 1))
            axes.fill_between(sigma, low, high, color=style["color"], alpha=0.2, linewidth=0)
        axes.set(xscale="log", xlabel=OVER["sigma"][0], ylabel=r"bits per dimension and $\Delta\ln\,\sigma = 1$")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter("{x:g}")
        _legend_below(axes.figure)


def bits_of_models(
    shown: Mapping[str, Mapping[str, tuple[float, float]]], models: Sequence[str], path: Path, written: list[Path]
) -> None:
    """Bits per dimension of models, a line of the page each, in their order from above.

    shown: {what it is: {model: (bits, half the width of its bar)}}; a model that it lacks has no mark.
    """
    with canvas(path, written, width=5.4, height=1.2 + 0.26 * len(models)) as axes:
        for (label, bits), style in zip(shown.items(), line_styles(), strict=False):
            places = [models.index(model) for model in bits]
            axes.errorbar([value for value, _ in bits.values()], places, xerr=[bar for _, bar in bits.values()],
                          **style | {"linestyle": "none"}, markersize=5, markerfacecolor="none", capsize=2,
                          label=label if bits else f"{label} (none yet)")  # fmt: skip
        axes.set_yticks(range(len(models)), models)
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.set_xlabel("bits per dimension, lower is better")
        _legend_below(axes.figure)


def listed(labels: Iterable[str]) -> str:
    """The labels of models in one line; of several only what stands before a name: "A, B" for "A: baseline" and B."""
    names = list(labels)
    return names[0] if len(names) == 1 else ", ".join(name.partition(":")[0] for name in names)


def _alike(curves: Mapping[str, Curve]) -> list[list[str]]:
    """The labels of curves, those together that agree within 2 % at every point."""
    groups: list[list[str]] = []
    for label, curve in curves.items():
        for group in groups:
            first = curves[group[0]]
            if list(first["sigma"]) == list(curve["sigma"]) and all(
                math.isclose(a, b, rel_tol=0.02) for a, b in zip(first["mean"], curve["mean"], strict=True)
            ):
                group.append(label)
                break
        else:
            groups.append([label])
    return groups


def _highest(before: Mapping[str, Curve], after: Mapping[str, Curve]) -> float:
    trained = [m for curve in after.values() for m in curve["mean"]]
    spread = [m + s for curve in after.values() for m, s in zip(curve["mean"], curve["std"], strict=True)]
    means = [m for curve in before.values() for m in curve["mean"]]
    return 1.05 * min(max([*means, *spread], default=1.0), HIGHEST_LOSS * max(trained, default=1.0))


def _loss(axes, curve: Curve, label: str, style: dict[str, str], width: float, band: bool, named: bool = False,
          markevery: tuple[int, int] | None = None) -> None:  # fmt: skip
    """A curve and its band; the legend lists the band separately if ``named``."""
    sigma, mean, std = (list(curve[key]) for key in ("sigma", "mean", "std"))
    axes.plot(sigma, mean, **style, markersize=4.5, markerfacecolor="none", markevery=markevery, linewidth=width,
              label=label)  # fmt: skip
    if not band:
        return
    low = [max(m - s, 0.0) for m, s in zip(mean, std, strict=True)]  # a loss is not negative
    high = [m + s for m, s in zip(mean, std, strict=True)]
    axes.fill_between(sigma, low, high, color=style["color"], alpha=0.18, linewidth=0,
                      label=f"standard deviation of {label.partition(':')[0]}" if named else None)  # fmt: skip


def _density_axis(axes, densities: Mapping[str, Curve]):
    second, shown = axes.twinx(), axes.get_xlim()
    for (label, curve), dashes in zip(densities.items(), itertools.cycle(DENSITY_DASHES), strict=False):
        second.plot(curve["sigma"], curve["density"], color="black", linestyle=(0, dashes), linewidth=1.1, label=label)
    highest = max((max(curve["density"]) for curve in densities.values()), default=1)
    second.set(xlim=shown, ylim=(0, 1.6 * highest), ylabel=r"density of $\ln\,\sigma$ in training")
    second.spines["right"].set_visible(True)
    second.grid(False)
    return second


def _legend_below(figure, *entries) -> None:
    """The legend below the axes, where it hides no curve: of two columns, or one if two are wider than the figure."""
    if not entries:
        entries = figure.axes[0].get_legend_handles_labels()
    if not entries[0]:
        return
    for columns in (2, 1):
        legend = figure.legend(*entries, loc="outside lower center", ncols=columns, fontsize=7.5)
        show_broken_formulas_as_text(figure)
        figure.draw_without_rendering()
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()

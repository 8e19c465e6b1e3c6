"""Curves of a metric vs. a quantity (Figures 2, 4, 5b, 5c, 13c, 15) and the loss per noise level (Figure 5a)."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from edm.report.style import canvas, line_styles, log_ticks

#: The quantities of the x axis: the paper's symbol, and the scale of the axis.
OVER = {
    "nfe": ("network evaluations per image (NFE)", "octaves"),
    "S_churn": ("$S_{churn}$", "linear"),
    "rho": (r"$\rho$", "linear"),
    "alpha": (r"$\alpha$", "linear"),
    "sigma": (r"noise level $\sigma$", "log"),
}
DENSITY_DASHES = ((4, 2, 1, 2), (1, 1), (6, 2), (6, 1, 1, 1, 1, 1))  # distinguishable in black
#: x, y, and the lowest and the highest of its repeats.
Point = tuple[float, float, float, float]
Curve = Mapping[str, Sequence[float]]


def curves(
    lines: Mapping[str, Sequence[Point] | float],
    over: str,
    path: Path,
    written: list[Path],
    *,
    ylabel: str = "FID",
    title: str = "",
    marked: Mapping[str, float] | None = None,
    mark_label: str = "",
) -> None:
    """A metric vs. ``over`` (a key of ``OVER``, or the text of a linear axis), one line per entry of ``lines``.

    lines: points (x, y, low, high) in any order, the range [low, high] shaded; or one number, drawn as a horizontal
    level for comparison. The legend lists an entry without points as not measured. Metrics are positive: the axis is
    logarithmic. marked: {line: x of its point to mark with a dot}; mark_label: meaning of the dots, for the legend.
    Raises KeyError for a mark on a missing line or point.
    """
    marked = dict(marked or {})
    xlabel, scale = OVER.get(over, (over, "linear"))
    with canvas(path, written, width=5.4, height=3.4 + 0.1 * len(lines)) as axes:
        axes.set_yscale("log")
        if scale != "linear":
            axes.set_xscale("log", base=2 if scale == "octaves" else 10)
            axes.xaxis.set_major_formatter("{x:g}")
        for (label, line), style in zip(lines.items(), line_styles(), strict=False):
            if isinstance(line, int | float):
                axes.axhline(line, color=style["color"], linestyle=(0, (6, 2)), linewidth=1.2, label=label)
            elif not line:
                axes.plot([], [], color="0.6", linestyle="none", marker="x", label=f"{label} (not measured)")
            else:
                _line(axes, sorted(line), style, label)
        for label, x in marked.items():
            marked_line = lines[label]
            points = () if isinstance(marked_line, int | float) else marked_line
            y = {point[0]: point[1] for point in points}[x]
            axes.plot(x, y, linestyle="none", marker="o", markersize=10, color="none", markeredgecolor="black")
        if marked and mark_label:
            axes.plot([], [], linestyle="none", marker="o", markersize=8, color="none", markeredgecolor="black",
                      label=mark_label)  # fmt: skip
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_title(title, fontsize="medium", wrap=True)
        if any(lines.values()):
            log_ticks(axes.yaxis)
        else:
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_ticks([])
                axis.set_ticks([], minor=True)
            axes.text(0.5, 0.5, "nothing measured yet", color="0.4", ha="center", transform=axes.transAxes)
        _legend_below(axes.figure)


def _line(axes, points: list[Point], style: dict[str, str], label: str) -> None:
    x, y, low, high = zip(*points, strict=True)
    axes.plot(x, y, **style, markersize=4, linewidth=1.4, label=label)
    if len(points) > 1:
        axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
    else:  # an area at one point has no width
        axes.vlines(x, low, high, color=style["color"], alpha=0.4, linewidth=2.5)


def loss_levels(
    before: Mapping[str, Curve],
    after: Mapping[str, Curve],
    densities: Mapping[str, Curve],
    path: Path,
    written: list[Path],
    *,
    ylabel: str = "loss",
    title: str = "",
) -> None:
    """Loss per noise level before and after training with its standard deviation, and p_train (Figure 5a).

    before, after: {model: {"sigma", "mean", "std"}} of equal lengths, in display units; a model has one colour,
    dashed before training. Up to three curves each have a band; of more curves only the last one after training, since
    bands would hide each other. densities: {text: {"sigma", "density"}}, of ln σ in training, on a second axis. The
    loss axis is logarithmic if a mean is above 3, as for preconditionings other than the paper's.
    """
    styles = dict(zip(after, line_styles(), strict=False))
    count = len(before) + len(after)
    with canvas(path, written, width=5.4, height=3.8) as axes:
        for label, curve in before.items():
            style = {"color": styles[label]["color"], "linestyle": "--"}
            _loss(axes, curve, f"{label}, before training", style, 1.0, band=count <= 3)
        for label, curve in after.items():
            style = styles[label] | {"linestyle": "-"}
            last = label == list(after)[-1]
            _loss(axes, curve, label, style, 1.3, band=count <= 3 or last, named=count > 3)
        axes.set(xscale="log", xlabel=OVER["sigma"][0], ylabel=ylabel)
        axes.set_title(title, fontsize="medium", wrap=True)
        axes.xaxis.set_major_formatter("{x:g}")
        if max((max(curve["mean"]) for curve in (*before.values(), *after.values())), default=1) > 3:
            axes.set_yscale("log")
            log_ticks(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)
        second = _density_axis(axes, densities)
        handles, labels = (a + b for a, b in zip(*(x.get_legend_handles_labels() for x in (axes, second)), strict=True))
        _legend_below(axes.figure, handles, labels)


def _loss(axes, curve: Curve, label: str, style: dict[str, str], width: float, band: bool, named: bool = False) -> None:
    """A curve and its band; the legend lists the band separately if ``named``."""
    sigma, mean, std = (list(curve[key]) for key in ("sigma", "mean", "std"))
    axes.plot(sigma, mean, **style, markersize=3, linewidth=width, label=label)
    if not band:
        return
    low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
    # A logarithmic axis cannot show a band below zero, and a loss is not negative.
    low = [max(value, 0.05 * m) for value, m in zip(low, mean, strict=True)]
    axes.fill_between(sigma, low, high, color=style["color"], alpha=0.18, linewidth=0,
                      label=f"{label}, standard deviation" if named else None)  # fmt: skip


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
    """The legend below the axes, where it hides no curve."""
    if not entries:
        entries = figure.axes[0].get_legend_handles_labels()
    if entries[0]:
        figure.legend(*entries, loc="outside lower center", ncols=2, fontsize=7.5)

"""Curves of a metric over a quantity (Figures 2, 4, 5b, 5c, 13c, 15) and the loss per noise level (Figure 5a)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from edm.report.style import canvas, line_styles, log_ticks

#: The quantities that figures run over: the paper's symbol, and how the axis is scaled.
OVER = {
    "nfe": ("network evaluations per image (NFE)", "octaves"),
    "S_churn": ("$S_{churn}$", "linear"),
    "rho": (r"$\rho$", "linear"),
    "alpha": (r"$\alpha$", "linear"),
    "sigma": (r"noise level $\sigma$", "log"),
}
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
    """A metric over ``over`` (a key of ``OVER``, or the text of a linear axis), one line per entry of ``lines``.

    lines: points (x, y, low, high) in any order, the range [low, high] shaded; or one number, drawn as a horizontal
    level to compare with. An entry without points is listed as not measured. Metrics are positive: the axis is
    logarithmic. marked: {line: x of the point of it to mark with a dot}; mark_label: what dots mean, for the legend.
    Raises KeyError for a mark on a line or a point that is not there.
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
            y = {point[0]: point[1] for point in lines[label]}[x]
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
    else:  # an area over one point has no width
        axes.vlines(x, low, high, color=style["color"], alpha=0.4, linewidth=2.5)


def loss_levels(
    before: Curve | None,
    after: Mapping[str, Curve],
    path: Path,
    written: list[Path],
    *,
    P_mean: float = -1.2,
    P_std: float = 1.2,
    ylabel: str = "loss",
    title: str = "",
) -> None:
    """Loss per noise level before and after training with its standard deviation, and p_train (Figure 5a).

    before, after[label]: {"sigma", "mean", "std"}, of equal lengths, as they are to be shown. Up to three curves have
    each their band, of more only the last: bands would hide each other. p_train is the density of ln σ ~ N(P_mean,
    P_std²), on an axis of its own. The loss axis is logarithmic where one mean is above 3, as for preconditionings
    other than the paper's.
    """
    named = {**({"before training": before} if before else {}), **after}
    with canvas(path, written, width=5.4, height=3.8) as axes:
        styles = line_styles()
        for label, curve in named.items():
            style = {"color": "0.45", "marker": "", "linestyle": "--"} if curve is before else next(styles)
            sigma, mean, std = (list(curve[key]) for key in ("sigma", "mean", "std"))
            axes.plot(sigma, mean, **style, markersize=3, linewidth=1.3, label=label)
            if len(named) <= 3 or label == list(named)[-1]:
                low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
                # A band below zero has no place on a logarithmic axis, nor in a loss.
                low = [max(value, 0.05 * m) for value, m in zip(low, mean, strict=True)]
                axes.fill_between(sigma, low, high, color=style["color"], alpha=0.18, linewidth=0,
                                  label=f"{label}, standard deviation" if len(named) > 3 else None)  # fmt: skip
        axes.set(xscale="log", xlabel=OVER["sigma"][0], ylabel=ylabel)
        axes.set_title(title, fontsize="medium", wrap=True)
        axes.xaxis.set_major_formatter("{x:g}")
        if max((max(curve["mean"]) for curve in named.values()), default=1) > 3:
            axes.set_yscale("log")
            log_ticks(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)
        density = _density_axis(axes, P_mean, P_std)
        handles, labels = (
            a + b for a, b in zip(*(x.get_legend_handles_labels() for x in (axes, density)), strict=True)
        )
        _legend_below(axes.figure, handles, labels)


def _density_axis(axes, P_mean: float, P_std: float):
    low, high = (math.log(edge) for edge in axes.get_xlim())
    sigma = [math.exp(low + (high - low) * i / 300) for i in range(301)]
    density = [math.exp(-(((math.log(s) - P_mean) / P_std) ** 2) / 2) / (P_std * math.sqrt(2 * math.pi)) for s in sigma]
    second = axes.twinx()
    second.plot(sigma, density, color="black", linestyle=(0, (4, 2, 1, 2)), linewidth=1.3,
                label=r"$p_{train}(\ln\,\sigma)$")  # fmt: skip
    second.set(ylim=(0, 1.6 * max(density)), ylabel=r"density of $\ln\,\sigma$ in training")
    second.spines["right"].set_visible(True)
    second.grid(False)
    return second


def _legend_below(figure, *entries) -> None:
    """Below the axes, where it hides no curve whatever the data."""
    if not entries:
        entries = figure.axes[0].get_legend_handles_labels()
    if entries[0]:
        figure.legend(*entries, loc="outside lower center", ncols=2, fontsize=7.5)

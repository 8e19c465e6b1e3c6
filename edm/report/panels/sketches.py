"""Trajectories in one dimension (Figure 3) and local truncation error vs. σ (Figure 13a, b)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edm.report.style import line_styles, log_ticks, page

TITLES = {
    "VP": "(a) Variance preserving ODE",
    "VE": "(b) Variance exploding ODE",
    "EDM": "(c) DDIM / our ODE",
}


def trajectories(
    wide: Mapping[str, Mapping[str, Any]],
    near: Mapping[str, Mapping[str, Any]],
    path: Path,
    written: list[Path],
    *,
    examples: Sequence[int] | None = None,
) -> None:
    """x(t) vs. t, a column per parametrisation; top row up to a high noise level, bottom row near the data.

    wide, near: {parametrisation: {"t": [T], "sigma": [T], "x": [n, T]}}, the same n trajectories in both. examples:
    indices of the trajectories drawn in black, by default six evenly spaced. A second axis above each panel shows σ.
    """
    count = len(next(iter(wide.values()))["x"])
    if examples is None:
        examples = range(count // 12, count, max(count // 6, 1))
    with page(path, written, width=7.2, height=4.6) as figure:
        panels = figure.subplots(2, len(wide), squeeze=False)
        for row, data in enumerate((wide, near)):
            for axes, (name, panel) in zip(panels[row], data.items(), strict=True):
                t, x = np.asarray(panel["t"]), np.asarray(panel["x"])
                axes.plot(t, x.T, color="#56B4E9", linewidth=0.5, alpha=0.8)
                axes.plot(t, x[list(examples)].T, color="black", linewidth=1.2)
                axes.set(xlim=(t[0], t[-1]), xlabel="$t$")
                _sigma_axis(axes, t, np.asarray(panel["sigma"]))
                if row == 0:
                    axes.set_title(TITLES.get(name, name), fontsize=9)
            panels[row][0].set_ylabel("$x$" if row == 0 else "$x$, near the data")


def _sigma_axis(axes, t: np.ndarray, sigma: np.ndarray) -> None:
    """Ticks at five even noise levels; if the schedule crowds them together, some have no label."""
    levels = np.linspace(0, sigma[-1], 6)
    places = np.interp(levels, sigma, t)
    names, last = [], -np.inf
    for level, place in zip(levels, places, strict=True):
        apart = place - last > 0.13 * t[-1]
        names.append(f"{level:g}" if apart else "")
        last = place if apart else last
    names[0] = f"$\\sigma$ = {names[0]}"
    second = axes.secondary_xaxis("top")
    second.set_xticks(places, names, fontsize=7)
    second.tick_params(length=2, pad=1)


def truncation(record: Mapping[str, Any], path: Path, written: list[Path]) -> None:
    """Error of one Euler step (a) and of one Heun step (b) vs. σ, a line per ρ, the standard deviation shaded.

    record: {"num_steps", "curves": [{"rho", "sigma", "euler": {"mean", "std"}, "heun": {"mean", "std"}}]}.
    """
    with page(path, written, width=7.2, height=3.5) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        titles = ("(a) Euler's method", "(b) Heun's 2nd-order method")
        for axes, method, title in zip(panels, ("euler", "heun"), titles, strict=True):
            for curve, style in zip(record["curves"], line_styles(), strict=False):
                sigma, mean, std = np.array(curve["sigma"]), *(np.array(curve[method][k]) for k in ("mean", "std"))
                label = rf"$\rho$ = {curve['rho']:g}" + (" (uniform steps)" if curve["rho"] == 1 else "")
                axes.plot(sigma, mean, **style, markersize=3.5, markevery=0.1, linewidth=1.2, label=label)
                # A band may reach zero, which a logarithmic axis cannot show.
                low = np.maximum(mean - std, 0.05 * mean)
                axes.fill_between(sigma, low, mean + std, color=style["color"], alpha=0.2, linewidth=0)
            axes.set(xscale="log", yscale="log", xlabel=r"noise level $\sigma$")
            axes.set_title(title, fontsize=9)
            axes.xaxis.set_major_formatter("{x:g}")
            log_ticks(axes.yaxis)
        panels[0].set_ylabel(f"local truncation error (RMSE), N = {record['num_steps']}")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=7.5)

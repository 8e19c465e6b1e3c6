"""What a dataset says about noise levels: the figure of ``edm advise``."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from edm.report.style import COLORS, canvas, log_ticks

LABELS = {
    "e0": "best linear denoiser",
    "e1": "ideal denoiser of a subset, on the subset",
    "e1_new": "ideal denoiser of a subset, on other images",
}


def advice(
    curves: Mapping[str, Sequence[float]],
    distribution: tuple[float, float] | None,
    path: Path,
    written: list[Path],
    *,
    network: bool = False,
) -> None:
    """e(σ)/σ² of the denoisers of :class:`edm.analysis.advice.Advice`, and the distribution of ln σ.

    curves: "sigma", "e0", "e1" and perhaps "e1_new". distribution: (P_mean, P_std), or None; the levels within one
    deviation of the mean are shaded. network: whether e1 is that of a trained network.
    """
    sigma = curves["sigma"]
    with canvas(path, written, width=5.4, height=3.6) as axes:
        for (name, label), color in zip(LABELS.items(), COLORS, strict=False):
            if name not in curves:
                continue
            text = "trained network" if network and name == "e1" else label
            values = [error / level**2 for error, level in zip(curves[name], sigma, strict=True)]
            axes.plot(sigma, values, color=color, linestyle=":" if name == "e1_new" else "-", label=text)
        if distribution is not None:
            mean, deviation = distribution
            axes.axvspan(math.exp(mean - deviation), math.exp(mean + deviation), color="0.5", alpha=0.2, linewidth=0,
                         label=r"$P_{mean} \pm P_{std}$")  # fmt: skip
        axes.set(xscale="log", xlim=(sigma[0], sigma[-1]), ylim=(0, 1.05), xlabel=r"noise level $\sigma$",
                 ylabel=r"error per pixel / $\sigma^2$")  # fmt: skip
        log_ticks(axes.xaxis)
        axes.figure.legend(loc="outside lower center", ncols=2, fontsize=7.5)

"""Differences of measured distances, from the same seeds where possible. Does not import torch."""

import math
from collections.abc import Sequence
from statistics import fmean

from edm.evaluation.records import Bar, Measurement
from edm.metrics.jackknife import Difference, jackknife


def difference(first: Sequence[Measurement], second: Sequence[Measurement]) -> Difference | None:
    """Distance of ``first`` minus that of ``second``, of the repeats of one sampler setting each.

    Repeats of the same seeds are compared seed by seed: the noise that both share drops out. The difference is the mean
    over them. Without common seeds, the two mean distances are compared as independent ones, which is wider. None for a
    reason that ``why_not`` gives.
    """
    if why_not(first, second):
        return None
    ours, theirs = ({m.first_seed: m.bar for m in of if m.bar} for of in (first, second))
    pairs = [_paired(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    if pairs:
        return Difference(fmean(d for d, _ in pairs), _mean_error([s for _, s in pairs]), paired=True)
    (a, s), (b, t) = ((fmean(bar.corrected for bar in of.values()), _mean_error([bar.s for bar in of.values()]))
                      for of in (ours, theirs))  # fmt: skip
    return Difference(a - b, math.hypot(s, t), paired=False)


def why_not(first: Sequence[Measurement], second: Sequence[Measurement]) -> str:
    """Why two settings cannot be compared: different features, reference or number of images, no error bar; or ""."""
    both = [*first, *second]
    if not first or not second:
        return "not measured"
    if len({(m.label, m.description, m.reference) for m in both}) > 1:
        return "different features or reference"
    if len({m.images for m in both}) > 1:
        return "different numbers of images"
    return "no error bar" if any(m.s is None for m in both) else ""


def _paired(one: Bar, other: Bar) -> tuple[float, float]:
    """The difference of two distances of the same seeds, with its first-order bias removed, and its standard error."""
    _, s = jackknife(0, [a - b for a, b in zip(one.without, other.without, strict=True)])
    return one.corrected - other.corrected, s


def _mean_error(errors: Sequence[float]) -> float:
    """The standard error of the mean of independent values."""
    return math.sqrt(sum(s * s for s in errors)) / len(errors)

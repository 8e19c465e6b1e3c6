"""Differences of measured distances, from the same seeds where possible. Does not import torch."""

import math
from collections.abc import Sequence
from statistics import fmean

from edm.evaluation.records import Measurement
from edm.metrics.jackknife import Difference, jackknife


def difference(first: Sequence[Measurement], second: Sequence[Measurement]) -> Difference | None:
    """Distance of ``first`` minus that of ``second``, of the repeats of one sampler setting each.

    Repeats of the same seeds are compared seed by seed: the noise that both share drops out. The difference is the mean
    over them. Without common seeds, the two mean distances are compared as independent ones, which is wider. None if
    error bars are missing, or if the two have other features, another reference or another number of images.
    """
    ours, theirs = ({(m.first_seed, m.images): m for m in of if m.s is not None} for of in (first, second))
    if not ours or not theirs or len({_yardstick(m) for m in (*ours.values(), *theirs.values())}) > 1:
        return None
    pairs = [_paired(ours[seeds], theirs[seeds]) for seeds in ours if seeds in theirs]
    if pairs:
        return Difference(fmean(d for d, _ in pairs), _mean_error([s for _, s in pairs]), paired=True)
    (a, s), (b, t) = ((fmean(bar.corrected for bar in of.values()), _mean_error([bar.s for bar in of.values()]))
                      for of in (ours, theirs))  # fmt: skip
    return Difference(a - b, math.hypot(s, t), paired=False)


def _yardstick(m: Measurement) -> tuple[object, ...]:
    return m.label, m.description, m.reference, m.images


def _paired(one: Measurement, other: Measurement) -> tuple[float, float]:
    """The difference of two distances of the same seeds, with its first-order bias removed, and its standard error."""
    _, s = jackknife(0, [a - b for a, b in zip(one.bar.without, other.bar.without, strict=True)])
    return one.bar.corrected - other.bar.corrected, s


def _mean_error(errors: Sequence[float]) -> float:
    """The standard error of the mean of independent values."""
    return math.sqrt(sum(s * s for s in errors)) / len(errors)

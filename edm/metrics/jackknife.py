"""Error bars of distances as numbers: the group jackknife, and differences of measurements. Does not import torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

GROUPS = 20
TELLING = 2  # |z| from which two distances count as different
#: Images per feature below which a distance has no error bar: of 2,048 features with variances like those of real
#: images, f_J ± 1.96 s covers the true distance in 90 % of evaluations at 13 (docs/comparing.md, bench/error_bars.py).
FEWEST_PER_FEATURE = 13


def jackknife(whole: float, without: Sequence[float]) -> tuple[float, float]:
    """A statistic of all images with its first-order bias removed, and its standard error.

    whole: of all images. without: of the images without each of G groups of equal size.
    f_J = G f − (G−1) mean f_(g); s² = (G−1)/G Σ (f_(g) − mean)².
    """
    groups, mean = len(without), fmean(without)
    s = math.sqrt((groups - 1) / groups * sum((value - mean) ** 2 for value in without))
    return groups * whole - (groups - 1) * mean, s


#: The expected minimum of k values of a normal distribution lies c_k standard deviations below its mean.
EXPECTED_MINIMUM = {2: 1 / math.sqrt(math.pi), 3: 1.5 / math.sqrt(math.pi), 4: 1.0294, 5: 1.1630}


@dataclass(frozen=True)
class Difference:
    """A difference of two distances and its standard error. paired: of the same seeds, in the same 20 groups each."""

    value: float
    s: float
    paired: bool

    @property
    def z(self) -> float:
        """The difference in standard errors; 0 of equal distances."""
        return self.value / self.s if self.s else math.copysign(math.inf, self.value) if self.value else 0.0

    @property
    def told_apart(self) -> bool:
        """Whether the two can be told apart: |z| of at least 2."""
        return abs(self.z) >= TELLING


def expected_minimum(values: Sequence[float]) -> float | None:
    """What the lowest of these repeats is on average over other seeds, mean − c_k s; None of one or more than five."""
    c = EXPECTED_MINIMUM.get(len(values))
    return None if c is None else fmean(values) - c * stdev(values)

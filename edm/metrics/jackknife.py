"""Error bars of distances as numbers: the group jackknife, and differences of measurements. Does not import torch."""

import math
from collections.abc import Sequence
from statistics import fmean

GROUPS = 20
#: Images per feature below which a distance has no error bar.
FEWEST_PER_FEATURE = 5


def jackknife(whole: float, without: Sequence[float]) -> tuple[float, float]:
    """A statistic of all images with its first-order bias removed, and its standard error.

    whole: of all images. without: of the images without each of G groups of equal size.
    f_J = G f − (G−1) mean f_(g); s² = (G−1)/G Σ (f_(g) − mean)².
    """
    groups, mean = len(without), fmean(without)
    s = math.sqrt((groups - 1) / groups * sum((value - mean) ** 2 for value in without))
    return groups * whole - (groups - 1) * mean, s

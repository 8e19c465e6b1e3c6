"""The error of a Fréchet distance, from the images that gave it: jackknife over groups of seeds, and FD∞.

The images of an evaluation fall into ``GROUPS`` groups of consecutive seeds. Their statistics give the distance without
each group, and that of the first 6, 7, … 20 groups. A bar covers the noise of the images, not that of the reference.
Sources: Efron & Stein (1981), "The jackknife estimate of variance"; Chong & Forsyth (2020), "Effectively unbiased FID
and Inception score and where to find them", which fits a line in 1/N to the distances of 15 sizes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from edm.errors import UserError
from edm.metrics.frechet import FeatureStatistics, ReferenceStatistics, factor, require_finite
from edm.metrics.jackknife import FEWEST_PER_FEATURE, GROUPS, jackknife
from edm.tracking.counting import Counting

_OF_A_GROUP = ("count", "mean", "scatter")
SIZES = 15  # of the line of FD∞; the smallest has 30 % of the images
SILENT = 1.0  # seconds before a terminal shows a bar: 35 distances of 2,048 features take a minute


class Groups:
    """Statistics of the images of an evaluation, or of a part of it, by groups of consecutive seeds.

    total: number of images of the whole evaluation, of which this part begins at the place ``start``; total 0: all
    images are one group, which has no error bar. Memory: 8 F² bytes per group that the part touches.
    """

    def __init__(self, total: int = 0, start: int = 0) -> None:
        self.total, self.start = total, start
        self._groups: dict[int, FeatureStatistics] = {}

    @property
    def count(self) -> int:
        """Number of images seen so far."""
        return sum(group.count for group in self._groups.values())

    def append(self, features: torch.Tensor) -> None:
        """Adds features [N, F] of the images that follow. Raises as ``FeatureStatistics.append``, and adds nothing."""
        require_finite(features, self.count)  # before a batch that spans two groups adds its first half
        first = self.start + self.count
        for group, places in self._parts(first, first + len(features)):
            self._groups.setdefault(group, FeatureStatistics()).append(
                features[places.start - first : places.stop - first]
            )

    def merge(self, other: "Groups") -> None:
        """Adds the images of the part that follows; does not change ``other``. If one has no groups, both have none."""
        if self.total and other.total != self.total and other.count:
            whole = self.whole()
            self.total, self._groups = 0, {0: whole} if whole.count else {}
        if not self.total and other.total:
            theirs: Mapping[int, FeatureStatistics] = {0: other.whole()}
        else:
            theirs = other._groups
        for group, statistics in theirs.items():
            self._groups.setdefault(group, FeatureStatistics()).merge(statistics)

    def whole(self) -> FeatureStatistics:
        """The statistics of all images."""
        if list(self._groups) == [0] and not self.total:
            return self._groups[0]
        found = FeatureStatistics()
        for group in sorted(self._groups):
            found.merge(self._groups[group])
        return found

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors for ``restore``: of one group those of ``FeatureStatistics.state``, else "GROUP/count" and so on.

        Of a symmetric matrix it holds one triangle: a part with all groups of 2,048 features has 336 MB.
        """
        if not self.total:
            return self.whole().state()
        return {"groups": torch.tensor([self.total, self.start])} | {
            f"{group}/{name}": _triangle(tensor) if name == "scatter" else tensor
            for group, statistics in sorted(self._groups.items())
            for name, tensor in statistics.state().items()
        }

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Replaces the contents by a ``state``, also by one without groups. Raises UserError for anything else."""
        if "groups" not in state:
            statistics = FeatureStatistics.from_state(state)
            self.total, self.start, self._groups = 0, 0, {0: statistics} if statistics.count else {}
            return
        place, groups = state["groups"], {}
        if place.dtype != torch.int64 or place.shape != (2,) or not place[0] >= place[1] >= 0 or not place[0]:
            raise UserError("not a state of feature statistics (its place in the evaluation is not one)")
        for group in range(GROUPS):
            one = {name: state[f"{group}/{name}"] for name in _OF_A_GROUP if f"{group}/{name}" in state}
            if one:
                groups[group] = FeatureStatistics.from_state(one | {"scatter": _square(one.get("scatter"))})
        (self.total, self.start), self._groups = place.tolist(), groups

    def bar(self, reference: ReferenceStatistics, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The error bar of the distance of all images to the reference, as results files hold it; None without groups.

        "features": F. "without": the distances without each group; "prefixes": [images, distance] of the first groups;
        "s", "corrected", "limit": standard error, bias-corrected distance and FD∞. Of fewer images than
        ``FEWEST_PER_FEATURE`` per feature it has "features" alone.
        """
        if not self.total:
            return None
        found: dict[str, Any] = {"features": reference.mu.size}
        if self.count < max(FEWEST_PER_FEATURE * reference.mu.size, 2 * GROUPS) or len(self._groups) < GROUPS:
            return found
        return found | self.measured(Distance(reference, device))

    def measured(self, distance: "Distance") -> dict[str, Any]:
        """The bar without "features", of any number of images that fill all groups."""
        ahead = FeatureStatistics()
        prefixes, without = [], []
        with Counting("error bar", SIZES + GROUPS, of="distances", delay=SILENT) as counting:
            for group in range(GROUPS):
                ahead.merge(self._groups[group])
                if group >= GROUPS - SIZES:
                    prefixes.append([ahead.count, distance.of(ahead)])
                    counting.advance(1)
            for group in range(GROUPS):
                without.append(distance.of(ahead.without(self._groups[group])))
                counting.advance(1)
        corrected, s = jackknife(prefixes[-1][1], without)
        return {"s": s, "corrected": corrected, "limit": limit(prefixes), "without": without, "prefixes": prefixes}

    def _parts(self, first: int, stop: int) -> list[tuple[int, range]]:
        """The groups of the images at the places from ``first`` to before ``stop``, with the places in each."""
        if not self.total:
            return [(0, range(first, stop))] if stop > first else []
        borders = [self.total * group // GROUPS for group in range(GROUPS + 1)]
        parts = [(g, range(max(first, borders[g]), min(stop, borders[g + 1]))) for g in range(GROUPS)]
        return [(group, places) for group, places in parts if places]


class Distance:
    """Fréchet distances of many Gaussians to one reference: factors the reference once, in Σ = A Aᵀ.

    The eigenvalues of ΣᵣΣ are those of the symmetric AᵀΣA: less work than in ``frechet_distance``, and as exact where Σ
    has full rank, which error bars require.
    """

    def __init__(self, reference: ReferenceStatistics, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        if self.device.type == "mps":  # has no float64
            self.device = torch.device("cpu")
        self._mu = torch.as_tensor(reference.mu, device=self.device)
        self._trace = float(np.trace(reference.sigma))
        self._factor = factor(reference.sigma, self.device)

    def of(self, statistics: FeatureStatistics) -> float:
        """The distance of these statistics."""
        mean, covariance = statistics.moments(self.device)
        between = self._factor.T @ covariance @ self._factor
        overlap = torch.linalg.eigvalsh(between).clamp(min=0).sqrt().sum()
        shift = mean - self._mu
        return float(shift @ shift + covariance.trace() + self._trace - 2 * overlap)


def limit(sizes: Sequence[Sequence[float]]) -> float:
    """FD∞: the value at 1/N = 0 of a line through the distances of several sizes, [images, distance] each."""
    counts, distances = np.array(sizes, dtype=np.float64).T
    _, intercept = np.polyfit(1 / counts, distances, 1)
    return float(intercept)


def _triangle(matrix: torch.Tensor) -> torch.Tensor:
    """The upper triangle of a symmetric matrix [F, F], as one row."""
    return matrix[*torch.triu_indices(*matrix.shape, device=matrix.device)]


def _square(row: torch.Tensor | None) -> torch.Tensor:
    """The inverse of ``_triangle``. What is not such a row becomes no square matrix, which ``from_state`` refuses."""
    if row is None or row.ndim != 1:
        return torch.empty(0)
    size = int((np.sqrt(8 * len(row) + 1) - 1) / 2)
    if size * (size + 1) // 2 != len(row):
        return torch.empty(0)
    matrix = row.new_empty(size, size)
    upper = torch.triu_indices(size, size, device=row.device)
    matrix[*upper] = row
    matrix[*upper.flip(0)] = row
    return matrix

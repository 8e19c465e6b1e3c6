"""Nearest neighbours and balls among feature vectors, block by block: never more than a strip of the N × M distances.

The strips are float32, from ‖a‖² + ‖b‖² − 2 a·b of features about a common centre. What they decide is decided again
from the differences, whose squares are summed in float64: the distances of the nearest candidates, and every comparison
that lies within the strip's rounding. So the results do not depend on the size of the blocks or on the device, and a
copy of a vector has the distance 0.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from edm.networks.precision import float32_as

STRIP = 1 << 25  # distances at once: 134 MB of float32
GATHERED = 1 << 22  # differences at once where they are formed again: 17 MB of float32
SPARE = 8  # candidates beyond the k nearest, for neighbours that rounding exchanges
ROUNDING = 8 * torch.finfo(torch.float32).eps  # of a strip, relative to ‖a‖² + ‖b‖², times √F; three times what is seen
EQUAL = 1 + 1e-12  # two distances that differ less are equal: float64 sums may differ in the last digit


@dataclass(frozen=True)
class Strip:
    """Squared distances of the points ``rows`` to all others: float32 [b, M], and their rounding, float32 [b, 1]."""

    rows: slice
    squared: Tensor
    rounding: Tensor


class Looks(Protocol):
    """Something that looks at every strip once."""

    def look(self, pair: "Pair", strip: Strip) -> None: ...


class Pair:
    """Two sets of vectors, float32 [N, F] and [M, F], on one device, about one centre; or one set and itself."""

    def __init__(self, points: Tensor, others: Tensor | None = None, strip: int = STRIP):
        """others: None for the distances among the points, of which none is its own neighbour."""
        self.points, self.alone = points, others is None
        self.others = points if others is None else others
        self.size = max(1, strip // len(self.others))
        self._room: tuple[Tensor, Tensor] | None = None

    def go(self, *looking: Looks) -> None:
        """Computes every strip once and shows it to all."""
        for strip in self._strips():
            for one in looking:
                one.look(self, strip)

    def squared(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Squared distances, float64, of points rows [n] to others columns [n] or [n, c], from the differences."""
        width, features = math.prod(columns.shape[1:]), self.points.shape[1]
        size = max(1, min(len(columns), GATHERED // (features * width)))
        room, wide = self._rooms(size * width, features)
        found = torch.empty(columns.shape, dtype=torch.float64, device=columns.device)
        for start in range(0, len(columns), size):
            part = slice(start, start + size)
            near, column = self.points[rows[part]], columns[part]
            far = torch.index_select(self.others, 0, column.flatten(), out=room[: column.numel()])
            far.view(*column.shape, features).sub_(near if columns.ndim == 1 else near[:, None]).square_()
            summed = wide[: len(far)].copy_(far).sum(dim=-1)
            found[part] = summed.view(column.shape)
        return found

    def _rooms(self, count: int, features: int) -> tuple[Tensor, Tensor]:
        """Room for ``count`` differences in float32 and in float64, the same for all parts and strips.

        The C library does not reuse the holes that aligned pieces of new memory leave.
        """
        if self._room is None or len(self._room[0]) < count:
            new = self.others.new_empty
            self._room = new(count, features), new(count, features, dtype=torch.float64)
        return self._room

    def _strips(self) -> Iterator[Strip]:
        norms = self.others.square().sum(dim=1)
        share = ROUNDING * math.sqrt(self.points.shape[1])
        most = norms.max()
        with torch.no_grad(), float32_as():
            for start in range(0, len(self.points), self.size):
                rows = slice(start, min(start + self.size, len(self.points)))
                mine = self.points[rows]
                own = mine.square().sum(dim=1, keepdim=True)
                squared = torch.addmm(norms[None], mine, self.others.T, alpha=-2).add_(own)
                if self.alone:
                    squared.diagonal(offset=start).fill_(math.inf)
                yield Strip(rows, squared, share * (own + most))


class Nearest:
    """The k nearest others of every point: squared distances float64 [N, k], ascending, and their places [N, k].

    Of others at one distance, the first. With fewer than k others, all of them.
    """

    def __init__(self, k: int):
        self.k = k
        self._found: list[tuple[Tensor, Tensor]] = []

    def look(self, pair: Pair, strip: Strip) -> None:
        there = len(pair.others) - pair.alone
        candidates = min(self.k + SPARE, there)
        places = strip.squared.topk(candidates, dim=1, largest=False, sorted=False).indices.sort(dim=1).values
        rows = torch.arange(strip.rows.start, strip.rows.stop, device=places.device)
        exact = pair.squared(rows, places)
        kept, order = exact.sort(dim=1, stable=True)
        k = min(self.k, there)
        self._found.append((kept[:, :k].cpu(), places.gather(1, order)[:, :k].cpu()))

    @property
    def squared(self) -> Tensor:
        return torch.cat([squared for squared, _ in self._found])

    @property
    def places(self) -> Tensor:
        return torch.cat([places for _, places in self._found])


class Balls:
    """Which points lie in which balls: of the others, or of the points if ``of_points``; radii count as inside.

    counts: of every point, the pairs inside, int64 [N]. reached: of every other, whether any pair is inside, [M].
    """

    def __init__(self, squared_radii: Tensor, of_points: bool = False):
        """squared_radii: float64, one per other or one per point."""
        self.radii, self.of_points = squared_radii, of_points
        self._counts: list[Tensor] = []
        self._reached: Tensor | None = None

    def look(self, pair: Pair, strip: Strip) -> None:
        radii = self.radii.to(strip.squared.device)
        shown = radii[strip.rows, None] if self.of_points else radii[None]
        beyond = strip.squared - shown.float()
        inside = beyond <= 0
        rows, columns = (beyond.abs_() <= strip.rounding).nonzero(as_tuple=True)
        exact = pair.squared(rows + strip.rows.start, columns)
        limit = shown.expand(strip.squared.shape)[rows, columns]
        inside[rows, columns] = exact <= limit * EQUAL
        self._counts.append(inside.sum(dim=1).cpu())
        reached = inside.any(dim=0).cpu()
        self._reached = reached if self._reached is None else self._reached | reached

    @property
    def counts(self) -> Tensor:
        return torch.cat(self._counts)

    @property
    def reached(self) -> Tensor:
        assert self._reached is not None
        return self._reached

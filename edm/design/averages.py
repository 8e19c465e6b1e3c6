"""Moving averages of weights as profiles over training, and their recombination after the fact (Karras et al. 2024).

A profile p(τ) is the density of an average, taken after t images, over the images τ ≤ t seen before. That of a power
function is (γ + 1)/t · (τ/t)^γ: in training, β = (1 − 1/k)^{γ+1} at step k. Its relative width s is its deviation over
t: s² = (γ + 1)/((γ + 2)² (γ + 3)). Any profile is approximated by a combination of those that snapshots have.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edm.errors import UserError

WIDEST = 12**-0.5  # γ = 0: the plain mean of all weights
_NARROWEST = 1e-3
_NODES = 24  # of Gauss–Legendre in each panel of a quadrature
_PANELS = 40  # each half as wide as the one before, towards the end at which profiles are steep


@dataclass(frozen=True)
class PowerFunction:
    """The profile (γ + 1)/t · (τ/t)^γ of a relative width s."""

    width: float

    def __post_init__(self) -> None:
        if not _NARROWEST <= self.width <= WIDEST:
            raise UserError(f"EMA width {self.width:g}: must be from {_NARROWEST:g} to {WIDEST:.4f}, the plain mean")

    @property
    def gamma(self) -> float:
        """γ, the largest real root of γ³ + 7γ² + (16 − s⁻²)γ + (12 − s⁻²) = 0.

        ``PowerFunction(0.1).gamma`` is 6.937204.
        """
        inverse = self.width**-2
        roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
        return float(max(root.real for root in roots if abs(root.imag) < 1e-6))

    def decay(self, step: int) -> float:
        """β = (1 − 1/k)^{γ+1} of step k, counted from 1: the first step replaces the initial weights."""
        return float((1 - 1 / step) ** (self.gamma + 1))

    def density(self, images: np.ndarray, t: float) -> np.ndarray:
        """p(τ) at τ in (0, t]."""
        power = self.gamma
        found: np.ndarray = (power + 1) / t * (images / t) ** power
        return found

    def bends(self) -> tuple[float, ...]:
        """Where the profile is not smooth."""
        return ()


@dataclass(frozen=True)
class HalfLife:
    """The profile of an exponential average: half-life min(halflife, rampup · τ) after τ images (Table 7).

    Up to τ₀ = halflife/rampup it is a power function with γ + 1 = ln 2/rampup. Without a ramp (None), the initial
    weights keep the part 2^{−t/halflife}, which is left out here. halflife: in images.
    """

    halflife: float
    rampup: float | None

    def density(self, images: np.ndarray, t: float) -> np.ndarray:
        """p(τ) at τ in (0, t]."""
        rate = math.log(2) / self.halflife
        if self.rampup is None:
            flat: np.ndarray = rate * np.exp(-rate * (t - images))
            return flat
        bend, power = min(self.halflife / self.rampup, t), math.log(2) / self.rampup
        early = power / bend * (np.minimum(images, bend) / bend) ** (power - 1) * math.exp(-rate * (t - bend))
        late = rate * np.exp(-rate * np.maximum(t - images, 0))
        found: np.ndarray = np.where(images <= bend, early, late)
        return found

    def bends(self) -> tuple[float, ...]:
        return () if self.rampup is None else (self.halflife / self.rampup,)


CANCELS = 10.0  # total of the weights beyond which errors of single snapshots show
FAR = 0.1  # residual beyond which the profile is another one


def doubts(residual: float, total: float) -> list[str]:
    """What speaks against a recombination of snapshots, in words. Arguments as in :class:`Recombination`."""
    said = []
    if total > CANCELS:
        said.append(f"weights cancel (total {total:.3g}): errors of snapshots are as many times larger")
    if residual > FAR:
        said.append(f"another profile (residual {residual:.2g}): take more snapshots, or another width")
    return said


Profile = PowerFunction | HalfLife
Snapshot = tuple[Profile, float]  # a profile and the images seen, t


@dataclass(frozen=True)
class Recombination:
    """weights: of the snapshots, with sum 1. residual: of the profile, relative, in L². total: of the weights' sizes.

    A total far above 1 says that weights cancel: errors of the snapshots are that many times as large in the result.
    """

    weights: tuple[float, ...]
    residual: float
    total: float


def recombine(target: Snapshot, snapshots: Sequence[Snapshot]) -> Recombination:
    """The combination of snapshots whose profile is nearest to that of ``target`` (least squares).

    ``recombine((PowerFunction(0.1), 2e6), [(PowerFunction(0.05), 1e6), (PowerFunction(0.05), 2e6)]).residual``

    Raises UserError without snapshots, and for a target after the last of them.
    """
    last = max((t for _, t in snapshots), default=0.0)
    if target[1] > last * (1 + 1e-9) or target[1] <= 0:
        raise UserError(
            f"an average after {target[1]:,.0f} images: the snapshots end at {last:,.0f}; choose an earlier"
        )
    matrix = np.array([[inner(a, b) for b in snapshots] for a in snapshots])
    right = np.array([inner(one, target) for one in snapshots])
    size = inner(target, target)
    scale = np.diag(matrix) ** -0.5  # for the condition of the equations
    found = scale * np.linalg.lstsq(matrix * scale * scale[:, None], right * scale, rcond=1e-14)[0]
    weights = found / found.sum()
    square = 1 + float(weights @ matrix @ weights - 2 * weights @ right) / size
    return Recombination(tuple(weights.tolist()), math.sqrt(max(square, 0.0)), float(np.abs(weights).sum()))


def inner(a: Snapshot, b: Snapshot) -> float:
    """∫ p_a p_b dτ: of two power functions (γ_a+1)(γ_b+1)/((γ_a+γ_b+1) t_b) (t_a/t_b)^{γ_b} for t_a ≤ t_b."""
    (one, t), (other, later) = sorted((a, b), key=lambda snapshot: snapshot[1])
    if isinstance(one, PowerFunction) and isinstance(other, PowerFunction):
        g, h = one.gamma, other.gamma
        return float((g + 1) * (h + 1) / ((g + h + 1) * later) * (t / later) ** h)
    halves = t * 0.5 ** np.arange(1, _PANELS)
    cuts = np.array([0, t, *halves, *(t - halves), *(bend for p in (one, other) for bend in p.bends() if bend < t)])
    edges = np.unique(cuts)
    nodes, parts = np.polynomial.legendre.leggauss(_NODES)
    half = np.diff(edges)[:, None] / 2
    images = (edges[:-1, None] + half) + half * nodes
    return float((half * parts * one.density(images, t) * other.density(images, later)).sum())

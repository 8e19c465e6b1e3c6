"""Training: noise distributions and loss weights, the last block of Table 1.

Each noise distribution is defined by its quantile function: one uniform draw per sample determines its σ.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from edm import protocols, registry
from edm.design.schedules import VP_BETA_D, VP_BETA_MIN, VP_EPSILON_T, VPSchedule
from edm.design.timesteps import IDDPM_STEPS, iddpm_levels
from edm.errors import UserError


class Loss(protocols.Loss, Protocol):
    """:class:`edm.protocols.Loss`, with the noise levels that training sees."""

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The smallest and the largest σ that a model trained with this loss supports."""


@registry.register("loss", "vp")
@dataclass(frozen=True)
class VPLoss:
    """σ⁻¹(σ) ~ U(ε_t, 1); λ = 1/σ²."""

    beta_d: float = VP_BETA_D
    beta_min: float = VP_BETA_MIN
    epsilon_t: float = VP_EPSILON_T

    def sigma(self, u: Tensor) -> Tensor:
        return VPSchedule(self.beta_d, self.beta_min).sigma(self.epsilon_t + u * (1 - self.epsilon_t))

    def density(self, sigma: Tensor) -> Tensor:
        # t is uniform: p(ln σ) = p(t) dt/d ln σ = σ/(σ̇(t) (1 − ε_t)).
        schedule = VPSchedule(self.beta_d, self.beta_min)
        found = sigma / (schedule.sigma_dot(schedule.inverse(sigma)) * (1 - self.epsilon_t))
        return _inside(found, sigma, self.sigma_range)

    def weight(self, sigma: Tensor) -> Tensor:
        return 1 / sigma**2

    @property
    def sigma_range(self) -> tuple[float, float]:
        low, high = self.sigma(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        return low, high


@registry.register("loss", "ve")
@dataclass(frozen=True)
class VELoss:
    """ln σ ~ U(ln σ_min, ln σ_max); λ = 1/σ²."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def sigma(self, u: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** u

    def density(self, sigma: Tensor) -> Tensor:
        found = torch.full_like(sigma, 1 / math.log(self.sigma_max / self.sigma_min))
        return _inside(found, sigma, self.sigma_range)

    def weight(self, sigma: Tensor) -> Tensor:
        return 1 / sigma**2

    @property
    def sigma_range(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max


@registry.register("loss", "iddpm")
@dataclass(frozen=True)
class IDDPMLoss:
    """σ = u_j with j ~ U{0, …, M − 1}; λ = 1/σ²."""

    steps: int = IDDPM_STEPS

    def sigma(self, u: Tensor) -> Tensor:
        # Reversed, so that a quantile function grows: u_{M−1} is the smallest level.
        levels = iddpm_levels(self.steps)[: self.steps].flip(0).to(u)
        return levels[(u * self.steps).long().clamp(max=self.steps - 1)]

    def density(self, sigma: Tensor) -> Tensor:
        # Discrete: each level's 1/M, spread evenly over ln σ between the midpoints to its neighbours.
        levels = iddpm_levels(self.steps)[: self.steps].flip(0).log()
        middles = (levels[1:] + levels[:-1]) / 2
        edges = torch.cat((2 * levels[:1] - middles[:1], middles, 2 * levels[-1:] - middles[-1:]))
        place = torch.searchsorted(edges, sigma.log().to(edges)) - 1
        inside = (place >= 0) & (place < self.steps)
        found = 1 / (self.steps * edges.diff())[place.clamp(0, self.steps - 1)]
        return torch.where(inside, found, 0).to(sigma)

    def weight(self, sigma: Tensor) -> Tensor:
        return 1 / sigma**2

    @property
    def sigma_range(self) -> tuple[float, float]:
        levels = iddpm_levels(self.steps)
        return float(levels[self.steps - 1]), float(levels[0])


@registry.register("loss", "edm")
@dataclass(frozen=True)
class EDMLoss:
    """ln σ ~ N(P_mean, P_std²); λ = (σ² + σ_data²)/(σ σ_data)²: every level starts at loss 1 (App. B.6)."""

    P_mean: float = -1.2
    P_std: float = 1.2
    sigma_data: float = 0.5

    def sigma(self, u: Tensor) -> Tensor:
        sigma: Tensor = (self.P_mean + self.P_std * torch.special.ndtri(u)).exp()
        return sigma

    def density(self, sigma: Tensor) -> Tensor:
        z = (sigma.log() - self.P_mean) / self.P_std
        return (-(z**2) / 2).exp() / (self.P_std * math.sqrt(2 * math.pi))

    def weight(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

    @property
    def sigma_range(self) -> tuple[float, float]:
        return 0.0, math.inf


def _inside(density: Tensor, sigma: Tensor, limits: tuple[float, float]) -> Tensor:
    return torch.where((sigma >= limits[0]) & (sigma <= limits[1]), density, 0)


class PluginLoss:
    """The loss of a plugin: its errors are one line, and its values have the shape and the range of the protocol."""

    def __init__(self, part: registry.Part, settings: dict[str, Any]) -> None:
        self._part, self._loss = part, part(**settings)
        low, high = (float(level) for level in getattr(self._loss, "sigma_range", (0.0, math.inf)))
        if not 0 <= low < high:
            raise UserError(f"{part.where}: sigma_range is {low:g} to {high:g}; expected rising levels from 0")
        self.sigma_range = low, high
        quantiles = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
        levels = self.sigma(quantiles)
        self._require(levels > 0, "sigma(u) gives levels that are not above 0")
        self._require(levels.diff() >= 0, "sigma(u) falls; expected a quantile function, which grows with u")
        self._require(self.density(levels) >= 0, "density(sigma) is below 0")
        self._require(self.weight(levels) > 0, "weight(sigma) is not above 0")

    def sigma(self, u: Tensor) -> Tensor:
        return self._same(u, "sigma")

    def density(self, sigma: Tensor) -> Tensor:
        return self._same(sigma, "density")

    def weight(self, sigma: Tensor) -> Tensor:
        return self._same(sigma, "weight")

    def _same(self, values: Tensor, method: str) -> Tensor:
        with registry.guarded(self._part):
            found: Tensor = getattr(self._loss, method)(values)
        if not isinstance(found, Tensor) or found.shape != values.shape:
            told = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(
                f"{self._part.where}: {method} gave {told} for {list(values.shape)}; expected the same shape"
            )
        return found

    def _require(self, holds: Tensor, problem: str) -> None:
        if not bool(holds.all()):
            raise UserError(f"{self._part.where}: {problem}")


def weighted_error(
    denoiser: Callable[..., Tensor], loss: Loss, images: Tensor, sigma: Tensor, noise: Tensor,
    class_labels: Tensor | None, augment_labels: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """λ(σ) (D(y + σ n; σ) − y)² per pixel (Eq. 2 weighted), float32 [B, C, H, W].

    images y: [B, C, H, W] in [−1, 1]; sigma: [B]; noise n: standard normal, shaped as y.
    """
    level = sigma.to(torch.float32).reshape(-1, 1, 1, 1)
    denoised = denoiser(images + level * noise, sigma, class_labels, augment_labels)
    error: Tensor = loss.weight(level) * (denoised - images) ** 2
    return error

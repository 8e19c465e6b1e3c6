"""Training: noise distributions and loss weights, the last block of Table 1.

Each noise distribution is defined by its quantile function: one uniform draw per sample determines its σ.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from edm.design.schedules import VP_BETA_D, VP_BETA_MIN, VP_EPSILON_T, VPSchedule
from edm.design.timesteps import IDDPM_STEPS, iddpm_levels


class Loss(Protocol):
    """p_train(σ) as a quantile function, λ(σ), and the noise levels that training sees."""

    def sigma(self, u: Tensor) -> Tensor:
        """The noise level at quantile u in (0, 1), elementwise."""

    def density(self, sigma: Tensor) -> Tensor:
        """The density of ln σ under p_train, elementwise; 0 outside the noise levels of training."""

    def weight(self, sigma: Tensor) -> Tensor:
        """λ(σ), elementwise."""

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The smallest and the largest σ that a model trained with this loss supports."""


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


LOSSES = {"vp": VPLoss, "ve": VELoss, "iddpm": IDDPMLoss, "edm": EDMLoss}


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

"""Noise schedules σ(t) and scalings s(t): rows "Schedule" and "Scaling" of Table 1.

Every function takes and returns float64 tensors of any shape; the unit of t depends on the schedule.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edm import registry
from edm.protocols import Schedule

VP_BETA_D, VP_BETA_MIN = 19.9, 0.1  # Table 1, VP
VP_EPSILON_S = 1e-3  # the smallest t of VP sampling
VP_EPSILON_T = 1e-5  # the smallest t of VP training


#: (s(t), ṡ(t)) of a schedule at t.
Scaling = Callable[[Schedule, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class VPSchedule:
    """Variance preserving: σ(t) = √(exp(½β_d t² + β_min t) − 1), t in [0, 1]."""

    beta_d: float = VP_BETA_D
    beta_min: float = VP_BETA_MIN

    def sigma(self, t: Tensor) -> Tensor:
        return torch.expm1(0.5 * self.beta_d * t**2 + self.beta_min * t).sqrt()

    def sigma_dot(self, t: Tensor) -> Tensor:
        sigma = self.sigma(t)
        return 0.5 * (self.beta_min + self.beta_d * t) * (sigma + 1 / sigma)

    def sigma_at(self, t: float) -> float:
        """σ(t) of one number, in float64."""
        return float(self.sigma(torch.tensor(t, dtype=torch.float64)))

    def inverse(self, sigma: Tensor) -> Tensor:
        return ((self.beta_min**2 + 2 * self.beta_d * torch.log1p(sigma**2)).sqrt() - self.beta_min) / self.beta_d

    @classmethod
    def through(cls, sigma_min: float, sigma_max: float) -> "VPSchedule":
        """The schedule with σ(ε_s) = sigma_min and σ(1) = sigma_max (solves for β_d and β_min, Section 3)."""
        low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
        beta_d = 2 * (low / VP_EPSILON_S - high) / (VP_EPSILON_S - 1)
        return cls(beta_d=beta_d, beta_min=high - 0.5 * beta_d)


@dataclass(frozen=True)
class VESchedule:
    """Variance exploding: σ(t) = √t, t in [0, σ_max²]."""

    def sigma(self, t: Tensor) -> Tensor:
        return t.sqrt()

    def sigma_dot(self, t: Tensor) -> Tensor:
        return 0.5 / t.sqrt()

    def inverse(self, sigma: Tensor) -> Tensor:
        return sigma**2


@dataclass(frozen=True)
class LinearSchedule:
    """iDDPM, DDIM and EDM: σ(t) = t, so the time is the noise level."""

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def inverse(self, sigma: Tensor) -> Tensor:
        return sigma


registry.register("schedule", "vp")(VPSchedule.through)
registry.register("schedule", "ve")(lambda sigma_min, sigma_max: VESchedule())
registry.register("schedule", "linear")(lambda sigma_min, sigma_max: LinearSchedule())


def schedule_of(name: str, sigma_min: float, sigma_max: float, **settings: Any) -> Schedule:
    """The schedule of that name for levels from sigma_max to sigma_min. Raises UserError for an unknown name."""
    found: Schedule = registry.find("schedule", name)(sigma_min, sigma_max, **settings)
    return found


@registry.register("scaling", "vp")
def vp_scaling(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """(s, ṡ) of s(t) = 1/√(1 + σ(t)²), which for VP is 1/√exp(½β_d t² + β_min t)."""
    sigma = schedule.sigma(t)
    s = (1 + sigma**2).rsqrt()
    return s, -sigma * schedule.sigma_dot(t) * s**3


@registry.register("scaling", "none")
def no_scaling(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """(s, ṡ) of s(t) = 1."""
    return torch.ones_like(t), torch.zeros_like(t)


def scaling_of(name: str, **settings: Any) -> Scaling:
    """The scaling of that name. Raises UserError for an unknown name."""
    return partial(registry.find("scaling", name), **settings)

"""Denoisers whose ODE has an analytic solution."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """The ideal denoiser of data y ~ N(mu, s²) per pixel, and the exact solution of its ODE."""

    mu: float = 0.3
    s: float = 0.5

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        level = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return (self.s**2 * x + level**2 * self.mu) / (self.s**2 + level**2)

    def flow(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """The exact solution at σ_next, from x at σ."""
        return self.mu + (x - self.mu) * ((self.s**2 + sigma_next**2) / (self.s**2 + sigma**2)) ** 0.5


@pytest.fixture
def gaussian():
    return Gaussian()

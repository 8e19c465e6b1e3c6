"""The ODE with σ(t) = t and s(t) = 1, step by step: dx/dσ = (x − D(x; σ))/σ (Algorithm 1, lines 4 to 8)."""

import torch
from torch import Tensor

from edm.sampling.sampler import Denoiser


def slope(denoiser: Denoiser, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
    """dx/dσ at x, float64 [B, C, H, W], where ``sigma`` > 0 is one level for all or one per image [B]."""
    sigma = torch.as_tensor(sigma, dtype=torch.float64, device=x.device)
    denoised = denoiser(x, sigma, class_labels).to(x)
    return (x - denoised) / sigma.reshape(-1, *[1] * (x.ndim - 1))


def euler_step(
    denoiser: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, class_labels: Tensor | None = None
) -> Tensor:
    """One first-order step from σ to σ_next; levels as tensors of one or of B numbers."""
    return x + _width(sigma, sigma_next, x) * slope(denoiser, x, sigma, class_labels)


def heun_step(
    denoiser: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, class_labels: Tensor | None = None
) -> Tensor:
    """One second-order step (trapezoidal rule) from σ to σ_next > 0; levels as tensors of one or of B numbers."""
    h = _width(sigma, sigma_next, x)
    d = slope(denoiser, x, sigma, class_labels)
    d_prime = slope(denoiser, x + h * d, sigma_next, class_labels)
    return x + h * (0.5 * d + 0.5 * d_prime)


def _width(sigma: Tensor, sigma_next: Tensor, x: Tensor) -> Tensor:
    return (sigma_next - sigma).to(x).reshape(-1, *[1] * (x.ndim - 1))

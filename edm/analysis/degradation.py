"""Degradation of images by repeated addition and removal of noise (Figure 14, Section 4)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from edm.design import draws as noise
from edm.errors import UserError
from edm.sampling.sampler import Denoiser
from edm.sampling.steps import heun_step

GAMMA = math.sqrt(2) - 1  # maximum γ of Algorithm 2
LEVEL_STRIDE = 1 << 40  # between the seeds of an image at two levels
#: Numbers of repetitions shown in Figure 14.
COUNTS = (0, 100, 500, 1000, 2000, 5000, 10000)


@torch.no_grad()
def degrade(
    denoiser: Denoiser,
    images: Tensor,
    sigmas: Sequence[float],
    *,
    counts: Sequence[int] = COUNTS,
    S_noise: float = 1.0,
    class_labels: Tensor | None = None,
    first_seed: int = 0,
) -> Tensor:
    """D(x; σ) of images after repeated churn at a fixed σ: float64 [levels, counts, n, C, H, W] on the CPU.

    Starts from x ~ p(x; σ), that is, images y plus noise. A repetition is one step of Algorithm 2 that returns to its
    initial level: noise of standard deviation √(σ̂² − σ²)·S_noise raises the level to σ̂ = (1 + γ) σ, γ = √2 − 1, and a
    Heun step goes back to σ. With an exact denoiser and an exact solver, repetitions do not change p(x; σ).

    denoiser: D(x; σ, class_labels) with one σ per image; its ``sigma_min``, ``sigma_max`` and ``round_sigma`` are used
    if present. images: y, [n, C, H, W] in [−1, 1]; class_labels: [n] or one-hot rows [n, classes]. counts:
    increasing. Image k at level l uses the draws of seed ``first_seed + k + l·2⁴⁰``, for any S_noise and n.
    Costs 2 max(counts) + len(counts) evaluations of levels × n images. Raises UserError for levels that the model does
    not support or counts that do not increase.
    """
    counts = list(counts)
    if not counts or counts[0] < 0 or counts != sorted(set(counts)):
        raise UserError(f"counts {counts}: expected repetitions from 0 on, increasing")
    sigma, sigma_hat = _levels(denoiser, sigmas)
    levels, n, shape = len(sigma), len(images), tuple(images.shape[1:])
    device = getattr(denoiser, "device", images.device)
    # One batch holds all levels in order; seeds make their draws independent.
    level, image = (index.flatten() for index in torch.meshgrid(torch.arange(levels), torch.arange(n), indexing="ij"))
    seeds = (first_seed + image + level * LEVEL_STRIDE).to(device)
    sigma, sigma_hat = sigma[level].to(device), sigma_hat[level].to(device)
    labels = None if class_labels is None else class_labels.to(device)[image.to(device)]
    added = (S_noise * (sigma_hat**2 - sigma**2).sqrt()).reshape(-1, 1, 1, 1)

    x = images.to(device, torch.float64)[image.to(device)] + sigma.reshape(-1, 1, 1, 1) * noise.latents(seeds, shape)
    shown = []
    for repetition in range(counts[-1] + 1):
        if repetition in counts:
            shown.append(denoiser(x, sigma, labels).to("cpu", torch.float64).reshape(levels, n, *shape))
        if repetition < counts[-1]:
            x = x + added * noise.churn(seeds, repetition, shape)
            x = heun_step(denoiser, x, sigma_hat, sigma, labels)
    return torch.stack(shown, dim=1)


def _levels(denoiser: Denoiser, sigmas: Sequence[float]) -> tuple[Tensor, Tensor]:
    """σ and σ̂, float64 [levels] each, rounded to levels that the model supports."""
    low, high = getattr(denoiser, "sigma_min", 0.0), getattr(denoiser, "sigma_max", math.inf)
    for asked in sigmas:
        if not max(low, 1e-12) <= asked <= high / (1 + GAMMA):
            raise UserError(f"sigma {asked:g} and sqrt(2) sigma must lie in the model's range, {low:g} to {high:g}")
    round_sigma = getattr(denoiser, "round_sigma", lambda sigma: sigma)
    sigma = torch.tensor(tuple(sigmas), dtype=torch.float64, device=getattr(denoiser, "device", "cpu"))
    return round_sigma(sigma).cpu(), round_sigma((1 + GAMMA) * sigma).cpu()

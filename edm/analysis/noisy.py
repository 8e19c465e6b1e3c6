"""Noisy images and their ideal denoising vs. σ (Figure 1, Appendix B.3), for a dataset of any size."""

from collections.abc import Iterable

import torch
from torch import Tensor

from edm.design import draws as noise
from edm.models.ideal import ideal_denoised

#: Noise levels of Figure 1.
SIGMAS = (0.0, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 50.0)


def noisy_images(images: Tensor, sigmas: Iterable[float] = SIGMAS, first_seed: int = 0) -> Tensor:
    """y + σ n, float64 [levels, n, C, H, W], for images y [n, C, H, W] in [−1, 1].

    Image k uses one draw n, that of seed ``first_seed + k``, at all levels.
    """
    seeds = torch.arange(first_seed, first_seed + len(images), device=images.device)
    draws = noise.latents(seeds, tuple(images.shape[1:]))
    return torch.stack([images.to(torch.float64) + sigma * draws for sigma in sigmas])


@torch.no_grad()
def noisy_and_ideal(
    images: Tensor, training: Iterable[Tensor], sigmas: Iterable[float] = SIGMAS, first_seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Both halves of Figure 1: noisy images and their ideal denoising, float64 [levels, n, C, H, W] each.

    images: the n images to show, [n, C, H, W] in [−1, 1]; training: as for :func:`ideal_denoised`.
    """
    sigmas = tuple(sigmas)
    noisy = noisy_images(images, sigmas, first_seed)
    sigma = torch.tensor(sigmas, dtype=torch.float64, device=noisy.device).repeat_interleave(len(images))
    return noisy, ideal_denoised(noisy.flatten(0, 1), sigma, training).reshape(noisy.shape)

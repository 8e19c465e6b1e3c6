"""Noisy images and their ideal denoising over σ (Figure 1, Appendix B.3), for a dataset of any size.

The ideal denoiser is a softmax over all training images. Here it is accumulated chunk by chunk, so that one pass over
the dataset serves every noisy image at once and memory holds one chunk; :class:`edm.IdealDenoiser` needs all images.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from edm.design import draws as noise
from edm.errors import UserError

#: Noise levels of Figure 1.
SIGMAS = (0.0, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 50.0)


def noisy_images(images: Tensor, sigmas: Iterable[float] = SIGMAS, first_seed: int = 0) -> Tensor:
    """y + σ n, float64 [levels, n, C, H, W], for images y [n, C, H, W] in [−1, 1].

    Image k has one draw n, that of seed ``first_seed + k``, at all its levels.
    """
    seeds = torch.arange(first_seed, first_seed + len(images), device=images.device)
    draws = noise.latents(seeds, tuple(images.shape[1:]))
    return torch.stack([images.to(torch.float64) + sigma * draws for sigma in sigmas])


@torch.no_grad()
def ideal_denoised(x: Tensor, sigma: Tensor, training: Iterable[Tensor]) -> Tensor:
    """D(x; σ) = Σ_i w_i y_i, w = softmax(−‖x − y_i‖²/2σ²), float64 shaped as x, in one pass over the images y_i.

    x: [B, C, H, W]; sigma: [B], σ ≥ 0; training: all training images as chunks [m, C, H, W] in [−1, 1], of any m.
    Memory: two chunks in float64. Raises UserError where there is no image, or one of another shape.
    """
    flat = x.to(torch.float64).flatten(1)
    # At σ = 0 the nearest image has all the weight; a floor of σ gives the same without dividing by zero.
    precision = 0.5 / sigma.to(flat).clamp(min=1e-8)[:, None] ** 2
    peak = torch.full_like(flat[:, :1], -torch.inf)  # the largest exponent so far; weights are relative to it
    total, weighted = torch.zeros_like(peak), torch.zeros_like(flat)
    for chunk in training:
        if chunk.shape[1:] != x.shape[1:]:
            raise UserError(f"training images of shape {list(chunk.shape[1:])} beside images of {list(x.shape[1:])}")
        points = chunk.to(flat).flatten(1)
        exponents = -precision * ((flat**2).sum(dim=1, keepdim=True) - 2 * flat @ points.T + (points**2).sum(dim=1))
        highest = torch.maximum(peak, exponents.max(dim=1, keepdim=True).values)
        shrink, weights = (peak - highest).exp(), (exponents - highest).exp()
        total = shrink * total + weights.sum(dim=1, keepdim=True)
        weighted = shrink * weighted + weights @ points
        peak = highest
    if not torch.isfinite(peak).all():
        raise UserError("the ideal denoiser needs at least one image")
    return (weighted / total).reshape(x.shape)


def noisy_and_ideal(
    images: Tensor, training: Iterable[Tensor], sigmas: Iterable[float] = SIGMAS, first_seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Both halves of Figure 1: noisy images and what the ideal denoiser makes of them, float64 [levels, n, C, H, W].

    images: the n shown, [n, C, H, W] in [−1, 1]; training: as for :func:`ideal_denoised`.
    """
    sigmas = tuple(sigmas)
    noisy = noisy_images(images, sigmas, first_seed)
    sigma = torch.tensor(sigmas, dtype=torch.float64, device=noisy.device).repeat_interleave(len(images))
    return noisy, ideal_denoised(noisy.flatten(0, 1), sigma, training).reshape(noisy.shape)

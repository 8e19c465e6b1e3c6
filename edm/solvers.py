"""Every sampler by its configuration: Algorithms 1 to 3, the adaptive black box, and the originals."""

from collections.abc import Callable

import torch
from torch import Tensor

from edm.config import ADAPTIVE, ORIGINAL, SamplerConfig
from edm.sampling.originals import ORIGINAL_SAMPLERS
from edm.sampling.rk45 import rk45
from edm.sampling.sampler import Denoiser, solve


def draw_images(
    net: Denoiser,
    latents: Tensor,
    class_labels: Tensor | None,
    config: SamplerConfig,
    noise: Callable[[int, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Images float64 [B, C, H, W] and the network evaluations that each took, int64 [B].

    latents: standard-normal draws [B, C, H, W]; ``noise(i, x)`` gives the i-th further draw, shaped as x.
    """
    if config.solver == ADAPTIVE:
        return rk45(
            net,
            latents,
            class_labels,
            rtol=config.tolerance,
            atol=config.tolerance,
            sigma_min=config.sigma_min,
            sigma_max=config.sigma_max,
        )
    if config.solver in ORIGINAL:
        sampler, _ = ORIGINAL_SAMPLERS[config.solver]
        images = sampler(net, latents, class_labels, num_steps=config.num_steps, noise=noise)
    else:
        images = solve(net, latents, class_labels, config, noise)
    return images, torch.full((len(images),), config.nfe)

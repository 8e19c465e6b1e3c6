"""Loss per noise level, before and after training (Figure 5a)."""

import torch
from torch import nn

from edm import noise
from edm.data import Dataset

#: Noise levels at which the loss is measured: 5 a decade from 10^-2.6 to 10^2.
LEVELS = torch.logspace(-2.6, 2, 24, dtype=torch.float64)


@torch.inference_mode()
def error_per_level(denoiser: nn.Module, dataset: Dataset, conditional: bool, samples: int, device) -> dict[str, list]:
    """Mean and standard deviation of (D(y + n; σ) − y)² per noise level, over ``samples`` images.

    The error is the mean over an image's pixels, without λ(σ): a figure weights it as it wants. Levels outside what the
    model supports are left out. Images are the first of the dataset in a fixed random order; the noise is seeded.
    """
    order = torch.randperm(len(dataset.images), generator=torch.Generator().manual_seed(0))
    rows = order.repeat(-(-samples // len(order)))[:samples]
    levels = [float(s) for s in LEVELS if denoiser.sigma_min <= s <= denoiser.sigma_max]
    means, deviations = [], []
    for index, level in enumerate(levels):
        errors = []
        for start in range(0, samples, 512):
            part = rows[start : start + 512].numpy()
            images = torch.from_numpy(dataset.images[part]).to(device, torch.float32) / 127.5 - 1
            labels = torch.from_numpy(dataset.labels[part]).to(device) if conditional else None
            seeds = torch.arange(start, start + len(part), device=device)
            draws = noise.normal(seeds, index, images.shape[1:], noise.EVALUATION).to(torch.float32)
            denoised = denoiser(images + level * draws, level, labels)
            errors.append(((denoised - images) ** 2).mean(dim=(1, 2, 3)).double().cpu())
        errors = torch.cat(errors)
        means.append(float(errors.mean()))
        deviations.append(float(errors.std()))
    return {"mean": means, "samples": samples, "sigma": levels, "std": deviations}

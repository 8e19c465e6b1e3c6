"""The loss per noise level before and after training, and the training noise distribution (Figure 5a)."""

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from torch import nn

from edm.cluster.processes import World
from edm.data.archive import Dataset
from edm.data.pixels import to_float
from edm.design import draws as noise
from edm.design.losses import Loss

#: Noise levels at which the loss is measured: 5 per decade from 10^-2.6 to 10^2.
LEVELS = torch.logspace(-2.6, 2, 24, dtype=torch.float64)
POINTS = 801  # of a density curve: 160 per decade over 5 decades


class Levels(TypedDict):
    """Mean and standard deviation of the error, over so many images, at each noise level."""

    mean: list[float]
    samples: int
    sigma: list[float]
    std: list[float]


@torch.inference_mode()
def error_per_level(
    denoiser: nn.Module, dataset: Dataset, conditional: bool, samples: int, world: World, batch: int = 512
) -> Levels:
    """Mean and standard deviation of (D(y + n; σ) − y)² per noise level, over ``samples`` images.

    The error is the mean over an image's pixels, without λ(σ): each figure applies its own weight. Levels that the
    model does not support are omitted. The images are the first of the dataset in a fixed random order; the noise is
    seeded. The processes of ``world`` share the batches, and all return the same result.
    """
    order = torch.randperm(len(dataset.images), generator=torch.Generator().manual_seed(0))
    rows = order.repeat(-(-samples // len(order)))[:samples]
    levels = [float(s) for s in LEVELS if denoiser.sigma_min <= s <= denoiser.sigma_max]
    sums = torch.zeros(2, len(levels), dtype=torch.float64, device=world.device)  # of the errors, of their squares
    classes = dataset.labels if conditional else None
    for start in range(world.rank * batch, samples, world.size * batch):
        part = rows[start : start + batch].numpy()
        images = to_float(torch.from_numpy(dataset.images[part]).to(world.device))
        labels = None if classes is None else torch.from_numpy(classes[part]).to(world.device)
        seeds = torch.arange(start, start + len(part), device=world.device)
        for index, level in enumerate(levels):
            draws = noise.normal(seeds, index, images.shape[1:], noise.EVALUATION).to(torch.float32)
            errors = ((denoiser(images + level * draws, level, labels) - images) ** 2).mean(dim=(1, 2, 3)).double()
            sums[:, index] += torch.stack((errors.sum(), (errors**2).sum()))
    total, squares = world.sum(sums).cpu()
    deviation = ((squares - total**2 / samples).clamp(min=0) / (samples - 1)).sqrt()
    return {"mean": (total / samples).tolist(), "samples": samples, "sigma": levels, "std": deviation.tolist()}


def weighted(curve: Mapping[str, Sequence[float]], loss: Loss) -> dict[str, list[float]]:
    """{"sigma", "mean", "std"} of λ(σ) (D(y + n; σ) − y)², from the unweighted error per pixel in the same form.

    ``loss`` defines λ(σ) (a row of Table 1).
    """
    weight = loss.weight(torch.tensor(curve["sigma"], dtype=torch.float64))
    scaled = {key: (weight * torch.tensor(curve[key], dtype=torch.float64)).tolist() for key in ("mean", "std")}
    return {"sigma": list(curve["sigma"]), **scaled}


def density(loss: Loss, low: float, high: float) -> dict[str, list[float]]:
    """{"sigma", "density"}: the training density of ln σ at levels from ``low`` to ``high``, evenly spaced in ln σ."""
    sigma = torch.linspace(math.log(low), math.log(high), POINTS, dtype=torch.float64).exp()
    return {"sigma": sigma.tolist(), "density": loss.density(sigma).tolist()}

"""Tests by Fréchet distances whether augmentation leaks into generated images (Appendix F.2)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from edm.data.pixels import to_float, to_uint8
from edm.design.augmentation import augment
from edm.metrics.frechet import FeatureStatistics, frechet_distance

Features = Callable[[Tensor], Tensor]
Transform = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor | None]]


def augmented(
    images: np.ndarray | Tensor, probability: float = 1.0, first_seed: int = 0, transform: Transform = augment
) -> Tensor:
    """uint8 images [n, C, H, W], each under a random transform, by default of Table 6, with A_prob = ``probability``.

    Image k gets the transform of seed ``first_seed + k``.
    """
    images = torch.as_tensor(images)
    seeds = torch.arange(first_seed, first_seed + len(images), device=images.device)
    return to_uint8(transform(to_float(images), seeds, probability)[0])


def leakage(
    generated: np.ndarray | Tensor,
    training: np.ndarray | Tensor,
    features: Features,
    *,
    probability: float = 1.0,
    first_seed: int = 0,
    batch: int = 500,
    transform: Transform = augment,
) -> dict[str, float]:
    """Fréchet distances between generated images, training images, and training images under augmentation.

    generated, training: uint8 [n, C, H, W], n ≥ 2; features: maps uint8 [b, C, H, W] to [b, F];
    probability: A_prob of the augmented images; batch: images per call of ``features``.

    Returns ``generated-clean``, ``generated-augmented`` and ``clean-augmented``. Augmentation has not leaked if the
    first is far below the second and the second is close to the third. Raises UserError if the features do not match.
    """
    statistics = {"generated": FeatureStatistics(), "clean": FeatureStatistics(), "augmented": FeatureStatistics()}
    for start in range(0, len(generated), batch):
        statistics["generated"].append(features(torch.as_tensor(generated[start : start + batch])))
    for start in range(0, len(training), batch):
        part = torch.as_tensor(training[start : start + batch])
        statistics["clean"].append(features(part))
        statistics["augmented"].append(features(augmented(part, probability, first_seed + start, transform)))
    moments = {name: (one.mean, one.covariance) for name, one in statistics.items()}
    pairs = (("generated", "clean"), ("generated", "augmented"), ("clean", "augmented"))
    return {f"{one}-{other}": frechet_distance(*moments[one], *moments[other]) for one, other in pairs}

"""``edm.evaluate``: the Fréchet distance of a model or of images in one call."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edm.checked import fits
from edm.config import AUTO, SamplerConfig
from edm.data.archive import Dataset
from edm.errors import UserError
from edm.evaluation.evaluate import Yardstick, measure
from edm.metrics.extractors import Features, load_features
from edm.metrics.frechet import FeatureStatistics, ReferenceStatistics, load_statistics
from edm.models.denoiser import Denoiser
from edm.sampling.drawing import block_of

BATCH = 250  # images per forward pass of the extractor


def evaluate(
    what: Denoiser | Tensor | np.ndarray,
    reference: Dataset | str | Path,
    *,
    features: str = "inception-v3-compat",
    weights: str | Path | None = None,
    sampler: SamplerConfig | None = None,
    images: int = 50_000,
    first_seed: int = 0,
    block: int | str = AUTO,
) -> dict[str, Any]:
    """Measures a model, or images that exist, against a dataset.

    what: a denoiser, whose images of the seeds first_seed, … are drawn with ``sampler`` (Algorithm 1 by default) and
    measured without being stored, on the denoiser's device; or images, uint8 [N, C, H, W].
    reference: a dataset, an archive, or an .npz of ``edm fid-ref`` in the same features.
    features: a feature extractor (``edm features --help`` lists them); weights: its file, where it needs one. images:
    number to draw. block: seeds per batch of the network; images of different blocks agree to rounding.

    Returns "distance", "label" ("FID", or "FD (…)" in other features than FID's), "images", and, of a denoiser, "nfe".
    Raises UserError for images or references that do not fit, and for too few images.
    """
    _require_drawable(sampler, images, first_seed, block)
    if isinstance(what, Denoiser):
        extractor = load_features(features, weights, what.device, images)
    elif isinstance(what, np.ndarray | Tensor):
        what = torch.as_tensor(what)
        if what.dtype != torch.uint8 or what.ndim != 4:
            raise UserError(f"images are {what.dtype} {list(what.shape)}; expected uint8 [N, C, H, W]")
        if what.shape[1] not in (1, 3):
            raise UserError(f"images have shape {list(what.shape)}; expected [N, C, H, W] with 1 or 3 channels, which "
                            "come second")  # fmt: skip
        extractor = load_features(features, weights, what.device, len(what))
    else:
        raise UserError(f"{type(what).__name__} cannot be measured; expected an edm.Denoiser or uint8 images")
    yardstick = Yardstick(extractor, _statistics(reference, extractor), str(reference))
    yardstick.begin()  # raises an error for a mismatch before the first image is drawn
    if isinstance(what, Denoiser):
        size = block_of(block, what.network.config)
        seeds = range(first_seed, first_seed + images)
        found = measure(what, sampler or SamplerConfig(), seeds, size, [yardstick]).results()
    else:
        measuring = yardstick.begin()
        for start in range(0, len(what), BATCH):
            measuring.append(what[start : start + BATCH])
        found = {"images": measuring.count, **measuring.results()}
    return {"label": extractor.label, **found}


def _require_drawable(sampler: SamplerConfig | None, images: int, first_seed: int, block: int | str) -> None:
    if sampler is not None and not isinstance(sampler, SamplerConfig):
        raise UserError(f"sampler is of type {type(sampler).__name__}; expected an edm.SamplerConfig")
    if not fits(images, int) or images < 2:
        raise UserError(f"images is {images!r}; a distance needs a whole number of at least 2")
    if not fits(first_seed, int) or first_seed < 0:
        raise UserError(f"first_seed is {first_seed!r}; expected a whole number from 0")
    if block != AUTO and not (fits(block, int) and int(block) >= 1):
        raise UserError(f"block is {block!r}; expected {AUTO!r} or a whole number from 1")


def _statistics(reference: Dataset | str | Path, extractor: Features) -> ReferenceStatistics:
    """Those of an .npz, or of the images of a dataset, computed here."""
    if not isinstance(reference, Dataset):
        if str(reference).endswith(".npz"):
            return load_statistics(reference)
        reference = Dataset.open(reference)
    seen = FeatureStatistics()
    for start in range(0, len(reference.images), BATCH):
        seen.append(extractor(reference.images[start : start + BATCH]))
    return ReferenceStatistics(
        Path(reference.path), seen.mean, seen.covariance, count=seen.count, features=extractor.name,
        dataset_sha256=reference.sha256, weights_sha256=extractor.weights_sha256,
    )  # fmt: skip

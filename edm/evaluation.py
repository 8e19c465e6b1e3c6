"""Evaluations: images of a model drawn from their seeds and measured as they come, without being kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from edm.config import SamplerConfig
from edm.denoiser import Denoiser
from edm.files import sha256_file
from edm.metrics.extractors import Features, load_features
from edm.metrics.frechet import ReferenceStatistics, load_statistics
from edm.metrics.measure import Measuring
from edm.samples import draw


@dataclass(frozen=True)
class Yardstick:
    """What images are measured with: an extractor, and the statistics of the dataset in its features."""

    extractor: Features
    reference: ReferenceStatistics
    path: str
    metrics: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """What a results file says of it."""
        return {
            "label": self.extractor.label,
            "features": self.extractor.name,
            "description": self.extractor.description,
            "weights_sha256": self.extractor.weights_sha256,
            "reference_sha256": sha256_file(self.path),
            "reference_images": self.reference.count,
            "dataset_sha256": self.reference.dataset_sha256,
        }

    def begin(self) -> Measuring:
        """A measurement of a set of images, which are yet to come."""
        return Measuring(self.extractor, self.reference, self.metrics)


def open_yardstick(
    features: str, weights: str | None, reference: str | Path, device: torch.device, metrics: tuple[str, ...] = ()
) -> Yardstick:
    """Raises UserError where the reference was made in other features, or lacks what a metric needs."""
    extractor = load_features(features, weights, device)
    yardstick = Yardstick(extractor, load_statistics(reference), str(reference), metrics)
    yardstick.begin()  # what does not fit together is said before the first image is drawn
    return yardstick


def evaluate(
    denoiser: Denoiser, sampler: SamplerConfig, seeds: range, block: int, yardsticks: list[Yardstick], what: str = ""
) -> dict[str, Any]:
    """Draws the images of ``seeds`` and measures them in one pass with every yardstick.

    Returns "images", "nfe" (mean, rounded), "distance" and what else the first yardstick was asked for, and "more": the
    distances of the further ones by the names of their features. ``what`` is shown while it runs.
    Raises UserError where the sampler gives non-finite images.
    """
    measurings = [yardstick.begin() for yardstick in yardsticks]
    evaluations, count = 0, 0
    with tqdm(total=len(seeds), unit="img", unit_scale=True, desc=what or None, disable=None) as bar:
        for pixels, part in draw(denoiser, sampler, seeds, block):
            for measuring in measurings:
                measuring.append(pixels)
            evaluations += int(part.nfe.sum())
            count += len(pixels)
            bar.update(len(pixels))
    first, *rest = [measuring.results() for measuring in measurings]
    more = {y.extractor.name: found["distance"] for y, found in zip(yardsticks[1:], rest, strict=True)}
    return {"images": count, "nfe": round(evaluations / count), **first, **({"more": more} if more else {})}

"""Evaluations: generate a model's images from their seeds and measure them batch by batch, without storing them.

The seed range is split over the processes of a run (here) and over jobs (:mod:`edm.evaluation.shards`);
the partial measurements are merged in seed order.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from edm.cluster.processes import ALONE, World
from edm.config import SamplerConfig
from edm.errors import UserError
from edm.files.hashes import sha256_file
from edm.metrics import INCEPTION, MEMORISATION_OF_TEST, METRICS, TO_TEST, check_metrics
from edm.metrics.extractors import Features, load_features
from edm.metrics.frechet import ReferenceStatistics, load_reference_features, load_statistics
from edm.metrics.measure import Measuring, check_features
from edm.metrics.sets import memorised_share
from edm.models.denoiser import Denoiser
from edm.sampling.drawing import part_of
from edm.sampling.sample_files import draw


@dataclass(frozen=True)
class Yardstick:
    """A feature extractor with the reference statistics of the dataset in its features.

    test: statistics of images held out from training. settings: of the metrics of plugins.
    """

    extractor: Features
    reference: ReferenceStatistics
    path: str
    metrics: tuple[str, ...] = ()
    test: ReferenceStatistics | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Its description for the results file."""
        return {
            "label": self.extractor.label,
            "features": self.extractor.name,
            "description": self.extractor.description,
            "weights_sha256": self.extractor.weights_sha256,
            "reference_sha256": self._sha256,
            "reference_images": self.reference.count,
            "dataset_sha256": self.reference.dataset_sha256,
            **self._of_neighbours(),
            **({"test_images": self.test.count, "test_sha256": sha256_file(self.test.path)} if self.test else {}),
        }

    def _of_neighbours(self) -> dict[str, Any]:
        """The settings of the metrics that have some, and the number of reference images that they look at."""
        settings: dict[str, dict[str, Any]] = {}
        for name in self.metrics:
            own = {key: value for key, value in self.settings.get(name, {}).items() if isinstance(value, (int, float))}
            if all_of_it := {**METRICS[name].settings, **own}:
                settings[name] = all_of_it
        about = {"reference_features": self.reference.features_count, "reference_split": "train"}
        return {"settings": settings, **about} if settings else {}

    @functools.cached_property
    def _sha256(self) -> str:
        return sha256_file(self.path)

    def to_test(self, measuring: Measuring) -> dict[str, float]:
        """The distance of measured images to the held-out images, and the share of these that counts as memorised.

        By their names in results; empty if no held-out images are known.
        """
        if not self.test:
            return {}
        return {TO_TEST: measuring.distance_to(self.test), **self._memorised}

    @functools.cached_property
    def _memorised(self) -> dict[str, float]:
        """Of the held-out images, whatever the model."""
        if "memorisation" not in self.metrics or not self.test:
            return {}
        held_out, training = (
            torch.from_numpy(load_reference_features(one.path)) for one in (self.test, self.reference)
        )
        return {MEMORISATION_OF_TEST: memorised_share(held_out, training, self.extractor.device)}

    def begin(self, total: int = 0, start: int = 0) -> Measuring:
        """A new, empty measurement of a set of images; ``total`` and ``start`` as in ``Measuring``."""
        return Measuring(self.extractor, self.reference, self.metrics, total, start, self.settings)


def open_yardstick(
    features: str | None, weights: str | None, reference: str | Path, device: torch.device,
    metrics: tuple[str, ...] = (), count: int = 0, test: str | Path | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Yardstick:  # fmt: skip
    """features: an extractor, or None for that of the reference: Inception-v3 for a file that names none.

    count: number of images to measure, as in :func:`edm.metrics.extractors.load_features`. test: a second reference.
    settings: of the metrics of plugins. Raises UserError if the reference has other features, or lacks what a metric
    needs; if possible, before it downloads weights.
    """
    statistics, held_out = load_statistics(reference), load_statistics(test) if test else None
    features = features or statistics.features or INCEPTION
    check_metrics(metrics, features)
    for one in (statistics, held_out):
        if one is not None:
            check_features(one, features)
    extractor = load_features(features, weights, device, count)
    yardstick = Yardstick(extractor, statistics, str(reference), metrics, held_out, settings or {})
    yardstick.begin()  # raises an error for a mismatch before the first image is generated
    if held_out:
        Measuring(extractor, held_out, [name for name in metrics if name == "memorisation"])
    return yardstick


class Seen:
    """The accumulated measurements of the images of some seeds, one per yardstick, and their network evaluations."""

    def __init__(self, yardsticks: Sequence[Yardstick], total: int = 0, start: int = 0) -> None:
        self.yardsticks = yardsticks
        self.measurings = [yardstick.begin(total, start) for yardstick in yardsticks]
        self.evaluations = 0

    @property
    def count(self) -> int:
        """Number of images measured so far."""
        return self.measurings[0].count

    def append(self, pixels: Tensor, nfe: Tensor) -> None:
        """Adds uint8 images [N, C, H, W] and their NFE [N]. Raises as ``Measuring.append``."""
        for measuring in self.measurings:
            measuring.append(pixels)
        self.evaluations += int(nfe.sum())

    def merge(self, other: "Seen") -> None:
        """Adds the measurements of the seeds that follow."""
        for ours, theirs in zip(self.measurings, other.measurings, strict=True):
            ours.merge(theirs)
        self.evaluations += other.evaluations

    def state(self) -> dict[str, Tensor]:
        """All of it as tensors: "evaluations" int64 [], and "0/…", "1/…": the state of each measurement."""
        states = {f"{i}/{name}": tensor for i, measuring in enumerate(self.measurings)
                  for name, tensor in measuring.state().items()}  # fmt: skip
        return {"evaluations": torch.tensor(self.evaluations)} | states

    @classmethod
    def from_state(cls, yardsticks: Sequence[Yardstick], state: Mapping[str, Tensor]) -> "Seen":
        """The inverse of :meth:`state`, given equal yardsticks. Raises UserError if ``state`` is not such a state."""
        seen = cls(yardsticks)
        for i, measuring in enumerate(seen.measurings):
            mine = f"{i}/"
            measuring.restore({name.removeprefix(mine): tensor for name, tensor in state.items()
                               if name.startswith(mine)})  # fmt: skip
        if len({measuring.count for measuring in seen.measurings}) > 1:
            raise UserError("not a state of measurements of the same images (their numbers differ)")
        seen.evaluations = int(state["evaluations"])
        return seen

    def results(self) -> dict[str, Any]:
        """Returns "images", "nfe" (mean, rounded), "distance", "bar" and the other metrics of the first yardstick.

        With more than one yardstick, "more" holds the distances of the others by the names of their features, and
        "more_bars" their error bars.
        Raises UserError if there are too few images.
        """
        first, *rest = [measuring.results() for measuring in self.measurings]
        names = [measuring.extractor.name for measuring in self.measurings[1:]]
        more = {name: found["distance"] for name, found in zip(names, rest, strict=True)}
        bars = {name: found["bar"] for name, found in zip(names, rest, strict=True) if "bar" in found}
        return {"images": self.count, "nfe": round(self.evaluations / self.count), **first,
                **self.yardsticks[0].to_test(self.measurings[0]), **({"more": more} if more else {}),
                **({"more_bars": bars} if bars else {})}  # fmt: skip


def measure(
    denoiser: Denoiser, sampler: SamplerConfig, seeds: range, block: int, yardsticks: Sequence[Yardstick],
    what: str = "", world: World = ALONE, of: range | None = None,
) -> Seen:  # fmt: skip
    """Generates the images of ``seeds``, each process its part, and measures them in one pass with every yardstick.

    of: all seeds of the image set of which ``seeds`` is a part; it gives distances error bars.
    Rank 0 gets the merged result, the other ranks their own part. ``seeds`` may be empty. ``what`` labels the progress
    bar. Raises UserError if the sampler gives non-finite images.
    """
    part = part_of(seeds, block, world.rank, world.size)
    place = (len(of), part.start - of.start) if of else (0, 0)
    seen, hidden = Seen(yardsticks, *place), None if world.is_first else True
    with tqdm(total=len(part), unit="img", unit_scale=True, desc=what or None, disable=hidden) as bar:
        for pixels, drawn in draw(denoiser, sampler, part, block) if part else ():
            seen.append(pixels, drawn.nfe)
            bar.update(len(pixels))
    for state in world.gather(seen.state())[1:]:
        seen.merge(Seen.from_state(yardsticks, state))
    return seen


def evaluate(
    denoiser: Denoiser, sampler: SamplerConfig, seeds: range, block: int, yardsticks: Sequence[Yardstick],
    what: str = "", world: World = ALONE, bars: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Generates and measures the images of ``seeds`` as :func:`measure`; every rank gets the merged results.

    bars: whether distances get error bars, which cost 35 times the computation of a distance.
    Raises UserError if the sampler gives non-finite images, or if there are too few images.
    """
    seen = measure(denoiser, sampler, seeds, block, yardsticks, what, world, seeds if bars else None)
    results: dict[str, Any] = world.share(seen.results() if world.is_first else None)
    return results

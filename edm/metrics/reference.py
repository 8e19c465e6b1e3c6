"""Reference statistics of a dataset, with the features of single images if a metric needs them."""

import os
from collections.abc import Iterable

import numpy as np
import torch

from edm.cluster.processes import ALONE, World
from edm.errors import UserError
from edm.metrics.extractors import Features
from edm.metrics.frechet import FeatureStatistics, save_statistics

SUBSET_SEED = 0


def reference_statistics(
    extractor: Features, batches: Iterable[torch.Tensor | np.ndarray], keep_features: int | None = None,
    first: int = 0, world: World = ALONE,
) -> tuple[FeatureStatistics, np.ndarray | None]:  # fmt: skip
    """Statistics of the features of uint8 image batches [N, C, H, W], and features of single images [n, F], float32.

    The statistics cover all images. keep_features: maximum number of images whose features to return; None for no
    features. Of more images it keeps a random subset, which does not depend on the batches.
    first: number of images before those of this process; the ranks process consecutive parts of the images. Rank 0 gets
    the merged result, the other ranks their own part.
    Raises UserError if the extractor does not accept the images, or if a feature is NaN or infinite.
    """
    statistics = FeatureStatistics()
    sample = None if keep_features is None else _Sample(keep_features, first)
    for batch in batches:
        features = extractor(batch)
        statistics.append(features)
        if sample is not None:
            sample.append(features.cpu().numpy())
    state = statistics.state() | (sample.state() if sample is not None else {})
    for other in world.gather(state)[1:]:
        statistics.merge(FeatureStatistics.from_state(other))
        if sample is not None:
            sample.merge(other)
    return statistics, None if sample is None else sample.rows


def save_reference(
    path: str | os.PathLike,
    extractor: Features,
    statistics: FeatureStatistics,
    dataset_sha256: str,
    reference_features: np.ndarray | None = None,
) -> None:
    """Writes the result of ``reference_statistics``, with the names and hashes of its inputs.

    Raises UserError for fewer than two images, or if the file cannot be written.
    """
    about: dict[str, int | str | None] = {
        "count": statistics.count,
        "features": extractor.name,
        "dataset_sha256": dataset_sha256,
        "weights_sha256": extractor.weights_sha256,
    }
    extra: dict[str, int | str] = {
        key: value for key, value in about.items() if value is not None
    }  # some extractors have no weights
    save_statistics(path, statistics.mean, statistics.covariance, extra, reference_features)


def places_of_features(count: int, kept: int) -> np.ndarray:
    """The places in the dataset of ``count`` images of those whose features a reference keeps, int64 [kept]."""
    sample = _Sample(kept)
    sample.append(np.arange(count)[:, None])
    rows = sample.rows
    return np.empty(0, np.int64) if rows is None else rows[:, 0]


class _Sample:
    """A uniform random sample of the rows of a stream (Vitter 1985, "Random sampling with a reservoir", Algorithm R).

    Includes every row with equal probability. Up to ``capacity`` rows, it holds all of them in order.
    """

    def __init__(self, capacity: int, skipped: int = 0) -> None:
        """skipped: number of rows of the stream before the first row of this process."""
        if capacity < 1:
            raise UserError(f"features of {capacity} reference images: keep those of at least 1, or none at all")
        self._capacity = capacity
        self._seen = skipped
        self._random = np.random.default_rng(SUBSET_SEED)
        self._random.integers(np.arange(1, skipped + 1))
        self._rows: np.ndarray | None = None
        self._filled = np.zeros(capacity, bool)  # slots that hold rows of this process

    def append(self, rows: np.ndarray) -> None:
        index = np.arange(self._seen, self._seen + len(rows))
        slot = self._random.integers(index + 1)  # drawn for every row: independent of the batches
        slot = np.where(index < self._capacity, index, slot)
        inside = slot < self._capacity
        self._put(slot[inside], rows[inside])  # of two rows for one slot, the later one remains
        self._seen += len(rows)

    def state(self) -> dict[str, torch.Tensor]:
        """The rows of this process in the sample, [n, F], and their slots [n]."""
        slots = np.flatnonzero(self._filled)
        rows = np.empty((0, 0), np.float32) if self._rows is None else self._rows[slots]
        return {"slots": torch.from_numpy(slots), "rows": torch.from_numpy(rows)}

    def merge(self, state: dict[str, torch.Tensor]) -> None:
        """Merges the ``state`` of the sample of the rows that follow in the stream."""
        self._put(state["slots"].numpy(), state["rows"].numpy())

    def _put(self, slots: np.ndarray, rows: np.ndarray) -> None:
        if not len(slots):
            return
        if self._rows is None:
            self._rows = np.empty((self._capacity, rows.shape[1]), rows.dtype)  # uses memory only as it fills
        self._rows[slots] = rows
        self._filled[slots] = True

    @property
    def rows(self) -> np.ndarray | None:
        """The sample [n, F], in slot order."""
        return None if self._rows is None else self._rows[: self._filled.sum()]

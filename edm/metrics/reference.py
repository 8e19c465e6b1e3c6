"""Reference statistics of a data set, with the features of single images where a metric asks for them."""

import os
from collections.abc import Iterable

import numpy as np
import torch

from edm.errors import UserError
from edm.metrics.extractors import Features
from edm.metrics.frechet import FeatureStatistics, save_statistics

MOST_FEATURES = 50_000  # images whose features are kept by default: 400 MB of Inception-v3's
SUBSET_SEED = 0


def reference_statistics(
    extractor: Features, batches: Iterable[torch.Tensor | np.ndarray], keep_features: int | None = None
) -> tuple[FeatureStatistics, np.ndarray | None]:
    """Statistics of the features of uint8 image batches [N, C, H, W], and features of single images [n, F], float32.

    The statistics are of all images. Of features, at most ``keep_features`` are kept, or with None no array is made;
    of more images than that a random subset is kept, the same for the same images whatever the batches.
    Raises UserError where the extractor does not take the images, or a feature is NaN or infinite.
    """
    statistics = FeatureStatistics()
    sample = None if keep_features is None else _Sample(keep_features)
    for batch in batches:
        features = extractor(batch)
        statistics.append(features)
        if sample is not None:
            sample.append(features.cpu().numpy())
    return statistics, None if sample is None else sample.rows


def save_reference(
    path: str | os.PathLike,
    extractor: Features,
    statistics: FeatureStatistics,
    dataset_sha256: str,
    reference_features: np.ndarray | None = None,
) -> None:
    """Writes what ``reference_statistics`` gave, with the names and hashes of what it was made from.

    Raises UserError for fewer than two images, or where the file cannot be written.
    """
    about = {
        "count": statistics.count,
        "features": extractor.name,
        "dataset_sha256": dataset_sha256,
        "weights_sha256": extractor.weights_sha256,
    }
    extra = {key: value for key, value in about.items() if value is not None}  # some extractors have no weights
    save_statistics(path, statistics.mean, statistics.covariance, extra, reference_features)


class _Sample:
    """A uniform random sample of the rows of a stream (Vitter 1985, "Random sampling with a reservoir", Algorithm R).

    Every row is equally likely to be in it. Up to ``capacity`` rows it is all of them, in order.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise UserError(f"features of {capacity} reference images: keep those of at least 1, or none at all")
        self._capacity = capacity
        self._seen = 0
        self._random = np.random.default_rng(SUBSET_SEED)
        self._rows: np.ndarray | None = None

    def append(self, rows: np.ndarray) -> None:
        if self._rows is None:
            self._rows = np.empty((self._capacity, rows.shape[1]), np.float32)  # takes memory only as it is filled
        index = np.arange(self._seen, self._seen + len(rows))
        slot = self._random.integers(index + 1)  # drawn for every row, so that the batches do not matter
        slot = np.where(index < self._capacity, index, slot)
        inside = slot < self._capacity
        self._rows[slot[inside]] = rows[inside]  # of two rows for one slot the later stays, as one by one
        self._seen += len(rows)

    @property
    def rows(self) -> np.ndarray | None:
        return None if self._rows is None else self._rows[: self._seen]

"""Several metrics of a set of images from one pass of a feature extractor over them.

:mod:`edm.metrics.frechet` computes the Fréchet distance. Inception score (Salimans et al., 2016), KID (Bińkowski et
al., 2018) are torch-fidelity's functions, with its published settings, on the same features. The metrics of nearest
neighbours are in :mod:`edm.metrics.sets`.
"""

import functools
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from edm import registry
from edm.errors import UserError, require
from edm.metrics import METRICS, OF_NEIGHBOURS, SPLITS, check_metrics, need_reference_features
from edm.metrics.error_bars import Groups
from edm.metrics.extractors import FEATURES, LOGITS, Features
from edm.metrics.frechet import ReferenceStatistics, frechet_distance, load_reference_features
from edm.metrics.reference import places_of_features
from edm.metrics.sets import neighbour_metrics

# torch-fidelity's published settings, under its own names; copied so that a later release cannot change them
INCEPTION_SCORE_SETTINGS = {"isc_splits": SPLITS, "samples_shuffle": True, "rng_seed": 2020}
KID_SETTINGS: dict[str, Any] = {
    "kid_subsets": 100,
    "kid_subset_size": 1000,
    "kid_kernel": "poly",
    "kid_kernel_poly_degree": 3,
    "kid_kernel_poly_gamma": None,  # 1 / F
    "kid_kernel_poly_coef0": 1,
    "rng_seed": 2020,
}


class Measuring:
    """Accumulates images batch by batch, then computes the Fréchet distance to a reference and the requested metrics.

    Holds only the current batch and the statistics in memory, plus the features [N, F] and logits [N, K] of all images,
    float32 on the host, if a metric needs them (400 MB for 50,000 images in Inception-v3). For error bars it holds the
    statistics of 20 groups (671 MB of 2,048 features).
    """

    def __init__(
        self, extractor: Features, reference: ReferenceStatistics, metrics: Collection[str] = (), total: int = 0,
        start: int = 0, settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        """``metrics`` are keys of ``edm.metrics.METRICS``, in any order.

        total: number of images of the whole measurement, of which these begin at the place ``start``; it gives the
        distance an error bar. 0: no error bar. settings: of the metrics of plugins, by their names.
        Raises UserError if the reference has other features, or if this extractor and this reference do not support a
        metric.
        """
        check_metrics(metrics, extractor.name)
        _check_reference(extractor, reference, metrics)
        if any(registry.is_own("metric", name) for name in metrics):
            require("torch_fidelity")
        self.settings = settings or {}
        self.extractor = extractor
        self.reference = reference
        self.metrics = tuple(name for name in METRICS if name in metrics)
        self._statistics = Groups(total, start)
        self._kept: dict[str, list[torch.Tensor]] = {}
        if need_reference_features(self.metrics):
            self._kept[FEATURES] = []
        if any(METRICS[name].logits_of for name in self.metrics):
            self._kept[LOGITS] = []

    @property
    def count(self) -> int:
        """Number of images measured so far."""
        return self._statistics.count

    def append(self, images: torch.Tensor | np.ndarray) -> None:
        """Adds uint8 images [N, C, H, W] in one forward pass.

        Raises UserError and adds nothing if the extractor does not accept them or a feature is not finite.
        """
        layers = self.extractor.layers(images)
        self._statistics.append(layers[FEATURES])
        for name, kept in self._kept.items():
            kept.append(layers[name].cpu())

    def merge(self, other: "Measuring") -> None:
        """Appends the images of ``other`` to those of this measurement; does not change ``other``.

        Merge shards in the order of their images: the scores draw subsets by position.
        """
        ours, theirs = ((m.extractor.name, m.extractor.weights_sha256, m.metrics) for m in (self, other))
        if ours != theirs:
            raise ValueError(f"measurements of different kinds cannot be merged: {ours} and {theirs}")
        self._statistics.merge(other._statistics)
        for name, kept in self._kept.items():
            kept.extend(other._kept[name])

    def state(self) -> dict[str, torch.Tensor]:
        """The measurement as tensors: those of ``Groups.state`` and the kept outputs of each layer."""
        return self._statistics.state() | {name: self.all(name) for name, kept in self._kept.items() if kept}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Replaces the contents of this measurement by the ``state`` of another of the same kind.

        Raises UserError if ``state`` is not such a state.
        """
        self._statistics.restore(state)
        for name in self._kept:
            rows = state.get(name, torch.empty(0, 0))
            if rows.ndim != 2 or rows.dtype != torch.float32 or len(rows) != self.count:
                raise UserError(f"not a state of this measurement ({name} of all {self.count} images are missing)")
            self._kept[name] = [rows.cpu()] if self.count else []

    def results(self) -> dict[str, Any]:
        """The metrics by name, as plain numbers: always "distance", then the requested ones; "bar" is ``Groups.bar``.

        "inception_score" or "classifier_score" with "…_std" over ten splits; "kid" with "kid_std" over the subsets
        and "kid_subset_size", which is 1000 or the size of the smaller image set if that is less; those of
        :mod:`edm.metrics.sets`, whose "pairs" name an image by its place in this measurement and a training image by
        its place in the dataset. Raises UserError if there are too few images.
        """
        for name in self.metrics:
            _require(name, self.count, "images measured")
        reference = self.reference
        found: dict[str, Any] = {"distance": self.distance_to(reference)}
        if bar := self._statistics.bar(reference, self.extractor.device):
            found["bar"] = bar
        parts = [registry.find("metric", name) for name in self.metrics]
        for measure in dict.fromkeys(part.make for part in parts if part.own):  # some give several metrics at once
            found |= measure(self)
        return found | {part.name: self._of_plugin(part) for part in parts if not part.own}

    def _of_plugin(self, part: registry.Part) -> float:
        """The number that a plugin's metric gives."""
        value = part(self.all(FEATURES), self.reference_features, **self.settings.get(part.name, {}))
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f"{part.where}: returned {type(value).__name__}; expected one number") from None
        if not math.isfinite(number):
            raise UserError(f"{part.where}: returned {number}; expected a finite number")
        return number

    @functools.cached_property
    def reference_features(self) -> torch.Tensor:
        """The features of single reference images, float32 [M, F]."""
        return torch.from_numpy(load_reference_features(self.reference.path))

    def distance_to(self, reference: ReferenceStatistics) -> float:
        """The Fréchet distance of the images to any reference in the same features."""
        seen = self._statistics.whole()
        return frechet_distance(seen.mean, seen.covariance, reference.mu, reference.sigma, self.extractor.device)

    def all(self, layer: str) -> torch.Tensor:
        """The kept outputs of a layer, in order; concatenates them once and stores the result."""
        self._kept[layer] = [torch.cat(self._kept[layer])]
        return self._kept[layer][0]


@registry.register("metric", "inception_score")
@registry.register("metric", "classifier_score")
def _score(measuring: Measuring) -> dict[str, float]:
    """Inception score of the logits [N, K]; the result's name identifies the classifier."""
    from torch_fidelity import metric_isc

    (name,) = (name for name in measuring.metrics if METRICS[name].logits_of)
    logits, settings = measuring.all(LOGITS), INCEPTION_SCORE_SETTINGS
    result = metric_isc.isc_features_to_metric(
        logits, settings["isc_splits"], settings["samples_shuffle"], settings["rng_seed"]
    )
    return {name: result[metric_isc.KEY_METRIC_ISC_MEAN], f"{name}_std": result[metric_isc.KEY_METRIC_ISC_STD]}


@registry.register("metric", "kid")
def _kid(measuring: Measuring) -> dict[str, float | int]:
    """Kernel distance of features [N, F] to the reference's [n, F]: mean and standard deviation over subsets."""
    from torch_fidelity import metric_kid

    features, reference = measuring.all(FEATURES), measuring.reference_features
    size = min(KID_SETTINGS["kid_subset_size"], len(features), len(reference))
    settings = {**KID_SETTINGS, "kid_subset_size": size}
    result = metric_kid.kid_features_to_metric(features, reference, verbose=False, **settings)
    mean, std = result[metric_kid.KEY_METRIC_KID_MEAN], result[metric_kid.KEY_METRIC_KID_STD]
    return {"kid": mean, "kid_std": std, "kid_subset_size": size}


def _neighbours(measuring: Measuring) -> dict[str, Any]:
    """The metrics of :mod:`edm.metrics.sets`; the training images of pairs by their places in the dataset."""
    reference = measuring.reference_features
    found = neighbour_metrics(measuring.all(FEATURES), reference, measuring.metrics, measuring.extractor.device)
    if "pairs" in found:
        places = places_of_features(measuring.reference.count or len(reference), len(reference))
        found["pairs"] = [{**pair, "training": int(places[pair["training"]])} for pair in found["pairs"]]
    return found


for _name in OF_NEIGHBOURS:
    registry.register("metric", _name)(_neighbours)


def check_features(reference: ReferenceStatistics, name: str) -> None:
    """Raises UserError if a reference states another extractor than ``name``."""
    if reference.features not in (None, name):
        raise UserError(f"{reference.path}: its features are {reference.features}, not {name}; "
                        "measure both in the same features")  # fmt: skip


def _check_reference(extractor: Features, reference: ReferenceStatistics, metrics: Collection[str]) -> None:
    check_features(reference, extractor.name)
    for what, theirs, ours in (
        ("weights", reference.weights_sha256, extractor.weights_sha256),
        ("dimensions", str(reference.mu.size), extractor.dimension and str(extractor.dimension)),
    ):
        if theirs and ours and theirs != ours:
            raise UserError(
                f"{reference.path}: its {what} are {theirs[:20]}, not {ours[:20]}; measure both in the same features"
            )
    for name in metrics:
        if METRICS[name].needs_reference_features:
            if reference.features_count is None:
                raise UserError(
                    f"{reference.path}: holds no features of the reference images, which {name} needs; "
                    "compute it again and keep them"
                )
            _require(name, reference.features_count, f"reference images in {reference.path}")


def _require(metric: str, count: int, what: str) -> None:
    fewest = METRICS[metric].fewest
    if count < fewest:
        raise UserError(f"{metric} needs at least {fewest} images, but there are {count} {what}; add images")

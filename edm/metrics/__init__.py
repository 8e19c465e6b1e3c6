"""Metrics of image sets: Fréchet distances in the features of Inception-v3 (FID) or another network, and others.

This file holds the names and does not import torch.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edm import registry
from edm.errors import UserError

INCEPTION = "inception-v3-compat"  # torch-fidelity's name
CLASSIFIER = "digits-classifier"  # trained on the dataset itself
DINOV2 = ("dinov2-vit-s-14", "dinov2-vit-b-14", "dinov2-vit-l-14")  # torch-fidelity's names
PIXELS = "pixels"  # needs no weights; for smoke tests
EXTRACTORS = registry.Names("features")
registry.own("features", (INCEPTION, CLASSIFIER, *DINOV2, PIXELS), "edm.metrics.extractors")
TO_TEST = "distance_to_test"  # in results: the distance to images held out from training
MEMORISATION_OF_TEST = "memorisation_of_test"  # in results: of these images, against the training images
MOST_FEATURES = 50_000  # images whose features the workflow keeps: 400 MB of Inception-v3's

WORST = 64  # pairs of an image and its nearest training image that an evaluation names
SPLITS = 10  # of the images, whose scores an Inception score is the mean of


#: The settings of metrics of nearest neighbours; k is their number.
NEIGHBOURS: dict[str, dict[str, float]] = {
    "precision": {"k": 3}, "recall": {"k": 3}, "density": {"k": 5}, "coverage": {"k": 5}, "authpct": {"k": 1},
    "memorisation": {"k": 50, "below": 0.5},
}  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """A metric that is computed in addition to the Fréchet distance, in the same pass over the images.

    fewest: minimum number of images, both generated and of the reference.
    needs_reference_features: whether it needs the features of single reference images, not only their statistics.
    logits_of: the extractor whose class logits it uses, or None if it uses the features of any extractor.
    higher: whether more is better. settings: what a reader needs to know: k is the number of neighbours.
    meaning: one line for the notes of a table. all_images: of a share of the images, its value where all are counted.
    """

    fewest: int
    needs_reference_features: bool = False
    logits_of: str | None = None
    higher: bool = True
    settings: Mapping[str, float] = field(default_factory=dict)
    meaning: str = ""
    all_images: float = 0


_OURS: dict[str, Metric] = {
    "inception_score": Metric(10, logits_of=INCEPTION, meaning="exp of the mean KL divergence of the classes"),
    "classifier_score": Metric(10, logits_of=CLASSIFIER, meaning="Inception score of another classifier"),
    "kid": Metric(2, True, higher=False, meaning="squared distance of mean embeddings, cubic kernel"),
    "precision": Metric(
        4, True, settings=NEIGHBOURS["precision"], meaning="share of images in balls of the reference", all_images=1
    ),
    "recall": Metric(4, True, settings=NEIGHBOURS["recall"], meaning="share of the reference in balls of images"),
    "density": Metric(6, True, settings=NEIGHBOURS["density"], meaning="balls of the reference with an image, over k"),
    "coverage": Metric(6, True, settings=NEIGHBOURS["coverage"], meaning="share of reference balls with an image"),
    "authpct": Metric(
        2, True, settings=NEIGHBOURS["authpct"],
        meaning="% of the images farther from their nearest reference image than that from its own nearest",
        all_images=100,
    ),
    "memorisation": Metric(
        2, True, higher=False, settings=NEIGHBOURS["memorisation"],
        meaning="% of the images nearer to their nearest reference image than `below` the mean of their k nearest",
        all_images=100,
    ),
}  # fmt: skip
registry.own("metric", _OURS, "edm.metrics.measure")


class _Metrics(Mapping[str, Metric]):
    """What is known of each metric by its name: our own, and those of plugins."""

    def __getitem__(self, name: str) -> Metric:
        if name in _OURS:
            return _OURS[name]
        facts = {part.name: part.facts for part in registry.plugins("metric")}[name]
        return Metric(facts["fewest"], True, higher=facts["higher"], meaning=facts["meaning"] or "a plugin's metric")

    def __iter__(self) -> Iterator[str]:
        return iter(registry.Names("metric"))

    def __len__(self) -> int:
        return len(registry.Names("metric"))


METRICS = _Metrics()
#: The metrics of nearest neighbours (:mod:`edm.metrics.sets`).
OF_NEIGHBOURS = tuple(NEIGHBOURS)
#: Metrics whose settings are older than the settings' place in the specification of an evaluation.
UNSTATED = ("inception_score", "classifier_score", "kid", "precision", "recall")


def check_metrics(metrics: Iterable[str], features: str) -> None:
    """Raises UserError if a metric is unknown or the extractor named ``features`` cannot provide it."""
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"unknown metric {name!r}; choose from {', '.join(METRICS)}")
        source = METRICS[name].logits_of
        if source not in (None, features):
            raise UserError(
                f"{name} is made of the class logits of {source}, not of {features}; "
                f"leave it out, or measure in {source}"
            )


def need_reference_features(metrics: Iterable[str]) -> bool:
    """Whether any of these metrics needs the features of the reference images, not only their statistics."""
    return any(METRICS[name].needs_reference_features for name in metrics)


def stated_settings(metrics: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The settings that decide these metrics, for the specification of an evaluation."""
    return {name: dict(METRICS[name].settings) for name in metrics if name in _OURS and name not in UNSTATED}


def metric_error(name: str, values: Mapping[str, float], images: int) -> float | None:
    """The standard error over other seeds of a metric in ``values``, of so many images and one reference; or None.

    Of a share p of the images: √(p (1 − p) / N). Of a mean over ``SPLITS`` parts of the images: the standard deviation
    of the parts, ``NAME_std``, over √(SPLITS − 1). Recall, density, coverage and KID have none here.
    """
    if name not in METRICS or name not in values:
        return None
    if all_images := METRICS[name].all_images:
        share = min(max(values[name] / all_images, 0.0), 1.0)
        return all_images * math.sqrt(share * (1 - share) / images)
    return (
        values[f"{name}_std"] / math.sqrt(SPLITS - 1) if METRICS[name].logits_of and f"{name}_std" in values else None
    )


def lower_is_better(column: str) -> bool:
    """Whether the lowest value of a column is the best: of a distance, and of some of the metrics."""
    return column not in METRICS or not METRICS[column].higher

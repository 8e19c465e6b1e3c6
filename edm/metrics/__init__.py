"""Metrics of image sets: Fréchet distances in the features of Inception-v3 (FID) or another network, and others.

This file holds the names and does not import torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from edm.errors import UserError

INCEPTION = "inception-v3-compat"  # torch-fidelity's name
CLASSIFIER = "digits-classifier"  # trained on the dataset itself
DINOV2 = ("dinov2-vit-s-14", "dinov2-vit-b-14", "dinov2-vit-l-14")  # torch-fidelity's names
PIXELS = "pixels"  # needs no weights; for smoke tests
EXTRACTORS = (INCEPTION, CLASSIFIER, *DINOV2, PIXELS)
TO_TEST = "distance_to_test"  # in results: the distance to images held out from training
MOST_FEATURES = 50_000  # images whose features the workflow keeps: 400 MB of Inception-v3's


@dataclass(frozen=True)
class Metric:
    """A metric that is computed in addition to the Fréchet distance, in the same pass over the images.

    fewest: minimum number of images, both generated and of the reference.
    needs_reference_features: whether it needs the features of single reference images, not only their statistics.
    logits_of: the extractor whose class logits it uses, or None if it uses the features of any extractor.
    """

    fewest: int
    needs_reference_features: bool = False
    logits_of: str | None = None


METRICS: dict[str, Metric] = {
    "inception_score": Metric(fewest=10, logits_of=INCEPTION),
    "classifier_score": Metric(fewest=10, logits_of=CLASSIFIER),
    "kid": Metric(fewest=2, needs_reference_features=True),
    "precision": Metric(fewest=4, needs_reference_features=True),
    "recall": Metric(fewest=4, needs_reference_features=True),
}


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

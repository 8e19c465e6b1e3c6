"""Measures of sets of images: Fréchet distances in the features of Inception-v3 (FID) or of another network, and more.

The names are here, where reading them costs no import of torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from edm.errors import UserError

INCEPTION = "inception-v3-compat"  # torch-fidelity's name
CLASSIFIER = "digits-classifier"  # trained on the dataset itself
DINOV2 = ("dinov2-vit-s-14", "dinov2-vit-b-14", "dinov2-vit-l-14")  # torch-fidelity's names
PIXELS = "pixels"  # needs no weights; for rehearsals
EXTRACTORS = (INCEPTION, CLASSIFIER, *DINOV2, PIXELS)


@dataclass(frozen=True)
class Metric:
    """A measure that is taken beside the Fréchet distance, in the same pass over the images.

    fewest: how many images it needs on either side.
    needs_reference_features: whether mean and covariance of the reference do not suffice.
    logits_of: the one extractor whose class logits it is made of, or None where any extractor's features will do.
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
    """Raises UserError where a metric is unknown or cannot be had from the extractor named ``features``."""
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

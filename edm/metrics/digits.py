"""The small classifier as a torch-fidelity feature extractor, registered under its name on import.

After ``import edm.metrics.digits``, ``torch_fidelity.calculate_metrics(feature_extractor="digits-classifier",
feature_extractor_weights_path=...)`` works as with torch-fidelity's own. Imports torch-fidelity, which takes seconds.
"""

import os

import torch
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from edm.errors import UserError
from edm.metrics import CLASSIFIER as NAME
from edm.metrics.classifier import load_classifier

LAYER = "penultimate"


class FeatureExtractorDigits(FeatureExtractorBase):
    """Penultimate features and logits of a classifier from ``edm.metrics.classifier.train_classifier``.

    Takes uint8 images [N, C, R, R] of the size that the classifier was trained on.
    """

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | os.PathLike | None = None,
        **kwargs,
    ) -> None:
        """``kwargs``: torch-fidelity's other options, ignored. Raises UserError for unsuitable weights."""
        super().__init__(name, features_list)
        if feature_extractor_weights_path is None:
            raise UserError(f"{name}: has no weights of its own; train a classifier and give its file as the weights")
        self.classifier, _ = load_classifier(feature_extractor_weights_path)

    @property
    def dimension(self) -> int:
        """Number of penultimate features."""
        return self.classifier.penultimate.out_features

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The requested layers, in the requested order."""
        features, logits = self.classifier(input)
        layers = {LAYER: features, "logits": logits}
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return LAYER, "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"isc": "logits", "fid": LAYER, "kid": LAYER, "prc": LAYER}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return False


register_feature_extractor(NAME, FeatureExtractorDigits)

"""Generated weights in the layouts that the extractors expect, so that no test downloads anything."""

from pathlib import Path

import numpy as np
import pytest
from image_sets import untrained_inception

from edm.metrics.classifier import train_classifier


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 digits of scikit-learn as uint8 images [N, 1, 8, 8], and their labels [N]."""
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    return np.round(data.images * 255 / 16).astype(np.uint8)[:, None], data.target


@pytest.fixture(scope="session")
def classifier(digits, tmp_path_factory) -> tuple[Path, dict]:
    """A trained classifier's file and the record of its training."""
    path = tmp_path_factory.mktemp("classifier") / "digits.safetensors"
    return path, train_classifier(*digits, path, seed=0)


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory) -> Path:
    """The file of an untrained Inception-v3."""
    return untrained_inception(tmp_path_factory.mktemp("inception"))

"""Weights made here, in the layouts that the extractors expect: no test downloads anything."""

from pathlib import Path

import numpy as np
import pytest
import torch

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
    """Random weights in the layout of torch-fidelity's Inception-v3, scaled so that images stay distinguishable."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_args, **_kwargs):
            """Keeps the initial weights, where torch-fidelity would load a file."""

    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = Untrained("inception-v3-compat", ["2048"], folder / "empty.pth")
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # running statistics become those of the batch below
        images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
        with torch.no_grad():
            network.train()(images)
    torch.save(network.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"

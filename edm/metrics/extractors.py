"""Image features by name, for Fréchet distances: one registry entry per extractor, all made through torch-fidelity.

Images are uint8 [N, C, H, W] throughout. torch-fidelity takes seconds to import and so is imported where it is used.
"""

import http.client
import io
import os
import re
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from shutil import copyfileobj

import numpy as np
import torch

from edm.errors import UserError
from edm.files import atomic_write, sha256_file
from edm.metrics import CLASSIFIER, INCEPTION
from edm.metrics.frechet import FeatureStatistics
from edm.precision import full_float32

DOWNLOAD_TIMEOUT = 30  # seconds without an answer; a compute node's firewall often drops packets without a word


@dataclass(frozen=True)
class Features:
    """A feature extractor, ready to use.

    name: in the registry. dimension: F. label: what a Fréchet distance in these features is called in tables.
    description: one line for captions. weights_sha256: hash of the weights file. device: where it computes.
    """

    name: str
    dimension: int
    label: str
    description: str
    weights_sha256: str
    device: torch.device
    network: torch.nn.Module
    prepare: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, images: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Features [N, F], float32, on ``device``, of uint8 images [N, C, H, W].

        Raises UserError where the extractor does not take images of this shape.
        """
        images = torch.as_tensor(images)
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images must be uint8 [N, C, H, W], not {images.dtype} {list(images.shape)}")
        with torch.no_grad(), full_float32():
            (features,) = self.network(self.prepare(images.to(self.device)))
        return features.to(torch.float32)


@dataclass(frozen=True)
class _Opened:
    network: torch.nn.Module
    dimension: int
    weights_sha256: str
    label: str


@dataclass(frozen=True)
class Extractor:
    """A registry entry. ``open`` takes the name and the path of the weights or None; ``prepare`` adapts the channels.

    ``open`` makes the network through torch-fidelity, on the CPU, and raises UserError where the weights are unfit.
    """

    description: str
    open: Callable[[str, Path | None], _Opened]
    prepare: Callable[[torch.Tensor], torch.Tensor]


def load_features(name: str, weights: str | os.PathLike | None = None, device: torch.device | str = "cpu") -> Features:
    """The feature extractor ``name`` (a key of ``EXTRACTORS``) with the weights in a file.

    Without ``weights``, Inception-v3 uses torch-fidelity's published file, downloaded once into torch's cache.
    Raises UserError where the name is unknown or the weights are missing, cannot be downloaded, or do not fit.
    """
    if name not in EXTRACTORS:
        raise UserError(f"unknown feature extractor {name!r}; choose one of {', '.join(sorted(EXTRACTORS))}")
    entry = EXTRACTORS[name]
    opened = entry.open(name, None if weights is None else Path(weights))
    device = torch.device(device)
    return Features(
        name=name,
        dimension=opened.dimension,
        label=opened.label,
        description=entry.description,
        weights_sha256=opened.weights_sha256,
        device=device,
        network=opened.network.to(device),
        prepare=entry.prepare,
    )


def extract(
    features: Features,
    batches: Iterable[torch.Tensor | np.ndarray],
    device: torch.device | str | None = None,
) -> FeatureStatistics:
    """Statistics of the features of uint8 image batches [N, C, H, W], one batch in memory at a time.

    They are accumulated on ``device``, by default where the features are computed.
    """
    statistics = FeatureStatistics()
    for batch in batches:
        statistics.append(features(batch).to(features.device if device is None else device))
    return statistics


def distance_label(features: str) -> str:
    """What a Fréchet distance in the features of this name is called: "FID" for Inception-v3 and nothing else."""
    return "FID" if features == INCEPTION else f"FD ({features})"


def _open_inception(name: str, weights: Path | None) -> _Opened:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    from torch_fidelity.utils import create_feature_extractor

    weights = weights or _downloaded(name, URL_INCEPTION_V3)
    # torch-fidelity unpickles the file it is given. It is given bytes of our own writing, made from the tensors that
    # torch's restricted reader found in the user's file, so that no pickle from outside is ever run.
    stream = io.BytesIO()
    torch.save(_tensors(weights), stream)
    stream.seek(0)
    try:
        network = create_feature_extractor(
            name, ["2048"], cuda=False, feature_extractor_weights_path=stream, verbose=False
        )
    except RuntimeError:  # load_state_dict names every key that differs, over many lines
        raise UserError(
            f"{weights}: not in the layout of torch-fidelity's Inception-v3 weights; use {URL_INCEPTION_V3}"
        ) from None
    sha256 = sha256_file(weights)
    published = sha256.startswith(_hash_in_name(URL_INCEPTION_V3))  # the same layers with other weights are not FID
    label = distance_label(name) if published else f"FD ({name}, other weights)"
    return _Opened(network, network.fc.in_features, sha256, label)


def _open_classifier(name: str, weights: Path | None) -> _Opened:
    from torch_fidelity.utils import create_feature_extractor

    from edm.metrics import digits  # registers the extractor with torch-fidelity

    if weights is None:
        raise UserError(f"{name}: has no weights of its own; train a classifier and give its file as the weights")
    network = create_feature_extractor(
        name, [digits.LAYER], cuda=False, feature_extractor_weights_path=weights, verbose=False
    )
    return _Opened(network, network.dimension, sha256_file(weights), distance_label(name))


def _three_channels(images: torch.Tensor) -> torch.Tensor:
    """Grey images as three equal channels (Section 6 of the paper)."""
    if images.shape[1] not in (1, 3):
        raise UserError(f"images have {images.shape[1]} channels; Inception-v3 takes grey or RGB images")
    return images.expand(-1, 3, -1, -1)


def _unchanged(images: torch.Tensor) -> torch.Tensor:
    return images


EXTRACTORS: dict[str, Extractor] = {
    INCEPTION: Extractor(
        description="Inception-v3 of 2015-12-05, 2048 pooled features, as converted by torch-fidelity",
        open=_open_inception,
        prepare=_three_channels,
    ),
    CLASSIFIER: Extractor(
        description="penultimate layer of a small classifier trained on the data set itself",
        open=_open_classifier,
        prepare=_unchanged,
    ),
}


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file of torch.save, read without running anything in it."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; correct the path of the feature extractor's weights")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        raise UserError(f"{path}: not a readable file of tensors; download the weights again") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: not a state dict; give the weights as torch-fidelity publishes them")
    return state


def _downloaded(name: str, url: str) -> Path:
    """The file at ``url`` in torch's cache, where torch-fidelity keeps it too; downloaded and verified if absent."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(url).name
    if path.is_file():
        return path
    with atomic_write(path) as temporary:
        try:
            with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as response, open(temporary, "wb") as file:
                copyfileobj(response, file)
        except (OSError, http.client.HTTPException) as error:
            raise UserError(
                f"{name}: no weights here and no download ({getattr(error, 'reason', error)}); fetch {url} on a "
                f"machine with network and put it at {path}, or give its path as the weights of the feature extractor"
            ) from None
        if not sha256_file(temporary).startswith(_hash_in_name(url)):
            raise UserError(f"{url}: the download is damaged (wrong SHA-256); try again")
    return path


def _hash_in_name(url: str) -> str:
    """First digits of the SHA-256 of a file published as ``name-<digits>.ext``, the custom of torch.hub."""
    return re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", url).group(1)

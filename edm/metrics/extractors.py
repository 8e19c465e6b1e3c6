"""Image features by name: one registry entry per extractor, all made through torch-fidelity but for plain pixels.

Images are uint8 [N, C, H, W] throughout. torch-fidelity takes seconds to import and so is imported where it is used.
"""

import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from edm.errors import UserError, require
from edm.files.writing import sha256_file
from edm.metrics import CLASSIFIER, DINOV2, INCEPTION, PIXELS
from edm.metrics.frechet import FeatureStatistics
from edm.metrics.weights import downloaded, hash_in_name, read_tensors
from edm.networks.precision import float32_as

FEATURES, LOGITS = "features", "logits"  # the layers that an extractor gives

#: Images that go through a large network at once on a CPU. Inception-v3 on two cores is a quarter to twice as fast with
#: 16 as with torch-fidelity's 64 (``python bench/metrics.py --batches 64``), with the same features or, with other
#: numbers of threads or images, features that differ by less than 1e-6 of the largest. Memory in channels_last would be
#: faster still, by half, at three times that difference.
CPU_BATCH = 16

#: Images from which a compiled network pays on a GPU: compiling takes a minute or two and saves about a third of the
#: 11 GFLOPs that Inception-v3 takes for an image, at 30 TFLOP/s in full float32. An estimate: no GPU has tried it.
COMPILED_FROM = 500_000


@dataclass(frozen=True)
class Features:
    """A feature extractor, ready to use.

    name: in the registry. dimension: F, or None where it depends on the size of the images.
    label: what a Fréchet distance in these features is called in tables. description: one line for captions.
    weights_sha256: hash of the weights file, or None where there are no weights. device: where it computes.
    layer_names: what ``layers`` gives, in the order in which ``network`` returns it. batch: how many images the network
    is given at once, or None for all that there are.
    """

    name: str
    dimension: int | None
    label: str
    description: str
    weights_sha256: str | None
    device: torch.device
    network: torch.nn.Module
    prepare: Callable[[torch.Tensor], torch.Tensor]
    layer_names: tuple[str, ...]
    batch: int | None = None

    def __call__(self, images: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Features [N, F], float32, on ``device``, of uint8 images [N, C, H, W].

        Raises UserError where the extractor does not take images of this shape.
        """
        return self.layers(images)[FEATURES]

    def layers(self, images: torch.Tensor | np.ndarray) -> dict[str, torch.Tensor]:
        """All that one forward pass gives: "features" [N, F] and, where the network classifies, "logits" [N, K].

        float32, on ``device``, of uint8 images [N, C, H, W]. The logits of Inception-v3 are those without the bias,
        from which the Inception score is made. Raises UserError where it does not take images of this shape.
        """
        images = torch.as_tensor(images)
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images must be uint8 [N, C, H, W], not {images.dtype} {list(images.shape)}")
        with torch.no_grad(), float32_as():
            images = self.prepare(images.to(self.device))
            parts = [self.network(part) for part in (images.split(self.batch) if self.batch else [images])]
        return {name: torch.cat(layer).to(torch.float32)
                for name, layer in zip(self.layer_names, zip(*parts, strict=True), strict=True)}  # fmt: skip


@dataclass(frozen=True)
class _Opened:
    network: torch.nn.Module
    dimension: int | None
    weights_sha256: str | None
    label: str
    layer_names: tuple[str, ...] = (FEATURES,)


@dataclass(frozen=True)
class Extractor:
    """A registry entry. ``open`` takes the name and the path of the weights or None; ``prepare`` adapts the channels.

    ``open`` makes the network on the CPU and raises UserError where the weights are unfit. ``large``: whether it takes
    so long that its batches, and compiling it, matter.
    """

    description: str
    open: Callable[[str, Path | None], _Opened]
    prepare: Callable[[torch.Tensor], torch.Tensor]
    large: bool = False


def load_features(
    name: str, weights: str | os.PathLike | None = None, device: torch.device | str = "cpu", images: int = 0
) -> Features:
    """The feature extractor ``name`` (a key of ``EXTRACTORS``) with the weights in a file.

    Without ``weights``, Inception-v3 and DINOv2 use the published files, downloaded once into torch's cache.
    images: how many it is for, if that is known. For very many a GPU's network is compiled, which changes features by
    rounding: jobs that share the images of one measurement name those of all of it, and so choose alike.
    Raises UserError where the name is unknown or the weights are missing, cannot be downloaded, or do not fit.
    """
    if name not in EXTRACTORS:
        raise UserError(f"unknown feature extractor {name!r}; choose one of {', '.join(sorted(EXTRACTORS))}")
    entry = EXTRACTORS[name]
    if name != PIXELS:
        require("torch_fidelity")
    opened = entry.open(name, None if weights is None else Path(weights))
    device = torch.device(device)
    network = opened.network.to(device)
    if device.type == "cuda" and entry.large and images >= COMPILED_FROM:
        network.compile()
    return Features(
        name=name,
        dimension=opened.dimension,
        label=opened.label,
        description=entry.description,
        weights_sha256=opened.weights_sha256,
        device=device,
        network=network,
        prepare=entry.prepare,
        layer_names=opened.layer_names,
        batch=CPU_BATCH if device.type == "cpu" and entry.large else None,
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

    published = hash_in_name(URL_INCEPTION_V3)
    weights = weights or downloaded(name, URL_INCEPTION_V3, published)
    # torch-fidelity unpickles the file it is given. It is given bytes of our own writing, made from the tensors that
    # torch's restricted reader found in the user's file, so that no pickle from outside is ever run.
    stream = io.BytesIO()
    torch.save(read_tensors(weights), stream)
    stream.seek(0)
    try:
        network = create_feature_extractor(
            name, ["2048", "logits_unbiased"], cuda=False, feature_extractor_weights_path=stream, verbose=False
        )
    except RuntimeError:  # load_state_dict names every key that differs, over many lines
        raise UserError(
            f"{weights}: not in the layout of torch-fidelity's Inception-v3 weights; use {URL_INCEPTION_V3}"
        ) from None
    sha256 = sha256_file(weights)
    return _Opened(network, network.fc.in_features, sha256, _label(name, sha256, published), (FEATURES, LOGITS))


def _open_classifier(name: str, weights: Path | None) -> _Opened:
    from torch_fidelity.utils import create_feature_extractor

    from edm.metrics import digits  # registers the extractor with torch-fidelity

    if weights is None:
        raise UserError(f"{name}: has no weights of its own; train a classifier and give its file as the weights")
    network = create_feature_extractor(
        name, [digits.LAYER, "logits"], cuda=False, feature_extractor_weights_path=weights, verbose=False
    )
    return _Opened(network, network.dimension, sha256_file(weights), distance_label(name), (FEATURES, LOGITS))


def _open_dinov2(name: str, weights: Path | None) -> _Opened:
    from edm.metrics import dinov2

    published = dinov2.PUBLISHED[name]
    weights = weights or downloaded(name, published.url, published.sha256)
    try:
        network = dinov2.build(name, read_tensors(weights))
    except RuntimeError:
        raise UserError(f"{weights}: not in the layout of the weights of {name}; use {published.url}") from None
    sha256 = sha256_file(weights)
    return _Opened(network, published.width, sha256, _label(name, sha256, published.sha256))


def _open_pixels(name: str, weights: Path | None) -> _Opened:
    if weights is not None:
        raise UserError(f"{weights}: given as weights of {name!r}, which has none; leave the weights out")
    return _Opened(_Averages(), None, None, distance_label(name))


class _Averages(torch.nn.Module):
    """Averages over the cells of an 8×8 grid, or the pixels themselves where there are fewer, between 0 and 1."""

    GRID = 8

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        height, width = (min(self.GRID, side) for side in images.shape[2:])
        return (F.adaptive_avg_pool2d(images.to(torch.float32) / 255, (height, width)).flatten(1),)


def _label(name: str, sha256: str, published: str) -> str:
    """The label of a distance: the same layers with other weights than the published ones are something else."""
    return distance_label(name) if sha256.startswith(published) else f"FD ({name}, other weights)"


def _three_channels(images: torch.Tensor) -> torch.Tensor:
    """Grey images as three equal channels (Section 6 of the paper)."""
    if images.shape[1] not in (1, 3):
        raise UserError(f"images have {images.shape[1]} channels; this feature extractor takes grey or RGB images")
    return images.expand(-1, 3, -1, -1)


def _unchanged(images: torch.Tensor) -> torch.Tensor:
    return images


EXTRACTORS: dict[str, Extractor] = {
    INCEPTION: Extractor(
        description="Inception-v3 of 2015-12-05, 2048 pooled features, as converted by torch-fidelity",
        open=_open_inception,
        prepare=_three_channels,
        large=True,
    ),
    CLASSIFIER: Extractor(
        description="penultimate layer of a small classifier trained on the dataset itself",
        open=_open_classifier,
        prepare=_unchanged,
    ),
    **dict.fromkeys(
        DINOV2,
        Extractor(
            description="class token of DINOv2 at 224 pixels, resized as torch-fidelity does",
            open=_open_dinov2,
            prepare=_three_channels,
            large=True,
        ),
    ),
    PIXELS: Extractor(
        description="averages over an 8×8 grid of pixels, for rehearsals: they say nothing of image quality",
        open=_open_pixels,
        prepare=_unchanged,
    ),
}

"""Image features by name: one registry entry per extractor, all from torch-fidelity except plain pixels.

Images are uint8 [N, C, H, W] throughout. torch-fidelity takes seconds to import, so functions import it on use.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from edm import registry
from edm.errors import UserError, require
from edm.files.hashes import sha256_file
from edm.metrics import CLASSIFIER, DINOV2, EXTRACTORS, INCEPTION, PIXELS
from edm.metrics.frechet import FeatureStatistics
from edm.metrics.weights import downloaded, hash_in_name, read_tensors
from edm.networks.precision import float32_as

FEATURES, LOGITS = "features", "logits"  # the layers that an extractor gives

#: Batch size of a large network on a CPU. On two cores Inception-v3 is a quarter to twice as fast with 16 as with
#: torch-fidelity's 64 (``python bench/metrics.py --batches 64``). Features are equal or, with other numbers of threads
#: or images, differ by less than 1e-6 of the largest. The channels_last layout would be faster by half, with three
#: times that difference.
CPU_BATCH = 16

#: Minimum number of images for which to compile a network on a GPU: compiling takes one to two minutes and saves about
#: a third of the time for 11 GFLOPs per image (Inception-v3) at 30 TFLOP/s in full float32. An estimate, not measured.
COMPILED_FROM = 500_000


@dataclass(frozen=True)
class Features:
    """A feature extractor, ready to use.

    name: in the registry. dimension: F, or None if it depends on the size of the images.
    label: name of a Fréchet distance in these features, for tables. description: one line for captions.
    weights_sha256: hash of the weights file, or None without weights. device: on which it computes.
    layer_names: keys of ``layers``, in the order in which ``network`` returns them. batch: number of images per forward
    pass of the network, or None for all at once.
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

        Raises UserError if the extractor does not accept images of this shape.
        """
        return self.layers(images)[FEATURES]

    def layers(self, images: torch.Tensor | np.ndarray) -> dict[str, torch.Tensor]:
        """All outputs of one forward pass: "features" [N, F] and, if the network is a classifier, "logits" [N, K].

        float32, on ``device``, of uint8 images [N, C, H, W]. The logits of Inception-v3 exclude the bias, as the
        Inception score requires. Raises UserError if it does not accept images of this shape.
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

    ``open`` builds the network on the CPU and raises UserError if the weights are unsuitable. ``large``: whether the
    network is so slow that its batch size and compilation matter.
    """

    description: str
    open: Callable[[str, Path | None], _Opened]
    prepare: Callable[[torch.Tensor], torch.Tensor]
    large: bool = False


def load_features(
    name: str, weights: str | os.PathLike | None = None, device: torch.device | str = "cpu", count: int = 0
) -> Features:
    """The feature extractor ``name`` (one of ``EXTRACTORS``) with the weights in a file.

    Without ``weights``, Inception-v3 and DINOv2 use the published files, downloaded once into torch's cache.
    count: number of images to measure, if known. On a GPU, a large number makes it compile the network, which changes
    features by rounding: jobs that share one measurement pass the total, so that all make the same choice.
    Raises UserError if the name is unknown or the weights are missing, cannot be downloaded, or do not match.
    """
    if name not in EXTRACTORS:
        raise UserError(f"unknown feature extractor {name!r}; choose one of {', '.join(sorted(EXTRACTORS))}")
    part = registry.find("features", name)
    entry = part.make if isinstance(part.make, Extractor) else _of_plugin(part)
    if part.own and name not in (PIXELS, CLASSIFIER):
        require("torch_fidelity")
    opened = entry.open(name, None if weights is None else Path(weights))
    device = torch.device(device)
    network = opened.network.to(device)
    if device.type == "cuda" and entry.large and count >= COMPILED_FROM:
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

    Accumulates them on ``device``, by default the device of the extractor.
    """
    statistics = FeatureStatistics()
    for batch in batches:
        statistics.append(features(batch).to(features.device if device is None else device))
    return statistics


def distance_label(features: str) -> str:
    """The name of a Fréchet distance in these features: "FID" for Inception-v3 only."""
    return "FID" if features == INCEPTION else f"FD ({features})"


def _open_inception(name: str, weights: Path | None) -> _Opened:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    from torch_fidelity.utils import create_feature_extractor

    published = hash_in_name(URL_INCEPTION_V3)
    weights = weights or downloaded(name, URL_INCEPTION_V3, published)
    # torch-fidelity unpickles its weights file. Read the tensors of the user's file with the restricted unpickler
    # and pass torch-fidelity a newly written file of them, so that no foreign pickle is executed.
    stream = io.BytesIO()
    torch.save(read_tensors(weights), stream)
    stream.seek(0)
    try:
        network = create_feature_extractor(
            name, ["2048", "logits_unbiased"], cuda=False, feature_extractor_weights_path=stream, verbose=False
        )
    except RuntimeError:  # replaces load_state_dict's list of all differing keys
        raise UserError(
            f"{weights}: not in the layout of torch-fidelity's Inception-v3 weights; use {URL_INCEPTION_V3}"
        ) from None
    sha256 = sha256_file(weights)
    return _Opened(network, network.fc.in_features, sha256, _label(name, sha256, published), (FEATURES, LOGITS))


def _open_classifier(name: str, weights: Path | None) -> _Opened:
    """Without torch-fidelity, whose import takes seconds; :mod:`edm.metrics.digits` is for use within that."""
    from edm.metrics.classifier import load_classifier

    if weights is None:
        raise UserError(
            f"{name}: has no weights of its own; train a classifier (edm features) and give its file as the weights"
        )
    network, _ = load_classifier(weights)
    width = network.penultimate.out_features
    return _Opened(network, width, sha256_file(weights), distance_label(name), (FEATURES, LOGITS))


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
    """Averages over the cells of an 8×8 grid, or the pixels of a smaller image, between 0 and 1."""

    GRID = 8

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        height, width = (min(self.GRID, side) for side in images.shape[2:])
        return (F.adaptive_avg_pool2d(images.to(torch.float32) / 255, (height, width)).flatten(1),)


class _PluginFeatures(torch.nn.Module):
    """The features of a plugin's extractor, as the only layer."""

    def __init__(self, part: registry.Part, weights: Path | None):
        super().__init__()
        self.part, self.body = part, part(weights)
        if not isinstance(self.body, torch.nn.Module):
            raise UserError(f"{part.where}: {type(self.body).__name__} is no torch.nn.Module")
        self.body.eval()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        with registry.guarded(self.part):
            found = self.body(images)
        fits = isinstance(found, torch.Tensor) and found.is_floating_point() and found.ndim == 2
        if not fits or len(found) != len(images):
            told = f"{found.dtype} {list(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
            raise UserError(f"{self.part.where}: returned {told}; expected floats [{len(images)}, F]")
        return (found,)


def _of_plugin(part: registry.Part) -> Extractor:
    """The entry of a plugin's extractor. In the place of a weights file its hash is that of the plugin and the file."""

    def opened(name: str, weights: Path | None) -> _Opened:
        hashes = [part.source.sha256 if part.source else "", sha256_file(weights) if weights else ""]
        identity = hashlib.sha256(" ".join(hashes).encode()).hexdigest()
        return _Opened(_PluginFeatures(part, weights), None, identity, distance_label(name))

    return Extractor(part.facts["meaning"] or f"features {part.name} of a plugin", opened, _unchanged)


def _label(name: str, sha256: str, published: str) -> str:
    """The label of a distance; it marks weights other than the published ones."""
    return distance_label(name) if sha256.startswith(published) else f"FD ({name}, other weights)"


def _three_channels(images: torch.Tensor) -> torch.Tensor:
    """Grey images as three equal channels (Section 6 of the paper)."""
    if images.shape[1] not in (1, 3):
        raise UserError(f"images have {images.shape[1]} channels; this feature extractor takes grey or RGB images")
    return images.expand(-1, 3, -1, -1)


def _unchanged(images: torch.Tensor) -> torch.Tensor:
    return images


_OURS: dict[str, Extractor] = {
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
for _name, _entry in _OURS.items():
    registry.register("features", _name)(_entry)  # type: ignore[type-var]  # opened by its own functions

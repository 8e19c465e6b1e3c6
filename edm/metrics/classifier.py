"""A small classifier of small square images, trained in seconds, whose penultimate layer provides image features.

It allows a Fréchet distance where Inception-v3 is unsuitable or unavailable (8×8 digits, a laptop without network
access). This distance ranks models of one dataset; it is not FID and not comparable with published numbers.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional as F

from edm.design.optimizers import uncompiled
from edm.errors import UserError
from edm.files.hashes import canonical_json
from edm.files.reading import require_regular
from edm.files.tensors import write_safetensors

HEADER_KEY = "edm.classifier"  # one key with JSON inside: safetensors does not keep the order of several
SHAPE_KEYS = ("channels", "resolution", "classes", "features")


class Classifier(nn.Module):
    """Three convolutions, a feature layer and a linear read-out, for images [N, channels, resolution, resolution]."""

    POOLED = 4  # resolution of the last feature map, for any image resolution

    def __init__(self, channels: int, resolution: int, classes: int, features: int = 64) -> None:
        super().__init__()
        self.channels, self.resolution, self.classes = channels, resolution, classes
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.penultimate = nn.Linear(64 * self.POOLED**2, features)
        self.logits = nn.Linear(features, classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [N, features] (penultimate layer, after its activation) and logits [N, classes], float32.

        Takes uint8 images [N, C, H, W]. Raises UserError if their size differs from that of its training images.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images must be uint8 [N, C, H, W], not {images.dtype} {list(images.shape)}")
        expected = (self.channels, self.resolution, self.resolution)
        if tuple(images.shape[1:]) != expected:
            raise UserError(
                f"images of shape {tuple(images.shape[1:])} given to a classifier trained on {expected}; "
                "train a classifier on this dataset"
            )
        x = images.to(torch.float32) / 127.5 - 1
        x = F.gelu(self.conv1(x))
        x = F.gelu(self.conv2(x))
        x = F.gelu(self.conv3(F.adaptive_avg_pool2d(x, self.POOLED)))
        features = F.gelu(self.penultimate(x.flatten(1)))
        return features, self.logits(features)


def train_classifier(
    images: torch.Tensor | np.ndarray,
    labels: torch.Tensor | np.ndarray,
    out_path: str | os.PathLike,
    seed: int = 0,
    epochs: int = 30,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    held_out: float = 0.15,
    features: int = 64,
) -> dict[str, int | float]:
    """Trains a classifier on uint8 images [N, C, R, R] and labels [N] (0 … K−1), and writes it as safetensors.

    Holds out a fraction ``held_out`` of the images. The file's header records the accuracy on them (0 … 1), sizes and
    settings; the function returns the same record. On one machine the same seed gives the same bytes: training uses
    one CPU thread, because the order of sums depends on the number of threads. The global random state and thread
    count do not change. Raises UserError if the images are unsuitable or the file cannot be written.
    """
    images, labels = torch.as_tensor(images).cpu(), torch.as_tensor(labels).cpu().to(torch.int64)
    _check_data(images, labels, held_out)
    record: dict[str, int | float] = {
        "channels": images.shape[1],
        "resolution": images.shape[2],
        "classes": int(labels.max()) + 1,
        "features": features,
        "seed": seed,
        "epochs": epochs,
    }
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would seed every GPU as well
            order = torch.randperm(len(images))
            kept, rest = order.tensor_split([max(1, round(held_out * len(images)))])
            model = Classifier(*(int(record[key]) for key in SHAPE_KEYS))
            _fit(model, images[rest], labels[rest], epochs, batch_size, learning_rate)
        record["training_images"], record["held_out_images"] = len(rest), len(kept)
        record["training_accuracy"] = _accuracy(model, images[rest], labels[rest])
        record["held_out_accuracy"] = _accuracy(model, images[kept], labels[kept])
    finally:
        torch.set_num_threads(threads)
    write_safetensors(out_path, model.state_dict(), {HEADER_KEY: canonical_json(record)})
    return record


def load_classifier(path: str | os.PathLike) -> tuple[Classifier, Mapping[str, int | float]]:
    """The classifier in a safetensors file, in evaluation mode on the CPU, and the record of its training.

    Raises UserError if the file is missing, damaged, or not written by ``train_classifier``.
    """
    path = Path(path)
    require_regular(path, "a classifier, which `edm features` trains")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); train the classifier again") from None
    try:
        record = json.loads(header or "")
        shape = [int(record[key]) for key in SHAPE_KEYS]
        with torch.device("meta"):  # allocates nothing before the sizes are checked against the tensors
            model = Classifier(*shape)
        model.load_state_dict(tensors, assign=True)
    except (ValueError, KeyError, TypeError, RuntimeError, OverflowError):
        raise UserError(f"{path}: not a classifier written by this program; train the classifier again") from None
    return model.float().eval(), record


def _fit(
    model: Classifier, images: torch.Tensor, labels: torch.Tensor, epochs: int, batch_size: int, learning_rate: float
) -> None:
    optimizer = uncompiled(torch.optim.AdamW)(model.parameters(), lr=learning_rate, weight_decay=1e-2)
    steps = epochs * math.ceil(len(images) / batch_size)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(batch_size):
            _, logits = model(_shifted(images[batch]))
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[batch]).backward()
            optimizer.step()
            decay.step()


def _shifted(images: torch.Tensor) -> torch.Tensor:
    """Shifts each image by −1, 0 or 1 pixel in x and y, filled with zeros: the only augmentation that suits digits."""
    resolution = images.shape[-1]
    windows = F.pad(images, (1, 1, 1, 1)).unfold(2, resolution, 1).unfold(3, resolution, 1)  # [N, C, 3, 3, R, R]
    down, right = torch.randint(3, (2, len(images)))
    return windows[torch.arange(len(images)), :, down, right]


def _accuracy(model: Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        hits = sum(
            int((model(batch)[1].argmax(dim=1) == truth).sum())
            for batch, truth in zip(images.split(1024), labels.split(1024), strict=True)
        )
    return hits / len(images)


def _check_data(images: torch.Tensor, labels: torch.Tensor, held_out: float) -> None:
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must lie between 0 and 1, got {held_out}")
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 [N, C, R, R], not {images.dtype} {list(images.shape)}")
    if images.shape[2] != images.shape[3]:
        raise UserError(f"images of {images.shape[2]}×{images.shape[3]} pixels: a classifier needs square images")
    if labels.shape != (len(images),):
        raise UserError(f"{len(images)} images with labels of shape {tuple(labels.shape)}; give one label per image")
    if len(images) < 20 or labels.min() < 0 or labels.max() < 1:
        raise UserError("a classifier needs at least 20 images with labels 0, 1, …; check the dataset's labels")

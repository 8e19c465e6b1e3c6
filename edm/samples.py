"""Sample files: the generated images of a grid of sampler settings, as one safetensors file."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from edm import checkpoint
from edm.config import SamplerConfig
from edm.denoiser import Denoiser
from edm.errors import UserError
from edm.files import sha256_file
from edm.generate import generate, to_uint8

FORMAT = "edm-samples/1"


@dataclass(frozen=True)
class SampleSet:
    """Images uint8 [N, C, H, W] per point, ``seeds`` [N], ``labels`` [N] or None, and the header of the file."""

    images: dict[str, Tensor]
    seeds: Tensor
    labels: Tensor | None
    header: dict[str, Any]


def sample_points(
    denoiser: Denoiser, points: dict[str, SamplerConfig], seeds: range, block: int, class_label: int | None = None
) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
    """uint8 images of every point from the same seeds: (images per point, seeds, labels or None)."""
    config = denoiser.network.config
    shape = (config.channels, config.resolution, config.resolution)
    images, labels = {}, None
    total = len(seeds) * sum(sampler.nfe for sampler in points.values())
    bar = tqdm(total=total, unit="eval", unit_scale=True, disable=None)
    for name, sampler in points.items():
        parts = []
        blocks = generate(denoiser, sampler, seeds, shape, classes=config.classes, class_label=class_label, block=block)
        for part in blocks:
            if not part.images.isfinite().all():
                raise UserError(f"{name}: sampling gave non-finite images; try more steps or another sampler")
            parts.append((to_uint8(part.images), part.labels))
            bar.update(len(part.seeds) * sampler.nfe)
        images[name] = torch.cat([pixels for pixels, _ in parts])
        labels = torch.cat([label for _, label in parts]) if config.classes else None
    bar.close()
    return images, torch.tensor(seeds), labels


def write_samples(
    path: str | Path,
    checkpoint_path: str | Path,
    points: dict[str, SamplerConfig],
    drawn: tuple[dict[str, Tensor], Tensor, Tensor | None],
    about: dict[str, Any],
) -> None:
    """Writes what :func:`sample_points` drew, with what it was drawn from."""
    images, seeds, labels = drawn
    tensors = {f"images/{name}": pixels for name, pixels in images.items()} | {"seeds": seeds}
    if labels is not None:
        tensors["labels"] = labels
    header = {
        "format": FORMAT,
        "points": {name: {"sampler": sampler.to_dict(), "nfe": sampler.nfe} for name, sampler in points.items()},
        "checkpoint": {"sha256": sha256_file(checkpoint_path), **checkpoint.describe(checkpoint_path)["about"]},
        **about,
    }
    checkpoint.save_tensors(path, tensors, header)


def read_samples(path: str | Path) -> SampleSet:
    """Reads a sample file. Raises UserError for any other file."""
    tensors, header = checkpoint.load_tensors(path, FORMAT)
    images = {name: tensors[f"images/{name}"] for name in header["points"]}
    return SampleSet(images, tensors["seeds"], tensors.get("labels"), header)


def in_batches(images: Tensor, size: int = 256) -> Iterable[Tensor]:
    """The images in order, ``size`` at a time."""
    return images.split(size)

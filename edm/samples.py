"""Sample files: the generated images of a grid of sampler settings, as one safetensors file."""

from collections.abc import Iterable, Iterator
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
from edm.generate import Block, generate
from edm.pixels import to_uint8
from edm.precision import full_float32

FORMAT = "edm-samples/1"


@dataclass(frozen=True)
class SampleSet:
    """Images uint8 [N, C, H, W] per point, ``seeds`` [N], ``labels`` [N] or None, and the header of the file."""

    images: dict[str, Tensor]
    seeds: Tensor
    labels: Tensor | None
    header: dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """Images uint8 [N, C, H, W] and mean NFE per point; their seeds [N] and labels [N] or None."""

    images: dict[str, Tensor]
    nfe: dict[str, float]
    seeds: Tensor
    labels: Tensor | None


def draw(
    denoiser: Denoiser, sampler: SamplerConfig, seeds: range, block: int, class_label: int | None = None
) -> Iterator[tuple[Tensor, Block]]:
    """Images uint8 [n, C, H, W] of the seeds, block by block, each with the block they came from.

    In full float32 on GPUs too. Raises UserError where the sampler gives non-finite images.
    """
    config = denoiser.network.config
    shape = (config.channels, config.resolution, config.resolution)
    with full_float32():
        for part in generate(
            denoiser, sampler, seeds, shape, classes=config.classes, class_label=class_label, block=block
        ):
            if not part.images.isfinite().all():
                raise UserError("sampling gave non-finite images; try more steps or another sampler")
            yield to_uint8(part.images), part


def sample_points(
    denoiser: Denoiser, points: dict[str, SamplerConfig], seeds: range, block: int, class_label: int | None = None
) -> Drawn:
    """Images of every point from the same seeds. Raises UserError as :func:`draw`, naming the point."""
    images, nfe, labels = {}, {}, None
    bar = tqdm(total=len(seeds) * len(points), unit="img", unit_scale=True, disable=None)
    for name, sampler in points.items():
        pixels, blocks = [], []
        try:
            for part, block_drawn in draw(denoiser, sampler, seeds, block, class_label):
                pixels.append(part)
                blocks.append(block_drawn)
                bar.update(len(part))
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        images[name] = torch.cat(pixels)
        nfe[name] = float(torch.cat([b.nfe for b in blocks]).double().mean())
        labels = torch.cat([b.labels for b in blocks]) if blocks[0].labels is not None else None
    bar.close()
    return Drawn(images, nfe, torch.tensor(seeds), labels)


def write_samples(
    path: str | Path,
    checkpoint_path: str | Path,
    points: dict[str, SamplerConfig],
    drawn: Drawn,
    about: dict[str, Any],
) -> None:
    """Writes what :func:`sample_points` drew, with what it was drawn from."""
    tensors = {f"images/{name}": pixels for name, pixels in drawn.images.items()} | {"seeds": drawn.seeds}
    if drawn.labels is not None:
        tensors["labels"] = drawn.labels
    header = {
        "format": FORMAT,
        "points": {name: {"sampler": point.to_dict(), "nfe": round(drawn.nfe[name])} for name, point in points.items()},
        "checkpoint": {"sha256": sha256_file(checkpoint_path), **checkpoint.describe(checkpoint_path)["about"]},
        **about,
    }
    checkpoint.save_tensors(path, tensors, header)


def read_samples(path: str | Path) -> SampleSet:
    """Reads a sample file. Raises UserError for any other file."""
    tensors, header = checkpoint.load_tensors(path, FORMAT)
    try:
        images = {name: tensors[f"images/{name}"] for name in header["points"]}
        samples = SampleSet(images, tensors["seeds"], tensors.get("labels"), header)
        whole = all(
            t.dtype == torch.uint8 and t.ndim == 4 and len(t) == len(samples.seeds) > 0 for t in images.values()
        )
        whole = whole and isinstance(header["checkpoint"], dict)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a whole sample file ({error!r}); sample again") from None
    if not whole:
        raise UserError(f"{path}: not a whole sample file (images are not uint8 rows of the seeds); sample again")
    return samples


def in_batches(images: Tensor, size: int = 256) -> Iterable[Tensor]:
    """The images in order, ``size`` at a time."""
    return images.split(size)

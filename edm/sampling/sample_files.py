"""Sample files: the generated images of a grid of sampler settings, as one safetensors file."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm.cluster.processes import ALONE, World
from edm.config import SamplerConfig
from edm.data.pixels import to_uint8
from edm.errors import UserError
from edm.files.hashes import sha256_file
from edm.files.tensors import load_tensors, save_tensors
from edm.models import checkpoint
from edm.models.denoiser import Denoiser
from edm.networks.precision import float32_as
from edm.sampling.drawing import Advance, Block, generate, part_of, untold

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
    """Images uint8 [N, C, H, W] and the sum of their NFE, per point; their seeds [N] and labels [N] or None."""

    images: dict[str, Tensor]
    evaluations: dict[str, int]
    seeds: Tensor
    labels: Tensor | None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a sample file: "images/POINT", "seeds", "labels"."""
        tensors = {f"images/{name}": pixels for name, pixels in self.images.items()} | {"seeds": self.seeds}
        return tensors if self.labels is None else tensors | {"labels": self.labels}


def draw(
    denoiser: Denoiser, sampler: SamplerConfig, seeds: range, block: int, class_label: int | None = None,
    advance: Advance = untold,
) -> Iterator[tuple[Tensor, Block]]:  # fmt: skip
    """Yields uint8 images [n, C, H, W] of the seeds, block by block, each with its :class:`Block`.

    advance: as of :func:`edm.sampling.drawing.generate`. Uses the denoiser's precision, by default full float32, also
    on GPUs. Raises UserError if the sampler gives non-finite images, or if a block does not fit in GPU memory.
    """
    config = denoiser.network.config
    shape = (config.channels, config.resolution, config.resolution)
    parts = generate(denoiser, sampler, seeds, shape, classes=config.classes, class_label=class_label, block=block,
                     advance=advance)  # fmt: skip
    with float32_as(denoiser.precision):
        try:
            for part in parts:
                if not part.images.isfinite().all():
                    raise UserError("sampling gave non-finite images; try more steps or another sampler")
                yield to_uint8(part.images), part
        except torch.OutOfMemoryError:
            raise UserError(f"{block} images at once do not fit in the memory of the GPU; lower block") from None


def sample_points(
    denoiser: Denoiser, points: dict[str, SamplerConfig], seeds: range, block: int, class_label: int | None = None,
    world: World = ALONE, advance: Advance = untold,
) -> Drawn:  # fmt: skip
    """Generates images of every point from the same seeds, each process its part; ``seeds`` may be empty.

    advance: as of :func:`edm.sampling.drawing.generate`; it is told of this process's own images. Rank 0 gets the
    images of all ranks, the other ranks their own part. Raises UserError as :func:`draw`, with the name of the
    point.
    """
    config = denoiser.network.config
    own = part_of(seeds, block, world.rank, world.size)
    images, evaluations = {}, {}
    labels = torch.empty(0, dtype=torch.int64) if config.classes else None
    for name, sampler in points.items():
        pixels = [torch.empty(0, config.channels, config.resolution, config.resolution, dtype=torch.uint8)]
        blocks = []
        try:
            for part, block_drawn in draw(denoiser, sampler, own, block, class_label, advance) if own else ():
                pixels.append(part)
                blocks.append(block_drawn)
        except UserError as error:
            raise UserError(f"{name}: {error}" if len(points) > 1 else str(error)) from None
        images[name] = torch.cat(pixels)
        evaluations[name] = sum(int(b.nfe.sum()) for b in blocks)
        if blocks and labels is not None:
            labels = torch.cat([b.labels for b in blocks if b.labels is not None])
    drawn = Drawn(images, evaluations, torch.tensor(own, dtype=torch.int64), labels)
    sums = world.total(*evaluations.values())
    gathered = world.gather(drawn.tensors())
    if not gathered:
        return drawn
    whole = {name: torch.cat([tensors[name] for tensors in gathered]) for name in gathered[0]}
    images = {name: whole[f"images/{name}"] for name in points}
    evaluations = {name: int(total) for name, total in zip(points, sums, strict=True)}
    return Drawn(images, evaluations, whole["seeds"], whole.get("labels"))


def write_samples(
    path: str | Path,
    checkpoint_path: str | Path,
    points: dict[str, SamplerConfig],
    drawn: Drawn,
    about: dict[str, Any],
) -> None:
    """Writes the images of :func:`sample_points` with their samplers and checkpoint. ``about`` extends the header."""
    header = {
        "points": {name: {"sampler": point.to_dict()} for name, point in points.items()},
        "checkpoint": {"sha256": sha256_file(checkpoint_path), **checkpoint.describe(checkpoint_path)["about"]},
        **about,
    }
    _write(path, drawn, header)


def _write(path: str | Path, drawn: Drawn, header: dict[str, Any]) -> None:
    """Writes a sample file; the numbers of evaluations go into its header."""
    nfe = {name: round(total / max(len(drawn.seeds), 1)) for name, total in drawn.evaluations.items()}
    points = {name: {**point, "nfe": nfe[name]} for name, point in header["points"].items()}
    whole = {"format": FORMAT, **header, "points": points, "evaluations": drawn.evaluations}
    save_tensors(path, drawn.tensors(), whole)


def read_samples(path: str | Path, least: int = 1) -> SampleSet:
    """Reads a sample file. Raises UserError for any other file and for fewer than ``least`` images."""
    tensors, header = load_tensors(path, FORMAT)
    try:
        images = {name: tensors[f"images/{name}"] for name in header["points"]}
        samples = SampleSet(images, tensors["seeds"], tensors.get("labels"), header)
        whole = all(
            t.dtype == torch.uint8 and t.ndim == 4 and len(t) == len(samples.seeds) >= least for t in images.values()
        )
        whole = whole and isinstance(header["checkpoint"], dict)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a whole sample file ({error!r}); sample again") from None
    if not whole:
        raise UserError(f"{path}: not a whole sample file (images are not uint8 rows of the seeds); sample again")
    return samples


def merge_samples(output: str | Path, paths: Sequence[str | Path]) -> int:
    """Merges sample files of one checkpoint with equal settings, given in any order; returns the number of images.

    If one commit made all files, the result is byte-identical to that of a single job.
    Raises UserError if a seed is missing or occurs twice, or if the files differ in more than their seeds.
    """
    parts = sorted(((path, read_samples(path, least=0)) for path in paths), key=lambda part: part[1].seeds[:1].tolist())
    _check_equal(parts)
    seeds = _joined_seeds(parts)
    (first, like), header = parts[0], dict(parts[0][1].header)
    asked = header.pop("part_of", None)
    if asked not in (None, [seeds.start, seeds.stop]):
        raise UserError(
            f"{first}: a part of seeds {asked[0]}-{asked[1] - 1}, of which some are missing; name all parts"
        )
    images = {name: torch.cat([part.images[name] for _, part in parts]) for name in like.images}
    labels = None if like.labels is None else torch.cat([part.labels for _, part in parts if part.labels is not None])
    evaluations = {name: sum(part.header["evaluations"][name] for _, part in parts) for name in images}
    _write(output, Drawn(images, evaluations, torch.tensor(seeds), labels), header)
    return len(seeds)


def _check_equal(parts: list[tuple[str | Path, SampleSet]]) -> None:
    """Raises UserError if files differ in more than their seeds."""
    first, settings = parts[0][0], _settings(*parts[0])
    for path, part in parts[1:]:
        others = _settings(path, part)
        odd = [key for key in settings | others if settings.get(key) != others.get(key)]
        if odd:
            raise UserError(f"{path}: its {odd[0]} differs from that of {first}; merge the parts of one sampling")


def _joined_seeds(parts: list[tuple[str | Path, SampleSet]]) -> range:
    """The seed range of files in order. Raises UserError if a seed is missing or occurs twice, or if all are empty."""
    seeds = range(0)
    for path, part in parts:
        if not len(part.seeds):
            continue
        start, stop = int(part.seeds[0]), int(part.seeds[-1]) + 1
        if seeds and start != seeds.stop:
            problem = f"{seeds.stop} is missing before" if start > seeds.stop else f"{start} is not only in"
            raise UserError(f"seed {problem} {path}; name every part once")
        seeds = range(seeds.start if seeds else start, stop)
    if not seeds:
        raise UserError(f"{parts[0][0]}: holds no images; name the other parts, too")
    return seeds


def _settings(path: str | Path, samples: SampleSet) -> dict[str, Any]:
    """The settings, by name, that must be equal in merged files. Raises UserError if the file does not record them."""
    header, seeds = samples.header, samples.seeds
    counted = isinstance(header.get("evaluations"), dict) and header["evaluations"].keys() == samples.images.keys()
    if not counted or not torch.equal(seeds.diff(), torch.ones_like(seeds[1:])):
        raise UserError(f"{path}: written by an older version, or not of consecutive seeds; sample again")
    apart = ("points", "evaluations", "commit", "dirty")  # provenance and NFE counts, which may differ between parts
    shapes = {"size of the images": [list(images.shape[1:]) for images in samples.images.values()],
              "labels": samples.labels is not None}  # fmt: skip
    samplers = {f"sampler ({name})": point.get("sampler") for name, point in header["points"].items()}
    return {key: value for key, value in header.items() if key not in apart} | shapes | samplers


def in_batches(images: Tensor, size: int = 256) -> Iterable[Tensor]:
    """The images in order, ``size`` at a time."""
    return torch.split(images, size)

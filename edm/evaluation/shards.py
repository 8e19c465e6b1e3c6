"""Evaluations split over jobs. Each job measures its part of the seeds of every draw and writes a shard file.

A shard file holds the states of the measurements, not images. Merged in seed order, the states give the same results
as a single job. If a shard file is lost, only that part is measured again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from edm.cluster.processes import ALONE, World
from edm.config import SamplerConfig
from edm.errors import UserError
from edm.evaluation.evaluate import Seen, Yardstick, measure
from edm.files.hashes import digest
from edm.files.tensors import checksum, load_tensors, read_header, save_tensors
from edm.models.denoiser import Denoiser
from edm.sampling.drawing import part_of

FORMAT = "edm-shard/1"


@dataclass(frozen=True)
class Draw:
    """Images that are measured together and give one row of the results: a grid point, a repeat and a seed range."""

    point: str
    repeat: int
    sampler: SamplerConfig
    seeds: range

    @property
    def mark(self) -> str:
        """Its unique name within an evaluation: "POINT@REPEAT"."""
        return f"{self.point}@{self.repeat}"


@dataclass(frozen=True)
class Whole:
    """A complete evaluation, which may be split. Only parts with an equal ``Whole`` can be merged.

    of: everything else that the results depend on, as plain data: the digest of the spec, the checkpoint's SHA-256, ….
    """

    draws: tuple[Draw, ...]
    block: int
    yardsticks: Sequence[Yardstick]
    of: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        """All of it as plain data."""
        metric = [{**yardstick.describe(), "metrics": list(yardstick.metrics)} for yardstick in self.yardsticks]
        draws = [{"id": draw.point, "repeat": draw.repeat, "sampler": draw.sampler.to_dict(),
                  "seeds": [draw.seeds.start, draw.seeds.stop]} for draw in self.draws]  # fmt: skip
        return {**self.of, "metric": metric, "block": self.block, "draws": draws}


def measure_part(
    path: str | Path, denoiser: Denoiser, whole: Whole, index: int, count: int, world: World = ALONE,
    about: dict[str, Any] | None = None,
) -> int:  # fmt: skip
    """Measures part ``index`` (from 0) of ``count`` of every draw and writes its shard file; returns the image count.

    The processes of ``world`` share the part; rank 0 writes. ``about`` adds entries to the header.
    Raises UserError if the sampler gives non-finite images.
    """
    tensors: dict[str, Tensor] = {}
    rows: list[dict[str, Any]] = []
    for number, draw in enumerate(whole.draws):
        seeds = part_of(draw.seeds, whole.block, index, count)
        what = f"{draw.point} {index + 1}/{count}"
        seen = measure(denoiser, draw.sampler, seeds, whole.block, whole.yardsticks, what, world, draw.seeds)
        tensors |= {f"{number}/{name}": tensor.cpu() for name, tensor in seen.state().items()}
        rows.append({"seeds": [seeds.start, seeds.stop], "images": seen.count, "evaluations": seen.evaluations})
    if world.is_first:
        header = {"format": FORMAT, "of": whole.describe(), "part": index, "parts": count, "seen": rows}
        header |= about or {}
        save_tensors(path, tensors, header | {"checksum": checksum(tensors, header)})
    return sum(row["seeds"][1] - row["seeds"][0] for row in rows)


def merge_parts(paths: Iterable[str | Path], whole: Whole) -> list[dict[str, Any]]:
    """The results of every draw, as from ``evaluate``, merged from the shard files of all parts in any order.

    Raises UserError if a file is damaged or from another evaluation, or if a part is missing or given twice.
    """
    parts = _in_order(paths, whole)
    readers = [_read(path, whole, index, len(parts)) for index, path in enumerate(parts)]
    results = []
    for draw, *seen in zip(whole.draws, *readers, strict=True):  # one draw at a time: each has statistics of 20 groups
        total = Seen(whole.yardsticks, len(draw.seeds))
        for part in seen:
            total.merge(part)
        results.append(total.results())
    return results


def _in_order(paths: Iterable[str | Path], whole: Whole) -> list[Path]:
    """The files in order of their parts. Reads only the headers."""
    expected = whole.describe()
    found: dict[int, Path] = {}
    counts: dict[int, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path}: no such file; measure this part first, or correct the path")
        header = _header(path)
        odd = [key for key in expected if digest(header["of"].get(key)) != digest(expected[key])]
        if odd:
            raise _unfit(path, f"a part of another evaluation (its {odd[0]} differs)")
        index, count = header["part"], header["parts"]
        if index in found and count in counts:
            raise UserError(f"{path}: part {index + 1} of {count}, as {found[index]} is; name every part once")
        found[index], counts[count] = path, path
    if len(counts) > 1:
        (one, first), (other, second), *_ = counts.items()
        raise UserError(f"{first} is one of {one} parts, but {second} one of {other}; delete those of the wrong number")
    (count,) = counts or (1,)
    missing = [index + 1 for index in range(count) if index not in found]
    if missing:
        raise UserError(
            f"part {missing[0]} of {count} is missing, one of {len(missing)}; measure it and name all parts"
        )
    return [found[index] for index in range(count)]


def _read(path: Path, whole: Whole, index: int, count: int) -> Iterator[Seen]:
    """The measurements of a part, draw by draw."""
    header = _header(path)
    try:
        tensors, _ = load_tensors(path, FORMAT)
    except UserError:
        raise _unfit(path, "not a whole shard file") from None
    if header.pop("checksum") != checksum(tensors, header):
        raise _unfit(path, "damaged (its checksum differs)")
    for number, draw in enumerate(whole.draws):
        mine = f"{number}/"
        state = {name.removeprefix(mine): tensor for name, tensor in tensors.items() if name.startswith(mine)}
        try:
            seen = Seen.from_state(whole.yardsticks, state)
        except (UserError, KeyError) as error:
            raise _unfit(path, str(error)) from None
        if seen.count != len(part_of(draw.seeds, whole.block, index, count)):
            raise _unfit(path, f"has seen {seen.count} images of {draw.point}, not those of its part")
        yield seen


def _header(path: Path) -> dict[str, Any]:
    """The header of a shard file: its evaluation, its part number and the number of parts."""
    try:
        header = read_header(path, FORMAT)
    except UserError as error:
        raise _unfit(path, str(error).removeprefix(f"{path}: ")) from None
    part, parts = header.get("part"), header.get("parts")
    numbers = type(part) is int and type(parts) is int and 0 <= part < parts
    if not (numbers and isinstance(header.get("of"), dict) and "checksum" in header):
        raise _unfit(path, "not a whole shard file")
    return header


def _unfit(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}; delete it and run again")

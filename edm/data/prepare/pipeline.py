"""``prepare`` converts a source to a dataset archive: on all cores, in little memory, and resumable."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL
from tqdm import tqdm

from edm.data.forked import cores
from edm.data.labels import count_classes, empty_classes
from edm.data.prepare.expected import PAPER, SOURCES, Expected, check_split, expected_of_split
from edm.data.prepare.pictures import Images
from edm.data.prepare.sources import images_of
from edm.data.prepare.splits import held_out_part
from edm.data.prepare.workers import Work, workshop
from edm.data.zip_writer import ArchiveWriter
from edm.errors import UserError
from edm.files.hashes import digest, sha256_file
from edm.files.outputs import require_apart
from edm.files.resumable import resumable


def prepare(
    source: str,
    output: str | Path,
    path: str | Path | Sequence[str | Path] | None = None,
    *,
    images: int | None = None,
    resolution: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    source_size: int | None = None,
    checksum: str | bool = True,
    split: str | None = None,
    held_out: float | None = None,
    workers: int | None = None,
    made_from: str = "",
    settings: dict[str, Any] | None = None,
) -> dict[str, object]:
    """Writes the archive of a source. Returns its images, resolution, channels, classes, classes without images, and
    SHA-256.

    source: one of :data:`edm.data.prepare.SOURCES`. path: its input; for images also several zips, as one dataset.
    images, resolution, channels, classes, source_size: expected values, instead of the paper's
    (:data:`edm.data.prepare.PAPER`). ``resolution`` and ``channels`` also determine the size and channels of the
    archive; ``classes=0`` omits labels.
    checksum: MD5 of the CIFAR-10 tarball; True means the published one, False or "none" no check.
    split: "train" or "test", the part of the source; of images in folders, the folder of that name. held_out: instead,
    the fraction of the images that "test" has, and that other archives lack (:mod:`edm.data.prepare.splits`).
    workers: number of processes, by default one per core that this process may use; 1 uses this process only.
    settings: of a plugin's source.
    made_from: identifies the code and the preceding steps; a partial archive with another value is not resumed.

    Equal input gives equal bytes. The next run resumes an interrupted one (:mod:`edm.files.resumable`).
    Raises UserError, leaving no file, for an unknown source, for input that is damaged, dangerous or unexpected, and
    for an output that is an input or inside one.
    """
    if source not in SOURCES:
        raise UserError(f"dataset source {source!r} is unknown; choose one of {', '.join(SOURCES)}")
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}; expected a whole number from 1")
    check_split(source, split, held_out)
    expected = expected_of_split(PAPER.get(source, Expected()), source, split, held_out).with_stated(
        images=images, resolution=resolution, channels=channels, classes=classes, source_size=source_size
    )
    paths = _paths(path)
    require_apart([output], paths if isinstance(paths, list) else [paths] if paths else [])
    found = images_of(source, paths, expected, checksum, split if held_out is None else None, settings or {})
    found = found if held_out is None else held_out_part(found, split, held_out)
    labels = _checked_labels(found, expected)
    work = Work(found, expected)
    expected.require("channels", work.shape[0], found.where)
    expected.require("resolution", work.shape[2], found.where)
    with (
        workshop(min(workers or cores(), found.count)) as shop,
        resumable(Path(output), _key(source, found, expected, made_from, split, held_out)) as file,
    ):
        writer = ArchiveWriter(file)
        with tqdm(total=found.count, initial=writer.count, unit="img", unit_scale=True, disable=None) as bar:
            for png in shop(work, range(writer.count, found.count)):
                writer.add(png)
                bar.update()
        writer.finish(labels)
    return {
        "images": found.count,
        "resolution": work.shape[2],
        "channels": work.shape[0],
        "classes": count_classes(labels),
        "empty_classes": empty_classes(labels),
        "sha256": sha256_file(output),
    }


def _paths(path: str | Path | Sequence[str | Path] | None) -> Path | list[Path] | None:
    if path is None or isinstance(path, str | os.PathLike):
        return None if path is None else Path(path)
    return [Path(one) for one in path]


def _checked_labels(found: Images, expected: Expected) -> list[int] | None:
    """The labels to write. Raises UserError if the number of images or classes is not the expected one."""
    expected.require("images", found.count, found.where)
    if expected.classes == 0:
        return None
    if found.labels is None:
        if expected.classes == 1:  # images in one folder: its name is not a part of theirs
            return [0] * found.count
        if expected.classes is not None:
            raise UserError(
                f"{found.where}: has no labels, but {expected.classes} classes are expected; "
                "put each class in a folder of its own, add dataset.json, or state classes: 0"
            )
        return None
    expected.require("classes", count_classes(found.labels), f"{found.where} (labels to {max(found.labels)})")
    return found.labels


def _key(
    source: str, found: Images, expected: Expected, made_from: str, split: str | None, held_out: float | None
) -> str:
    """A key of everything that the archive depends on."""
    return digest([made_from, PIL.__version__, source, found.identity, expected.resolution, expected.channels,
                   expected.classes == 0, split, held_out])  # fmt: skip

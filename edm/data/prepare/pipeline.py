"""``prepare``: a source in, a dataset archive out. On all cores, in little memory, and never twice the same work."""

import os
from collections.abc import Sequence
from pathlib import Path

import PIL
from tqdm import tqdm

from edm.data.archive import ArchiveWriter
from edm.data.prepare.expected import PAPER, SOURCES, Expected
from edm.data.prepare.pictures import Images
from edm.data.prepare.sources import READERS
from edm.data.prepare.workers import Work, cores, workshop
from edm.errors import UserError
from edm.files.resumable import resumable
from edm.files.writing import digest, sha256_file


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
    workers: int | None = None,
    made_from: str = "",
) -> dict[str, object]:
    """Writes the archive of a source. Returns its images, resolution, channels, classes and SHA-256.

    source: one of :data:`edm.data.prepare.SOURCES`. path: its input; for images also several zips, as one dataset.
    images, resolution, channels, classes, source_size: what is expected, instead of what the paper used
    (:data:`edm.data.prepare.PAPER`). ``resolution`` and ``channels`` also decide what images are turned into,
    ``classes=0`` leaves labels out.
    checksum: MD5 of the CIFAR-10 tarball; True is the published one, False or "none" none.
    workers: processes, by default one per core that this process may use; 1 does everything in this one.
    made_from: names code and steps before this one; an archive begun with another is not continued.

    Equal input gives equal bytes. An interrupted run is continued by the next (:mod:`edm.files.resumable`).
    Raises UserError for an unknown source, input that is damaged, dangerous or not what is expected; nothing is left
    behind then.
    """
    if source not in SOURCES:
        raise UserError(f"dataset source {source!r} is unknown; choose one of {', '.join(SOURCES)}")
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}; expected a whole number from 1")
    expected = PAPER[source].with_stated(
        images=images, resolution=resolution, channels=channels, classes=classes, source_size=source_size
    )
    found = READERS[source](_paths(path), expected, checksum)
    labels = _checked_labels(found, expected)
    work = Work(found, expected)
    expected.require("channels", work.shape[0], found.where)
    expected.require("resolution", work.shape[2], found.where)
    with (
        workshop(min(workers or cores(), found.count)) as shop,
        resumable(Path(output), _key(source, found, expected, made_from)) as file,
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
        "classes": 0 if labels is None else len(set(labels)),
        "sha256": sha256_file(output),
    }


def _paths(path: str | Path | Sequence[str | Path] | None) -> Path | list[Path] | None:
    if path is None or isinstance(path, str | os.PathLike):
        return None if path is None else Path(path)
    return [Path(one) for one in path]


def _checked_labels(found: Images, expected: Expected) -> list[int] | None:
    """The labels to write. Raises UserError where images or classes are not as many as expected."""
    expected.require("images", found.count, found.where)
    if expected.classes == 0:
        return None
    if found.labels is None:
        if expected.classes is not None:
            raise UserError(
                f"{found.where}: has no labels, but {expected.classes} classes are expected; "
                "put each class in a folder of its own, add dataset.json, or state classes: 0"
            )
        return None
    expected.require("classes", len(set(found.labels)), found.where)
    if expected.classes is not None and max(found.labels) >= expected.classes:
        raise UserError(f"{found.where}: labels reach {max(found.labels)}; expected 0 to {expected.classes - 1}")
    return found.labels


def _key(source: str, found: Images, expected: Expected, made_from: str) -> str:
    """Name of everything that the archive depends on."""
    return digest([made_from, PIL.__version__, source, found.identity, expected.resolution, expected.channels,
                   expected.classes == 0])  # fmt: skip

"""Hostile archives, folders, tarballs and idx files, and the images in them: the doors of ``prepare`` and of datasets.

python tests/fuzz/fuzz_archives.py --count 2000 --seed 1
"""

import functools
import gzip
import io
import json
import os
import pickle
import random
import shutil
import stat
import struct
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from door import Inputs, command
from hostile_images import any_image, bent, image, largest_png
from hostile_zips import deflated, zip_of_zeros

from edm.data.archive import images_in_chunks, read_archive, write_archive
from edm.data.prepare import prepare
from edm.data.prepare.made_up import cifar_batch, idx_file
from edm.errors import UserError

HOME = Path(tempfile.gettempdir()) / f"fuzz-archives-{os.getpid()}"
CANARY = HOME / "executed"
NAMES = ["../a.png", "/a.png", "a/../../b.png", "a\\b.png", "..\\b.png", "C:\\a.png", "C:/a.png", "12:30.png",
         "a//b.png", "./a.png", ".", "..", "", "a\0b.png", "a\nb.png", "a" * 5000 + ".png", "é.png",
         unicodedata.normalize("NFD", "é.png"), "__MACOSX/._a.png", ".DS_Store", "a/.DS_Store", "Thumbs.db",
         "LICENSE", "dataset.json", "a/dataset.json",
         "\u202egnp.exe", "ﬁ.png", "a.png/b.png", "a.PNG", "\ud800.png", "{x}.png", "%s.png", "-rf.png"]  # fmt: skip
LABELS = ["0", "1", "-1", "1.0", "true", "null", "9" * 5000, "1e999", "NaN", '"1"', "[0]", "999999", "1000000", "{}"]


class Payload:
    """Pickles to a call that would create the canary."""

    def __init__(self, which: int) -> None:
        path = str(CANARY)
        self.call = [(os.mkdir, (path,)), (open, (path, "w")), (eval, (f"open({path!r}, 'w')",))][which % 3]

    def __reduce__(self) -> tuple:
        return self.call


# Zips and folders -----------------------------------------------------------------------------------------------------


def files(draw: random.Random) -> dict[str, bytes]:
    """Some images in class folders, at times below another folder, with or without a dataset.json."""
    top, found = draw.choice(["", "", "set/", "a/b/c/", "x:y/"]), {}
    for number in range(draw.choice([1, 2, 6])):
        content, suffix = any_image(draw) if draw.random() < 0.4 else (image("PNG", "RGB", number), ".png")
        found[f"{top}{draw.choice(['', 'cat/', 'dog/'])}{number}{suffix}"] = content
    if draw.random() < 0.5:
        found[f"{draw.choice([top, ''])}dataset.json"] = labels(draw, [name.removeprefix(top) for name in found])
    for _ in range(draw.choice([0, 0, 1, 2])):
        found[draw.choice(NAMES)] = draw.choice([image("PNG", "RGB", 9), b"", b"x" * 100, any_image(draw)[0]])
    return found


def labels(draw: random.Random, names: list[str]) -> bytes:
    """A dataset.json for some names, which may be wrong in its names, its labels or its form."""
    spelling = draw.choice(["NFC", "NFC", "NFD", "NFKC"])
    entries = [f"[{json.dumps(unicodedata.normalize(spelling, name))}, {draw.choice(LABELS[:2])}]" for name in names]
    if draw.random() < 0.5:
        entries[draw.randrange(len(entries))] = f'["{draw.choice(names)}", {draw.choice(LABELS)}]'
    text = f'{{"labels": {draw.choice(["null", "3"]) if draw.random() < 0.2 else "[" + ", ".join(entries) + "]"}}}'
    if draw.random() < 0.2:
        number = '{"labels": ' + "9" * 4000 + "}"
        text = draw.choice(["[" * 100_000, text * 2, text[:-3], "{" * 9999, number, '"\\ud800"'])
    return text.encode() if draw.random() < 0.8 else bent(draw, text.encode())


def zipped(draw: random.Random, found: dict[str, bytes]) -> bytes:
    """A zip of some files, with modes, methods and systems of other programs, and claims that may be false."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in found.items():
            info = zipfile.ZipInfo("x")
            info.filename = name.encode("utf-8", "replace").decode()
            info.compress_type = draw.choice([0, 0, 8, 8, 12, 14]) if draw.random() < 0.3 else 8
            info.create_system = draw.choice([0, 3, 10, 19])
            info.external_attr = draw.choice([0, stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, 0o600 | stat.S_IFREG]) << 16
            archive.writestr(info, content)
    data = bytearray(file.getvalue())
    if draw.random() < 0.3:  # another size, method, flag or place in the directory, and at times before the bytes
        at = draw.choice([i for i in range(len(data)) if data.startswith(b"PK\1\2", i)])
        place, layout = draw.choice([(8, "<H"), (10, "<H"), (20, "<I"), (24, "<I"), (42, "<I"), (28, "<H"), (16, "<I")])
        struct.pack_into(layout, data, at + place, draw.choice([0, 1, 9, 99, 0xFFFF]))
    return bent(draw, bytes(data)) if draw.random() < 0.3 else bytes(data)


def unfolding(draw: random.Random) -> bytes:
    """A small zip that holds much: large images, large members, many members, a zip in a zip."""
    kind = draw.randrange(5)
    found = {"dataset.json": b'{"labels": null}'}
    if kind == 0:
        found |= {f"{i}.png": largest_png(draw.choice([4096, 8192]), draw.choice([0, 2, 6])) for i in range(4)}
    elif kind == 1:
        found |= {f"{i}.png": bytes(60 << 20) for i in range(2)}
    elif kind == 2:
        found |= {f"{i // 100}/{i}.png": image("PNG", "L") for i in range(3000)}
    elif kind == 3:
        found |= {"a.zip": zipped(draw, found | {"0.png": largest_png(8192, 2)})}
    else:  # a member of a gibibyte, whose size the directory states or hides
        return zip_of_zeros({}, "0.png", b"", 1 << 30, draw.choice([1 << 30, 1000, 1 << 26, 0xFFFFFFFF]))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in found.items():
            archive.writestr(name, content)
    return file.getvalue()


def tree(draw: random.Random, folder: Path) -> Path:
    """The same on disk, with links, pipes and zips among the files."""
    for name, content in files(draw).items():
        path = folder / name.replace("..", "_").lstrip("/")[:200].replace("\0", "_").encode("utf-8", "replace").decode()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError:  # a name that is a folder already
            continue
    extra = draw.randrange(8)
    if extra == 0:
        os.mkfifo(folder / "pipe.png")
    elif extra == 1:
        (folder / "loop").symlink_to(folder)
    elif extra == 2:
        (folder / "zero.png").symlink_to("/dev/zero")
    elif extra == 3:
        (folder / "sparse.png").write_bytes(b"")
        os.truncate(folder / "sparse.png", 1 << 40)
    elif extra == 4:
        (folder / "a.zip").write_bytes(zipped(draw, files(draw)))
    return folder


# CIFAR-10 and MNIST ---------------------------------------------------------------------------------------------------


@functools.cache
def batches() -> tuple[bytes, ...]:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    return tuple(cifar_batch(pixels, [i % 10] * 4) for i in range(5))


def tarball(draw: random.Random) -> bytes:
    """A tarball like CIFAR-10's, with batches, headers or compression that are hostile."""
    file, odd = io.BytesIO(), draw.randrange(5)
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number, batch in enumerate(batches()):
            info = tarfile.TarInfo(draw.choice([f"c/data_batch_{number + 1}"] * 9 + NAMES[:3]))
            if number == odd:
                info.type = draw.choice(
                    [tarfile.REGTYPE] * 6 + [tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE]
                )
                batch = draw.choice([
                    bent(draw, batch), bent(draw, batch), pickle.dumps(Payload(draw.randrange(3)), draw.randrange(6)),
                    pickle.dumps({b"data": Payload(draw.randrange(3)), b"labels": [0]}, 2), b"\x80\x02" + b"(" * 99_999,
                    b"\x80\x02X" + draw.randbytes(4) + b"a", b"\x80\x02" + b"]q\0h\0a" * 99_999 + b".",
                ])  # fmt: skip
            info.size = len(batch)
            archive.addfile(info, io.BytesIO(batch))
    data = file.getvalue()
    data = gzip.compress(bent(draw, data) if draw.random() < 0.3 else data, 1)
    if draw.random() < 0.05:  # a second part of the stream, of zeros
        data += b"\x1f\x8b\x08" + bytes(7) + deflated(b"", 300 << 20) + bytes(8)
    return bent(draw, data) if draw.random() < 0.3 else data


def idx(draw: random.Random, folder: Path) -> Path:
    """The two files of MNIST, whose claims may be false, compressed or not."""
    for name, array in (("train-images-idx3-ubyte", np.zeros((4, 28, 28), np.uint8)),
                        ("train-labels-idx1-ubyte", np.arange(4, dtype=np.uint8))):  # fmt: skip
        data = bytearray(idx_file(array))
        if draw.random() < 0.5:
            struct.pack_into(">I", data, 4 * draw.randrange(len(data) // 4 if len(data) < 20 else 4),
                             draw.choice([0, 1, 0x803, 2**28, 2**32 - 1]))  # fmt: skip
        data, ending = bytes(data) + draw.choice([b"", b"", b"x", bytes(99)]), draw.choice(["", ".gz"])
        data = gzip.compress(data) if ending else data
        (folder / (name + ending)).write_bytes(bent(draw, data) if draw.random() < 0.4 else data)
    return folder


# Calls ----------------------------------------------------------------------------------------------------------------


def prepared(folder: Path, source: str, path: Path, **options: object) -> None:
    """``prepare``. A refusal must leave nothing behind."""
    out = folder / "out"
    try:
        prepare(source, out / "o.zip", path, workers=1, **options)
    except UserError:
        if out.exists() and list(out.iterdir()):
            raise AssertionError(f"a refusal left {[file.name for file in out.iterdir()]}") from None
        raise


def one(number: int, seed: int) -> None:
    """Makes and reads input ``number`` of a seed."""
    draw = random.Random(f"{seed}-{number}")
    folder = Path(tempfile.mkdtemp(dir=HOME))
    try:
        kind, path = draw.randrange(12), folder / "in.zip"
        if kind == 0:
            path.write_bytes(tarball(draw))
            prepared(folder, "cifar10", path, checksum=False, images=20)
        elif kind == 1:
            (folder / "idx").mkdir()
            prepared(folder, "mnist", idx(draw, folder / "idx"), images=4)
        elif kind <= 3:
            (folder / "in").mkdir()
            prepared(folder, "folder", tree(draw, folder / "in"), **asked(draw))
        else:
            if kind == 4:
                path.write_bytes(unfolding(draw))
            elif kind == 5:
                write_archive(path, np.zeros((5, 3, 8, 8), np.uint8), [0, 1, 0, 1, 2])
                path.write_bytes(bent(draw, path.read_bytes()))
            else:
                path.write_bytes(zipped(draw, files(draw)))
            READERS[draw.randrange(len(READERS))](draw, folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def asked(draw: random.Random) -> dict[str, int]:
    options = {"resolution": [8, 12, 64], "channels": [1, 3], "classes": [0, 1, 2, 3]}
    return {name: draw.choice(values) for name, values in options.items() if draw.random() < 0.5}


READERS: list[Callable[[random.Random, Path, Path], object]] = [
    lambda draw, folder, path: prepared(folder, "zip", path, **asked(draw)),
    lambda draw, folder, path: prepared(folder, draw.choice(["imagenet", "ffhq"]), path),
    lambda draw, folder, path: read_archive(path),
    lambda draw, folder, path: [len(part) for part in images_in_chunks(path)],
]


def generate(count: int, seed: int) -> Inputs:
    HOME.mkdir(exist_ok=True)
    return _inputs(count, seed)


def _inputs(count: int, seed: int) -> Iterator[tuple[str, Callable[[], None]]]:
    try:
        for number in range(count):
            yield f"seed {seed}, input {number}", functools.partial(one, number, seed)
    finally:
        shutil.rmtree(HOME, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(command(generate, __doc__, canary=CANARY))

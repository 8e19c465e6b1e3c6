"""Synthetic raw data in the layout of each source, for dry runs without the real data: see :func:`made_up`."""

import gzip
import io
import os
import pickle
import shutil
import struct
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from edm.errors import UserError
from edm.files.writing import atomic_write

#: Names of classes in the real data; ImageNet's start at its first synset.
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
AFHQV2 = ("cat", "dog", "wild")
_FIRST_SYNSET = 1440764
_GREY_EVERY = 7  # images of synthetic ImageNet; some of the real photographs are grey

#: The files of a synthetic source: (name, content) each.
_Files = Iterator[tuple[str, bytes]]


def made_up(
    kind: str, path: str | Path, images: int, seed: int = 0, *, side: int | None = None, classes: int | None = None
) -> dict[str, object]:
    """Creates a synthetic raw dataset at ``path`` in the layout of a source; returns the arguments for ``prepare``.

    kind: "cifar10" (a tarball), "mnist" (idx files), "ffhq", "afhqv2", "imagenet" or "folder" (trees of images).
    images: size of the training set; test sets, which ``prepare`` does not read, are additional. seed: each seed gives
    different pictures. side: pixels, by default 64; imagenet's pictures have sides of up to twice that, CIFAR-10's and
    MNIST's have fixed sides. classes: of imagenet and folder, by default 3, at most ``images``.

    Equal arguments give equal pictures: gradients in the colours of their class with a few shapes on top. The write is
    atomic. Raises UserError if ``path`` exists, so that synthetic data never replace real data, and for invalid
    arguments.
    """
    path = Path(path)
    _check(kind, path, images, side, classes)
    if kind == "cifar10":
        with atomic_write(path) as temporary:
            _write_tarball(temporary, _cifar10(images, seed))
        return {"images": images, "classes": min(10, images), "checksum": "none"}
    if kind == "mnist":
        _write_folder(path, _mnist(images, seed))
        return {"images": images, "classes": min(10, images)}
    if kind in ("ffhq", "afhqv2"):
        side = side or 64
        _write_folder(path, _TREES[kind](images, seed, side), images)
        return {"images": images, "source_size": side}
    classes = min(classes or 3, images)
    _write_folder(path, _TREES[kind](images, seed, side or 64, classes), images)
    return {"images": images, "classes": classes}


def _check(kind: str, path: Path, images: int, side: int | None, classes: int | None) -> None:
    kinds = ("cifar10", "mnist", *_TREES)
    if kind not in kinds:
        raise UserError(f"synthetic data of kind {kind!r} are unknown; choose one of {', '.join(kinds)}")
    least = 5 if kind == "cifar10" else 1  # each of the five batches needs an image
    if images < least:
        raise UserError(f"synthetic {kind}: images is {images}; expected a whole number from {least}")
    if side is not None and (side < 8 or kind in ("cifar10", "mnist")):
        raise UserError(f"synthetic {kind}: side is {side}; CIFAR-10 and MNIST have a fixed side, others at least 8")
    if classes is not None and (classes < 1 or kind not in ("imagenet", "folder")):
        raise UserError(f"synthetic {kind}: classes is {classes}; choose at least 1 for imagenet and folder, else none")
    if path.exists() and not (path.is_dir() and kind != "cifar10" and not any(path.iterdir())):
        raise UserError(f"{path}: exists already; synthetic data replace nothing: remove it or name another place")


# Pictures -------------------------------------------------------------------------------------------------------------


def picture(seed: int, index: int, width: int, height: int, label: int) -> np.ndarray:
    """A picture uint8 [height, width, 3]: a smooth gradient in the colours of its class, and one to three shapes."""
    rng = np.random.default_rng([seed, index])
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    angle = rng.uniform(0, 2 * np.pi)
    along = 0.5 + (x - 0.5) * np.cos(angle) / 2 + (y - 0.5) * np.sin(angle) / 2
    image = _between(along, _colour(rng, label), _colour(rng, label))
    for _ in range(rng.integers(1, 4)):
        across, down = x - rng.uniform(0.2, 0.8), y - rng.uniform(0.2, 0.8)
        size = rng.uniform(0.1, 0.3)
        distance = np.hypot(across, down) if rng.random() < 0.5 else np.maximum(abs(across), abs(down))
        inside = np.clip((size - distance) * max(width, height) / 2 + 0.5, 0, 1)  # an edge two pixels wide
        image += inside[:, :, None] * (_colour(rng, label + 1 + int(rng.integers(3))) - image)
    return np.rint(255 * image).astype(np.uint8)


def _colour(rng: np.random.Generator, label: int) -> np.ndarray:
    """A colour with a hue near that of its class; the hues of neighbouring classes differ widely."""
    hue = label * 0.618 + rng.uniform(-0.05, 0.05)
    wheel = 0.5 + 0.5 * np.cos(2 * np.pi * (hue + np.array([0, 1, 2]) / 3))
    return np.clip(wheel * rng.uniform(0.6, 1) + rng.uniform(-0.1, 0.1), 0, 1)


def _between(along: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first + along[:, :, None] * (second - first)


def _file(image: np.ndarray, format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=format)
    return buffer.getvalue()


def _grey(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).convert("L"))


def _bright_on_black(image: np.ndarray) -> np.ndarray:
    """The brighter half of a grey image, stretched to the whole range, on black."""
    low, high = int(image.min()), int(image.max())
    levels = (image.astype(float) - low) / max(high - low, 1)
    return np.rint(255 * np.clip(2 * levels - 1, 0, 1)).astype(np.uint8)


# Layouts --------------------------------------------------------------------------------------------------------------


def _cifar10(images: int, seed: int) -> _Files:
    """Five batches of training images of mixed classes, a test batch a tenth of their size in all, and class names."""
    bounds = [images * i // 5 for i in range(6)]
    tests = max(1, images // 10)
    meta = {b"num_cases_per_batch": -(-images // 5), b"label_names": [n.encode() for n in CIFAR10], b"num_vis": 3072}
    yield "batches.meta", pickle.dumps(meta, protocol=2)
    parts = [(f"data_batch_{i}", range(bounds[i - 1], bounds[i]), b"training batch %d of 5" % i) for i in range(1, 6)]
    for name, part, title in [*parts, ("test_batch", range(images, images + tests), b"testing batch 1 of 1")]:
        pixels = np.stack([picture(seed, i, 32, 32, i % 10).transpose(2, 0, 1).ravel() for i in part])
        names = [b"%s_s_%06d.png" % (CIFAR10[i % 10].encode(), i) for i in part]
        yield name, cifar_batch(pixels, [i % 10 for i in part], title, names)


def cifar_batch(images: np.ndarray, labels: list[int], title: bytes = b"made up", names: Sequence[bytes] = ()) -> bytes:
    """A batch of CIFAR-10 from uint8 [N, 3072], with the entries and the pickle protocol of the official files."""
    content = {b"batch_label": title, b"labels": labels, b"data": images, b"filenames": list(names)}
    return pickle.dumps(content, protocol=2)


def _mnist(images: int, seed: int) -> _Files:
    """Bright shapes on black: a training set, and a test set a tenth as large."""
    tests = max(1, images // 10)
    for name, part in (("train", range(images)), ("t10k", range(images, images + tests))):
        labels = np.array([i % 10 for i in part], dtype=np.uint8)
        pixels = np.stack([_bright_on_black(_grey(picture(seed, i, 28, 28, i % 10))) for i in part])
        for what, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            yield f"{name}-{what}-ubyte.gz", gzip.compress(idx_file(array), mtime=0)


def idx_file(array: np.ndarray) -> bytes:
    """An idx file of a uint8 array: type, number and sizes of dimensions, bytes."""
    return struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.tobytes()


def _ffhq(images: int, seed: int, side: int) -> _Files:
    """One folder per thousand images."""
    for i in range(images):
        yield f"{i // 1000 * 1000:05d}/{i:05d}.png", _file(picture(seed, i, side, side, i), "PNG")


def _afhqv2(images: int, seed: int, side: int) -> _Files:
    """Three animals in a training and a test set, both in the dataset (Section 7); every tenth is a test image."""
    for i in range(images):
        part, animal = ("test" if i % 10 == 9 else "train"), AFHQV2[i % 3]
        yield f"{part}/{animal}/flickr_{animal}_{i:06d}.png", _file(picture(seed, i, side, side, i % 3), "PNG")


def _imagenet(images: int, seed: int, side: int, classes: int) -> _Files:
    """Photographs of various sizes, portrait and landscape, some of them grey, in one folder per synset."""
    for i in range(images):
        label = i % classes
        rng = np.random.default_rng([seed, i, 1])
        size = [side + int(rng.integers(side // 2)), side + int(rng.integers(side))]
        width, height = rng.permutation(size).tolist()
        image = picture(seed, i, width, height, label)
        synset = f"n{_FIRST_SYNSET + label:08d}"
        yield f"{synset}/{synset}_{i}.JPEG", _file(_grey(image) if i % _GREY_EVERY == 3 else image, "JPEG")


def _folder(images: int, seed: int, side: int, classes: int) -> _Files:
    """One folder per class."""
    for i in range(images):
        label = i % classes
        yield f"class-{label:03d}/{i:06d}.png", _file(picture(seed, i, side, side, label), "PNG")


_TREES: dict[str, Callable[..., _Files]] = {
    "ffhq": _ffhq, "afhqv2": _afhqv2, "imagenet": _imagenet, "folder": _folder,
}  # fmt: skip


# Writing --------------------------------------------------------------------------------------------------------------


def _write_folder(path: Path, files: _Files, count: int | None = None) -> None:
    """Writes files to a temporary folder beside ``path``, renamed to ``path`` when complete."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        whole = temporary / path.name  # mkdtemp's folder is accessible only to its owner
        for name, content in tqdm(files, total=count, unit="img", unit_scale=True, disable=None):
            (whole / name).parent.mkdir(parents=True, exist_ok=True)
            (whole / name).write_bytes(content)
        os.replace(whole, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); check the folder and the disk") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_tarball(path: Path, files: _Files) -> None:
    """A tar.gz of the files in CIFAR-10's folder, without dates, so that equal files give equal bytes."""
    with (
        open(path, "wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w") as archive,
    ):
        for name, content in files:
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

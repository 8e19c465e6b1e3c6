"""Made-up datasets of each layout, small enough to be made anew for every test."""

import gzip
import io
import json
import tarfile
import zipfile

import numpy as np
from PIL import Image

from edm.data.prepare.made_up import cifar_batch, idx_file


def picture(seed, width=16, height=16, mode="RGB", format="PNG"):
    """Bytes of an image file of noise."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)
    image = Image.frombytes(mode, (width, height), noise.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format=format)
    return buffer.getvalue()


def write_folder(top, files):
    for name, content in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(content)
    return top


def write_zip(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def labels_file(labels):
    return json.dumps({"labels": labels}).encode()


def write_tarball(path, members):
    """A tar.gz of (name or TarInfo, content)."""
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def cifar_members(per_batch=4):
    """Members of a small tarball, with the pixels uint8 [5 per_batch, 3072] and labels that it holds."""
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (5 * per_batch, 3072), dtype=np.uint8)
    labels = [i % 10 for i in range(5 * per_batch)]
    members = [("cifar-10-batches-py/batches.meta", b"not read"), ("cifar-10-batches-py/test_batch", b"not read")]
    for i in reversed(range(5)):  # the official tarball is not in order either
        part = slice(i * per_batch, (i + 1) * per_batch)
        members.append((f"cifar-10-batches-py/data_batch_{i + 1}", cifar_batch(images[part], labels[part])))
    return members, images, labels


def write_mnist(folder, images, labels, compress=False):
    folder.mkdir(exist_ok=True)
    for name, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        content = idx_file(array)
        (folder / (name + ".gz" * compress)).write_bytes(gzip.compress(content) if compress else content)
    return folder

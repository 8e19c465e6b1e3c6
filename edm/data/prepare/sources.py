"""The sources by name. Each is a function that returns images and labels, given its input and expected properties."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edm import registry
from edm.data.labels import LABELS_FILE, read_labels, require_distinct, shown
from edm.data.prepare import cifar, idx
from edm.data.prepare.expected import TRAIN, Expected
from edm.data.prepare.pictures import Images
from edm.data.prepare.splits import subset
from edm.data.trees import Tree, open_tree
from edm.errors import UserError, require
from edm.files.hashes import digest

Input = Path | Sequence[Path] | None
#: split: the part of the source, or None for all of a folder and the training images of others.
Source = Callable[[Input, Expected, str | bool, str | None], Images]
_SYNSET = re.compile(r"n\d{8}")


@registry.register("source", "digits")
def digits(path: Input, expected: Expected, checksum: str | bool, split: str | None) -> Images:
    """The 1,797 handwritten digits that scikit-learn ships: 8×8, grey, 10 classes (Alpaydin and Kaynak, UCI, 1998).

    Their 17 levels 0…16 are scaled to 0…255.
    """
    if path is not None:
        raise UserError(f"{path}: the digits come with scikit-learn and take no input file")
    require("sklearn")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return Images("digits", len(images), images.__getitem__, bunch.target.tolist(), "digits")


@registry.register("source", "cifar10")
def cifar10(path: Input, expected: Expected, checksum: str | bool, split: str | None) -> Images:
    """cifar-10-python.tar.gz. Checks its MD5, by default against the published one."""
    return cifar.cifar10(_one(path, "cifar-10-python.tar.gz"), _md5(checksum), split or TRAIN)


def _md5(checksum: str | bool) -> str | None:
    if isinstance(checksum, str) and checksum != "none":
        return checksum
    return cifar.MD5 if checksum is True else None


@registry.register("source", "mnist")
def mnist(path: Input, expected: Expected, checksum: str | bool, split: str | None) -> Images:
    """The idx files of MNIST's training or test set."""
    folder = _one(path, "the folder of train-images-idx3-ubyte")
    return idx.mnist(folder, split or TRAIN, padded=expected.resolution != 28)


@registry.register("source", "imagenet")
def imagenet(path: Input, expected: Expected, checksum: str | bool, split: str | None) -> Images:
    """ILSVRC-2012's train folders, one per synset (n01440764, …); the class is the rank of the synset's name."""
    tree = _tree(path, "ILSVRC's train folder")
    stray = next((name for name in tree.names if "/" not in name or not _SYNSET.fullmatch(name.split("/")[0])), None)
    if stray is not None:
        raise UserError(f"{tree.where}: {shown(stray)} is not in a folder named as a synset (n and eight digits)")
    return _images(tree, _labels_by_folder(tree))


def folder(path: Input, expected: Expected, checksum: str | bool, split: str | None) -> Images:
    """Any folder or zip of images. Labels come from dataset.json, else from the top-level folders, else it has no
    labels.

    A folder that contains all images is not a class. With ``classes: 0`` (FFHQ, AFHQv2) folders are not classes.
    split: only the images of the folder ``train`` or ``test``.
    """
    tree = _tree(path, "a folder or zip of images")
    labels = None
    if expected.classes != 0 and tree.labels_file is not None:
        labels = read_labels(tree.labels_file, tree.names, tree.where)
    elif expected.classes != 0 and split is None:
        labels = _labels_by_folder(tree)
    if split is None:
        return _images(tree, labels)
    kept = [i for i, name in enumerate(tree.names) if name.startswith(f"{split}/")]
    if not kept:
        raise UserError(f"{tree.where}: has no folder {split}/; add one, or hold out a part by name (held_out: 0.1)")
    part = subset(_images(tree, labels), kept)
    if expected.classes == 0 or tree.labels_file is not None:
        return part
    inside = [tree.names[i].removeprefix(f"{split}/") for i in kept]
    return replace(part, labels=_labels_by_folder(replace(tree, names=inside)))


for _name in ("ffhq", "afhqv2", "folder", "zip"):
    registry.register("source", _name)(folder)


def images_of(
    source: str, path: Input, expected: Expected, checksum: str | bool, split: str | None, settings: dict[str, Any]
) -> Images:
    """The images of a source by its name; settings: of a plugin's."""
    part = registry.find("source", source)
    if part.own:
        own: Source = part.make
        return own(path, expected, checksum, split)
    found = part(path, **part.check_settings(settings))
    if not isinstance(found, tuple) or len(found) != 2:
        raise UserError(f"{part.where}: returned {type(found).__name__}; expected (images, labels)")
    images, labels = found
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        told = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise UserError(f"{part.where}: returned images {told}; expected uint8 [n, C, H, W]")
    if labels is not None:
        labels = [int(label) for label in labels]
        if len(labels) != len(images) or min(labels) < 0:
            raise UserError(f"{part.where}: returned {len(labels)} labels for {len(images)} images, from {min(labels)}")
    content = hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()
    return Images(part.label, len(images), images.__getitem__, labels, digest([content, labels]))


def _one(path: Input, what: str) -> Path:
    if path is None:
        raise UserError(f"this source needs an input: the path of {what}")
    if not isinstance(path, Path):
        raise UserError(f"{', '.join(map(str, path))}: this source takes one input, {what}")
    return path


def _tree(path: Input, what: str) -> Tree:
    if path is None:
        raise UserError(f"this source needs an input: the path of {what}")
    return open_tree(path)


def _images(tree: Tree, labels: list[int] | None) -> Images:
    return Images(tree.where, len(tree.names), lambda i: tree.read(tree.names[i]), labels, tree.identity, tree.names)


def _labels_by_folder(tree: Tree) -> list[int] | None:
    folders = [name.split("/")[0] if "/" in name else None for name in tree.names]
    classes = set(folders)
    if classes == {None}:
        return None
    if None in classes:
        stray = tree.names[folders.index(None)]
        raise UserError(
            f"{tree.where}: {shown(stray)} is beside class folders; put it into one, add {LABELS_FILE}, "
            "or state classes: 0"
        )
    named = [folder for folder in folders if folder is not None]
    ranks = {name: rank for rank, name in enumerate(sorted(set(named)))}
    require_distinct(ranks, tree.where)
    return [ranks[name] for name in named]

"""The sources by name. Each is a function that returns images and labels, given its input and expected properties."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edm.data.labels import LABELS_FILE, read_labels, require_distinct, shown
from edm.data.prepare import cifar, idx
from edm.data.prepare.expected import Expected
from edm.data.prepare.pictures import Images
from edm.data.trees import Tree, open_tree
from edm.errors import UserError, require

Input = Path | Sequence[Path] | None
Source = Callable[[Input, Expected, str | bool], Images]
_SYNSET = re.compile(r"n\d{8}")


def digits(path: Input, expected: Expected, checksum: str | bool) -> Images:
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


def cifar10(path: Input, expected: Expected, checksum: str | bool) -> Images:
    """cifar-10-python.tar.gz. Checks its MD5, by default against the published one."""
    return cifar.cifar10(_one(path, "cifar-10-python.tar.gz"), _md5(checksum))


def _md5(checksum: str | bool) -> str | None:
    if isinstance(checksum, str) and checksum != "none":
        return checksum
    return cifar.MD5 if checksum is True else None


def mnist(path: Input, expected: Expected, checksum: str | bool) -> Images:
    """The idx files of MNIST's training set."""
    return idx.mnist(_one(path, "the folder of train-images-idx3-ubyte"), padded=expected.resolution != 28)


def imagenet(path: Input, expected: Expected, checksum: str | bool) -> Images:
    """ILSVRC-2012's train folders, one per synset (n01440764, …); the class is the rank of the synset's name."""
    tree = _tree(path, "ILSVRC's train folder")
    stray = next((name for name in tree.names if "/" not in name or not _SYNSET.fullmatch(name.split("/")[0])), None)
    if stray is not None:
        raise UserError(f"{tree.where}: {shown(stray)} is not in a folder named as a synset (n and eight digits)")
    return _images(tree, _labels_by_folder(tree))


def folder(path: Input, expected: Expected, checksum: str | bool) -> Images:
    """Any folder or zip of images. Labels come from dataset.json, else from the top-level folders, else it has no
    labels.

    A folder that contains all images is not a class. With ``classes: 0`` (FFHQ, AFHQv2) folders are not classes.
    """
    tree = _tree(path, "a folder or zip of images")
    if expected.classes == 0:
        return _images(tree, None)
    if tree.labels_file is None:
        return _images(tree, _labels_by_folder(tree))
    return _images(tree, read_labels(tree.labels_file, tree.names, tree.where))


#: Every source by its name, in the order of :data:`edm.data.prepare.SOURCES`.
READERS: dict[str, Source] = {
    "digits": digits, "cifar10": cifar10, "mnist": mnist, "ffhq": folder, "afhqv2": folder, "imagenet": imagenet,
    "folder": folder, "zip": folder,
}  # fmt: skip


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

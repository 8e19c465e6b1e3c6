"""The training and the test part of a source: its own, or a fraction of the images held out by name."""

import hashlib
import unicodedata
from collections.abc import Sequence

from edm.data.prepare.expected import TEST
from edm.data.prepare.pictures import Images
from edm.errors import UserError


def held_out_part(found: Images, split: str | None, fraction: float) -> Images:
    """The images that are held out (split "test"), or all others.

    A hash of an image's name, or of its number in a source without names, decides: other images do not matter.
    Raises UserError if no image is left.
    """
    names = found.names or [str(i) for i in range(found.count)]
    kept = [i for i, name in enumerate(names) if (_place(name) < fraction) == (split == TEST)]
    if not kept:
        raise UserError(f"{found.where}: held_out: {fraction:g} of {found.count} images leaves none for one split")
    return subset(found, kept)


def subset(found: Images, kept: Sequence[int]) -> Images:
    """Some images of a source, in the order of ``kept``."""
    labels = None if found.labels is None else [found.labels[i] for i in kept]
    names = [found.names[i] for i in kept] if found.names else found.names
    return Images(found.where, len(kept), lambda i: found.read(kept[i]), labels, found.identity, names)


def _place(name: str) -> float:
    """A number from 0 to 1 for each name, in any Unicode spelling of it."""
    name = unicodedata.normalize("NFC", name)
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8]) / 2**64

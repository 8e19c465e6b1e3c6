"""Class labels: reads dataset.json and counts classes, for archives and raw data."""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from edm.errors import UserError

LABELS_FILE = "dataset.json"
MOST_CLASSES = 1_000_000  # limit for any network


def count_classes(labels: Sequence[int] | np.ndarray | None) -> int:
    """The number of classes: the largest label + 1, as the authors' tools count; 0 without labels.

    >>> count_classes([0, 5, 9])
    10
    """
    return 0 if labels is None else int(np.max(labels)) + 1


def empty_classes(labels: Sequence[int] | np.ndarray | None) -> list[int]:
    """The classes below the largest label without images: [1, 2] for the labels 0, 3."""
    return [] if labels is None else np.flatnonzero(np.bincount(labels) == 0).tolist()


def described(count: int, empty: Sequence[int]) -> str:
    """A number of classes in words, with the classes without images: "10 classes (7 without images: 1, 2, …)"."""
    few = ", ".join(map(str, empty[:8])) + ", …" * (len(empty) > 8)
    return f"{count} class{'es' * (count != 1)}" + (f" ({len(empty)} without images: {few})" if empty else "")


def class_index(label: Any, where: str) -> int:
    """A label as an int. Raises UserError, beginning with ``where``, unless it is a valid class index."""
    whole = isinstance(label, int | np.integer) and not isinstance(label, bool)
    if not whole or not 0 <= label < MOST_CLASSES:
        raise UserError(f"{where} is not a class index from 0 to {MOST_CLASSES - 1:,} (a whole number)")
    return int(label)


def read_labels(content: bytes, names: Sequence[str], where: str) -> list[int] | None:
    """The labels of images, in the order of their names, from a dataset.json; None if its labels are ``null``.

    content: ``{"labels": [[name, label], …]}``, one entry for each name and no others. Names are equal in any Unicode
    spelling: macOS decomposes the letters of file names (NFD), other systems compose them (NFC).
    Raises UserError, beginning with ``where``, for any other content. Labels are class indices and are never rounded.
    """
    where = f"{where}: {LABELS_FILE}"
    try:
        entries = json.loads(content, object_pairs_hook=_unique)["labels"]
    except (ValueError, TypeError, KeyError, RecursionError):
        entries = ...
    if entries is None:
        return None
    if not (isinstance(entries, list) and all(map(_is_entry, entries))):
        raise UserError(f'{where} is not of the form {{"labels": [[name, label], …]}}')
    table: dict[str, int] = {}
    for name, label in entries:
        index = class_index(label, f"{where}: the label of {shown(name)}")
        if composed(name) in table:
            raise UserError(f"{where} names {shown(name)} twice; one image has one label")
        table[composed(name)] = index
    keys = require_distinct(names, where)
    unlabelled = next((name for name, key in zip(names, keys, strict=True) if key not in table), None)
    if unlabelled is not None:
        raise UserError(f"{where} has no label for {shown(unlabelled)}")
    if len(table) > len(names):
        raise UserError(f"{where} names {shown(min(table.keys() - set(keys)))}, which does not exist")
    return [table[key] for key in keys]


def composed(name: str) -> str:
    """A name in the Unicode spelling NFC, in which equal names compare equal."""
    return unicodedata.normalize("NFC", name)


def require_distinct(names: Iterable[str], where: str) -> list[str]:
    """Names in one spelling (NFC). Raises UserError, beginning with ``where``, if two differ only in their spelling."""
    met: dict[str, str] = {}
    for name in names:
        if met.setdefault(composed(name), name) != name:
            raise UserError(f"{where}: {met[composed(name)]!a} and {name!a} are one name in two spellings; rename one")
    return list(met)


def shown(name: str) -> str:
    """A file's name as one printable line."""
    return name if name.isprintable() else ascii(name)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a repeated key, of which Python would keep the last."""
    pairs = list(pairs)
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key stands twice")
    return table

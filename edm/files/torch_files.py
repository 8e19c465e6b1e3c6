"""Reads torch.save's two formats, and plain pickles of tensors, as plain values with :class:`Stored` tensors.

It never uses torch.load, not even with ``weights_only``: the restricted unpickler reads nested streams, archives and
plain pickles, and checks every claimed size before it allocates memory.
"""

import io
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from edm.files.pickles import Budget, Instance, Name, Names, Span, interpret
from edm.files.refusals import damaged, refused, shown
from edm.files.stored import DTYPES, Storage, rebuild_parameter, rebuild_tensor, storage_claim
from edm.files.torch_zips import content, members

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of torch's magic number
_LEGACY_PROTOCOL = 1001
_MOST_DESCRIPTION = 64 << 20  # bytes of the pickle in an archive
_LONGEST_NUMBER = 16  # bytes
NONE: Names = {}
_NUMPY_KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


def saved(file: BinaryIO) -> Any:
    """The value in a file of torch.save, of either format. Raises UserError."""
    start = file.read(2)
    file.seek(0)
    return zipped(file) if start == b"PK" else legacy(file)


def zipped(file: BinaryIO, names: Names = NONE) -> Any:
    """The value in a zip archive of torch.save (since torch 1.6). Raises UserError.

    names: what stands for the names of a program in the file, besides those of tensors and plain values.
    """
    found = members(file)
    descriptions = [name for name in found if name.endswith("/data.pkl")]
    if len(descriptions) != 1:
        raise refused("it is a zip archive, but not of torch.save")
    (description,) = descriptions
    root = description.removesuffix("data.pkl")
    order = found.get(f"{root}byteorder")
    if order is not None and (order.length > 16 or content(file, order) != b"little"):
        raise refused("its numbers are big-endian")
    if found[description].length > _MOST_DESCRIPTION:
        raise refused("its description is larger than any checkpoint's")

    def storage(persistent_id: Any) -> Storage:
        key, claim = storage_claim(persistent_id)
        member = found.get(f"{root}data/{key}")
        if member is None or member.length != claim.length:
            there = 0 if member is None else member.length
            raise damaged(f"storage {shown(key)} claims {claim.length:,} bytes and has {there:,}")
        claim.start, claim.crc = member.start, member.crc
        return claim

    return interpret(io.BytesIO(content(file, found[description])), {**_TORCH_NAMES, **names}, Budget(), storage)


def legacy(file: BinaryIO, names: Names = NONE, budget: Budget | None = None) -> Any:
    """The value in a stream of torch.save (before torch 1.6) that starts at the position of ``file``.

    The stream holds pickles of a magic number, a protocol, the machine's types, the value and the keys of its storages;
    then, for each storage, the count of its elements and the elements. names: as of :func:`zipped`. Raises UserError.
    """
    budget = budget or Budget()
    if file.read(len(LEGACY_START)) != LEGACY_START:
        raise refused("a stream in it is not of torch.save")
    protocol, machine = (interpret(file, {}, budget) for _ in range(2))
    if protocol != _LEGACY_PROTOCOL or type(machine) is not dict or machine.get("little_endian") is not True:
        raise refused("its numbers are big-endian, or of an unknown version of torch.save")
    storages: dict[str, Storage] = {}

    def storage(persistent_id: Any) -> Storage:
        key, claim = storage_claim(persistent_id)
        known = storages.setdefault(key, claim)
        if (known.dtype, known.count) != (claim.dtype, claim.count):
            raise damaged(f"storage {shown(key)} is described in two ways")
        return known

    value = interpret(file, {**_TORCH_NAMES, **names}, budget, storage)
    keys = interpret(file, {}, budget)
    known = type(keys) is list and all(type(key) is str for key in keys)
    if not known or sorted(keys) != sorted(storages):
        raise damaged("the storages that it lists are not those that it uses")
    _place(file, [storages[key] for key in keys])
    return value


def _place(file: BinaryIO, storages: list[Storage]) -> None:
    """Records the position of each storage's elements, which follow one another from the position of ``file``."""
    here = file.tell()
    size = file.seek(0, 2)
    for storage in storages:
        file.seek(here)
        count = file.read(8)
        storage.start = here + 8
        here = storage.start + storage.length
        if here > size or struct.unpack("<q", count) != (storage.count,):
            raise damaged(f"a storage claims {storage.length:,} bytes that are not there")


def plain(file: BinaryIO, names: Names = NONE) -> Any:
    """The value of a plain pickle whose storages are nested streams. names: as of :func:`zipped`. Raises UserError."""
    budget, left = Budget(), file.seek(0, 2)
    file.seek(0)

    def nested(*arguments: Any) -> Storage:
        nonlocal left
        if len(arguments) != 1 or type(arguments[0]) is not Span:
            raise damaged("a nested stream is not made of bytes")
        (span,) = arguments
        left -= span.length
        if left < 0:
            raise refused("it reads its bytes more than once")
        here = file.tell()
        file.seek(span.start)
        storage = legacy(io.BytesIO(file.read(span.length)), budget=budget)
        file.seek(here)
        if type(storage) is not Storage:
            raise refused("a nested stream holds something else than the storage of a tensor")
        storage.start += span.start
        return storage

    return interpret(file, {**_PLAIN_NAMES, **names, Name("torch.storage", "_load_from_bytes"): nested}, budget)


def empty_dict(*arguments: Any) -> dict:
    """Stands for classes of dictionaries, whose entries follow."""
    if arguments:
        raise refused("it makes a dictionary out of another")  # repeated copies could grow without bound
    return {}


def _set(*arguments: Any) -> set:
    """Stands for builtins.set, with which protocol 3 writes the set of a module's non-persistent buffers."""
    match arguments:
        case (list() as items,) if len(items) <= 16 and all(type(item) is str for item in items):
            return set(items)
    raise damaged("a set in it is not one of names")


def _encoded(*arguments: Any) -> bytes:
    """Stands for _codecs.encode, with which protocol 2, torch.save's default, writes the bytes of a number."""
    match arguments:
        case (str() as text, "latin1") if len(text) <= _LONGEST_NUMBER and all(ord(letter) < 256 for letter in text):
            return text.encode("latin1")
    raise damaged("bytes in it are not those of a number")


def _numpy_scalar(*arguments: Any) -> Any:
    """Stands for numpy's scalar(dtype, bytes): the value as a Python number."""
    match arguments:
        case (Instance("numpy.dtype", (str() as kind, *_), state), bytes() as data) if kind in _NUMPY_KINDS:
            native = type(state) is tuple and len(state) > 1 and state[1] in ("<", "|")
            if native and len(data) == np.dtype(kind).itemsize:
                return np.frombuffer(data, np.dtype(kind).newbyteorder("<")).item()
    raise damaged("a number of numpy's is not one")


def instance_of(name: str) -> Callable[..., Instance]:
    """Stands for a class whose instances are read as their name, arguments and state."""
    return lambda *arguments: Instance(name, arguments)


_TENSOR_NAMES: Names = {
    Name("collections", "OrderedDict"): empty_dict,
    Name("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    Name("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    Name("torch._utils", "_rebuild_parameter"): rebuild_parameter,
}
_NUMPY_NAMES: Names = {
    Name(module, name): function
    for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
    for name, function in (("scalar", _numpy_scalar), ("dtype", instance_of("numpy.dtype")))
    if (module == "numpy") == (name == "dtype")
}
_PLAIN_NAMES: Names = {
    **_TENSOR_NAMES,
    **_NUMPY_NAMES,
    Name("_codecs", "encode"): _encoded,
    Name("builtins", "set"): _set,
    Name("__builtin__", "set"): _set,
}
_TORCH_NAMES: Names = {**_PLAIN_NAMES, **dict.fromkeys(DTYPES)}

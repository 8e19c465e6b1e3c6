"""Tensors of a pickled file: described while the file is checked, and read one by one afterwards."""

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from edm.files.pickles import Name
from edm.files.refusals import damaged, refused, shown

_MOST_DIMENSIONS = 8
_WRAPPER = "module."
_MOST_EMPTY = 128  # size of a dimension of an empty tensor: the product of 8 still fits torch's integers

#: torch's name of a typed storage → its element type
DTYPES = {
    Name("torch", "FloatStorage"): torch.float32,
    Name("torch", "DoubleStorage"): torch.float64,
    Name("torch", "HalfStorage"): torch.float16,
    Name("torch", "BFloat16Storage"): torch.bfloat16,
    Name("torch", "LongStorage"): torch.int64,
    Name("torch", "IntStorage"): torch.int32,
    Name("torch", "ShortStorage"): torch.int16,
    Name("torch", "CharStorage"): torch.int8,
    Name("torch", "ByteStorage"): torch.uint8,
    Name("torch", "BoolStorage"): torch.bool,
}


@dataclass(slots=True, eq=False)
class Storage:
    """``count`` elements of one type. start: position of their bytes in the file; None while unknown.

    crc: CRC-32 of the bytes, if the file contains one.
    """

    dtype: torch.dtype
    count: int
    start: int | None = None
    crc: int | None = None

    @property
    def length(self) -> int:
        """In bytes."""
        return self.count * self.dtype.itemsize


@dataclass(slots=True, eq=False)
class Stored:
    """A tensor that has not been read: a view of a storage, checked to be within its bounds."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def rebuild_tensor(*arguments: Any) -> Stored:
    """Stands for torch._utils._rebuild_tensor_v2, with (storage, offset, size, stride, …). Raises UserError."""
    match arguments:
        case (Storage() as storage, int() as offset, tuple() as shape, tuple() as stride, *_):
            pass
        case _:
            raise damaged("a tensor is described by something else than a storage, an offset, a size and a stride")
    if len(shape) > _MOST_DIMENSIONS or len(shape) != len(stride):
        raise damaged(f"a tensor has {len(shape)} sizes and {len(stride)} strides")
    if not all(type(number) is int and number >= 0 for number in (offset, *shape, *stride)):
        raise damaged("a tensor has an offset, size or stride that is no number of elements")
    elements = math.prod(shape)
    if elements:
        # With a stride of 0, one number could expand to any amount.
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        fits = last < storage.count and max((elements, *stride)) <= storage.count
    else:
        fits = max(shape) <= _MOST_EMPTY
    if not fits:
        raise damaged(f"a tensor of size {_sizes(shape)} claims more than the {storage.count:,} numbers of its storage")
    return Stored(storage, offset, shape, stride)


def rebuild_parameter(*arguments: Any) -> Stored:
    """Stands for torch._utils._rebuild_parameter, with (data, …). Raises UserError."""
    if not arguments or not isinstance(arguments[0], Stored):
        raise damaged("a parameter holds no tensor")
    return arguments[0]


def unwrapped(state: dict[Any, Any]) -> dict[Any, Any]:
    """A state dict without the prefix that torch's DataParallel and DistributedDataParallel add to all names."""
    if state and all(type(name) is str and name.startswith(_WRAPPER) for name in state):
        return {name.removeprefix(_WRAPPER): value for name, value in state.items()}
    return state


def storage_claim(persistent_id: Any) -> tuple[str, Storage]:
    """(key, storage without a position) from torch's persistent id ("storage", type, key, location, count, …)."""
    if type(persistent_id) is not tuple or not 5 <= len(persistent_id) <= 6:
        raise refused("its pickle refers to something else than the storage of a tensor")
    kind, element, key, _, count, *view = persistent_id
    if kind != "storage" or type(element) is not Name or element not in DTYPES:
        raise refused(f"its pickle refers to {shown(kind)} of {shown(getattr(element, 'name', element))}")
    if type(key) is not str or type(count) is not int or count < 0 or view not in ([], [None]):
        raise refused("its pickle refers to a storage in a way that no checkpoint needs")
    return key, Storage(DTYPES[element], count)


class StoredTensors(Mapping[str, Tensor]):
    """Tensors by name, each read from the file on access.

    A checkpoint contains every number once. The size of the file therefore bounds all reads together, so that names
    that share one large storage cannot expand to many large tensors.
    """

    def __init__(self, file: BinaryIO, stored: Mapping[str, Stored]):
        self._file, self._stored = file, stored
        self._left = file.seek(0, 2)

    def __len__(self) -> int:
        return len(self._stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored  # the default of Mapping would read the tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._stored[name].shape

    def __getitem__(self, name: str) -> Tensor:
        """Raises UserError if the bytes are incomplete or fail their checksum."""
        tensor = self._stored[name]
        return torch.empty(tensor.shape, dtype=tensor.storage.dtype) if 0 in tensor.shape else self._view(name, {})

    def together(self) -> dict[str, Tensor]:
        """All tensors, each storage read once: tensors that share a storage, such as tied weights, share memory."""
        kept: dict[tuple[int | None, int], bytearray] = {}
        return {name: self[name] if 0 in self.shape(name) else self._view(name, kept) for name in self}

    def _view(self, name: str, kept: dict[tuple[int | None, int], bytearray]) -> Tensor:
        """A tensor in the bytes of its storage, which ``kept`` holds by their place in the file or gets now."""
        tensor = self._stored[name]
        storage = tensor.storage
        place = storage.start, storage.length
        if place not in kept:
            kept[place] = self._content(name, storage)
        numbers = torch.frombuffer(kept[place], dtype=storage.dtype)
        return numbers.as_strided(tensor.shape, tensor.stride, tensor.offset)

    def _content(self, name: str, storage: Storage) -> bytearray:
        self._left -= storage.length
        if self._left < 0:
            raise refused("its tensors share their numbers, as those of no checkpoint do")
        content = bytearray(storage.length)
        if storage.start is None:
            raise damaged(f"the numbers of {shown(name)} are not in it")
        self._file.seek(storage.start)
        if self._file.readinto(content) != storage.length:  # type: ignore[attr-defined]  # BinaryIO's stubs lack it
            raise damaged("it ends inside of a tensor")
        if storage.crc is not None and zlib.crc32(content) != storage.crc:
            raise damaged(f"the checksum of {shown(name)} is wrong")
        return content


def _sizes(shape: tuple[int, ...]) -> str:
    return "×".join(shown(size) for size in shape)

"""Writes an archive's zip, member by member, in bytes that depend on the images alone."""

import os
import struct
import zlib
from array import array
from collections.abc import Sequence
from typing import BinaryIO

from edm.data.labels import LABELS_FILE, class_index
from edm.files.zip_records import CENTRAL, END, END64, LOCAL, LOCATOR64

# Members are stored without compression. All have the date 1980-01-01, so that equal images give equal bytes; the bytes
# are those that Python's zipfile writes.
_DATE = 1 << 5 | 1
_PERMISSIONS = 0o600 << 16
_LARGEST = (1 << 31) - 1  # larger numbers go to zip64 records
_MOST_MEMBERS = (1 << 16) - 1


def image_name(index: int) -> str:
    """00000/img00000000.png: one folder per thousand images."""
    return f"{index // 1000:05d}/img{index:08d}.png"


class ArchiveWriter:
    """Appends PNG files to an archive in order, with 16 bytes of memory per image.

    file: open for reading and writing. To resume an interrupted archive, the writer keeps its complete images,
    ``count`` of them, and cuts off everything after them (an incomplete member, an old directory).
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sizes, self._checksums = array("Q"), array("Q")
        self._end = 0
        self._recover()

    @property
    def count(self) -> int:
        """Number of images in the archive."""
        return len(self._sizes)

    def add(self, png: bytes) -> None:
        """Appends the next image."""
        checksum = zlib.crc32(png)
        self._append(image_name(self.count), png, checksum)
        self._sizes.append(len(png))
        self._checksums.append(checksum)

    def finish(self, labels: Sequence[int] | None) -> None:
        """Appends dataset.json and the zip directory. labels: one per image, or None."""
        text, offset = _labels_json(labels), self._end
        self._append(LABELS_FILE, text, zlib.crc32(text))
        start, position = self._end, 0
        for i, (size, checksum) in enumerate(zip(self._sizes, self._checksums, strict=True)):
            self._write(_central(image_name(i), size, checksum, position))
            position += LOCAL.size + len(image_name(i)) + size
        self._write(_central(LABELS_FILE, len(text), zlib.crc32(text), offset))
        self._write(_zip_end(self.count + 1, start, self._end - start))
        self._file.flush()

    def _append(self, name: str, content: bytes, checksum: int) -> None:
        self._write(_local(name, len(content), checksum))
        self._write(content)

    def _write(self, content: bytes) -> None:
        self._end += self._file.write(content)

    def _recover(self) -> None:
        length = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        while True:
            name = image_name(self.count)
            header = self._file.read(LOCAL.size + len(name))
            if len(header) < LOCAL.size:
                break
            checksum, size = LOCAL.unpack_from(header)[6:8]
            if header != _local(name, size, checksum) or self._end + len(header) + size > length:
                break
            if zlib.crc32(self._file.read(size)) != checksum:
                break
            self._end += len(header) + size
            self._sizes.append(size)
            self._checksums.append(checksum)
        self._file.seek(self._end)
        self._file.truncate()


def _labels_json(labels: Sequence[int] | None) -> bytes:
    if labels is None:
        return b'{"labels": null}'
    text = bytearray(b'{"labels": [')
    for i, label in enumerate(labels):
        index = class_index(label, f"the label of image {i}")
        text += f'{", " if i else ""}["{image_name(i)}", {index}]'.encode()
    return bytes(text + b"]}")


def _local(name: str, size: int, checksum: int) -> bytes:
    return LOCAL.pack(b"PK\3\4", 20, 0, 0, 0, _DATE, checksum, size, size, len(name), 0) + name.encode()


def _central(name: str, size: int, checksum: int, offset: int) -> bytes:
    far = offset > _LARGEST
    version, extra = (45, struct.pack("<HHQ", 1, 8, offset)) if far else (20, b"")
    return (
        CENTRAL.pack(b"PK\1\2", version | 3 << 8, version, 0, 0, 0, _DATE, checksum, size, size, len(name),
                      len(extra), 0, 0, 0, _PERMISSIONS, 0xFFFFFFFF if far else offset)
        + name.encode() + extra
    )  # fmt: skip


def _zip_end(members: int, start: int, length: int) -> bytes:
    """The end records of a zip whose central directory begins at ``start``."""
    large = b""
    if members > _MOST_MEMBERS or start > _LARGEST or length > _LARGEST:
        large = END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, members, members, length, start)
        large += LOCATOR64.pack(b"PK\6\7", 0, start + length, 1)
        members, length, start = min(members, 0xFFFF), min(length, 0xFFFFFFFF), min(start, 0xFFFFFFFF)
    return large + END.pack(b"PK\5\6", 0, 0, members, members, length, start, 0)

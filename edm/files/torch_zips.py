"""Reads zip archives of torch.save: stored members, located by the directory at the end of the file.

It does not use ``zipfile``, which builds the whole directory before the caller can limit its size, and unpacks
compressed members. Layout: PKWARE's APPNOTE.TXT, sections 4.3 (records) and 4.5.3 (zip64).
"""

import struct
import zlib
from typing import BinaryIO, NamedTuple

from edm.files.refusals import damaged, refused, shown
from edm.files.zip_records import CENTRAL, END, END64, LOCAL, LOCATOR64

_MOST_DIRECTORY = 4 << 20  # bytes; a checkpoint of 300 million parameters with its optimiser has 0.5 MB
_SATURATED = 0xFFFFFFFF  # the number is in a zip64 record instead


class Member(NamedTuple):
    """Position and length of a member's bytes, and their CRC-32."""

    start: int
    length: int
    crc: int


def members(file: BinaryIO) -> dict[str, Member]:
    """The members of an archive by name. Raises UserError unless it is a complete archive of stored members."""
    size = file.seek(0, 2)
    start, length = _directory(file, size)
    if length > _MOST_DIRECTORY:
        raise refused(f"its zip directory has {length:,} bytes, more than any checkpoint's")
    if start + length > size:
        raise damaged("its zip directory lies outside of the file")
    directory, found, at = _read(file, start, length), {}, 0
    while at < length:
        name, member, at = _entry(directory, at)
        if name in found:
            raise refused(f"it holds {shown(name)} twice")
        found[name] = _placed(file, member, size)
    return found


def content(file: BinaryIO, member: Member) -> bytes:
    """The bytes of a member, after checking their checksum. Raises UserError."""
    data = _read(file, member.start, member.length)
    if zlib.crc32(data) != member.crc:
        raise damaged("the checksum of its description is wrong")
    return data


def _read(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    data = file.read(length)
    if len(data) != length:
        raise damaged("a part of the zip archive is missing")
    return data


def _directory(file: BinaryIO, size: int) -> tuple[int, int]:
    """(start, length) of the directory, from the record at the end of the file."""
    tail_start = max(0, size - END.size - 0xFFFF)
    tail = _read(file, tail_start, size - tail_start)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < END.size:
        raise damaged("its zip archive has no end")
    *_, length, start, _ = END.unpack_from(tail, at)
    if _SATURATED not in (length, start):
        return start, length
    place = tail_start + at - LOCATOR64.size
    if place < 0:
        raise damaged("its zip archive has no end")
    signature, _, where, _ = LOCATOR64.unpack(_read(file, place, LOCATOR64.size))
    if signature != b"PK\6\7" or where + END64.size > size:
        raise damaged("its zip archive has no end")
    signature, *_, length, start = END64.unpack(_read(file, where, END64.size))
    if signature != b"PK\6\6":
        raise damaged("its zip archive has no end")
    return start, length


def _entry(directory: bytes, at: int) -> tuple[str, Member, int]:
    """(name, member whose start is that of its local header, position of the next entry)."""
    if len(directory) - at < CENTRAL.size:
        raise damaged("its zip directory is cut")
    (signature, _, _, flags, method, _, _, crc, packed, length, name_length, extra_length, comment_length,
     _, _, _, start) = CENTRAL.unpack_from(directory, at)  # fmt: skip
    name_end = at + CENTRAL.size + name_length
    extra_end = name_end + extra_length
    if signature != b"PK\1\2" or extra_end + comment_length > len(directory):
        raise damaged("its zip directory is cut")
    try:
        name = directory[at + CENTRAL.size : name_end].decode()
    except UnicodeDecodeError:
        raise damaged("a name in its zip directory is not UTF-8") from None
    if method != 0 or flags & 1:
        raise refused(f"{shown(name)} is compressed or encrypted, as torch.save leaves nothing")
    length, packed, start = _wide(directory[name_end:extra_end], [length, packed, start])
    if packed != length:
        raise damaged(f"{shown(name)} has two sizes")
    return name, Member(start, length, crc), extra_end + comment_length


def _wide(extra: bytes, numbers: list[int]) -> list[int]:
    """The numbers, with saturated ones replaced by those of the zip64 record, in order."""
    at = 0
    while _SATURATED in numbers and len(extra) - at >= 4:
        kind, size = struct.unpack_from("<2H", extra, at)
        body = extra[at + 4 : at + 4 + size]
        at += 4 + size
        if kind == 1:
            wide = iter(struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8]))
            return [next(wide, number) if number == _SATURATED else number for number in numbers]
    return numbers


def _placed(file: BinaryIO, member: Member, size: int) -> Member:
    """The member with the position of its bytes, after its local header."""
    if member.start + LOCAL.size > size:
        raise damaged("a member of the zip archive lies outside of the file")
    signature, *_, name_length, extra_length = LOCAL.unpack(_read(file, member.start, LOCAL.size))
    start = member.start + LOCAL.size + name_length + extra_length
    if signature != b"PK\3\4" or start + member.length > size:
        raise damaged("a member of the zip archive lies outside of the file")
    return member._replace(start=start)

"""Small zips and zlib streams that unfold to gigabytes of zeros, made in milliseconds."""

import functools
import io
import struct
import zipfile
import zlib

_MEBIBYTE = 1 << 20


@functools.cache
def _deflated_mebibyte() -> bytes:
    packer = zlib.compressobj(9, wbits=-15)
    return packer.compress(bytes(_MEBIBYTE)) + packer.flush(zlib.Z_FULL_FLUSH)  # depends on nothing before it


def deflated(start: bytes, zeros: int) -> bytes:
    """Some bytes and so many zeros as a raw deflate stream."""
    first, last = zlib.compressobj(9, wbits=-15), zlib.compressobj(9, wbits=-15)
    head = first.compress(start) + first.flush(zlib.Z_FULL_FLUSH)
    tail = last.compress(bytes(zeros % _MEBIBYTE)) + last.flush()
    return head + _deflated_mebibyte() * (zeros // _MEBIBYTE) + tail


@functools.cache
def zlib_zeros(count: int) -> bytes:
    """So many zeros as a zlib stream, with its checksum (Adler-32 of zeros)."""
    return b"\x78\xda" + deflated(b"", count) + struct.pack(">I", count % 65_521 << 16 | 1)


def zip_of_zeros(members: dict[str, bytes], name: str, start: bytes, zeros: int, claimed: int | None = None) -> bytes:
    """A zip of stored members and a deflated one of some bytes and zeros, with a wrong checksum.

    claimed: its size according to the zip, by default the true one.
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for other, content in (members | {name: deflated(start, zeros)}).items():
            archive.writestr(other, content)
        info = archive.getinfo(name)
    data = bytearray(file.getvalue())
    for at, method, size in ((info.header_offset, 8, 22), (data.rfind(b"PK\1\2"), 10, 24)):
        struct.pack_into("<H", data, at + method, zipfile.ZIP_DEFLATED)
        struct.pack_into("<I", data, at + size, len(start) + zeros if claimed is None else claimed)
    return bytes(data)

"""Folders and zips of images: lists their files in a fixed order and reads them without extracting zips."""

import hashlib
import os
import posixpath
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from edm.data.decoding import SUFFIXES
from edm.data.labels import LABELS_FILE, shown
from edm.errors import UserError, one_line
from edm.files.reading import open_regular
from edm.files.resumable import StoppedError
from edm.files.zip_records import LOCAL

MAX_FILE = 1 << 26  # bytes of one image file
_LITTER = ("thumbs.db", "desktop.ini", "icon\r")
_TEXTS = ("LICENSE", "LICENCE", "README")
_WINDOWS = (0, 10)  # the systems of a zip's member (APPNOTE.TXT, 4.4.2) on which a backslash separates folders
_UTF8 = 1 << 11  # the flag of a member whose name is UTF-8
_MOST_PACKED = MAX_FILE + (1 << 20)  # deflate adds 5 bytes to 64 KB that it cannot compress
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # other methods may allocate gigabytes for a dictionary


@dataclass(frozen=True)
class Tree:
    """Image files below a folder or in zips. names: sorted, relative to their common folder.

    labels_file: content of the dataset.json beside them, or None. identity: hash of the names and versions of all
    files. packed: bytes of the zips, or of the files in a folder. As a context manager it closes the zips at the end.
    """

    where: str
    names: list[str]
    labels_file: bytes | None
    identity: str
    packed: int
    _read: Callable[[str], bytes]
    _files: list[BinaryIO]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def read(self, name: str) -> bytes:
        """Bytes of one image file; safe to call from several threads."""
        return self._read(name)


#: One file: name, size in bytes, and a number that changes with its content (time or CRC).
_Entry = tuple[str, int, int]


def open_tree(path: Path | Sequence[Path]) -> Tree:
    """Lists a folder, a zip, several zips, or a folder that contains only zips. Several zips form one dataset.

    Skips hidden files and folders (``.name``, ``__MACOSX``), files that operating systems add, and files named LICENSE
    or README. Raises UserError for any other file that is not an image, for unsafe names, and for damaged zips.
    """
    paths = list(path) if isinstance(path, Sequence) else [path]
    where = ", ".join(map(str, paths))
    if len(paths) == 1 and paths[0].is_dir():
        zips = _only_zips(paths[0])
        if not zips:
            return _tree(where, _folder(paths[0]), lambda name: _read_file(os.path.join(paths[0], name)), [])
        paths = zips
    members: dict[str, _Member] = {}
    files: list[BinaryIO] = []
    try:
        return _tree(where, _zips(paths, members, files), lambda name: _read_member(*members[name]), files)
    except BaseException:
        for file in files:
            file.close()
        raise


def _tree(where: str, entries: Iterable[_Entry], read: Callable[[str], bytes], files: list[BinaryIO]) -> Tree:
    names, labels_files, identity, total = [], {}, hashlib.sha256(), 0
    for name, size, version in entries:
        total += size
        identity.update(f"{name}\0{size}\0{version}\n".encode("utf-8", "surrogateescape"))
        if name.rsplit("/", 1)[-1] == LABELS_FILE:
            labels_files[name] = size
        elif not name.lower().endswith(SUFFIXES):
            raise UserError(f"{where}: {shown(name)} is not an image ({', '.join(SUFFIXES)}); take it out")
        elif size > MAX_FILE:
            raise UserError(f"{where}: {shown(name)} claims {size:,} bytes; more than {MAX_FILE:,} are refused")
        else:
            names.append(name)
    if not names:
        raise UserError(f"{where}: holds no images ({', '.join(SUFFIXES)})")
    if len(labels_files) > 1:
        raise UserError(f"{where}: has {' and '.join(map(shown, labels_files))}; one dataset has one {LABELS_FILE}")
    names.sort()
    root, labels = _common_folder(names), None
    for name, size in labels_files.items():
        root = name.removesuffix(LABELS_FILE)
        if size > 4096 + 512 * len(names):
            raise UserError(f"{where}: {LABELS_FILE} is far too large for {len(names)} images")
        labels = read(name)
        identity.update(labels)
    outside = next((name for name in names if not name.startswith(root)), None)
    if outside is not None:
        raise UserError(f"{where}: {shown(outside)} is outside of {shown(root)}, where {LABELS_FILE} is")
    relative = [name.removeprefix(root) for name in names]
    packed = sum(os.fstat(file.fileno()).st_size for file in files) if files else total
    return Tree(where, relative, labels, identity.hexdigest(), packed, lambda name: read(root + name), files)


def _hidden(part: str) -> bool:
    """Whether a name marks a hidden folder or file."""
    return part.startswith(".") or part.lower() == "__macosx"


def _skipped(name: str) -> bool:
    """Whether a file is not part of the dataset. Applies to files only: a class folder may be named ``license``."""
    *_, file = parts = name.split("/")
    text = file.split(".")[0].upper() in _TEXTS and not file.lower().endswith(SUFFIXES)
    return text or file.lower() in _LITTER or any(map(_hidden, parts))


def _common_folder(names: list[str]) -> str:
    """The common folder of all (sorted) names, with a slash; empty if they have none."""
    common = posixpath.commonpath([posixpath.dirname(names[0]), posixpath.dirname(names[-1])])
    return f"{common}/" if common else ""


def _folder(top: Path) -> Iterator[_Entry]:
    """All files below a folder, by relative POSIX name. Follows links, but raises UserError for a cycle."""

    def walk(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[_Entry]:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise UserError(f"{top}: {shown(prefix)} is a link to a folder that holds it; take it out")
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name = prefix + entry.name
            if entry.is_dir():
                if not _hidden(entry.name):
                    yield from walk(entry.path, name + "/", (*above, here))
                continue
            if _skipped(name):
                continue
            status = entry.stat()
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{top}: {shown(name)} is neither a file nor a folder; take it out")
            yield name, status.st_size, status.st_mtime_ns

    try:
        yield from walk(str(top), "", ())
    except OSError as error:
        raise UserError(f"{error.filename or top}: cannot be read ({error.strerror})") from None


def _read_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise StoppedError(f"{shown(path)}: cannot be read ({error.strerror})") from None


def _only_zips(folder: Path) -> list[Path]:
    """The zips of a folder that contains only zips, sorted; [] for any other folder."""
    try:
        skipped = lambda path: _hidden(path.name) if path.is_dir() else _skipped(path.name)
        files = sorted(path for path in folder.iterdir() if not skipped(path))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    return files if files and all(path.suffix.lower() == ".zip" and path.is_file() for path in files) else []


#: One member of a zip: the zip's path, the open zip, and the member.
_Member = tuple[Path, zipfile.ZipFile, zipfile.ZipInfo]


def _zips(paths: Iterable[Path], members: dict[str, _Member], files: list[BinaryIO]) -> Iterator[_Entry]:
    """All files in some zips. Fills ``members``, and adds the opened zips to ``files``."""
    for path in paths:
        archive = _open_zip(path, files)
        for info in archive.infolist():
            name = _slashed(info)
            if name.endswith("/"):  # a folder
                continue
            _require_safe(name, info, path)
            if _skipped(name):
                continue
            if name in members:
                raise UserError(f"{path}: holds {shown(name)} a second time")
            if info.flag_bits & 1:
                raise UserError(f"{path}: {shown(name)} is encrypted; unpack the zip with its password first")
            if info.compress_type not in _METHODS:
                raise UserError(f"{path}: {shown(name)} is compressed by another method than deflate; zip it again")
            members[name] = path, archive, info
            yield name, info.file_size, info.CRC


def _open_zip(path: Path, files: list[BinaryIO]) -> zipfile.ZipFile:
    try:
        # Pass an open file: zipfile counts the readers of a path without a lock, and may close it too early.
        files.append(open_regular(path, "a folder or a zip"))  # open as long as the tree
        return zipfile.ZipFile(files[-1])
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # damaged directories raise many kinds of exceptions
        raise UserError(f"{path}: not a readable zip archive ({one_line(error)})") from None


def _slashed(info: zipfile.ZipInfo) -> str:
    """The name of a member, with slashes also where a program for Windows wrote backslashes."""
    name = info.filename.replace("\\", "/") if info.create_system in _WINDOWS else info.filename
    return name.removeprefix("./")


def _require_safe(name: str, info: zipfile.ZipInfo, path: Path) -> None:
    parts = name.split("/")
    wrong = None
    if ".." in parts or name.startswith("/"):
        wrong = "is a name that leads out of the archive; it is refused"
    elif "\\" in name:
        wrong = "has a backslash in its name, which some systems take for a folder; zip it again with slashes"
    elif ":" in parts[0]:
        wrong = f"has a colon in {parts[0]!a}, which some systems take for a drive; rename that and zip it again"
    elif "" in parts or "." in parts:
        wrong = "has a folder without a name in its path; zip it again"
    if wrong:
        raise UserError(f"{path}: {info.filename!a} {wrong}")


def _read_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Bytes of one member, at most its declared size. Safe in threads and in forked processes: it moves no position."""
    try:
        data = _member(archive.fp.fileno(), info)  # type: ignore[union-attr]  # open as long as the tree
    except OSError as error:
        raise StoppedError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # a wrong checksum, zlib's errors, a damaged header
        raise UserError(f"{path}: {shown(info.filename)} is damaged ({one_line(error)})") from None
    if len(data) != info.file_size:
        raise UserError(f"{path}: {shown(info.filename)} is damaged ({len(data)} of {info.file_size} bytes)")
    return data


def _member(file: int, info: zipfile.ZipInfo) -> bytes:
    """Bytes of one member, not more than one beyond its declared size."""
    signature, *_, name_length, extra_length = LOCAL.unpack(os.pread(file, LOCAL.size, info.header_offset))
    if signature != b"PK\3\4":
        raise ValueError("its header is not at its place")
    place = info.header_offset + LOCAL.size
    if os.pread(file, name_length, place).replace(b"\\", b"/") != info.orig_filename.encode(
        "utf-8" if info.flag_bits & _UTF8 else "cp437"
    ).replace(b"\\", b"/"):
        raise ValueError("its header has another name")
    packed = os.pread(file, min(info.compress_size, _MOST_PACKED), place + name_length + extra_length)
    if info.compress_type == zipfile.ZIP_STORED:
        data = packed[: info.file_size + 1]
    else:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(
            packed, info.file_size + 1
        )  # whatever follows stays packed
    if len(data) == info.file_size and zlib.crc32(data) != info.CRC:
        raise ValueError("its checksum, a CRC-32, differs")
    return data

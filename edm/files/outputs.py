"""Checks what a command may overwrite: regular files, never devices, folders, pipes, or its own inputs."""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from edm.errors import UserError

_SYSTEM = tuple(map(Path, ("/proc", "/sys")))
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip


def kind_of(mode: int) -> str:
    """The kind of what is no regular file, in words, from the mode that ``os.stat`` gives."""
    return _KINDS.get(stat.S_IFMT(mode), "no file")


def check_outputs(files: Sequence[str], folders: Sequence[str], inputs: Sequence[str]) -> None:
    """Raises UserError, before a command starts, if its outputs would overwrite something they must not.

    files: files that it writes; folders: folders that it writes files in; inputs: files and folders that it reads.
    """
    for path in files:
        require_replaceable(path)
    for path in (*files, *folders):
        _require_writable(path)
    for path in folders:
        if os.path.exists(path) and not os.path.isdir(path):
            raise UserError(f"{path}: is not a folder; name another place to write to")
    require_apart([*files, *folders], inputs)
    for i, path in enumerate(files):
        if any(_same(path, other) for other in files[:i]):
            raise UserError(f"{path}: is named for two outputs; name another file for one of them")


def require_replaceable(path: str | os.PathLike) -> None:
    """Raises UserError unless a path is free or names a regular file.

    A link to a file counts as a file: the link is replaced and its target is kept. Paths in /proc, /sys and /dev (where
    /dev/stdout may be a link to a file) are never written.
    """
    folder = Path(os.path.realpath(Path(path).parent))
    if folder == Path("/dev") or any(folder.is_relative_to(system) for system in _SYSTEM):
        raise UserError(f"{path}: is a system path; name a file to write")
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: is {kind_of(mode)} and would be replaced; name a file to write")


def new_folders(files: Sequence[str], folders: Sequence[str]) -> list[str]:
    """The folders around these files and folders that are still to be made, as a command will make them."""
    around = [Path(path).parent for path in (*files, *folders)]
    return [str(folder) for folder in dict.fromkeys(around) if not folder.exists()]


def _require_writable(path: str) -> None:
    """Raises UserError if a file or folder cannot be made at a path: told before the work, not after it."""
    try:
        place = next((parent for parent in Path(path).parents if parent.exists()), Path())
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(path)
    except OSError as error:  # a name that is too long, a folder without permission, links in a circle
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another place to write to") from None
    if not place.is_dir():
        raise UserError(f"{path}: cannot be written ({place} is not a folder); name another place to write to")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{path}: cannot be written (no permission in {place}); name another place to write to")


def require_apart(outputs: Sequence[str | os.PathLike], inputs: Sequence[str | os.PathLike]) -> None:
    """Raises UserError if an output is also an input, by any name or link, or is inside an input folder."""
    for output in outputs:
        for source in inputs:
            if _same(output, source):
                raise UserError(f"{output}: is read by this command and would be replaced; name another output")
            if os.path.isdir(source) and Path(os.path.realpath(output)).is_relative_to(os.path.realpath(source)):
                raise UserError(f"{output}: is inside {source}, which this command reads; name a place outside of it")


def _same(path: str | os.PathLike, other: str | os.PathLike) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:  # one of them does not exist
        return os.path.realpath(path) == os.path.realpath(other)

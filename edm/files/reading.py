"""The one way to open a file that a user names: regular and not too large. A pipe would hang, a device never end."""

import io
import os
import stat

from edm.errors import UserError
from edm.files.outputs import kind_of


def open_regular(path: str | os.PathLike, what: str) -> io.BufferedReader:
    """Opens a regular file, also behind links, for reading.

    what: the file that the caller needs, such as "a checkpoint"; messages name it. Raises UserError, in one line, if
    the path is missing, cannot be read, or is a folder, a pipe, a socket or a device. It never waits for a writer.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; expected {what}") from None
    except (OSError, ValueError, TypeError) as error:  # ValueError: a null byte; TypeError: no path
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({reason}); expected {what}") from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise UserError(f"{path}: is {kind_of(mode)}; expected {what}")
    return os.fdopen(handle, "rb")


def read_regular(path: str | os.PathLike, limit: int, what: str) -> bytes:
    """The bytes of a file that :func:`open_regular` accepts. Raises UserError if it has more than ``limit``."""
    with open_regular(path, what) as file:
        try:
            content = file.read(limit + 1) if os.fstat(file.fileno()).st_size <= limit else None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); expected {what}") from None
    if content is None or len(content) > limit:  # files in /proc do not state their size
        raise UserError(f"{path}: has more than {limit:,} bytes; expected {what}")
    return content


def require_regular(path: str | os.PathLike, what: str) -> None:
    """Raises UserError unless :func:`open_regular` accepts a file; for libraries that open a path themselves."""
    open_regular(path, what).close()

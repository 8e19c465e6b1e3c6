"""Downloads published files atomically, verifies them, and pins their checksums on first use. Does not import torch."""

import functools
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from edm.errors import UserError, one_line
from edm.files.hashes import digest
from edm.files.lock import exclusive
from edm.files.reading import open_regular
from edm.files.refusals import printable
from edm.files.resumable import StoppedError, resumable
from edm.files.writing import read_json, write_json

TRIES = 3
PAUSE = 2.0  # seconds before the second try; doubled before each further one
TIMEOUT = 30  # seconds without an answer; a compute node's firewall often drops packets silently
_PIECE = 1 << 20
_RANGE_NOT_SATISFIABLE = 416  # HTTPStatus renamed it in Python 3.13
_PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
_LABELS = {"sha256": "SHA-256", "md5": "MD5"}
_HEX_DIGITS = {"sha256": "8,64", "md5": "32"}  # at least 8: as many as torch.hub has in a file's name
_LONGEST = 2000  # characters of an address
_SIZE = r"\d{1,15}"  # a petabyte
#: What urllib and http.client raise for answers of servers: also for a malformed address, length or chunk.
_FAILURES = (OSError, ValueError, ArithmeticError, http.client.HTTPException)


def download(url: str, path: str | Path, sha256: str | None = None, md5: str | None = None) -> Path:
    """Downloads ``url`` (http, https or file) to ``path`` unless the file exists, verifies it, and returns the path.

    After a broken connection the download resumes at the same byte if the server supports that; it makes three attempts
    in total. With a checksum, which shows whether the parts fit together, a stopped download resumes in the next run.
    sha256, md5: in hexadecimal digits, of the whole file; the first digits of the SHA-256 suffice.
    Raises UserError, leaving nothing at ``path``, if the download fails, the checksum differs, or the server sends
    nothing, a part that was not asked for, or a web page.
    """
    path, sums = Path(path), _checksums(sha256, md5)
    if len(url) > _LONGEST or _scheme(url) not in ("http", "https", "file"):
        raise UserError(f"{printable(url)}: not an address to download from (http, https, file)")
    if path.is_file():
        verify(path, sha256, md5)
        return path
    with resumable(path, digest([url, sums])) as file:
        found = file.seek(0, os.SEEK_END)
        _Transfer(url, path, file, bool(sums)).run()
        wrong = _mismatch(file, sums)
        if wrong and found:  # the earlier part may be damaged or from another version
            file.truncate(0)
            _Transfer(url, path, file, bool(sums)).run()
            wrong = _mismatch(file, sums)
        if wrong:
            raise UserError(f"{url}: {wrong}; the published file is damaged or has changed; nothing was saved")
    return path


def verify(path: str | Path, sha256: str | None = None, md5: str | None = None) -> None:
    """Raises UserError if a file is missing or has another checksum."""
    sums = _checksums(sha256, md5)
    try:
        with open_regular(path, "a file") as file:
            wrong = _mismatch(file, sums)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if wrong:
        raise UserError(f"{path}: {wrong}; remove it and get it again")


def pin(lock_path: str | Path, name: str, sha256: str) -> bool:
    """Records the SHA-256 of a published file on first use, and compares with it afterwards. Returns True on first use.

    lock_path: a JSON file of names and checksums; keep it under version control.
    Raises UserError if the recorded checksum differs, or the lock file is damaged.
    """
    lock_path, (sha256,) = Path(lock_path), _checksums(sha256, None).values()
    with exclusive(lock_path.with_name(f".{lock_path.name}.held")):
        pins = read_json(lock_path) if lock_path.exists() else {}
        if not isinstance(pins, dict) or not all(isinstance(value, str) for value in pins.values()):
            raise UserError(f"{lock_path}: not a list of checksums by name; take it from version control again")
        known = pins.get(name)
        if known is not None and known.lower() != sha256:
            raise UserError(
                f"{name}: SHA-256 is {sha256}, but {lock_path} has {known} of its first use; the published file has "
                f"changed or this one is damaged: get it again, or remove its line from {lock_path} to accept it"
            )
        if known is None:
            write_json(lock_path, dict(sorted({**pins, name: sha256}.items())))
    return known is None


class _BrokenError(Exception):
    """A failure of the connection or the server. final: another attempt would end in the same way."""

    def __init__(self, reason: object, final: bool = False) -> None:
        super().__init__(printable(one_line(reason)))
        self.final = final


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects on the web only (urllib also follows them to ftp), and does not read their content."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        fp.close()
        if _scheme(newurl) not in ("http", "https"):
            raise _BrokenError(f"the server redirects to {newurl}, which is not on the web", final=True)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Transfer:
    """Downloads one URL into an open file, starting at the end of the file.

    checked: whether a checksum will detect parts that do not belong together. ``version`` is the server's name (ETag or
    date) of the version from which the present part was downloaded.
    """

    def __init__(self, url: str, path: Path, file: BinaryIO, checked: bool) -> None:
        self.url, self.path, self.file, self.checked = url, path, file, checked
        self.version: str | None = None

    def run(self) -> None:
        """Raises UserError after the last attempt: a StoppedError if the downloaded part is worth keeping."""
        tries = 1 if self.url.startswith("file:") else TRIES
        for attempt in range(tries):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                return self._try()
            except _BrokenError as error:
                reason = error
                if error.final:
                    break
        if self.checked and self.file.seek(0, os.SEEK_END):
            raise StoppedError(self._say(f"{reason}; the downloaded part is kept: run again to continue"))
        raise UserError(self._say(reason))

    def _say(self, reason: object) -> str:
        return (
            f"{self.path}: cannot be downloaded ({reason}); get {self.url} by other means, such as a machine with "
            "network, and put it there"
        )

    def _try(self) -> None:
        start = self.file.seek(0, os.SEEK_END)
        if start and not (self.version or self.checked):
            start = self._from_scratch()
        with self._open(start) as response:
            if response is None:
                return
            part = self._continues(response, start)
            size = _size(response, start, part)
            piece = _read(response)
            self._refuse_other_content(response.headers, piece)
            if not part:
                start = self._from_scratch()
            self.version = _version(response.headers)
            with tqdm(total=size, initial=start, unit="B", unit_scale=True, unit_divisor=1024, disable=None,
                      desc=self.path.name) as bar:  # fmt: skip
                while piece:
                    self.file.write(piece)
                    bar.update(len(piece))
                    piece = _read(response)
        if not (found := self.file.tell()):
            raise _BrokenError("the server sent nothing")
        if size not in (None, found):
            raise _BrokenError(f"the connection ended after {found:,} of {size:,} bytes")

    @contextmanager
    def _open(self, start: int) -> Iterator[Any]:
        """The server's response, from byte ``start`` if it supports that; None if the file ends at ``start``."""
        headers = {"User-Agent": "edm"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if self.version:
                headers["If-Range"] = self.version
        try:
            opener = urllib.request.build_opener(_WebOnly)
            response = opener.open(urllib.request.Request(self.url, headers=headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            beyond = start and error.code == _RANGE_NOT_SATISFIABLE
            if beyond:
                if error.headers.get("Content-Range") == f"bytes */{start}":
                    yield None
                    return
                self._from_scratch()
            final = not beyond and error.code < 500 and error.code not in _PASSING
            raise _BrokenError(f"the server answers {error.code} {error.reason}", final) from None
        except _FAILURES as error:
            raise _failed(error) from None
        with response:
            yield response

    def _from_scratch(self) -> int:
        self.file.seek(0)
        return self.file.truncate()

    def _continues(self, response: Any, start: int) -> bool:
        """Whether the response is the requested part; otherwise it is the whole file."""
        if response.status in (None, HTTPStatus.OK):  # None: a file
            return False
        if not start or response.status != HTTPStatus.PARTIAL_CONTENT:
            raise _BrokenError(f"the server answers {response.status} {response.reason}, not the file", final=True)
        if self.version not in (None, _version(response.headers)):
            self._from_scratch()
            raise _BrokenError("the published file changed during the download")
        return True

    def _refuse_other_content(self, headers: Message, piece: bytes) -> None:
        """Refuses a page, such as a login; and, if no checksum tells which is meant, a file coded for the transfer."""
        page = headers.get_content_type() == "text/html" and piece.lstrip().startswith(b"<")
        if page and self.path.suffix not in (".html", ".htm"):
            raise _BrokenError("the server sends a web page, perhaps a login or an error, not the file", final=True)
        coding = headers.get("Content-Encoding", "identity")
        if coding != "identity" and not self.checked and self.path.suffix not in (".gz", ".tgz"):
            raise _BrokenError(f"the server sends the file in another coding: {coding}", final=True)


def _read(response: Any) -> bytes:
    try:
        return response.read1(_PIECE)
    except _FAILURES as error:
        raise _failed(error) from None


def _failed(error: Exception) -> _BrokenError:
    if isinstance(error, OSError):
        return _BrokenError(getattr(error, "reason", error))
    return _BrokenError(f"the server's answer is malformed: {error or type(error).__name__}")


def _size(response: Any, start: int, part: bool) -> int | None:
    """The size of the whole file if the response states it. Raises _BrokenError for numbers that do not fit."""
    if response.headers.defects:  # the length may be among the lines that could not be read
        raise _BrokenError("the server's answer is malformed")
    length = response.headers.get("Content-Length")
    if length is not None and not re.fullmatch(_SIZE, length.strip()):
        raise _BrokenError(f"the server states {length!r} as the length")
    if part:
        sent = re.fullmatch(rf"bytes {start}-{_SIZE}/({_SIZE}|\*)", response.headers.get("Content-Range", "").strip())
        if not sent:
            raise _BrokenError("the server sent another part than the requested one")
        if sent[1] != "*":
            return int(sent[1])
    return None if length is None else start * part + int(length)


def _scheme(url: str) -> str:
    try:
        return urllib.parse.urlsplit(url).scheme
    except ValueError:
        return ""


def _version(headers: Message) -> str | None:
    """The validator of this content: a strong ETag, else the date of its last change (RFC 9110, 13.1.5)."""
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _checksums(sha256: str | None, md5: str | None) -> dict[str, str]:
    """The given checksums, lower case, by the name of their hash function."""
    sums = {name: value.lower() for name, value in (("sha256", sha256), ("md5", md5)) if value is not None}
    for name, value in sums.items():
        if not re.fullmatch(f"[0-9a-f]{{{_HEX_DIGITS[name]}}}", value):
            digits = _HEX_DIGITS[name].split(",")[-1]
            raise UserError(f"{value!r} is not {_LABELS[name]}: expected {digits} hexadecimal digits")
    return sums


def _mismatch(file: BinaryIO, sums: dict[str, str]) -> str | None:
    """Describes the first checksum of an open file that differs; None if all agree."""
    for name, expected in sums.items():
        file.seek(0)
        kind = functools.partial(hashlib.new, name, usedforsecurity=False)
        found = hashlib.file_digest(file, kind).hexdigest()  # type: ignore[arg-type]  # BinaryIO's stubs lack readinto
        if not found.startswith(expected):
            return f"{_LABELS[name]} is {found}, expected {expected}"
    return None

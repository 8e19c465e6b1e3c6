"""Downloads from a server that misbehaves: ``python tests/fuzz/fuzz_network.py --count 500 --seed 1``.

A download that is accepted must be the whole of one published version: anything else is counted as a fault.
"""

import hashlib
import itertools
import os
import random
import socket
import socketserver
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from door import command

from edm.files import download as module
from edm.files.download import download

VERSIONS = (b'"one"', random.Random(1).randbytes(60_000)), (b'"two"', random.Random(2).randbytes(60_000))
SHA256 = hashlib.sha256(VERSIONS[0][1]).hexdigest()
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>" * 50
STATUSES = (b"200 OK", b"200 OK", b"204 No Content", b"206 Partial Content", b"202 Accepted", b"299 x",
            b"304 Not Modified", b"301 Moved", b"302 Found", b"308 Permanent", b"400 Bad", b"401 Unauthorized",
            b"403 " + b"long " * 4000, b"404 \x1b[2J\xff", b"416 Range", b"429 Busy", b"500 Oops", b"503 Busy",
            b"999 ?", b"OK 200", b"")  # fmt: skip
PLACES = (b"http://[", b"ftp://127.0.0.1/data", b"file:///etc/passwd", b"//", b"http://", b"http://127.0.0.1:x/",
          b"\xff\xfe", b"/0", b"?again", b"http://127.0.0.1:9/none", b"data:,abc",
          b"https://127.0.0.1:9/" + b"x" * 60_000)  # fmt: skip
LENGTHS = (b"9" * 5000, b"-1", b"0", b"70000", b"1e5", b"60000, 60000", b"\xb2", b"", b"0x10", b"9" * 16, b" 60000 ")
RANGES = (b"bytes 0-59999/60000", b"bytes 7-9/60000", b"bytes */60000", b"bytes */0", b"bytes 99-1/2", b"none", b"",
          b"bytes " + b"9" * 5000 + b"-", b"bytes %d-%d/60000", b"bytes %d-%d/*",
          b"bytes %d-%d/" + b"9" * 5000)  # fmt: skip
CHUNKS = (b"zz\r\n", b"-5\r\nhello", b"f" * 300 + b"\r\n", b"-" + b"f" * 300 + b"\r\n", b"10\r\nshort", b"\r\n",
          b"5 ; x" * 20_000)  # fmt: skip


class Server(socketserver.ThreadingTCPServer):
    """Answers ``GET /SEED`` with the next answer that the seed gives; counts the answers to each seed."""

    daemon_threads = allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: dict[str, Iterator[int]] = {}
        self.seconds = 1.0  # of silence of a server that stalls


class Handler(socketserver.BaseRequestHandler):
    server: Server

    def handle(self) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            if not (part := self.request.recv(65536)):
                return
            request += part
        name = request.split(b" ", 2)[1].decode("latin-1").lstrip("/").partition("?")[0]
        count = next(self.server.asked.setdefault(name, itertools.count()))
        rng = random.Random(f"{name} {count}")
        head, body = answer(rng, asked_from(request))
        with suppress(OSError):
            self.request.sendall(head)
            self.request.sendall(body)
            if rng.random() < 0.1:  # as a server that stalls; otherwise the connection closes
                threading.Event().wait(self.server.seconds)

    def finish(self) -> None:
        with suppress(OSError):
            if random.random() < 0.2:  # resets the connection instead of closing it
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def asked_from(request: bytes) -> int:
    for line in request.split(b"\r\n"):
        if line.lower().startswith(b"range: bytes="):
            return int(line[13:].rstrip(b"-"))
    return 0


def answer(rng: random.Random, start: int) -> tuple[bytes, bytes]:
    """The head and the body of a server's answer: an honest one with one to three faults."""
    tag, content = VERSIONS[rng.random() < 0.1]
    status = b"206 Partial Content" if start else b"200 OK"
    headers = {b"Content-Length": b"%d" % (len(content) - start), b"ETag": tag}
    if start:
        headers[b"Content-Range"] = b"bytes %d-%d/%d" % (start, len(content) - 1, len(content))
    body = content[start:]
    for fault in rng.sample(range(12), rng.randint(0, 3)):
        if fault == 0 and not start:  # "200 OK" with a part of the file as the whole would be the truth of another file
            status = rng.choice(STATUSES)
        elif fault == 1:
            headers[b"Content-Length"] = rng.choice(LENGTHS)
        elif fault == 2:
            del headers[b"Content-Length"]
            headers[b"Transfer-Encoding"] = b"chunked"
            body = b"%x\r\n%s\r\n" % (len(content) - start, content[start:]) + rng.choice((b"0\r\n\r\n", b"", *CHUNKS))
            break
        elif fault == 3:
            text = rng.choice(RANGES)
            headers[b"Content-Range"] = text % (start, len(content) - 1) if b"%d" in text else text
        elif fault == 4:
            headers[b"Location"] = rng.choice(PLACES)
            status = rng.choice((b"301 Moved", b"302 Found", b"307 Temporary", b"308 Permanent"))
        elif fault == 5:
            headers[b"ETag"] = rng.choice((b'"other"' + tag, b"W/weak", tag * 10_000, tag + b"\xff", b""))
        elif fault == 6:
            status, body = b"200 OK", PAGE
            headers |= {b"Content-Type": b"text/html; charset=utf-8", b"Content-Length": b"%d" % len(PAGE)}
            break
        elif fault == 7:
            headers[b"Content-Encoding"] = rng.choice((b"gzip", b"br", b"identity", b"?"))
        elif fault == 8:
            body = body[: rng.randrange(len(body) + 1)]
        elif fault == 9:
            body = content[start:] + b"more" * 100
        elif fault == 10:
            headers |= {b"X-%d" % i: b"y" for i in range(rng.choice((5, 200)))}
        else:
            status = rng.choice((b"100 Continue\r\n\r\nHTTP/1.1 %s", b"%s\r\nno colon", b"%s\r\n folded: x")) % status
    lines = b"".join(b"%s: %s\r\n" % entry for entry in headers.items())
    return b"HTTP/1.1 " + status + b"\r\n" + lines + b"\r\n", body


@contextmanager
def serving() -> Iterator[Server]:
    """A server on the loop-back interface; within the block, downloads neither pause nor wait long for it."""
    old = module.PAUSE, module.TIMEOUT, os.environ.get("no_proxy")
    with Server() as server:
        module.PAUSE, module.TIMEOUT, os.environ["no_proxy"] = 0.0, server.seconds / 2, "127.0.0.1"  # type: ignore
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            module.PAUSE, module.TIMEOUT = old[:2]  # type: ignore[assignment]
            os.environ.pop("no_proxy") if old[2] is None else os.environ.update(no_proxy=old[2])


def generate(count: int, seed: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """Downloads with and without a checksum; about one in thirty from an address that is none."""
    with serving() as server, tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            name = f"{seed}-{i}"
            rng = random.Random(name)
            url = f"http://127.0.0.1:{server.server_address[1]}/{name}"
            if rng.random() < 0.03:
                url = rng.choice([place for place in PLACES if not place.startswith(b"file:")]).decode("latin-1")
            sha256 = SHA256 if rng.random() < 0.5 else None
            yield name, lambda url=url, sha256=sha256, name=name: fetch(url, Path(folder) / name, sha256)  # type: ignore


def fetch(url: str, path: Path, sha256: str | None) -> None:
    download(url, path, sha256)
    found = path.read_bytes()
    path.unlink()
    whole = [content for _, content in VERSIONS[: 1 if sha256 else 2]]
    assert found in whole, f"kept {len(found)} bytes: {found[:30]!r}"


if __name__ == "__main__":
    sys.exit(command(generate, __doc__))

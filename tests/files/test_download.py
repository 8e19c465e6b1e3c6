"""Downloads from a server on this machine: whole, checked and taken up where they broke, or not at all."""

import hashlib
import json
import random
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import edm
from edm.files import download as module
from edm.files.download import download, pin, verify

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves one file. ``trouble``: what to do to the next requests; ``asked``: the Range of each, or None.

    A number cuts the answer after that many bytes, an HTTP status is answered as it is, a function is called first, a
    dictionary replaces headers, and text is the whole answer.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.ranges = CONTENT, '"one"', True
        self.trouble, self.asked = [], []
        self.url = f"http://127.0.0.1:{self.server_port}/data.bin"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers["Range"]
        server.asked.append(asked)
        trouble = server.trouble.pop(0) if server.trouble else None
        if callable(trouble):
            trouble = trouble(server)
        if isinstance(trouble, tuple):
            return self.send_error(trouble[0])
        if isinstance(trouble, bytes):
            return self.wfile.write(trouble)
        content, start = server.content, 0
        if asked and server.ranges and self.headers["If-Range"] in (None, server.etag):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        else:
            self.send_response(200)
            headers = {}
        headers |= {"Content-Length": str(len(content) - start)} | ({"ETag": server.etag} if server.etag else {})
        changed, trouble = (trouble, None) if isinstance(trouble, dict) else ({}, trouble)
        for name, value in (headers | changed).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[start:][:trouble])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def failed(tmp_path):
    """Asserts that a download fails in one line that says so, with nothing left but what is to be continued."""

    def check(message, url, *, left=(), **sums):
        with pytest.raises(edm.UserError, match=message) as caught:
            download(url, tmp_path / "got.bin", **sums)
        assert "\n" not in str(caught.value)
        sizes = [path.stat().st_size for path in tmp_path.iterdir() if path.suffix == ".partial"]
        assert sizes == list(left) and len(list(tmp_path.iterdir())) == len(sizes)
        return str(caught.value)

    return check


def test_a_file_arrives_whole(server, tmp_path):
    path = download(server.url, tmp_path / "deep" / "got.bin", SHA256, MD5)
    assert path.read_bytes() == CONTENT and server.asked == [None]
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_is_there_is_checked_and_not_fetched_again(server, tmp_path):
    path = tmp_path / "got.bin"
    path.write_bytes(CONTENT)
    assert download(server.url, path, SHA256.upper()) == download(server.url, path) == path
    path.write_bytes(OTHER)
    with pytest.raises(
        edm.UserError, match=f"got.bin: SHA-256 is {hashlib.sha256(OTHER).hexdigest()}, expected {SHA256}"
    ):
        download(server.url, path, SHA256)
    assert path.read_bytes() == OTHER and server.asked == [], "it is the user's to remove"


def test_a_file_of_this_machine_is_a_download_too(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "time", None)  # no pause: another try would find no other answer
    source = tmp_path / "source" / "data.bin"
    source.parent.mkdir()
    source.write_bytes(CONTENT)
    assert download(source.as_uri(), tmp_path / "a" / "got.bin", md5=MD5).read_bytes() == CONTENT
    with pytest.raises(edm.UserError, match=r"got.bin: cannot be downloaded .*No such file"):
        download(source.with_name("none").as_uri(), tmp_path / "b" / "got.bin")
    assert list((tmp_path / "b").iterdir()) == []


# Trouble --------------------------------------------------------------------------------------------------------------


def test_a_broken_connection_is_taken_up_where_it_broke(server, tmp_path):
    server.trouble = [100_000, 50_000]
    assert download(server.url, tmp_path / "got.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_without_ranges_it_begins_again(server, tmp_path):
    server.ranges, server.trouble = False, [100_000]
    assert download(server.url, tmp_path / "got.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]


def test_a_file_that_changes_between_two_tries_is_never_mixed(server, tmp_path):
    def change(server):
        server.content, server.etag = OTHER, '"two"'

    server.trouble = [100_000, change]
    assert download(server.url, tmp_path / "got.bin").read_bytes() == OTHER


def test_without_a_version_or_a_checksum_nothing_is_continued(server, tmp_path):
    server.etag, server.trouble = "", [100_000]
    assert download(server.url, tmp_path / "got.bin").read_bytes() == CONTENT
    assert server.asked == [None, None]
    server.trouble, server.asked = [100_000], []
    assert download(server.url, tmp_path / "again.bin", SHA256).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]


@pytest.mark.parametrize("status", [503, 429])
def test_a_server_that_is_busy_is_asked_again(server, tmp_path, status):
    server.trouble = [(status,), (status,)]
    assert download(server.url, tmp_path / "got.bin", SHA256).read_bytes() == CONTENT


def test_a_server_that_stays_busy_is_asked_three_times(server, failed):
    server.trouble = [(503,)] * 9
    failed("the server answers 503 Service Unavailable", server.url)
    assert len(server.asked) == 3


def test_a_file_that_is_not_there_is_asked_for_once(server, failed, tmp_path):
    server.trouble = [(404,)]
    text = failed("the server answers 404 Not Found", server.url)
    assert len(server.asked) == 1 and server.url in text and str(tmp_path / "got.bin") in text


def test_offline_it_says_what_to_fetch_and_where_to_put_it(server, failed, tmp_path):
    server.server_close()
    text = failed("Connection refused", server.url, sha256=SHA256)
    assert text.startswith(str(tmp_path / "got.bin")) and f"get {server.url} by other means" in text


@pytest.mark.parametrize("answer, message", [
    (b"HTTP/1.1 204 No Content\r\n\r\n", "answers 204 No Content, not the file"),
    (b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok", "answers 202 Accepted, not the file"),
    (b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nab",
     "answers 206 Partial Content, not the file"),
    (b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/data.bin\r\n\r\n", "redirects to ftp://127.0.0.1/data.bin"),
    (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/hostname\r\n\r\n", "answers 302 .*file:///etc/hostname"),
    (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<!DOCTYPE html><p>Log in", "sends a web page"),
    (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b", "in another coding: gzip"),
    (b"HTTP/1.1 403 " + b"No" * 9000 + b"\x1b[2J\r\n\r\n", "answers 403 NoNo"),
])  # fmt: skip
def test_what_is_not_the_file_is_refused_at_once(server, failed, answer, message):
    server.trouble = [answer]
    assert len(failed(message, server.url)) < 1000 and len(server.asked) == 1


@pytest.mark.parametrize("answer, message", [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "the server sent nothing"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nab", "states '999"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nab", "states '-1' as the length"),
    (b"HTTP/1.1 200 OK\r\nno header\r\nContent-Length: 9\r\n\r\nab", "answer is malformed"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-" + b"f" * 99 + b"\r\nab", "answer is malformed"),
    (b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n", "Invalid IPv6 URL"),
])  # fmt: skip
def test_a_malformed_answer_is_no_traceback_and_the_next_attempt_may_succeed(server, failed, tmp_path, answer, message):
    server.trouble = [answer] * 3
    assert len(failed(message, server.url)) < 1000 and len(server.asked) == 3
    server.trouble = [answer]
    assert download(server.url, tmp_path / "got.bin").read_bytes() == CONTENT


def test_a_part_that_ends_before_the_file_does_is_continued(server, tmp_path):
    server.trouble = [100_000, {"Content-Range": "bytes 100000-199999/300000", "Content-Length": "100000"}]
    assert download(server.url, tmp_path / "got.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=200000-"]


def test_a_part_of_another_version_is_never_added_even_if_the_server_ignores_the_condition(server, tmp_path):
    def change(server):
        server.content = OTHER
        return {"ETag": '"two"'}

    server.trouble = [100_000, change]
    assert download(server.url, tmp_path / "got.bin").read_bytes() == OTHER
    assert server.asked == [None, "bytes=100000-", None]


def test_a_page_or_a_refusal_does_not_cost_the_part_that_is_kept(server, failed, tmp_path):
    server.trouble = [100_000, (503,), (503,)]
    failed("run again", server.url, left=[100_000], sha256=SHA256)
    for trouble in ((404,), b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>Log in"):
        server.trouble = [trouble]
        failed("the downloaded part is kept", server.url, left=[100_000], sha256=SHA256)
    assert download(server.url, tmp_path / "got.bin", SHA256[:8]).read_bytes() == CONTENT


def test_what_a_stopped_run_fetched_is_continued_where_a_checksum_tells_that_it_fits(server, failed, tmp_path):
    server.trouble = [100_000, (503,), (503,)]
    failed("the downloaded part is kept: run again to continue", server.url, left=[100_000], sha256=SHA256)
    server.asked = []
    assert download(server.url, tmp_path / "got.bin", SHA256).read_bytes() == CONTENT
    assert server.asked == ["bytes=100000-"] and len(list(tmp_path.iterdir())) == 1


def test_without_a_checksum_nothing_of_a_stopped_run_is_kept(server, failed, tmp_path, monkeypatch):
    server.trouble = [100_000, (503,), (503,)]
    failed("the server answers 503", server.url)

    def killed(file, sums):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_mismatch", killed)
        download(server.url, tmp_path / "got.bin")
    server.content, server.asked = OTHER, []
    assert len(list(tmp_path.iterdir())) == 1
    assert download(server.url, tmp_path / "got.bin").read_bytes() == OTHER and server.asked == [None]


def test_a_part_that_does_not_fit_is_thrown_away_and_all_is_fetched(server, failed, tmp_path):
    server.content, server.trouble = OTHER, [100_000, (503,), (503,)]
    failed("run again", server.url, left=[100_000], sha256=SHA256)
    server.content, server.asked = CONTENT, []
    assert download(server.url, tmp_path / "got.bin", SHA256).read_bytes() == CONTENT
    assert server.asked == ["bytes=100000-", None]


@pytest.mark.parametrize("extra, asked", [(b"", ["bytes=300000-"]), (b"more", ["bytes=300004-", None])])
def test_a_part_that_is_the_whole_or_more_is_no_trouble(server, failed, tmp_path, extra, asked):
    server.trouble = [100_000, (503,), (503,)]
    failed("run again", server.url, left=[100_000], sha256=SHA256)
    (partial,) = tmp_path.iterdir()
    partial.write_bytes(CONTENT + extra)
    server.asked = []
    assert download(server.url, tmp_path / "got.bin", SHA256).read_bytes() == CONTENT
    assert server.asked == asked


def test_another_file_than_expected_is_not_kept(server, failed):
    server.content = OTHER
    found = hashlib.sha256(OTHER).hexdigest()
    failed(f"SHA-256 is {found}, expected {SHA256}", server.url, sha256=SHA256)
    failed(f"MD5 is {hashlib.md5(OTHER).hexdigest()}, expected {MD5}", server.url, md5=MD5)


def test_addresses_and_checksums_that_are_none_are_refused(failed):
    failed("not an address to download from", "ftp://127.0.0.1/data.bin")
    failed("not an address to download from", "data.bin")
    failed("not an address to download from", "http://[")
    failed("not an address to download from", "http://127.0.0.1/" + "x" * 2000)
    failed("'abc' is not SHA-256: expected 64 hexadecimal digits", "http://127.0.0.1/", sha256="abc")
    failed("is not MD5: expected 32 hexadecimal digits", "http://127.0.0.1/", md5=SHA256)


def test_verify(tmp_path):
    path = tmp_path / "a.bin"
    with pytest.raises(edm.UserError, match=r"a.bin: no such file"):
        verify(path, SHA256)
    path.write_bytes(CONTENT)
    verify(path, SHA256, MD5)
    with pytest.raises(edm.UserError, match=r"a.bin: MD5 is [0-9a-f]+, expected 0+; remove it and get it again"):
        verify(path, SHA256, "0" * 32)


# Pins -----------------------------------------------------------------------------------------------------------------


def test_a_file_is_pinned_on_first_use_and_held_to_it_afterwards(tmp_path):
    lock, other = tmp_path / "deep" / "downloads.lock", hashlib.sha256(OTHER).hexdigest()
    assert pin(lock, "weights.pkl", SHA256) and not pin(lock, "weights.pkl", SHA256.upper())
    before = lock.read_bytes()
    with pytest.raises(edm.UserError, match=f"weights.pkl: SHA-256 is {other}, but .*downloads.lock has {SHA256}"):
        pin(lock, "weights.pkl", other)
    assert lock.read_bytes() == before
    assert pin(lock, "another.npz", other)
    assert list(json.loads(lock.read_text()).items()) == [("another.npz", other), ("weights.pkl", SHA256)]
    assert len(lock.read_text().splitlines()) == 4, "a line per file, for version control to merge"


def test_pins_of_many_processes_at_once_are_all_kept(tmp_path):
    code = """if True:
        import sys
        from edm.files.download import pin
        for i in range(20):
            pin(sys.argv[1], f"{sys.argv[2]}-{i}", "0" * 64)
    """
    lock = str(tmp_path / "downloads.lock")
    processes = [subprocess.Popen([sys.executable, "-c", code, lock, name]) for name in "abc"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(json.loads((tmp_path / "downloads.lock").read_text())) == 60


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 3}'])
def test_a_damaged_lock_file_is_refused_and_left_alone(tmp_path, content):
    lock = tmp_path / "downloads.lock"
    lock.write_text(content)
    with pytest.raises(edm.UserError, match=r"downloads.lock: not"):
        pin(lock, "a", SHA256)
    assert lock.read_text() == content


def test_nothing_heavy_is_imported():
    code = (
        "import sys, edm.files.download, edm.evaluation.search; sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

"""Files that a user names: only regular files of bounded size, each refusal one line, and no wait for a pipe."""

import os
import socket

import pytest

from edm.errors import UserError
from edm.files.reading import open_regular, read_regular, require_regular


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.mkdir("folder")
    os.symlink("pipe", "link_to_pipe")
    os.symlink("nowhere", "dangling")
    (tmp_path / "file").write_bytes(b"twelve bytes")
    os.symlink("file", "link")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("pipe", "is a pipe"), ("link_to_pipe", "is a pipe"), ("folder", "is a folder"), ("/dev/zero", "is a device"),
        ("/dev/full", "is a device"), ("socket", "cannot be read"), ("missing", "no such file"),
        ("dangling", "no such file"), ("file/below", "no such file"), ("", "no such file"),
        ("a" * 300, r"cannot be read \(File name too long\)"), ("null\0byte", "cannot be read"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("read", [open_regular, require_regular, lambda path, what: read_regular(path, 100, what)])
def test_only_a_regular_file_is_opened_and_the_line_says_what_is_there_and_what_was_expected(place, path, says, read):
    with pytest.raises(UserError, match=f"^.*: {says}.*; expected a checkpoint$") as caught:
        read(path, "a checkpoint")
    assert str(caught.value).isprintable()


def test_a_file_is_read_whole_also_behind_a_link_and_refused_beyond_the_limit(place):
    assert read_regular("file", 12, "text") == read_regular("link", 12, "text") == b"twelve bytes"
    with open_regular("link", "text") as file:
        assert file.read() == b"twelve bytes"
    require_regular("link", "text")
    with pytest.raises(UserError, match=r"^file: has more than 11 bytes; expected text$"):
        read_regular("file", 11, "text")
    with pytest.raises(UserError, match=r"^/proc/self/maps: has more than 100 bytes"):  # a regular file of size 0
        read_regular("/proc/self/maps", 100, "text")
    os.truncate("file", 1 << 40)  # sparse: a terabyte is not read
    with pytest.raises(UserError, match="more than 1,000,000 bytes"):
        read_regular("file", 1_000_000, "text")

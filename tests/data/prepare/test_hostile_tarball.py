"""Hostile and damaged CIFAR-10 tarballs: one clear line, nothing run, nothing extracted, little memory spent."""

import gzip
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
from made_up import cifar_batch, cifar_members, write_tarball

from edm.data.prepare import prepare

pytestmark = pytest.mark.usefixtures("cheap")


class Evil:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def cifar(tmp_path, refused):
    """Asserts that a tarball with another first batch is refused."""

    def check(message, batch):
        members, _, _ = cifar_members()
        members = [m for m in members if not m[0].endswith("batch_1")] + [("c/data_batch_1", batch)]
        path = write_tarball(tmp_path / "c.tar.gz", members)
        return refused(message, "cifar10", path, checksum=False, images=20)

    return check


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_is_never_run(tmp_path, cifar, protocol):
    marker = tmp_path / "ran"
    for call in (Evil(os.mkdir, str(marker)), Evil(eval, f"__import__('os').mkdir({str(marker)!r})"),
                 Evil(getattr, b"", "x"), {b"data": Evil(np.fromfile, "x"), b"labels": []}):  # fmt: skip
        cifar("data_batch_1 is (refused|damaged|not a batch)", pickle.dumps(call, protocol))
        assert not marker.exists()


@pytest.mark.parametrize(
    "program, message",
    [
        (b"\x80\x02cos\nsystem\nU\x04true\x85R.", r"it asks for os\.system"),
        (b"\x80\x02cnumpy\nload\nU\x01x\x85R.", r"it asks for numpy\.load"),
        (b"\x80\x02cnumpy\ndtype.__class__\n.", r"it asks for numpy\.dtype\.__class__"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", r"it asks for os\.system"),
        (b"\x80\x02(U\x04trueios\nsystem\n.", "its pickle uses INST"),
        (b"\x80\x02(U\x04trueo.", "its pickle uses OBJ"),
        (b"\x80\x02\x82\x01.", "its pickle uses EXT1"),
        (b"\x80\x02Pid\n.", "its pickle uses PERSID"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "no data or no labels"),  # a memo of all numbers below would take 32 GiB
        (b"}p2000000000\n.", "its pickle uses PUT"),
        (b"\x80\x02T\xff\xff\xff\x7fabc.", "claims 2,147,483,647 bytes where 4 are left"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "more text than any CIFAR-10 batch"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.", "otherwise than in latin1"),
        (
            b"\x80\x02c_codecs\nencode\nX\x03\x00\x00\x00\xe2\x82\xacX\x06\x00\x00\x00latin1\x86R.",
            "otherwise than in latin1",
        ),
        (
            b"\x80\x02c_codecs\nencode\nq\x00X\x28\x00\x00\x00"
            + b"a" * 40
            + b"X\x06\x00\x00\x00latin1\x86q\x01R"
            + b"h\x00h\x01R" * 99,
            "its text more than once",
        ),
        (b"\x80\x02cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R.", "pixels of kind a bytes"),
        (b"\x80\x02c_codecs\nencode\nN}U\x0c__defaults__K\x01s\x86b.", "sets the state of a name"),
        (b"\x80\x02K\x01.", "no data or no labels"),
        (b"\x80\x02]q\x00h\x00a.", "no data or no labels"),
        (b"", "its pickle ends too early"),
        (b"\x80\x02(((((.", "leaves no single value"),
    ],
)
def test_programs_of_every_instruction_are_refused(cifar, program, message):
    cifar(message, program)


def test_a_batch_that_is_not_pixels_and_labels_is_refused(cifar):
    pixels = np.zeros((4, 3072), np.uint8)
    cifar("data of shape", cifar_batch(pixels[:, :3000], [0] * 4))
    cifar("pixels of kind", cifar_batch(pixels.astype(np.float32), [0] * 4))
    cifar("pixels of kind O8", cifar_batch(pixels.astype(object), [0] * 4))
    cifar("data of shape 4×3072 and 3 labels", cifar_batch(pixels, [0] * 3))
    cifar("one label from 0 to 9", cifar_batch(pixels, [0, 1, 2, 10]))
    cifar("one label from 0 to 9", cifar_batch(pixels, [0, 1, 2, -1]))
    cifar("no data or no labels", pickle.dumps({b"data": pixels}, 2))
    lying = cifar_batch(pixels, [0] * 4).replace(
        struct.pack("<BBH", 0x4B, 4, 0x4D)[:2] + b"M\x00\x0c", b"K\xffM\x00\x0c"
    )
    cifar("data of shape", lying)


def test_a_tarball_with_another_checksum_is_refused(tmp_path, refused):
    members, _, _ = cifar_members()
    path = write_tarball(tmp_path / "c.tar.gz", members)
    refused("MD5 is [0-9a-f]{32}, expected c58f30108f718f92721af3b95e74349a; get", "cifar10", path)
    refused("MD5 is [0-9a-f]{32}, expected abc", "cifar10", path, checksum="abc")
    refused("no such file; expected cifar-10-python.tar.gz", "cifar10", tmp_path / "none.tar.gz")
    refused("needs an input", "cifar10", None)
    refused("takes one input", "cifar10", [path, path])


def test_a_tarball_that_is_not_whole_is_refused_at_any_length(tmp_path, refused):
    members, _, _ = cifar_members()
    whole = write_tarball(tmp_path / "c.tar.gz", members).read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 9):
        (tmp_path / "t.tar.gz").write_bytes(whole[:length])
        refused("not a whole gzip|missing", "cifar10", tmp_path / "t.tar.gz", checksum=False, images=20)
    (tmp_path / "t.tar.gz").write_bytes(b"\x1f\x8b" + bytes(3000))
    refused("not a whole gzip", "cifar10", tmp_path / "t.tar.gz", checksum=False)
    path = write_tarball(tmp_path / "m.tar.gz", [m for m in members if not m[0].endswith("batch_3")])
    refused("data_batch_3 missing", "cifar10", path, checksum=False)
    path = write_tarball(tmp_path / "m.tar.gz", [*members, members[-1]])
    refused("holds data_batch_1 twice", "cifar10", path, checksum=False)


def test_members_of_a_tarball_never_reach_the_disk(tmp_path, refused, monkeypatch):
    """Paths that lead out, links, devices: of all members only bytes of batches are read."""
    monkeypatch.chdir(tmp_path)
    link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members, _, _ = cifar_members()
    evil = [("../../escaped", b"x"), ("/tmp/escaped-edm-test", b"x"), (link, b"")]
    path = write_tarball(tmp_path / "c.tar.gz", [*evil, *members])
    prepare("cifar10", tmp_path / "o.zip", path, checksum=False, images=20)
    assert {file.name for file in tmp_path.iterdir()} == {"c.tar.gz", "o.zip"}
    assert not os.path.exists("/tmp/escaped-edm-test") and not (tmp_path.parent.parent / "escaped").exists()
    path = write_tarball(tmp_path / "d.tar.gz", [(link, b""), *members[:-1]])
    refused("data_batch_1 missing", "cifar10", path, checksum=False)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_gzip_bomb_is_refused_before_memory_is_spent(tmp_path, refused, kind, monkeypatch):
    """A gigabyte of zeros in a megabyte, as a batch, as a header or as a name."""
    monkeypatch.setattr("edm.data.prepare.cifar._MOST_BYTES", 16 << 20)  # a smaller scale, for speed
    info = tarfile.TarInfo("data_batch_1")
    info.type, info.size = kind, 1 << 33
    with gzip.open(tmp_path / "c.tar.gz", "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(64):
            file.write(bytes(1 << 20))
    refused("decompresses to more than 16 MiB", "cifar10", tmp_path / "c.tar.gz", checksum=False)

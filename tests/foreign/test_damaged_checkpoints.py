"""Damaged files: each ends in one line that says what to do, and none is half read."""

import io
import struct
import zipfile

import pytest
import torch
from small_files import adm_file, guided, tiny_files

import edm
from edm import foreign


@pytest.fixture
def files(tmp_path):
    return tiny_files(tmp_path)


def test_a_file_that_is_cut_is_refused_at_any_length(tmp_path, refused, files):
    for path, asked in files.items():
        whole = path.read_bytes()
        for length in {0, 1, 8, 9, 20, 100, 1000, len(whole) // 2, len(whole) * 9 // 10, len(whole) - 1}:
            (tmp_path / "cut").write_bytes(whole[:length])
            refused("damaged|empty|no known kind|not a (file of this|whole safetensors)", tmp_path / "cut", **asked)


@pytest.mark.slow
def test_a_bit_that_flips_is_refused_or_moves_a_weight(tmp_path, files):
    """Formats without checksums cannot tell a weight from another; what they read is still finite and complete."""
    for path, asked in files.items():
        whole = path.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 25)):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << (at % 8)
            (tmp_path / "flipped").write_bytes(flipped)
            try:
                denoiser = foreign.read(tmp_path / "flipped", **asked).denoiser
            except edm.UserError as error:
                assert "\n" not in str(error)
            else:
                assert all(tensor.isfinite().all() for tensor in denoiser.state_dict().values())


def test_every_flipped_bit_of_a_weight_in_an_archive_is_found(tmp_path, refused):
    net = guided()
    path = adm_file(tmp_path / "a.pt", net)
    weight = net.network.out_conv.weight.contiguous().numpy().tobytes()
    data = path.read_bytes()
    at = data.index(weight)
    for place in (at, at + len(weight) - 1):
        flipped = bytearray(data)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        refused("damaged: the checksum of out.2.weight is wrong", path, resolution=16, channels_per_head=16)


# Archives -------------------------------------------------------------------------------------------------------------


def archive(path, change=lambda members: members, **options):
    """A file of torch.save with other members."""
    buffer = io.BytesIO()
    torch.save({"x": torch.arange(4.0)}, buffer)
    with zipfile.ZipFile(buffer) as old:
        members = change({name: old.read(name) for name in old.namelist()})
    with zipfile.ZipFile(path, "w", **options) as new:
        for name, content in members.items():
            new.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda m: m, {}, "it holds a dictionary of x"),
        (lambda m: m, {"compression": zipfile.ZIP_DEFLATED}, "is compressed or encrypted"),
        (lambda m: m | {"archive/zeros": bytes(10**8)}, {"compression": zipfile.ZIP_BZIP2}, "is compressed"),
        (lambda m: m | {"other/data.pkl": b"\x80\x02N."}, {}, "not of torch.save"),
        (lambda m: {"archive/readme": b""}, {}, "not of torch.save"),
        (lambda m: m | {"archive/byteorder": b"big"}, {}, "big-endian"),
        (lambda m: m | {"archive/data/0": bytes(12)}, {}, "storage 0 claims 16 bytes and has 12"),
        (lambda m: {k: v for k, v in m.items() if not k.endswith("data/0")}, {}, "claims 16 bytes and has 0"),
        (lambda m: m | {f"archive/{i:0500d}": b"" for i in range(9000)}, {}, "zip directory has 4,"),
    ],
)
def test_archives_that_torch_does_not_write_are_refused(tmp_path, refused, change, options, message):
    refused(message, archive(tmp_path / "a.pt", change, **options))


def test_directories_that_lie_are_refused(tmp_path, refused):
    path = archive(tmp_path / "a.pt")
    whole = path.read_bytes()
    entry, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    for place, value, message in (
        (end + 12, 2**31, "zip directory has 2,147,483,648 bytes"),
        (end + 16, 2**31, "lies outside of the file"),
        (end + 16, 2**32 - 1, "has no end"),
        (end + 12, 10, "is cut"),
        (entry + 42, 2**31, "lies outside of the file"),
        (entry + 42, 7, "lies outside of the file"),
        (entry + 20, 2**31, "has two sizes"),
        (entry + 28, 2**16 - 1, "is cut"),
    ):
        edited = bytearray(whole)
        struct.pack_into("<I" if place != entry + 28 else "<H", edited, place, value)
        path.write_bytes(edited)
        refused(message, path)
    edited = bytearray(whole)
    struct.pack_into("<H", edited, entry + 8, 1)
    path.write_bytes(edited)
    refused("compressed or encrypted", path)


def test_a_name_twice_is_refused(tmp_path, refused):
    path = archive(tmp_path / "a.pt")
    with zipfile.ZipFile(path, "a") as more, pytest.warns(UserWarning, match="Duplicate name"):
        more.writestr("archive/data/0", bytes(16))
    refused("holds archive/data/0 twice", path)


def test_archives_with_64_bit_records_open_as_those_without(tmp_path):
    """torch writes the wide records always; a plain zip of the same members has none."""
    net = guided()
    wide = adm_file(tmp_path / "a.pt", net)
    with zipfile.ZipFile(wide) as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert b"PK\6\6" in wide.read_bytes() and b"PK\6\6" not in (tmp_path / "b.pt").read_bytes()
    one, other = (foreign.read(path, resolution=16, channels_per_head=16) for path in (wide, tmp_path / "b.pt"))
    assert all(torch.equal(a, b) for a, b in zip(one.denoiser.parameters(), other.denoiser.parameters(), strict=True))

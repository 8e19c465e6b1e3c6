"""A large archive is unpacked once per machine; every process sees the content that reading it alone gives."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from edm.data import archive, maps
from edm.data.archive import read_archive, write_archive
from edm.errors import UserError
from edm.files.lock import exclusive
from edm.training.batches import Ahead, Batches
from edm.training.loop import train


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv(maps.FOLDER, str(folder))
    monkeypatch.setattr(archive, "SHARED", 0)
    monkeypatch.setattr(maps, "_CHUNK", 5)  # several chunks, several workers
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Writes an archive of n images."""

    def make(name="a.zip", n=100, labels=True, seed=0):
        images = np.random.default_rng(seed).integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)
        write_archive(tmp_path / name, images, [i % 7 for i in range(n)] if labels else None)
        return tmp_path / name

    return make


def alone(path):
    """As one process reads it into memory."""
    before, archive.SHARED = archive.SHARED, 1 << 62
    try:
        return read_archive(path)
    finally:
        archive.SHARED = before


def require_equal(one, other):
    assert np.array_equal(one.images, other.images) and one.images.dtype == np.uint8
    assert (one.labels is None) == (other.labels is None)
    assert one.labels is None or (np.array_equal(one.labels, other.labels) and one.labels.dtype == np.int64)
    assert one.sha256 == other.sha256 and one.path == other.path


@pytest.mark.parametrize("labels", [True, False])
def test_the_shared_copy_is_the_archive(cache, pictures, labels):
    path = pictures(labels=labels)
    require_equal(read_archive(path), alone(path))
    assert len(list(cache.glob("*.u8"))) == 1


def test_the_second_reader_neither_hashes_nor_unpacks(cache, pictures, monkeypatch):
    path = pictures()
    long_ago = time.time() - 100
    os.utime(path, (long_ago, long_ago))
    time.sleep(2.1)  # a file changed a moment ago may change again in the same tick: it is hashed again
    first = read_archive(path)
    monkeypatch.setattr(maps, "unpack", None)
    monkeypatch.setattr("edm.files.hashes.sha256_file", None)
    require_equal(read_archive(path), first)


def test_writing_to_the_images_changes_no_other_reader(cache, pictures):
    path = pictures()
    one, other = read_archive(path), read_archive(path)
    one.images[0] = 255 - one.images[0]
    require_equal(other, alone(path))
    require_equal(read_archive(path), alone(path))


def test_an_equal_archive_elsewhere_has_the_same_copy_and_a_changed_one_another(cache, pictures):
    for path in (pictures("a.zip"), pictures("b.zip"), pictures("a.zip", seed=1)):
        require_equal(read_archive(path), alone(path))
    assert len(list(cache.glob("*.u8"))) == 2


PROCESS = """
import sys
from edm.data import archive, maps
archive.SHARED, maps._CHUNK = 0, 5
fill = maps._fill
def told(*args):
    print("unpacking", flush=True)
    {before}
    fill(*args)
maps._fill = told
found = archive.read_archive(sys.argv[1])
print(int(found.images.sum()), int(found.labels.sum()), flush=True)
"""


def process(path, before="pass"):
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS.format(before=before), path], stdout=subprocess.PIPE, text=True
    )


def test_processes_that_start_at_once_unpack_once(cache, pictures):
    path = pictures()
    printed = [each.communicate(timeout=120)[0].split("\n") for each in [process(path) for _ in range(4)]]
    assert sum(lines.count("unpacking") for lines in printed) == 1
    assert len({lines[-2] for lines in printed}) == 1
    assert printed[0][-2].split()[0] == str(alone(path).images.sum())


def test_a_process_killed_while_it_unpacks_leaves_nothing_that_is_read(cache, pictures):
    path = pictures()
    victim = process(path, "import time; time.sleep(1000)")
    assert victim.stdout.readline() == "unpacking\n"
    assert len(list(cache.glob(".*.u8"))) == 1 and not list(cache.glob("*.seal"))
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    require_equal(read_archive(path), alone(path))
    assert not list(cache.glob(".*.u8"))


@pytest.mark.parametrize("harm", ["touch", "shorten", "seal", "remove"])
def test_a_copy_that_is_not_as_it_was_sealed_is_made_anew(cache, pictures, harm):
    path = pictures()
    read_archive(path)
    ((numbers,), (seal,)) = cache.glob("*.u8"), cache.glob("*.seal")
    numbers.chmod(0o644)
    if harm == "touch":
        content = bytearray(numbers.read_bytes())
        content[0] ^= 1
        numbers.write_bytes(content)
    elif harm == "shorten":
        os.truncate(numbers, 100)
    elif harm == "seal":
        seal.write_text("{")
    else:
        numbers.unlink()
    require_equal(read_archive(path), alone(path))


def test_the_copies_used_least_recently_go_first_but_not_one_in_use(cache, pictures, monkeypatch):
    size = 100 * 3 * 64 + 100 * 8
    monkeypatch.setenv(maps.LIMIT, str(2.5 * size / 1e9))
    names = {}
    for number, name in enumerate("abc"):
        before = set(cache.glob("*.seal"))
        names[name] = read_archive(pictures(f"{name}.zip", seed=number)).sha256
        for seal in set(cache.glob("*.seal")) - before:
            os.utime(seal, (number, number))
    left = {path.stem for path in cache.glob("*.u8")}
    assert left == {names["b"], names["c"]}
    with exclusive(cache / f"{names['b']}.lock"):
        found = read_archive(pictures("d.zip", seed=3))
    assert {path.stem for path in cache.glob("*.u8")} == {names["b"], found.sha256}


@pytest.mark.parametrize("reason", ["full", "small", "others", "file"])
def test_without_room_each_process_reads_for_itself_and_says_why(cache, pictures, monkeypatch, capsys, reason):
    path = pictures()
    if reason == "full":
        message = os.strerror(errno.ENOSPC)

        def full(*_):
            raise OSError(errno.ENOSPC, message)

        monkeypatch.setattr(os, "posix_fallocate", full)
    elif reason == "small":
        message = f"it takes 0.0 GB; {maps.LIMIT} allows 1e-06"
        monkeypatch.setenv(maps.LIMIT, "0.000001")
    elif reason == "others":
        cache.mkdir()
        cache.chmod(0o777)
        message = "others may write to it"
    else:
        cache.write_text("")
        message = "File exists"
    require_equal(read_archive(path), alone(path))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path}: each process unpacks its own copy into memory (") and message in line
    assert cache.is_file() or not [each for each in cache.iterdir() if each.suffix == ".u8"]


def test_a_limit_that_is_no_number_is_named(cache, pictures, monkeypatch):
    monkeypatch.setenv(maps.LIMIT, "much")
    with pytest.raises(UserError, match=rf"{maps.LIMIT}=much: not a number of gigabytes"):
        read_archive(pictures())


def test_a_damaged_archive_is_refused_as_by_one_process(cache, pictures):
    path = pictures()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|not a readable image") as shared:
        read_archive(path)
    with pytest.raises(UserError) as single:
        alone(path)
    assert str(shared.value).split(":")[0] == str(single.value).split(":")[0] and not list(cache.glob("*.u8"))


# What a GPU cannot hold


def test_images_collected_ahead_are_those_asked_for():
    made = lambda first, count: (torch.arange(first, first + count), torch.zeros(1))
    ahead = Ahead(made)
    for (first, count), then in [((0, 4), (4, 4)), ((4, 4), (8, 2)), ((0, 3), None), ((3, 1), (9, 9)), ((5, 5), None)]:
        assert ahead.take(first, count, then)[0].tolist() == list(range(first, first + count))


@pytest.mark.slow
def test_training_with_images_in_host_memory_changes_no_bit(tiny, digits, digits_archive, cache, tmp_path, monkeypatch):
    config = tiny(batch_size=24, microbatch=10)
    train(config, digits, tmp_path / "one")
    monkeypatch.setattr("edm.training.batches._fits", lambda *_: False)
    monkeypatch.setattr(Batches, "_on_device", lambda self, part: part)
    mapped = read_archive(digits_archive)
    assert mapped.images.base is not None and Path(digits.path) == Path(mapped.path)
    train(config, mapped, tmp_path / "other")
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other

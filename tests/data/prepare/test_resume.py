"""An interrupted run is continued, not repeated, and ends in the bytes of an uninterrupted one."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from made_up import picture, write_folder, write_zip

import edm
from edm.data.prepare import pipeline, prepare, workers
from edm.data.zip_writer import ArchiveWriter
from edm.files.resumable import resumable

IMAGES = 40


@pytest.fixture
def tree(tmp_path):
    return write_folder(tmp_path / "in", {f"{i % 4}/{i:02d}.png": picture(i, 20, 18) for i in range(IMAGES)})


@pytest.fixture
def whole(tmp_path, tree):
    """Bytes of the archive, made without interruption."""
    prepare("folder", tmp_path / "whole.zip", tree, resolution=16)
    return (tmp_path / "whole.zip").read_bytes()


@pytest.fixture
def interrupt(tmp_path, tree, monkeypatch):
    """Runs until ``count`` images are written, then fails with an error. Returns the partial file."""

    def run(count, error=KeyboardInterrupt, resolution=16, path=tree, made_from=""):
        class Interrupted(ArchiveWriter):
            def add(self, png):
                if self.count == count:
                    raise error
                super().add(png)

        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "ArchiveWriter", Interrupted)
            with pytest.raises(type(error) if isinstance(error, Exception) else error):
                prepare("folder", tmp_path / "out" / "o.zip", path, resolution=resolution, made_from=made_from)
        (partial,) = (tmp_path / "out").glob(".*")
        return partial

    return run


@pytest.fixture
def continued(tmp_path, tree, monkeypatch):
    """Runs to the end. Returns the archive's bytes and how many images were made for it."""

    def run(path=tree, resolution=16):
        made = []
        encode = workers.encode_png
        with monkeypatch.context() as patch:
            patch.setattr(workers, "encode_png", lambda image: made.append(1) or encode(image))
            prepare("folder", tmp_path / "out" / "o.zip", path, resolution=resolution, workers=1)
        assert [file.name for file in (tmp_path / "out").iterdir()] == ["o.zip"]
        return (tmp_path / "out" / "o.zip").read_bytes(), len(made)

    return run


@pytest.mark.parametrize("count", [0, 1, 17, IMAGES - 1])
def test_an_interrupted_run_is_continued_where_it_stopped(whole, interrupt, continued, count):
    partial = interrupt(count)
    assert partial.name.startswith(".o.zip.") and partial.name.endswith(".partial")
    assert continued() == (whole, IMAGES - count)


def test_a_torn_tail_is_cut_off_wherever_it_was_torn(whole, interrupt, continued, tmp_path):
    partial = interrupt(10)
    content = partial.read_bytes()
    member = len(content) // 10
    for length in (*range(len(content) - member - 2, len(content), 97), 1, 29, 31, 60, 0):
        (tmp_path / "out" / "o.zip").unlink(missing_ok=True)
        partial.write_bytes(content[:length])
        assert continued() == (whole, IMAGES - length // member), length


@pytest.mark.parametrize("damage", ["zeros", "noise", "flipped", "huge"])
def test_what_a_crash_of_the_machine_leaves_is_cut_off_too(whole, interrupt, continued, damage):
    """Blocks that never reached the disk read as zeros; a checksum finds them wherever they are."""
    partial = interrupt(10)
    content = bytearray(partial.read_bytes())
    member = len(content) // 10
    kept = {"zeros": 10, "noise": 10, "flipped": 4, "huge": 9}[damage]
    match damage:
        case "zeros":
            content += bytes(5000)
        case "noise":
            content += os.urandom(5000)
        case "flipped":
            content[4 * member + member // 2] ^= 1
        case "huge":
            content[9 * member + 18 : 9 * member + 26] = b"\xff" * 8  # a size of 4 GiB
    partial.write_bytes(content)
    assert continued() == (whole, IMAGES - kept)


def test_killed_between_the_last_byte_and_the_new_name(whole, interrupt, continued):
    partial = interrupt(1)
    partial.write_bytes(whole)
    assert continued() == (whole, 0)


def children(pid):
    path = f"/proc/{pid}/task/{pid}/children"
    return open(path).read().split() if os.path.exists(path) else []


def state(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_a_killed_worker_stops_the_run_and_loses_nothing(whole, continued, tmp_path, tree, monkeypatch):
    """As the kernel does when memory runs out."""

    def killed(items, expected, shape):
        if items[0][1].endswith("30.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return make(items, expected, shape)

    make = workers._make
    with monkeypatch.context() as patch:
        patch.setattr(workers, "_CHUNK_IMAGES", 1)
        patch.setattr(workers, "_make", killed)
        killed.__module__, killed.__qualname__ = "edm.data.prepare.workers", "_make"  # where a worker finds it
        with pytest.raises(edm.UserError, match=r"a worker was killed .* what is done is kept: run again"):
            prepare("folder", tmp_path / "out" / "o.zip", tree, resolution=16, workers=2)
    content, made = continued()
    assert content == whole and 0 < made < IMAGES


def test_ctrl_c_stops_at_once_and_quietly(tmp_path):
    """SIGINT to the whole group, as a terminal sends it: no traceback from the workers, and the work is kept."""
    tree = write_folder(tmp_path / "in", {f"{i:03d}.png": picture(0, 30, 30) for i in range(1000)})
    slow = (  # 20 seconds at least, however busy the machine is that sends the signal
        "import sys, time\nfrom edm.data.prepare import pipeline\n"
        "class Slow(pipeline.ArchiveWriter):\n"
        "    def add(self, png):\n        super().add(png); time.sleep(0.02)\n"
        "pipeline.ArchiveWriter = Slow\n"
        "from edm.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", slow, "prepare", str(tmp_path / "out" / "o.zip"), "--source", "folder",
               "--input", str(tree), "--resolution", "16", "--workers", "2"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not list((tmp_path / "out").glob(".*.partial")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=20)[1] == "interrupted\n" and process.returncode == 130
    assert len(list((tmp_path / "out").glob(".*.partial"))) == 1


def test_a_killed_process_is_continued(tmp_path, tree, whole, continued):
    """SIGKILL, the real thing, while images are being written."""
    slow = (
        "import sys, time\nfrom edm.data.prepare import pipeline, prepare\n"
        "class Slow(pipeline.ArchiveWriter):\n"
        "    def add(self, png):\n        super().add(png); self._file.flush(); time.sleep(0.05)\n"
        "pipeline.ArchiveWriter = Slow\n"
        "prepare('folder', sys.argv[1], sys.argv[2], resolution=16, workers=3)\n"
    )
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", slow, str(out / "o.zip"), str(tree)])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not any(file.stat().st_size > 3000 for file in out.glob(".*.partial")):
        time.sleep(0.01)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (out / "o.zip").exists()
    content, made = continued()
    assert content == whole and 0 < made < IMAGES
    while workers and time.monotonic() < deadline:
        workers = [pid for pid in workers if os.path.exists(f"/proc/{pid}/stat") and "Z" not in state(pid)]
    assert not workers, "workers outlive their parent"


def test_only_the_same_work_is_continued(interrupt, continued, tree, tmp_path):
    """Another resolution, a file that changed, another source: each starts anew and clears what it cannot use."""
    interrupt(10)
    assert continued(resolution=8)[1] == IMAGES
    (tmp_path / "out" / "o.zip").unlink()
    interrupt(10)
    (tree / "0" / "00.png").write_bytes(picture(99, 20, 18))
    assert continued()[1] == IMAGES
    (tmp_path / "out" / "o.zip").unlink()
    zipped = write_zip(tmp_path / "a.zip", {f"{i}.png": picture(i) for i in range(IMAGES)})
    interrupt(10, path=zipped)
    write_zip(tmp_path / "a.zip", {f"{i}.png": picture(i + 1) for i in range(IMAGES)})
    assert continued(path=zipped)[1] == IMAGES


def test_a_full_disk_loses_nothing(whole, interrupt, continued, tmp_path, tree):
    """Failures of the machine keep what is done; mistakes in the input (test_hostile.py) do not."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full(ArchiveWriter):
        def add(self, png):
            if self.count == 12:
                raise full
            super().add(png)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "ArchiveWriter", Full)
        with pytest.raises(edm.UserError, match=r"o\.zip: No space left on device; what is done is kept"):
            prepare("folder", tmp_path / "out" / "o.zip", tree, resolution=16)
    assert continued() == (whole, IMAGES - 12)


def test_a_file_that_cannot_be_read_just_now_loses_nothing(whole, continued, tmp_path, tree, monkeypatch):
    def stale(path, *rest, **options):
        if str(path).endswith("33.png"):
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return open(path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(workers, "_CHUNK_IMAGES", 1)
        patch.setattr("edm.data.trees.open", stale, raising=False)
        with pytest.raises(edm.UserError, match=r"33\.png: cannot be read \(Stale file handle\)"):
            prepare("folder", tmp_path / "out" / "o.zip", tree, resolution=16)
    content, made = continued()
    assert content == whole and made < IMAGES


def test_two_processes_do_not_write_the_same_archive(tmp_path, tree, interrupt, continued, whole):
    key = interrupt(5).name.split(".")[-2]
    with (
        resumable(tmp_path / "out" / "o.zip", key),
        pytest.raises(edm.UserError, match="another process is preparing it"),
    ):
        prepare("folder", tmp_path / "out" / "o.zip", tree, resolution=16)


def test_a_process_that_opened_the_file_before_another_finished_it_does_not_touch_it(tmp_path, monkeypatch):
    """It holds the finished archive, now under its real name."""
    from edm.files import resumable as module

    output = tmp_path / "o.zip"
    lock = module._lock

    def finished_meanwhile(file):
        monkeypatch.setattr(module, "_lock", lock)
        os.replace(tmp_path / ".o.zip.key.partial", output)
        return lock(file)

    monkeypatch.setattr(module, "_lock", finished_meanwhile)
    with pytest.raises(edm.UserError, match="another process is preparing it"), resumable(output, "key"):
        pytest.fail("it was handed out")
    assert [file.name for file in tmp_path.iterdir()] == ["o.zip"]


def test_the_old_archive_stays_until_the_new_one_is_whole(interrupt, continued, tmp_path, whole):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "o.zip").write_bytes(b"the old one")
    (tmp_path / "out" / ".o.zip.0123456789ab.partial").write_bytes(b"of a source that has changed since")
    interrupt(10)
    assert (tmp_path / "out" / "o.zip").read_bytes() == b"the old one"
    assert continued() == (whole, IMAGES - 10)


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, tree):
    with pytest.raises(edm.UserError, match="is a folder and would be replaced"):
        prepare("folder", tmp_path, tree, resolution=16)
    (tmp_path / "file").write_text("x")
    with pytest.raises(edm.UserError, match="cannot be written"):
        prepare("folder", tmp_path / "file" / "o.zip", tree, resolution=16)


def test_what_other_code_began_is_not_continued(interrupt, continued, whole):
    """As `edm prepare` says: the code number of its rule, or the step's whole upstream."""
    interrupt(17, made_from="older code")
    assert continued() == (whole, IMAGES)

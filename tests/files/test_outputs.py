"""No output replaces a device, a folder, a pipe or a socket, nor what its own command reads; told before any work."""

import os
import shutil
import socket
import stat

import numpy as np
import pytest

import edm
from edm.cli import main
from edm.commands.common import MADE_FROM
from edm.data.archive import read_archive, write_archive
from edm.data.prepare import prepare
from edm.files.outputs import require_apart, require_replaceable
from edm.files.resumable import resumable
from edm.files.writing import atomic_write, write_json, write_text


def stands(path):
    """What stands at a path: its kind, inode and device, and the content of a file."""
    status = os.lstat(path)
    content = path.read_bytes() if stat.S_ISREG(status.st_mode) else sorted(os.listdir(path)) if path.is_dir() else None
    return stat.S_IFMT(status.st_mode), status.st_ino, status.st_rdev, content


def folder(path):
    path.mkdir()
    (path / "kept.txt").write_text("kept")


def pipe(path):
    os.mkfifo(path)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as place:
        os.chdir(path.parent)  # a socket's path must be short
        place.bind(path.name)


def link_to_a_device(path):
    path.symlink_to("/dev/null")


def link_to_a_folder(path):
    folder(path.with_name("target"))
    path.symlink_to("target")


@pytest.mark.parametrize("make", [folder, pipe, unix_socket, link_to_a_device, link_to_a_folder])
@pytest.mark.parametrize("write", ["atomic_write", "resumable", "prepare", "require_replaceable"])
def test_what_is_no_file_is_never_replaced(tmp_path, monkeypatch, make, write):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "out.zip"
    make(path)
    before = stands(path)
    with pytest.raises(edm.UserError, match=r"out\.zip: is (a folder|a device|a pipe|a socket) and would be replaced"):
        if write == "atomic_write":
            write_text(path, "new")
        elif write == "resumable":
            with resumable(path, "key"):
                pytest.fail("no work begins")
        elif write == "prepare":
            prepare("digits", path)
        else:
            require_replaceable(path)
    assert stands(path) == before
    assert {file.name for file in tmp_path.iterdir()} <= {"out.zip", "target"}, "nothing is left beside it"


@pytest.mark.parametrize("path", ["/dev/full", "/dev/null", "/dev/stdout", "/dev/fd/1", "/dev/no_device_yet",
                                  "/proc/self/fd/1", "/sys/new.json"])  # fmt: skip
def test_the_system_s_folders_are_never_written_to(path):
    """As root, an output of /dev/full became a file; /dev/stdout is a link, to a file where output goes to one."""
    before = os.path.lexists(path) and os.lstat(path)
    with pytest.raises(edm.UserError, match=f"^{path}: is a system path; name a file to write"):
        write_json(path, {})
    assert (os.path.lexists(path) and os.lstat(path)) == before


def test_a_file_is_replaced_and_a_link_to_one_leaves_its_target(tmp_path):
    target, link, second = tmp_path / "target", tmp_path / "link", tmp_path / "second"
    target.write_text("old")
    link.symlink_to("target")
    os.link(target, second)
    for path in (link, second):
        write_text(path, "new")
        assert path.read_text() == "new" and target.read_text() == "old" and not path.is_symlink()
    (tmp_path / "dangling").symlink_to("nowhere")
    write_text(tmp_path / "dangling", "new")
    assert (tmp_path / "dangling").read_text() == "new" and not (tmp_path / "nowhere").exists()


def test_what_became_a_folder_while_work_was_done_is_not_replaced(tmp_path):
    with pytest.raises(edm.UserError, match="cannot be written"), atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("new")
        folder(tmp_path / "a")
    assert (tmp_path / "a" / "kept.txt").read_text() == "kept"


def test_an_output_is_apart_from_every_input(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("x")
    (tmp_path / "link").symlink_to("in/file")
    os.link(tmp_path / "in" / "file", tmp_path / "hard")
    for output in ("in/file", "in/../in/file", "link", "hard"):
        with pytest.raises(edm.UserError, match="is read by this command and would be replaced"):
            require_apart([tmp_path / output], [tmp_path / "other", tmp_path / "in" / "file"])
    for output in ("in/new", "in/deep/new"):
        with pytest.raises(edm.UserError, match=r"is inside .*in, which this command reads"):
            require_apart([tmp_path / output], [tmp_path / "in"])
    require_apart([tmp_path / "new", tmp_path / "inner"], [tmp_path / "in", tmp_path / "in" / "file"])


# The command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch, rgb_images):
    """A folder to work in, with a dataset, files that stand for others, and params.yaml."""
    shutil.copy("params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    write_archive("d.zip", rgb_images, list(range(12)))
    for name in ("m.safetensors", "s.safetensors", "r.npz", "p.pkl", "c.json"):
        (tmp_path / name).write_bytes(b"a user's file")
    os.link("m.safetensors", "hard.safetensors")
    (tmp_path / "link.safetensors").symlink_to("m.safetensors")
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "000000000001.safetensors").write_bytes(b"a user's file")
    return tmp_path


STUDY = ["--experiment", "digits", "--model", "edm"]


@pytest.mark.parametrize(
    "command",
    [
        "prepare d.zip --source zip --input d.zip",
        "prepare snapshots --source folder --input snapshots",
        "prepare snapshots/o.zip --source folder --input snapshots",
        "prepare params.yaml --dataset digits",
        "features d.zip d.zip",
        "export m.safetensors m.safetensors",
        "export m.safetensors link.safetensors",
        "export hard.safetensors m.safetensors",
        "sample m.safetensors m.safetensors",
        "sample m.safetensors ./m.safetensors",
        "merge m.safetensors s.safetensors m.safetensors",
        "fid-ref d.zip d.zip",
        "fid-ref d.zip r.npz --weights r.npz",
        "import p.pkl p.pkl",
        "import p.pkl new.safetensors --lock p.pkl",
        "fid s.safetensors --ref r.npz --output s.safetensors",
        "fid s.safetensors --ref r.npz --output r.npz",
        "track sync --output params.yaml",
        "bench digits --output params.yaml",
        "train --config c.json --data d.zip --out c.json",
        "choose snapshots snapshots/000000000001.safetensors --ref r.npz",
        "evaluate m.safetensors m.safetensors --evaluation e --ref r.npz",
        "evaluate m.safetensors o.json --evaluation e --ref r.npz --journal m.safetensors",
        "evaluate m.safetensors o.json --evaluation e --ref r.npz --parts s.safetensors o.json",
        "search m.safetensors o.json --search s --ref r.npz --history o.json",
        "sheet m.safetensors m.safetensors --sheet s",
        "analyse m.safetensors d.zip --analysis leakage --data d.zip",
    ],
)
def test_a_command_does_not_replace_what_it_reads(place, capsys, command):
    before = {file: file.read_bytes() for file in place.rglob("*") if file.is_file()}
    words = command.split()
    assert main(words + (STUDY if words[0] in ("choose", "evaluate", "search", "sheet", "analyse") else [])) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert any(text in error for text in ("would be replaced", "is inside", "named for two", "is not a folder")), error
    assert {file: file.read_bytes() for file in place.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("output", "reason"),
    [("m.safetensors/o", "m.safetensors is not a folder"), ("m.safetensors/a/b/o", "m.safetensors is not a folder"),
     ("n" * 300, "File name too long"), ("a/" * 3000 + "o", "File name too long"),
     ("closed/o", "no permission in closed")],
)  # fmt: skip
@pytest.mark.parametrize(
    "command",
    ["sample s.safetensors {}.png", "evaluate s.safetensors {} --evaluation e --ref r.npz", "features d.zip {}",
     "train --config c.json --data d.zip --out {}", "export s.safetensors {}", "import p.pkl {}"],
)  # fmt: skip
def test_an_output_that_cannot_be_made_is_told_before_the_work(place, capsys, monkeypatch, command, output, reason):
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "closed" and access(path, mode))  # root may write
    (place / "closed").mkdir()
    words = command.format(output).split()
    assert main(words + (STUDY if words[0] == "evaluate" else [])) == 1
    assert f": cannot be written ({reason}); name another place" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["/dev/full", "/dev/stdout", "snapshots", "pipe"])
@pytest.mark.parametrize(
    "command",
    [
        "prepare {} --source digits",
        "features d.zip {}",
        "export m.safetensors {}",
        "import p.pkl {}",
        "sample m.safetensors {}",
        "merge {} s.safetensors",
        "fid-ref d.zip {}",
        "fid s.safetensors --ref r.npz --output {}",
        "track sync --output {}",
        "bench digits --output {}",
        "evaluate m.safetensors {} --evaluation e --ref r.npz",
        "search m.safetensors o.json --search s --ref r.npz --history {}",
    ],
)
def test_no_command_replaces_what_is_no_file(place, capsys, command, output):
    os.mkfifo(place / "pipe")
    status = os.lstat(output)
    words = command.format(output).split()
    assert main(words + (STUDY if words[0] in ("evaluate", "search") else [])) == 1
    assert output in capsys.readouterr().err
    assert (os.lstat(output).st_mode, os.lstat(output).st_ino) == (status.st_mode, status.st_ino)


def test_a_dataset_of_params_yaml_does_not_replace_its_raw_data(place, capsys):
    text = (place / "params.yaml").read_text()
    own = "\n  own: {source: zip, path: d.zip, resolution: 16, channels: 3, classes: 12}"
    (place / "params.yaml").write_text(text.replace("\ndatasets:", f"\ndatasets:{own}", 1))
    before = (place / "d.zip").read_bytes()
    assert main(["prepare", "d.zip", "--dataset", "own"]) == 1
    assert "d.zip: is read by this command" in capsys.readouterr().err
    assert (place / "d.zip").read_bytes() == before
    assert main(["prepare", "o.zip", "--dataset", "own"]) == 0
    assert (read_archive("o.zip").images == read_archive("d.zip").images).all()


def test_a_journal_is_not_replaced_by_the_summary_of_its_delivery(place, capsys):
    (place / "runs").mkdir()
    journal = place / "runs" / "journal.jsonl"
    journal.write_text("{}\n")
    assert main(["track", "sync", "--uri", f"sqlite:///{place}/m.db", "--output", "runs/journal.jsonl"]) == 1
    assert "is read by this command" in capsys.readouterr().err and journal.read_text() == "{}\n"


def test_an_output_is_replaced_as_before_where_nothing_is_lost(place):
    (place / "o.zip").write_bytes(b"an older one")
    assert main(["prepare", "o.zip", "--source", "zip", "--input", "d.zip"]) == 0
    assert np.array_equal(read_archive("o.zip").images, read_archive("d.zip").images)


@pytest.mark.parametrize(
    ("output", "folder"),
    [("o.zip", None), ("snapshots/o.zip", None), ("snapshtos/o.zip", "snapshtos"), ("a/b/o.zip", "a/b")],
)
def test_a_folder_that_an_output_makes_is_told(place, capsys, monkeypatch, output, folder):
    """It may be mistyped; steps of the chain have their own places."""
    command = ["prepare", output, "--source", "zip", "--input", "d.zip"]
    assert main(command) == 0
    told = capsys.readouterr().err
    assert told.endswith(f"new folder: {folder}\n") if folder else "new folder" not in told
    if folder:
        shutil.rmtree(folder)
        monkeypatch.setenv(MADE_FROM, "0")
        assert main(command) == 0 and "new folder" not in capsys.readouterr().err


def test_a_folder_is_not_told_of_work_that_failed(place, capsys):
    assert main(["prepare", "snapshtos/o.zip", "--source", "zip", "--input", "p.pkl"]) == 1
    assert "new folder" not in capsys.readouterr().err

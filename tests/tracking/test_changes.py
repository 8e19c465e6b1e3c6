"""The uncommitted changes of code: a file that repeats them in a clone, bounded, without secrets."""

import subprocess

import pytest

from edm.tracking import changes, uncommitted


@pytest.fixture
def git(tmp_path):
    place = tmp_path / "repository"
    place.mkdir()

    def run(*arguments, cwd=place):
        command = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false", *arguments]
        return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()

    run("init", "-q")
    texts = {"edm/a.py": "one\ntwo\n", "params.yaml": "run: []\n", "b.txt": "b\n", ".dvc/config": "x\n"}
    for name, text in texts.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    (place / "image").write_bytes(bytes(range(256)))
    run("add", ".")
    run("commit", "-qm", "m")
    run.place = place
    return run


def head(found):
    return [line for line in found.decode().splitlines() if line.startswith("# ")]


def test_a_clone_with_the_changes_has_the_same_files(git, tmp_path):
    assert uncommitted(git.place) is None
    (git.place / "edm/a.py").write_text("one\nthree\n")
    (git.place / "image").write_bytes(bytes(range(255, -1, -1)))
    (git.place / "b.txt").unlink()
    (git.place / "new.py").write_text("n = 1\n")
    git("add", "new.py")
    for setting in ("diff.noprefix", "diff.mnemonicPrefix"):  # as some users have them
        git("config", setting, "true")
    found = uncommitted(git.place / "edm")
    assert head(found) == [f"# uncommitted changes of {git('rev-parse', 'HEAD')}"]
    (tmp_path / "changes.diff").write_bytes(found)
    git("clone", "-q", str(git.place), str(tmp_path / "clone"))
    git("apply", str(tmp_path / "changes.diff"), cwd=tmp_path / "clone")
    for name in ("edm/a.py", "image", "new.py"):
        assert (tmp_path / "clone" / name).read_bytes() == (git.place / name).read_bytes()
    assert not (tmp_path / "clone/b.txt").exists()


def test_untracked_code_is_named_and_its_content_stays_out(git):
    (git.place / "edm/a.py").write_text("one\n")
    (git.place / "edm/mine.py").write_text("private = 1\n")
    (git.place / "notes.txt").write_text("private = 2\n")
    found = uncommitted(git.place)
    assert "# untracked, not in this file: edm/mine.py" in head(found)
    assert b"private" not in found and b"notes" not in found


@pytest.mark.parametrize(("name", "text", "kept"), [
    ("params.yaml", "tracking: {uri: 'https://me:hunter2@mlflow.org'}\n", False),
    ("params.yaml", "password: hunter2\n", False),
    ("b.txt", "AWS_SECRET_ACCESS_KEY=hunter2\n", False),
    ("edm/a.py", "token = 'hunter2'\n", False),
    ("edm/a.py", "page_token = page.token  # hunter2\n", True),
    (".dvc/config", "url = s3://hunter2\n", False),
    ("params.yaml", "tracking: {uri: 'https://mlflow.org'}  # hunter2\n", True),
])  # fmt: skip
def test_what_looks_like_a_secret_stays_out(git, name, text, kept):
    (git.place / name).write_text(text)
    found = uncommitted(git.place)
    assert (b"hunter2" in found, f"# not in this file: {name}" in head(found)) == (kept, not kept)


def test_the_size_is_bounded_and_what_is_left_out_is_named(git, monkeypatch):
    monkeypatch.setattr(changes, "LIMIT", 4096)
    (git.place / "b.txt").write_text("line\n" * 100)
    (git.place / "edm/a.py").write_text("line\n" * 100_000)
    (git.place / "params.yaml").write_text("run: [a]\n")
    found = uncommitted(git.place)
    assert len(found) < 4096 + 500 and b"+++ b/b.txt" in found
    assert head(found)[1:] == ["# not in this file: edm/a.py", "# not in this file: params.yaml"]


def test_a_folder_without_git_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert uncommitted(tmp_path) is None

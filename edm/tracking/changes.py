"""The uncommitted changes of the running code, as a file that ``git apply`` takes."""

import os
import re
import subprocess
from pathlib import Path

#: Folders whose untracked files may be part of what runs.
CODE = ("edm", "workflow", "snakemake_logger_plugin_edm")
LIMIT = 1 << 20  # bytes of a diff; a larger one is cut between two files
_NOT_KEPT = (".dvc",)  # addresses and logins of remote storage, which affect no result
_DIFF = ("-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false", "diff", "HEAD", "--no-renames",
         "--no-ext-diff", "--no-textconv", "--no-color", "--ignore-submodules")  # fmt: skip
_NAMES = rb"(password|passwd|secret|token|api_?key|access_?key)\w*[\"']?\s*[:=]\s*"
# A login in an address, and a value whose name says that it is secret: in code, if it is quoted.
_SECRET = re.compile(rb"^[-+ ].*(://[^/\s:@]+:[^/\s@]+@|" + _NAMES + rb"\S)", re.I | re.M)
_SECRET_IN_CODE = re.compile(rb"^[-+ ].*(://[^/\s:@]+:[^/\s@]+@|" + _NAMES + rb"[\"'][^\"'])", re.I | re.M)
_NAMED = 100  # untracked files whose names are kept


def uncommitted(folder: str | os.PathLike[str] | None = None) -> bytes | None:
    """The changes since the last commit of a repository, by default that of this code; None without changes.

    The first lines, which begin with "#", state the commit, the names of untracked files in the folders ``CODE`` (not
    their content), and the changed files that are left out: those after the first ``LIMIT`` bytes, those with a line
    that looks like a password, and those of DVC. ``git apply FILE`` in a checkout of the commit repeats the rest.

    Never raises. Example: ``(uncommitted() or b"").decode()``.
    """
    top = _git(folder or Path(__file__).parent, "rev-parse", "--show-toplevel")
    if folder is None and not _git(Path(__file__).parent, "ls-files", Path(__file__).name):
        return None  # another project's repository
    if not top:
        return None
    place = os.fsdecode(top.rstrip(b"\n"))
    tracked = ("--", ".", *(f":(exclude){name}" for name in _NOT_KEPT))
    names = [os.fsdecode(name) for name in _git(place, *_DIFF, "--name-only", "-z", "--", ".").split(b"\0") if name]
    if not names:
        return None
    kept = [name for name in names if not name.startswith(tuple(f"{own}/" for own in _NOT_KEPT))]
    text = _git(place, *_DIFF, "--binary", *tracked, limit=LIMIT + 1)
    parts = re.split(rb"(?m)^(?=diff --git )", text)[1:]
    if len(text) > LIMIT:
        parts = parts[:-1]  # its end is missing
    shown = {name: part for name, part in zip(kept, parts, strict=False) if not _may_be_secret(name, part)}
    untracked = _git(place, "ls-files", "--others", "--exclude-standard", "-z", "--", *CODE, limit=1 << 16).split(b"\0")
    lines = [f"# uncommitted changes of {_git(place, 'rev-parse', 'HEAD').decode().strip()}"]
    lines += [f"# not in this file: {name}" for name in names if name not in shown]
    lines += [f"# untracked, not in this file: {os.fsdecode(name)}" for name in untracked[:_NAMED] if name]
    return "\n".join(lines).encode("utf-8", "surrogateescape") + b"\n" + b"".join(shown.values())


def _may_be_secret(name: str, part: bytes) -> bool:
    return bool((_SECRET_IN_CODE if name.endswith((".py", ".smk", "Snakefile")) else _SECRET).search(part))


def _git(folder: str | os.PathLike[str], *arguments: str, limit: int = 1 << 24) -> bytes:
    """The first ``limit`` bytes of git's output; empty if it fails."""
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # concurrent jobs must not wait for the index lock
    command = ["git", *arguments]
    try:
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            found = process.stdout.read(limit)
            if len(found) == limit:
                process.kill()
                return found
    except OSError:
        return b""
    return found if process.returncode == 0 else b""

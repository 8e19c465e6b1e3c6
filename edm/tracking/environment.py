"""The environment of a run as tags: code commit, data revision, job, host and GPU."""

import functools
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

from edm.errors import UserError
from edm.files.hashes import Hashes

IMAGE = "EDM_IMAGE"  # environment variable: the image of a container that does not say so itself
DESCRIPTION = "description"  # the tag of a run that MLflow shows as its description
_DVC_FILES = ("dvc.yaml", "dvc.lock", "*.dvc")


def environment_tags() -> dict[str, str]:
    """Commit and dirty flag, DVC revision, host, Python, image, Slurm job and GPU; unknown ones are omitted.

    Never raises, and imports nothing large: it names the GPU only if the job has already imported torch.
    """
    tags = {"host": socket.gethostname(), "python": platform.python_version()}
    tags |= _git_tags() | _dvc_tags(os.getcwd()) | _slurm_tags() | _image_tags()
    if (torch := sys.modules.get("torch")) is not None:
        try:
            if torch.cuda.is_available():
                tags["gpu"] = torch.cuda.get_device_name()
        except Exception:
            pass  # a broken driver must not fail the job
    return tags


def origin() -> dict[str, str | None]:
    """The code that makes a result: its commit, and whether it has uncommitted changes."""
    tags = _git_tags()
    return {"commit": tags.get("commit"), "dirty": tags.get("dirty")}


def description(what: str, command: str = "") -> dict[str, str]:
    """The description of a run as a tag: what it is, in a sentence, and the commands that repeat it."""
    made = origin()
    commands = [f"`{line}`" for line in (made["commit"] and f"git checkout {made['commit']}", command) if line]
    changed = " (the code had uncommitted changes)" if made["dirty"] == "true" else ""
    return {DESCRIPTION: f"{what} To repeat it: {', then '.join(commands)}{changed}." if command else what}


def _slurm_tags() -> dict[str, str]:
    """The job as Slurm's commands name it (10_3 in an array), and how often it was requeued."""
    tags = {}
    if job := os.environ.get("SLURM_ARRAY_JOB_ID"):
        tags["slurm_job"] = f"{job}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    elif job := os.environ.get("SLURM_JOB_ID"):
        tags["slurm_job"] = job
    if restarts := os.environ.get("SLURM_RESTART_COUNT"):
        tags["slurm_restarts"] = restarts
    return tags


def _image_tags() -> dict[str, str]:
    """The image of the container around this process: file name and SHA-256 of Apptainer's, else ``EDM_IMAGE``."""
    path = os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER")
    if not path:
        return {"image": told} if (told := os.environ.get(IMAGE)) else {}
    hashes = Hashes()  # an image has gigabytes, so it is hashed once
    try:
        content = hashes.of(path)
    except UserError:
        content = None
    hashes.save()
    return {"image": f"{os.path.basename(path)} {f'sha256:{content}' if content else 'not visible inside'}"}


@functools.cache
def _git_tags() -> dict[str, str]:
    """Commit and dirty flag (changed tracked files) of the running code; empty if git cannot tell.

    A tree that was downloaded or installed inside another project's repository has none: the commit is the other's.
    """
    if not _git(Path(__file__).parent, "ls-files", Path(__file__).name):
        return {}
    described = _git(Path(__file__).parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    commit, _, dirty = described.partition("-")
    return {"commit": commit, "dirty": "true" if dirty else "false"} if commit else {}


@functools.cache
def _dvc_tags(folder: str) -> dict[str, str]:
    """The DVC revision: the commit that last changed DVC's files, with "-dirty" if they have changed since.

    `git checkout` of this commit and `dvc checkout` restore the run's data. Adds the name inside a DVC experiment.
    """
    if not Path(folder, "dvc.yaml").exists():
        return {}
    revision = _git(folder, "log", "-1", "--format=%H", "--", *_DVC_FILES)
    if not revision:
        return {}
    changed = _git(folder, "status", "--porcelain", "--", *_DVC_FILES)
    tags = {"dvc_revision": f"{revision}-dirty" if changed else revision}
    if name := os.environ.get("DVC_EXP_NAME"):
        tags["dvc_experiment"] = name
    return tags


def _git(folder: str | Path, *arguments: str) -> str:
    """The output of git; empty if it fails."""
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # concurrent jobs must not wait for the index lock
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

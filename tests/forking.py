"""Commands under test, forked from a process that has imported torch and Snakemake: a start takes 0.2 s, not 6."""

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from edm.cluster import forkserver
from edm.commands.launching import IMPORTED


@cache
def _address():
    """The server of this process of tests; it ends with it."""
    before = os.environ.pop(forkserver.ADDRESS, None)
    try:
        forkserver.start(["snakemake.cli", "snakemake.report", *IMPORTED])
        return os.environ.pop(forkserver.ADDRESS, "")
    finally:
        if before is not None:
            os.environ[forkserver.ADDRESS] = before


def environment_with(**more):
    """That of this process, for one CPU thread, with the server and the commands of this Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", forkserver.ADDRESS: _address(), **more}


def run(command, folder, environment=None, timeout=900):
    """What `subprocess.run` returns for ``python -m MODULE …`` or a command of Snakemake's or ours, with its text.

    Snakemake and ``edm launch`` fork from the same server what they start.
    """
    command = [*map(str, command)]
    if command[0] in ("edm", "snakemake"):
        command = ["python", "-m", *command]
    if command[0] == "python":
        command[0] = sys.executable
    environment = environment_with(**(environment or {}))
    with open(os.devnull) as nothing, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        streams = [stream.fileno() for stream in (nothing, out, errors)]
        forked = forkserver.fork(command, environment, str(folder), streams)
        if forked is None:
            return subprocess.run(command, cwd=folder, env=environment, timeout=timeout, capture_output=True, text=True)
        try:
            status = forked.wait(timeout)
        except BaseException:
            forked.send_signal(9)
            raise
        for stream in (out, errors):
            stream.seek(0)
        return subprocess.CompletedProcess(command, status, out.read(), errors.read())

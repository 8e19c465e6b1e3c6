"""Forks the steps of one Snakemake on this machine from a process that has imported torch already.

The import takes seconds, a fork milliseconds. The server starts with Snakemake and ends with it::

    python -m edm.cluster.forkserver FILE MODULE …

It serves commands of one CPU thread. All others start as new processes, and so do all commands where no server runs,
where a source file has changed since the server read it, or where Python would find another copy of the package. A
forked command has the arguments, environment, folder and streams of the process that asks for it (the client), which
passes on signals and waits for the exit status. Only this user's processes reach the socket, in a folder of mode 0700:
they may run any command anyway.
"""

import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from edm.cluster.leaving import leave_after
from edm.cluster.preemption import SIGNALS

ADDRESS = "EDM_FORKSERVER"  # environment variable: the server's socket
THREADS = "OMP_NUM_THREADS"
STREAMS = (0, 1, 2)
_BYTES = 8  # of a number in a message

_servers: list[subprocess.Popen[bytes]] = []  # whose standard inputs stay open as long as this process lives


class Forked:
    """A command that a server has forked, with methods of subprocess.Popen."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._connection, self.pid = connection, pid

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, or minus the signal that ended the command. Raises TimeoutError after so many seconds."""
        self._connection.settimeout(timeout)
        with self._connection:
            if (status := _number(self._connection)) is not None:
                return status
        self.send_signal(signal.SIGKILL)  # its keeper was killed, so nothing can report its status
        return -signal.SIGKILL


def start(modules: Iterable[str]) -> None:
    """Starts a server that has imported these modules, for the processes that this one starts.

    Does nothing if this process has one already, from a process around it, or where there is no place for its socket: a
    full disk, or a folder for temporary files with a long name.
    """
    with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
        connection.connect(os.environ.get(ADDRESS) or "/")
        return
    with socket.socket(socket.AF_UNIX) as listener, suppress(OSError):
        folder = tempfile.mkdtemp(prefix="edm-fork-")  # of this user only
        address = f"{folder}/socket"
        try:
            listener.bind(address)
        except OSError:
            os.rmdir(folder)
            raise
        listener.listen()  # before the server's imports: a client that connects during them waits for their end
        number = listener.fileno()
        command = [sys.executable, "-m", __name__, str(number), *modules]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # for the server: a terminal sends them to all
        try:
            server = subprocess.Popen(command, env={**os.environ, THREADS: "1"}, stdin=subprocess.PIPE,
                                      stdout=subprocess.DEVNULL, pass_fds=[number])  # fmt: skip
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _servers.append(server)
        os.environ[ADDRESS] = address


def fork(
    command: list[str], environment: dict[str, str], folder: str | None = None, streams: Sequence[int] = STREAMS
) -> Forked | None:
    """``python -m MODULE …`` with this environment, if the server can fork it; otherwise None.

    folder, streams: the working directory and the open files for its input, output and errors; by default those of this
    process.
    """
    if ADDRESS not in environment or environment.get(THREADS) != "1" or command[:2] != [sys.executable, "-m"]:
        return None
    os.umask(umask := os.umask(0))
    request = {"command": command, "environment": environment, "folder": folder or os.getcwd(), "umask": umask}
    message = json.dumps(request).encode()
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(environment[ADDRESS])
        socket.send_fds(connection, [len(message).to_bytes(_BYTES, "big")], streams)
        connection.sendall(message)
        pid = _number(connection)
    except OSError:  # the server's Snakemake has ended, or a stream is closed
        pid = None
    if pid is None:
        connection.close()
        return None
    return Forked(connection, pid)


def serve(listener: socket.socket, modules: Iterable[str]) -> list[str] | None:
    """Serves until the standard input ends, and returns None; in a forked process, returns the command to run."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the keepers report to the clients, so the server waits for none
    begun = time.time_ns()
    folder = Path(listener.getsockname()).parent
    with listener:
        try:
            for module in modules:
                import_module(module)
            sources = [getattr(module, "__file__", None) for module in [*sys.modules.values()]]
            read = {path: _state(path) for path in sources if isinstance(path, str)}
            if any(state is not None and state[1] > begun for state in read.values()):
                return None  # a file changed during the imports: the server may have read the old code or the new
            gc.freeze()  # so that collections in forked processes copy no shared pages
            while True:
                ready, _, _ = select.select([listener, sys.stdin], [], [])
                if sys.stdin in ready:
                    return None
                connection, _ = listener.accept()
                with connection:
                    if os.fork() == 0:
                        listener.close()
                        asked = _keep(connection, read)
                        break
        except ImportError:  # each command reports it itself
            return None
        finally:
            if listener.fileno() >= 0:
                shutil.rmtree(folder, ignore_errors=True)
    return _become(*asked)


def _keep(connection: socket.socket, read: dict[str, tuple[int, int] | None]) -> tuple[dict[str, Any], list[int]]:
    """Runs in the keeper of one command: forks the command and reports its process id and, later, its status.

    Returns in the forked process only: what was asked for, and open files of the command's streams.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with suppress(OSError, EOFError):  # the client was killed; the command continues, as a child process would
        head, streams, _, _ = socket.recv_fds(connection, _BYTES, len(STREAMS))
        if not head:  # another process only looks whether the server is there
            raise EOFError
        request = json.loads(_received(connection, int.from_bytes(head, "big")))
        unchanged = all(_state(path) == state for path, state in read.items())
        if unchanged and request["command"][0] == sys.executable and _finds_same(request):
            if (pid := os.fork()) == 0:
                return request, streams
            for stream in (*streams, *STREAMS):
                os.close(stream)  # a reader of the command's output must not wait for the keeper
            _tell(connection, pid)
            _tell(connection, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def _become(request: dict[str, Any], streams: list[int]) -> list[str]:
    """Gives this process the streams, folder, environment and signals of a new one. Returns its command."""
    for stream, own in zip(streams, STREAMS, strict=True):
        os.dup2(stream, own)
        os.close(stream)
    for name, own in zip(("stdin", "stdout", "stderr"), STREAMS, strict=True):
        old = getattr(sys, name)
        new = os.fdopen(own, old.mode, encoding=old.encoding, errors=old.errors, closefd=False)
        new.reconfigure(line_buffering=own == 2 or os.isatty(own))
        setattr(sys, name, new)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    command: list[str] = request["command"]
    return command


def _finds_same(request: dict[str, Any]) -> bool:
    """Whether Python would find the command's package and ours where the server has: not in another folder's copy."""
    given, own = ([path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
                  for environment in (request["environment"], os.environ))  # fmt: skip
    places = [request["folder"], *given, *(path for path in sys.path[1:] if path not in own)]
    for package in (request["command"][2].partition(".")[0], "edm"):
        found = PathFinder.find_spec(package, places)
        here = getattr(sys.modules.get(package), "__file__", None)
        # Without one of these, the package is not imported yet, or is found by other means than a path.
        if here and found and found.origin and os.path.realpath(found.origin) != os.path.realpath(here):
            return False
    return True


def _state(path: str) -> tuple[int, int] | None:
    """Size and time of a file."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _tell(connection: socket.socket, number: int) -> None:
    connection.sendall(number.to_bytes(_BYTES, "big", signed=True))


def _number(connection: socket.socket) -> int | None:
    """The next number that the other side tells; None if it ends before."""
    try:
        return int.from_bytes(_received(connection, _BYTES), "big", signed=True)
    except (EOFError, ConnectionError):
        return None


def _received(connection: socket.socket, size: int) -> bytes:
    """The next bytes. Raises EOFError if the other side ends before."""
    message = b""
    while len(message) < size:
        if not (part := connection.recv(size - len(message))):
            raise EOFError
        message += part
    return message


def _run(module: str) -> None:
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if (command := serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])) is not None:
        sys.path[0] = os.getcwd()  # as for `python -m`
        sys.argv = command[2:]
        leave_after(partial(_run, command[2]))

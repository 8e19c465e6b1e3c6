"""The GPUs of one machine, shared by the jobs that run on it: each has its own, and waits for them.

Slurm gives every job its GPUs. Where Snakemake starts jobs by itself, it goes by the cores that are free, and all of
them would compute on the first GPU.
"""

import fcntl
import os
import re
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path

from edm import slurm
from edm.errors import UserError
from edm.files import digest

VISIBLE = "CUDA_VISIBLE_DEVICES"
FOLDER = Path(f"/tmp/edm-gpus-{os.getuid()}")  # of this machine and user; a file per GPU, and per queue for them
_LOOK = 0.5  # seconds between looks at GPUs that others have


@contextmanager
def own(count: int) -> Iterator[list[int]]:
    """Makes ``count`` GPUs that no other such block of this user on this machine has all that CUDA sees; 0 hides them.

    Waits until so many are free; who comes later waits behind, or a block of many GPUs could wait for ever. Without
    GPUs, where processes compute on CPUs, nothing is done. Yields open files: while any process has one of them open,
    the GPUs are not given to others. Raises UserError where there are fewer GPUs.
    """
    before = os.environ.get(VISIBLE)
    with ExitStack() as held:
        handles: list[int] = []
        if count == 0:
            os.environ[VISIBLE] = ""
        elif here := on_this_machine():
            if len(here) < count:
                raise UserError(f"{count} GPUs are asked for, and there are {len(here)}; lower `gpus` in params.yaml")
            taken = _wait_for(here, count, held)
            os.environ[VISIBLE], handles = ",".join(taken), list(taken.values())
        try:
            yield handles
        finally:
            if before is None:
                os.environ.pop(VISIBLE, None)
            else:
                os.environ[VISIBLE] = before


def on_this_machine() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none where there is no driver.

    By UUID, which means the same in every process; in a job of Slurm, as Slurm names them.
    """
    named = os.environ.get(VISIBLE)
    if named is not None:  # CUDA goes as far as the first that is none
        named = list(dict.fromkeys(takewhile(lambda name: name not in ("", "-1"), map(str.strip, named.split(",")))))
    if slurm.job() is not None:
        return named or []
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        uuids = [_text(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        kinds = {_text(pynvml.nvmlDeviceGetName(handle)) for handle in handles}
    except Exception:
        return []  # no driver, or one that does not tell
    if named is None:
        return uuids
    # CUDA numbers unlike GPUs by their speed, if not told otherwise; the driver, by their place.
    numbered = len(kinds) == 1 or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return [_in_full(name, uuids, numbered) for name in named]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _in_full(name: str, uuids: Sequence[str], numbered: bool) -> str:
    """The UUID that a number or the beginning of one stands for; the name itself where that is not certain."""
    if name.isdecimal():
        return uuids[int(name)] if numbered and int(name) < len(uuids) else name
    found = [uuid for uuid in uuids if uuid.startswith(name)]
    return found[0] if len(found) == 1 else name


def _wait_for(here: Sequence[str], count: int, held: ExitStack) -> dict[str, int]:
    """Locks ``count`` of the GPUs, all at once, until ``held`` is closed: name → open file."""
    try:
        _check_folder()
        with ExitStack() as waiting:
            queue = _opened("queue-" + digest(sorted(here)))
            waiting.callback(os.close, queue)
            if not _locked(queue):
                _say(count)
                fcntl.flock(queue, fcntl.LOCK_EX)
            told = False
            while len(taken := _free(here, count)) < count:
                for handle in taken.values():
                    os.close(handle)
                if not told:
                    _say(count)
                    told = True
                time.sleep(_LOOK)
    except OSError as error:
        raise UserError(f"{FOLDER}: cannot be written ({error.strerror}); GPUs are shared out there") from error
    for handle in taken.values():
        held.callback(os.close, handle)
    return taken


def _free(here: Sequence[str], count: int) -> dict[str, int]:
    """As many GPUs as are free, at most ``count``, locked."""
    taken: dict[str, int] = {}
    for name in here:
        if len(taken) == count:
            break
        handle = _opened(name)
        if _locked(handle):
            taken[name] = handle
        else:
            os.close(handle)
    return taken


def _check_folder() -> None:
    """Raises UserError where somebody else could have put something in the way."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    found = FOLDER.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(f"{FOLDER}: not a folder that is yours alone; have it removed")


def _opened(name: str) -> int:
    file = re.sub(r"\W", "-", f"{slurm.job() or ''}-{name}")  # numbers of Slurm mean nothing in other jobs
    return os.open(FOLDER / file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _say(count: int) -> None:
    print(f"waiting for {count} GPU{'s' if count > 1 else ''}: other jobs have them, or came first", file=sys.stderr)

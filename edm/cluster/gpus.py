"""Shares the GPUs of one machine among its jobs: each job reserves its own GPUs and waits until they are free.

Slurm assigns GPUs to every job. Without Slurm, Snakemake schedules jobs by free cores only, and all of them would
compute on the first GPU.
"""

import importlib.metadata
import math
import os
import re
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from types import ModuleType

from edm.cluster import slurm
from edm.errors import UserError
from edm.files.hashes import digest
from edm.files.lock import Held, exclusive

VISIBLE = "CUDA_VISIBLE_DEVICES"
FOLDER = Path(f"/tmp/edm-gpus-{os.getuid()}")  # of this machine and user; one lock file per GPU and per queue
_LOOK = 0.5  # seconds between checks for free GPUs


@contextmanager
def own(count: int) -> Iterator[list[int]]:
    """Reserves ``count`` free GPUs and hides the others from CUDA; 0 hides all.

    Waits until ``count`` GPUs are free. Jobs of this user on this machine wait in a queue, so that a job with many GPUs
    cannot starve. On a machine without GPUs it does nothing. Yields open files: a GPU stays reserved while any process
    has its file open. Raises UserError if the machine has fewer GPUs.
    """
    before = os.environ.get(VISIBLE)
    with ExitStack() as held:
        here = on_this_machine() if count else []
        if 0 < len(here) < count:
            raise UserError(f"{count} GPUs are needed, but only {len(here)} are available; lower `gpus` in params.yaml")
        taken = _taken(here, count, held) if here else {}
        if taken or count == 0:
            os.environ[VISIBLE] = ",".join(taken)
        try:
            yield list(taken.values())
        finally:
            if before is None:
                os.environ.pop(VISIBLE, None)
            else:
                os.environ[VISIBLE] = before


def on_this_machine() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; [] without a driver.

    They are UUIDs, which mean the same in every process; in a Slurm job, the names that Slurm gives.
    """
    stated, named = os.environ.get(VISIBLE), None
    if stated is not None:  # CUDA stops at the first invalid entry
        named = list(dict.fromkeys(takewhile(lambda name: name not in ("", "-1"), map(str.strip, stated.split(",")))))
    if slurm.job() is not None:
        return named or []
    try:
        driver = _driver()
        handles = [driver.nvmlDeviceGetHandleByIndex(number) for number in range(driver.nvmlDeviceGetCount())]
        uuids = [_text(driver.nvmlDeviceGetUUID(handle)) for handle in handles]
        kinds = {_text(driver.nvmlDeviceGetName(handle)) for handle in handles}
    except Exception:
        return []  # no driver, or one that does not answer
    if named is None:
        return uuids
    # By default CUDA numbers different GPUs by speed; the driver numbers them by PCI slot.
    numbered = len(kinds) == 1 or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return [_in_full(name, uuids, numbered) for name in named]


def gpu_name() -> str | None:
    """The name of the GPU that torch would choose, from the driver, without loading torch; None for the CPU."""
    first = os.environ.get(VISIBLE, "0").partition(",")[0].strip()  # a number or a UUID
    if first in ("", "-1"):
        return None
    try:
        if "+cpu" in importlib.metadata.version("torch"):
            return None
        driver = _driver()
        find = driver.nvmlDeviceGetHandleByIndex if first.isdecimal() else driver.nvmlDeviceGetHandleByUUID
        return _text(driver.nvmlDeviceGetName(find(int(first) if first.isdecimal() else first)))
    except Exception:
        return None  # no driver, no GPU, or a driver that does not answer


def _driver() -> ModuleType:
    """NVIDIA's management library, initialised. Raises the library's exception if it is missing."""
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _in_full(name: str, uuids: Sequence[str], numbered: bool) -> str:
    """The UUID that a number or a UUID prefix stands for; the name itself if that is ambiguous."""
    if name.isdecimal():
        return uuids[int(name)] if numbered and int(name) < len(uuids) else name
    found = [uuid for uuid in uuids if uuid.startswith(name)]
    return found[0] if len(found) == 1 else name


def _taken(here: Sequence[str], count: int, held: ExitStack) -> dict[str, int]:
    """Locks ``count`` GPUs together until ``held`` is closed: name → open file."""
    _check_folder()
    with ExitStack() as waiting:
        queue = _file("queue-" + digest(sorted(here)))
        try:
            waiting.enter_context(exclusive(queue, patience=0))
        except Held:
            _say(count)
            waiting.enter_context(exclusive(queue, patience=math.inf))
        if not (taken := _free(here, count, held)):
            _say(count)
        while not taken:
            time.sleep(_LOOK)
            taken = _free(here, count, held)
    return taken


def _free(here: Sequence[str], count: int, held: ExitStack) -> dict[str, int]:
    """Locks ``count`` free GPUs until ``held`` is closed: name → open file; {} if fewer are free."""
    taken: dict[str, int] = {}
    with ExitStack() as tried:
        for name in here:
            with suppress(Held):
                taken[name] = tried.enter_context(exclusive(_file(name), patience=0))
            if len(taken) == count:
                held.push(tried.pop_all())
                return taken
    return {}


def _check_folder() -> None:
    """Raises UserError if other users could write to the folder of the lock files."""
    try:
        FOLDER.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UserError(f"{FOLDER}: cannot be created ({error.strerror}); it is for the lock files of GPUs") from error
    found = FOLDER.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(f"{FOLDER}: not a folder that only you can write to; have it removed")


def _file(name: str) -> Path:
    return FOLDER / re.sub(r"\W", "-", f"{slurm.job() or ''}-{name}")  # Slurm's GPU numbers are valid only in the job


def _say(count: int) -> None:
    print(f"waiting for {count} GPU{'s' if count > 1 else ''}: other jobs use or await them", file=sys.stderr)

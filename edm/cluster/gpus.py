"""The GPUs of one machine, shared by the jobs that run on it: each has its own, and waits for them.

Slurm gives every job its GPUs. Where Snakemake starts jobs by itself, it goes by the cores that are free, and all of
them would compute on the first GPU.
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
from edm.files.lock import Held, exclusive
from edm.files.writing import digest

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
        here = on_this_machine() if count else []
        if 0 < len(here) < count:
            raise UserError(f"{count} GPUs are asked for, and there are {len(here)}; lower `gpus` in params.yaml")
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
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none where there is no driver.

    By UUID, which means the same in every process; in a job of Slurm, as Slurm names them.
    """
    stated, named = os.environ.get(VISIBLE), None
    if stated is not None:  # CUDA goes as far as the first that is none
        named = list(dict.fromkeys(takewhile(lambda name: name not in ("", "-1"), map(str.strip, stated.split(",")))))
    if slurm.job() is not None:
        return named or []
    try:
        driver = _driver()
        handles = [driver.nvmlDeviceGetHandleByIndex(number) for number in range(driver.nvmlDeviceGetCount())]
        uuids = [_text(driver.nvmlDeviceGetUUID(handle)) for handle in handles]
        kinds = {_text(driver.nvmlDeviceGetName(handle)) for handle in handles}
    except Exception:
        return []  # no driver, or one that does not tell
    if named is None:
        return uuids
    # CUDA numbers unlike GPUs by their speed, if not told otherwise; the driver, by their place.
    numbered = len(kinds) == 1 or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return [_in_full(name, uuids, numbered) for name in named]


def gpu_name() -> str | None:
    """The GPU that torch would choose here, as the driver tells, without loading torch; None for the CPU."""
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
        return None  # no driver, no GPU, or one that does not tell


def _driver() -> ModuleType:
    """NVIDIA's library, ready to be asked. Raises an exception of its own where there is none."""
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _in_full(name: str, uuids: Sequence[str], numbered: bool) -> str:
    """The UUID that a number or the beginning of one stands for; the name itself where that is not certain."""
    if name.isdecimal():
        return uuids[int(name)] if numbered and int(name) < len(uuids) else name
    found = [uuid for uuid in uuids if uuid.startswith(name)]
    return found[0] if len(found) == 1 else name


def _taken(here: Sequence[str], count: int, held: ExitStack) -> dict[str, int]:
    """Locks ``count`` of the GPUs, all at once, until ``held`` is closed: name → open file."""
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
    """``count`` GPUs that nobody else has, locked until ``held`` is closed; none where there are fewer."""
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
    """Raises UserError where somebody else could have put something in the way."""
    try:
        FOLDER.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UserError(f"{FOLDER}: cannot be made ({error.strerror}); GPUs are shared out there") from error
    found = FOLDER.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(f"{FOLDER}: not a folder that is yours alone; have it removed")


def _file(name: str) -> Path:
    return FOLDER / re.sub(r"\W", "-", f"{slurm.job() or ''}-{name}")  # numbers of Slurm mean nothing in other jobs


def _say(count: int) -> None:
    print(f"waiting for {count} GPU{'s' if count > 1 else ''}: other jobs have them, or came first", file=sys.stderr)

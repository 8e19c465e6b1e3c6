"""The GPUs of one machine, shared by the jobs that run on it: each has its own, and waits for them.

Slurm gives every job its GPUs. Where Snakemake starts jobs by itself, it goes by the cores that are free, and all of
them would compute on the first GPU.
"""

import fcntl
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from edm import slurm
from edm.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_LOOK = 0.5  # seconds between looks at GPUs that others have


@contextmanager
def own(count: int) -> Iterator[None]:
    """Makes ``count`` GPUs that no other such block of this user on this machine has all that CUDA sees; 0 hides them.

    Waits until so many are free; nobody else gets one meanwhile, or who asks for several could wait for ever. A process
    that dies gives its own back. Without GPUs, where processes compute on CPUs, nothing is done. Raises UserError where
    there are fewer.
    """
    before = os.environ.get(VISIBLE)
    with ExitStack() as held:
        if count == 0:
            os.environ[VISIBLE] = ""
        elif here := on_this_machine():
            if len(here) < count:
                raise UserError(f"{count} GPUs are asked for, and there are {len(here)}; lower `gpus` in params.yaml")
            os.environ[VISIBLE] = ",".join(_taken(here, count, held))
        try:
            yield
        finally:
            if before is None:
                os.environ.pop(VISIBLE, None)
            else:
                os.environ[VISIBLE] = before


def on_this_machine() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none where there is no driver.

    By UUID, which mean the same in every process; in a job of Slurm, as Slurm names them.
    """
    named = os.environ.get(VISIBLE)
    some = None if named is None else [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if slurm.job() is not None:
        return some or []
    try:
        import pynvml

        pynvml.nvmlInit()
        numbers = range(pynvml.nvmlDeviceGetCount()) if some is None else some
        return [_uuid(pynvml, int(name)) if str(name).isdecimal() else str(name) for name in numbers]
    except Exception:
        return []  # no driver, or one that does not tell


def _uuid(pynvml, number: int) -> str:
    found = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(number))
    return found.decode() if isinstance(found, bytes) else found


def _taken(here: Sequence[str], count: int, held: ExitStack) -> list[str]:
    """Locks ``count`` of the GPUs until ``held`` is closed. One process at a time collects; the others queue up."""
    folder = Path(tempfile.gettempdir(), f"edm-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    taken: dict[str, int] = {}
    with (folder / "queue").open("w") as queue:
        fcntl.flock(queue, fcntl.LOCK_EX)
        told = False
        while len(taken) < count:
            for name in here:
                if len(taken) < count and name not in taken and (handle := _locked(folder, name)) is not None:
                    taken[name] = handle
                    held.callback(os.close, handle)
            if len(taken) < count:
                if not told:
                    print(f"waiting for {count - len(taken)} more GPUs, which other jobs have", file=sys.stderr)
                    told = True
                time.sleep(_LOOK)
    return [name for name in here if name in taken]


def _locked(folder: Path, name: str) -> int | None:
    """An open file that stands for this GPU and that no other process has locked; None where one has."""
    file = re.sub(r"\W", "-", f"{slurm.job() or ''}-{name}")
    handle = os.open(folder / f"{file}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle

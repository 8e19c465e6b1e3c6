"""The processes of one run: a single process, or those that torchrun started. A failure of one ends all."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from edm.errors import Preempted, UserError

CPU = torch.device("cpu")
LEAVING, STATUS = "leaving", "status"  # keys in the store: number of processes that failed; exit status of the first
JOINING = 600.0  # seconds for all processes of a run to find each other, as torchrun allows
QUIET, LOOK = 10.0, 0.2  # seconds before a line reports the wait, and between checks for signals
WATCH, GRACE = 1.0, 3.0  # seconds between checks of the store, and for a process to fail on its own


@dataclass(frozen=True)
class World:
    """This process's ``rank``, the number of processes ``size``, and the ``device`` of this process."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on every process."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def total(self, *numbers: float) -> list[float]:
        """The sum of each number over all processes, on every process. Several processes wait for their devices."""
        if self.size == 1:
            return list(numbers)
        return self.sum(torch.tensor(numbers, dtype=torch.float64, device=self.device)).tolist()

    def share(self, value: Any) -> Any:
        """Broadcasts the value of rank 0 to every process; the values of the others are ignored."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The tensors of every process, in order of rank, on rank 0; an empty list on the others.

        Names and shapes may differ between processes. Rank 0 receives one tensor at a time and moves it to the CPU, so
        that its device holds only one of them.
        """
        if self.size == 1:
            return [tensors]
        kinds: list[Any] = [None] * self.size
        dist.all_gather_object(kinds, {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
        if not self.is_first:
            for tensor in tensors.values():
                if tensor.numel():
                    dist.send(tensor.to(self.device).contiguous(), 0)
            return []
        gathered = [tensors]
        for rank in range(1, self.size):
            gathered.append({})
            for name, (shape, dtype) in kinds[rank].items():
                received = torch.empty(shape, dtype=dtype, device=self.device)
                if received.numel():
                    dist.recv(received, rank)
                gathered[rank][name] = received.cpu()
        return gathered

    def wait(self) -> None:
        """Returns when every process has called it."""
        if self.size > 1:
            dist.barrier()


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name: auto, cpu, cuda or cuda:N. "cuda" is the GPU of this process; "auto" is that GPU if
    usable, else the CPU.

    Raises UserError for other names, for a GPU that does not exist, or if several processes would share cuda:N.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return CPU
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()):
        raise UserError(f"device {name!r} is unknown; choose auto, cpu, cuda or cuda:0")
    if not torch.cuda.is_available():
        raise UserError(f"device {name!r}: this machine has no usable GPU; use --device cpu")
    _, size = _place()
    if index and size > 1:
        raise UserError(f"device {name!r}: each of several processes needs its own GPU; use --device cuda")
    number = int(index or _number("LOCAL_RANK", 0))
    if number >= torch.cuda.device_count():
        raise UserError(f"device {name!r}: GPU {number} does not exist; this machine has {torch.cuda.device_count()}")
    return torch.device("cuda", number)


ALONE = World()


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """Joins the process group that torchrun started (NCCL on GPUs, else gloo) and leaves it at the end.

    Without torchrun it yields a single process. If one process leaves the block with an error, the others end within
    seconds and with its exit status. Only the first error is raised, and torchrun shows it as the cause.
    """
    place = pick_device(device)
    rank, size = _place()
    if size == 1:
        yield World(device=place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    store = dist.PrefixStore("edm", _rendezvous(size))
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", store=store, rank=rank, world_size=size)
    over = threading.Event()
    threading.Thread(target=_watch, args=(store.clone(), over), daemon=True).start()
    try:
        yield World(rank, size, place)
    except BaseException as error:
        # Do not destroy the process group: that could wait for the others, and they would see broken connections before
        # the recorded status, and report those errors first.
        _leave(store, rank, error)
        raise
    over.set()
    dist.destroy_process_group()


def _place() -> tuple[int, int]:
    """This process's rank and the number of processes, from torchrun's environment variables; 0 and 1 without them.

    Raises UserError if they are incomplete or invalid: the process would otherwise wait forever for others.
    """
    size = _number("WORLD_SIZE", 1, least=1)
    if size == 1:
        return 0, 1
    needed = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if not os.environ.get(name)]:
        raise UserError(f"WORLD_SIZE is {size}, but {', '.join(missing)} not set; {_ADVICE}")
    rank, port = _number("RANK", 0), _number("MASTER_PORT", 0)
    if rank >= size:
        raise UserError(f"RANK is {rank} and WORLD_SIZE {size}; ranks are counted from 0; {_ADVICE}")
    if not 0 < port < 1 << 16:
        raise UserError(f"MASTER_PORT is {port}; a port is between 1 and 65535; {_ADVICE}")
    return rank, size


def _number(name: str, default: int, least: int = 0) -> int:
    """The integer in an environment variable. Raises UserError for any other content."""
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and int(text) >= least):
        raise UserError(f"{name} is {text!r}; expected a whole number from {least}; {_ADVICE}")
    return int(text)


_ADVICE = "start several processes with `edm launch --gpus N -- COMMAND`, or unset WORLD_SIZE for one"


def _rendezvous(size: int) -> dist.Store:
    """The store that connects ``size`` processes; returns when all have joined.

    torch's rendezvous call blocks Python's signal handlers, so it runs in a thread. Raises UserError if it fails, or
    after ``JOINING`` seconds.
    """
    found: list[Any] = []

    def join() -> None:
        try:
            found.append(next(dist.rendezvous("env://", timeout=timedelta(seconds=JOINING)))[0])
        except Exception as error:
            found.append(error)

    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    thread, begun, told = threading.Thread(target=join, daemon=True), time.monotonic(), False
    thread.start()
    while thread.is_alive() and time.monotonic() < begun + JOINING + GRACE:
        thread.join(LOOK)
        if not told and thread.is_alive() and time.monotonic() > begun + QUIET:
            told = True
            print(f"waiting for all of {size} processes at {address} (WORLD_SIZE is set)", file=sys.stderr, flush=True)
    store = found[0] if found else TimeoutError()
    if isinstance(store, Exception):
        reason = str(store).strip().partition("\n")[0] or f"no answer within {JOINING:g} s"
        raise UserError(f"the {size} processes did not meet at {address} ({reason}); {_ADVICE}") from None
    store.set_timeout(dist.distributed_c10d.default_pg_timeout)  # later operations get torch's default timeout
    return store


def _leave(store: dist.Store, rank: int, error: BaseException) -> None:
    """Tells the others that this process ends. If another failed first, prints a line on stderr and raises SystemExit.

    All processes raise ``Preempted`` together by agreement: none is the consequence of another.
    """
    try:
        if store.add(LEAVING, 1) == 1:
            store.set(STATUS, str(_status(error)))
        elif not isinstance(error, Preempted):
            status = int(store.get(STATUS))
            reason = str(error).strip().partition("\n")[0]
            print(f"process {rank} ends with another one ({type(error).__name__}: {reason})", file=sys.stderr)
            raise SystemExit(status) from None
    except RuntimeError:  # the store ended with the process that hosted it
        pass
    if "TORCHELASTIC_ERROR_FILE" in os.environ and isinstance(error, Exception):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def _status(error: BaseException) -> int:
    """The exit status of a process that ends with this error."""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _watch(store: dist.Store, over: threading.Event) -> None:
    """Ends this process when another has failed: on a GPU it would wait minutes for the failed process.

    The SIGTERM that torchrun sends is not enough: it requests a stop after the current step, which never ends.
    """
    try:
        while not over.wait(WATCH):
            if store.check([STATUS]):
                if not over.wait(GRACE):  # on a CPU, the broken connection raises a proper error
                    os._exit(int(store.get(STATUS)))
                return
    except RuntimeError:
        return  # the store is closed: the others have ended

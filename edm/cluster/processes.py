"""The processes of one run: one, or as many as torchrun started. They work together and end together."""

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
LEAVING, STATUS = "leaving", "status"  # in the store: how many processes left early; exit status of the first
JOINING = 600.0  # seconds for all processes of a run to find each other, as torchrun allows
QUIET, LOOK = 10.0, 0.2  # seconds of waiting for them before a line says so, and between looks for a signal
WATCH, GRACE = 1.0, 3.0  # seconds between looks at the store, and for a process to notice by itself


@dataclass(frozen=True)
class World:
    """This process's place: ``rank`` of ``size``, and the device it computes on."""

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
        """The sums of some numbers over all processes, on every process. Several processes wait for their devices."""
        if self.size == 1:
            return list(numbers)
        return self.sum(torch.tensor(numbers, dtype=torch.float64, device=self.device)).tolist()

    def share(self, value: Any) -> Any:
        """What the first process gives here, on every process; what the others give does not count."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The tensors of every process, in order of rank, on the first process; nothing on the others.

        Names and shapes may differ. The tensors of the others arrive on the CPU, one after the other, so that the
        device holds one of them at a time.
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
        """Returns when every process has come here."""
        if self.size > 1:
            dist.barrier()


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name: auto, cpu, cuda or cuda:N. "cuda" is the GPU of this process, "auto" that or the CPU.

    Raises UserError for other names, a GPU that is not there, or one GPU named for several processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()):
        raise UserError(f"device {name!r} is unknown; choose auto, cpu, cuda or cuda:0")
    if not torch.cuda.is_available():
        raise UserError(f"device {name!r}: this machine has no usable GPU; use --device cpu")
    _, size = _place()
    if index and size > 1:
        raise UserError(f"device {name!r}: each of several processes takes a GPU of its own; use --device cuda")
    number = int(index or _number("LOCAL_RANK", 0))
    if number >= torch.cuda.device_count():
        raise UserError(f"device {name!r}: GPU {number} is not there; this machine has {torch.cuda.device_count()}")
    return torch.device("cuda", number)


ALONE = World()


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """Joins the processes that torchrun started (NCCL on GPUs, else gloo), or stands alone; leaves them at the end.

    Where one leaves the block with an error, the others end within seconds and with its exit status. Only the error
    of the first is raised, and shown by torchrun as the cause.
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
        # The group is left standing: taking it down may wait for the others, and they must not notice before they are
        # told, or the errors of their broken connections would be shown first.
        _leave(store, rank, error)
        raise
    over.set()
    dist.destroy_process_group()


def _place() -> tuple[int, int]:
    """This process's rank and the number of processes, by torchrun's variables; 0 and 1 without them.

    Raises UserError where they are incomplete or make no sense: a process of its own would wait for others for ever.
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
        raise UserError(f"MASTER_PORT is {port}; a port lies between 1 and 65535; {_ADVICE}")
    return rank, size


def _number(name: str, default: int, least: int = 0) -> int:
    """The whole number in an environment variable. Raises UserError where it holds something else."""
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and int(text) >= least):
        raise UserError(f"{name} is {text!r}; expected a whole number from {least}; {_ADVICE}")
    return int(text)


_ADVICE = "start several processes with `edm launch --gpus N -- COMMAND`, or unset WORLD_SIZE for one"


def _rendezvous(size: int) -> dist.Store:
    """The store by which ``size`` processes find each other, when all have come.

    Python hears no signal inside torch's call, which waits: so a thread makes it. Raises UserError where it fails, or
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
    store.set_timeout(dist.distributed_c10d.default_pg_timeout)  # what follows may take as long as torch allows it
    return store


def _leave(store: dist.Store, rank: int, error: BaseException) -> None:
    """Tells the others that this process ends. Raises SystemExit, after a line on stderr, where another one was first.

    Agreed stops (``Preempted``) are the same on every process: none is the consequence of another.
    """
    try:
        if store.add(LEAVING, 1) == 1:
            store.set(STATUS, str(_status(error)))
        elif not isinstance(error, Preempted):
            status = int(store.get(STATUS))
            reason = str(error).strip().partition("\n")[0]
            print(f"process {rank} ends with another one ({type(error).__name__}: {reason})", file=sys.stderr)
            raise SystemExit(status) from None
    except RuntimeError:  # the store went with the process that kept it
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
    """Ends this process when one has failed: on a GPU it would wait for that one's part for minutes.

    SIGTERM, which torchrun sends then, cannot do it: it asks for a stop after the step that never ends.
    """
    try:
        while not over.wait(WATCH):
            if store.check([STATUS]):
                if not over.wait(GRACE):  # on a CPU, the broken connection raises an error, which is tidier
                    os._exit(int(store.get(STATUS)))
                return
    except RuntimeError:
        return  # the store is gone: the others have ended

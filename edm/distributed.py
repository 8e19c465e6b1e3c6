"""The processes of one run: one, or as many as torchrun started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from edm.errors import UserError

CPU = torch.device("cpu")


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

    def wait(self) -> None:
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
    if index and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"device {name!r}: each of several processes takes a GPU of its own; use --device cuda")
    number = int(index or os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise UserError(f"device {name!r}: GPU {number} is not there; this machine has {torch.cuda.device_count()}")
    return torch.device("cuda", number)


ALONE = World()


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """Joins the processes that torchrun started (NCCL on GPUs, else gloo), or stands alone; leaves them at the end."""
    place = pick_device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), size, place)
    finally:
        dist.destroy_process_group()

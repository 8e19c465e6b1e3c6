"""What the commands share."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edm.cluster.preemption import Notice
from edm.errors import Preempted, UserError
from edm.tracking import environment_tags

if TYPE_CHECKING:
    from edm.cluster.processes import World

MADE_FROM = "EDM_MADE_FROM"  # the environment variable by which `edm launch` tells a command what its step is made from


def say(text: str) -> None:
    """A line for a person, on stderr."""
    print(text, file=sys.stderr, flush=True)


def origin() -> dict[str, Any]:
    """Which code made a result."""
    tags = environment_tags()
    return {"commit": tags.get("commit"), "dirty": tags.get("dirty")}


def threads(count: int | None) -> None:
    """Limits torch's threads, where a number is given."""
    if count:
        import torch

        torch.set_num_threads(count)


def made_from(rule: str) -> str:
    """Digest of what a command works with beside its settings; everything that an interruption leaves carries it.

    `edm launch` tells the command of a step: the step's code number and everything upstream. A command that was started
    by hand knows the code number of its rule alone; the content of its inputs is for it to compare.
    """
    from edm.chain.provenance import CODE
    from edm.files.writing import digest

    return os.environ.get(MADE_FROM) or digest([rule, CODE[rule]])


@contextmanager
def processes(device: str) -> Iterator["World"]:
    """The processes that torchrun started, or this one alone; a signal ends them all with status 75.

    Files are written whole or not at all, so nothing but time is lost then.
    """
    with Notice() as notice:
        from edm.cluster.processes import world  # torch takes seconds to load

        with world(device) as place:
            try:
                yield place
            except Preempted:
                raise Preempted(f"{notice.reason}; run it again" if place.is_first else "") from None


def mapping(value: Any, path: str) -> dict[str, Any]:
    """The value of a JSON file, if it is an object. Raises UserError."""
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object of configuration fields")
    return value

"""Option groups, argument types and helpers of all commands."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edm.cluster.preemption import Notice
from edm.config import COMPILE
from edm.errors import Preempted, UserError

if TYPE_CHECKING:
    from edm.cluster.processes import World
    from edm.params import Params

MADE_FROM = "EDM_MADE_FROM"  # environment variable: `edm launch` passes a command the digest of its step's inputs


def say(text: str) -> None:
    """Prints a line for the user on stderr."""
    print(text, file=sys.stderr, flush=True)


def threads(count: int | None) -> None:
    """Limits torch's threads if a number is given."""
    if count:
        import torch

        torch.set_num_threads(count)


def load_params(args: argparse.Namespace, whole: bool = False) -> "Params":
    """The file of ``--params``; ``whole`` checks all of it. Its reader is imported here: `edm --help` needs none."""
    from edm.params import load

    return load(args.params, whole)


def check_planned(args: argparse.Namespace, spec: Any, what: str) -> None:
    """Raises UserError if the workflow planned the command with another specification (``--expect``)."""
    from edm.params import check_spec

    check_spec(spec, args.expect, what)


def made_from(rule: str) -> str:
    """Digest of everything but the settings that decides a command's result; all its intermediate files contain it.

    For a step, `edm launch` passes a digest of the step's code number and all steps and data before it. A command that
    was started by hand uses only the code number of its rule, and compares the content of its inputs itself.
    """
    if told := os.environ.get(MADE_FROM):
        return told
    from edm.chain.rules import RULES
    from edm.files.hashes import digest

    return digest([rule, RULES[rule].code])


@contextmanager
def processes(device: str) -> Iterator["World"]:
    """The processes that torchrun started, or only this one; a signal ends them all with status 75.

    All writes are atomic, so a signal costs only time.
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


# Options --------------------------------------------------------------------------------------------------------------


class Commands:
    """The subcommands of ``edm``: each commands file adds its own, with its options and its function."""

    def __init__(self, top: argparse.ArgumentParser):
        self._subparsers = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def __call__(
        self, name: str, function: Callable[[argparse.Namespace], int | None], help: str, description: str | None = None
    ) -> argparse.ArgumentParser:
        """A new subcommand that calls ``function`` with its arguments. description: for ``--help``; default: help."""
        sub = self._subparsers.add_parser(name, help=help, description=description or help)
        sub.set_defaults(function=function)
        return sub


def from_params(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--params", default="params.yaml", help="params file (default params.yaml)")
    sub.add_argument("--expect", help=argparse.SUPPRESS)  # digest of the settings at the time of the workflow's plan


def features_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--features", default="inception-v3-compat", help="feature extractor (default inception-v3-compat)"
    )
    sub.add_argument("--weights", help="file with the extractor's weights (Inception-v3: downloaded once by default)")
    machine(sub)


def machine(sub: argparse.ArgumentParser, device: bool = True) -> None:
    if device:
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    sub.add_argument("--threads", type=count, help="CPU threads (default: torch's choice)")


def compile_option(sub: argparse.ArgumentParser, meaning: str, default: str | None) -> None:
    sub.add_argument(
        "--compile", choices=COMPILE, default=default,
        help=f"compile the network: auto (if it saves time), graphs (with CUDA graphs), yes, no (default: {meaning})",
    )  # fmt: skip


def shard_option(sub: argparse._ActionsContainer, help: str) -> None:
    sub.add_argument("--shard", type=shard, metavar="K/N", help=help)


def count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 1024")
    return int(text)


def seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def shard(text: str) -> tuple[int, int]:
    """Text "3/8" as (2, 8): the third of eight parts."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part such as 3/8, from 1/8 to 8/8")
    return int(part) - 1, int(parts)


def seed_range(text: str) -> range:
    """Text "0-63" as range(0, 64); "7" as range(7, 8)."""
    first, _, last = text.partition("-")
    last = last or first
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < 2**62):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of seeds such as 0-63")
    return range(int(first), int(last) + 1)

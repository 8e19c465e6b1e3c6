"""Option groups, argument types and helpers of all commands."""

import argparse
import difflib
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

from edm import registry
from edm.cluster.preemption import Notice
from edm.config import COMPILE, OVER, PREDICTS
from edm.errors import Preempted, UserError, nearest, one_line
from edm.metrics import CLASSIFIER, DINOV2, INCEPTION, PIXELS

if TYPE_CHECKING:
    from edm.cluster.processes import World
    from edm.params import Params

MOST_SEEDS = 10_000_000  # of one sample file; the paper draws 50,000 images at a time
MADE_FROM = "EDM_MADE_FROM"  # environment variable: `edm launch` passes a command the digest of its step's inputs


def say(text: str) -> None:
    """Prints a line for the user on stderr, if that can be written: work does not fail for it."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def counted(number: int, what: str) -> str:
    """Such as "1 image" and "1,000 images"."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def threads(count: int | None) -> None:
    """Limits torch's threads if a number is given."""
    if count:
        import torch

        torch.set_num_threads(count)


def load_params(args: argparse.Namespace, whole: bool = False, planned: bool = False) -> "Params":
    """The file of ``--params``; ``whole`` checks all of it. Its reader is imported here: `edm --help` needs none.

    planned: for a step of a workflow, which reads its own part only; so does a command with ``--expect``.
    """
    from edm.params import load

    return load(args.params, whole, planned or getattr(args, "expect", None) is not None)


def check_planned(args: argparse.Namespace, spec: Any, what: str) -> None:
    """Raises UserError if the workflow planned the command with another specification (``--expect``)."""
    from edm.params import check_spec

    check_spec(spec, args.expect, what)


def made_from(rule: str) -> str:
    """Digest of everything but the settings that decides a command's result; all its intermediate files contain it.

    For a step, `edm launch` passes a digest of the step's code number and all steps and data before it. A command that
    was started by hand uses only the code number of its rule and the loaded plugins, and compares the content of its
    inputs itself.
    """
    if told := os.environ.get(MADE_FROM):
        return told
    from edm.chain.rules import RULES
    from edm.files.hashes import digest

    return digest([rule, RULES[rule].code, *(source.sha256 for source in registry.sources())])


def again(output: str) -> str:
    """The command that repeats the present one: Snakemake's for a step of the chain, else the one that was typed."""
    return shlex.join(["snakemake", "--force", output] if os.environ.get(MADE_FROM) else ["edm", *sys.argv[1:]])


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


class Parser(argparse.ArgumentParser):
    """A parser of one command, whose errors are its usage and one bounded line, which names the nearest option."""

    def parse_known_args(self, args=None, namespace=None):
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:  # refused here: the top parser would print its own usage, without the options of the command
            options = [option for option in self._option_string_actions if option.startswith("--")]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], options, 1)
            self.error(f"unknown: {' '.join(unknown)}" + (f"; did you mean {near[0]}?" if near else ""))
        return found, unknown

    def format_usage(self) -> str:
        """The usage that stands before an error: without the options that may be left out, which --help lists."""
        formatter = self._get_formatter()
        formatter.add_usage(None, [one for one in self._actions if one.required or not one.option_strings], [])
        return formatter.format_help().replace(self.prog, f"{self.prog} [OPTION ...]", 1)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse does it, with the nearest of the choices, which may be commands, in place of all."""
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"{value!r} is unknown{nearest(str(value), action.choices)}")

    def error(self, message: str) -> NoReturn:
        super().error(str(UserError(one_line(message))))


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


def features_options(sub: argparse.ArgumentParser, default: str | None, otherwise: str) -> None:
    """``otherwise``: the default in words."""
    sub.add_argument(
        "--features", default=default, metavar="NAME",
        help=f"feature extractor: {INCEPTION} (for FID), {', '.join(DINOV2)}, whose weights are downloaded once; "
        f"{CLASSIFIER}, whose weights `edm features` makes; {PIXELS}, without weights (default: {otherwise})",
    )  # fmt: skip
    sub.add_argument("--weights", metavar="FILE", help="the extractor's weights, instead of a download")
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


def multistep_options(sub: argparse.ArgumentParser) -> None:
    """The choices of the multistep solver, which ``SamplerConfig`` checks."""
    sub.add_argument("--predicts", help=f"multistep: {' or '.join(PREDICTS)} (default data)")
    sub.add_argument("--over", help=f"multistep: interpolate in {', '.join(OVER)} (default lambda)")
    sub.add_argument("--order", type=whole, help="multistep, ipndm: 1 to 4 (default 3; ipndm 4)")
    sub.add_argument("--corrector", action=argparse.BooleanOptionalAction, help="multistep: correct each step")


def shard_option(sub: argparse._ActionsContainer, help: str) -> None:
    sub.add_argument("--shard", type=shard, metavar="K/N", help=help)


def whole(text: str) -> int:
    if not 0 <= _digits(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**31 - 1}")
    return int(text)


def count(text: str) -> int:
    if not 0 < _digits(text) <= 1024:
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
    if not 1 <= _digits(part) <= _digits(parts) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a part such as 3/8, from 1/8 to 8/8")
    return int(part) - 1, int(parts)


def seed_range(text: str) -> range:
    """Text "0-63" as range(0, 64); "7" as range(7, 8). At most ``MOST_SEEDS``: the images of all are in memory."""
    first, _, last = text.partition("-")
    seeds = [_digits(part) for part in (first, last or first)]
    if not 0 <= seeds[0] <= seeds[1] < 2**62:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of seeds such as 0-63")
    if seeds[1] - seeds[0] >= MOST_SEEDS:
        raise argparse.ArgumentTypeError(f"{text!r} has more than {MOST_SEEDS:,} seeds; sample them in several files")
    return range(seeds[0], seeds[1] + 1)


def _digits(text: str) -> int:
    """The number that ordinary digits state; −1 for any other text, and for more digits than a number here has."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1

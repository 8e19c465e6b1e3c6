"""The command line ``edm``: parses arguments, calls a command and returns its exit status."""

import argparse
import os
import sys
from collections.abc import Iterable
from importlib import import_module

from edm import __version__
from edm.cluster.memory import keep_freed
from edm.commands import data, images, launching, models, reports, studies, tracking, watching
from edm.commands.common import Commands
from edm.errors import PREEMPTED, Preempted, UserError
from edm.files.outputs import check_outputs

#: The arguments that name the files and folders that a command writes, and those that it reads; for all commands.
_FILES = ("output", "journal", "history", "lock")
_FOLDERS_WRITTEN = ("out", "final")
_READ = ("checkpoint", "config", "data", "file", "input", "params", "parts", "ref", "samples", "settings", "snapshots",
         "throughput", "weights")  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    0: success. 1: an error that the user can correct (one line on stderr). 75: the job stopped on request, by a signal
    or its time limit; the same command resumes a training run or a search. 130: Ctrl-C in other commands.
    """
    top = parser()
    if "_ARGCOMPLETE" in os.environ:  # set by the shell, after `eval "$(register-python-argcomplete edm)"`
        import_module("argcomplete").autocomplete(top)
    args = top.parse_args(argv)
    if "device" in args:
        keep_freed()
    try:
        check_outputs(*(_named(args, names) for names in (_FILES, _FOLDERS_WRITTEN, _READ)))
        status = args.function(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Preempted as stop:
        if str(stop):
            print(f"stopped: {stop}", file=sys.stderr)
        return PREEMPTED
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return status or 0


def _named(args: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """The paths in the arguments with these names."""
    values = [getattr(args, name, None) for name in names]
    return [path for value in values if value for path in (value if isinstance(value, list) else [value])]


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="edm",
        description="Train, sample and score diffusion models in the EDM design space (Karras et al. 2022).",
        epilog="`snakemake` runs the whole chain; these commands are its steps. Each has its own --help.",
    )
    top.add_argument("--version", action="version", version=f"edm {__version__}")
    commands = Commands(top)
    for module in (data, launching, models, images, studies, reports, tracking, watching):
        module.add(commands)
    return top


if __name__ == "__main__":
    sys.exit(main())

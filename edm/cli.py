"""The command line ``edm``: parses arguments, calls a command and returns its exit status."""

import argparse
import io
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from edm import __version__
from edm.cluster.leaving import leave_after
from edm.errors import PREEMPTED, Preempted, UserError, one_line, out_of_memory
from edm.files.outputs import check_outputs, new_folders

#: The arguments that name the files and folders that a command writes, and those that it reads; for all commands.
_FILES = ("output", "figure", "journal", "history", "lock")
_NAMED = _FILES[:2]  # the rest is in places of the program's own choice
_FOLDERS_WRITTEN = ("out", "final")
_READ = ("averages", "checkpoint", "config", "data", "evaluations", "file", "input", "levels", "params", "parts",
         "plugins", "ref", "samples", "settings", "snapshots", "throughput", "weights")  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    0: success. 1: an error that the user can correct (one line on stderr). 75: the job stopped on request, by a signal
    or its time limit; the same command resumes a training run or a search. 130: Ctrl-C in other commands.
    """
    from edm import registry
    from edm.cluster.memory import keep_freed
    from edm.commands.common import MADE_FROM, say

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale without UTF-8 shows "?" for what it cannot write
            stream.reconfigure(errors="replace")
    top = parser()
    if "_ARGCOMPLETE" in os.environ:  # set by the shell, after `eval "$(register-python-argcomplete edm)"`
        import_module("argcomplete").autocomplete(top)
    args = top.parse_args(argv)
    if "device" in args:
        keep_freed()
    try:
        _require_folder()
        registry.load(args.plugins)
        check_outputs(*(_named(args, names) for names in (_FILES, _FOLDERS_WRITTEN, _READ)))
        asked = [] if MADE_FROM in os.environ else new_folders(_named(args, _NAMED), _named(args, _FOLDERS_WRITTEN))
        status = args.function(args) or 0
        for folder in filter(os.path.isdir, asked):  # not silently: the name may be mistyped
            say(f"new folder: {folder}")
        if sys.stdout is not None:  # it is None where the caller closed it
            sys.stdout.flush()
    except UserError as error:
        say(f"error: {error}")
        return 1
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        say(f"error: out of memory ({one_line(error)[:200]}); give it more, or smaller batches")
        return 1
    except Preempted as stop:
        if str(stop):
            say(f"stopped: {stop}")
        return PREEMPTED
    except BrokenPipeError:
        _discard_stdout()
        return 0
    except OSError as error:  # of the system, where no command expects it: a full disk, a limit, stdout
        _discard_stdout()
        if isinstance(error.filename, str):
            text = f"{error.filename}: {error.strerror}; check the path, its permissions and the disk"
        else:
            text = f"a file or the standard output: {error.strerror or error}"
        say(f"error: {UserError(text)}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return status


def _require_folder() -> None:
    """Raises UserError if the working directory was deleted: torch's libraries would end the process."""
    try:
        os.getcwd()
    except OSError:
        raise UserError("the folder in which this command runs was deleted; change to another one") from None


def _discard_stdout() -> None:
    """Sends what was printed and not yet written nowhere: Python would fail to write it again at its end."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _named(args: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """The paths in the arguments with these names."""
    values = [getattr(args, name, None) for name in names]
    return [path for value in values if value for path in (value if isinstance(value, list) else [value])]


def parser() -> argparse.ArgumentParser:
    from edm.commands import FILES
    from edm.commands.common import Commands, Parser

    top = Parser(
        prog="edm",
        description="Train, sample and evaluate diffusion models in the EDM design space (Karras et al. 2022).",
        epilog="`snakemake` runs the whole chain; these commands are its steps. Each has its own --help.",
    )
    top.add_argument("--version", action="version", version=f"edm {__version__}")
    top.add_argument(
        "--plugins", action="append", default=[], metavar="FILE",
        help="Python file, or name of a module, that adds parts to choose; before the command, once for each",
    )  # fmt: skip
    commands = Commands(top)
    for file in FILES:
        import_module(f"edm.commands.{file}").add(commands)
    return top


def run() -> NoReturn:
    """The program: exits with the status of :func:`main`. A fork server, where there is one, forks `edm launch`."""
    if sys.argv[1:2] == ["launch"]:
        from edm.cluster import children

        if (status := children.forked(sys.argv[1:])) is not None:
            sys.exit(status)
    leave_after(main)


if __name__ == "__main__":
    run()

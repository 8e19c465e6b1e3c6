"""Errors that a user can correct, and the exit of a job that resumes later."""

import difflib
from collections.abc import Iterable
from importlib import import_module

#: Optional package → the extra of edm-pipeline that installs it.
EXTRAS = {"matplotlib": "figures", "mlflow": "workflow", "sklearn": "digits", "torch_fidelity": "metrics"}
LONGEST = 1000  # characters of a message: a hostile file cannot fill the terminal or the log
#: Exit status of a job that stopped on request and resumes at the next start (EX_TEMPFAIL of sysexits.h).
PREEMPTED = 75


class UserError(ValueError):
    """An error that the user can correct: one line that states what is wrong, where, and what to do.

    The command line prints the message after ``error:`` and exits with status 1, without a traceback. Whatever a file
    or a name brought into the message, it stays one printable line of at most ``LONGEST`` characters; a longer one
    loses its middle.
    """

    def __init__(self, message: object = ""):
        text = "".join(letter if letter.isprintable() else _escaped(letter) for letter in str(message).strip())
        super().__init__(text if len(text) <= LONGEST else f"{text[: LONGEST * 3 // 5]} … {text[-LONGEST // 3 :]}")


class Preempted(SystemExit):
    """The work stopped on request and resumes at the next start.

    The command line prints the message after ``stopped:``; even if uncaught, the process ends with status 75. It is not
    an ``Exception``, so that handlers of errors do not catch it.
    """

    def __init__(self, message: str = ""):
        super().__init__(message)
        self.code = PREEMPTED


def _escaped(letter: str) -> str:
    return " " if letter.isspace() else letter.encode("unicode_escape").decode()


def one_line(error: object) -> str:
    """The message of an error without line breaks; without a message, the error's kind."""
    return " ".join(str(error).split()) or type(error).__name__


def nearest(word: str, names: Iterable[object]) -> str:
    """A hint for a message: the nearest name, or all names."""
    known = [str(name) for name in names]
    close = difflib.get_close_matches(str(word)[:100], [name[:100] for name in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def out_of_memory(error: Exception) -> bool:
    """Whether the memory ended, of the machine or a GPU: torch has a class of its own only for GPUs."""
    return isinstance(error, MemoryError) or any(
        text in str(error) for text in ("out of memory", "can't allocate memory", "Cannot allocate memory")
    )


def require(package: str) -> None:
    """Imports a package of ``EXTRAS``. Raises UserError, naming the extra, if it is not installed."""
    try:
        import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; run: pip install 'edm-pipeline[{EXTRAS[package]}]'") from None

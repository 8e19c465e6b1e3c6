"""The end of a program: at once, after all that Python does at an end except freeing memory."""

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn


def leave_after(program: Callable[[], object]) -> NoReturn:
    """Exits with the status that ``program`` returns (0 or None: success) or raises as SystemExit.

    Python's own end frees torch's tables entry by entry, which takes more than a second. Everything else that Python
    does at its end is done first. After an exception, Python ends as usual.
    """
    ended: list[int] = []
    atexit.register(_leave, ended)  # the last of what the program registers to run, since it is the first
    status: object = None
    try:
        status = program()
    except SystemExit as stop:
        status = stop.code
    ended.append(status if isinstance(status, int) else 0 if status is None else 1)
    sys.exit(status)  # type: ignore[arg-type]  # prints what is no number, as SystemExit does


def _leave(ended: list[int]) -> None:
    """Ends the process at once, if its program has ended and everything that it printed can be written."""
    with suppress(OSError, ValueError):
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        if ended:
            os._exit(ended[0])

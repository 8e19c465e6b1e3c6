"""Errors that a user can act on, and the end of a job that is to be continued."""

from importlib import import_module

#: Which extra of edm-pipeline a package comes with, where it is none of those that every installation has.
EXTRAS = {"matplotlib": "figures", "mlflow": "workflow", "sklearn": "digits", "torch_fidelity": "metrics"}
#: Exit status of a job that was asked to stop and goes on when it is started again (EX_TEMPFAIL of sysexits.h).
PREEMPTED = 75


class UserError(ValueError):
    """A mistake that the user can mend: one line saying what was wrong, where, and what to do.

    The command line prints the message after ``error:`` and exits with status 1, without a traceback.
    """


class Preempted(SystemExit):
    """The work stopped because it was asked to, and goes on where it stopped when it is started again.

    The command line prints the message after ``stopped:``; uncaught or not, the process ends with status 75. It is no
    ``Exception``, so that what forgives errors does not swallow it.
    """

    def __init__(self, message: str = ""):
        super().__init__(message)
        self.code = PREEMPTED


def require(package: str) -> None:
    """Raises UserError, naming the extra, where a package of ``EXTRAS`` is not installed. Imports it otherwise."""
    try:
        import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; run: pip install 'edm-pipeline[{EXTRAS[package]}]'") from None

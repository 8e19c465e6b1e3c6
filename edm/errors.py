"""Errors that a user can act on."""


class UserError(ValueError):
    """A mistake that the user can mend: one line saying what was wrong, where, and what to do.

    The command line prints the message after ``error:`` and exits with status 1, without a traceback.
    """

"""Errors about foreign files. Each message is one bounded line, even for hostile content."""

from edm.errors import UserError

_LONGEST = 80  # characters of a name from the file that a message repeats
_LONGEST_LINE = 400  # of a message
_IN_WORDS = {"Instance": "an object", "Name": "a name", "Stored": "a tensor", "Storage": "a storage", "Span": "bytes",
             "NoneType": "nothing", "int": "an integer", "dict": "a dictionary"}  # fmt: skip


def refused(reason: str) -> UserError:
    """For a file that is complete but uses something that no checkpoint needs, or is of an unknown kind."""
    return UserError(f"refused: {reason}; get the file from its publisher")


def unsupported(kind: str, instead: str) -> UserError:
    """For a file of a known kind that this program cannot use."""
    return UserError(f"refused: it is {kind}; {instead}")


def damaged(reason: str) -> UserError:
    """For a file that contradicts itself or ends too early."""
    return UserError(f"damaged: {reason}; get the file again")


def shown(value: object) -> str:
    """A name from a file as printable ASCII of bounded length; for other values than text and numbers, the kind."""
    if isinstance(value, str):
        text = ascii(value[: _LONGEST + 1])[1:-1]
    elif isinstance(value, int) and abs(value) < 1 << 64:
        text = str(value)
    else:
        kind = type(value).__name__
        text = _IN_WORDS.get(kind, f"a {kind}")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def printable(message: str) -> str:
    """A message from another library as one bounded printable line: it may repeat content of the file."""
    line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in message[: _LONGEST_LINE + 1])
    return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 1] + "…"

"""The ways in which a foreign file fails, each one line however hostile its content."""

from edm.errors import UserError

_LONGEST = 80  # characters of a name from the file that a message repeats
_LONGEST_LINE = 400  # of a message
_IN_WORDS = {"Instance": "an object", "Name": "a name", "Stored": "a tensor", "Storage": "a storage", "Span": "bytes",
             "NoneType": "nothing", "int": "an integer", "dict": "a dictionary"}  # fmt: skip


def refused(reason: str) -> UserError:
    """A file that is whole but asks for what no checkpoint needs, or is of no kind that is known."""
    return UserError(f"refused: {reason}; get the file from its publisher")


def unsupported(kind: str, instead: str) -> UserError:
    """A file whose kind is known, and which this program cannot use."""
    return UserError(f"refused: it is {kind}; {instead}")


def damaged(reason: str) -> UserError:
    """A file that contradicts itself or ends too early."""
    return UserError(f"damaged: {reason}; get the file again")


def shown(value: object) -> str:
    """A name from a file as printable ASCII of bounded length; of anything but text or a number, only its kind."""
    if isinstance(value, str):
        text = ascii(value[: _LONGEST + 1])[1:-1]
    elif isinstance(value, int) and abs(value) < 1 << 64:
        text = str(value)
    else:
        kind = type(value).__name__
        text = _IN_WORDS.get(kind, f"a {kind}")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def printable(message: str) -> str:
    """A message of other origin as one bounded line: a library's may repeat what a file says, as it is."""
    line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in message[: _LONGEST_LINE + 1])
    return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 1] + "…"

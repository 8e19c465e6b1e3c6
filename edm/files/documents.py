"""The one reader of the project's own JSON files: strict JSON of bounded size and depth, of a declared shape.

A shape is a :class:`Kind` of plain value, ``{name: shape}`` for an object with at least these names, ``[shape]`` for a
list, :class:`Names` for an object with any names, or :class:`Maybe` for a value that may be missing.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edm.errors import UserError
from edm.files.reading import read_regular
from edm.files.refusals import shown

LARGEST = 16 << 20  # bytes of a file; results take about 2,500 per point and repeat
_DEEPEST = 40  # levels of lists and objects
_MOST_DIGITS = 100  # of a whole number: each fits in a float
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_VERSIONED = re.compile(r"([a-z-]+)/([0-9]{1,9})")


class DamagedError(UserError):
    """A file that was read but is not a whole file of its format: the reader of a cache makes it anew."""


class NoNumberError(ValueError):
    """NaN or an infinity, which Python writes and JSON does not have."""


@dataclass(frozen=True)
class Kind:
    """A kind of plain value: its name in messages, and the test of a value."""

    words: str
    fits: Callable[[Any], bool]

    def or_null(self) -> "Kind":
        return Kind(f"{self.words} or null", lambda value: value is None or self.fits(value))


@dataclass(frozen=True)
class Names:
    """An object with any names, whose values have one shape."""

    shape: Any


@dataclass(frozen=True)
class Maybe:
    """A value that may be null, and whose name may be missing."""

    shape: Any


def between(low: float, high: float) -> Kind:
    return Kind(
        f"a number from {low:g} to {high:g}", lambda value: type(value) in (int, float) and low <= value <= high
    )


def whole(low: int, high: int = 1 << 62) -> Kind:
    return Kind(f"a whole number from {low}", lambda value: type(value) is int and low <= value <= high)


TEXT = Kind("one line of text", lambda value: isinstance(value, str) and not _CONTROL.search(value))
FLAG = Kind("true or false", lambda value: type(value) is bool)
SHA256 = Kind("a SHA-256", lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-fA-F]{64}", value)))
NUMBER = between(-1e30, 1e30)  # far beyond any measured value; sums and squares of it are finite
AMOUNT = between(0, 1e30)
COUNT = whole(0)
ANY = Kind("a JSON value", lambda value: True)


def parse(content: bytes) -> Any:
    """The value of strict JSON in UTF-8: no NaN, no infinity, no name twice.

    Raises ValueError, with a short reason, for anything else, and for values that are nested too deep.
    """
    try:
        value = json.loads(content.decode(), object_pairs_hook=_unique, parse_int=_short, parse_constant=_no_number)
        # Rejects NaN, infinities (also 1e400) and lone surrogates.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("nested too deep") from None
    except NoNumberError:
        raise
    except ValueError:
        raise ValueError("not whole JSON") from None
    if not _flat(value, _DEEPEST):
        raise ValueError("nested too deep")
    return value


def read_json(path: str | Path) -> Any:
    """The value in a JSON file. Raises UserError if the file is missing, DamagedError if it is not strict JSON."""
    content = read_regular(path, LARGEST, "a JSON file")
    try:
        return parse(content)
    except ValueError as error:
        raise DamagedError(f"{path}: not a readable JSON file ({error})") from None


def read_document(path: str | Path, format: str | None, shape: dict[str, Any], what: str, advice: str) -> Any:
    """The object in a JSON file of a shape and, unless None, with this ``format``.

    what: the file in words, such as "a file of distances". advice: what to do with a damaged file. Raises UserError if
    the file cannot be read or is of a later version of the format, DamagedError if it does not fit.
    """
    content = read_regular(path, LARGEST, what)
    try:
        value = parse(content)
    except ValueError as error:
        raise DamagedError(f"{path}: not {what} ({error}); {advice}") from None
    found = value.get("format") if isinstance(value, dict) else None
    if format is not None and found != format:
        if _is_later(found, format):
            raise UserError(f"{path}: is {shown(found)}, of a later version of this program; update the program")
        raise DamagedError(f"{path}: not {what} (its format is {shown(found)}, expected {format}); {advice}")
    required = [name for name, wanted in shape.items() if not isinstance(wanted, Maybe)]
    if isinstance(value, dict) and (absent := [name for name in required if name not in value]):
        raise DamagedError(f"{path}: not {what} ({absent[0]} is missing); {advice}")
    require_shape(value, shape, path, advice)
    return value


def require_shape(value: Any, shape: Any, path: str | Path, advice: str) -> None:
    """Raises DamagedError, naming the first place that does not fit, unless a value from a file has a shape."""
    if (wrong := misfit(value, shape)) is not None:
        raise DamagedError(f"{path}: {wrong}; {advice}")


def misfit(value: Any, shape: Any, place: str = "") -> str | None:
    """The first place where a value does not have a shape, in words; None if it has."""
    if isinstance(shape, Maybe):
        return None if value is None else misfit(value, shape.shape, place)
    expected, inner = _parts(value, shape)
    if expected:
        return f"{shown(place) if place else 'its content'} is {_shown(value)}; expected {expected}"
    for name, entry, wanted in inner:
        below = f"{place}.{name}" if place else str(name)
        if entry is not _MISSING:
            if (wrong := misfit(entry, wanted, below)) is not None:
                return wrong
        elif not isinstance(wanted, Maybe):
            return f"{shown(below)} is missing"
    return None


_MISSING = object()


def _parts(value: Any, shape: Any) -> tuple[str, Iterable[tuple[Any, Any, Any]]]:
    """What was expected instead of a value, or ""; and the values inside, each with its name and its shape."""
    if isinstance(shape, Kind):
        return "" if shape.fits(value) else shape.words, ()
    if isinstance(shape, list):
        if not isinstance(value, list):
            return "a list", ()
        return "", ((number, entry, shape[0]) for number, entry in enumerate(value, 1))
    if not isinstance(value, dict):
        return "an object", ()
    if isinstance(shape, dict):
        return "", ((name, value.get(name, _MISSING), wanted) for name, wanted in shape.items())
    if not all(map(TEXT.fits, value)):
        return "names of one line", ()
    return "", ((name, entry, shape.shape) for name, entry in value.items())


def _shown(value: Any) -> str:
    """A value in a message: short and printable."""
    if value is None or isinstance(value, bool | float):
        return json.dumps(value)
    return f"'{shown(value)}'" if isinstance(value, str) else shown(value)


def _is_later(found: Any, format: str) -> bool:
    """Whether a format is a later version of the expected one: "edm-step/2" of "edm-step/1"."""
    later = _VERSIONED.fullmatch(found) if isinstance(found, str) else None
    own = _VERSIONED.fullmatch(format)
    return bool(later and own and later[1] == own[1] and int(later[2]) > int(own[2]))


def _flat(value: Any, left: int) -> bool:
    if not isinstance(value, (dict, list)):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return left > 0 and all(_flat(entry, left - 1) for entry in inner if isinstance(entry, (dict, list)))


def _short(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError("a whole number with too many digits")
    return int(digits)


def _no_number(name: str) -> None:
    raise NoNumberError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a repeated name, of which Python would keep the last."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name stands twice")
    return table

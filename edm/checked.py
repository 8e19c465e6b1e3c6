"""Dataclasses that validate the types and limits of their fields and export a JSON Schema. Does not import torch."""

import dataclasses
import functools
import math
import numbers
import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

from edm.errors import UserError

#: Metadata of a field that a later version added: its default stays out of plain dictionaries.
LATER = {"later": True}
#: The same, of a field that :meth:`Checked.check` and the schema leave to a subclass.
APART = {"later": True, "apart": True}
_OF_LISTS = ("minItems", "maxItems")
_BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "minimum": (operator.ge, "at least {}"),
    "exclusiveMinimum": (operator.gt, "more than {}"),
    "maximum": (operator.le, "at most {}"),
    "exclusiveMaximum": (operator.lt, "less than {}"),
    "multipleOf": (lambda value, of: value % of == 0, "a multiple of {}"),
}
_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", NoneType: "null"}


def choose(what: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise UserError(f"{what} {value!r} is unknown; choose one of {', '.join(allowed)}")


def require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON or YAML has an annotated type. A list is a valid tuple, an integer a valid number."""
    if isinstance(hint, UnionType):
        return any(fits(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, (list, tuple)) and all(fits(item, get_args(hint)[0]) for item in value)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and _finite(value)
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) if hint is int else type(value) is hint


def _finite(value: numbers.Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _plain(value: Any) -> Any:
    """A number of numpy, which computes in its own precision, as one of Python; anything else as it is."""
    if type(value) in (int, float, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def in_words(hint: Any) -> str:
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", NoneType: "null"}
    if isinstance(hint, UnionType):
        return " or ".join(in_words(option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return "a list of numbers" if get_args(hint)[0] is float else "a list of whole numbers"
    return words[hint]


def _require_within(limits: dict[str, Any], name: str, value: Any) -> None:
    """Raises UserError if the value of a field, or one of its entries, is outside its limits. None is always valid."""
    if "enum" in limits:
        if value is not None:
            choose(name, value, limits["enum"])
        return
    entries = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    for entry in entries:
        if not all(holds(entry, limits[key]) for key, (holds, _) in _BOUNDS.items() if key in limits):
            words = " and ".join(text.format(limits[key]) for key, (_, text) in _BOUNDS.items() if key in limits)
            raise UserError(f"{name} is {entry}; it must be {words}")
    if isinstance(value, (list, tuple)):
        least, most = (limits.get(key, otherwise) for key, otherwise in zip(_OF_LISTS, (0, math.inf), strict=True))
        require(least <= len(value) <= most, f"{name} has {len(value)} entries; it must have {least} to {most}")


@dataclass(frozen=True)
class Checked:
    """Base of frozen dataclasses of plain values: validation, and conversion from and to plain dictionaries.

    limits: the limits of each field as JSON Schema keywords; for a list, the limits of its entries and of their number.
    ``__post_init__`` of a subclass calls :meth:`check`. A field with ``LATER`` as its metadata stays out of plain
    dictionaries while it has its default, so that equal configurations of earlier versions give equal files.
    """

    limits: ClassVar[dict[str, dict[str, Any]]] = {}

    def check(self) -> None:
        """Checks the type and the limits of each field separately. Converts lists to tuples, and numbers of numpy."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is field.default or "apart" in field.metadata:  # a default is right
                continue
            hint = self._hints()[field.name]
            if not (field.default == math.inf == value or fits(value, hint)):  # S_max has no limit
                raise UserError(f"{field.name} is {value!r}, which is not {in_words(hint)}")
            _require_within(self.limits.get(field.name, {}), field.name, value)
            if isinstance(value, list | tuple):
                object.__setattr__(self, field.name, tuple(map(_plain, value)))
            elif value is not _plain(value):
                object.__setattr__(self, field.name, _plain(value))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """An instance from a dictionary. Raises UserError for unknown or missing names, and for invalid values."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in values:
            choose(f"{cls.__name__} field", key, fields)
        for name, field in fields.items():
            needed = field.default is dataclasses.MISSING
            require(name in values or not needed, f"{cls.__name__} field {name!r} is missing")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold: tuples as lists, infinities as None."""

        def plain(value: Any) -> Any:
            if isinstance(value, tuple):
                return list(value)
            return None if isinstance(value, float) and math.isinf(value) else value

        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)
                if not ("later" in field.metadata and getattr(self, field.name) == field.default)}  # fmt: skip

    def changes(self) -> dict[str, Any]:
        """The values that differ from the defaults: enough for ``from_dict``, stable if later versions add fields."""
        values = self.to_dict()
        return {f.name: values[f.name] for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}

    @classmethod
    @functools.cache
    def _hints(cls) -> dict[str, Any]:
        return get_type_hints(cls)

    @classmethod
    def schema(cls) -> dict[str, dict[str, Any]]:
        """JSON Schema of every field, from its type and its limits."""
        return {field.name: schema_of(cls._hints()[field.name], cls.limits.get(field.name, {}))
                for field in dataclasses.fields(cls) if "apart" not in field.metadata}  # fmt: skip


def schema_of(hint: Any, limits: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a value of an annotated type within limits."""
    if "enum" in limits:
        return {"enum": list(limits["enum"])}
    own = {key: value for key, value in limits.items() if key in _OF_LISTS}
    if isinstance(hint, UnionType) and any(get_origin(option) is tuple for option in get_args(hint)):
        hint = next(option for option in get_args(hint) if get_origin(option) is tuple)
    if get_origin(hint) is tuple:
        entries = {key: value for key, value in limits.items() if key not in own}
        return {"type": "array", "items": {"type": _TYPES[get_args(hint)[0]], **entries}, **own}
    types = [_TYPES[option] for option in (get_args(hint) if isinstance(hint, UnionType) else (hint,))]
    return {"type": types if len(types) > 1 else types[0], **limits}

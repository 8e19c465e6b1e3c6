"""Sizes that a network described by a file may have: a wrong or hostile description costs a line, not hours."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from edm.config import LIMITS, NetworkConfig
from edm.errors import UserError

_SIZES = [field.name for field in dataclasses.fields(NetworkConfig) if "maximum" in LIMITS.get(field.name, {})]


def require_plausible(values: Mapping[str, Any]) -> None:
    """Raises UserError where a field of a :class:`NetworkConfig`, given as plain values, lies outside of all reason.

    Fields that are missing or None are let pass; so are those of text and the dropout, which have no size.
    """
    for name in _SIZES:
        value, limits = values.get(name), LIMITS[name]
        if value is None:
            continue
        numbers = value if isinstance(value, (list, tuple)) else [value]
        least, most, entries = limits["minimum"], limits["maximum"], limits.get("maxItems", 1)
        if len(numbers) > entries or not all(type(n) is int and least <= n <= most for n in numbers):
            raise UserError(f"its network has {name} outside of {least} to {most}, or more than {entries}")
    taps = values.get("resample_filter")
    if isinstance(taps, (list, tuple)) and (len(taps) % 2 or not sum(taps)):
        raise UserError("its network has a resample_filter that is not an even number of taps with a sum")

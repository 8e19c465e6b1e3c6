"""Size limits of networks described by files: a wrong or hostile file gives an error at once, not after hours."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from edm.config import LIMITS, NetworkConfig
from edm.errors import UserError

_SIZES = [field.name for field in dataclasses.fields(NetworkConfig) if "maximum" in LIMITS.get(field.name, {})]


def require_plausible(values: Mapping[str, Any]) -> None:
    """Raises UserError if a field of a :class:`NetworkConfig`, given as plain values, has an implausible value.

    Does not check missing or None fields, text fields and the dropout, which have no size.
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

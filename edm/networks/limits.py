"""Sizes that a network described by a file may have: a wrong or hostile description costs a line, not hours."""

from collections.abc import Mapping
from typing import Any

from edm.errors import UserError

#: Least and most; wide of every network that one machine can hold.
_LIMITS = {
    "resolution": (8, 1 << 14), "channels": (1, 256), "out_channels": (1, 512), "classes": (0, 1_000_000),
    "augment_dim": (0, 4096), "model_channels": (4, 1 << 14), "channel_mult": (1, 64), "num_blocks": (1, 64),
    "attn_resolutions": (1, 1 << 14), "channel_mult_noise": (1, 64), "resample_filter": (0, 1 << 20),
    "channels_per_head": (1, 1 << 20), "norm_groups": (1, 1 << 10),
}  # fmt: skip
_MOST_ENTRIES = 16  # of a list


def require_plausible(values: Mapping[str, Any]) -> None:
    """Raises UserError where a field of a :class:`NetworkConfig`, given as plain values, lies outside of all reason.

    Fields that are missing or None are let pass; so are those of text and the dropout, which have no size.
    """
    for name, (least, most) in _LIMITS.items():
        value = values.get(name)
        if value is None:
            continue
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if len(numbers) > _MOST_ENTRIES or not all(type(n) is int and least <= n <= most for n in numbers):
            raise UserError(f"its network has {name} outside of {least} to {most}, or more than {_MOST_ENTRIES}")
    taps = values.get("resample_filter")
    if isinstance(taps, (list, tuple)) and (len(taps) % 2 or not sum(taps)):
        raise UserError("its network has a resample_filter that is not an even number of taps with a sum")

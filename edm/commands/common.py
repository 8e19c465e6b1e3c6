"""What the commands share."""

import sys
from typing import Any

from edm.errors import UserError
from edm.tracking import environment_tags


def say(text: str) -> None:
    """A line for a person, on stderr."""
    print(text, file=sys.stderr, flush=True)


def origin() -> dict[str, Any]:
    """Which code made a result."""
    tags = environment_tags()
    return {"commit": tags.get("commit"), "dirty": tags.get("dirty")}


def threads(count: int | None) -> None:
    """Limits torch's threads, where a number is given."""
    if count:
        import torch

        torch.set_num_threads(count)


def mapping(value: Any, path: str) -> dict[str, Any]:
    """The value of a JSON file, if it is an object. Raises UserError."""
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object of configuration fields")
    return value

"""Reader and writer of levels.json, the curves of a training run: the loss per noise level, and vs. images seen.

Does not import torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edm.files.documents import AMOUNT, COUNT, NUMBER, DamagedError, Maybe, between, read_document
from edm.files.writing import write_json

_ADVICE = "delete it and run snakemake again, or take it from DVC again"
_LEVELS = {"sigma": [between(1e-9, 1e9)], "mean": [AMOUNT], "std": [AMOUNT], "samples": Maybe(COUNT)}
_SHAPE = {"before": Maybe(_LEVELS), "after": _LEVELS, "training": Maybe({"images": [COUNT], "loss": [NUMBER]})}


def write_curves(
    path: str | Path, before: Mapping[str, Any], after: Mapping[str, Any], training: Mapping[str, Any]
) -> None:
    """before, after: the levels of :func:`edm.training.loss_levels.error_per_level`. training: the loss per tick."""
    write_json(path, {"before": before, "after": after, "training": training})


def read_curves(path: str | Path) -> dict[str, Any]:
    """The content of levels.json. Raises UserError for any other file, and for curves without points."""
    found: dict[str, Any] = read_document(path, None, _SHAPE, "the curves of a training run", _ADVICE)
    for name in ("before", "after", "training"):
        curve = found.get(name) or {}
        lengths = {len(values) for values in curve.values() if isinstance(values, list)}
        if len(lengths) > 1 or (name == "after" and 0 in lengths):
            raise DamagedError(f"{path}: {name} has {sorted(lengths)} points; expected one number of them; {_ADVICE}")
    return found

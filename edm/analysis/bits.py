"""The files of likelihoods: bits per dimension of every image of a dataset, whole or in parts. Without torch."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edm.errors import UserError
from edm.files.documents import AMOUNT, ANY, NUMBER, TEXT, Maybe, read_document, whole
from edm.files.writing import write_json
from edm.tracking import origin

FORMAT, PART = "edm-likelihood/1", "edm-likelihood-part/1"
_AGAIN = "delete it and run snakemake again"
_OF_IMAGES = {"each": [NUMBER], "spreads": Maybe([AMOUNT])}
_WHOLE = {"bits_per_dimension": NUMBER, "s": AMOUNT, "images": whole(2), "spread": AMOUNT.or_null(), "each": [NUMBER],
          "checkpoint": {"sha256": TEXT}, "dataset_sha256": TEXT, "num_steps": whole(1), "trace": TEXT,
          "probes": whole(1), "commit": Maybe(TEXT), "dirty": Maybe(TEXT), "run": Maybe(TEXT)}  # fmt: skip


def summary(each: Sequence[float], spreads: Sequence[float] | None) -> dict[str, Any]:
    """The numbers of a likelihood from those of its images, in the order of the dataset.

    spreads: the standard error of every image's bits over its probes; None of a single probe. Returns
    "bits_per_dimension", the mean; "s", its standard error over images; "images"; "spread", the root mean square of
    spreads; "each". ``summary([3.0, 3.5], None)["bits_per_dimension"]`` is 3.25.
    Raises UserError if the likelihood of an image is not finite.
    """
    if not all(map(math.isfinite, each)):
        raise UserError("the likelihood of some images is not finite; take more steps, or check the model")
    spread = None if spreads is None else math.sqrt(statistics.fmean(one**2 for one in spreads))
    return {"bits_per_dimension": statistics.fmean(each), "s": statistics.stdev(each) / math.sqrt(len(each)),
            "images": len(each), "spread": spread, "each": list(each)}  # fmt: skip


def read_bits(path: str | Path) -> dict[str, Any]:
    """The likelihood in a file. Raises UserError for any other file."""
    record: dict[str, Any] = read_document(path, FORMAT, _WHOLE, "a file of likelihoods", _AGAIN)
    if len(record["each"]) != record["images"]:
        raise UserError(f"{path}: has {len(record['each'])} numbers for {record['images']} images; {_AGAIN}")
    return record


def write_part(path: str | Path, of: dict[str, Any], part: range, found: dict[str, Any]) -> None:
    """Writes the numbers of some images. of: what the whole consists of, as plain data; part: their places."""
    write_json(path, {"format": PART, "of": of, "from": part.start, "to": part.stop, **found, **origin()})


def merged(paths: Sequence[str | Path], of: dict[str, Any], images: int) -> dict[str, Any]:
    """The :func:`summary` of all parts of a whole. Raises UserError for parts of another, and if any is missing."""
    shape = {"of": ANY, "from": whole(0), "to": whole(0), **_OF_IMAGES}
    parts = [(path, read_document(path, PART, shape, "a part of a likelihood", _AGAIN)) for path in paths]
    each: list[float] = []
    spreads: list[float] = []
    for path, part in sorted(parts, key=lambda one: one[1]["from"]):
        if part["of"] != of:
            raise UserError(f"{path}: is a part of another likelihood; delete the parts and run snakemake again")
        if part["from"] != len(each) or part["to"] != len(each) + len(part["each"]):
            raise UserError(f"{path}: does not follow the part before it; name all parts, each once")
        each += part["each"]
        spreads += part.get("spreads") or ()
    if len(each) != images:
        raise UserError(f"{len(paths)} parts with {len(each)} of {images} images; name all parts")
    return summary(each, spreads or None)

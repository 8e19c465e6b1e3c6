"""Writer and reader of each file format of evaluations, searches and choices. Does not import torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edm.errors import UserError
from edm.files.writing import read_json, write_json
from edm.tracking import origin

FORMAT = "edm-distances/2"
SEARCH = "edm-search/1"
CHOICE = "edm-choice/1"


@dataclass(frozen=True)
class Measurement:
    """One distance, of one repeat of one sampler setting (``point``) of a model, and how it was measured.

    run: key of its run in MLflow (tag edm.key). more: other metrics of the same images, by name.
    """

    model: str
    grid: str
    point: str
    repeat: int
    distance: float
    nfe: int
    images: int
    first_seed: int
    sampler: dict[str, Any]
    label: str
    description: str
    commit: str | None
    dirty: str | None
    checkpoint: str
    dataset: str | None
    run: str | None
    more: dict[str, float] = field(default_factory=dict)


def measurement(record: dict[str, Any], row: dict[str, Any]) -> Measurement:
    """Parses one row of a results file's points. Raises KeyError if an entry is missing."""
    known = {"id", "repeat", "first_seed", "sampler", "run", "images", "nfe", "distance", "more", "from"}
    more = {key: value for key, value in row.items() if key not in known}
    more |= {f"FD ({features})": value for features, value in row.get("more", {}).items()}
    return Measurement(
        model=record["model"],
        grid=record["grid"],
        point=row["id"],
        repeat=row["repeat"],
        distance=row["distance"],
        nfe=row["nfe"],
        images=row["images"],
        first_seed=row["first_seed"],
        sampler=row["sampler"],
        label=record["metric"]["label"],
        description=record["metric"]["description"],
        commit=record["commit"],
        dirty=record["dirty"],
        checkpoint=record["checkpoint"]["sha256"],
        dataset=record["checkpoint"].get("dataset_sha256") or record["metric"].get("dataset_sha256"),
        run=row.get("run"),
        more=more,
    )


def write_results(
    path: str | Path, names: dict[str, str], about: dict[str, Any], metrics: Sequence[dict[str, Any]],
    points: Sequence[dict[str, Any]],
) -> None:  # fmt: skip
    """Writes the results of an evaluation.

    names: its "experiment", "model", "grid" and "evaluation". about: the description of the model, under "checkpoint",
    and of searched settings. metrics: descriptions of the yardsticks; the first gives the distance. points: a row for
    each draw.
    """
    write_json(path, {"format": FORMAT, **names, **about, "metric": metrics[0], "more": list(metrics[1:]),
                      "points": list(points), **origin()})  # fmt: skip


def write_search(path: str | Path, found: dict[str, Any]) -> None:
    """Writes the outcome of a search; ``found`` holds at least its "settings" and their "value"."""
    write_json(path, {"format": SEARCH, **found})


def read_search(path: str | Path) -> dict[str, Any]:
    """The outcome of a search, with its "settings". Raises UserError for any other file."""
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != SEARCH or "settings" not in record:
        raise UserError(f"{path}: not the outcome of a search; delete it and run snakemake again")
    return record


def write_choice(path: str | Path, metric: dict[str, Any], chosen: dict[str, Any]) -> None:
    """Writes the chosen snapshot and its metric; ``chosen`` holds all values and the settings of the choice."""
    write_json(path, {"format": CHOICE, "metric": metric, **chosen, **origin()})

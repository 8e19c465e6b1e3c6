"""The measured distances of an experiment, as its results files hold them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edm.errors import UserError
from edm.files import read_json
from edm.params import Experiment

FORMAT = "edm-distances/1"


@dataclass(frozen=True)
class Measurement:
    """One distance: of a sampler setting (``point``) of a model, and what it was measured with."""

    model: str
    grid: str
    point: str
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


class Results:
    """Measurements of an experiment by (model, grid), in the order of the grid's points; only what exists."""

    def __init__(self, experiment: Experiment, folder: Path):
        self.experiment = experiment
        self._measured = {
            pair: _read(path, experiment.grids[pair[1]].points)
            for pair in experiment.evaluations()
            if (path := distances_file(folder, experiment.name, *pair)).exists()
        }

    def of(self, model: str, grid: str) -> list[Measurement]:
        return self._measured.get((model, grid), [])

    def metric(self) -> str:
        """What the distances are, in one line; distances of several kinds are never mixed in a table."""
        kinds = {(m.label, m.description, m.images) for rows in self._measured.values() for m in rows}
        if len({(label, description) for label, description, _ in kinds}) > 1:
            raise UserError(f"{self.experiment.name}: results in several features; measure all of them in one")
        if not kinds:
            return "Nothing has been measured yet."
        label, description, _ = next(iter(kinds))
        counts = " or ".join(f"{count:,}" for count in sorted({images for *_, images in kinds}))
        note = "" if label == "FID" else " This is not FID."
        return f"{label}: Fréchet distance of {counts} images from the dataset; features: {description}.{note}"


def distances_file(folder: Path, experiment: str, model: str, grid: str) -> Path:
    return folder / experiment / "distances" / model / f"{grid}.json"


def _read(path: Path, points) -> list[Measurement]:
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{path}: not a file of distances; delete it and run snakemake again")
    rows = {row["id"]: row for row in record["points"]}
    return [
        Measurement(
            model=record["model"],
            grid=record["grid"],
            point=point.id,
            distance=row["distance"],
            nfe=row["nfe"],
            images=row["images"],
            first_seed=record["first_seed"],
            sampler=row["sampler"],
            label=record["metric"]["label"],
            description=record["metric"]["description"],
            commit=record["commit"],
            dirty=record["dirty"],
            checkpoint=record["checkpoint"]["sha256"],
            dataset=record["checkpoint"].get("dataset_sha256"),
        )
        for point in points
        if (row := rows.get(point.id))
    ]

"""Figures of a report: which results are drawn how. The drawing itself is in :mod:`edm.report.panels`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edm.chain import jobs as chain
from edm.config import TrainingConfig
from edm.errors import UserError
from edm.files.writing import named, read_json
from edm.params import Report
from edm.params.layouts import figure_datasets, figure_sources
from edm.report import panels
from edm.report.results import Measurement, Results, metric
from edm.report.tables import best, least_nfe

SHEET_IMAGES = 24  # shown of each sheet, unless a figure says otherwise
MARKS = {"within 3 %": (least_nfe, "least NFE within 3 % of the lowest"), "lowest": (best, "lowest")}


@dataclass(frozen=True)
class Places:
    """Where things lie: results, runs, the dataset archives, the models."""

    results: Path
    runs: Path
    data: Path
    models: Path

    def run_file(self, path: str) -> Path:
        return self.runs / Path(path).relative_to("runs")


def write_figure(report: Report, name: str, places: Places) -> list[Path]:
    """Draws a figure of the report under ``results/REPORT/figures``, PNG and SVG; returns the files.

    What is not there yet is left out of it, and said. Raises UserError where there is nothing to draw it from; a curve
    without any point is drawn as such.
    """
    written: list[Path] = []
    spec = report.figures[name]
    DRAWING[spec["kind"]](report, name, places, places.results / report.name / "figures" / name, written)
    return written


def _curve(report: Report, name: str, places: Places, path: Path, written: list[Path]) -> None:
    """Distance over a quantity, one line per source (Figures 2, 4, 5b, 5c, 12, 13c, 15)."""
    spec, results = report.figures[name], Results(places.results, places.runs)
    lines, marked, seen = {}, {}, []
    mark, mark_label = MARKS.get(spec.get("mark"), (None, ""))
    for label, source in figure_sources(report, name).items():
        rows = results.of(source.experiment, source.model, source.name)
        seen += [m for row in rows for m in row.all]
        x = [_position(row.lowest, spec["over"]) for row in rows]
        if rows and spec["over"] != "nfe" and len(set(x)) == 1 and len(rows) > 1:
            lines[label] = best(rows).lowest.distance  # not swept over this axis: a level to compare with
            continue
        lines[label] = [(at, row.lowest.distance, row.lowest.distance, row.highest.distance)
                        for at, row in zip(x, rows, strict=True)]  # fmt: skip
        if rows and mark is not None:
            marked[label] = _position(mark(rows).lowest, spec["over"])
    metric(seen)  # raises where results of several kinds would share an axis
    ylabel = next((m.label for m in seen), "distance")
    title = spec.get("title") or (report.tables[spec["table"]]["title"] if "table" in spec else "")
    title += f" ({spec['column']})" if "column" in spec and len(report.experiments) > 1 else ""
    panels.curves(lines, spec["over"], path, written, ylabel=ylabel, title=title, marked=marked, mark_label=mark_label)


def _position(measurement: Measurement, over: str) -> float:
    return measurement.nfe if over == "nfe" else measurement.sampler[over]


def _levels(report: Report, name: str, places: Places, path: Path, written: list[Path]) -> None:
    """Loss per noise level before and after training, weighted as the EDM loss weights it (Figure 5a)."""
    from edm.analysis.loss_levels import weighted

    before, after = None, {}
    for label, source in figure_sources(report, name).items():
        file = places.models / Path(chain.levels_file(source.experiment, source.model)).relative_to("models")
        if file.exists():
            levels = read_json(file)
            before = before or (weighted(levels["before"]) if levels["before"] else None)
            after[label] = weighted(levels["after"])
    if not after:
        raise UserError(f"{path}: none of its models is trained yet; run snakemake")
    ylabel = r"$\lambda_{EDM}(\sigma)\,\|D-y\|^2$ per pixel"
    panels.loss_levels(before, after, path, written, P_mean=TrainingConfig.P_mean, P_std=TrainingConfig.P_std,
                       ylabel=ylabel, title="Loss per noise level")  # fmt: skip


def _sheets(report: Report, name: str, places: Places, path: Path, written: list[Path]) -> None:
    """Images of several models or samplers from the same seeds, side by side (Figures 6 to 12)."""
    spec = report.figures[name]
    count = spec.get("images", SHEET_IMAGES)
    cells: dict[str, np.ndarray | None] = {}
    for experiment in figure_datasets(report, name):
        file = places.data / f"{experiment.dataset}.zip"
        cells[experiment.dataset] = _dataset_images(file, count) if file.exists() else None
    for label, source in figure_sources(report, name).items():
        file = places.run_file(chain.sheet_file(source.experiment, source.model, source.name))
        cells[label] = _tensor(file, "images/only", count) if file.exists() else None
    if not any(images is not None for images in cells.values()):
        raise UserError(f"{path}: none of its sheets is there yet; run snakemake")
    per_row = 4
    labels = list(cells)
    rows = {" " * i: {label: cells[label] for label in labels[i * per_row : (i + 1) * per_row]}
            for i in range(-(-len(labels) // per_row))}  # fmt: skip
    panels.sheets({("" if len(rows) == 1 else key): value for key, value in rows.items()}, path, written, columns=4)


def _noisy(report: Report, name: str, places: Places, path: Path, written: list[Path]) -> None:
    """Noisy images and the ideal denoiser's outputs (Figure 1)."""
    import torch

    from edm.analysis import noisy
    from edm.data.archive import images_in_chunks
    from edm.data.pixels import to_float

    (experiment,) = figure_datasets(report, name)
    file = places.data / f"{experiment.dataset}.zip"
    chosen = to_float(torch.from_numpy(_dataset_images(file, report.figures[name]["images"])))
    training = (to_float(torch.from_numpy(chunk)) for chunk in images_in_chunks(file))
    noised, denoised = noisy.noisy_and_ideal(chosen, training)
    panels.noisy_grid(noised.numpy(), denoised.numpy(), noisy.SIGMAS, path, written)


def _trajectories(report: Report, name: str, places: Places, path: Path, written: list[Path]) -> None:
    """Solutions of the ODE for two Dirac peaks under three schedules (Figure 3)."""
    from edm.analysis import trajectories as study

    z = study.even_quantiles()
    wide, near = (
        {key: {k: v.numpy() for k, v in panel.items()} for key, panel in study.trajectories(z, sigma_max).items()}
        for sigma_max in (study.SIGMA_WIDE, study.SIGMA_NEAR)
    )
    panels.trajectories(wide, near, path, written)


def _truncation(report: Report, name: str, places: Places, path: Path, written: list[Path]) -> None:
    _, header = _analysis(report, name, places)
    panels.truncation(header["numbers"], path, written)


def _degradation(report: Report, name: str, places: Places, path: Path, written: list[Path]) -> None:
    file, header = _analysis(report, name, places)
    numbers = header["numbers"]
    images = {noise: _tensor(file, named(noise)) for noise in numbers["S_noise"]}
    panels.degradation_grid(images, numbers["sigmas"], numbers["repetitions"], path, written)


def _leakage(report: Report, name: str, places: Places, path: Path, written: list[Path]) -> None:
    file, header = _analysis(report, name, places)
    shown = {kind: _tensor(file, kind, SHEET_IMAGES) for kind in ("dataset", "augmented", "generated")}
    panels.leakage_sheet(shown["dataset"], shown["augmented"], shown["generated"], header["numbers"]["distances"], path,
                         written, metric=header["numbers"]["metric"], columns=4)  # fmt: skip


DRAWING = {"curve": _curve, "levels": _levels, "sheets": _sheets, "noisy": _noisy, "trajectories": _trajectories,
           "truncation": _truncation, "degradation": _degradation, "leakage": _leakage}  # fmt: skip


def _analysis(report: Report, name: str, places: Places) -> tuple[Path, dict[str, Any]]:
    from edm.models.checkpoint import read_header

    (source,) = figure_sources(report, name).values()
    file = places.run_file(chain.analysis_file(source.experiment, source.model, source.name))
    return file, read_header(file, "edm-analysis/1")


def _tensor(file: Path, name: str, count: int | None = None) -> np.ndarray:
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as tensors:
        rows = tensors.get_slice(name)
        return rows[: min(count or rows.get_shape()[0], rows.get_shape()[0])]


def _dataset_images(file: Path, count: int) -> np.ndarray:
    from edm.data.archive import some_images

    return some_images(file, range(count))

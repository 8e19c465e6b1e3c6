"""Figures of an experiment: curves over NFE and churn, loss per noise level, sample grids."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from edm.config import TrainingConfig
from edm.data import read_archive
from edm.errors import UserError
from edm.files import read_json
from edm.params import Experiment
from edm.report.results import Measurement, Results
from edm.report.sheet import image_grid
from edm.report.style import canvas, line_styles

COLUMNS = 20  # of a sheet of images
AXES = {"nfe": "network evaluations per image (NFE)", "S_churn": "$S_{churn}$", "rho": r"$\rho$", "alpha": r"$\alpha$"}


@dataclass(frozen=True)
class Sources:
    """What figures are drawn from: measured distances, and the folders of runs and of dataset archives."""

    experiment: Experiment
    measured: Results
    runs: Path
    data: Path


def write_figures(experiment: Experiment, results: Path, runs: Path, data: Path) -> list[Path]:
    """Draws every figure of the experiment under ``results/EXPERIMENT/figures``, PNG and SVG; returns the files."""
    sources = Sources(experiment, Results(experiment, results), runs, data)
    written: list[Path] = []
    for name, spec in experiment.figures.items():
        DRAWING[spec["kind"]](sources, spec, results / experiment.name / "figures" / name, written)
    return written


def _curve(sources: Sources, spec: dict[str, Any], path: Path, written: list[Path]) -> None:
    """Distance over a quantity, one line per row of a table (Figures 2, 4 and 15)."""
    table = sources.experiment.tables[spec["table"]]
    lines = {label: sources.measured.of(spec["model"], grid) for label, grid in table["rows"].items()}
    _lines(lines, spec["over"], f"{table['title']} ({spec['model']})", path, written)


def _models(sources: Sources, spec: dict[str, Any], path: Path, written: list[Path]) -> None:
    """Distance over a quantity, one line per model of a grid (Figure 5b)."""
    grid = sources.experiment.grids[spec["grid"]]
    lines = {model: sources.measured.of(model, grid.name) for model in grid.models}
    _lines(lines, spec["over"], f"Configurations ({grid.name})", path, written)


def _lines(lines: dict[str, list[Measurement]], over: str, title: str, path: Path, written: list[Path]) -> None:
    label = next((row.label for rows in lines.values() for row in rows), "distance")
    with canvas(path, written) as axes:
        for (name, rows), style in zip(lines.items(), line_styles(), strict=False):
            if not rows:
                continue
            points = sorted((row.nfe if over == "nfe" else row.sampler[over], row.distance) for row in rows)
            x, y = zip(*points, strict=True)
            flat = over != "nfe" and len(set(x)) == 1 and len(rows) > 1
            if flat:  # a row that is not swept over this axis is a level to compare with
                axes.axhline(min(y), color=style["color"], linestyle=":", label=f"{name} (best)")
            else:
                axes.plot(x, y, **style, markersize=4, linewidth=1.4, label=name)
        axes.set(xlabel=AXES.get(over, over), ylabel=label, title=title, yscale="log")
        if over == "nfe":
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="minor", labelsize=7)
        axes.legend(fontsize=7)


def _levels(sources: Sources, spec: dict[str, Any], path: Path, written: list[Path]) -> None:
    """Loss per noise level before and after training, weighted as the EDM loss weights it (Figure 5a)."""
    curves = {}
    for model in sources.experiment.models:
        file = sources.runs / sources.experiment.name / model / "levels.json"
        if file.exists():
            curves[model] = read_json(file)
    with canvas(path, written, width=5.6) as axes:
        before = next((curve["before"] for curve in curves.values() if curve["before"]), None)
        if before:
            axes.plot(before["sigma"], _weighted(before, "mean"), color="0.5", linestyle="--", label="before training")
        for (model, curve), style in zip(curves.items(), line_styles(), strict=False):
            after = curve["after"]
            mean, std = _weighted(after, "mean"), _weighted(after, "std")
            axes.plot(after["sigma"], mean, **style, markersize=3, linewidth=1.2, label=model)
            if model == list(curves)[-1]:  # one band: six would hide each other
                low = [max(m - s, 1e-3) for m, s in zip(mean, std, strict=True)]
                axes.fill_between(after["sigma"], low, [m + s for m, s in zip(mean, std, strict=True)], alpha=0.15,
                                  color=style["color"], linewidth=0, label=f"{model}, standard deviation")  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=r"noise level $\sigma$", title="Loss per noise level",
                 ylabel=r"$\lambda_{EDM}(\sigma)\,\|D-y\|^2$ per pixel")  # fmt: skip
        if curves:
            axes.legend(fontsize=7, ncols=2)


def _weighted(curve: dict[str, list[float]], key: str, sigma_data: float = TrainingConfig.sigma_data) -> list[float]:
    return [
        (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2 * value
        for sigma, value in zip(curve["sigma"], curve[key], strict=True)
    ]


def _samples(sources: Sources, spec: dict[str, Any], path: Path, written: list[Path]) -> None:
    """The first images of the dataset, and of every model of a grid from the same seeds (Figures 9 to 11)."""
    experiment, count = sources.experiment, spec["images"]
    grid = experiment.grids[spec["grid"]]
    archive = sources.data / f"{experiment.dataset}.zip"
    sheets = {"dataset": image_grid(read_archive(archive).images[:count], columns=COLUMNS)} if archive.exists() else {}
    for model in grid.models:
        file = sources.runs / experiment.name / model / "samples" / f"{grid.name}.safetensors"
        if file.exists():
            sheets[model] = image_grid(_first_images(file, grid.points[-1].id, count), columns=COLUMNS)
    if not sheets:
        raise UserError(f"{path}: neither the dataset nor samples of {grid.name} are there yet; run snakemake")
    rows = -(-count // COLUMNS)
    with canvas(path, written, width=7.0, height=0.1 + len(sheets) * (0.36 * rows + 0.1)) as axes:
        gap = np.full((3, next(iter(sheets.values())).shape[1], 3), 255, dtype=np.uint8)
        stack, ticks = [], []
        for sheet in sheets.values():
            ticks.append(sum(part.shape[0] for part in stack) + sheet.shape[0] / 2)
            stack += [sheet, gap]
        axes.imshow(np.concatenate(stack[:-1]), interpolation="nearest")
        axes.set_yticks(ticks, list(sheets))
        axes.set_xticks([])
        axes.grid(False)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)


def _first_images(file: Path, point: str, count: int) -> np.ndarray:
    with safe_open(file, framework="numpy") as tensors:
        return tensors.get_slice(f"images/{point}")[:count]


DRAWING = {"curve": _curve, "models": _models, "levels": _levels, "samples": _samples}

"""Figures of a report: selects the results for each. :mod:`edm.report.panels` draws them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from edm.chain import paths
from edm.checked import fits
from edm.config import SamplerConfig
from edm.design.averages import doubts
from edm.errors import UserError, nearest
from edm.files.reading import require_regular
from edm.files.writing import named
from edm.metrics import lower_is_better, metric_error
from edm.params import Report
from edm.params.layouts import EXACT, LIKELIHOOD, OVER_WIDTHS, figure_layout
from edm.params.sources import Figure, Source
from edm.report import panels
from edm.report.cells import rounded, with_error
from edm.report.results import Repeats, Results, metric
from edm.report.sheet import COLUMNS, by_class
from edm.report.tables import best, least_nfe
from edm.training.bound import bound
from edm.training.bound import density as bits_per_level
from edm.training.curves import read_curves

MARKS = {"within 3 %": (least_nfe, "least NFE within 3 % of the lowest"), "lowest": (best, "lowest")}
PER_ROW, PER_ROW_WIDE = 4, 2  # sheets per row of a figure that states no rows; with more columns than ``COLUMNS``


ONLY = "images/only"  # the images of a sheet, in its file


@dataclass(frozen=True)
class Places:
    """The folders of results, runs, dataset archives and models."""

    results: Path
    runs: Path
    data: Path
    models: Path

    def run_file(self, path: str) -> Path:
        return self.runs / Path(path).relative_to("runs")


def write_figure(report: Report, name: str, places: Places) -> list[Path]:
    """Draws a figure of the report under ``results/REPORT/figures``, PNG and SVG; returns the files.

    A figure omits missing inputs and states this. Raises UserError if all inputs are missing; a curve without any
    point stays empty.
    """
    written: list[Path] = []
    layout = figure_layout(report, name)
    DRAWING[layout.kind](layout, places, places.results / report.name / "figures" / name, written)
    return written


def _curve(layout: Figure, places: Places, path: Path, written: list[Path]) -> None:
    """Distance vs. a quantity, one line per source (Figures 2, 4, 5b, 5c, 12, 13c, 15)."""
    if layout.over == OVER_WIDTHS:
        _curve_of_averages(layout, places, path, written)
        return
    results = Results(places.results, places.runs)
    beside: dict[str, dict[str, list[tuple[float, float, float, float]]]]
    beside = {_axis_of(name): {} for name in layout.metrics}
    lines: dict[str, list[tuple[float, float, float, float]] | float] = {}
    marked, seen = {}, []
    mark, mark_label = MARKS.get(layout.mark, (None, ""))
    for label, source in layout.shown.items():
        rows = results.over(source)
        seen += [m for row in rows for m in row.every]
        x = [_position(row, layout.over) for row in rows]
        for name in layout.metrics:
            beside[_axis_of(name)][label] = [(at, *_of_metric(row, name)) for at, row in zip(x, rows, strict=True)
                                             if name in row.more]  # fmt: skip
        if rows and layout.over != "nfe" and len(set(x)) == 1 and len(rows) > 1:
            lines[label] = best(rows).value  # not swept over this axis: a horizontal level for comparison
            continue
        lines[label] = [(at, row.value, *row.band) for at, row in zip(x, rows, strict=True)]
        if rows and mark is not None:
            marked[label] = _position(mark(rows), layout.over)
    metric(seen)  # raises if results of several kinds would share an axis
    label = next((m.label for m in seen), "distance")
    published = layout.published if label in ("FID", "distance") else {}  # published numbers are FIDs
    panels.curves(lines, layout.over, path, written, ylabel=f"{label}, lower is better", marked=marked,
                  mark_label=mark_label, published=published, beside=beside)  # fmt: skip


def _curve_of_averages(layout: Figure, places: Places, path: Path, written: list[Path]) -> None:
    """Distance vs. the relative width of averages of snapshots; averages of doubtful weights are crossed out."""
    results, seen = Results(places.results, places.runs), []
    lines: dict[str, list[tuple[float, float, float, float]]] = {}
    crossed: dict[str, list[float]] = {}
    for label, sources in layout.rows.items():
        lines[label], crossed[label] = [], []
        for width, source in sources.items():
            for row in results.over(source):
                seen += row.every
                lines[label].append((float(width), row.value, *row.band))
                if any(m.ema and doubts(m.ema["residual"], m.ema["total"]) for m in row.every):
                    crossed[label].append(float(width))
    metric(seen)  # raises if results of several kinds would share an axis
    label = next((m.label for m in seen), "distance")
    panels.curves(lines, layout.over, path, written, ylabel=f"{label}, lower is better", crossed=crossed,
                  cross_label="crossed: another profile, or weights that cancel")  # fmt: skip


def _axis_of(name: str) -> str:
    return f"{name.replace('_', ' ')}, {'lower' if lower_is_better(name) else 'higher'} is better"


def _of_metric(row: Repeats, name: str) -> tuple[float, float, float]:
    """A metric of a point, and its range: one deviation over training runs, or 1.96 standard errors if it has any."""
    value = row.more[name]
    each = [m.more[name] for m in row.of_each]
    one = row.lowest
    error = stdev(each) if len(each) > 1 else 1.96 * (metric_error(name, one.more, one.images) or 0)
    return value, value - error, value + error


def _position(row: Repeats, over: str) -> float:
    return row.nfe if over == "nfe" else row.lowest.sampler[over]


def _levels(layout: Figure, places: Places, path: Path, written: list[Path]) -> None:
    """Loss per noise level before and after training, and the model's noise levels in training (Figure 5a)."""
    from edm.models.building import loss_of
    from edm.training.loss_levels import density, weighted

    before, after, losses = {}, {}, {}
    for label, source in layout.shown.items():
        file = places.models / Path(paths.levels_file(source.experiment, source.model)).relative_to("models")
        if file.exists():
            levels, losses[label] = read_curves(file), loss_of(source.experiment.models[source.model])
            after[label] = weighted(levels["after"], losses[label])
            if levels.get("before"):
                before[label] = weighted(levels["before"], losses[label])
    if not after:
        raise UserError(f"{path}: none of its models is trained yet; run snakemake")
    low = min(min(curve["sigma"]) for curve in after.values())
    high = max(max(curve["sigma"]) for curve in after.values())
    seen = {label: density(loss, low, high) for label, loss in losses.items()}
    densities = {}  # models of one distribution share a curve
    for curve in seen.values():
        alike = panels.listed(one for one in seen if seen[one] == curve)
        densities[rf"$p_{{train}}(\ln\,\sigma)$: {alike}"] = curve
    panels.loss_levels(before, after, densities, path, written, ylabel=r"$\lambda(\sigma)\,\|D-y\|^2$ per pixel")


def _bits(layout: Figure, places: Places, path: Path, written: list[Path]) -> None:
    """Bits per dimension and e-fold of noise, of every model that is trained."""
    curves = {}
    for label, source in layout.shown.items():
        file = places.models / Path(paths.levels_file(source.experiment, source.model)).relative_to("models")
        if file.exists():
            levels = read_curves(file)["after"]
            found = bound(levels, source.experiment.models[source.model].sigma_data)
            shown = rounded(found.bits, None) if found.s is None else with_error(found.bits, found.s)
            curves[f"{label}: {shown}"] = bits_per_level(levels)
    if not curves:
        raise UserError(f"{path}: none of its models is trained yet; run snakemake")
    panels.bits_per_level(curves, path, written)


def _likelihoods(layout: Figure, places: Places, path: Path, written: list[Path]) -> None:
    """Bits per dimension of every model: by the ODE, and the bound."""
    results = Results(places.results, places.runs)
    exact, above = (layout.rows[name] for name in (EXACT, LIKELIHOOD[0]))
    shown: dict[str, dict[str, tuple[float, float]]] = {"likelihood, by the ODE": {}, "bound, on training images": {}}
    of_ode, of_bound = shown.values()
    for label, source in exact.items():
        if bits := results.bits_of_runs(source):
            of_ode[label] = _mean([one["bits_per_dimension"] for one in bits], bits[0]["s"])
    for label, source in above.items():
        if bounds := results.bounds(source):
            of_bound[label] = _mean([one.bits for one in bounds], bounds[0].s or 0)
    if not of_ode and not of_bound:
        raise UserError(f"{path}: none of its models is trained yet; run snakemake")
    panels.bits_of_models(shown, list(exact), path, written)


def _mean(values: Sequence[float], error: float) -> tuple[float, float]:
    """The mean over training runs and half the width of its bar: one deviation or, of a single run, 1.96 errors."""
    return fmean(values), stdev(values) if len(values) > 1 else 1.96 * error


def _sheets(layout: Figure, places: Places, path: Path, written: list[Path]) -> None:
    """Images of several models or samplers with the same seeds, side by side (Figures 6 to 12)."""
    results, feet = Results(places.results, places.runs), {}
    drawn: dict[str, dict[str, np.ndarray | None]] = {}
    columns: dict[str, int] = {}
    for row, sources in layout.rows.items():
        drawn[row], columns[row] = _row(sources, places, layout.images)
        if row in layout.distances:
            feet[row] = {label: _distance(source, layout.distances[row], results) for label, source in sources.items()}
    if not any(images is not None for cells in drawn.values() for images in cells.values()):
        raise UserError(f"{path}: none of its sheets is there yet; run snakemake")
    if list(drawn) == [""]:
        labels, cells = list(drawn[""]), drawn[""]
        most = PER_ROW if columns[""] == COLUMNS else PER_ROW_WIDE
        parts = [labels[start : start + most] for start in range(0, len(labels), most)]
        drawn = {" " * (number + (len(parts) > 1)): {label: cells[label] for label in part}
                 for number, part in enumerate(parts)}  # fmt: skip
        columns = dict.fromkeys(drawn, columns[""])
    panels.sheets(drawn, path, written, columns=columns, feet=feet)


def _row(sources: dict[str, Source], places: Places, count: int) -> tuple[dict[str, np.ndarray | None], int]:
    """The images of sheets that stand side by side, None for a missing sheet, and the images per line of each.

    As many of every class if the images of all have labels; else the first ones.
    """
    files = {label: file for label, source in sources.items() if (file := _sheet_file(source, places)).exists()}
    even = by_class([_labels(sources[label], file) for label, file in files.items()], count)
    if even is None:
        first = {label: _first(sources[label], file, count) for label, file in files.items()}
        return {label: first.get(label) for label in sources}, COLUMNS
    chosen = dict(zip(files, even[0], strict=True))
    return {label: _of_places(source, files[label], chosen[label]) if label in files else None
            for label, source in sources.items()}, even[1]  # fmt: skip


def _sheet_file(source: Source, places: Places) -> Path:
    if source.kind == "dataset":
        return places.data / f"{source.experiment.dataset}.zip"
    return places.run_file(paths.sheet_file(source.experiment, source.model, source.name))


def _first(source: Source, file: Path, count: int) -> np.ndarray:
    return _dataset_images(file, range(count)) if source.kind == "dataset" else _images(file, ONLY, count=count)


def _of_places(source: Source, file: Path, which: np.ndarray) -> np.ndarray:
    """The images at these places, uint8 [n, C, H, W]; a white one where the place is −1."""
    there = which[which >= 0]
    found = _dataset_images(file, there.tolist()) if source.kind == "dataset" else _images(file, ONLY)[there]
    images = np.full((len(which), *found.shape[1:]), 255, dtype=np.uint8)
    images[which >= 0] = found
    return images


def _labels(source: Source, file: Path) -> np.ndarray | None:
    """The labels of the images of a sheet or a dataset; None without labels."""
    if source.kind == "dataset":
        from edm.data.archive import labels_of

        return labels_of(file)
    from safetensors import safe_open

    images = _images(file, ONLY)
    with safe_open(file, framework="numpy") as tensors:
        names = list(tensors.keys())
        labels: np.ndarray | None = tensors.get_tensor("labels") if "labels" in names else None
    return labels if labels is not None and labels.shape == (len(images),) else None


def _distance(sheet: Source, grid: Source, results: Results) -> str:
    """The lowest distance of the image set that a sheet shows a part of; empty without a measurement."""
    sampler = sheet.experiment.sheets[sheet.name].samplers[sheet.model] if sheet.kind == "sheet" else None
    for repeats in results.of(grid.experiment, grid.model, grid.name):
        m = repeats.lowest
        if m.model == sheet.model and sampler is not None and SamplerConfig.from_dict(m.sampler) == sampler:
            return f"{m.label} {m.distance:.2f}"
    return ""


def _noisy(layout: Figure, places: Places, path: Path, written: list[Path]) -> None:
    """Noisy images and the ideal denoiser's outputs (Figure 1)."""
    import torch

    from edm.analysis import noisy
    from edm.data.archive import images_in_chunks
    from edm.data.pixels import to_float

    (source,) = layout.shown.values()
    file = places.data / f"{source.experiment.dataset}.zip"
    chosen = to_float(torch.from_numpy(_dataset_images(file, range(layout.images))))
    training = (to_float(torch.from_numpy(chunk)) for chunk in images_in_chunks(file))
    noised, denoised = noisy.noisy_and_ideal(chosen, training)
    panels.noisy_grid(noised.numpy(), denoised.numpy(), noisy.SIGMAS, path, written)


def _trajectories(layout: Figure, places: Places, path: Path, written: list[Path]) -> None:
    """Solutions of the ODE for two Dirac peaks under three schedules (Figure 3)."""
    from edm.analysis import trajectories as study

    z = study.even_quantiles()
    wide, near = (
        {key: {k: v.numpy() for k, v in panel.items()} for key, panel in study.trajectories(z, sigma_max).items()}
        for sigma_max in (study.SIGMA_WIDE, study.SIGMA_NEAR)
    )
    panels.trajectories(wide, near, path, written)


def _truncation(layout: Figure, places: Places, path: Path, written: list[Path]) -> None:
    _, numbers = _analysis(layout, places)
    panels.truncation(numbers, path, written)


def _degradation(layout: Figure, places: Places, path: Path, written: list[Path]) -> None:
    file, numbers = _analysis(layout, places)
    size = (len(numbers["sigmas"]), len(numbers["repetitions"]))
    images = {noise: _images(file, named(noise), "float32", size) for noise in numbers["S_noise"]}
    panels.degradation_grid(images, numbers["sigmas"], numbers["repetitions"], path, written)


def _leakage(layout: Figure, places: Places, path: Path, written: list[Path]) -> None:
    file, numbers = _analysis(layout, places)
    shown = {kind: _images(file, kind, count=layout.images) for kind in ("dataset", "augmented", "generated")}
    panels.leakage_sheet(shown["dataset"], shown["augmented"], shown["generated"], numbers["distances"], path, written,
                         metric=numbers["metric"], columns=4)  # fmt: skip


def _pairs(layout: Figure, places: Places, path: Path, written: list[Path]) -> None:
    """Generated images beside their nearest training images, the lowest ratios first."""
    file, numbers = _analysis(layout, places, "memorisation")
    pairs = numbers["pairs"][: layout.images]
    generated, training = (_images(file, kind, count=len(pairs)) for kind in ("generated", "training"))
    if not len(generated) == len(training) == len(pairs):
        raise UserError(f"{file}: does not hold the images of its {len(pairs)} pairs; delete it, run snakemake again")
    panels.pairs_sheet(generated, training, numbers, path, written)


def _study(layout: Figure, places: Places, path: Path, written: list[Path]) -> None:
    """Two lists of numbers of each study, one over the other."""
    from edm.analysis.studies import read_numbers

    lines: dict[str, list[tuple[float, float, float, float]] | float] = {}
    for label, source in layout.shown.items():
        file = places.run_file(paths.analysis_file(source.experiment, source.model, source.name))
        if not file.exists():
            lines[label] = []
            continue
        numbers = read_numbers(file, source.experiment.analyses[source.name].kind)
        lists = {name: values for name, values in numbers.items() if fits(values, tuple[float, ...])}
        for name in (layout.x, layout.y):
            if name not in lists:
                raise UserError(f"{path}: {source.name} gives no list of numbers {name!r}{nearest(name, lists)}")
        x, y = lists[layout.x], lists[layout.y]
        if len(x) != len(y):
            raise UserError(f"{path}: {source.name} gives {len(x)} numbers {layout.x!r} and {len(y)} {layout.y!r}")
        lines[label] = [(at, value, value, value) for at, value in zip(x, y, strict=True)]
    if not any(lines.values()):
        raise UserError(f"{path}: none of its studies is there yet; run snakemake")
    panels.curves(lines, layout.x, path, written, ylabel=layout.y)


DRAWING = {"curve": _curve, "levels": _levels, "bits": _bits, "likelihood": _likelihoods, "sheets": _sheets,
           "noisy": _noisy, "trajectories": _trajectories, "truncation": _truncation,
           "degradation": _degradation, "leakage": _leakage, "pairs": _pairs,
           "study": _study}  # fmt: skip


def _analysis(layout: Figure, places: Places, kind: str = "") -> tuple[Path, dict[str, Any]]:
    """The file of the only study of a figure, and its numbers. kind: of the study, if it is not the figure's."""
    from edm.analysis.studies import read_numbers

    (source,) = layout.shown.values()
    file = places.run_file(paths.analysis_file(source.experiment, source.model, source.name))
    return file, read_numbers(file, kind or layout.kind)


def _images(
    file: Path, name: str, dtype: str = "uint8", size: tuple[int, ...] = (), count: int | None = None
) -> np.ndarray:
    """The first images of a tensor in a file, [*size, n, C, H, W]. Raises UserError if it is damaged or another."""
    from safetensors import SafetensorError, safe_open

    require_regular(file, "a file of images")
    try:
        with safe_open(file, framework="numpy") as tensors:
            rows = tensors.get_slice(name)
            found = rows.get_shape()
            fits = len(found) == len(size) + 4 and tuple(found[: len(size)]) == size
            if fits and 0 not in found and found[-3] in (1, 3):
                images: np.ndarray = rows[: min(count or found[0], found[0])]
                if images.dtype == dtype:
                    return images
    except (SafetensorError, OSError, ValueError, TypeError):
        pass
    raise UserError(f"{file}: has no {dtype} images {name!r} of the expected size; delete it and run snakemake again")


def _dataset_images(file: Path, which: Iterable[int]) -> np.ndarray:
    from edm.data.archive import some_images

    return some_images(file, which)

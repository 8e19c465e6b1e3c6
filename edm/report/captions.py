"""Captions of the tables and figures of a report, as reStructuredText for `snakemake --report`."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edm.chain.choices import in_words
from edm.chain.jobs import Chain
from edm.chain.paths import levels_file
from edm.design.averages import CANCELS, FAR
from edm.errors import UserError
from edm.metrics import INCEPTION
from edm.params import Report
from edm.params.layouts import BY_NFE, OVER_WIDTHS, figure_layout, selection, table_layout
from edm.params.sources import Source
from edm.report.about import done_jobs, duration
from edm.report.results import Results, metric
from edm.training.curves import read_curves

PAPER = (
    "T. Karras, M. Aittala, T. Aila, S. Laine: *Elucidating the Design Space of Diffusion-Based Generative "
    "Models*, NeurIPS 2022 (`arXiv:2206.00364 <https://arxiv.org/abs/2206.00364>`__)"
)
_OF_RUNS, _ERRORS = "one standard deviation over training runs", "1.96 standard errors"
_NUMBERED = re.compile(r"(table|figure)(\d+)([a-z]*)")
_TABLES = {
    "configurations": (
        "Each row is a training configuration, each column an architecture; the numbers are Fréchet distances "
        "of images sampled from the trained models. Lower is better."
    ),
    "samplers": (
        "Each row is a sampler, each column a trained model; the numbers are Fréchet distances, with "
        "the network evaluations per image (NFE) in brackets. Lower is better."
    ),
    "cells": (
        "Each row is a model with a sampler; the numbers are Fréchet distances, with the "
        "network evaluations per image (NFE) in brackets. Lower is better."
    ),
    "solvers": (
        "Each row is a sampler, each column a number of network evaluations per image (NFE); the numbers are Fréchet "
        "distances of images of one model. Lower is better."
    ),
    "orders": (
        "Each row is a sampler: the order that its authors claim, the order and error on data with a known solution, "
        "and Fréchet distances of images of one model by network evaluations per image (NFE)."
    ),
    "settings": (
        "Each column is a model, each row the best value that a search found for a parameter of the stochastic "
        "sampler (Algorithm 2)."
    ),
    "panel": (
        "Each row is a model, each column a metric of the same images, with the rank among the rows in brackets; the "
        "notes say where the metrics order the models differently."
    ),
    "likelihood": (
        "Each row is a model; the numbers are bits per dimension: an upper bound on −log₂ of the probability of 8-bit "
        "images, from the mean squared error at every noise level, and its three terms; exact is the likelihood by the "
        "probability-flow ODE, where computed. Lower is better."
    ),
    "study": ("Each row is a study of a model, each column a number that it gives."),
    "hyperparameters": ("The training settings of the models. Nothing here is measured."),
    "networks": ("The architectures of the networks. Nothing here is measured."),
}
#: By kind of figure: its default title, and a description.
_FIGURES = {
    "curve": (
        "{metric} vs. {over}",
        "Fréchet distance of the sampled images vs. {over}: one line per sampler or model, one marker per "
        "setting{range}. Lower is better.{mark}",
    ),
    "levels": (
        "Loss per noise level",
        "Mean loss at each noise level σ before (dashed) and after training, with each model's training "
        "weight; the band is the standard deviation over images; models that agree within 2 % before training share a "
        "line. Measured on {levels} images per level. The right axis shows the distributions of noise levels in "
        "training.",
    ),
    "bits": (
        "Bits per noise level",
        "Bits per dimension and e-fold of noise, e(σ)/(σ² ln 2), with e the mean squared error of a pixel after "
        "training; the band is 1.96 standard errors. The area below a curve is the diffusion term of the bound on the "
        "likelihood, which the legend states in bits per dimension with its standard error. Measured on {levels} "
        "training images per level.",
    ),
    "likelihood": (
        "Bits per dimension",
        "Bits per dimension of 8-bit images, a line per model: the likelihood by the probability-flow ODE, of {bits}, "
        "and the bound from the loss per noise level, of training images. The bars are {bars}. Lower is better.",
    ),
    "sheets": (
        "Samples",
        "Images sampled from each model with the same seeds, not selected by their looks{real}: up to {images} each. "
        "Images of few classes stand in a column per class, the first of each.",
    ),
    "noisy": (
        "Noisy images and the ideal denoiser",
        "Images of the dataset with increasing noise, and below each the output of the ideal denoiser. "
        "No network is involved.",
    ),
    "trajectories": (
        "Solutions of the ODE",
        "Solution trajectories for two data points in one dimension under three parametrisations, at high noise "
        "and near the data. No network is involved.",
    ),
    "truncation": (
        "Local truncation error",
        "The error of one step of Euler's and of Heun's method vs. the noise level, for several spacings ρ of the "
        "steps: mean and standard deviation over images.",
    ),
    "degradation": (
        "Degradation by repeated noise",
        "Images after adding and removing noise many times at one noise level: an exact denoiser would leave them "
        "unchanged.",
    ),
    "leakage": (
        "Leakage of augmentation",
        "Images of the dataset, augmented images, and samples of a model that saw only augmented images in training, "
        "to check whether the samples look augmented, too.",
    ),
    "pairs": (
        "Nearest training images",
        "The generated images that lie nearest to one training image, relative to their other neighbours, each beside "
        "that training image. A copy has the ratio 0.",
    ),
    "study": ("{y} vs. {x}", "{y} vs. {x}: one line per study of a model."),
}


#: What the rings of a curve mark.
_MARKS = {"within 3 %": " Rings mark the least NFE within 3 % of the lowest distance.",
          "lowest": " Rings mark the lowest distances."}  # fmt: skip


class Captions:
    """Titles and captions of the reports of a chain, from params.yaml and the existing results."""

    def __init__(self, chain: Chain):
        self.chain = chain

    def title(self, report: str, name: str) -> str:
        """Such as "Table 2: Training configurations"; a hair space before 2 makes it sort before 10."""
        number = _number(name, "\u200a") or name
        return f"{number}: {self._title(self.chain.reports[report], name)}"

    def table(self, report: str, name: str) -> str:
        one = self.chain.reports[report]
        spec = one.tables[name]
        sources = list(table_layout(one, name).sources())
        words = [_TABLES[spec["kind"]], *self._measured(sources)]
        if any(source.experiment.sampling.repeats > 1 for source in sources if source.kind == "grid"):
            words.append("Each number is the lowest of several repeats; square brackets show their range.")
        words += [text for text in (_trainings(sources), selection(sources)) if text]
        return self._caption(one, name, words, [source.experiment.dataset for source in sources])

    def figure(self, report: str, name: str) -> str:
        one = self.chain.reports[report]
        layout = figure_layout(one, name)
        sources = list(layout.sources())
        details = {"over": _axis(one.figures[name]), "x": layout.x, "y": layout.y, "mark": _MARKS.get(layout.mark, ""),
                   "range": _shaded(sources),
                   "levels": _counts(_level_samples(s) for s in sources if s.kind == "levels"),
                   "images": _counts(min(layout.images, s.experiment.sheets[s.name].images) for s in sources
                                     if s.kind == "sheet"),
                   "bars": f"{_OF_RUNS} or, of a single one, {_ERRORS}" if _trainings(sources) else _ERRORS,
                   "bits": in_words(dict.fromkeys(_bits_of(s) for s in sources if s.kind == "likelihood")),
                   "real": ", beside real ones" if any(s.kind == "dataset" for s in sources) else ""}  # fmt: skip
        words = [_FIGURES[layout.kind][1].format(**details), *self._measured(sources)]
        words += self._of_averages(sources) if layout.over == OVER_WIDTHS else []
        words += [f"Beside it {in_words(layout.metrics)} of the same images."] if layout.metrics else []
        words += [text for text in [selection(sources)] if text]
        return self._caption(one, name, words, [source.experiment.dataset for source in sources])

    def front(self, paths: Iterable[str]) -> str:
        """The first page of a report that shows these files."""
        shown = {Path(path).parts[1] for path in paths}  # results/REPORT/…
        names = [name for name in self.chain.reports if name in shown]
        return "\n".join(line for name in names for line in self._front(self.chain.reports[name]))

    def _front(self, report: Report) -> list[str]:
        done = done_jobs(self.chain, report)
        commits = dict.fromkeys((one.commit, one.dirty) for one in done)
        code = ", ".join(f"``{(commit or 'unknown')[:12]}``{' with uncommitted changes' if dirty == 'true' else ''}"
                         for commit, dirty in commits)  # fmt: skip
        days = sorted(one.created[:10] for one in done if one.created)
        span = " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "never"
        data = [f"* {_escaped(one.key[0])}: SHA-256 ``{sha[:16]}…``" for one in done if one.rule == "prepare"
                for sha in one.outputs.values()]  # fmt: skip
        title = _escaped(report.title[0].upper() + report.title[1:])
        counts = {"table": len(report.tables), "figure": len(report.figures)}
        shown = " and ".join(f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts.items())
        return [title, "=" * (len(title) + 1), "", f"{shown} in the layout of the paper's: {PAPER}.", "",
                "The eye icon opens a table or figure, the i icon its caption.", "",
                f"**Computed** {span}: {len(done):,} jobs, {duration(sum(one.seconds or 0.0 for one in done))} "
                "in total.", "",
                f"**Code**: commit {code}.", "", "**Datasets**:", "", *data, ""]  # fmt: skip

    def _title(self, report: Report, name: str) -> str:
        if name in report.tables:
            return report.tables[name]["title"]
        spec = report.figures[name]
        if "title" in spec:
            return spec["title"]
        features = {experiment.features for experiment in report.experiments.values()}
        metric = "FID" if features == {INCEPTION} else "FD"
        title = _FIGURES[spec["kind"]][0].format(
            over="NFE" if spec.get("over") == "nfe" else _axis(spec), metric=metric, x=spec.get("x"), y=spec.get("y")
        )
        column = f"; {spec['column']}" if "column" in spec and len(report.experiments) > 1 else ""
        return f"{title} ({report.tables[spec['table']]['title']}{column})" if "table" in spec else title

    def _measured(self, sources: Iterable[Source]) -> list[str]:
        """The number of images and the features, from the results."""
        results, seen = Results(Path("results")), []
        try:
            for source in sources:
                if source.kind == "grid":
                    rows = results.of(source.experiment, source.model, source.name)
                    seen += [measurement for row in rows for measurement in row.all]
            return [metric(seen)] if seen else []
        except UserError as error:
            return [str(error)]

    def _of_averages(self, sources: Iterable[Source]) -> list[str]:
        """How well the averages of snapshots fit."""
        results = Results(Path("results"))
        try:
            seen = [m.ema for source in sources for row in results.over(source) for m in row.every if m.ema]
        except UserError:
            return []
        if not seen:
            return []
        residual, total = (max(one[name] for one in seen) for name in ("residual", "total"))
        return [f"Averages are made of snapshots by least squares: the residual of a profile is at "
                f"most {residual:.2g}, the total of its weights {total:.3g}; crosses mark those that are another "
                f"profile (above {FAR:g}) or whose weights cancel (above {CANCELS:g})."]  # fmt: skip

    def _caption(self, report: Report, name: str, words: list[str], datasets: Iterable[str]) -> str:
        used = list(dict.fromkeys(datasets))
        spec = report.tables.get(name) or report.figures[name]
        stated = None if spec["kind"] in BY_NFE else spec.get("paper")  # those are not the paper's
        number = _number(stated or name) or (stated and "a table")
        beside = ", with the paper's numbers for comparison" if "paper" in spec else ""
        words.append(f"It corresponds to {number} of the paper{beside}." if number else "The paper has no such figure."
                     if name in report.figures else "The paper has no such table.")  # fmt: skip
        words += [f"Dataset: {in_words(used)}."] if used else []
        if any(self.chain.params.dataset(dataset).get("made_up") for dataset in used):
            words.append("The data are synthetic: the numbers are not meaningful.")
        head = f"{_number(name) or name}: {self._title(report, name)}"
        return f"**{_escaped(head)}.** {_escaped(' '.join(words))}\n"


def _trainings(sources: Iterable[Source]) -> str:
    """What ± means if some models have several training runs."""
    several = any(len(source.training_runs()) > 1 for source in sources)
    return "± is the standard deviation over training runs of different seeds." if several else ""


def _shaded(sources: list[Source]) -> str:
    bars = "the range of its repeats with 1.96 standard errors over other seeds on either side, where measured"
    over = "one standard deviation over its training runs"
    return f", shaded {f'{over} or, of a single one, {bars}' if _trainings(sources) else bars}"


def _number(name: str, pad: str = "") -> str | None:
    """ "figure5a" → "Figure 5a"; None for a name that is not one of the paper's."""
    found = _NUMBERED.fullmatch(name)
    return f"{found[1].title()} {pad if len(found[2]) == 1 else ''}{found[2]}{found[3]}" if found else None


def _axis(spec: dict[str, Any]) -> str:
    over: str = spec.get("over", "")
    return {"nfe": "network evaluations (NFE)", OVER_WIDTHS: "EMA width"}.get(over, over)


def _level_samples(source: Source) -> int:
    """Images per noise level: as measured, or as set in params.yaml before the measurement."""
    path = Path(levels_file(source.experiment, source.model))
    asked = source.experiment.models[source.model].level_samples
    return (read_curves(path)["after"].get("samples") if path.exists() else None) or asked


def _bits_of(source: Source) -> str:
    one = source.experiment.likelihoods[source.name]
    return f"{one.images:,} images of {one.dataset}"


def _counts(numbers: Iterable[int]) -> str:
    return " or ".join(f"{number:,}" for number in sorted(set(numbers)))


def _escaped(text: str) -> str:
    return re.sub(r"([\\*`|_])", r"\\\1", text)

"""The measured distances of a report, from its results files, and the reasons for missing ones."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edm.analysis.bits import read_bits
from edm.chain.paths import evaluation_file, levels_file, likelihood_file
from edm.config import SamplerConfig
from edm.errors import UserError
from edm.evaluation import records
from edm.evaluation.records import Measurement
from edm.metrics import MEMORISATION_OF_TEST, METRICS
from edm.params import Evaluation, Experiment
from edm.params.experiment import training_of
from edm.params.sources import Source
from edm.tracking import read_journal
from edm.training.curves import read_curves

if TYPE_CHECKING:
    from edm.training.bound import Bound


@dataclass(frozen=True)
class Repeats:
    """The repeats of one sampler setting: tables report the lowest and show the range (Section 6).

    others: the same setting of the further training runs of the model. Then tables report the mean of the lowest.
    """

    all: tuple[Measurement, ...]
    others: tuple["Repeats", ...] = ()

    @property
    def lowest(self) -> Measurement:
        return min(self.all, key=lambda m: m.distance)

    @property
    def highest(self) -> Measurement:
        return max(self.all, key=lambda m: m.distance)

    @property
    def of_each(self) -> list[Measurement]:
        """The lowest of every training run."""
        return [self.lowest, *(repeats.lowest for repeats in self.others)]

    @property
    def every(self) -> list[Measurement]:
        """All repeats of all training runs."""
        return [*self.all, *(m for repeats in self.others for m in repeats.all)]

    @property
    def value(self) -> float:
        """The distance to report: the mean over the training runs."""
        return statistics.fmean(m.distance for m in self.of_each)

    @property
    def spread(self) -> float | None:
        """The standard deviation over the training runs; None for a single one."""
        return statistics.stdev(m.distance for m in self.of_each) if self.others else None

    @property
    def nfe(self) -> int:
        """The mean over the training runs, which differs between them for adaptive solvers only."""
        return round(statistics.fmean(m.nfe for m in self.of_each))

    @property
    def band(self) -> tuple[float, float]:
        """From 1.96 standard errors below the lowest to 1.96 above the highest; without error bars the range alone.

        Of several training runs, one standard deviation around their mean.
        """
        if self.spread is not None:
            return max(0.0, self.value - self.spread), self.value + self.spread
        below, above = ((m.distance, 1.96 * (m.s or 0)) for m in (self.lowest, self.highest))
        return max(0.0, below[0] - below[1]), sum(above)

    @property
    def more(self) -> dict[str, float]:
        """The other metrics: means over the training runs."""
        each = [m.more for m in self.of_each]
        return {name: statistics.fmean(more[name] for more in each) for name in each[0]
                if all(name in more for more in each)} if self.others else self.lowest.more  # fmt: skip


class Results:
    """Results by experiment, model and grid, in the order of the grid's points; only what exists."""

    def __init__(self, results: Path, runs: Path = Path("runs")):
        self.results, self.runs = results, runs
        self._read: dict[tuple[str, str, str], list[Repeats]] = {}

    def of(self, experiment: Experiment, model: str, grid: str) -> list[Repeats]:
        """The measurements of a grid of a model: each point with its existing repeats. Raises UserError."""
        key = (experiment.name, model, grid)
        if key not in self._read:
            found: dict[str, list[Measurement]] = {}
            for evaluation in experiment.evaluations_of(model, grid):
                for measurement in self._measurements(experiment, evaluation):
                    found.setdefault(measurement.point, []).append(measurement)
            points = [point.id for point in experiment.grids[grid].points[model]]
            self._read[key] = [Repeats(tuple(found[point])) for point in points if point in found]
        return self._read[key]

    def over(self, source: Source) -> list[Repeats]:
        """The points of a source, each over all training runs of its model that have been measured."""
        found: dict[str, list[Repeats]] = {}
        for one in source.training_runs():
            for repeats in self._shown(one):
                found.setdefault(repeats.all[0].point, []).append(repeats)
        return [replace(first, others=tuple(others)) for first, *others in found.values()]

    def complete(self, source: Source) -> tuple[int, int]:
        """The number of existing draws of the points of a source, and the required number."""
        wanted = len(source.points) * source.experiment.sampling.repeats
        return sum(len(repeats.all) for repeats in self._shown(source)), wanted

    def _shown(self, source: Source) -> list[Repeats]:
        points = {point.id for point in source.points}
        measured = self.of(source.experiment, source.model, source.name)
        return [repeats for repeats in measured if repeats.all[0].point in points]

    def levels(self, source: Source) -> dict[str, Any] | None:
        """The errors per noise level after training, of a model that the chain trains; None before."""
        path = self.runs.with_name("models") / Path(levels_file(source.experiment, source.model)).relative_to("models")
        found: dict[str, Any] | None = read_curves(path)["after"] if path.exists() else None
        return found

    def bits(self, source: Source) -> dict[str, Any] | None:
        """The likelihood of a model, as its file states it; None before."""
        path = likelihood_file(source.experiment, source.model, source.name)
        file = self.results / Path(path).relative_to("results")
        return read_bits(file) if file.exists() else None

    def bits_of_runs(self, source: Source) -> list[dict[str, Any]]:
        """The likelihoods of all training runs of a model that have one, the model's own first."""
        return [found for one in source.training_runs() if (found := self.bits(one)) is not None]

    def bounds(self, source: Source) -> "list[Bound]":
        """The bounds of all training runs of a model that are finished, the model's own first."""
        from edm.training.bound import bound  # loads numpy, which `edm trace` does without

        config = source.experiment.models[source.model]
        found = map(self.levels, source.training_runs())
        return [bound(levels, config.sigma_data) for levels in found if levels is not None]

    def why_no_bits(self, source: Source) -> str:
        """Why a model has no likelihood, in the words of :meth:`why_missing`."""
        owner = source.experiment.owner("likelihood", source.model, source.name)
        return self._why(source.experiment, source.model, [f"{owner}/{source.model}/likelihoods/{source.name}"])

    def why_not_trained(self, experiment: Experiment, model: str) -> str:
        """Why a model has no errors per noise level and no studies, in the words of :meth:`why_missing`."""
        return self._why(experiment, model, [])

    def why_missing(self, experiment: Experiment, model: str, grid: str) -> str:
        """Why a grid has no results: "not run", "running", "failed", or the state of its model."""
        jobs = [f"{e.experiment}/{model}/distances/{e.name}" for e in experiment.evaluations_of(model, grid)]
        return self._why(experiment, model, jobs)

    def why_not_searched(self, experiment: Experiment, model: str, search: str) -> str:
        """Why a search has no outcome, in the same words."""
        owner = experiment.owner("search", model, search)
        return self._why(experiment, model, [f"{owner}/{model}/searches/{search}"])

    def _why(self, experiment: Experiment, model: str, jobs: list[str]) -> str:
        states = [self._state(f"{job}.journal.jsonl") for job in jobs]
        for state in ("failed", "running", "interrupted"):
            if state in states:
                return state
        run, _ = training_of(model)
        training = self._state(f"{experiment.owner('train', run)}/{run}/journal.jsonl") or ""
        return {"failed": "training failed", "running": "training", "interrupted": "training interrupted"}.get(
            training, "not run"
        )

    def _state(self, journal: str) -> str | None:
        """The status of the last run in a journal; a run without an entry for a day counts as interrupted."""
        path = self.runs / journal
        records = read_journal(path) if path.exists() else []
        if not records:
            return None
        if any(record.status == "FAILED" for record in records):
            return "failed"
        open_since = [record.updated for record in records if record.status == "RUNNING"]
        if open_since:
            return "running" if time.time() * 1000 - max(open_since) < 86_400_000 else "interrupted"
        return "interrupted" if any(record.status == "KILLED" for record in records) else "done"

    def _measurements(self, experiment: Experiment, evaluation: Evaluation) -> list[Measurement]:
        path = self.results / Path(evaluation_file(evaluation)).relative_to("results")
        if not path.exists():
            return []
        record = records.read_results(path)
        wanted = {(point.id, repeat): point.sampler for point, repeat in evaluation.draws}
        searched = experiment.grids[evaluation.grid].settings_from is not None
        return [records.measurement(record, row) for row in record["points"]
                if _is_of(row, wanted.get((row["id"], row["repeat"])), searched)]  # fmt: skip


def _is_of(row: dict[str, Any], sampler: SamplerConfig | None, searched: bool) -> bool:
    """Whether a row was measured with the current settings of its point; a search may have added some."""
    if sampler is None:
        return False
    then, now = SamplerConfig.from_dict(row["sampler"]).changes(), sampler.changes()
    return now.items() <= then.items() if searched else now == then


def metric(measured: list[Measurement]) -> str:
    """A description of distances, in one line. Raises UserError for several kinds, which must not be mixed."""
    kinds = {(m.label, m.description) for m in measured}
    if len(kinds) > 1:
        raise UserError(f"results in several features ({', '.join(sorted(k[0] for k in kinds))}); measure all in one")
    if not kinds:
        return "Nothing has been measured yet."
    ((label, description),) = kinds
    counts = " or ".join(f"{count:,}" for count in sorted({m.images for m in measured}))
    note = "" if label == "FID" else " This is not FID."
    return f"{label}: Fréchet distance of {counts} images from the dataset; features: {description}.{note}"


def about_metrics(measured: list[Measurement], names: Sequence[str]) -> list[str]:
    """What these metrics are, with their settings and numbers, in two lines at most; as the results state them."""
    told: dict[str, None] = {}
    for name in names:
        if name in METRICS:
            stated = {", ".join(f"{key} = {value:g}" for key, value in m.settings.get(name, {}).items())
                      for m in measured if name in m.more} - {""}  # fmt: skip
            settings = f" ({' or '.join(sorted(stated))})" if stated else ""
            told[f"{name}{settings}: {METRICS[name].meaning}"] = None
    counts = {
        (m.images, m.reference_features) for m in measured if m.reference_features and set(m.settings) & set(names)
    }
    against = " or ".join(f"{images:,} images against {others:,} training images" for images, others in sorted(counts))
    for name, which in (("memorisation_of_reference", "training images among themselves"),
                        (MEMORISATION_OF_TEST, "held-out images, which no model has seen")):  # fmt: skip
        shares = sorted({m.more[name] for m in measured if name in m.more})
        if "memorisation" in names and shares:
            against += f"; memorisation of the {which}: {' or '.join(f'{share:.3g} %' for share in shares)}"
    return [*([f"{'; '.join(told)}."] if told else []), *([f"Neighbours: {against}."] if against else [])]

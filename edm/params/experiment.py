"""The resolved params.yaml: models, grids, searches, sheets, analyses and reports as data."""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

from edm.config import AUTO, NULL, SamplerConfig, TrainingConfig
from edm.errors import UserError
from edm.files.hashes import digest
from edm.files.writing import named
from edm.metrics import MEMORISATION_OF_TEST, stated_settings
from edm.networks.pace import evaluations_per_second
from edm.params.points import Point, Points
from edm.params.studies import STUDIES

#: Fields of a training run that change weights at most by rounding. ``level_samples`` applies to levels.json, which a
#: training run writes at its end: a changed number applies to the next run and does not cause one.
UNDECIDING = ("microbatch", "level_samples")

#: Words for models: every rung of every column, and every model.
LADDER, ALL = "ladder", "all"
#: Between a model and the seed of a further training run of it ("vp-A@1"); no name in params.yaml contains it.
AT = "@"

#: Between a training run and the relative width of an average of its snapshots ("vp-F@ema-0.13").
OF_EMA = f"{AT}ema-"

#: In the name of a job of several points, after the first of them.
AND_MORE = "-and-"

#: Between a guide's model and the images seen of its snapshot, in Mimg: "vp-F at 20".
OF_SNAPSHOT = " at "

#: Between the width of an average and the images seen, in Mimg, of one before the last snapshot: "0.13-at-20".
AT_SNAPSHOT = "-at-"


def guiding_model(guide: str) -> tuple[str, float | None]:
    """The model of a guide, and the images seen of its snapshot in Mimg; None for the model that is evaluated.

    Raises ValueError for other text after the model than a positive, finite number.
    """
    model, at, seen = guide.partition(OF_SNAPSHOT)
    return model, _images_seen(seen) if at else None


def _images_seen(text: str) -> float:
    seen = float(text)
    if not 0 < seen < math.inf:
        raise ValueError(f"{text}: not a positive, finite number")
    return seen


def averaged(training: str, width: float, at: float | None = None) -> str:
    """The name of an average of a training run's snapshots, of a relative width: "vp-F@ema-0.13".

    at: the images seen of the snapshot whose place it takes, in Mimg: "vp-F@ema-0.13-at-20"; None for the last.
    """
    return f"{training}{OF_EMA}{average_mark(width, at)}"


def average_mark(width: float, at: float | None = None) -> str:
    """The width and the time of an average in names: "0.13" after all of training, "0.13-at-20" after 20 Mimg."""
    return named(width) + ("" if at is None else f"{AT_SNAPSHOT}{named(at)}")


def width_and_time(mark: str) -> tuple[float, float | None]:
    """The arguments of :func:`average_mark`. Raises ValueError for any other text."""
    width, found, at = mark.partition(AT_SNAPSHOT)
    return float(width), _images_seen(at) if found else None


def training_of(model: str) -> tuple[str, str]:
    """The training run of a model, and the mark of its average: ("vp-F", "0.13"); "" for no average."""
    training, _, mark = model.partition(OF_EMA)
    return training, mark


def first_training(model: str) -> str:
    """The model whose settings a training run has: "vp-A" for "vp-A@1", for "vp-A@ema-0.1" and for itself."""
    return model.partition(AT)[0]


@dataclass(frozen=True)
class Grid:
    """Sampler settings to try, per model.

    reference: statistics that replace the dataset's own, or None.
    settings_from: the search whose outcome provides the settings that the grid does not state, or None.
    """

    name: str
    points: Mapping[str, Points]
    reference: str | None = None
    settings_from: str | None = None

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.points)


@dataclass(frozen=True)
class Search:
    """A search for the best sampler settings (Table 5): one job per model.

    samplers: the initial settings of each model. over: the values to try per parameter, in the order of the sweeps.
    method: "coordinate" or "exhaustive". images: per evaluation.
    """

    name: str
    samplers: Mapping[str, SamplerConfig]
    over: dict[str, tuple[float | None, ...]]
    method: str
    images: int
    max_sweeps: int


@dataclass(frozen=True)
class Sheet:
    """A sample sheet: images of the first seeds, per model."""

    name: str
    samplers: Mapping[str, SamplerConfig]
    images: int


@dataclass(frozen=True)
class Analysis:
    """A study of one model at a time (Figures 13, 14, Appendix F.2): its kind and its settings."""

    name: str
    kind: str
    models: tuple[str, ...]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Likelihood:
    """Bits per dimension of the first ``images`` of a dataset under some models, with :func:`edm.log_likelihood`.

    settings: num_steps, solver, trace, probes, and sigma_min and sigma_max where they are stated.
    """

    name: str
    models: tuple[str, ...]
    dataset: str
    images: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """The selection of the best snapshot: all are ranked with few ``images``, the ``confirm`` best again with all.

    grid: a grid of one point, the sampler; models outside this grid use their final model. confirm: ``ALL`` measures
    every snapshot with all images and needs no ranking, so ``images`` is 0. widths: relative, of averages of all
    snapshots, which compete with the snapshots; alone, without ``snapshots``.
    """

    grid: str
    images: int
    confirm: int | str
    widths: tuple[float, ...] = ()
    snapshots: bool = True

    def candidates(self, snapshots: int) -> int:
        """The number of models to choose from, of a training run with so many snapshots."""
        return snapshots * self.snapshots + len(self.widths)

    def told(self, snapshots: int, images: int) -> str:
        """How a model is selected among so many snapshots, in words. images: of an evaluation."""
        if self.confirm == ALL:
            how = f"each measured with {images:,} images"
        else:
            how = f"ranked with {self.images:,} images, the best {self.confirm} again with {images:,}"
        return f"best of {self.among(snapshots)} ({how}), measured again on fresh seeds"

    def among(self, snapshots: int) -> str:
        """The models to choose from, in words: "80 snapshots and 3 EMA widths"."""
        widths = f"{len(self.widths)} EMA width{'s' * (len(self.widths) > 1)}"
        of_each = [f"{snapshots:,} snapshots"] * self.snapshots + [widths] * bool(self.widths)
        return " and ".join(of_each)


@dataclass(frozen=True)
class Training:
    """Resources for training; they do not affect the result.

    gpus: total on all nodes, one process each; 0 for one process on a CPU. state_every: seconds between two states,
    from which an interrupted training run resumes. compile: of :data:`edm.config.COMPILE`. recompute: whether the
    blocks of the network are computed again for their gradients: less memory, more time.
    """

    gpus: int = 1
    nodes: int = 1
    state_every: float = 300.0
    compile: str = AUTO
    recompute: bool = False

    @property
    def processes(self) -> int:
        return max(self.gpus, 1)


@dataclass(frozen=True)
class Minutes:
    """The work of a job: minutes of one GPU (of :data:`edm.networks.pace.PEAKS`), estimated from published speeds.

    No measurement counts, so that the jobs are the same on every machine.
    """

    minutes: float
    gpu: str = "v100"


@dataclass(frozen=True)
class Sampling:
    """How an evaluation samples images (Section 6): ``images`` per repeat, from consecutive seeds.

    block: images per batch; "auto" for as many as keep a large GPU busy. precision: of the network. one_job_per: a job
    evaluates one "grid", one "point", or as many points as its ``Minutes`` hold. shards: jobs that share the images of
    each of these. gpus: processes, one per GPU, that share a job; 0 for one process on a CPU. compile: a choice of
    :data:`edm.config.COMPILE`. The last four do not affect results, except for rounding in compiled networks.
    """

    images: int
    first_seed: int = 0
    block: int | str = 64
    repeats: int = 1
    precision: str = "fp32"
    one_job_per: "str | Minutes" = "grid"
    shards: int = 1
    gpus: int = 1
    compile: str = AUTO

    def seeds(self, repeat: int) -> range:
        """The seeds of a repeat, counted from 0."""
        first = self.first_seed + repeat * self.images
        return range(first, first + self.images)

    @property
    def selecting(self) -> int:
        """The first seed of choices and searches: after those of evaluations, which measure the outcome afresh."""
        return self.first_seed + self.repeats * self.images


@dataclass(frozen=True)
class Evaluation:
    """One job: points of a grid of a model, each with its repeats. ``name``: its file below the model.

    experiment: the one that the job and its file belong to.
    """

    experiment: str
    model: str
    grid: str
    name: str
    draws: tuple[tuple[Point, int], ...]


@dataclass(frozen=True)
class Experiment:
    """An experiment with everything resolved; ``models`` maps "column-rung" to its configuration, in table order.

    pretrained: imported models and the names of their published files; they have no configuration.
    metrics: further metrics beside the Fréchet distance. more_features: extractors of further Fréchet distances.
    shared: the steps (rule, model, name) that are also steps of another experiment, and that experiment's name.
    names: the text that tables and figures show for a rung. training_runs: the training runs of each model with several
    seeds, the model itself first.
    test: the dataset of images held out from training, to which all evaluations measure the distance, too.
    metric_settings: of the metrics of plugins, where they are no defaults. averages: of snapshots, that are evaluated.
    alike: of pretrained models, a configuration of the same network; only for ``Minutes``.
    """

    name: str
    dataset: str
    features: str
    feature_weights: str | None
    columns: tuple[str, ...]
    rungs: tuple[str, ...]
    models: Mapping[str, TrainingConfig]
    pretrained: dict[str, str]
    grids: Mapping[str, Grid]
    sampling: Sampling
    training: Training = Training()
    choice: Choice | None = None
    searches: Mapping[str, Search] = field(default_factory=dict)
    sheets: Mapping[str, Sheet] = field(default_factory=dict)
    analyses: Mapping[str, Analysis] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    more_features: dict[str, str | None] = field(default_factory=dict)
    reference: str | None = None
    shared: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    training_runs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    test: str | None = None
    metric_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    averages: tuple[str, ...] = ()
    alike: Mapping[str, TrainingConfig] = field(default_factory=dict)
    likelihoods: Mapping[str, Likelihood] = field(default_factory=dict)

    def called(self, rung: str) -> str:
        """A rung with its name: "A: baseline"; the rung alone if it has none."""
        return f"{rung}: {self.names[rung]}" if rung in self.names else rung

    @property
    def all_models(self) -> tuple[str, ...]:
        return (*self.models, *self.pretrained, *self.averages)

    def group(self, word: str) -> list[str]:
        """The models that a word stands for: "ladder" for every rung of every column, "all" for all.

        Of a model with several training runs, the first.
        """
        rungs = [f"{column}-{rung}" for column in self.columns for rung in self.rungs]
        return rungs if word == LADDER else [model for model in self.all_models if first_training(model) == model]

    @property
    def work(self) -> int:
        """Models, searches, sheets, studies and measurements, each shard counted: the work of planning them.

        Of a search, every eighth combination of its values counts.
        """
        combinations = sum(math.prod(map(len, search.over.values())) // 8 for search in self.searches.values())
        points = sum(len(points) for grid in self.grids.values() for points in grid.points.values())
        made: list[Sized] = [self.all_models, *(search.samplers for search in self.searches.values()),
                             *(sheet.samplers for sheet in self.sheets.values()),
                             *(analysis.models for analysis in self.analyses.values()),
                             *(one.models for one in self.likelihoods.values())]  # fmt: skip
        return sum(map(len, made)) + combinations + points * self.sampling.repeats * self.sampling.shards

    def chosen(self, model: str) -> bool:
        """Whether evaluations use the model's best snapshot instead of the final model."""
        if self.choice is None or model not in self.models or not self.models[model].snapshot_every:
            return False
        return model in self.grids[self.choice.grid].points

    def guides(self, guides: Iterable[str | None]) -> dict[str, int | None]:
        """The guides that are networks of their own: the images seen of a snapshot, None for a model.

        Raises UserError for a snapshot that the training run does not take.
        """
        found: dict[str, int | None] = {}
        for guide in dict.fromkeys(guides):
            if guide is not None and guide != NULL:
                model, at = guiding_model(guide)
                found[guide] = None if at is None else self._snapshot(model, at)
        return found

    def averages_to_choose(self, model: str) -> tuple[str, ...]:
        """The averages of its snapshots that compete with the snapshots of a model."""
        if self.choice is None or not self.chosen(model):
            return ()
        return tuple(averaged(model, width) for width in self.choice.widths)

    def _snapshot(self, model: str, at: float) -> int:
        """The images seen of the snapshot of a model at so many Mimg, up to a batch."""
        if model not in self.models:
            raise UserError(f"guide: model {model!r} is not defined")
        config = self.models[model]
        nearest = min(config.snapshots, key=lambda images: abs(images - at * 1e6), default=None)
        if nearest is None or abs(nearest - at * 1e6) > config.batch_size + 1e-3 * at * 1e6:
            there = f"the nearest is at {nearest / 1e6:g}" if nearest else "it takes none (snapshot_every)"
            raise UserError(f"guide: {model} has no snapshot at {at:g} Mimg; {there}")
        return nearest

    def samplers_of(self, model: str, grid: str) -> list[SamplerConfig]:
        """The samplers of all points of a grid."""
        return [point.sampler for point in self.grids[grid].points[model]]

    def owner(self, rule: str, *key: str) -> str:
        """The experiment that a step of this one belongs to: itself, or the one that it shares the step with."""
        return self.shared.get((rule, *key), self.name)

    @property
    def owners(self) -> list[str]:
        """The experiments whose steps this one shares."""
        return sorted(set(self.shared.values()))

    def reference_of(self, model: str) -> str | None:
        """The statistics that the first grid of a model with its own ones names, for a search; else None."""
        grids = (grid for grid in self.grids.values() if model in grid.points)
        return next((grid.reference for grid in grids if grid.reference), None)

    def evaluations(self) -> Iterator[Evaluation]:
        """Every evaluation job, in the order of the grids."""
        for grid in self.grids.values():
            for model in grid.models:
                yield from self.evaluations_of(model, grid.name)

    def evaluations_of(self, model: str, grid: str) -> Iterator[Evaluation]:
        """The jobs that together evaluate a grid of a model."""
        points, repeats = self.grids[grid].points[model], range(self.sampling.repeats)
        if self.sampling.one_job_per == "grid":
            draws = tuple((p, r) for p in points for r in repeats)
            yield Evaluation(self.owner("evaluate", model, grid), model, grid, grid, draws)
            return
        for draws in self._jobs(model, [(p, r) for p in points for r in repeats]):
            name = f"{grid}/{self.of_draws(draws)}"
            yield Evaluation(self.owner("evaluate", model, name), model, grid, name, draws)

    def _jobs(self, model: str, draws: Sequence[tuple[Point, int]]) -> Iterator[tuple[tuple[Point, int], ...]]:
        """The draws of a grid by job, in their order: each alone, or as many as the minutes of a job hold."""
        per = self.sampling.one_job_per
        if not isinstance(per, Minutes):
            yield from ((draw,) for draw in draws)
            return
        training, _ = training_of(model)
        config = self.models[training] if training in self.models else self.alike[training]
        left = whole = per.minutes * 60 * evaluations_per_second(config.network(), per.gpu) / self.sampling.images
        job: list[tuple[Point, int]] = []
        for draw in draws:
            cost = draw[0].sampler.expected_nfe  # evaluations of the network per image
            if job and cost > left:
                yield tuple(job)
                job, left = [], whole
            job.append(draw)
            left -= cost
        if job:
            yield tuple(job)

    def of_draws(self, draws: Sequence[tuple[Point, int]]) -> str:
        """The name of a job below its grid, if a job is not a whole grid; a digest names several draws.

        So a point that is added moves no draw into another job's file, and reuse finds each where it was measured.
        """
        point, repeat = draws[0]
        name = f"{point.id}@{repeat}" if self.sampling.repeats > 1 else point.id
        together = digest([[point.id, repeat] for point, repeat in draws])[:6]
        return name if len(draws) == 1 else f"{name}{AND_MORE}{len(draws) - 1}-{together}"

    def evaluation(self, model: str, name: str) -> Evaluation:
        """The evaluation job of that name. Raises UserError."""
        found = self.find_evaluation(model, name)
        if found is None:
            raise UserError(f"experiment {self.name}: no evaluation {name!r} of model {model!r}")
        return found

    def find_evaluation(self, model: str, name: str) -> Evaluation | None:
        """The evaluation job of that name, or None. It resolves the points of this job, no others."""
        grid, slash, rest = name.partition("/")
        if grid not in self.grids or model not in self.grids[grid].points:
            return None
        if self.sampling.one_job_per == "grid":
            return None if slash else next(self.evaluations_of(model, grid))
        if isinstance(self.sampling.one_job_per, Minutes):  # which points share a job, all of the grid decide
            if (model, grid) not in self._packed:
                self._packed[model, grid] = {one.name: one for one in self.evaluations_of(model, grid)}
            return self._packed[model, grid].get(name)
        id, _, mark = rest.rpartition("@") if self.sampling.repeats > 1 else (rest, "", "0")
        repeat = {str(repeat): repeat for repeat in range(self.sampling.repeats)}.get(mark)
        point = self.grids[grid].points[model].find(id)
        if point is None or repeat is None:
            return None
        return Evaluation(self.owner("evaluate", model, name), model, grid, name, ((point, repeat),))

    @functools.cached_property
    def _packed(self) -> dict[tuple[str, str], dict[str, Evaluation]]:
        return {}

    def evaluation_spec(self, evaluation: Evaluation) -> dict[str, Any]:
        """The settings that affect the numbers of an evaluation, as plain data: those that differ from the defaults."""
        sampling, grid = self.sampling, self.grids[evaluation.grid]
        spec = {
            "points": {point.id: point.sampler.changes() for point, _ in evaluation.draws},
            "repeats": sorted({repeat for _, repeat in evaluation.draws}),
            "images": sampling.images,
            "first_seed": sampling.first_seed,
            "block": sampling.block,
            "features": self.features,
            **self._precision(),
        }
        optional = {"metrics": list(self.metrics), "more_features": list(self.more_features),
                    "metric_settings": stated_settings(self.metrics) | _plain(self.metric_settings),
                    "settings_from": grid.settings_from, "test": self.test,
                    MEMORISATION_OF_TEST: bool(self.test) and "memorisation" in self.metrics}  # fmt: skip
        return spec | {key: value for key, value in optional.items() if value}

    def training_spec(self, model: str) -> dict[str, Any]:
        """The settings that affect a training run: fields that differ from the defaults, without ``UNDECIDING``."""
        if model not in self.models:
            hint = "; it is pretrained" if model in self.pretrained else f"; it has {', '.join(self.models)}"
            raise UserError(f"experiment {self.name}: no model {model!r} to train{hint}")
        changes = self.models[model].changes()
        return {name: value for name, value in changes.items() if name not in UNDECIDING}

    def average_spec(self, training: str, mark: str) -> dict[str, Any]:
        """The settings that affect an average of a training run's snapshots; images: seen, unless all."""
        if f"{training}{OF_EMA}{mark}" not in self.averages:
            there = ", ".join(self.averages) or "none"
            raise UserError(f"experiment {self.name}: no average of {training} of width {mark}; it has {there}")
        width, at = width_and_time(mark)
        return {"width": width} | ({} if at is None else {"images": self._snapshot(training, at)})

    def choice_of(self, model: str) -> Choice:
        """How the weights of a model are chosen. Raises UserError for an experiment that chooses none."""
        if self.choice is None:
            raise UserError(f"experiment {self.name}: no snapshot of model {model!r} is chosen; state `choose`")
        return self.choice

    def choice_spec(self, model: str) -> dict[str, Any]:
        """The settings that affect the choice of the snapshot."""
        choice = self.choice_of(model)
        point = self.grids[choice.grid].points[model][0]
        among = ({"ema": list(choice.widths)} if choice.widths else {}) | (
            {} if choice.snapshots else {"snapshots": False}
        )
        return {"sampler": point.sampler.changes(), "images": choice.images, "confirm": choice.confirm,
                "confirm_images": self.sampling.images, "first_seed": self.sampling.selecting,
                "block": self.sampling.block, "features": self.features, **among, **self._precision()}  # fmt: skip

    def search_spec(self, model: str, name: str) -> dict[str, Any]:
        """The settings that affect the outcome of a search."""
        search = _of(self.searches, name, model, "search", self.name)
        return {"sampler": search.samplers[model].changes(), "over": {k: list(v) for k, v in search.over.items()},
                "method": search.method, "images": search.images, "max_sweeps": search.max_sweeps,
                "first_seed": self.sampling.selecting, "block": self.sampling.block,
                "features": self.features, **self._precision()}  # fmt: skip

    def sheet_spec(self, model: str, name: str) -> dict[str, Any]:
        """The settings that affect a sample sheet."""
        sheet = _of(self.sheets, name, model, "sheet", self.name)
        return {"sampler": sheet.samplers[model].changes(), "images": sheet.images,
                "first_seed": self.sampling.first_seed, **self._precision()}  # fmt: skip

    def likelihood_spec(self, model: str, name: str) -> dict[str, Any]:
        """The settings that affect a likelihood; batches affect it by rounding alone."""
        if name not in self.likelihoods or model not in self.likelihoods[name].models:
            raise UserError(f"experiment {self.name}: no likelihood {name!r} of model {model!r}")
        one = self.likelihoods[name]
        return {"images": one.images, **one.settings, **self._precision()}

    def _precision(self) -> dict[str, str]:
        return {} if self.sampling.precision == "fp32" else {"precision": self.sampling.precision}

    def analysis_spec(self, model: str, name: str) -> dict[str, Any]:
        """The settings that affect an analysis: its own, and the extractor if it measures distances.

        If the extractor's weights are a file, their content is among the inputs of the step, as are the dataset and the
        results that a study reads.
        """
        if name not in self.analyses or model not in self.analyses[name].models:
            raise UserError(f"experiment {self.name}: no analysis {name!r} of model {model!r}")
        analysis = self.analyses[name]
        measured = {"features": self.features} if STUDIES[analysis.kind].features else {}
        return {"kind": analysis.kind, **analysis.settings, **measured}


def _plain(settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings with tuples as lists."""
    return {name: {key: list(value) if isinstance(value, tuple) else value for key, value in own.items()}
            for name, own in settings.items()}  # fmt: skip


def _of(known: Mapping[str, Any], name: str, model: str, what: str, experiment: str) -> Any:
    if name not in known or model not in known[name].samplers:
        raise UserError(f"experiment {experiment}: no {what} {name!r} of model {model!r}")
    return known[name]


@dataclass(frozen=True)
class Report:
    """Tables and figures of some experiments; ``experiments`` maps the names used in them, "" for a single one."""

    name: str
    title: str
    experiments: dict[str, Experiment]
    tables: dict[str, dict[str, Any]]
    figures: dict[str, dict[str, Any]]

    def refer(self, reference: str) -> tuple[Experiment, str]:
        """ "role/rest" → the experiment in that role, and the rest. Raises UserError."""
        role, _, rest = reference.rpartition("/")
        if role not in self.experiments or not rest:
            known = ", ".join(f"{role}/…" if role else "a name without /" for role in self.experiments)
            raise UserError(f"{reference!r} names no experiment of this report; it knows {known}")
        return self.experiments[role], rest

    def refer_to_grid(self, reference: str) -> tuple[Experiment, str, str]:
        """ "role/model:grid" (or sheet, or analysis) → the experiment, the model, the grid."""
        experiment, rest = self.refer(reference)
        model, colon, name = rest.partition(":")
        if not colon or model not in experiment.all_models:
            raise UserError(f"{reference!r}: expected MODEL:NAME of {', '.join(experiment.all_models)}")
        return experiment, model, name


def check_spec(spec: Any, expected: str | None, what: str) -> None:
    """Raises UserError if a spec no longer has the digest that the workflow started the job with."""
    if expected is not None and digest(spec) != expected:
        raise UserError(f"{what}: params.yaml was changed after this job was planned; run snakemake again")

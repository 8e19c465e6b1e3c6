"""The chain: which job makes which file, from which files. The workflow's rules and the plan both read it here.

A job is one rule applied once. What is kept lies in data, models and results, each folder with files of one kind alone;
runs is the working space of one machine: states, snapshots, samples, journals, logs. Rules and files:

===========  ==================================================  =============================================
rule         makes                                               from
===========  ==================================================  =============================================
download     a path under ``downloads`` in params.yaml           the network
made_up      the raw source of a made-up dataset                 nothing
prepare      data/DATASET.zip                                    its raw source
features     data/features/DATASET-classifier.safetensors        the dataset
reference    data/references/DATASET/FEATURES.npz                the dataset, the extractor's weights
train        models/EXPERIMENT/MODEL/model.safetensors           the dataset
published    the same, of a pre-trained model                    its published file
choose       models/EXPERIMENT/MODEL/best.safetensors            the training's snapshots, the reference
search       results/EXPERIMENT/searches/MODEL/SEARCH.json       the model, the reference
shard        runs/…/EVALUATION.shards/1-of-2.safetensors         the model, the reference, a search
evaluate     results/EXPERIMENT/distances/MODEL/EVALUATION.json  the same, and the shards where there are several
sample       runs/EXPERIMENT/MODEL/sheets/SHEET.safetensors      the model
analyse      runs/EXPERIMENT/MODEL/analyses/NAME.safetensors     the model, for leakage the dataset
table        results/REPORT/tables/TABLE.md, .csv, .tex, .html   evaluations, searches
figure       results/REPORT/figures/FIGURE.png, .svg             evaluations, sheets, analyses, trainings
metrics      results/REPORT/metrics.json, plots/*.csv            evaluations, trainings
about        results/REPORT/about/*.html                         the tables and figures, sidecars of all steps
track        results/REPORT/tracking.json                        the tables and figures
===========  ==================================================  =============================================
"""

import functools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from edm.errors import UserError
from edm.files.writing import digest
from edm.metrics import CLASSIFIER, need_reference_features
from edm.params import Evaluation, Experiment, Params
from edm.params.layouts import figure_layout, figure_spec, metrics_layout, metrics_spec, table_layout, table_spec
from edm.params.sources import Source

TABLE_FORMATS = (".md", ".csv", ".tex", ".html")
FIGURE_FORMATS = (".png", ".svg")
ABOUT = ("configuration", "environment", "runtime")  # pages on how a report was made
#: The curves of a report that DVC plots: name → what stands on the axes.
PLOT_FILES = {"loss": ("images", "loss"), "levels": ("sigma", "error"), "nfe": ("nfe", "distance"),
              "churn": ("S_churn", "distance")}  # fmt: skip
#: The stage that a rule's jobs belong to.
STAGES = {"made_up": "data", "prepare": "data", "features": "data", "reference": "data",
          "train": "train", "published": "train", "choose": "train", "sample": "sample", "analyse": "sample",
          "search": "evaluate", "shard": "evaluate", "evaluate": "evaluate",
          "table": "tables", "figure": "tables", "metrics": "tables", "about": "tables",
          "track": "tables"}  # fmt: skip
#: The rules whose jobs compute on GPUs where there are any.
COMPUTING = ("reference", "train", "choose", "search", "shard", "evaluate", "sample", "analyse")
_SPECS = {"train": "training", "choose": "choice", "search": "search", "sample": "sheet", "analyse": "analysis"}


@dataclass(frozen=True)
class Job:
    """One rule applied once. key: what tells it from the rule's other jobs; first its dataset, experiment or report.

    parts: further inputs, deleted when it is done, that only share its work.
    """

    rule: str
    key: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.rule} {'/'.join(self.key)}"


def archive(dataset: str) -> str:
    return f"data/{dataset}.zip"


def classifier(dataset: str) -> str:
    return f"data/features/{dataset}-classifier.safetensors"


def reference_file(experiment: Experiment, features: str | None = None) -> str:
    """Reference statistics: shared by the experiments that measure one dataset with one extractor and its weights."""
    features = features or experiment.features
    if features == experiment.features and experiment.reference is not None:
        return experiment.reference
    path = experiment.feature_weights if features == experiment.features else experiment.more_features[features]
    kept = "-with-features" if keeps_features(experiment, features) else ""
    weights = f"-{digest(path)[:6]}" if path else ""
    return f"data/references/{experiment.dataset}/{features}{weights}{kept}.npz"


def keeps_features(experiment: Experiment, features: str) -> bool:
    """Whether a reference must hold the features themselves: some metrics compare sets, not Gaussians."""
    return features == experiment.features and need_reference_features(experiment.metrics)


def weights_of(experiment: Experiment, features: str | None = None) -> list[str]:
    """The extractor's weights: trained here, a local file, or none (torch-fidelity's own, downloaded once)."""
    features = features or experiment.features
    if features == CLASSIFIER:
        return [classifier(experiment.dataset)]
    path = experiment.feature_weights if features == experiment.features else experiment.more_features[features]
    return [path] if path else []


def final_model(experiment: Experiment, model: str) -> str:
    return f"models/{experiment.name}/{model}/model.safetensors"


def levels_file(experiment: Experiment, model: str) -> str:
    return f"models/{experiment.name}/{model}/levels.json"


def model_file(experiment: Experiment, model: str) -> str:
    """What is evaluated: the best snapshot where one is chosen, else the final model."""
    return f"models/{experiment.name}/{model}/{'best' if experiment.chosen(model) else 'model'}.safetensors"


def choice_file(experiment: str, model: str) -> str:
    return f"models/{experiment}/{model}/choice.json"


def evaluation_file(evaluation: Evaluation) -> str:
    return f"results/{evaluation.experiment}/distances/{evaluation.model}/{evaluation.name}.json"


def shard_files(experiment: Experiment, model: str, name: str) -> list[str]:
    """The parts of an evaluation, in the order of their seeds; none where one job does all of it."""
    count, folder = experiment.sampling.shards, f"runs/{experiment.name}/{model}/distances/{name}.shards"
    return [f"{folder}/{number}-of-{count}.safetensors" for number in range(1, count + 1)] if count > 1 else []


def search_file(experiment: Experiment, model: str, name: str) -> str:
    return f"results/{experiment.name}/searches/{model}/{name}.json"


def sheet_file(experiment: Experiment, model: str, name: str) -> str:
    return f"runs/{experiment.name}/{model}/sheets/{name}.safetensors"


def analysis_file(experiment: Experiment, model: str, name: str) -> str:
    return f"runs/{experiment.name}/{model}/analyses/{name}.safetensors"


def table_files(report: str, table: str) -> list[str]:
    return [f"results/{report}/tables/{table}{suffix}" for suffix in TABLE_FORMATS]


def figure_files(report: str, figure: str) -> list[str]:
    return [f"results/{report}/figures/{figure}{suffix}" for suffix in FIGURE_FORMATS]


def metrics_files(report: str) -> list[str]:
    return [f"results/{report}/metrics.json", *(f"results/{report}/plots/{name}.csv" for name in PLOT_FILES)]


def about_files(report: str) -> list[str]:
    return [f"results/{report}/about/{page}.html" for page in ABOUT]


class Chain:
    """All jobs of a params file."""

    def __init__(self, params: Params):
        self.params = params
        self.experiments = {name: params.experiment(name) for name in params.raw["experiments"]}
        self.reports = {name: params.report(name) for name in params.reports}

    def targets(self, name: str) -> list[str]:
        """The files of a report, an experiment, "REPORT/TABLE", "REPORT/FIGURE", or a file of the chain itself."""
        if name in self.reports:
            report = self.reports[name]
            tables = [file for table in report.tables for file in table_files(name, table)]
            figures = [file for figure in report.figures for file in figure_files(name, figure)]
            return [*tables, *figures, *metrics_files(name), *about_files(name), f"results/{name}/tracking.json"]
        if name in self.experiments:
            return [evaluation_file(evaluation) for evaluation in self.experiments[name].evaluations()]
        report, _, part = name.partition("/")
        if report in self.reports and part in self.reports[report].tables:
            return table_files(report, part)
        if report in self.reports and part in self.reports[report].figures:
            return figure_files(report, part)
        if name in self.makers:
            return [name]
        known = [*self.reports, *(name for name in self.experiments if name not in self.reports)]
        raise UserError(f"{name}: nothing makes that; name one of {', '.join(known)}, REPORT/TABLE or a file")

    def needed(self, targets: Iterable[str]) -> list[Job]:
        """Every job that the target files need, each once, makers before users; files that exist are not looked at."""
        found: dict[tuple[str, ...], Job] = {}
        stack = [(path, False) for path in reversed(list(targets))]
        while stack:
            path, ready = stack.pop()
            job = self.makers.get(path)
            if job is None or (job.rule, *job.key) in found:
                continue
            if ready:
                found[(job.rule, *job.key)] = job
            else:
                stack.append((path, True))
                stack.extend((source, False) for source in reversed((*job.inputs, *job.parts)))
        return list(found.values())

    @functools.cached_property
    def makers(self) -> dict[str, Job]:
        """The job that makes each file."""
        return {path: job for job in self.jobs() for path in job.outputs}

    @functools.cached_property
    def by_name(self) -> dict[str, Job]:
        """Every job by its name, such as "train digits/vp-F"."""
        return {job.name: job for job in self.makers.values()}

    def steps(self, stage: str, name: str) -> list[str]:
        """What a stage makes of a dataset ("data"), an experiment or a report ("train", "sample", "evaluate")."""
        members = dict.fromkeys((name, *(self.members(name) if name in self.reports else ())))
        return [path for member in members for path in self._by_stage.get((stage, member), ())]

    @functools.cached_property
    def _by_stage(self) -> dict[tuple[str, str], list[str]]:
        found: dict[tuple[str, str], list[str]] = {}
        for job in self.by_name.values():
            if job.rule in STAGES and job.rule != "shard":
                found.setdefault((STAGES[job.rule], job.key[0]), []).extend(job.outputs)
        return found

    def specification(self, job: Job) -> Any:
        """What decides the outcome of a job beside its inputs, as plain data.

        What it is run on is no part of it: GPUs, nodes, threads, the number of shards.
        """
        rule, (name, *rest) = job.rule, job.key
        if rule in ("prepare", "made_up"):
            return self.params.dataset(name)
        if rule == "published":
            return self.params.pretrained[self.published_file(*job.key)]
        if rule in ("table", "figure"):
            return {"table": table_spec, "figure": figure_spec}[rule](self.reports[name], *rest)
        if rule == "metrics":
            return metrics_spec(self.reports[name])
        if rule == "about":
            from edm.chain.choices import choices

            return {"title": self.reports[name].title, "choices": choices(self, self.reports[name])}
        if rule == "track":
            return {"uri": self.params.tracking_uri}
        if rule == "reference":
            experiment, features = self.references[job.outputs[0]]
            return {"features": features, "keep": keeps_features(experiment, features)}
        if rule == "shard" or rule == "evaluate":
            experiment = self.experiments[name]
            return experiment.evaluation_spec(experiment.evaluation(*rest[:2]))
        if rule in _SPECS:
            return getattr(self.experiments[name], f"{_SPECS[rule]}_spec")(*rest)
        return None

    def raw_sources(self, job: Job) -> list[str]:
        """The inputs of a job that come from outside, be they there or not."""
        if job.rule == "prepare":
            return self._raw_sources(job.key[0])
        if job.rule == "published":
            return [self.params.pretrained[self.published_file(*job.key)]["path"]]
        return [path for path in job.inputs if path not in self.makers or self.makers[path].rule == "download"]

    def downloads_for(self, names: Iterable[str]) -> list[str]:
        """What is still to be fetched for some reports or experiments."""
        jobs = self.needed(path for name in names for path in self.targets(name))
        return [path for job in jobs if job.rule == "download" for path in job.outputs]

    def jobs(self) -> Iterator[Job]:
        """Every job there is."""
        for path in self.absent_downloads():
            yield Job("download", (path,), (), (path,))
        for name, raw in self.params.raw["datasets"].items():
            if raw.get("made_up"):
                yield Job("made_up", (name,), (), (raw["path"],))
            yield Job("prepare", (name,), tuple(self.raw_inputs(name)), (archive(name),))
        classified = (e for e in self.experiments.values() if CLASSIFIER in (e.features, *e.more_features))
        for dataset in dict.fromkeys(experiment.dataset for experiment in classified):
            yield Job("features", (dataset,), (archive(dataset),), (classifier(dataset),))
        for path, (experiment, _) in self.references.items():
            key = (experiment.dataset, os.path.basename(path).removesuffix(".npz"))
            yield Job("reference", key, tuple(self.reference_inputs(path)), (path,))
        for experiment in self.experiments.values():
            yield from self._of_experiment(experiment)
        for name, report in self.reports.items():
            for table in report.tables:
                inputs, outputs = self.table_inputs(name, table), table_files(name, table)
                yield Job("table", (name, table), tuple(inputs), tuple(outputs))
            for figure in report.figures:
                inputs, outputs = self.figure_inputs(name, figure), figure_files(name, figure)
                yield Job("figure", (name, figure), tuple(inputs), tuple(outputs))
            yield Job("metrics", (name,), tuple(self.metrics_inputs(name)), tuple(metrics_files(name)))
            yield Job("about", (name,), tuple(self.about_inputs(name)), tuple(about_files(name)))
            yield Job("track", (name,), tuple(self.track_inputs(name)), (f"results/{name}/tracking.json",))

    def _of_experiment(self, experiment: Experiment) -> Iterator[Job]:
        name = experiment.name
        for model in experiment.models:
            outputs = (final_model(experiment, model), levels_file(experiment, model))
            yield Job("train", (name, model), (archive(experiment.dataset),), outputs)
            if experiment.chosen(model):
                outputs = (model_file(experiment, model), choice_file(name, model))
                yield Job("choose", (name, model), tuple(self.choice_inputs(name, model)), outputs)
        for model in experiment.pretrained:
            inputs = self.published_inputs(name, model)
            yield Job("published", (name, model), tuple(inputs), (final_model(experiment, model),))
        for search in experiment.searches.values():
            for model in search.samplers:
                key, output = (name, model, search.name), search_file(experiment, model, search.name)
                yield Job("search", key, tuple(self.search_inputs(name, model)), (output,))
        for evaluation in experiment.evaluations():
            key = (name, evaluation.model, evaluation.name)
            inputs, shards = self.evaluation_inputs(*key), shard_files(experiment, *key[1:])
            for shard in shards:
                part = os.path.basename(shard).removesuffix(".safetensors")
                yield Job("shard", (*key, part), tuple(inputs), (shard,))
            yield Job("evaluate", key, tuple(inputs), (evaluation_file(evaluation),), tuple(shards))
        for sheet in experiment.sheets.values():
            for model in sheet.samplers:
                inputs, output = (model_file(experiment, model),), sheet_file(experiment, model, sheet.name)
                yield Job("sample", (name, model, sheet.name), inputs, (output,))
        for analysis in experiment.analyses.values():
            for model in analysis.models:
                key, output = (name, model, analysis.name), analysis_file(experiment, model, analysis.name)
                yield Job("analyse", key, tuple(self.analysis_inputs(*key)), (output,))

    def absent_downloads(self) -> list[str]:
        """What can be fetched and is not there. What is there is the user's own: no rule replaces it."""
        return [path for path in self.params.downloads if not os.path.exists(path)]

    def raw_inputs(self, dataset: str) -> list[str]:
        """The raw source of a dataset, or the files of it that can be fetched; what is neither is left out.

        A folder whose files are fetched stays a list of them once it is there, be it with the first of them alone.
        """
        made_up = self.params.dataset(dataset).get("made_up")
        return [path for path in self._raw_sources(dataset) if made_up or self._obtainable(path)]

    def _raw_sources(self, dataset: str) -> list[str]:
        stated, found = self.params.dataset(dataset)["path"], []
        for path in [stated] if isinstance(stated, str) else stated or []:
            inside = [file for file in self.params.downloads if file.startswith(f"{path}/")]
            if inside and (any(map(os.path.exists, inside)) or not os.path.exists(path)):
                found += inside
            else:
                found.append(path)
        return found

    @functools.cached_property
    def references(self) -> dict[str, tuple[Experiment, str]]:
        """The statistics that are computed here, each with an experiment that uses it, and the extractor."""
        found = {}
        for experiment in self.experiments.values():
            for features in (experiment.features, *experiment.more_features):
                path = reference_file(experiment, features)
                if path.startswith("data/references/"):
                    found[path] = (experiment, features)
        return found

    def reference_inputs(self, path: str) -> list[str]:
        experiment, features = self.references[path]
        return [archive(experiment.dataset), *weights_of(experiment, features)]

    def members(self, report: str) -> list[str]:
        """The experiments of a report."""
        return [experiment.name for experiment in self.reports[report].experiments.values()]

    def published_file(self, experiment: str, model: str) -> str:
        """The name of a pre-trained model's file in params.yaml."""
        return self.experiments[experiment].pretrained[model]

    def published_inputs(self, experiment: str, model: str) -> list[str]:
        path = self.params.pretrained[self.published_file(experiment, model)]["path"]
        return [path] if self._obtainable(path) else []

    def choice_inputs(self, experiment: str, model: str) -> list[str]:
        e = self.experiments[experiment]
        return [final_model(e, model), reference_file(e), *weights_of(e)]

    def search_inputs(self, experiment: str, model: str) -> list[str]:
        e = self.experiments[experiment]
        return [model_file(e, model), self._search_reference(e, model), *weights_of(e)]

    def evaluation_inputs(self, experiment: str, model: str, name: str) -> list[str]:
        """The model, the references, the extractors' weights, and the search that the grid takes settings from."""
        e = self.experiments[experiment]
        grid = e.grids[name.partition("/")[0]]
        references = [grid.reference or reference_file(e), *(reference_file(e, more) for more in e.more_features)]
        weights = [path for features in (None, *e.more_features) for path in weights_of(e, features)]
        search = [search_file(e, model, grid.settings_from)] if grid.settings_from else []
        return [model_file(e, model), *references, *weights, *search]

    def evaluation_options(self, experiment: str, model: str, name: str) -> list[str]:
        """The inputs of an evaluation beside its model, as options of `edm evaluate`: told apart by what they are."""
        e, (_, *files) = self.experiments[experiment], self.evaluation_inputs(experiment, model, name)
        options = ["--ref", *files[: 1 + len(e.more_features)]]
        options += ["--weights", weights_of(e)[0]] if weights_of(e) else []
        return options + (["--settings", files[-1]] if e.grids[name.partition("/")[0]].settings_from else [])

    def analysis_inputs(self, experiment: str, model: str, name: str) -> list[str]:
        e = self.experiments[experiment]
        data = [archive(e.dataset), *weights_of(e)] if e.analyses[name].kind == "leakage" else []
        return [model_file(e, model), *data]

    def table_inputs(self, report: str, table: str) -> list[str]:
        """Measurements only: tables of configurations need none."""
        return self._made_from(table_layout(self.reports[report], table).sources())

    def figure_inputs(self, report: str, figure: str) -> list[str]:
        return self._made_from(figure_layout(self.reports[report], figure).sources())

    def metrics_inputs(self, report: str) -> list[str]:
        return self._made_from(metrics_layout(self.reports[report]).sources())

    def about_inputs(self, report: str) -> list[str]:
        """What is shown, and thereby every step before it."""
        return [*self.track_inputs(report), metrics_files(report)[0]]

    def track_inputs(self, report: str) -> list[str]:
        r = self.reports[report]
        return [table_files(report, t)[0] for t in r.tables] + [figure_files(report, f)[0] for f in r.figures]

    def _made_from(self, sources: Iterable[Source]) -> list[str]:
        paths: dict[str, None] = {}
        for source in sources:
            experiment, model, name = source.experiment, source.model, source.name
            if source.kind == "grid":
                paths |= dict.fromkeys(evaluation_file(e) for e in experiment.evaluations_of(model, name))
            elif source.kind == "dataset":
                paths[archive(experiment.dataset)] = None
            elif source.kind != "model":
                file = {"search": search_file, "sheet": sheet_file, "analysis": analysis_file}.get(source.kind)
                paths[file(experiment, model, name) if file else levels_file(experiment, model)] = None
        return list(paths)

    def _search_reference(self, experiment: Experiment, model: str) -> str:
        """The statistics that a search measures against: those that a grid of the model names, else the dataset's."""
        for grid in experiment.grids.values():
            if model in grid.points and grid.reference:
                return grid.reference
        return reference_file(experiment)

    def _obtainable(self, path: str) -> bool:
        return path in self.params.downloads or os.path.exists(path)

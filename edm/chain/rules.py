"""The rules of the chain in one table: the jobs of each rule, the settings that affect their results, their costs.

Chain, provenance, plan, pages, lineage, command line and ``dvc.yaml`` use the table; ``docs/rules.md`` shows how to
add a rule. The folders data, models and results hold the files that DVC keeps; runs is the working space of one
machine. Rules and files:

===========  ==================================================  =============================================
rule         makes                                               from
===========  ==================================================  =============================================
download     a path under ``downloads`` in params.yaml           the network
made_up      the raw files of a synthetic dataset                nothing
prepare      data/DATASET.zip                                    its raw files
features     data/features/DATASET-classifier.safetensors        the dataset
reference    data/references/DATASET/FEATURES.npz                the dataset, the extractor's weights
advise       data/references/DATASET/advice.json                 the dataset, of a folder or with advise: true
train        models/EXPERIMENT/MODEL/model.safetensors           the dataset
published    the same, of a pretrained model                     its published file
choose       models/EXPERIMENT/MODEL/best.safetensors            the training's snapshots, averages, the reference
average      models/EXPERIMENT/MODEL/ema-WIDTH.safetensors       the training's snapshots
search       results/EXPERIMENT/searches/MODEL/SEARCH.json       the model, the reference
shard        runs/…/EVALUATION.shards/1-of-2.safetensors         the model, the reference, a search
evaluate     results/EXPERIMENT/distances/MODEL/EVALUATION.json  the same, and the shards if there are several
likelihood   results/EXPERIMENT/likelihoods/MODEL/NAME.json      the model, a dataset, and the parts if several
sample       runs/EXPERIMENT/MODEL/sheets/SHEET.safetensors      the model
analyse      runs/EXPERIMENT/MODEL/analyses/NAME.safetensors     the model; the dataset, evaluations (some kinds)
table        results/REPORT/tables/TABLE.md, .csv, .tex, .html   evaluations, searches
figure       results/REPORT/figures/FIGURE.png, .svg             evaluations, sheets, analyses, loss levels
metrics      results/REPORT/metrics.json, plots/*.csv            evaluations, loss levels
about        results/REPORT/about/*.html                         the tables and figures, sidecars of all steps
track        results/REPORT/tracking.json                        the tables and figures
===========  ==================================================  =============================================
"""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edm.chain import costs, paths
from edm.chain.choices import choices
from edm.chain.job import Job, Only, named
from edm.metrics import CLASSIFIER
from edm.params import Experiment
from edm.params.experiment import first_training, training_of
from edm.params.layouts import figure_layout, figure_spec, metrics_layout, metrics_spec, table_layout, table_spec
from edm.params.sources import Source
from edm.params.studies import STUDIES

if TYPE_CHECKING:
    from edm.chain.jobs import Chain


@dataclass(frozen=True)
class Rule:
    """One rule of the workflow.

    stage: of ``dvc.yaml``, and the folder of its sidecars below ``steps``. jobs: the jobs of a chain: all, or at least
    that of a key (:class:`Only`). files: the paths of its outputs, with {} for each entry of the key, by which a job is
    found without the others; without paths, all jobs of the rule are looked through.
    settings: all settings that affect a job's result, as JSON data; without GPUs, nodes, threads and shards.
    code: the version of what the rule computes. Raise it if a change of code changes results: the rule's steps and all
    dependent steps run again. You decide this, since a hash of sources cannot tell a new formula from a new comment.
    Do not raise it for different rounding, which another torch version or processor causes, too.
    computes: whether it runs on GPUs. cost: what a job costs, for ``edm plan``.
    kept: whether its files stay, with a sidecar below ``steps``; downloads have none, shards are deleted once merged.
    """

    stage: str
    jobs: Callable[["Chain", Only], Iterator[Job]]
    settings: Callable[["Chain", Job], Any]
    code: int = 1
    computes: bool = False
    cost: costs.CostOf = costs.nothing
    kept: bool = True
    files: tuple[str, ...] = ()

    def key(self, path: str) -> tuple[str, ...] | None:
        """The key of the job that would make a path; None if no job of this rule can."""
        found = (re.fullmatch(pattern, path) for pattern in _patterns(self.files))
        return next((match.groups() for match in found if match), None)

    def key_of(self, name: str) -> tuple[str, ...] | None:
        """The key in a job's name, such as "digits/vp-F" of the rule "train"; None without ``files``."""
        slots = self.files[0].count("{}") if self.files else 0
        (pattern,) = _patterns(("/".join(["{}"] * slots),))
        match = re.fullmatch(pattern, name) if slots else None
        return match.groups() if match else None


@functools.cache
def _patterns(files: tuple[str, ...]) -> list[str]:
    """Regular expressions of paths: entries of a key have no slash, except the third, of an evaluation."""
    return [re.escape(path).replace(r"\{\}", "([^/]+)", 2).replace(r"\{\}", "(.+)", 1).replace(r"\{\}", "([^/]+)")
            for path in files]  # fmt: skip


def _own(experiment: Experiment, rule: str, models: Iterable[str], *name: str) -> Iterator[str]:
    """The models whose step of a rule is the experiment's own; the others share it with another experiment."""
    return (model for model in models if experiment.owner(rule, model, *name) == experiment.name)


def _experiments(chain: "Chain", only: Only) -> Iterator[Experiment]:
    return map(chain.experiments.__getitem__, only(0, chain.experiments))


def _no_settings(chain: "Chain", job: Job) -> None:
    return None


# Data -----------------------------------------------------------------------------------------------------------------


def _download(chain: "Chain", only: Only) -> Iterator[Job]:
    for path in only(0, chain.absent_downloads()):
        yield Job("download", (path,), {}, (path,))


def _made_up(chain: "Chain", only: Only) -> Iterator[Job]:
    datasets = chain.params.raw["datasets"]
    for name in only(0, datasets):
        if datasets[name].get("made_up"):
            yield Job("made_up", (name,), {}, (datasets[name]["path"],))


def _prepare(chain: "Chain", only: Only) -> Iterator[Job]:
    for name in only(0, chain.params.raw["datasets"]):
        yield Job("prepare", (name,), named(raw=chain.raw_inputs(name)), (paths.archive(name),))


def _features(chain: "Chain", only: Only) -> Iterator[Job]:
    classified = (e for e in chain.experiments.values() if CLASSIFIER in (e.features, *e.more_features))
    for dataset in only(0, dict.fromkeys(experiment.dataset for experiment in classified)):
        yield Job("features", (dataset,), named(dataset=paths.archive(dataset)), (paths.classifier(dataset),))


def _reference(chain: "Chain", only: Only) -> Iterator[Job]:
    for path, (experiment, features) in chain.references.items():
        *_, dataset, file = path.split("/")
        key = (dataset, file.removesuffix(".npz"))
        inputs = named(dataset=paths.archive(dataset), weights=paths.weights_of(experiment, features))
        yield Job("reference", key, inputs, (path,))


def _advise(chain: "Chain", only: Only) -> Iterator[Job]:
    for name in only(0, chain.advised):
        yield Job("advise", (name,), named(dataset=paths.archive(name)), (paths.advice_file(name),))


def _of_dataset(chain: "Chain", job: Job) -> Any:
    return chain.params.dataset_spec(job.key[0])


def _of_reference(chain: "Chain", job: Job) -> Any:
    experiment, features = chain.references[job.outputs[0]]
    return {"features": features, "keep": paths.keeps_features(experiment, features)}


# Models ---------------------------------------------------------------------------------------------------------------


def _train(chain: "Chain", only: Only) -> Iterator[Job]:
    for experiment in _experiments(chain, only):
        for model in _own(experiment, "train", only(1, experiment.models)):
            outputs = (paths.final_model(experiment, model), paths.levels_file(experiment, model))
            yield Job("train", (experiment.name, model), named(dataset=paths.archive(experiment.dataset)), outputs)


def _published(chain: "Chain", only: Only) -> Iterator[Job]:
    for experiment in _experiments(chain, only):
        for model in _own(experiment, "published", only(1, experiment.pretrained)):
            path = chain.pretrained(experiment.name, model)["path"]
            inputs = named(file=[path] if chain.obtainable(path) else [])
            yield Job("published", (experiment.name, model), inputs, (paths.final_model(experiment, model),))


def _of_published(chain: "Chain", job: Job) -> Any:
    return chain.params.pretrained_spec(chain.published_file(*job.key))


def _choose(chain: "Chain", only: Only) -> Iterator[Job]:
    for experiment in _experiments(chain, only):
        for model in _own(experiment, "choose", filter(experiment.chosen, only(1, experiment.models))):
            averages = [paths.model_file(experiment, one) for one in experiment.averages_to_choose(model)]
            inputs = named(model=paths.final_model(experiment, model), references=paths.reference_file(experiment),
                           weights=paths.weights_of(experiment), averages=averages)  # fmt: skip
            outputs = (paths.model_file(experiment, model), paths.choice_file(experiment.name, model))
            yield Job("choose", (experiment.name, model), inputs, outputs)


def _average(chain: "Chain", only: Only) -> Iterator[Job]:
    """The snapshots are no inputs, since they are not kept: the final model stands for them, as in ``choose``."""
    for experiment in _experiments(chain, only):
        stated = [pair for pair in map(training_of, experiment.averages) if only.key[1:] in ((), pair)]
        for training, mark in stated:
            if experiment.owner("average", training, mark) == experiment.name:
                output = paths.average_file(experiment, training, mark)
                inputs = named(model=paths.final_model(experiment, training))
                yield Job("average", (experiment.name, training, mark), inputs, (output,))


# Measurements ---------------------------------------------------------------------------------------------------------


def _search(chain: "Chain", only: Only) -> Iterator[Job]:
    for experiment in _experiments(chain, only):
        for search in map(experiment.searches.__getitem__, only(2, experiment.searches)):
            for model in _own(experiment, "search", only(1, search.samplers), search.name):
                reference = experiment.reference_of(model) or paths.reference_file(experiment)
                inputs = named(model=paths.model_file(experiment, model), references=reference,
                               weights=paths.weights_of(experiment),
                               guides=paths.guides_of(experiment, [search.samplers[model].guide]))  # fmt: skip
                output = paths.search_file(experiment, model, search.name)
                yield Job("search", (experiment.name, model, search.name), inputs, (output,))


def _shard(chain: "Chain", only: Only) -> Iterator[Job]:
    for evaluation in _evaluate(chain, Only(only.key[:3])):
        for shard in evaluation.parts:
            part = os.path.basename(shard).removesuffix(".safetensors")
            yield Job("shard", (*evaluation.key, part), evaluation.inputs, (shard,))


def _evaluate(chain: "Chain", only: Only) -> Iterator[Job]:
    for e in _experiments(chain, only):
        stated = [e.find_evaluation(*only.key[1:])] if only.key else e.evaluations()
        more = [(paths.reference_file(e, features), paths.weights_of(e, features)) for features in e.more_features]
        for evaluation in (one for one in stated if one is not None and one.experiment == e.name):
            grid, model = e.grids[evaluation.grid], evaluation.model
            first = first_training(model)
            searched = [paths.search_file(e, first, grid.settings_from)] if grid.settings_from else []
            inputs = named(
                model=paths.model_file(e, model),
                references=[
                    grid.reference or paths.reference_file(e),
                    *(reference for reference, _ in more),
                    *paths.test_reference_file(e),
                ],
                weights=paths.weights_of(e),
                more_weights=[path for _, weights in more for path in weights],
                settings=searched,
                guides=paths.guides_of(e, grid.points[model].guides),
            )
            parts = tuple(paths.shard_files(e, model, evaluation.name))
            key = (e.name, model, evaluation.name)
            yield Job("evaluate", key, inputs, (paths.evaluation_file(evaluation),), parts)


def _of_evaluation(chain: "Chain", job: Job) -> Any:
    experiment = chain.experiments[job.key[0]]
    return experiment.evaluation_spec(experiment.evaluation(*job.key[1:3]))


def _likelihood_shard(chain: "Chain", only: Only) -> Iterator[Job]:
    for likelihood in _likelihood(chain, Only(only.key[:3])):
        for shard in likelihood.parts:
            part = os.path.basename(shard).removesuffix(".json")
            yield Job("likelihood_shard", (*likelihood.key, part), likelihood.inputs, (shard,))


def _likelihood(chain: "Chain", only: Only) -> Iterator[Job]:
    for e in _experiments(chain, only):
        for one in map(e.likelihoods.__getitem__, only(2, e.likelihoods)):
            for model in _own(e, "likelihood", only(1, one.models), one.name):
                inputs = named(model=paths.model_file(e, model), dataset=paths.archive(one.dataset))
                parts = tuple(paths.likelihood_parts(e, model, one.name))
                outputs = (paths.likelihood_file(e, model, one.name),)
                yield Job("likelihood", (e.name, model, one.name), inputs, outputs, parts)


def _of_likelihood(chain: "Chain", job: Job) -> Any:
    return chain.experiments[job.key[0]].likelihood_spec(*job.key[1:3])


def _sample(chain: "Chain", only: Only) -> Iterator[Job]:
    for experiment in _experiments(chain, only):
        for sheet in map(experiment.sheets.__getitem__, only(2, experiment.sheets)):
            for model in _own(experiment, "sample", only(1, sheet.samplers), sheet.name):
                inputs = named(model=paths.model_file(experiment, model),
                               guides=paths.guides_of(experiment, [sheet.samplers[model].guide]))  # fmt: skip
                output = paths.sheet_file(experiment, model, sheet.name)
                yield Job("sample", (experiment.name, model, sheet.name), inputs, (output,))


def _analyse(chain: "Chain", only: Only) -> Iterator[Job]:
    for e in _experiments(chain, only):
        for analysis in map(e.analyses.__getitem__, only(2, e.analyses)):
            study = STUDIES[analysis.kind]
            for model in _own(e, "analyse", only(1, analysis.models), analysis.name):
                found = e.evaluations_of(model, analysis.settings["grid"]) if study.pairs else ()
                inputs = named(model=paths.model_file(e, model),
                               dataset=[paths.archive(e.dataset)] if study.dataset else [],
                               weights=paths.weights_of(e) if study.features else [],
                               results=[paths.evaluation_file(one) for one in found])  # fmt: skip
                output = paths.analysis_file(e, model, analysis.name)
                yield Job("analyse", (e.name, model, analysis.name), inputs, (output,))


def _of_experiment(kind: str) -> Callable[["Chain", Job], Any]:
    """The settings that ``Experiment.KIND_spec`` gives for the rest of a job's key."""
    return lambda chain, job: getattr(chain.experiments[job.key[0]], f"{kind}_spec")(*job.key[1:])


# Reports --------------------------------------------------------------------------------------------------------------


def _table(chain: "Chain", only: Only) -> Iterator[Job]:
    for name in only(0, chain.reports):
        report = chain.reports[name]
        for table in only(1, report.tables):
            inputs = named(results=made_from(table_layout(report, table).sources()))
            yield Job("table", (name, table), inputs, tuple(paths.table_files(name, table)))


def _figure(chain: "Chain", only: Only) -> Iterator[Job]:
    for name in only(0, chain.reports):
        report = chain.reports[name]
        for figure in only(1, report.figures):
            inputs = named(results=made_from(figure_layout(report, figure).sources()))
            yield Job("figure", (name, figure), inputs, tuple(paths.figure_files(name, figure)))


def _metrics(chain: "Chain", only: Only) -> Iterator[Job]:
    for name in only(0, chain.reports):
        inputs = named(results=made_from(metrics_layout(chain.reports[name]).sources()))
        yield Job("metrics", (name,), inputs, tuple(paths.metrics_files(name)))


def _of_pages(chain: "Chain", job: Job) -> Any:
    report = chain.reports[job.key[0]]
    return {"title": report.title, "choices": choices(chain, report)}


def _about(chain: "Chain", only: Only) -> Iterator[Job]:
    for name in only(0, chain.reports):  # the targets, which need every earlier step
        report = chain.reports[name]
        datasets = {experiment.dataset for experiment in report.experiments.values()}
        inputs = named(shown=[*paths.shown_files(report), paths.metrics_files(name)[0]],
                       advice=[paths.advice_file(one) for one in chain.advised if one in datasets])  # fmt: skip
        yield Job("about", (name,), inputs, tuple(paths.about_files(name)))


def _track(chain: "Chain", only: Only) -> Iterator[Job]:
    for name in only(0, chain.reports):
        shown = paths.shown_files(chain.reports[name])
        yield Job("track", (name,), named(shown=shown), (paths.tracking_file(name),))


_FILES = {"search": paths.search_file, "sheet": paths.sheet_file, "analysis": paths.analysis_file,
          "likelihood": paths.likelihood_file}  # fmt: skip


def made_from(sources: Iterable[Source]) -> list[str]:
    """The files that some sources of a table or a figure are read from."""
    found: dict[str, None] = {}
    for source in sources:
        experiment, model, name = source.experiment, source.model, source.name
        if source.kind == "grid":
            found |= dict.fromkeys(paths.evaluation_file(e) for e in experiment.evaluations_of(model, name))
        elif source.kind == "levels":
            found[paths.levels_file(experiment, model)] = None
        elif source.kind == "dataset":
            found[paths.archive(experiment.dataset)] = None
        elif source.kind not in ("model", "order"):
            found[_FILES[source.kind](experiment, model, name)] = None
    return list(found)


def measuring_options(job: Job) -> list[str]:
    """Options of a job's command: reference statistics, the extractor's weights, a search's outcome, averages."""
    given = {"--ref": "references", "--weights": "weights", "--settings": "settings", "--averages": "averages"}
    return [word for option, name in given.items() if name in job.inputs for word in (option, *job.inputs[name])]


_ABOUT = tuple(paths.about_files("{}"))
_MEASURED = ("results/{}/distances/{}/{}.json",)
_SHARDS = ("runs/{}/{}/distances/{}.shards/{}.safetensors",)
_EVALUATE = Rule("evaluate", _evaluate, _of_evaluation, code=2, computes=True, cost=costs.evaluating, files=_MEASURED)
_LIKELIHOOD = Rule("evaluate", _likelihood, _of_likelihood, computes=True, cost=costs.likelihood,
                   files=("results/{}/likelihoods/{}/{}.json",))  # fmt: skip

RULES: dict[str, Rule] = {
    "download": Rule("data", _download, _no_settings, kept=False),
    "made_up": Rule("data", _made_up, _of_dataset),
    "prepare": Rule("data", _prepare, _of_dataset, code=2, files=(paths.archive("{}"),)),
    "features": Rule("data", _features, _no_settings, files=(paths.classifier("{}"),)),
    "reference": Rule("data", _reference, _of_reference, computes=True, files=("data/references/{}/{}.npz",)),
    "advise": Rule("data", _advise, _no_settings, files=(paths.advice_file("{}"),)),
    "train": Rule("train", _train, _of_experiment("training"), code=2, computes=True, cost=costs.training,
                  files=("models/{}/{}/model.safetensors", "models/{}/{}/levels.json")),
    "published": Rule("train", _published, _of_published, code=2, cost=costs.importing,
                      files=("models/{}/{}/model.safetensors",)),
    "choose": Rule("train", _choose, _of_experiment("choice"), computes=True, cost=costs.choosing,
                   files=("models/{}/{}/best.safetensors", paths.choice_file("{}", "{}"))),
    "average": Rule("train", _average, _of_experiment("average"), cost=costs.averaging,
                    files=("models/{}/{}/ema-{}.safetensors",)),
    "search": Rule("evaluate", _search, _of_experiment("search"), computes=True, cost=costs.searching,
                   files=("results/{}/searches/{}/{}.json",)),
    "shard": dataclasses.replace(_EVALUATE, jobs=_shard, cost=costs.sharing, kept=False, files=_SHARDS),
    "evaluate": _EVALUATE,
    "likelihood_shard": dataclasses.replace(_LIKELIHOOD, jobs=_likelihood_shard, kept=False,
                                            files=("runs/{}/{}/likelihoods/{}.shards/{}.json",)),
    "likelihood": _LIKELIHOOD,
    "sample": Rule("sample", _sample, _of_experiment("sheet"), computes=True, cost=costs.sampling,
                   files=("runs/{}/{}/sheets/{}.safetensors",)),
    "analyse": Rule("sample", _analyse, _of_experiment("analysis"), code=2, computes=True, cost=costs.analysing,
                    files=("runs/{}/{}/analyses/{}.safetensors",)),
    "table": Rule("tables", _table, lambda chain, job: table_spec(chain.reports[job.key[0]], job.key[1]), code=9,
                  files=tuple(paths.table_files("{}", "{}"))),
    "figure": Rule("tables", _figure, lambda chain, job: figure_spec(chain.reports[job.key[0]], job.key[1]), code=6,
                   files=tuple(paths.figure_files("{}", "{}"))),
    "metrics": Rule("tables", _metrics, lambda chain, job: metrics_spec(chain.reports[job.key[0]]),
                    files=tuple(paths.metrics_files("{}"))),
    "about": Rule("tables", _about, _of_pages, code=3, files=_ABOUT),
    "track": Rule("tables", _track, lambda chain, job: {"uri": chain.params.tracking_uri},
                  files=(paths.tracking_file("{}"),)),
}  # fmt: skip

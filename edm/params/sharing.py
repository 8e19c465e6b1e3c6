"""The steps that an experiment shares with the one that it extends: those with equal settings and equal inputs.

A shared step is the other experiment's: it runs once, and its files and its sidecar are in that experiment's folders.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from edm.config import SamplerConfig
from edm.metrics import need_reference_features
from edm.params.experiment import Experiment, first_training, guiding_model, training_of
from edm.params.studies import STUDIES


def sharing(experiment: Experiment, base: Experiment) -> Experiment:
    """The experiment, with the names of the owners of all steps that it shares with ``base``."""
    for shared in (_models, _averages, _choices, _searches, _measurements):  # each needs the steps before it
        found = {key: base.owner(*key) for key in shared(experiment, base)}
        experiment = replace(experiment, shared={**experiment.shared, **found})
    return experiment


Steps = Iterator[tuple[str, ...]]


def _models(a: Experiment, b: Experiment) -> Steps:
    for model in a.models.keys() & b.models.keys():
        if a.dataset == b.dataset and a.training_spec(model) == b.training_spec(model):
            yield "train", model
    for model in a.pretrained.keys() & b.pretrained.keys():
        if a.pretrained[model] == b.pretrained[model]:
            yield "published", model


def _averages(a: Experiment, b: Experiment) -> Steps:
    for training, width in map(training_of, set(a.averages) & set(b.averages)):
        if ("train", training) in a.shared:
            yield "average", training, width


def _choices(a: Experiment, b: Experiment) -> Steps:
    for model in a.models.keys() & b.models.keys() if _reference(a) == _reference(b) else ():
        alike = ("train", model) in a.shared and a.chosen(model) and b.chosen(model)
        if alike and a.choice_spec(model) == b.choice_spec(model):
            yield "choose", model


def _searches(a: Experiment, b: Experiment) -> Steps:
    for name in a.searches.keys() & b.searches.keys() if _reference(a) == _reference(b) else ():
        for model in a.searches[name].samplers.keys() & b.searches[name].samplers.keys():
            alike = _same_model(a, b, model) and _same_guides(a, b, [a.searches[name].samplers[model]])
            alike = alike and a.reference_of(model) == b.reference_of(model)
            if alike and a.search_spec(model, name) == b.search_spec(model, name):
                yield "search", model, name


def _measurements(a: Experiment, b: Experiment) -> Steps:
    """Evaluations, sheets, studies and likelihoods."""
    alike = _reference(a) == _reference(b) and (a.more_features, a.test) == (b.more_features, b.test)
    measured = {(e.model, e.name): e for e in b.evaluations()} if alike else {}
    evaluated = set()
    for one in a.evaluations():
        other = measured.get((one.model, one.name))
        if other is not None and _same_model(a, b, one.model) and a.evaluation_spec(one) == b.evaluation_spec(other):
            grid = a.grids[one.grid]
            found = ("search", first_training(one.model), grid.settings_from)
            if (
                _same_guides(a, b, a.samplers_of(one.model, one.grid))
                and grid.reference == b.grids[other.grid].reference
                and (not grid.settings_from or found in a.shared)
            ):
                evaluated.add((one.model, one.name))
                yield "evaluate", one.model, one.name
    for name in a.sheets.keys() & b.sheets.keys():
        for model in a.sheets[name].samplers.keys() & b.sheets[name].samplers.keys():
            alike = _same_model(a, b, model) and _same_guides(a, b, [a.sheets[name].samplers[model]])
            if alike and a.sheet_spec(model, name) == b.sheet_spec(model, name):
                yield "sample", model, name
    for name in a.analyses.keys() & b.analyses.keys():
        for model in set(a.analyses[name].models) & set(b.analyses[name].models):
            alike, study = _same_model(a, b, model), STUDIES[a.analyses[name].kind]
            if study.dataset:
                alike = alike and a.dataset == b.dataset
            if study.features:
                alike = alike and _extractor(a) == _extractor(b)
            if study.pairs:  # that evaluations have found
                measured_on = a.evaluations_of(model, a.analyses[name].settings["grid"])
                alike = alike and all((one.model, one.name) in evaluated for one in measured_on)
            if alike and a.analysis_spec(model, name) == b.analysis_spec(model, name):
                yield "analyse", model, name

    for name in a.likelihoods.keys() & b.likelihoods.keys():
        for model in set(a.likelihoods[name].models) & set(b.likelihoods[name].models):
            alike = _same_model(a, b, model) and a.likelihoods[name].dataset == b.likelihoods[name].dataset
            if alike and a.likelihood_spec(model, name) == b.likelihood_spec(model, name):
                yield "likelihood", model, name


def _same_model(a: Experiment, b: Experiment, model: str) -> bool:
    """Whether both evaluate the same file: the shared final model, its shared best snapshot, or a shared average."""
    if training_of(model)[1]:
        return ("average", *training_of(model)) in a.shared
    if a.chosen(model) or b.chosen(model):
        return ("choose", model) in a.shared
    return ("train", model) in a.shared or ("published", model) in a.shared


def _same_guides(a: Experiment, b: Experiment, samplers: Iterable[SamplerConfig]) -> bool:
    """Whether the guides of samplers are the same files for both."""
    models = [guiding_model(guide) for guide in a.guides(samplers)]
    return all(_same_model(a, b, model) if at is None else ("train", model) in a.shared for model, at in models)


def _extractor(e: Experiment) -> tuple[Any, ...]:
    return e.dataset, e.features, e.feature_weights


def _reference(e: Experiment) -> tuple[Any, ...]:
    return *_extractor(e), e.reference, need_reference_features(e.metrics)

"""The steps that an experiment shares with the one that it extends: those with equal settings and equal inputs.

A shared step is the other experiment's: it runs once, and its files and its sidecar are in that experiment's folders.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from edm.metrics import need_reference_features
from edm.params.experiment import OF_EMA, Experiment, first_training, guiding_model, training_of
from edm.params.studies import STUDIES

Key = tuple[str, ...]  # rule, model, and the name of the search, evaluation, sheet or study


def sharing(experiment: Experiment, base: Experiment) -> Experiment:
    """The experiment, with the names of the owners of all steps that it shares with ``base``."""
    return replace(experiment, shared=Shared(experiment, base))


class Shared(Mapping[Key, str]):
    """The steps that experiment ``a`` shares with ``b``, and their owners; each is compared at its first use."""

    def __init__(self, a: Experiment, b: Experiment) -> None:
        self._a, self._b, self._known = a, b, dict[Key, bool]()

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, tuple):
            return False
        if key not in self._known:
            rule, *rest = key
            alike: dict[str, Callable[..., bool]] = {
                "train": self._training, "published": self._import, "choose": self._choice, "average": self._average,
                "search": self._search, "evaluate": self._evaluation, "likelihood": self._likelihood,
                "sample": self._sheet, "analyse": self._study,
            }  # fmt: skip
            self._known[key] = rule in alike and alike[rule](*rest)
        return self._known[key]

    def __getitem__(self, key: Key) -> str:
        if key not in self:
            raise KeyError(key)
        return self._b.owner(*key)

    def __iter__(self) -> Iterator[Key]:
        return filter(self.__contains__, self._steps())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _steps(self) -> Iterator[Key]:
        """Every step of ``a`` that may be shared."""
        a = self._a
        yield from (("train", model) for model in a.models)
        yield from (("published", model) for model in a.pretrained)
        yield from (("choose", model) for model in a.models)
        yield from (("average", *training_of(model)) for model in a.averages)
        yield from (("search", model, one.name) for one in a.searches.values() for model in one.samplers)
        yield from (("evaluate", one.model, one.name) for one in a.evaluations())
        yield from (("likelihood", model, one.name) for one in a.likelihoods.values() for model in one.models)
        yield from (("sample", model, one.name) for one in a.sheets.values() for model in one.samplers)
        yield from (("analyse", model, one.name) for one in a.analyses.values() for model in one.models)

    def _training(self, model: str) -> bool:
        a, b = self._a, self._b
        both = model in a.models and model in b.models and a.dataset == b.dataset
        return both and a.training_spec(model) == b.training_spec(model)

    def _import(self, model: str) -> bool:
        file = self._a.pretrained.get(model)
        return file is not None and file == self._b.pretrained.get(model)

    def _choice(self, model: str) -> bool:
        a, b = self._a, self._b
        alike = self._same_reference and ("train", model) in self and a.chosen(model) and b.chosen(model)
        return alike and a.choice_spec(model) == b.choice_spec(model)

    def _average(self, training: str, width: str) -> bool:
        both = all(f"{training}{OF_EMA}{width}" in e.averages for e in (self._a, self._b))
        return both and ("train", training) in self

    def _search(self, model: str, name: str) -> bool:
        a, b = self._a, self._b
        if not all(name in e.searches and model in e.searches[name].samplers for e in (a, b)):
            return False
        alike = self._same_reference and self._same_model(model)
        alike = alike and self._same_guides([a.searches[name].samplers[model].guide])
        alike = alike and a.reference_of(model) == b.reference_of(model)
        return alike and a.search_spec(model, name) == b.search_spec(model, name)

    def _evaluation(self, model: str, name: str) -> bool:
        a, b = self._a, self._b
        if not self._same_reference or (a.more_features, a.test) != (b.more_features, b.test):
            return False
        one, other = a.find_evaluation(model, name), b.find_evaluation(model, name)
        if one is None or other is None or not self._same_model(model):
            return False
        grid = a.grids[one.grid]
        return (
            a.evaluation_spec(one) == b.evaluation_spec(other)
            and self._same_guides(grid.points[model].guides)
            and grid.reference == b.grids[other.grid].reference
            and (not grid.settings_from or ("search", first_training(model), grid.settings_from) in self)
        )

    def _likelihood(self, model: str, name: str) -> bool:
        a, b = self._a, self._b
        if not all(name in e.likelihoods and model in e.likelihoods[name].models for e in (a, b)):
            return False
        alike = self._same_model(model) and a.likelihoods[name].dataset == b.likelihoods[name].dataset
        return alike and a.likelihood_spec(model, name) == b.likelihood_spec(model, name)

    def _sheet(self, model: str, name: str) -> bool:
        a, b = self._a, self._b
        if not all(name in e.sheets and model in e.sheets[name].samplers for e in (a, b)):
            return False
        alike = self._same_model(model) and self._same_guides([a.sheets[name].samplers[model].guide])
        return alike and a.sheet_spec(model, name) == b.sheet_spec(model, name)

    def _study(self, model: str, name: str) -> bool:
        a, b = self._a, self._b
        if not all(name in e.analyses and model in e.analyses[name].models for e in (a, b)):
            return False
        alike, study = self._same_model(model), STUDIES[a.analyses[name].kind]
        if study.dataset:
            alike = alike and a.dataset == b.dataset
        if study.features:
            alike = alike and _extractor(a) == _extractor(b)
        if study.pairs:  # that evaluations have found
            measured_on = a.evaluations_of(model, a.analyses[name].settings["grid"])
            alike = alike and all(("evaluate", model, one.name) in self for one in measured_on)
        return alike and a.analysis_spec(model, name) == b.analysis_spec(model, name)

    @functools.cached_property
    def _same_reference(self) -> bool:
        return _reference(self._a) == _reference(self._b)

    def _same_model(self, model: str) -> bool:
        """Whether both evaluate the same file: a shared final model, best snapshot or average."""
        if training_of(model)[1]:
            return ("average", *training_of(model)) in self
        if self._a.chosen(model) or self._b.chosen(model):
            return ("choose", model) in self
        return ("train", model) in self or ("published", model) in self

    def _same_guides(self, guides: Iterable[str | None]) -> bool:
        """Whether guides are the same files for both."""
        models = [guiding_model(guide) for guide in self._a.guides(guides)]
        return all(self._same_model(model) if at is None else ("train", model) in self for model, at in models)


def _extractor(e: Experiment) -> tuple[Any, ...]:
    return e.dataset, e.features, e.feature_weights


def _reference(e: Experiment) -> tuple[Any, ...]:
    return *_extractor(e), e.reference, need_reference_features(e.metrics)

"""What is known of each study before it runs: its settings, and what it reads beside the model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edm import registry
from edm.errors import UserError


@dataclass(frozen=True)
class Study:
    """A study. needed, optional: its settings without and with a default value, by their keys in params.yaml.

    dataset: whether it reads the training images. features: whether it measures in the experiment's features.
    trained: whether it needs the configuration of the training run, which a pretrained model lacks. pairs: whether it
    shows the pairs of images that the evaluations of its ``grid`` have found.
    """

    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    dataset: bool = False
    features: bool = False
    trained: bool = False
    pairs: bool = False


_OURS = {
    "truncation": Study((), ("num_steps", "rhos", "substeps", "samples", "sigma_min", "sigma_max")),
    "degradation": Study(("sigmas", "repetitions"), ("S_noise", "images", "num_steps")),
    "leakage": Study(("images",), ("num_steps",), dataset=True, features=True, trained=True),
    "memorisation": Study(("grid",), ("images",), dataset=True, pairs=True),
}
registry.own("study", _OURS, "edm.analysis.studies")


class _Studies(Mapping[str, Study]):
    """What is known of each study by its name: our own, and those of plugins."""

    def __getitem__(self, name: str) -> Study:
        if name in _OURS:
            return _OURS[name]
        part = {part.name: part for part in registry.plugins("study")}[name]
        return Study((), tuple(f"study.{key}" for key in part.settings), **part.facts)

    def __iter__(self) -> Iterator[str]:
        return iter(registry.Names("study"))

    def __len__(self) -> int:
        return len(registry.Names("study"))


STUDIES = _Studies()


def check_settings(kind: str, stated: Mapping[str, Any]) -> dict[str, Any]:
    """The stated settings of a study, of a plugin's those that are no defaults.

    Raises UserError, in one line, for a setting that it does not have, that is missing or of another type.
    """
    study = STUDIES[kind]
    known = (*study.needed, *study.optional)
    for key in stated:
        if key not in known:
            raise UserError(f"{kind} has no {key}; it takes {', '.join(known) or 'no settings'}")
    for key in study.needed:
        if key not in stated:
            raise UserError(f"key {key!r} is missing; {kind} needs it")
    if registry.is_own("study", kind):
        return dict(stated)
    own = registry.find("study", kind).check_settings(arguments(stated))
    return {f"study.{key}": list(value) if isinstance(value, tuple) else value for key, value in own.items()}


def arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by the names of the study's parameters: a plugin's have the prefix "study." in params.yaml."""
    return {key.removeprefix("study."): value for key, value in settings.items()}

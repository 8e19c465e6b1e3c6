"""Journal entries of a model's evaluations, snapshot choices, searches and image sheets."""

from typing import Any

from edm.metrics import INCEPTION
from edm.tracking import Journal, Run, environment_tags


def numbers_of(measured: dict[str, Any], label: str, count: int | None = None) -> dict[str, float]:
    """The numbers of a measurement by their names in MLflow: distances are FID or FD, as in the tables.

    The distance comes first, because MLflow's compare page plots the first metric logged. The number of images is a
    parameter, not a metric. label: name of the distance. count: if given, appended to that name, for runs with
    distances over several numbers of images or over fewer than an evaluation: such distances are not comparable.
    """
    numbers = {f"{label.split()[0]}{f'_of_{count}' if count else ''}": measured["distance"]}
    for key, value in measured.items():
        if key not in ("distance", "images") and isinstance(value, int | float):
            numbers[key] = value
    bars = {next(iter(numbers)): measured.get("bar")}
    for features, value in measured.get("more", {}).items():
        name = "FID" if features == INCEPTION else f"FD_{features}"
        numbers[name], bars[name] = value, measured.get("more_bars", {}).get(features)
    for name, bar in bars.items():
        numbers |= {f"{name}_{key}": bar[key] for key in ("s", "corrected", "limit") if bar and key in bar}
    return numbers


def run_below(journal: Journal, experiment: str, model: str, key: str, name: str, kind: str, details: dict[str, Any],
              checkpoint: dict[str, Any], made_from: str, note: dict[str, str],
              began: float | None = None, dataset: str = "", **tags: str) -> Run:  # fmt: skip
    """A child run of the model's training run.

    checkpoint: description of the weights. made_from: digest of the rule's version number and of all inputs of the
    step; a different digest starts a new run. note: the tag of ``description``. began: for work that is done already,
    the time (s) of its start. dataset: the name of the experiment's dataset.
    """
    hashes = {"checkpoint_sha256": checkpoint.get("sha256"), "dataset_sha256": checkpoint.get("dataset_sha256")}
    tags |= {"kind": kind, "model": model, **note, **environment_tags()}
    tags |= {name: value for name, value in hashes.items() if value}
    tags |= {"dataset": dataset} if dataset else {}
    return journal.run(f"{experiment}/{model}/{key}", name=name, experiment=experiment, params=details, tags=tags,
                       parent=f"{experiment}/{model}", made_from=made_from, began=began)  # fmt: skip

"""What the studies of a model tell its journal."""

from typing import Any

from edm.commands.common import made_from
from edm.metrics import INCEPTION
from edm.tracking import Journal, Run, environment_tags

_RULES = {"evaluation": "evaluate", "choice": "choose", "search": "search", "sheet": "sample"}  # by the kind of a run


def numbers_of(measured: dict[str, Any], label: str, images: int | None = None) -> dict[str, float]:
    """The numbers of a measurement by their names in MLflow: distances are FID or FD, as in the tables.

    The distance is the first: MLflow's compare page draws the metric that arrived first. Images count as a parameter.
    ``label`` is what the distance is called; ``images`` adds how many it is of, where a run has several numbers of them
    or fewer than an evaluation: distances of different numbers of images cannot be compared.
    """
    numbers = {f"{label.split()[0]}{f'_of_{images}' if images else ''}": measured["distance"]}
    for key, value in measured.items():
        if key not in ("distance", "images") and isinstance(value, int | float):
            numbers[key] = value
    for features, value in measured.get("more", {}).items():
        numbers["FID" if features == INCEPTION else f"FD_{features}"] = value
    return numbers


def run_below(journal: Journal, experiment: str, model: str, key: str, name: str, kind: str, details: dict[str, Any],
              checkpoint: dict[str, Any], **tags: str) -> Run:  # fmt: skip
    """A run below that of the model's training; ``checkpoint`` says what is known of the weights."""
    hashes = {"checkpoint_sha256": checkpoint.get("sha256"), "dataset_sha256": checkpoint.get("dataset_sha256")}
    tags |= {"kind": kind, "model": model, **environment_tags()}
    tags |= {name: value for name, value in hashes.items() if value}
    return journal.run(f"{experiment}/{model}/{key}", name=name, experiment=experiment, params=details, tags=tags,
                       parent=f"{experiment}/{model}", made_from=made_from(_RULES[kind]))  # fmt: skip

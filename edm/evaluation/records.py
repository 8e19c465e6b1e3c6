"""Writer and reader of each file format of evaluations, searches and choices. Does not import torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edm.config import SamplerConfig
from edm.errors import UserError
from edm.files.documents import (
    AMOUNT,
    COUNT,
    FLAG,
    NUMBER,
    TEXT,
    Kind,
    Maybe,
    Names,
    misfit,
    read_document,
    require_shape,
    whole,
)
from edm.files.writing import write_json
from edm.metrics.jackknife import GROUPS
from edm.tracking import origin

FORMAT = "edm-distances/2"
SEARCH = "edm-search/1"
CHOICE = "edm-choice/1"
AGAIN = "delete it and run snakemake again"
_OF_THE_DRAW = {"id", "repeat", "first_seed", "sampler", "run", "from", "images", "nfe", "distance", "more", "pairs",
                "bar", "more_bars"}  # fmt: skip

_SAMPLER = Kind("the settings of a sampler", lambda value: _is_sampler(value))
_SETTINGS = Names(NUMBER.or_null())  # null is infinity
_METRIC = {"label": TEXT, "description": TEXT, "dataset_sha256": Maybe(TEXT), "weights_sha256": Maybe(TEXT),
           "reference_sha256": Maybe(TEXT), "reference_images": Maybe(COUNT), "settings": Maybe(Names(Names(NUMBER))),
           "reference_features": Maybe(COUNT), "reference_split": Maybe(TEXT)}  # fmt: skip
_CHECKPOINT = {"sha256": TEXT, "dataset_sha256": Maybe(TEXT), "images": Maybe(COUNT), "source": Maybe(TEXT),
               "source_sha256": Maybe(TEXT), "licence": Maybe(TEXT),
               "ema": Maybe({"width": AMOUNT, "residual": AMOUNT, "total": AMOUNT})}  # fmt: skip
_PAIR = {"image": COUNT, "training": COUNT, "distance": AMOUNT, "ratio": AMOUNT}
#: The results of one draw, as :func:`edm.evaluation.evaluate.evaluate` returns them; other fields are other metrics.
_OF_A_BAR = {"s": AMOUNT, "corrected": NUMBER, "limit": NUMBER, "without": [NUMBER], "prefixes": [[NUMBER]]}
_BAR = Kind("an error bar", lambda value: _is_bar(value))
MEASURED = {"images": whole(1), "nfe": COUNT, "distance": AMOUNT, "more": Maybe(Names(NUMBER)), "bar": Maybe(_BAR),
            "more_bars": Maybe(Names(_BAR)), "pairs": Maybe([_PAIR])}  # fmt: skip
_RESULTS = {
    "model": TEXT, "grid": TEXT, "checkpoint": _CHECKPOINT, "metric": _METRIC,
    "commit": Maybe(TEXT), "dirty": Maybe(TEXT),
    "points": [{**MEASURED, "id": TEXT, "repeat": COUNT, "first_seed": COUNT, "sampler": _SAMPLER, "run": Maybe(TEXT)}],
}  # fmt: skip
_SEARCH = {
    "settings": _SETTINGS, "value": AMOUNT, "evaluations": COUNT, "images": COUNT, "method": TEXT, "converged": FLAG,
    "metric": _METRIC, "checkpoint": _CHECKPOINT, "run": Maybe(TEXT), "commit": Maybe(TEXT), "dirty": Maybe(TEXT),
}  # fmt: skip
_CHOICE = {"metric": _METRIC, "best": TEXT, "value": AMOUNT, "cheap": Names(AMOUNT.or_null()),
           "full": Maybe(Names(AMOUNT.or_null())), "confirm_images": COUNT}  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """The error of a distance: the numbers of :meth:`edm.metrics.error_bars.Groups.bar`."""

    s: float
    corrected: float
    limit: float
    without: tuple[float, ...]


@dataclass(frozen=True)
class Measurement:
    """One distance, of one repeat of one sampler setting (``point``) of a model, and how it was measured.

    run: key of its run in MLflow (tag edm.key). more: other metrics of the same images, by name. settings: theirs, such
    as k, the number of neighbours. reference_features: the number of reference images whose neighbours they are.
    bar: None of too few images (``few``), and in files of versions that measured none. reference: SHA-256 of the
    reference. more_bars: the error bars of distances in other features, by the names that these have in ``more``.
    ema: of an average of snapshots its relative width, the residual of its profile, and the total of its weights.
    images_seen: by the model, in training; None of a published one.
    """

    model: str
    grid: str
    point: str
    repeat: int
    distance: float
    nfe: int
    images: int
    first_seed: int
    sampler: dict[str, Any]
    label: str
    description: str
    commit: str | None
    dirty: str | None
    checkpoint: str
    dataset: str | None
    run: str | None
    more: dict[str, float] = field(default_factory=dict)
    settings: dict[str, dict[str, float]] = field(default_factory=dict)
    reference_features: int | None = None
    bar: Bar | None = None
    few: bool = False
    reference: str | None = None
    more_bars: dict[str, Bar] = field(default_factory=dict)
    ema: dict[str, float] | None = None
    images_seen: int | None = None

    @property
    def s(self) -> float | None:
        """The standard error of the distance, or None."""
        return self.bar.s if self.bar else None


def measurement(record: dict[str, Any], row: dict[str, Any]) -> Measurement:
    """One row of the points of a results file that :func:`read_results` gives."""
    more = {key: value for key, value in row.items() if key not in _OF_THE_DRAW}
    more |= {f"FD ({features})": value for features, value in (row.get("more") or {}).items()}
    bars = {f"FD ({features})": bar for features, found in (row.get("more_bars") or {}).items() if (bar := _bar(found))}
    more |= {f"{name} s": bar.s for name, bar in bars.items()}
    return Measurement(
        model=record["model"],
        grid=record["grid"],
        point=row["id"],
        repeat=row["repeat"],
        distance=row["distance"],
        nfe=row["nfe"],
        images=row["images"],
        first_seed=row["first_seed"],
        sampler=SamplerConfig.from_dict(row["sampler"]).to_dict(),  # with the fields that an earlier version lacked
        label=record["metric"]["label"],
        description=record["metric"]["description"],
        commit=record.get("commit"),
        dirty=record.get("dirty"),
        checkpoint=record["checkpoint"]["sha256"],
        dataset=record["checkpoint"].get("dataset_sha256") or record["metric"].get("dataset_sha256"),
        run=row.get("run"),
        more=more,
        settings=record["metric"].get("settings") or {},
        reference_features=record["metric"].get("reference_features"),
        bar=_bar(row.get("bar") or {}),
        few=(row.get("bar") or {}).keys() == {"features"},
        reference=record["metric"].get("reference_sha256"),
        more_bars=bars,
        ema=record["checkpoint"].get("ema"),
        images_seen=record["checkpoint"].get("images"),
    )  # fmt: skip


def _bar(found: dict[str, Any]) -> Bar | None:
    """An error bar of a results file; None of too few images."""
    if "s" not in found:
        return None
    return Bar(found["s"], found["corrected"], found["limit"], tuple(found["without"]))


def write_results(
    path: str | Path, names: dict[str, str], about: dict[str, Any], metrics: Sequence[dict[str, Any]],
    points: Sequence[dict[str, Any]],
) -> None:  # fmt: skip
    """Writes the results of an evaluation.

    names: its "experiment", "model", "grid" and "evaluation". about: the description of the model, under "checkpoint",
    and of searched settings. metrics: descriptions of the yardsticks; the first gives the distance. points: a row for
    each draw.
    """
    write_json(path, {"format": FORMAT, **names, **about, "metric": metrics[0], "more": list(metrics[1:]),
                      "points": list(points), **origin()})  # fmt: skip


def read_results(path: str | Path) -> dict[str, Any]:
    """The content of a results file. Raises UserError for any other file, and for values that no evaluation gives."""
    record: dict[str, Any] = read_document(path, FORMAT, _RESULTS, "a file of distances", AGAIN)
    for row in record["points"]:
        require_more(row, path, AGAIN)
    return record


def require_more(row: dict[str, Any], path: str | Path, advice: str) -> None:
    """Raises UserError unless the other metrics in a row of results from a file are numbers."""
    more = {key: value for key, value in row.items() if key not in _OF_THE_DRAW}
    require_shape(more, Names(NUMBER), path, advice)


def write_search(path: str | Path, found: dict[str, Any]) -> None:
    """Writes the outcome of a search; ``found`` holds at least its "settings" and their "value"."""
    write_json(path, {"format": SEARCH, **found})


def read_search(path: str | Path) -> dict[str, Any]:
    """The outcome of a search, with its "settings". Raises UserError for any other file."""
    record: dict[str, Any] = read_document(path, SEARCH, _SEARCH, "the outcome of a search", AGAIN)
    return record


def read_choice(path: str | Path) -> dict[str, Any]:
    """The choice of a snapshot. Raises UserError for any other file."""
    record: dict[str, Any] = read_document(path, CHOICE, _CHOICE, "the choice of a snapshot", AGAIN)
    return record


def write_choice(path: str | Path, metric: dict[str, Any], chosen: dict[str, Any]) -> None:
    """Writes the chosen snapshot and its metric; ``chosen`` holds all values and the settings of the choice."""
    write_json(path, {"format": CHOICE, "metric": metric, **chosen, **origin()})


def _is_bar(value: Any) -> bool:
    """Whether a value is an error bar, or the number of features alone."""
    if misfit(value, {"features": whole(1)}) is not None:
        return False
    whole_bar = misfit(value, _OF_A_BAR) is None and len(value["without"]) == GROUPS
    return value.keys() == {"features"} or (whole_bar and value.keys() == {"features", *_OF_A_BAR})


def _is_sampler(value: Any) -> bool:
    try:
        return isinstance(value, dict) and bool(SamplerConfig.from_dict(value))
    except UserError:
        return False

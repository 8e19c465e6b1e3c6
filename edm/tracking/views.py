"""Default views of an experiment in MLflow: columns, order and charts, stored as tags of the experiment.

MLflow's own "Share" button writes the same tags; versions that do not know them ignore them.
"""

import base64
import json
import re
import zlib
from collections.abc import Iterable
from typing import Any

from edm.tracking.entries import NOTE_TAG
from edm.tracking.journal import RunRecord

_SHARED = "mlflow.sharedViewState."
_OURS = re.compile(r"(\[[^]]*\]\(#/experiments/[^)]*\)( · )?)*")  # any other note was written by a user


def experiment_tags(experiment_id: str, records: Iterable[RunRecord]) -> dict[str, str]:
    """The tags of an experiment with these runs: its views, and a note with links to them.

    The view "points" shows the evaluations, best first, with charts of distance vs. NFE and distance vs. S_churn;
    "training" shows the configurations with their losses. A view without runs is omitted.
    """
    kinds: dict[str, list[RunRecord]] = {}
    for record in records:
        kinds.setdefault(record.tags.get("kind", ""), []).append(record)
    views, links = {}, []
    if points := kinds.get("evaluation"):
        distance = "FID" if any("FID" in record.metrics for record in points) else "FD"
        views["points"] = _points(distance, points)
        links += [(f"{distance} of every point, best first", "points", "TABLE"),
                  (f"{distance} vs. NFE and vs. S_churn", "points", "CHART")]  # fmt: skip
    if runs := kinds.get("training"):
        views["training"] = _training_runs(runs)
        links += [("loss per configuration", "training", "CHART"), ("configurations", "training", "TABLE")]
    if not views:
        return {}
    note = " · ".join(f"[{text}]({_page(experiment_id, view, mode)})" for text, view, mode in links)
    return {
        "mlflow.experimentKind": "custom_model_development",  # else MLflow asks, and may guess an LLM application
        NOTE_TAG: note,
        **{_SHARED + name: _packed(view) for name, view in views.items()},
    }


def first_page(experiment_id: str, records: Iterable[RunRecord]) -> str:
    """The address of an experiment's evaluations, best first; before the first of them, of its training runs."""
    kinds = {record.tags.get("kind") for record in records}
    views = [view for view, kind in (("points", "evaluation"), ("training", "training")) if kind in kinds]
    return _page(experiment_id, *views[:1])


def _page(experiment_id: str, view: str = "", mode: str = "TABLE") -> str:
    page = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    return f"{page}&viewStateShareKey={view}&compareRunsMode={mode}" if view else page


def may_change(tag: str, value: str | None) -> bool:
    """Whether ``sync`` may set a tag that has this value (None: no value): not if it is a note written by a user."""
    return tag != NOTE_TAG or value is None or _OURS.fullmatch(value) is not None


def _points(distance: str, records: list[RunRecord]) -> dict[str, Any]:
    numbers = _varied(records, ("num_steps", "S_churn", "S_noise", "rho", "alpha", "tolerance"))
    shown = [name for name in numbers if name != "S_noise"]  # as many as fit on a page
    columns = ["model", "grid", *_varied(records, ["solver"]), *shown]
    nfe, length = _axis("nfe", "METRIC"), _axis(distance, "METRIC")
    charts = [_chart("nfe", "SCATTER", f"{distance} vs. NFE", xaxis=nfe, yaxis=length)]
    for name in (name for name in numbers if name in ("S_churn", "rho", "alpha")):
        title = f"{distance} vs. {name}"
        charts.append(_chart(name, "SCATTER", title, xaxis=_axis(name, "PARAM"), yaxis=length))
    charts.append(_chart("parallel", "PARALLEL", "Settings and outcome", selectedParams=["model", *numbers],
                         selectedMetrics=["nfe", distance], showAllRuns=True))  # fmt: skip
    columns = [f"metrics.`{distance}`", "metrics.`nfe`", *(f"params.`{name}`" for name in columns)]
    return _view("evaluation", columns, f"metrics.`{distance}`", charts)


def _training_runs(records: list[RunRecord]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for record in records for name in record.params))
    columns = [
        "metrics.`loss`",
        "metrics.`images_per_second`",
        *(f"params.`{name}`" for name in _varied(records, names)),
    ]
    charts = [_chart(name, "LINE", title, metricKey=name, selectedMetricKeys=[name], scaleType=scale, xAxisKey="step",
                     useGlobalXaxisKey=False, lineSmoothness=0, useGlobalLineSmoothing=False)
              for name, title, scale in (("loss", "loss vs. images seen", "log"),
                                         ("images_per_second", "images per second", "linear"),
                                         ("learning_rate", "learning rate", "linear"))]  # fmt: skip
    return _view("training", columns, "attributes.`Created`", charts)


def _varied(records: list[RunRecord], names: Iterable[str]) -> list[str]:
    """The params in which the records differ."""
    return [name for name in names if len({json.dumps(record.params.get(name)) for record in records}) > 1]


def _view(kind: str, columns: list[str], order: str, charts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "searchFilter": f"tags.kind = '{kind}'",
        "orderByKey": order,
        "orderByAsc": True,
        "selectedColumns": columns,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": "edm", "name": "Overview", "display": True, "isReordered": False, "deleted": False,
             "isGenerated": False, "columns": 2, "cardHeight": 420}
        ],
        "isAccordionReordered": False,
        "autoRefreshEnabled": False,
    }  # fmt: skip


def _chart(uuid: str, kind: str, title: str, **settings: Any) -> dict[str, Any]:
    return {"uuid": uuid, "type": kind, "runsCountToCompare": 100, "metricSectionId": "edm", "deleted": False,
            "isGenerated": False, "displayName": title, **settings}  # fmt: skip


def _axis(key: str, kind: str) -> dict[str, str]:
    return {"key": key, "type": kind}


def _packed(view: dict[str, Any]) -> str:
    """A view in MLflow's encoding: deflated, in base64, short enough for a tag of 5000 characters."""
    text = json.dumps(view, separators=(",", ":"))
    return "deflate;" + base64.b64encode(zlib.compress(text.encode(), 9)).decode()

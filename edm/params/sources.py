"""Tables and figures as data: labels, published numbers, and the source of each number and image.

The code that fills a table or draws a figure gets only a layout and the results, and :func:`plain` of the layout is the
specification of the step. So a step cannot show a label or a number that its specification does not contain.
"""

import dataclasses
from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from edm.params.experiment import Experiment, Point
from edm.params.paper import Published

SHEET_IMAGES = 24  # images shown per sheet, unless a figure states another number
IF_STATED = {"if stated": True}  # of a field that a specification leaves out while it is empty
WITHIN, BEST = "within 3 %", "of the best"  # the setting whose NFE a table shows beside the lowest distance
EACH_RUN = "each run"  # of errors per noise level: those of every training run of a model


@dataclass(frozen=True)
class Source:
    """The source of a cell, a line or an image.

    kind: "grid", "search", "sheet", "analysis", "likelihood", "levels" (loss per noise level), "model" (its
    configuration), "order" (of the solver of a grid) or "dataset". name: of the first five. text: of "model" the entry
    itself, of "order" the settings of the solver, of "analysis" in a table the name of a number, of "levels"
    ``EACH_RUN`` where all training runs count. nfe: of a grid, only its points with so many evaluations.
    """

    kind: str
    experiment: Experiment
    model: str = ""
    name: str = ""
    text: str = ""
    nfe: int | None = None

    @property
    def points(self) -> tuple[Point, ...]:
        """The points of a grid that are shown."""
        points = self.experiment.grids[self.name].points[self.model]
        return tuple(point for point in points if self.nfe in (None, point.sampler.nfe))

    def training_runs(self) -> list["Source"]:
        """The sources of all training runs of its model: itself first; of a grid, those that the grid evaluates."""
        there: Container[str] = ()
        if self.kind == "grid":
            there = self.experiment.grids[self.name].points
        elif self.kind == "likelihood":
            there = self.experiment.likelihoods[self.name].models
        elif self.kind == "levels" and self.text == EACH_RUN:
            there = self.experiment.models
        further = self.experiment.training_runs.get(self.model, ())[1:]
        return [self, *(replace(self, model=model) for model in further if model in there)]

    def plain(self) -> list[Any]:
        """The part that a reader sees or that selects the results, without the results."""
        if self.kind in ("model", "order"):
            return [self.kind, self.text]
        if self.kind == "dataset":
            return [self.kind, self.experiment.dataset]
        where = [self.kind, self.experiment.name, self.model, self.name]
        further = [*filter(None, [[source.model for source in self.training_runs()[1:]]])]
        if self.kind == "grid":
            points = [point.id for point in self.points]
            return [*where, points, self.experiment.sampling.repeats, *further]
        if self.kind == "levels":
            config = self.experiment.models[self.model]
            return [*where, config.loss, config.P_mean, config.P_std, config.sigma_data, *further]
        return [*where, self.text] if self.text else [*where, *further]


@dataclass(frozen=True)
class Layout:
    """A table: its columns, and its rows with a source per column; None for a cell that is empty in the paper, too.

    nfe: the setting whose NFE each row shows (``WITHIN`` or ``BEST``). paper: the paper's cells by row; empty without
    comparison. metrics: further columns. note: a sentence below the table. called: the names of rows that have some.
    """

    name: str
    kind: str
    title: str
    columns: list[str]
    rows: dict[str, list[Source | None]]
    nfe: dict[str, str] = field(default_factory=dict)
    paper: dict[str, list[Published | None]] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    note: str = ""
    called: dict[str, str] = field(default_factory=dict)

    def sources(self) -> Iterator[Source]:
        """All sources, each with those of the further training runs of its model."""
        for cells in self.rows.values():
            yield from (one for source in cells if source is not None for one in source.training_runs())


@dataclass(frozen=True)
class Figure:
    """A figure: its sources by label, in rows; only sheets have several rows, and those have labels.

    over, mark: of a curve. images: shown per sheet. distances: by row, the grid whose distance is printed below
    each sheet with the same settings. published: by line of a curve, published numbers (x, y). metrics: beside the
    distance, in a panel of a curve each. A curve over EMA widths has a row per line, with a source for each width.
    x, y: of studies, the names of the lists of numbers on the axes.
    """

    name: str
    kind: str
    rows: dict[str, dict[str, Source]]
    over: str = ""
    mark: str = ""
    images: int = SHEET_IMAGES
    distances: dict[str, Source] = field(default_factory=dict)
    published: dict[str, list[tuple[int, float]]] = field(default_factory=dict, metadata=IF_STATED)
    metrics: tuple[str, ...] = field(default=(), metadata=IF_STATED)
    x: str = field(default="", metadata=IF_STATED)
    y: str = field(default="", metadata=IF_STATED)

    @property
    def shown(self) -> dict[str, Source]:
        """The sources by label, of a figure of one row."""
        (row,) = self.rows.values()
        return row

    def sources(self) -> Iterator[Source]:
        for row in self.rows.values():
            yield from (one for source in row.values() for one in source.training_runs())
        yield from self.distances.values()


@dataclass(frozen=True)
class Metrics:
    """The headline numbers: {table: {row: {column: grid}}}; and the curves of DVC's plots by the names of their lines.

    levels: of the models trained by the chain; grids: of all measurements in the tables.
    """

    tables: dict[str, dict[str, dict[str, Source]]]
    levels: dict[str, Source]
    grids: dict[str, Source]

    def sources(self) -> Iterator[Source]:
        yield from (*self.grids.values(), *self.levels.values())  # all training runs are among them


def plain(value: Any) -> Any:
    """A layout as plain data for a specification: every field; labelled entries keep their order, which is visible."""
    if isinstance(value, Source):
        return value.plain()
    if dataclasses.is_dataclass(value):
        entries = (one for one in dataclasses.fields(value) if getattr(value, one.name) or one.metadata != IF_STATED)
        return {entry.name: plain(getattr(value, entry.name)) for entry in entries}
    if isinstance(value, dict):
        return [[key, plain(inner)] for key, inner in value.items()]
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value

"""A table as data: the content of each cell, independent of the output format."""

import math
from dataclasses import dataclass, field

from edm.metrics.jackknife import Difference
from edm.params.paper import Published
from edm.report.results import Measurement


@dataclass(frozen=True)
class Cell:
    """A table's cell. ``text``: the measured number or the setting as shown, or empty; then ``missing`` states why.

    value, nfe: as numbers, if available. low, high, repeats: of the repeats of the setting shown. measured: the source
    of the value. more: other metrics. paper: the paper's cell. best: whether it is the lowest of its column. all: the
    repeats. apart: the difference from the lowest of its column; tied: whether it cannot be told from that.
    training_runs, spread: number of training runs of which the value is the mean, and their standard deviation, if they
    are several; then measured and all are those of the first. rank, error: of a panel, the rank in its column, and the
    standard error of a metric that is no distance. A cell that the paper lacks, too, is empty.
    """

    text: str = ""
    value: float | None = None
    nfe: int | None = None
    low: float | None = None
    high: float | None = None
    repeats: int = 0
    measured: Measurement | None = None
    more: dict[str, float] = field(default_factory=dict)
    paper: Published | None = None
    missing: str = ""
    best: bool = False
    all: tuple[Measurement, ...] = ()
    apart: Difference | None = None
    tied: bool = False
    training_runs: int = 1
    spread: float | None = None
    rank: int | None = None
    error: float | None = None

    @property
    def s(self) -> float | None:
        """The standard error of the value shown; None without one, and where ± is the spread of training runs."""
        if self.error is not None:
            return self.error
        return self.measured.s if self.measured and self.spread is None else None

    @property
    def difference(self) -> str:
        """Measured value minus the paper's, for FIDs and settings; "differs" for entries that are not numbers."""
        if self.paper is None or not self.text:
            return ""
        if self.value is None or self.paper.value is None:
            return "" if self.text == self.paper.text else "differs"
        if self.measured is None:  # a setting, not a measurement
            same = (round(self.value) if self.paper.approximate else self.value) == self.paper.value
            return "" if same else f"{self.value - self.paper.value:+.3g}"
        if self.measured.label != "FID":  # the paper's numbers are FIDs, so other distances are not comparable
            return ""
        return f"{self.value - self.paper.value:+.2f}"

    def ours(self) -> str:
        """The measured entry as shown: number ± s, range of its repeats, NFE, rank; or why it is missing."""
        if not self.text:
            return self.missing or "–"
        span = f" [{self.low:.2f}–{self.high:.2f}]" if self.repeats > 1 and self.spread is None else ""
        error = "" if self.s is None else f" ± {self.s:.2f}" if self.s >= 0.005 else f" ± {self.s:.1g}"
        if self.rank is not None or self.error is not None:  # metrics of any scale
            error = "" if self.s is None else f" ± {rounded(self.s, self.s)}"
        brackets = [f" ({number})" for number in (self.nfe, self.rank) if number]
        return f"{self.text}{error}{span}{''.join(brackets)}"


def rounded(value: float, s: float | None) -> str:
    """A value with as many decimals as show two digits of its error s; with four digits without an error."""
    if s is None or not 0 < s < math.inf:
        return f"{value:.4g}"
    return f"{value:.{max(0, 1 - math.floor(math.log10(s)))}f}"


def with_error(value: float, s: float) -> str:
    """value ± s, both with the decimals of s."""
    return f"{rounded(value, s)} ± {rounded(s, s)}"


@dataclass(frozen=True)
class Table:
    """Rows by label, columns by name, and one cell for each pair.

    called: rows that a reader knows by another name. of: the report.
    """

    name: str
    title: str
    corner: str
    columns: list[str]
    rows: dict[str, list[Cell]]
    notes: list[str]
    metrics: tuple[str, ...] = ()
    called: dict[str, str] = field(default_factory=dict)
    of: str = ""

    @property
    def heading(self) -> str:
        """The name by which commands know the table, and its title."""
        return f"{self.of}/{self.name}: {self.title}" if self.of else f"{self.name}: {self.title}"

    @property
    def compared(self) -> bool:
        """Whether the table shows the paper's numbers for comparison."""
        return any(cell.paper for cells in self.rows.values() for cell in cells)

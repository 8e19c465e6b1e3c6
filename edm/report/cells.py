"""A table as data: what stands in each cell, whoever writes it out."""

from dataclasses import dataclass, field

from edm.params.paper import Published
from edm.report.results import Measurement


@dataclass(frozen=True)
class Cell:
    """A table's cell. ``text`` is our number or entry as shown; empty where it is ``missing``, which says why.

    value, nfe: as numbers, where they are. low, high, repeats: of the repeats of the setting shown; measured: where
    the value comes from. more: other metrics. paper: the paper's cell. A cell that the paper lacks too has nothing.
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

    @property
    def difference(self) -> str:
        """Ours less the paper's, of FIDs and settings; for entries that are no numbers, "differs" where they do."""
        if self.paper is None or not self.text:
            return ""
        if self.value is None or self.paper.value is None:
            return "" if self.text == self.paper.text else "differs"
        if self.measured is None:  # a setting, not a measurement
            same = (round(self.value) if self.paper.approximate else self.value) == self.paper.value
            return "" if same else f"{self.value - self.paper.value:+.3g}"
        if self.measured.label != "FID":  # the paper's numbers are: another distance has nothing to be compared with
            return ""
        return f"{self.value - self.paper.value:+.2f}"

    def ours(self) -> str:
        """Our entry as shown: the number, the range of its repeats, its NFE; or why there is none."""
        if not self.text:
            return self.missing or "–"
        span = f" [{self.low:.2f}–{self.high:.2f}]" if self.repeats > 1 else ""
        return f"{self.text}{span}{f' ({self.nfe})' if self.nfe else ''}"


@dataclass(frozen=True)
class Table:
    """Rows by label, columns by name, and one cell for each pair."""

    name: str
    title: str
    corner: str
    columns: list[str]
    rows: dict[str, list[Cell]]
    notes: list[str]
    metrics: tuple[str, ...] = ()

    @property
    def compared(self) -> bool:
        """Whether the paper's numbers stand beside ours."""
        return any(cell.paper for cells in self.rows.values() for cell in cells)

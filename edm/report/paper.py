"""The paper's own numbers, to stand beside ours."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from edm.errors import UserError

FILE = Path(__file__).with_name("paper.yaml")
_ENTRY = re.compile(r"(?P<text>.*?)\s*(?:\((?P<nfe>\d+)\))?\*?(?P<doubt>°)?")


@dataclass(frozen=True)
class Published:
    """A number of the paper as printed, with its NFE where given. verified: False until checked against the PDF."""

    text: str
    value: float | None
    nfe: int | None
    verified: bool

    def shown(self) -> str:
        """As the tables of the report show it: ° marks what is not verified."""
        return f"{self.text}{f' ({self.nfe})' if self.nfe else ''}{'' if self.verified else '°'}"


def published(table: str, row: str, column: str) -> Published | None:
    """The paper's cell; None where it has none. Raises UserError for a table, row or column that it does not have."""
    tables = _tables()
    if table not in tables:
        raise UserError(f"paper: {table!r} is none of {', '.join(tables)}")
    entry = tables[table]
    if row not in entry["rows"] or column not in entry["columns"]:
        raise UserError(f"paper: {table} has no row {row!r} with a column {column!r}")
    return _parsed(entry["rows"][row][entry["columns"].index(column)])


def _parsed(text: str | None) -> Published | None:
    if text is None:
        return None
    match = _ENTRY.fullmatch(text)
    try:
        value = float(match["text"])
    except ValueError:
        value = None
    return Published(match["text"], value, int(match["nfe"]) if match["nfe"] else None, match["doubt"] is None)


@functools.cache
def _tables() -> dict:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))

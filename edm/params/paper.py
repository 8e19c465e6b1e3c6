"""The paper's numbers, for comparison in the tables."""

import contextlib
import functools
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from edm.errors import UserError

FILE = Path(__file__).with_name("paper.yaml")
_ENTRY = re.compile(r"(?P<about>about )?(?P<text>.*?)\s*(?:\((?P<nfe>\d+)\))?\*?(?P<doubt>°)?")


@dataclass(frozen=True)
class Published:
    """A number of the paper as printed, with its NFE if the paper gives one.

    verified: False for a value that no source states. approximate: whether the paper gives only a whole number.
    """

    text: str
    value: float | None
    nfe: int | None
    verified: bool
    approximate: bool = False

    def shown(self) -> str:
        """The text in the tables of a report: ° marks a value that is not verified."""
        about, nfe = "about " * self.approximate, f" ({self.nfe})" if self.nfe else ""
        return f"{about}{self.text}{nfe}{'' if self.verified else '°'}"


def published(table: str, row: str, column: str) -> Published | None:
    """The paper's cell; None if it is empty. Raises UserError for a table, row or column that the paper lacks."""
    tables = _tables()
    if table not in tables:
        raise UserError(f"paper: {table!r} is none of {', '.join(tables)}")
    entry = tables[table]
    for what, name, known in (("row", row, entry["rows"]), ("column", column, entry["columns"])):
        if name not in known:
            raise UserError(f"paper: {table} has no {what} {name!r}; it has {'; '.join(known)}")
    return _parsed(entry["rows"][row][entry["columns"].index(column)])


def _parsed(text: str | None) -> Published | None:
    if text is None:
        return None
    if not isinstance(text, str):
        raise UserError(f"{FILE}: {text!r} is not text; put every entry in quotes, to keep its digits")
    match = _ENTRY.fullmatch(text)
    if match is None:
        raise UserError(f"{FILE}: {text!r} is more than one line; write every entry in one")
    value: float | None = None
    with contextlib.suppress(ValueError):
        value = float(match["text"])
    nfe = int(match["nfe"]) if match["nfe"] else None
    return Published(match["text"], value, nfe, match["doubt"] is None, match["about"] is not None)


@functools.cache
def _tables() -> dict:
    try:
        return yaml.safe_load(FILE.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"{FILE}{f':{mark.line + 1}' if mark else ''}: not valid YAML") from None

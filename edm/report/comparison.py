"""Two sets of measurements side by side: cells, rows, models, results files, or files of two commits.

Differences are those of :mod:`edm.evaluation.comparing`: of the same seeds where possible.
"""

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from edm.errors import UserError, one_line
from edm.evaluation.comparing import difference, why_not
from edm.evaluation.records import Measurement, measurement, read_results
from edm.metrics.jackknife import Difference

if TYPE_CHECKING:
    from edm.params import Params

#: The repeats of measurements by (model, grid, point), or by (column,) of a table.
Found = dict[tuple[str, ...], list[Measurement]]
HOW = ("name a results file (results/…/EVALUATION.json, with :POINT for one of its points), a folder of them, "
       "EXPERIMENT/MODEL, or REPORT/TABLE:ROW[:COLUMN]; @COMMIT after a path takes it as it was then")  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Measurements of both sides under one name. difference: first minus second; without one, ``missing`` says why."""

    name: str
    first: list[Measurement]
    second: list[Measurement]

    @property
    def difference(self) -> Difference | None:
        return difference(self.first, self.second)

    @property
    def missing(self) -> str:
        return why_not(self.first, self.second)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        apart = self.difference
        numbers = {"difference": apart.value, "s": apart.s, "z": apart.z, "paired": apart.paired,
                   "told_apart": apart.told_apart} if apart else {"missing": self.missing}  # fmt: skip
        return {"name": self.name, "first": _mean(self.first), "second": _mean(self.second), **numbers}


def compare(params: "Params", first: str, second: str, results: Path, runs: Path) -> list[Pair]:
    """The measurements that both sides have, by model, grid and point; two single ones whatever their names.

    Raises UserError if a side names nothing, or if they have nothing in common.
    """
    ours, theirs = (_found(params, side, results, runs) for side in (first, second))
    if len(ours) == len(theirs) == 1:
        (one,), (other,) = ours, theirs
        return [Pair(" – ".join(dict.fromkeys(map(" ".join, (one, other)))), ours[one], theirs[other])]
    for place in range(3):  # what each side has one of, such as its model, does not separate the two
        if all(len({key[place] for key in side if len(key) == 3}) == 1 for side in (ours, theirs)):
            ours, theirs = ({(*key[:place], "", *key[place + 1 :]): of for key, of in side.items()}
                            for side in (ours, theirs))  # fmt: skip
    pairs = [Pair(" ".join(filter(None, key)), ours[key], theirs[key]) for key in ours if key in theirs]
    if not pairs:
        raise UserError(f"{first} and {second} have no point in common; name one of each: FILE:POINT")
    return pairs


def as_text(pairs: list[Pair]) -> str:
    """A line per pair, and what the numbers mean."""
    lines: list[tuple[str, ...]] = [("", "first", "second", "difference", "s", "z", "")]
    for pair in pairs:
        apart, both = pair.difference, [f"{_mean(of):.4g}" for of in (pair.first, pair.second)]
        if apart is None:
            lines.append((pair.name, *both, "", "", "", pair.missing))
            continue
        seeds = "" if apart.paired else "; other seeds, compared as independent"
        said = "told apart" if apart.told_apart else "cannot be told apart" if apart.value or apart.s else "equal"
        lines.append((pair.name, *both, f"{apart.value:+.3g}", f"{apart.s:.2g}", f"{apart.z:+.2f}", said + seeds))
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    table = [f"{line[0]:<{widths[0]}}  " + "  ".join(f"{text:>{width}}" for text, width in zip(line[1:6], widths[1:],
             strict=True)) + f"  {line[6]}" for line in lines]  # fmt: skip
    notes = ("Means of the repeats. Difference: first minus second, bias-corrected; s: its standard error over seeds; "
             "z: their ratio, from 2 told apart.")  # fmt: skip
    return "\n".join([*(line.rstrip() for line in table), notes])


def _mean(of: list[Measurement]) -> float:
    return fmean(m.distance for m in of)


def _found(params: "Params", side: str, results: Path, runs: Path) -> Found:
    owner, _, rest = side.partition(":")
    report, _, table = owner.partition("/")
    known = {*params.reports, *params.raw["experiments"]}
    if rest and report in known and table in params.report(report).tables:
        return _of_table(params, owner, rest, results, runs)
    path, _, point = side.partition(":")
    if (named := results / report / "distances" / table).is_dir() and report in known and table:
        path = str(named)
    with _as_it_was(path) as there:
        found = dict(_of_file(there, point)) if there.is_file() else _of_folder(there)
    if not found:
        raise UserError(f"{side}: no such results; {HOW}")
    return found


def _of_file(path: Path, point: str = "") -> Found:
    record, found = read_results(path), Found()
    for m in (measurement(record, row) for row in record["points"]):
        if point in ("", m.point):
            found.setdefault((m.model, m.grid, m.point), []).append(m)
    return found


def _of_folder(path: Path) -> Found:
    found = Found()
    for file in sorted(path.rglob("*.json")) if path.is_dir() else ():
        if file.parent.parent.name == "distances" or file.parent == path:
            for key, of in _of_file(file).items():
                found.setdefault(key, []).extend(of)
    return found


def _of_table(params: "Params", table: str, place: str, results: Path, runs: Path) -> Found:
    from edm.report.results import Results
    from edm.report.tables import build_table

    report, _, name = table.partition("/")
    built = build_table(params.report(report), name, Results(results, runs))
    row, column = (place, "") if place in built.rows else place.rpartition(":")[::2]
    if row not in built.rows or column not in ("", *built.columns):
        raise UserError(f"{table}: no row or column {place!r}; rows: {'; '.join(built.rows)}; "
                        f"columns: {'; '.join(built.columns)}")  # fmt: skip
    found: Found = {(name,): list(cell.all) for name, cell in zip(built.columns, built.rows[row], strict=True)
             if cell.all and column in ("", name)}  # fmt: skip
    if not found:
        raise UserError(f"{table}: {place} has no measurement yet; run snakemake")
    return found


class _as_it_was:
    """A path as it is, or, of PATH@COMMIT, a temporary copy as it was in that commit, from Git or DVC's cache."""

    def __init__(self, path: str) -> None:
        self.path, _, self.commit = (path, "", "") if Path(path).exists() else path.partition("@")
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> Path:
        if not self.commit:
            return Path(self.path)
        copy = Path(self._folder.name) / Path(self.path).name
        command = ["dvc", "get", ".", self.path, "--rev", self.commit, "--out", str(copy)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise UserError(f"{self.path}@{self.commit}: needs dvc ({one_line(error)})") from None
        if done.returncode:
            why = one_line(done.stderr.strip().rpartition("\n")[2])
            raise UserError(f"{self.path}@{self.commit}: not in Git or DVC's cache ({why}); correct the name or run "
                            "`dvc fetch`")  # fmt: skip
        return copy

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

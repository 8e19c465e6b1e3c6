"""A table as Markdown, CSV, LaTeX (booktabs) and HTML."""

import csv
import html
import io
from collections.abc import Callable

from edm.metrics.jackknife import expected_minimum
from edm.report.cells import Cell, Table
from edm.report.page import frame, page, paragraphs

ERRORS = ("expected_minimum", "s", "corrected", "limit", "above_best", "above_best_s", "z")
CSV_COLUMNS = ("row", "column", "ours", "paper", "difference", "verified", "missing", "metric", "nfe", "paper_nfe",
               "repeats", "lowest", "highest", *ERRORS, "model", "grid", "point", "images", "first_seed", "commit",
               "dirty", "checkpoint_sha256", "dataset_sha256", "mlflow_run")  # fmt: skip

#: Of tables that show models with several training runs.
TRAINING_RUNS = ("training_runs", "spread_of_training_runs")


def as_markdown(table: Table) -> str:
    """A heading, the table, its notes."""
    cell_text = lambda text: _md(text).replace("|", "\\|")
    grid = [list(map(cell_text, [table.corner, *_headings(table)]))]
    grid += [[cell_text(_row(table, row)), *(t for cell in cells for t in _texts(table, cell, cell_text, "**{}**"))]
             for row, cells in table.rows.items()]  # fmt: skip
    widths = [max(len(row[i]) for row in grid) for i in range(len(grid[0]))]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [f"## {_md(table.heading)}", ""]
    for row in (grid[0], rule, *grid[1:]):
        cells = [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *map(_md, table.notes)]) + "\n"


def _errors(cell: Cell) -> list[str]:
    """Expected minimum of the repeats, s, f_J and FD∞ of the one shown; distance from the best cell, its s and z."""
    bar, apart = cell.measured and cell.measured.bar, cell.apart
    numbers: list[float | None] = [expected_minimum([m.distance for m in cell.all])]
    numbers += [bar.s, bar.corrected, bar.limit] if bar else [cell.error, None, None]
    numbers += [apart.value, apart.s, apart.z] if apart else [None] * 3
    return ["" if number is None else repr(number) for number in numbers]


def _md(text: str) -> str:
    """Text in which Markdown sees no HTML."""
    return text.replace("<", "\\<")


def as_csv(table: Table) -> str:
    """One line per cell, including missing ones, with the fields that identify its origin."""
    more = sorted({name for cells in table.rows.values() for cell in cells for name in cell.more})
    several = any(cell.spread is not None for _, _, cell in _each(table))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, *(TRAINING_RUNS if several else ()), *more])
    for row, column, cell in _each(table):
        m, paper = cell.measured, cell.paper
        ours = repr(cell.value) if m or cell.error is not None or cell.training_runs > 1 else cell.text
        reference = ("", "", "", "") if paper is None else (paper.text, cell.difference, str(paper.verified).lower(),
                                                            paper.nfe or "")  # fmt: skip
        origin = [""] * 10 if m is None else [m.model, m.grid, m.point, m.images, m.first_seed, m.commit, m.dirty,
                                              m.checkpoint, m.dataset, m.run]  # fmt: skip
        repeats = [""] * 3 if m is None else [cell.repeats, repr(cell.low), repr(cell.high)]
        spread = [*repeats, *_errors(cell)]
        missing = "" if cell.text else cell.missing or "not in the paper"
        writer.writerow([row, column, ours, *reference[:3], missing, m.label if m else "",
                         (cell.nfe or m.nfe) if m else "", reference[3], *spread, *origin,
                         *(_over_trainings(cell) if several else ()),
                         *(cell.more.get(name, "") for name in more)])  # fmt: skip
    return buffer.getvalue()


def _over_trainings(cell: Cell) -> list[str]:
    return ["", ""] if cell.value is None else [str(cell.training_runs), repr(cell.spread) if cell.spread else ""]


def as_latex(table: Table) -> str:
    """A table environment with booktabs rules; needs \\usepackage{booktabs}."""
    lines = [r"% \usepackage{booktabs}", r"\begin{table}", r"\centering", f"\\caption{{{_tex(table.title)}}}",
             f"\\begin{{tabular}}{{l{'r' * len(_headings(table))}}}", r"\toprule",
             " & ".join(map(_tex, [table.corner, *_headings(table)])) + r" \\", r"\midrule"]  # fmt: skip
    for row, cells in table.rows.items():
        texts = [_tex(_row(table, row)), *(t for cell in cells for t in _texts(table, cell, _tex, r"\textbf{{{}}}"))]
        lines.append(" & ".join(texts) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", *(f"\\par\\small {_tex(note)}" for note in table.notes), r"\end{table}"]
    return "\n".join(lines) + "\n"


def as_html(table: Table) -> str:
    """A complete page; a tooltip on each cell shows its origin, and a list below those of the measured ones."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in [table.corner, *_headings(table)])
    body = []
    for row, cells in table.rows.items():
        columns = "".join(
            f'<td title="{html.escape(_origin(cell))}"{_class(cell)}>{text}</td>'
            for cell in cells
            for text in _texts(table, cell, html.escape, "<b>{}</b>")
        )
        body.append(f"<tr><th>{html.escape(_row(table, row))}</th>{columns}</tr>")
    origins = "".join(
        f"<li><b>{html.escape(f'{row}, {column}')}</b>: {html.escape(_origin(cell))}</li>"
        for row, column, cell in _each(table)
        if cell.measured
    )
    more = f"<details><summary>Where each number comes from</summary><ul>{origins}</ul></details>" if origins else ""
    return page(table.heading, frame(head, "\n".join(body)), paragraphs(*table.notes), more)


WRITERS: dict[str, Callable[[Table], str]] = {".md": as_markdown, ".csv": as_csv, ".tex": as_latex, ".html": as_html}


def _headings(table: Table) -> list[str]:
    return [heading for column in table.columns for heading in (column, *(f"{column} {m}" for m in table.metrics))]


def _row(table: Table, row: str) -> str:
    return table.called.get(row, row)


def _texts(table: Table, cell: Cell, escape: Callable[[str], str], bold: str) -> list[str]:
    """The text of a cell: the measured value, the paper's, then the further metrics of the table.

    escape: of the format. bold: its mark-up, for the number of the best cell of a column and those tied with it.
    """
    text = cell.ours()
    if cell.paper is not None:
        text = " / ".join(filter(None, (text, cell.paper.shown(), cell.difference)))
    shown = bold.format(escape(cell.text)) + escape(text[len(cell.text) :]) if cell.best or cell.tied else escape(text)
    return [shown, *(escape(f"{cell.more[name]:.4g}" if name in cell.more else "–") for name in table.metrics)]


def _origin(cell: Cell) -> str:
    m = cell.measured
    if m is None:
        return cell.missing or (
            "resolved configuration, search or errors per noise level" if cell.text else "not in the paper"
        )
    dirty = " with uncommitted changes" if m.dirty == "true" else ""
    mean = f"mean of {cell.training_runs} training runs; the first: " if cell.training_runs > 1 else ""
    return (f"{mean}model {m.model}, {m.grid} {m.point}, {m.images:,} images from seed {m.first_seed:,}, NFE {m.nfe}; "
            f"commit {(m.commit or 'unknown')[:12]}{dirty}, dataset {(m.dataset or 'unknown')[:12]}, "
            f"checkpoint {m.checkpoint[:12]}, MLflow run edm.key={m.run}")  # fmt: skip


def _class(cell: Cell) -> str:
    return "" if cell.text else ' class="missing"'


def _each(table: Table):
    for row, cells in table.rows.items():
        for column, cell in zip(table.columns, cells, strict=True):
            yield row, column, cell


_TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "°": r"$^\circ$", "–": "--", "∞": r"$\infty$",
        "|": r"$\mid$", "−": "$-$", "τ": r"$\tau$", "σ": r"$\sigma$", "ρ": r"$\rho$", "é": r"\'e", "≤": r"$\le$",
        "±": r"$\pm$", "√": r"$\surd$", "²": r"$^2$", "₁": r"$_1$", "₂": r"$_2$"}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)

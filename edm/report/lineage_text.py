"""A lineage as an indented tree: every step once, with its inputs below it."""

import textwrap
from collections.abc import Iterator
from typing import Any

WIDTH, NAME = 120, 18
_MADE = ("seconds", "host", "slurm_job")  # in the line of the date
_ELSEWHERE = (*_MADE, "dirty", "table", "row", "column", "shown", "file", "from")


def as_text(lineage: dict[str, Any]) -> str:
    """The tree of ``edm.report.lineage.trace``, and the commands that reproduce the number."""
    cell, steps = lineage["cell"], {step["file"]: step for step in lineage["steps"]}
    lines = [f"{cell['table']}, {cell['row']}, {cell['column']}: {cell['shown']}"]
    for name, value in _origin(cell, set()):
        lines += _fact(name, value, 2)
    if steps:
        lines += _tree(lineage["steps"][0]["file"], steps, 2, set())
    lines += ["", "Measure it again:" if steps else "Look it up again:", *_indented(lineage["measure_again"])]
    if lineage["make_again"]:
        nothing, *kept = lineage["make_again"]
        lines += ["", "Make it again from nothing, in a fresh clone:", f"  {nothing}"]
        lines += ["or from what DVC has kept:", *_indented(kept)] if kept else []
    if lineage["cautions"]:
        lines += ["", "But:"]
        for caution in lineage["cautions"]:
            lines += textwrap.wrap(caution, WIDTH, initial_indent="  - ", subsequent_indent="    ",
                                   break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return "\n".join(lines)


def _tree(path: str, steps: dict[str, Any], indent: int, shown: set[str]) -> list[str]:
    """The lines of a file and of its inputs. shown: the files already printed above."""
    if path in shown:
        return [f"{' ' * indent}{path} (as above)"]
    shown.add(path)
    lines = [f"{' ' * indent}{path}"]
    for name, value in _origin(steps[path], shown):
        lines += _fact(name, value, indent + 4)
    for source in steps[path].get("from", ()):
        lines += _tree(source["file"], steps, indent + 2, shown)
    return lines


def _origin(entry: dict[str, Any], shown: set[str]) -> Iterator[tuple[str, Any]]:
    """The fields of an entry, by name: related ones in one line, versions only if they differ from those above."""
    for name, value in entry.items():
        if name == "created":
            more = [entry[key] if key != "seconds" else f"{entry[key]} s" for key in _MADE if key in entry]
            yield "made", ", ".join(map(str, [value, *more]))
        elif name == "commit":
            yield name, f"{value}{', with changes that were not committed' * (entry.get('dirty') == 'true')}"
        elif name == "sampler" or (name == "settings" and entry["step"].startswith("train ")):
            yield name, f"{_words(value)}; else as the defaults are"
        elif name == "seeds":
            yield name, f"{value[0]} to {value[1]}"
        elif name == "versions":
            if (words := _words(value)) not in shown:
                shown.add(words)
                yield name, words
        elif name not in _ELSEWHERE:
            yield name.replace("mlflow", "MLflow").replace("_", " "), value


def _fact(name: str, value: Any, indent: int) -> list[str]:
    text = f"{' ' * indent}{name:<{NAME}}{_words(value)}"
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * (indent + NAME), break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


def _words(value: Any) -> str:
    """A JSON value as readable text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, list):
        return f"[{', '.join(map(_words, value))}]"
    return {None: "none", True: "yes", False: "no"}[value] if value is None or type(value) is bool else str(value)


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]

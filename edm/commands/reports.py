"""Commands for tables, figures, provenance pages, lineage and cost estimates."""

import json
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edm.commands.common import (
    Commands,
    again,
    check_planned,
    compile_option,
    count,
    counted,
    from_params,
    load_params,
    machine,
    say,
    seconds,
)
from edm.config import AUTO, TrainingConfig
from edm.errors import UserError, nearest, require
from edm.tracking import Journal, description, environment_tags

if TYPE_CHECKING:
    from edm.params import Experiment, Params

GPUS = ("h100", "a100", "v100")
_FOLDERS = {"results": "results", "runs": "runs", "data": "dataset archives", "models": "trained models"}


def add(command: Commands) -> None:
    made: tuple[tuple[Callable[[Namespace], None], str, tuple[str, ...]], ...] = (
        (tables, "write the tables of a report from the existing results", ("results", "runs")),
        (figures, "draw the figures of a report from the existing results", tuple(_FOLDERS)),
        (metrics, "write the headline numbers of a report as JSON, its curves as CSV", ("results", "runs", "models")),
        (about, "write a report's provenance pages: configuration, environment, runtime", ("results",)),
    )
    for function, text, folders in made:
        name = function.__name__
        sub = command(name, function, text)
        sub.add_argument("report", help="report or experiment in params.yaml")
        if name in ("tables", "figures"):
            sub.add_argument("names", nargs="*", help=f"{name} to make (default: all)")
        for folder in folders:
            sub.add_argument(f"--{folder}", default=folder, help=f"folder of {_FOLDERS[folder]} (default {folder})")
        from_params(sub)

    sub = command(
        "trace", trace, "print the provenance of a number in a table, and the commands that reproduce it",
        "Print the chain from a number to commit, data, configuration, snapshot, seeds and run, as each step recorded "
        "it; fields without a record are unknown.",
    )  # fmt: skip
    sub.add_argument("table", metavar="REPORT/TABLE", help="such as digits/table2")
    sub.add_argument("row", help="label of the row in the table")
    sub.add_argument("column", nargs="?", help="name of the column; optional if the table has only one")
    sub.add_argument("--json", action="store_true", help="the same as JSON")
    from_params(sub)

    sub = command(
        "compare", compare, "tell whether two distances differ: difference, standard error, z",
        "Compare cells, rows, models, results files or commits by error bars, of the same seeds where possible.",
    )  # fmt: skip
    for side in ("first", "second"):
        sub.add_argument(side, help="results file[:POINT] or folder, with @COMMIT as it was then; EXPERIMENT/MODEL; "
                         "REPORT/TABLE:ROW[:COLUMN]")  # fmt: skip
    sub.add_argument("--json", action="store_true", help="the same as JSON")
    for folder in ("results", "runs"):
        sub.add_argument(f"--{folder}", default=folder, help=f"folder of {_FOLDERS[folder]} (default {folder})")
    from_params(sub)

    sub = command(
        "crate", crate, "write a table, its records and small files as a Workflow Run RO-Crate",
        "Write a folder that describes how a table was made, by the records of all steps behind it: an RO-Crate, for "
        "archives such as Zenodo and WorkflowHub.",
    )  # fmt: skip
    sub.add_argument("table", help="REPORT/TABLE")
    sub.add_argument("folder", help="new folder")
    sub.add_argument("--largest", type=count, default=1, metavar="MB", help="largest file to contain (default 1)")
    sub.add_argument(
        "--license", metavar="URL", help="licence of the crate, such as https://spdx.org/licenses/CC-BY-4.0"
    )
    from_params(sub)

    sub = command(
        "plan", plan, "estimate the cost of a target: jobs, images, network evaluations, GPU-hours, disk",
        "Estimate the cost of a target without running it, from the same jobs that the workflow runs.",
    )  # fmt: skip
    sub.add_argument("target", help="report, experiment, REPORT/TABLE, REPORT/FIGURE, or a file of the chain")
    sub.add_argument("--gpus", type=count, default=8, help="number of GPUs for the estimate of wall time (default 8)")
    sub.add_argument(
        "--gpu", choices=GPUS, help="type of GPU: its measurements, else an estimate from the paper's V100 and the "
        "data sheets (default: the GPU measured last, else the paper's V100)",
    )  # fmt: skip
    sub.add_argument("--throughput", default="throughput.json", help="output of `edm bench` (default throughput.json)")
    sub.add_argument("--all", action="store_true", help="also count jobs that are up to date")
    from_params(sub)

    sub = command("bench", bench, "measure training and sampling on this machine, for `edm plan`")
    sub.add_argument("target", help="report or experiment with the networks to measure")
    sub.add_argument("--output", default="throughput.json", help="file to extend (default throughput.json)")
    sub.add_argument("--seconds", type=seconds, default=20, help="seconds per measurement (default 20)")
    sub.add_argument("--batch", type=count, help="images per step (default: chosen for the device)")
    compile_option(sub, AUTO, AUTO)
    from_params(sub)
    machine(sub)

    sub = command(
        "check", check, "check params.yaml and print what it would run",
        "Check all of params.yaml, and count what experiments would run: those named, by default those in `run`.",
    )  # fmt: skip
    sub.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="experiment or report (default: `run`)")
    from_params(sub)


def crate(args: Namespace) -> None:
    from edm.chain.jobs import Chain
    from edm.report.crate import write_crate

    owner, _, name = args.table.partition("/")
    params = load_params(args, whole=True)
    if name not in params.report(owner).tables:
        raise UserError(f"{args.table}: no such table; {owner} has {', '.join(params.report(owner).tables) or 'none'}")
    steps = write_crate(Chain(params), args.table, Path(args.folder), args.largest * 1_000_000, args.license)
    say(f"{args.folder}: {args.table} with the records of {steps} steps")


def tables(args: Namespace) -> None:
    from edm.params.layouts import table_spec
    from edm.report.tables import write_table

    report = load_params(args).report(args.report)
    written = []
    for name in _chosen(args, report.tables, "table"):
        check_planned(args, table_spec(report, name), f"{args.report}: {name}")
        began = time.time()
        files = write_table(report, name, Path(args.results), Path(args.runs))
        _record(args, name, files, began)
        print(files[0].read_text(encoding="utf-8"))
        written += files
    say("\n".join(map(str, written)))


def figures(args: Namespace) -> None:
    from edm.params.layouts import figure_spec
    from edm.report.figures import Places, write_figure

    require("matplotlib")
    report = load_params(args).report(args.report)
    names = _chosen(args, report.figures, "figure")
    places = Places(Path(args.results), Path(args.runs), Path(args.data), Path(args.models))
    for name in names:
        check_planned(args, figure_spec(report, name), f"{args.report}: {name}")
        began = time.time()
        try:
            files = write_figure(report, name, places)
        except UserError as error:
            if len(names) == 1:
                raise
            say(f"{name}: omitted: {error}")  # draw the others
            continue
        _record(args, name, files, began)
        say("\n".join(map(str, files)))


def metrics(args: Namespace) -> None:
    from edm.params.layouts import metrics_spec
    from edm.report.plots import write_plots
    from edm.report.tables import write_metrics

    report = load_params(args).report(args.report)
    check_planned(args, metrics_spec(report), f"{args.report}: metrics")
    results, runs = Path(args.results), Path(args.runs)
    written = [write_metrics(report, results, runs), *write_plots(report, results, runs, Path(args.models))]
    say("\n".join(map(str, written)))


def trace(args: Namespace) -> None:
    from edm.report.lineage import trace
    from edm.report.lineage_text import as_text

    found = trace(load_params(args), args.table, args.row, args.column)
    print(json.dumps(found, indent=1) if args.json else as_text(found))


def compare(args: Namespace) -> None:
    from edm.report.comparison import as_text, compare

    pairs = compare(load_params(args), args.first, args.second, Path(args.results), Path(args.runs))
    print(json.dumps([pair.to_dict() for pair in pairs], indent=1) if args.json else as_text(pairs))


def about(args: Namespace) -> None:
    from edm.chain.jobs import Chain
    from edm.report.about import write_about

    chain = Chain(load_params(args))
    if args.report not in chain.reports:
        raise UserError(f"{args.report} is not a report{nearest(args.report, chain.reports)}")
    say("\n".join(map(str, write_about(chain, chain.reports[args.report], Path(args.results)))))


def plan(args: Namespace) -> None:
    from edm.chain.plan import as_text, make_plan

    loaded = load_params(args, whole=True)
    print(as_text(make_plan(loaded, args.target, args.throughput, args.all, args.gpu), args.gpus))
    owner = args.target.partition("/")[0]
    if owner in loaded.reports or owner in loaded.raw["experiments"]:
        _warn(loaded, [owner])


def bench(args: Namespace) -> None:
    from edm.chain.throughput import measure, network_digest, record

    networks: dict[str, tuple[str, TrainingConfig]] = {}
    for experiment in _experiments(load_params(args), args.target):
        for model, config in experiment.models.items():
            networks.setdefault(network_digest(config.network()), (f"{experiment.name}/{model}", config))
    for name, config in networks.values():
        found = measure(config, args.device, args.seconds, args.batch, args.compile)
        record(args.output, found)
        say(
            f"{name}: {found.training:,.4g} images/s trained, {found.evaluations:,.4g} network evaluations/s "
            f"({found.device}, {found.precision}, batch {found.batch})"
        )


def check(args: Namespace) -> None:
    loaded = load_params(args, whole=True)
    names = args.experiments or loaded.run
    shown = {name: _experiments(loaded, name) for name in names}  # all, before the first is printed
    for name, experiments in shown.items():
        runs = [e.owner("train", model) for e in experiments for model in e.models]
        draws = [one.experiment for e in experiments for one in e.evaluations() for _ in one.draws]
        members = {experiment.name for experiment in experiments}
        print(f"{name}: {_counted(runs, members, 'training run')}, {_counted(draws, members, 'evaluation')}")
    others = [] if args.experiments else _others(loaded, {one.name for found in shown.values() for one in found})
    if others:
        more = f" and {len(others) - 2} more" if len(others) > 2 else ""
        print(f"valid, not in `run`: {', '.join(others[:2])}{more}; `edm check NAME` counts one")
    _warn(loaded, names)


def _others(loaded: "Params", run: set[str]) -> list[str]:
    """The experiments that are not among these; the last of the file first, since one's own is often there."""
    names = [name for name in loaded.raw["experiments"] if name not in run]
    return [*names[-1:], *names[:-1]]


def _warn(loaded: "Params", names: Iterable[str]) -> None:
    """Prints the settings of experiments or reports that do not do what they say."""
    from edm.params.cautions import cautions

    experiments = {one.name: one for name in names for one in _experiments(loaded, name)}
    for experiment in experiments.values():
        for line in cautions(experiment):
            say(f"warning: {line}")


def _counted(owners: list[str], members: set[str], what: str) -> str:
    """The number of steps, without those that belong to other experiments, which stand in brackets."""
    shared = sum(owner not in members for owner in owners)
    others = ", ".join(sorted({*owners} - members))
    more = f" ({shared} more {'are those' if shared > 1 else 'is that'} of {others})" if shared else ""
    return f"{counted(len(owners) - shared, what)}{more}"


def _experiments(loaded: "Params", name: str) -> list["Experiment"]:
    """The experiments of a report, or the experiment of that name. Raises UserError if there is neither."""
    names = dict.fromkeys([*loaded.raw["experiments"], *loaded.reports])
    if name not in names:
        raise UserError(f"{loaded.path}: no experiment or report {name!r}{nearest(name, names)}")
    return list(loaded.report(name).experiments.values()) if name in loaded.reports else [loaded.experiment(name)]


def _chosen(args: Namespace, known: dict, what: str) -> list[str]:
    for name in args.names:
        if name not in known:
            raise UserError(f"{args.report} has no {what} {name!r}; it has {', '.join(known) or 'none'}")
    return args.names or list(known)


def _record(args: Namespace, name: str, files: list[Path], began: float) -> None:
    """Records each table and figure as an artifact of a separate run: parallel jobs must not share a journal."""
    kind = files[0].parent.name
    journal = Journal(Path(args.runs) / args.report / "report" / f"{name}.journal.jsonl")
    note = description(f"{kind.removesuffix('s').capitalize()} {name} of {args.report}.", again(str(files[0])))
    with journal.run(f"{args.report}/{name}", name=name, experiment=args.report, began=began,
                     tags={"kind": kind, **note, **environment_tags()}) as run:  # fmt: skip
        for path in files:
            run.artifact(path, kind)

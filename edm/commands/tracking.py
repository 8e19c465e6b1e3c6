"""Journals → MLflow."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from edm.commands.common import Commands, from_params, load_params, say, seconds
from edm.errors import UserError
from edm.files.outputs import require_apart
from edm.files.writing import write_json

SHOWN = 10  # maximum number of lines printed; the summary file lists all


def add(command: Commands) -> None:
    sub = command("track", sync, "send the journals of all runs to MLflow")
    sub.add_argument("action", choices=["sync"], help="sync: send new entries")
    sub.add_argument("folders", nargs="*", default=["runs"], help="folders with journals (default runs)")
    sub.add_argument("--uri", help="MLflow's address (default: tracking.uri of params.yaml)")
    sub.add_argument("--output", help="JSON file for a summary")
    sub.add_argument(
        "--limit", type=seconds, default=600, metavar="S", help="give up after this many seconds (default 600)"
    )
    sub.add_argument(
        "--or-later", action="store_true",
        help="exit 0 even if MLflow is unreachable; the summary states it, and the journals keep the runs",
    )  # fmt: skip
    sub.add_argument("--server", metavar="URL", help="address of MLflow's server: print links to its pages")
    from_params(sub)


def sync(args: Namespace) -> None:
    from edm.tracking.sync import Undelivered
    from edm.tracking.sync import sync as send

    uri = args.uri or load_params(args).tracking_uri
    journals = sorted(path for folder in args.folders for path in Path(folder).rglob("*journal.jsonl"))
    if not journals:
        raise UserError(f"{', '.join(args.folders)}: no journal there yet; run a training or an evaluation first")
    require_apart([args.output] if args.output else [], journals)
    reason = None
    try:
        report = send(journals, uri, limit=args.limit)
    except Undelivered as error:
        if not args.or_later:
            raise
        report, reason = error.report, str(error)
    summary = {**asdict(report), "journals": len(journals)}
    pages = summary.pop("pages")
    if args.output:
        write_json(args.output, summary | ({"reason": reason} if reason else {}))
    for line in report.set_aside[:SHOWN]:
        say(f"warning: {line}; this line was set aside, the rest was sent")
    if len(report.set_aside) > SHOWN:
        say(f"warning: {len(report.set_aside) - SHOWN} more lines of journals were set aside")
    counts = {name: value for name, value in summary.items() if name != "set_aside"}
    told = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in counts.items())
    say(f"warning: {reason}" if reason else f"{uri.rpartition('@')[2]}: {told}")
    if args.server:
        print("\n".join(f"{name}: {args.server.rstrip('/')}/{page}" for name, page in pages.items()))

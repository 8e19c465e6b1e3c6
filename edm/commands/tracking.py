"""Journals → MLflow."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from edm import params
from edm.commands.common import say
from edm.errors import UserError
from edm.files.outputs import require_apart
from edm.files.writing import write_json


def sync(args: Namespace) -> None:
    from edm.tracking.sync import Undelivered
    from edm.tracking.sync import sync as send

    uri = args.uri or params.load(args.params).tracking_uri
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
    if args.output:
        write_json(args.output, summary | ({"reason": reason} if reason else {}))
    counts = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in summary.items())
    say(f"warning: {reason}" if reason else f"{uri.rpartition('@')[2]}: {counts}")

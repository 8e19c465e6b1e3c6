"""Journals → MLflow."""

from argparse import Namespace
from pathlib import Path

from edm import params
from edm.commands.common import say
from edm.errors import UserError
from edm.files import write_json


def sync(args: Namespace) -> None:
    from edm.tracking.sync import sync as send

    uri = args.uri or params.load(args.params).tracking_uri
    journals = sorted(path for folder in args.folders for path in Path(folder).rglob("*journal.jsonl"))
    if not journals:
        raise UserError(f"{', '.join(args.folders)}: no journal there yet; run a training or an evaluation first")
    report = send(journals, uri)
    summary = {
        "runs_created": report.runs_created,
        "runs_updated": report.runs_updated,
        "metrics_sent": report.metrics_sent,
        "artifacts_sent": report.artifacts_sent,
        "journals": len(journals),
    }
    if args.output:
        write_json(args.output, summary)
    say(
        f"{uri.rpartition('@')[2]}: "
        + ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in summary.items())
    )

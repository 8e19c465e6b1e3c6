"""Models: trained here, or imported."""

import json
import math
import os
import socket
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from edm import params
from edm.cluster import slurm
from edm.cluster.preemption import Notice
from edm.commands.common import MADE_FROM, made_from, mapping, origin, say, threads
from edm.config import AUTO, TrainingConfig
from edm.errors import Preempted, UserError
from edm.files.lock import exclusive
from edm.files.writing import read_json
from edm.networks.flops import BACKWARD
from edm.tracking import Journal, environment_tags


def train(args: Namespace) -> None:
    experiment, model, compile = args.experiment, args.model, AUTO
    if args.config:
        config = TrainingConfig.from_dict(mapping(read_json(args.config), args.config))
    elif experiment and model:
        chosen = params.load(args.params).experiment(experiment)
        spec, compile = chosen.training_spec(model), chosen.training.compile
        params.check_spec(spec, args.expect, f"{experiment}/{model}")
        config = TrainingConfig.from_dict(spec)
    else:
        raise UserError("train: name what to train: --experiment and --model of params.yaml, or --config FILE.json")
    if args.dry_run:
        print(json.dumps(config.to_dict(), indent=1))
        return
    if not args.data or not args.out:
        raise UserError("train: --data and --out are needed")

    with Notice(min(args.time_limit or math.inf, slurm.time_left())) as notice:
        _train(args, config, compile, notice)


def _train(args: Namespace, config: TrainingConfig, compile: str, notice: Notice) -> None:
    from edm.cluster.processes import world
    from edm.data.archive import read_archive
    from edm.models.compilation import options
    from edm.training.folder import TrainingFolder
    from edm.training.loop import check, train

    experiment, model, out = args.experiment, args.model, Path(args.out)
    final, source = Path(args.final or out), made_from("train")
    threads(args.threads)
    dataset = read_archive(args.data)
    about = {"experiment": experiment, "model": model, **origin()}
    with world(args.device) as place, ExitStack() as stack:
        work = (1 + BACKWARD) * config.steps * config.batch_size
        compiled = options(args.compile or compile, config.network(), work / place.size, place.device)
        check(config, dataset, place)  # before anything is written
        if place.is_first:  # a job that was taken for dead may live: two would write the same files by turns
            stack.enter_context(exclusive(out / ".training"))
        folder = TrainingFolder(out, final, config, dataset, source)
        if place.share(folder.is_finished() and not args.overwrite if place.is_first else None):
            if place.is_first:
                say(f"{final}: this training is finished; nothing is changed (--overwrite trains it again)")
            return
        if place.is_first:
            if not (args.overwrite or os.environ.get(MADE_FROM)):  # the chain trains again what is stale
                folder.require_own()
            stack.enter_context(_attempt(out / "attempts.log"))
        run = None
        if place.is_first:
            run = Journal(out / "journal.jsonl").run(
                f"{experiment}/{model}" if experiment else str(out),
                name=model or out.name,
                experiment=experiment or "edm",
                params=config.to_dict(),
                tags={"kind": "training", "model": model or out.name, "dataset_sha256": dataset.sha256,
                      **environment_tags()},
                made_from=source,
            )  # fmt: skip
        try:
            train(
                config, dataset, out, place, final=final, run=run, notice=notice,
                state_every=args.state_every, compiled=compiled, about=about, made_from=source,
            )  # fmt: skip
        except BaseException as error:
            if isinstance(error, Preempted) and run is not None:
                run.sync()  # it goes on when it is started again, so it does not finish
            elif run is not None:
                run.finish("FAILED" if isinstance(error, Exception) else "KILLED")
            raise


@contextmanager
def _attempt(path: Path) -> Iterator[None]:
    """A line when a training starts and when it ends, and how: the log of a job goes when its next attempt begins."""

    def note(what: str) -> None:
        where = " ".join([socket.gethostname(), *([f"job {slurm.job()}"] if slurm.job() else [])])
        with suppress(OSError), open(path, "a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {where}: {what}\n")

    note("started")
    try:
        yield
    except BaseException as error:
        kind = "stopped" if isinstance(error, Preempted) else type(error).__name__
        note(f"{kind}: {str(error).partition(chr(10))[0]}")
        raise
    note("done")


def import_published(args: Namespace) -> None:
    from edm.files.download import pin
    from edm.files.writing import sha256_file
    from edm.foreign import convert

    asked = {"resolution": args.resolution, "channels_per_head": args.channels_per_head}
    if args.published:
        loaded = params.load(args.params)
        if args.published not in loaded.pretrained:
            there = ", ".join(loaded.pretrained)
            raise UserError(f"{args.published}: not among `pretrained` of {args.params}: {there}")
        spec = loaded.pretrained[args.published]
        params.check_spec(spec, args.expect, f"pretrained {args.published}")
        asked = {name: spec.get(name) for name in asked}
        entry = loaded.downloads.get(args.file)
        if not Path(args.file).exists():
            where = (entry or {}).get("note") or (entry or {}).get("url") or "get it from its authors"
            raise UserError(f"{args.file}: not there; put {args.published} at that path: {where}")
        if entry is not None:  # a file that changes between two imports is another model
            pin(args.lock, args.file, sha256_file(args.file))
    imported = convert(args.file, args.output, **{name: value for name, value in asked.items() if value is not None})
    about = imported.about
    say(f"{args.output}: {about['source']}, licence {about['licence']}, sha256 {about['source_sha256'][:12]}")


def export(args: Namespace) -> None:
    from edm.foreign import export

    export(args.checkpoint, args.output)
    say(f"{args.output}: written under the published names")

"""Commands that train, import and export models."""

import argparse
import json
import math
import os
import socket
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from edm.cluster import slurm
from edm.cluster.preemption import Notice
from edm.commands.common import (
    MADE_FROM,
    Commands,
    again,
    check_planned,
    compile_option,
    from_params,
    load_params,
    machine,
    made_from,
    mapping,
    say,
    seconds,
    threads,
    whole,
)
from edm.config import TrainingConfig
from edm.errors import Preempted, UserError
from edm.files.documents import read_json
from edm.files.writing import named
from edm.foreign.asked import CHOICES
from edm.networks.flops import BACKWARD
from edm.tracking import Journal, description, environment_tags

if TYPE_CHECKING:
    from edm.params.experiment import Training


def add(command: Commands) -> None:
    sub = command(
        "train", train, "train one configuration",
        "Train one configuration, on a CPU, a GPU, or (with `edm launch`) on several GPUs. An interrupted run resumes "
        "from its last state with bit-identical weights; a finished run stays unchanged.",
    )  # fmt: skip
    sub.epilog = (
        "After SIGTERM, SIGUSR1, Ctrl-C or the end of the time limit, the run finishes its current step, saves its "
        "state and exits with status 75; the same command resumes it. Other statuses: 0 done, 1 error, 130 a second "
        "Ctrl-C."
    )
    sub.add_argument("--experiment", help="experiment in params.yaml")
    sub.add_argument("--model", help="model of the experiment, such as vp-F")
    sub.add_argument("--config", help="instead: a JSON file with the fields that --dry-run prints")
    sub.add_argument("--data", help="dataset archive")
    sub.add_argument("--out", help="folder for model.safetensors, levels.json, log.jsonl, states, snapshots")
    sub.add_argument("--final", metavar="FOLDER", help="instead for the first two of these (default: --out)")
    sub.add_argument(
        "--overwrite", action="store_true", help="train even if the folder holds a finished or another training run"
    )
    sub.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    sub.add_argument(
        "--state-every", type=seconds, default=300, metavar="S",
        help="seconds between saved states; the run keeps two (default 300)",
    )  # fmt: skip
    sub.add_argument(
        "--time-limit", type=seconds, metavar="S",
        help="time limit of this run in seconds; the time limit of a Slurm job counts, too",
    )  # fmt: skip
    compile_option(sub, "that of the experiment, else auto", None)
    sub.add_argument(
        "--recompute", action=argparse.BooleanOptionalAction,
        help="compute the blocks of the network again for their gradients: less memory, more time, the same results "
        "(default: that of the experiment, else no)",
    )  # fmt: skip
    from_params(sub)
    machine(sub)

    sub = command(
        "import", import_published, "convert a published checkpoint to model.safetensors",
        "Convert a published checkpoint (EDM's pickles, score_sde's .pth, guided-diffusion's .pt) to "
        "model.safetensors. The command recognises the format by the content, and executes no code from the file.",
    )  # fmt: skip
    sub.add_argument("file", help="the published file")
    sub.add_argument("output", help="model.safetensors to write")
    sub.add_argument("--published", help="name under `pretrained` in params.yaml, which states the options below")
    sub.add_argument("--lock", default="downloads.lock.json", help="recorded checksums (downloads.lock.json)")
    says = sub.add_argument_group(
        "settings that a file does not determine", "Default: the value of the published files; the command prints it."
    )
    says.add_argument("--resolution", type=whole, help="side of the images")
    says.add_argument("--channels-per-head", type=whole, help="of the attention (guided-diffusion)")
    says.add_argument("--attention-order", choices=CHOICES["attention_order"],
                      help="new: q, k, v before the heads; old: after, guided-diffusion's default")  # fmt: skip
    says.add_argument(
        "--noise-schedule", choices=CHOICES["noise_schedule"], help="linear is guided-diffusion's default"
    )
    says.add_argument("--sde", choices=CHOICES["sde"], help="of score_sde's models without Fourier features")
    says.add_argument("--beta-min", type=float, help="of score_sde's VP SDE")
    says.add_argument("--beta-max", type=float, help="of score_sde's VP SDE")
    for name, meaning in (("fir", "resampling with the filter 1, 3, 3, 1"), ("skip-rescale", "sums scaled by √½"),
                          ("scale-by-sigma", "outputs divided by σ")):  # fmt: skip
        says.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=f"{meaning} (score_sde)")
    from_params(sub)

    sub = command(
        "average", average, "average the weights of a training run after the fact",
        "Combine the snapshots of a training run to the power-function averages (EMA) of any relative width.",
    )  # fmt: skip
    sub.add_argument("run", help="folder of the training run, such as runs/averaged/vp-F")
    sub.add_argument("--width", nargs="+", type=float, required=True, metavar="S", help="relative widths, such as 0.13")
    sub.add_argument("--at", type=float, metavar="MIMG", help="images seen, in millions (default: the last snapshot)")
    sub.add_argument("--out", help="folder for ema-WIDTH.safetensors, with --at ema-WIDTH-at-MIMG.safetensors "
                     "(default: that of the training run)")  # fmt: skip
    sub.add_argument("--experiment", help="experiment in params.yaml, which states the snapshots that must be there")
    sub.add_argument("--model", help="model of the experiment, such as vp-F")
    from_params(sub)

    sub = command("export", export, "write a checkpoint with the parameter names of the published files")
    sub.add_argument("checkpoint", help="model.safetensors of a training run or an import")
    sub.add_argument("output", help="*.safetensors or *.pt to write")


def train(args: Namespace) -> None:
    from edm.params.experiment import Training

    experiment, model, resources = args.experiment, args.model, Training()
    if args.config:
        stated = mapping(read_json(args.config), args.config)
        try:
            config = TrainingConfig.from_dict(stated)
        except UserError as error:
            raise UserError(f"{args.config}: {error}") from None
    elif experiment and model:
        chosen = load_params(args).experiment(experiment)
        check_planned(args, chosen.training_spec(model), f"{experiment}/{model}")
        config, resources = chosen.models[model], chosen.training
    else:
        raise UserError("train: name what to train: --experiment and --model of params.yaml, or --config FILE.json")
    if args.dry_run:
        print(json.dumps(config.to_dict(), indent=1))
        return
    if not args.data or not args.out:
        raise UserError("train: --data and --out are needed")

    with Notice(min(args.time_limit or math.inf, slurm.time_left())) as notice:
        _train(args, config, resources, notice)


def _train(args: Namespace, config: TrainingConfig, resources: "Training", notice: Notice) -> None:
    from edm.cluster.processes import world
    from edm.data.archive import read_archive
    from edm.data.labels import described
    from edm.files.lock import exclusive
    from edm.models.compilation import options
    from edm.training.folder import TrainingFolder
    from edm.training.loop import check, train
    from edm.training.state import remove_states

    experiment, model, out = args.experiment, args.model, Path(args.out)
    final, source = Path(args.final or out), made_from("train")
    threads(args.threads)
    dataset = read_archive(args.data)
    about = {"experiment": experiment, "model": model}  # no commit: equal weights must give equal files
    with world(args.device) as place, ExitStack() as stack:
        work = (1 + BACKWARD) * config.steps * config.batch_size
        compiled = options(args.compile or resources.compile, config.network(), work / place.size, place.device)
        check(config, dataset, place)  # before writing any file
        if place.is_first and config.conditional and dataset.empty_classes:
            say(f"warning: {args.data}: {described(dataset.classes, dataset.empty_classes)}; it samples all classes")
        if place.is_first:  # a requeued job may still be running elsewhere: the lock keeps both from writing
            stack.enter_context(exclusive(out / ".training"))
        folder = TrainingFolder(out, final, config, dataset, source)
        if place.share(folder.is_finished() and not args.overwrite if place.is_first else None):
            if place.is_first:
                remove_states(out)  # left if the last process was killed while it removed them
                say(f"{final}: this training run is finished; nothing is changed (--overwrite trains it again)")
            return
        if place.is_first:
            if not (args.overwrite or os.environ.get(MADE_FROM)):  # the chain retrains stale models
                folder.require_own()
            stack.enter_context(_attempt(out / "attempts.log"))
        run, images = None, config.steps * config.batch_size
        if place.is_first:
            what = f"Training run of {model or out.name}: {images:,} images of {args.data}."
            run = Journal(out / "journal.jsonl").run(
                f"{experiment}/{model}" if experiment else str(out),
                name=model or out.name,
                experiment=experiment or "edm",
                params=config.to_dict(),
                tags={"kind": "training", "model": model or out.name, "dataset_sha256": dataset.sha256,
                      "dataset": Path(args.data).stem,
                      **description(what, again(str(final / "model.safetensors"))), **environment_tags()},
                made_from=source,
            )  # fmt: skip
        if place.is_first:
            say(f"{out}: training run of {images:,} images on {place.size} x {place.device.type}")
        try:
            train(
                config, dataset, out, place, final=final, run=run, notice=notice,
                state_every=args.state_every, compiled=compiled, about=about, made_from=source, tell=True,
                recompute=resources.recompute if args.recompute is None else args.recompute,
            )  # fmt: skip
        except BaseException as error:
            if isinstance(error, Preempted) and run is not None:
                run.sync()  # the run is not finished: it resumes later
            elif run is not None:
                run.finish("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        if place.is_first:
            say(f"{final / 'model.safetensors'}: trained with {images:,} images")


@contextmanager
def _attempt(path: Path) -> Iterator[None]:
    """Writes a line when a training run starts and ends: Slurm's log of a job is lost when its next attempt begins."""

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
    from edm.files.hashes import sha256_file
    from edm.foreign import convert
    from edm.foreign.asked import NAMES

    asked = {name: value for name in NAMES if (value := getattr(args, name)) is not None}
    if args.published:
        if asked:
            raise UserError(f"{next(iter(asked))} is stated in {args.params} where --published is given; leave it out")
        loaded = load_params(args)
        if args.published not in loaded.pretrained:
            there = ", ".join(loaded.pretrained)
            raise UserError(f"{args.published}: not among `pretrained` of {args.params}: {there}")
        spec = loaded.pretrained[args.published]
        check_planned(args, loaded.pretrained_spec(args.published), f"pretrained {args.published}")
        asked = {name: spec[name] for name in NAMES if name in spec}
        entry = loaded.downloads.get(args.file)
        if not Path(args.file).exists():
            where = (entry or {}).get("note") or (entry or {}).get("url") or "get it from its authors"
            raise UserError(f"{args.file}: not there; put {args.published} at that path: {where}")
        if entry is not None:  # a file that changes between two imports is a different model
            pin(args.lock, args.file, sha256_file(args.file))
    about = convert(args.file, args.output, **asked).about
    say(f"{args.output}: {about['source']}, licence {about['licence']}, sha256 {about['source_sha256'][:12]}")
    if about["assumed"]:
        assumed = ", ".join(f"{name} {json.dumps(value)}" for name, value in about["assumed"].items())
        say(f"assumed, because the file does not determine it: {assumed}")


def average(args: Namespace) -> None:
    from edm.params.experiment import AT_SNAPSHOT, average_mark
    from edm.training.averaging import average, require_whole, snapshots_of

    if (args.experiment is None) != (args.model is None):
        raise UserError("average: --experiment and --model belong together")
    images = None if args.at is None else round(args.at * 1e6)
    if args.experiment:
        experiment = load_params(args).experiment(args.experiment)
        for width in args.width:
            spec = experiment.average_spec(args.model, average_mark(width, args.at))
            check_planned(args, spec, f"{args.experiment}/{args.model}: average {width:g}")
            images = spec.get("images")  # of the snapshot at about --at
        require_whole(args.run, experiment.models[args.model])
    mark = "" if args.at is None else f"{AT_SNAPSHOT}{named(args.at)}"
    for one in average(snapshots_of(args.run), args.width, args.out or args.run, images, mark):
        found = one.found
        say(f"{one.path}: from {one.snapshots} snapshots, residual {found.residual:.2g}, weights {found.total:.3g}")
        for doubt in one.doubts:
            say(f"warning: {one.path}: {doubt}")


def export(args: Namespace) -> None:
    from edm.foreign import export

    differences = export(args.checkpoint, args.output)
    say(f"{args.output}: written with the published parameter names")
    if differences:
        say(f"the authors' class cannot load it: {'; '.join(differences)}. `edm` can")

"""The command line ``edm``: arguments in, exit status out. Nothing here computes."""

import argparse
import sys
from importlib import import_module

from edm.cluster.memory import keep_freed
from edm.config import ADAPTIVE, AUTO, COMPILE, DESIGNS, ORIGINAL, PRECISIONS, SCALINGS, SCHEDULES, SOLVERS
from edm.data.prepare import SOURCES
from edm.errors import PREEMPTED, Preempted, UserError

_FOLDERS = {"results": "results", "runs": "runs", "data": "dataset archives", "models": "trained models"}


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    0, 1 after a mistake the user can mend (one line on stderr), 75 where a job was asked to stop, by a signal or its
    time limit, and is to be started again (a training or a search continues then), or 130 after Ctrl-C elsewhere.
    """
    args = parser().parse_args(argv)
    if "device" in args:
        keep_freed()
    try:
        module, _, function = args.command.partition(".")
        status = getattr(import_module(f"edm.commands.{module}"), function)(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Preempted as stop:
        if str(stop):
            print(f"stopped: {stop}", file=sys.stderr)
        return PREEMPTED
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return status or 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="edm",
        description="Train, sample and score diffusion models in the EDM design space (Karras et al. 2022).",
        epilog="The whole chain runs with `snakemake`; these are its steps. Each has its own --help.",
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, function: str, help: str, description: str | None = None) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=description or help)
        sub.set_defaults(command=function)
        return sub

    prepare = command(
        "prepare", "data.prepare", "turn a data source into a dataset archive (zip of PNG images)",
        "Turn a data source into a dataset archive. What is found is checked against what the paper used of it, or "
        "against what is stated here. An interrupted run continues.",
    )  # fmt: skip
    prepare.add_argument("output", help="archive to write, such as data/digits.zip")
    prepare.add_argument("--source", help=f"kind of source: {', '.join(SOURCES)}")
    prepare.add_argument(
        "--input", nargs="+", metavar="PATH", help="raw file or folder, where the source needs one; or several zips"
    )
    prepare.add_argument("--dataset", help="instead: name in params.yaml, which states source, path and all below")
    prepare.add_argument("--resolution", type=int, help="crop to the short side and resize to this (Lanczos)")
    prepare.add_argument("--channels", type=int, help="1 (grey) or 3 (grey is repeated to RGB)")
    prepare.add_argument("--images", type=int, help="number of images to expect")
    prepare.add_argument("--classes", type=int, help="number of classes to expect; 0 leaves labels out")
    prepare.add_argument("--source-size", type=int, help="side of the images to expect before they are resized")
    prepare.add_argument(
        "--checksum", metavar="MD5", help="MD5 of the CIFAR-10 tarball (default: the published one); none: any"
    )
    prepare.add_argument("--workers", type=int, help="processes to use (default: one per core)")
    _from_params(prepare)

    download = command("download", "data.download", "fetch a file named under `downloads` in params.yaml")
    download.add_argument("path", help="the path it is kept at")
    download.add_argument("--lock", default="downloads.lock.json", help="recorded checksums (downloads.lock.json)")
    _from_params(download)

    made_up = command("made-up", "data.made_up", "make up the raw source of a dataset, for rehearsals")
    made_up.add_argument("output", help="file or folder to write")
    made_up.add_argument("--dataset", required=True, help="name in params.yaml")
    _from_params(made_up)

    features = command("features", "data.features", "train the classifier whose features digits are compared in")
    features.add_argument("data", help="dataset archive with labels")
    features.add_argument("output", help="weights to write (.safetensors)")
    features.add_argument("--seed", type=int, default=0, help="seed of weights and order (default 0)")
    _machine(features, device=False)

    launch = command(
        "launch", "launching.launch", "start one of these commands, as several processes",
        "Start a command as several processes that share its work, on this machine or on the nodes of a job of Slurm. "
        "Signals reach all of them. A job that `snakemake --profile slurm` submitted goes back to the queue where the "
        "command stops because it was asked to (status 75), and continues later.",
    )  # fmt: skip
    processes = launch.add_mutually_exclusive_group()
    processes.add_argument("--processes", type=_count, default=1, help="on all nodes together (default 1)")
    processes.add_argument(
        "--gpus", type=lambda text: 0 if text == "0" else _count(text), metavar="N",
        help="instead: a process for each of so many GPUs that no other such command has; waits for them. 0: on CPUs",
    )  # fmt: skip
    launch.add_argument("--nodes", type=_count, default=1, help="nodes of the job of Slurm (default 1)")
    launch.add_argument("--threads", type=_count, default=1, help="CPUs on each node (default 1)")
    launch.add_argument(
        "--requeue", action="store_true",
        help="where the command stops because it was asked to, by other means than Ctrl-C, put the job of Slurm that "
        "this runs in back into the queue; only for a job that runs nothing else",
    )  # fmt: skip
    launch.add_argument("--step", help="the step of the chain that this is, such as 'train digits/vp-F'")
    launch.add_argument("--digest", help="of the specification that the step was planned with")
    launch.add_argument("--params", default="params.yaml", help="params file (default params.yaml)")
    launch.add_argument("rest", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="such as: -- train --data …")

    adopt = command(
        "adopt", "launching.adopt", "keep the files of steps although something about them has changed",
        "Take the files of stale steps, as far as they are there, for what would be made now: for whoever knows that a "
        "change makes no difference. What has no files is left as it is.",
    )  # fmt: skip
    adopt.add_argument("targets", nargs="+", help="report, experiment, REPORT/TABLE, REPORT/FIGURE, or a file")
    _from_params(adopt)

    train = command(
        "train", "models.train", "train one configuration",
        "Train one configuration, on a CPU, a GPU, or (started by `edm launch`) on many. An interrupted run continues "
        "from its last state to the same weights; a finished one is left as it is.",
    )  # fmt: skip
    train.epilog = (
        "SIGTERM, SIGUSR1, Ctrl-C and the end of the time limit save the state after the present step and end the run "
        "with status 75: the same command continues it. Other statuses: 0 done, 1 error, 130 Ctrl-C pressed again."
    )
    train.add_argument("--experiment", help="experiment in params.yaml")
    train.add_argument("--model", help="model of the experiment, such as vp-F")
    train.add_argument("--config", help="instead: a JSON file with the fields that --dry-run prints")
    train.add_argument("--data", help="dataset archive")
    train.add_argument("--out", help="folder for model.safetensors, levels.json, log.jsonl, states, snapshots")
    train.add_argument("--final", metavar="FOLDER", help="instead for the first two of these (default: --out)")
    train.add_argument(
        "--overwrite", action="store_true", help="train even where the folder holds a finished or another training"
    )
    train.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    train.add_argument(
        "--state-every", type=_seconds, default=300, metavar="S",
        help="seconds between states; two are kept (default 300)",
    )  # fmt: skip
    train.add_argument(
        "--time-limit", type=_seconds, metavar="S",
        help="seconds from now by which the run must have stopped; the end of a job of Slurm counts, too",
    )  # fmt: skip
    _compile(train, "that of the experiment, else auto", None)
    _from_params(train)
    _machine(train)

    imported = command(
        "import", "models.import_published", "turn a published checkpoint into one of ours",
        "Turn a published checkpoint (EDM's pickles, score_sde's .pth, guided-diffusion's .pt) into one of ours. What "
        "it is, is told by its content; nothing in it is run.",
    )  # fmt: skip
    imported.add_argument("file", help="the published file")
    imported.add_argument("output", help="model.safetensors to write")
    imported.add_argument("--published", help="name under `pretrained` in params.yaml, which states what is below")
    imported.add_argument("--lock", default="downloads.lock.json", help="recorded checksums (downloads.lock.json)")
    imported.add_argument("--resolution", type=int, help="side of the images, where the file does not tell it")
    imported.add_argument("--channels-per-head", type=int, help="of the attention, where the file does not tell it")
    _from_params(imported)

    export = command("export", "models.export", "write a checkpoint under the parameter names of the published ones")
    export.add_argument("checkpoint", help="model.safetensors of a training or an import")
    export.add_argument("output", help="*.safetensors or *.pt to write")

    sample = command(
        "sample", "images.sample", "draw images from a checkpoint",
        "Draw images from a checkpoint. Image i depends on seed i alone. Without options: Algorithm 1, 18 steps.",
    )  # fmt: skip
    sample.add_argument("checkpoint", help="model.safetensors of a training")
    sample.add_argument("output", help="*.safetensors (for `edm fid`), *.png (one sheet) or *.zip (dataset archive)")
    sample.add_argument("--seeds", type=_seeds, default=range(64), metavar="A-B", help="seeds, both included (0-63)")
    sample.add_argument(
        "--block", type=lambda text: text if text == AUTO else _count(text), default=64, metavar="N",
        help="seeds per block: the images' batch; auto for as many as keep a large GPU busy (default 64)",
    )  # fmt: skip
    sample.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the network (default fp32)")
    _compile(sample, AUTO, AUTO)
    sample.add_argument("--class", dest="class_label", type=int, help="one class for all images (default: by seed)")
    sample.add_argument("--steps", dest="num_steps", type=int, metavar="N", help="steps (default 18)")
    sample.add_argument("--solver", help=f"{', '.join((*SOLVERS, ADAPTIVE, *ORIGINAL))} (default heun)")
    sample.add_argument("--discretization", help=f"time steps: {', '.join(DESIGNS)} (default edm)")
    sample.add_argument("--schedule", help=f"sigma(t): {', '.join(SCHEDULES)} (default linear)")
    sample.add_argument("--scaling", help=f"s(t): {', '.join(SCALINGS)} (default none)")
    _shard_option(sample, "draw part K of N of the seeds alone, for `edm merge`")
    for name, text in (
        ("alpha", "Algorithm 3: 1 is Heun, 0.5 midpoint (default 1)"),
        ("rho", "exponent of the edm time steps (default 7)"),
        ("sigma_min", "smallest noise level (default: the discretization's)"),
        ("sigma_max", "largest noise level (default: the discretization's)"),
        ("S_churn", "amount of churn, Algorithm 2 (default 0)"),
        ("S_min", "smallest noise level with churn (default 0)"),
        ("S_max", "largest noise level with churn (default infinity)"),
        ("S_noise", "deviation of the added noise (default 1)"),
        ("tolerance", "relative and absolute tolerance of rk45 (default 1e-4)"),
    ):
        sample.add_argument(f"--{name.replace('_', '-')}", dest=name, type=float, help=text)
    _machine(sample)

    merge = command(
        "merge", "images.merge", "put sample files together by their seeds",
        "Put sample files of one checkpoint and equal settings together by their seeds, such as the parts that "
        "`edm sample --shard` drew.",
    )  # fmt: skip
    merge.add_argument("output", help="*.safetensors to write")
    merge.add_argument("parts", nargs="+", metavar="PART", help="*.safetensors of `edm sample`, in any order")

    reference = command("fid-ref", "data.fid_ref", "feature statistics of a dataset, to measure distances from")
    reference.add_argument("data", help="dataset archive")
    reference.add_argument("output", help="statistics to write (.npz with mu and sigma)")
    reference.add_argument(
        "--keep-features",
        type=int,
        metavar="N",
        help="keep the features of at most N images too, as KID and precision ask",
    )
    _features(reference)

    fid = command(
        "fid", "images.fid", "Fréchet distance of sampled images from a dataset",
        "Fréchet distance of sampled images from reference statistics: FID in Inception-v3 features, else FD.",
    )  # fmt: skip
    fid.add_argument("samples", help="*.safetensors of `edm sample`")
    fid.add_argument("--ref", required=True, help="*.npz of `edm fid-ref`, or published statistics")
    fid.add_argument("--output", help="JSON file to write")
    fid.add_argument("--metrics", nargs="+", help="what else to measure: kid, precision, recall, inception_score")
    _features(fid)

    _studies(command)
    for name, text, *folders in (
        ("tables", "tables of a report, from the results there are", "results", "runs"),
        ("figures", "figures of a report, from the results there are", *_FOLDERS),
        ("metrics", "the headline numbers of a report as JSON, its curves as CSV", "results", "runs", "models"),
        ("about", "pages on how a report was made: configuration, environment, runtime", "results"),
    ):
        report = command(name, f"reports.{name}", text)
        report.add_argument("report", help="report or experiment in params.yaml")
        if name in ("tables", "figures"):
            report.add_argument("names", nargs="*", help=f"{name} to make (default: all)")
        for folder in folders:
            report.add_argument(f"--{folder}", default=folder, help=f"folder of {_FOLDERS[folder]} (default {folder})")
        _from_params(report)

    trace = command(
        "trace", "reports.trace", "where a number of a table comes from, and the commands that give it again",
        "The chain from a number to commit, data, configuration, snapshot, seeds and run, as recorded when each step "
        "was made; what is not recorded is said to be unknown.",
    )  # fmt: skip
    trace.add_argument("table", metavar="REPORT/TABLE", help="such as digits/table2")
    trace.add_argument("row", help="label of the row, as the table has it")
    trace.add_argument("column", nargs="?", help="name of the column; may be left out where there is one")
    trace.add_argument("--json", action="store_true", help="the same as JSON")
    _from_params(trace)

    plan = command(
        "plan", "reports.plan", "what a target would cost: jobs, images, network evaluations, GPU-hours, disk",
        "What a target would cost, before anything runs. Counted from the same jobs that the workflow runs.",
    )  # fmt: skip
    plan.add_argument("target", help="report, experiment, REPORT/TABLE, REPORT/FIGURE, or a file of the chain")
    plan.add_argument("--gpus", type=_count, default=8, help="GPUs to share the work (default 8)")
    plan.add_argument("--throughput", default="throughput.json", help="what `edm bench` measured (throughput.json)")
    plan.add_argument("--all", action="store_true", help="count what is there already, too")
    _from_params(plan)

    bench = command("bench", "reports.bench", "measure training and sampling on this machine, for `edm plan`")
    bench.add_argument("target", help="report or experiment whose networks are measured")
    bench.add_argument("--output", default="throughput.json", help="file to add to (default throughput.json)")
    bench.add_argument("--seconds", type=_seconds, default=20, help="seconds per measurement (default 20)")
    bench.add_argument("--batch", type=_count, help="images per step (default: chosen for the device)")
    _compile(bench, AUTO, AUTO)
    _from_params(bench)
    _machine(bench)

    track = command("track", "tracking.sync", "bring MLflow up to date with the journals of all runs")
    track.add_argument("action", choices=["sync"], help="sync: send what is new")
    track.add_argument("folders", nargs="*", default=["runs"], help="where to look for journals (default runs)")
    track.add_argument("--uri", help="MLflow's address (default: tracking.uri of params.yaml)")
    track.add_argument("--output", help="JSON file for a summary")
    track.add_argument(
        "--limit", type=_seconds, default=600, metavar="S", help="give up after this many seconds (default 600)"
    )
    track.add_argument(
        "--or-later", action="store_true",
        help="end well where MLflow does not take the runs, and say so in the summary: the journals keep them",
    )  # fmt: skip
    _from_params(track)

    check = command("check", "reports.check", "check params.yaml and say what it would run")
    _from_params(check)
    return top


def _studies(command) -> None:
    """What the workflow asks of a model; settings come from params.yaml."""
    for name, text, what in (
        ("evaluate", "draw the images of an evaluation and measure them", "evaluation"),
        ("choose", "choose the best snapshot of a training", None),
        ("search", "search for the best sampler settings", "search"),
        ("sheet", "draw a sheet of images to look at", "sheet"),
        ("analyse", "study a model: truncation error, degradation, leakage", "analysis"),
    ):
        sub = command(name, f"studies.{name}", text)
        sub.add_argument("snapshots" if name == "choose" else "checkpoint", help="as the training left it")
        sub.add_argument("output", help="file to write")
        sub.add_argument("--experiment", required=True, help="experiment in params.yaml")
        sub.add_argument("--model", required=True, help="model of the experiment, such as vp-F")
        if what:
            sub.add_argument(f"--{what}", required=True, help=f"{what} of the experiment")
        if name in ("evaluate", "choose", "search"):
            sub.add_argument("--ref", nargs="+", required=True, help="*.npz of the dataset, one per feature extractor")
        if name == "analyse":
            sub.add_argument("--data", help="dataset archive, for leakage")
        if name == "evaluate":
            sub.add_argument("--settings", help="outcome of a search (JSON) to sample with")
            split = sub.add_mutually_exclusive_group()
            _shard_option(split, "measure part K of N of the images and write a shard file (.safetensors)")
            split.add_argument(
                "--parts", nargs="+", metavar="FILE", help="take the results from the shard files of all parts"
            )
        if name != "sheet":
            sub.add_argument("--weights", help="file with the extractor's weights")
        if name in ("evaluate", "search"):
            sub.add_argument("--journal", help="journal for tracking (default: beside the output)")
        if name == "search":
            sub.add_argument("--history", help="evaluations so far (default: beside the output)")
        _from_params(sub)
        _machine(sub)


def _from_params(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--params", default="params.yaml", help="params file (default params.yaml)")
    sub.add_argument("--expect", help=argparse.SUPPRESS)  # digest of the settings that the workflow planned with


def _features(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--features", default="inception-v3-compat", help="feature extractor (default inception-v3-compat)"
    )
    sub.add_argument("--weights", help="file with the extractor's weights (Inception-v3: downloaded once by default)")
    _machine(sub)


def _machine(sub: argparse.ArgumentParser, device: bool = True) -> None:
    if device:
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    sub.add_argument("--threads", type=_count, help="CPU threads (default: torch's choice)")


def _compile(sub: argparse.ArgumentParser, meaning: str, default: str | None) -> None:
    sub.add_argument(
        "--compile", choices=COMPILE, default=default,
        help=f"compile the network: auto where it pays, graphs with CUDA graphs, yes, no (default: {meaning})",
    )  # fmt: skip


def _shard_option(sub: argparse._ActionsContainer, help: str) -> None:
    sub.add_argument("--shard", type=_shard, metavar="K/N", help=help)


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 1024")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _shard(text: str) -> tuple[int, int]:
    """Text "3/8" as (2, 8): the third of eight parts."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part such as 3/8, from 1/8 to 8/8")
    return int(part) - 1, int(parts)


def _seeds(text: str) -> range:
    """Text "0-63" as range(0, 64); "7" as range(7, 8)."""
    first, _, last = text.partition("-")
    last = last or first
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < 2**62):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of seeds such as 0-63")
    return range(int(first), int(last) + 1)


if __name__ == "__main__":
    sys.exit(main())

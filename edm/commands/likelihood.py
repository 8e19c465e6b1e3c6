"""The command that computes the likelihood of a dataset under a model."""

import time
from argparse import Namespace
from typing import Any

from edm.commands.common import (
    Commands,
    again,
    check_planned,
    count,
    counted,
    from_params,
    load_params,
    machine,
    made_from,
    processes,
    say,
    shard_option,
    threads,
    whole,
)
from edm.config import PRECISIONS, SOLVERS
from edm.errors import UserError
from edm.files.hashes import digest, sha256_file
from edm.files.writing import write_json
from edm.tracking import Journal, description, origin

TRACES = ("hutchinson", "exact")


def add(command: Commands) -> None:
    sub = command(
        "likelihood", likelihood, "bits per dimension of a dataset under a model",
        "Bits per dimension of the images of a dataset, such as a test split: the probability-flow ODE upwards, with "
        "uniform dequantisation. The seed of an image is its place in the dataset. Processes share the images.",
    )  # fmt: skip
    sub.add_argument("checkpoint", help="model.safetensors of a training run or an import")
    sub.add_argument("data", help="dataset archive")
    sub.add_argument("output", help="JSON file to write")
    sub.add_argument("--images", type=whole, default=1000, metavar="N", help="the first N images (default 1000)")
    sub.add_argument("--steps", type=count, default=100, metavar="N", help="steps (default 100)")
    sub.add_argument("--solver", choices=SOLVERS, default="heun", help="of order 2 or 1 (default heun)")
    sub.add_argument("--trace", choices=TRACES, default="hutchinson", help="exact: a backward pass per dimension")
    sub.add_argument("--probes", type=count, default=1, metavar="K", help="vectors per image (default 1)")
    sub.add_argument("--sigma-min", type=float, metavar="X", help="smallest noise level (default 0.002)")
    sub.add_argument("--sigma-max", type=float, metavar="X", help="largest noise level (default 80)")
    sub.add_argument("--block", type=count, default=64, metavar="N", help="images per batch (default 64)")
    sub.add_argument("--precision", choices=PRECISIONS, default="fp32", help="precision of the network (default fp32)")
    sub.add_argument("--experiment", help="experiment in params.yaml, which states the settings instead")
    sub.add_argument("--model", help="model of the experiment, such as vp-F")
    sub.add_argument("--likelihood", help="likelihood of the experiment")
    split = sub.add_mutually_exclusive_group()
    shard_option(split, "compute part K of N of the images and write a part (JSON)")
    split.add_argument("--parts", nargs="+", metavar="FILE", help="merge all parts")
    sub.add_argument("--journal", help="journal for tracking; none by default")
    from_params(sub)
    machine(sub)


def likelihood(args: Namespace) -> None:
    spec, block = _stated(args)
    with processes(args.device) as place:
        from edm.analysis.bits import FORMAT, merged, summary, write_part
        from edm.analysis.likelihood import bits_of_part, images_of
        from edm.data.archive import read_archive
        from edm.models import checkpoint
        from edm.sampling.drawing import block_of, part_of

        threads(args.threads)
        began, denoiser = time.time(), checkpoint.load(args.checkpoint, place.device)
        denoiser.precision = spec.get("precision", "fp32")
        dataset = read_archive(args.data)
        places, size = images_of(denoiser, dataset, spec["images"]), block_of(block, denoiser.network.config)
        settings = {key: spec.get(key) for key in ("num_steps", "solver", "trace", "probes", "sigma_min", "sigma_max")}
        about = {"sha256": sha256_file(args.checkpoint), **checkpoint.describe(args.checkpoint)["about"]}
        record = {"checkpoint": about, "dataset_sha256": dataset.sha256, **settings, "block": size,
                  "precision": denoiser.precision}  # fmt: skip
        of = {"made_from": made_from("likelihood"), "whole": digest(record), "images": len(places)}
        if args.parts:
            found = merged(args.parts, of, len(places)) if place.is_first else {}
        else:
            index, parts = args.shard or (0, 1)
            part = part_of(places, size, index, parts)
            found = bits_of_part(denoiser, dataset, part, size, place, **settings)
            if args.shard and place.is_first:
                write_part(args.output, of, part, found)
                say(f"{args.output}: part {index + 1} of {parts}, {counted(len(part), 'image')}")
                return
            found = summary(found["each"], found["spreads"]) if place.is_first else {}
        if not place.is_first:
            return
        run = _journalled(args, record, found, began)
        write_json(args.output, {"format": FORMAT, **record, **found, "run": run, **origin()})
        spread = "" if found["spread"] is None else f"; {found['spread']:.2g} of an image over its probes"
        say(f"{args.output}: {found['bits_per_dimension']:.4f} ± {found['s']:.2g} bits per dimension "
            f"({counted(found['images'], 'image')}{spread})")  # fmt: skip


def _stated(args: Namespace) -> tuple[dict[str, Any], int | str]:
    """The settings, of params.yaml or of the options, and the images per batch."""
    named = (args.experiment, args.model, args.likelihood)
    if not any(named):
        return {"images": args.images, "num_steps": args.steps, "solver": args.solver, "trace": args.trace,
                "probes": args.probes, "sigma_min": args.sigma_min, "sigma_max": args.sigma_max,
                "precision": args.precision}, args.block  # fmt: skip
    if not all(named):
        raise UserError("likelihood: --experiment, --model and --likelihood belong together")
    experiment = load_params(args).experiment(args.experiment)
    spec = experiment.likelihood_spec(args.model, args.likelihood)
    check_planned(args, spec, f"{args.experiment}/{args.model}: {args.likelihood}")
    return spec, experiment.sampling.block


def _journalled(args: Namespace, record: dict[str, Any], found: dict[str, Any], began: float) -> str | None:
    """Writes the run of a likelihood of params.yaml to its journal; returns its key."""
    if not args.journal or not args.experiment:
        return None
    from edm.evaluation.recording import run_below

    told = f"Bits per dimension of {counted(found['images'], 'image')} under {args.model}."
    details = {key: value for key, value in record.items() if key not in ("checkpoint", "dataset_sha256")}
    details |= {"model": args.model, "likelihood": args.likelihood, "images": found["images"]}
    run = run_below(Journal(args.journal), args.experiment, args.model, f"likelihood/{args.likelihood}",
                    f"{args.model} {args.likelihood}", "likelihood", details, record["checkpoint"],
                    made_from("likelihood"), description(told, again(args.output)), began)  # fmt: skip
    numbers = {"bits_per_dimension": found["bits_per_dimension"], "bits_per_dimension_s": found["s"]}
    numbers |= {} if found["spread"] is None else {"bits_per_dimension_spread": found["spread"]}
    with run:
        run.metrics(numbers, step=record["checkpoint"].get("images") or 0)
    key: str = run.key
    return key

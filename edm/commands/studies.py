"""The workflow's steps on a model: evaluations, snapshot selection, searches, sheets, analyses."""

import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edm.commands.common import (
    Commands,
    again,
    check_planned,
    counted,
    from_params,
    load_params,
    machine,
    made_from,
    processes,
    say,
    shard_option,
    threads,
)
from edm.config import SamplerConfig
from edm.errors import UserError
from edm.metrics import WORST
from edm.tracking import Journal, description, origin
from edm.tracking.counting import Counting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edm.params import Evaluation, Experiment, Params


def add(command: Commands) -> None:
    for function, text, what in (
        (evaluate, "sample the images of an evaluation and compute the distances", "evaluation"),
        (choose, "choose the best snapshot of a training run", None),
        (search, "search for the best sampler settings", "search"),
        (sheet, "sample a sheet of images", "sheet"),
        (analyse, "study a model: truncation error, degradation, leakage, memorisation", "analysis"),
    ):
        name = function.__name__
        sub = command(name, function, text)
        sub.add_argument("snapshots" if name == "choose" else "checkpoint", help="output of the training run")
        sub.add_argument("output", help="file to write")
        sub.add_argument("--experiment", required=True, help="experiment in params.yaml")
        sub.add_argument("--model", required=True, help="model of the experiment, such as vp-F")
        if what:
            sub.add_argument(f"--{what}", required=True, help=f"{what} of the experiment")
        if name in ("evaluate", "choose", "search"):
            sub.add_argument("--ref", nargs="+", required=True, help="statistics (*.npz), one per feature extractor")
        if name == "choose":
            sub.add_argument("--averages", nargs="+", default=[], help="averages of the snapshots, to choose from, too")
        if name == "analyse":
            sub.add_argument("--data", help="dataset archive, for leakage and memorisation")
            sub.add_argument("--evaluations", nargs="+", help="results that name pairs, for memorisation")
        if name == "evaluate":
            sub.add_argument("--settings", help="outcome of a search (JSON) to sample with")
            split = sub.add_mutually_exclusive_group()
            shard_option(split, "evaluate part K of N of the images and write a shard file (.safetensors)")
            split.add_argument("--parts", nargs="+", metavar="FILE", help="merge the shard files of all parts")
        if name != "sheet":
            sub.add_argument("--weights", help="file with the extractor's weights")
        if name in ("evaluate", "choose", "search"):
            beside = "the snapshots" if name == "choose" else "the output"
            sub.add_argument("--journal", help=f"journal for tracking (default: beside {beside})")
        if name in ("choose", "search"):
            sub.add_argument("--history", help=f"file with the completed evaluations (default: beside {beside})")
        from_params(sub)
        machine(sub)


def evaluate(args: Namespace) -> None:
    loaded = load_params(args)
    experiment = loaded.experiment(args.experiment)
    evaluation = experiment.evaluation(args.model, args.evaluation)
    spec = experiment.evaluation_spec(evaluation)
    check_planned(args, spec, f"{args.experiment}/{args.model}/{args.evaluation}")
    with processes(args.device) as place:
        from edm.evaluation.jobs import evaluate_grid

        threads(args.threads)
        whole = place.is_first and not args.parts and not args.shard
        evaluate_grid(
            experiment, evaluation, args.checkpoint, args.output, args.ref, weights=args.weights,
            guides=_guides(experiment, experiment.grids[evaluation.grid].points[args.model].guides),
            settings=args.settings, shard=args.shard, parts=args.parts or (), journal=args.journal,
            known=_measured_before(loaded, evaluation, args.output) if whole else None, command=again(args.output),
            made_from=made_from("evaluate"), world=place, say=say,
        )  # fmt: skip


def _guides(experiment: "Experiment", guides: "Iterable[str | None]") -> dict[str, str]:
    """The checkpoints of guides, by name, at their paths in the chain."""
    from edm.chain.paths import guide_file

    return {guide: guide_file(experiment, guide, images) for guide, images in experiment.guides(guides).items()}


def _measured_before(loaded: "Params", evaluation: "Evaluation", output: str) -> dict[str, Any]:
    """Results of jobs with the other `one_job_per`, by draw; empty if the output is not a file of the chain."""
    from edm.chain.jobs import Chain
    from edm.chain.paths import evaluation_file
    from edm.chain.reuse import measured_before

    if output != evaluation_file(evaluation):
        return {}
    chain = Chain(loaded)
    job = chain.maker(output)
    assert job is not None  # the evaluation's own
    found = measured_before(chain, job)
    for file in dict.fromkeys(results["from"] for results in found.values()):
        say(f"{output}: takes points from {file}, measured with the same settings, model and code")
    return {f"{point}@{repeat}": results for (point, repeat), results in found.items()}


def choose(args: Namespace) -> None:
    experiment = load_params(args).experiment(args.experiment)
    if not experiment.chosen(args.model):
        raise UserError(f"{args.experiment}/{args.model}: has no snapshots to choose from (choose, snapshot_every)")
    check_planned(args, experiment.choice_spec(args.model), f"{args.experiment}/{args.model}: choose")
    with processes(args.device) as place:
        from edm.evaluation.jobs import choose_snapshot

        threads(args.threads)
        choose_snapshot(experiment, args.model, args.snapshots, args.output, args.ref, weights=args.weights,
                        averages=args.averages, journal=args.journal, history=args.history,
                        command=again(args.output), made_from=made_from("choose"), world=place, say=say)  # fmt: skip


def search(args: Namespace) -> None:
    experiment = load_params(args).experiment(args.experiment)
    spec = experiment.search_spec(args.model, args.search)
    check_planned(args, spec, f"{args.experiment}/{args.model}: {args.search}")
    with processes(args.device) as place:
        from edm.evaluation.jobs import search_settings

        threads(args.threads)
        search_settings(
            experiment, args.model, args.search, args.checkpoint, args.output, args.ref, weights=args.weights,
            guides=_guides(experiment, [experiment.searches[args.search].samplers[args.model].guide]),
            journal=args.journal, history=args.history, command=again(args.output), made_from=made_from("search"),
            world=place, say=say,
        )  # fmt: skip


def sheet(args: Namespace) -> None:
    """Writes a sample sheet: images of the first seeds of a model."""
    experiment = load_params(args).experiment(args.experiment)
    spec = experiment.sheet_spec(args.model, args.sheet)
    check_planned(args, spec, f"{args.experiment}/{args.model}: {args.sheet}")
    from edm.cluster.processes import pick_device
    from edm.commands.images import write_images
    from edm.evaluation.jobs import about_checkpoint, about_guides, load_guides
    from edm.evaluation.recording import run_below
    from edm.models import checkpoint
    from edm.models.compilation import prepare
    from edm.sampling.sample_files import sample_points, write_samples

    threads(args.threads)
    began = time.time()
    denoiser = checkpoint.load(args.checkpoint, pick_device(args.device))
    points = {"only": SamplerConfig.from_dict(spec["sampler"])}
    guides = _guides(experiment, [points["only"].guide])
    denoiser.guides = load_guides(guides, denoiser.device)
    evaluations = spec["images"] * points["only"].expected_nfe
    prepare(denoiser, experiment.sampling.precision, experiment.sampling.compile, evaluations)
    seeds = range(spec["first_seed"], spec["first_seed"] + spec["images"])
    with Counting(args.output, len(seeds)) as counting:
        drawn = sample_points(denoiser, points, seeds, block=min(64, spec["images"]), advance=counting.advance)
    about = {"experiment": experiment.name, "model": args.model, "sheet": args.sheet, **about_guides(guides)}
    write_samples(args.output, args.checkpoint, points, drawn, {**about, **origin()})
    picture = str(Path(args.output).with_suffix(".png"))
    write_images(picture, drawn)
    details = {**points["only"].to_dict(), "model": args.model, "images": len(seeds), "first_seed": seeds.start}
    images = counted(len(seeds), "image")
    run = run_below(Journal(f"{args.output}.journal.jsonl"), experiment.name, args.model, f"sheet/{args.sheet}",
                    f"{args.model} {args.sheet}", "sheet", details,
                    about_checkpoint(args.checkpoint)["checkpoint"], made_from("sample"),
                    description(f"{images} of {args.model}.", again(args.output)), began)  # fmt: skip
    with run:
        run.artifact(picture, "samples")


def analyse(args: Namespace) -> None:
    """Runs a study for a figure: truncation error, degradation, leakage, memorisation."""
    experiment = load_params(args).experiment(args.experiment)
    spec = experiment.analysis_spec(args.model, args.analysis)
    check_planned(args, spec, f"{args.experiment}/{args.model}: {args.analysis}")
    from edm.analysis.studies import save_study, study
    from edm.cluster.processes import pick_device
    from edm.evaluation.jobs import about_checkpoint
    from edm.models import checkpoint
    from edm.params.studies import STUDIES, arguments

    threads(args.threads)
    denoiser = checkpoint.load(args.checkpoint, pick_device(args.device))
    kind, dataset, features = spec["kind"], None, None
    needs, settings = STUDIES[kind], arguments(experiment.analyses[args.analysis].settings)
    if needs.trained:
        from edm.models.building import augmentation_of

        config = experiment.models[args.model]
        settings |= {"augment": config.augment, "transform": augmentation_of(config)}
    if needs.dataset and not needs.pairs:
        from edm.data.archive import read_archive

        dataset = read_archive(args.data)
    if needs.features:
        from edm.metrics.extractors import load_features

        features = load_features(experiment.features, args.weights, denoiser.device)
    if needs.pairs:
        from edm.models.compilation import prepare
        from edm.sampling.drawing import block_of

        block = block_of(experiment.sampling.block, denoiser.network.config)
        settings = _worst_pairs(args, settings.get("images", WORST), block)
        prepare(denoiser, experiment.sampling.precision, "no", 0)
    tensors, numbers = study(kind, denoiser, dataset, features, **settings)
    about = {"experiment": args.experiment, "model": args.model, "analysis": args.analysis, "spec": spec}
    save_study(args.output, tensors, numbers, {**about, **about_checkpoint(args.checkpoint), **origin()})
    say(f"{args.output}: {kind} of {args.model}")


def _worst_pairs(args: Namespace, count: int, block: int) -> dict[str, Any]:
    """The pairs with the lowest ratios of all draws in ``--evaluations``, and the numbers of those draws."""
    import torch

    from edm.config import SamplerConfig
    from edm.data.archive import some_images
    from edm.evaluation.records import AGAIN, read_results
    from edm.files.documents import ANY, NUMBER, require_shape, whole

    shares = ("memorisation", "memorisation_of_reference")
    records = [read_results(path) for path in args.evaluations]
    for path, record in zip(args.evaluations, records, strict=True):
        named = {"settings": {"memorisation": {"k": whole(1), "below": NUMBER}}, "reference_features": whole(1)}
        rows_of = [{"pairs": [ANY], **dict.fromkeys(shares, NUMBER)}]
        require_shape(record, {"metric": named, "points": rows_of}, path, AGAIN)
    rows = [row for record in records for row in record["points"]]
    pairs = sorted(((pair, row) for row in rows for pair in row["pairs"]), key=lambda one: one[0]["ratio"])
    draws, told = [], []
    for pair, row in pairs[:count]:
        seed = row["first_seed"] + pair["image"]
        sampler = SamplerConfig.from_dict(row["sampler"])
        draws.append((sampler, seed, block if sampler.solver == "ve-pc" else 1))
        told.append({"seed": seed, **{name: pair[name] for name in ("training", "distance", "ratio")}})
    training = some_images(args.data, [pair["training"] for pair in told])
    if len(training) < len(told):
        raise UserError(f"{args.data}: has fewer images than {args.evaluations[0]} names; evaluate again")
    images, metric = sum(row["images"] for row in rows), records[0]["metric"]
    share, of_reference = (sum(row[name] * row["images"] for row in rows) / images for name in shares)
    numbers = {"pairs": told, "images": images, **metric["settings"]["memorisation"], "share": share,
               "share_of_reference": of_reference, "description": metric["description"],
               "reference_features": metric["reference_features"]}  # fmt: skip
    return {"draws": draws, "training": torch.from_numpy(training), "numbers": numbers}

"""What the workflow asks of a model: evaluations, the choice of a snapshot, searches, sheets, analyses."""

import shutil
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edm import params
from edm.commands.common import origin, say, threads
from edm.config import SamplerConfig
from edm.errors import UserError
from edm.files import atomic_write, read_json, sha256_file, write_json
from edm.params import Experiment
from edm.report.results import FORMAT
from edm.tracking import Journal, Run, environment_tags

if TYPE_CHECKING:
    from edm.denoiser import Denoiser
    from edm.evaluation import Yardstick


def evaluate(args: Namespace) -> None:
    experiment = params.load(args.params).experiment(args.experiment)
    evaluation = experiment.evaluation(args.model, args.evaluation)
    spec = experiment.evaluation_spec(evaluation)
    params.check_spec(spec, args.expect, f"{args.experiment}/{args.model}/{args.evaluation}")
    found = _found(args.settings)
    denoiser, about = _model(args)
    yardsticks = _yardsticks(args, experiment)
    from edm.evaluation import evaluate

    about |= {"settings": {"path": args.settings, **found} if args.settings else None}
    rows = []
    journal = Journal(args.journal or f"{args.output}.journal.jsonl")
    for point, repeat in evaluation.draws:
        seeds, settings = experiment.sampling.seeds(repeat), _settled(point.sampler, found)
        mark = f"@{repeat}" if experiment.sampling.repeats > 1 else ""
        name = f"{args.model} {evaluation.grid} {point.id}{mark}"
        details = {**settings.to_dict(), "model": args.model, "features": experiment.features, "images": len(seeds)}
        run = _run(journal, experiment.name, args.model, f"{evaluation.grid}/{point.id}{mark}", name, "evaluation",
                   details | {"first_seed": seeds.start}, about["checkpoint"])  # fmt: skip
        with run:
            measured = evaluate(denoiser, settings, seeds, experiment.sampling.block, yardsticks, name)
            numbers = {key: value for key, value in measured.items() if isinstance(value, int | float)}
            run.metrics(numbers, step=about["checkpoint"].get("images") or 0)
        say(f"{name}: {yardsticks[0].extractor.label} {measured['distance']:.4g} (NFE {measured['nfe']})")
        rows.append({"id": point.id, "repeat": repeat, "first_seed": seeds.start, "sampler": settings.to_dict(),
                     "run": run.key, **measured})  # fmt: skip
    write_json(args.output, {
        "format": FORMAT, "experiment": experiment.name, "model": args.model, "grid": evaluation.grid,
        "evaluation": evaluation.name, **about, "metric": yardsticks[0].describe(),
        "more": [yardstick.describe() for yardstick in yardsticks[1:]], "points": rows, **origin(),
    })  # fmt: skip


def choose(args: Namespace) -> None:
    """The best snapshot of a training, by the distance of its images."""
    experiment = params.load(args.params).experiment(args.experiment)
    if not experiment.chosen(args.model):
        raise UserError(f"{args.experiment}/{args.model}: has no snapshots to choose from (choose, snapshot_every)")
    spec = experiment.choice_spec(args.model)
    params.check_spec(spec, args.expect, f"{args.experiment}/{args.model}: choose")
    folder = Path(args.snapshots)
    snapshots = sorted(path.name for path in folder.glob("*.safetensors"))
    wanted = [f"{images:012d}.safetensors" for images in experiment.models[args.model].snapshots]
    if snapshots != wanted:
        raise UserError(f"{folder}: {len(snapshots)} snapshots, {len(wanted)} expected; train again to have them all")
    (yardstick,) = _yardsticks(args, experiment, more=False)
    from edm import checkpoint
    from edm.evaluation import evaluate
    from edm.search import SearchHistory
    from edm.search import choose as choose_best

    device, sampler = yardstick.extractor.device, SamplerConfig.from_dict(spec["sampler"])
    first = spec["first_seed"]

    def distance(name: str, images: int) -> float:
        denoiser = checkpoint.load(folder / name, device)
        seeds = range(first, first + images)
        value = evaluate(denoiser, sampler, seeds, spec["block"], [yardstick], name)["distance"]
        say(f"{name}: {yardstick.extractor.label} {value:.4g} of {images} images")
        return value

    hashes = {name: checkpoint.describe(folder / name)["about"].get("images") for name in snapshots}
    history = SearchHistory(Path(args.output).with_name("choice.history.jsonl"), {**spec, "snapshots": hashes})
    choice = choose_best(
        snapshots, lambda name: distance(name, spec["images"]), lambda name: distance(name, spec["confirm_images"]),
        spec["confirm"], history,
    )  # fmt: skip
    with atomic_write(args.output) as temporary:
        shutil.copyfile(folder / choice.best, temporary)
    record = {"format": "edm-choice/1", "metric": yardstick.describe(), **choice.to_dict(), **spec, **origin()}
    write_json(Path(args.output).with_name("choice.json"), record)
    say(f"{args.output}: {choice.best}, {yardstick.extractor.label} {choice.value:.4g}")


def search(args: Namespace) -> None:
    """The best sampler settings of a model (Table 5)."""
    experiment = params.load(args.params).experiment(args.experiment)
    spec = experiment.search_spec(args.model, args.search)
    params.check_spec(spec, args.expect, f"{args.experiment}/{args.model}: {args.search}")
    denoiser, about = _model(args)
    (yardstick,) = _yardsticks(args, experiment, more=False)
    from edm.evaluation import evaluate
    from edm.search import SearchHistory
    from edm.search import search as search_best

    base = SamplerConfig.from_dict(spec["sampler"])
    seeds = range(spec["first_seed"], spec["first_seed"] + spec["images"])

    def sampler(settings: dict[str, Any]) -> SamplerConfig:
        return SamplerConfig.from_dict({**base.to_dict(), **settings})

    def valid(settings: dict[str, Any]) -> bool:
        try:
            return bool(sampler(settings))
        except UserError:
            return False

    def distance(settings: dict[str, Any]) -> float:
        name = ",".join(f"{key}={value}" for key, value in settings.items())
        return evaluate(denoiser, sampler(settings), seeds, spec["block"], [yardstick], name)["distance"]

    fixed = {key: value for key, value in spec.items() if key not in ("over", "method", "max_sweeps")}
    identity = {**fixed, "checkpoint": about["checkpoint"]["sha256"], "metric": yardstick.describe()}
    history = SearchHistory(args.history or f"{args.output}.history.jsonl", identity)
    start = {key: min(values, key=lambda value, key=key: abs((value or 0) - (getattr(base, key) or 0)))
             for key, values in spec["over"].items()}  # fmt: skip
    journal = Journal(args.journal or f"{args.output}.journal.jsonl")
    details = {"model": args.model, "method": spec["method"], "images": spec["images"]}
    run = _run(journal, experiment.name, args.model, f"search/{args.search}", f"{args.model} {args.search}", "search",
               details, about["checkpoint"])  # fmt: skip
    with run:
        started = time.monotonic()
        found = search_best(distance, spec["over"], start, spec["method"], history, spec["max_sweeps"], valid)
        numbers = {"distance": found.value, "evaluations": found.evaluations, "seconds": time.monotonic() - started}
        run.metrics(numbers, step=about["checkpoint"].get("images") or 0)
    write_json(args.output, {
        "format": "edm-search/1", "experiment": experiment.name, "model": args.model, "search": args.search,
        "run": run.key, **about, "metric": yardstick.describe(), **spec, "start": start, **found.to_dict(), **origin(),
    })  # fmt: skip
    label = yardstick.extractor.label
    say(f"{args.output}: {label} {found.value:.4g} at {found.settings} ({found.evaluations} evaluations)")


def sheet(args: Namespace) -> None:
    """Images to look at: the first seeds of a model."""
    experiment = params.load(args.params).experiment(args.experiment)
    spec = experiment.sheet_spec(args.model, args.sheet)
    params.check_spec(spec, args.expect, f"{args.experiment}/{args.model}: {args.sheet}")
    from edm import checkpoint
    from edm.distributed import pick_device
    from edm.samples import sample_points, write_samples

    threads(args.threads)
    denoiser = checkpoint.load(args.checkpoint, pick_device(args.device))
    points = {"only": SamplerConfig.from_dict(spec["sampler"])}
    seeds = range(spec["first_seed"], spec["first_seed"] + spec["images"])
    drawn = sample_points(denoiser, points, seeds, block=min(64, spec["images"]))
    about = {"experiment": experiment.name, "model": args.model, "sheet": args.sheet}
    write_samples(args.output, args.checkpoint, points, drawn, {**about, **origin()})


def analyse(args: Namespace) -> None:
    """A study behind a figure: truncation error, degradation, leakage."""
    experiment = params.load(args.params).experiment(args.experiment)
    spec = experiment.analysis_spec(args.model, args.analysis)
    params.check_spec(spec, args.expect, f"{args.experiment}/{args.model}: {args.analysis}")
    denoiser, about = _model(args)
    from edm.analysis.studies import STUDIES
    from edm.checkpoint import save_tensors

    settings = {key: value for key, value in spec.items() if key != "kind"}
    if spec["kind"] == "leakage":
        from edm.data import read_archive
        from edm.metrics.extractors import load_features

        settings |= {"dataset": read_archive(args.data), "augment": experiment.models[args.model].augment,
                     "features": load_features(experiment.features, args.weights, denoiser.device)}  # fmt: skip
    tensors, numbers = STUDIES[spec["kind"]](denoiser, **settings)
    header = {"format": "edm-analysis/1", "experiment": experiment.name, "model": args.model, "analysis": args.analysis,
              **about, "spec": spec, "numbers": numbers, **origin()}  # fmt: skip
    save_tensors(args.output, tensors, header)
    say(f"{args.output}: {spec['kind']} of {args.model}")


def _model(args: Namespace) -> tuple["Denoiser", dict[str, Any]]:
    """The denoiser, and what the results say of it."""
    from edm import checkpoint
    from edm.distributed import pick_device

    threads(args.threads)
    denoiser = checkpoint.load(args.checkpoint, pick_device(args.device))
    about = checkpoint.describe(args.checkpoint)["about"]
    return denoiser, {"checkpoint": {"path": args.checkpoint, "sha256": sha256_file(args.checkpoint), **about}}


def _yardsticks(args: Namespace, experiment: Experiment, more: bool = True) -> list["Yardstick"]:
    """The experiment's extractors with their references; the first is the one that decides."""
    from edm.distributed import pick_device
    from edm.evaluation import open_yardstick

    threads(args.threads)
    names = [experiment.features, *experiment.more_features] if more else [experiment.features]
    weights = {name: (experiment.more_features | {experiment.features: experiment.feature_weights})[name]
               for name in names}  # fmt: skip
    if args.weights:
        weights[experiment.features] = args.weights
    if len(args.ref) < len(names):
        raise UserError(f"--ref: {len(names)} files are needed, one for each of {', '.join(names)}")
    return [
        open_yardstick(name, weights[name], reference, pick_device(args.device), experiment.metrics if not i else ())
        for i, (name, reference) in enumerate(zip(names, args.ref, strict=False))
    ]


def _found(path: str | None) -> dict[str, Any]:
    """The settings that a search found, and its hash; nothing without one."""
    if path is None:
        return {}
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != "edm-search/1":
        raise UserError(f"{path}: not the outcome of a search; delete it and run snakemake again")
    return {"settings": record["settings"], "sha256": sha256_file(path)}


def _settled(sampler: SamplerConfig, found: dict[str, Any]) -> SamplerConfig:
    """The sampler with what a search found, where the grid does not say otherwise."""
    return SamplerConfig.from_dict({**found["settings"], **sampler.changes()}) if found else sampler


def _run(journal: Journal, experiment: str, model: str, key: str, name: str, kind: str, details: dict[str, Any],
         checkpoint: dict[str, Any]) -> Run:  # fmt: skip
    """One run below that of the model's training."""
    tags = {"kind": kind, "model": model, **environment_tags(), "checkpoint_sha256": checkpoint["sha256"],
            "dataset_sha256": checkpoint.get("dataset_sha256")}  # fmt: skip
    return journal.run(f"{experiment}/{model}/{key}", name=name, experiment=experiment, params=details, tags=tags,
                       parent=f"{experiment}/{model}")  # fmt: skip

"""What the workflow asks of a model: evaluations, the choice of a snapshot, searches, sheets, analyses."""

import math
import shutil
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edm import params
from edm.commands.common import made_from, origin, processes, say, threads
from edm.commands.recording import numbers_of, run_below
from edm.config import SamplerConfig
from edm.errors import UserError
from edm.evaluation.finished import Finished
from edm.files.writing import atomic_write, digest, read_json, sha256_file, write_json
from edm.params import Evaluation, Experiment
from edm.report.results import FORMAT
from edm.tracking import Journal, SystemMetrics

if TYPE_CHECKING:
    import torch

    from edm.cluster.processes import World
    from edm.evaluation.evaluate import Yardstick
    from edm.evaluation.shards import Draw, Whole
    from edm.models.denoiser import Denoiser


def evaluate(args: Namespace) -> None:
    experiment = params.load(args.params).experiment(args.experiment)
    evaluation = experiment.evaluation(args.model, args.evaluation)
    spec = experiment.evaluation_spec(evaluation)
    params.check_spec(spec, args.expect, f"{args.experiment}/{args.model}/{args.evaluation}")
    if args.shard and not args.output.endswith(".safetensors"):
        raise UserError(f"{args.output}: a part of an evaluation goes into a .safetensors file, for --parts")
    found = _found(args.settings)
    with processes(args.device) as place:
        from edm.evaluation.shards import Draw, Whole, measure_part, merge_parts
        from edm.models import checkpoint
        from edm.sampling.drawing import block_of

        if args.parts and not place.is_first:
            return
        about = _about(args) | {"settings": {"path": args.settings, **found} if args.settings else None}
        draws = tuple(Draw(point.id, repeat, _settled(point.sampler, found), experiment.sampling.seeds(repeat))
                      for point, repeat in evaluation.draws)  # fmt: skip
        of = {"experiment": experiment.name, "model": args.model, "evaluation": evaluation.name,
              "spec": digest([spec, made_from("evaluate")]), "checkpoint": about["checkpoint"]["sha256"],
              "settings": found.get("sha256")}  # fmt: skip
        yardsticks = _yardsticks(args, experiment, place.device, sum(len(draw.seeds) for draw in draws))
        block = block_of(experiment.sampling.block, checkpoint.network_of(args.checkpoint))
        whole = Whole(draws, block, yardsticks, of)
        if args.parts:
            merged = dict(zip(draws, merge_parts(args.parts, whole), strict=True))
            _record(args, experiment, evaluation, whole, about, place, lambda draw, _: merged[draw])
            return
        evaluations = sum(len(draw.seeds) * draw.sampler.expected_nfe for draw in draws)
        denoiser = _prepared(checkpoint.load(args.checkpoint, place.device), experiment, evaluations)
        if args.shard:
            images = measure_part(args.output, denoiser, whole, *args.shard, place, origin())
            if place.is_first:
                say(f"{args.output}: part {args.shard[0] + 1} of {args.shard[1]}, {images} images")
            return
        from edm.evaluation.evaluate import evaluate

        _record(args, experiment, evaluation, whole, about, place, lambda draw, name: evaluate(
            denoiser, draw.sampler, draw.seeds, whole.block, yardsticks, name, place))  # fmt: skip


def _record(args: Namespace, experiment: Experiment, evaluation: Evaluation, whole: "Whole", about: dict[str, Any],
            place: "World", measured: Callable[["Draw", str], dict[str, Any]]) -> None:  # fmt: skip
    """Takes the results of every draw, each a run in the journal, and writes them; the first process does so alone."""
    yardsticks, rows, system = whole.yardsticks, [], SystemMetrics()
    journal = Journal(args.journal or f"{args.output}.journal.jsonl")
    finished = Finished(Path(journal.path).with_suffix(".finished.json"), whole.describe(), place)
    for draw in whole.draws:
        mark = f"@{draw.repeat}" if experiment.sampling.repeats > 1 else ""
        name = f"{args.model} {evaluation.grid}{'' if draw.point == 'only' else f' {draw.point}'}{mark}"
        take = lambda draw=draw, name=name: finished.take(f"{draw.point}@{draw.repeat}", lambda: measured(draw, name))
        if not place.is_first:
            take()
            continue
        details = {**draw.sampler.to_dict(), "model": args.model, "grid": evaluation.grid,
                   "features": experiment.features, "images": len(draw.seeds),
                   "first_seed": draw.seeds.start}  # fmt: skip
        run = run_below(journal, experiment.name, args.model, f"{evaluation.grid}/{draw.point}{mark}", name,
                        "evaluation", details, about["checkpoint"], grid=evaluation.grid)  # fmt: skip
        with run:
            results = take()
            numbers = numbers_of(results, yardsticks[0].extractor.label)
            run.metrics(numbers | system.read(), step=about["checkpoint"].get("images") or 0)
        say(f"{name}: {yardsticks[0].extractor.label} {results['distance']:.4g} (NFE {results['nfe']})")
        rows.append({"id": draw.point, "repeat": draw.repeat, "first_seed": draw.seeds.start,
                     "sampler": draw.sampler.to_dict(), "run": run.key, **results})  # fmt: skip
    if place.is_first:
        write_json(args.output, {
            "format": FORMAT, "experiment": experiment.name, "model": args.model, "grid": evaluation.grid,
            "evaluation": evaluation.name, **about, "metric": yardsticks[0].describe(),
            "more": [yardstick.describe() for yardstick in yardsticks[1:]], "points": rows, **origin(),
        })  # fmt: skip
        finished.remove()


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
    with processes(args.device) as place:
        _choose(args, experiment, spec, snapshots, place)


def _choose(
    args: Namespace, experiment: Experiment, spec: dict[str, Any], snapshots: list[str], place: "World"
) -> None:
    from edm.evaluation.evaluate import evaluate
    from edm.evaluation.search import Choice, SearchHistory
    from edm.evaluation.search import choose as choose_best
    from edm.models import checkpoint
    from edm.sampling.drawing import block_of

    folder = Path(args.snapshots)
    images_in_all = len(snapshots) * spec["images"] + spec["confirm"] * spec["confirm_images"]
    (yardstick,) = _yardsticks(args, experiment, place.device, images_in_all, more=False)
    sampler, first = SamplerConfig.from_dict(spec["sampler"]), spec["first_seed"]
    denoiser = checkpoint.load(folder / snapshots[0], place.device)
    _prepared(denoiser, experiment, images_in_all * sampler.expected_nfe)
    block = block_of(spec["block"], denoiser.network.config)

    def distance(name: str, images: int) -> float:
        # Into the same denoiser, whose network may be compiled.
        denoiser.load_state_dict(checkpoint.load(folder / name, place.device).state_dict())
        seeds = range(first, first + images)
        value = evaluate(denoiser, sampler, seeds, block, [yardstick], name, place)["distance"]
        if place.is_first:
            say(f"{name}: {yardstick.extractor.label} {value:.4g} of {images} images")
        return value

    # By their content: another training leaves snapshots of the same names. Only the first process keeps the history.
    hashes = {name: sha256_file(folder / name) for name in snapshots} if place.is_first else {}
    identity = {**spec, "sampler": sampler.to_dict(), "snapshots": hashes, "metric": yardstick.describe(),
                "made_from": made_from("choose")}  # fmt: skip
    history = SearchHistory(folder.with_name("choice.history.jsonl"), identity, place)

    def chosen() -> Choice:
        return choose_best(
            snapshots, lambda name: distance(name, spec["images"]), lambda name: distance(name, spec["confirm_images"]),
            spec["confirm"], history,
        )  # fmt: skip

    if not place.is_first:
        chosen()
        return
    seen = {name: checkpoint.describe(folder / name)["about"].get("images") or 0 for name in snapshots}
    details = {**sampler.to_dict(), **{key: value for key, value in spec.items() if key != "sampler"}}
    run = run_below(Journal(folder.with_name("choice.journal.jsonl")), experiment.name, args.model, "choice",
                    f"{args.model} choice", "choice", details | {"model": args.model}, {})  # fmt: skip
    with run:
        choice = chosen()
        for images, values in ((spec["images"], choice.cheap), (spec["confirm_images"], choice.full)):
            for name, value in values.items():
                if value is not None:
                    run.metrics(numbers_of({"distance": value}, yardstick.extractor.label, images), step=seen[name])
        run.tag("snapshot", choice.best)
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
    with processes(args.device) as place:
        _search(args, experiment, spec, place)


def _search(args: Namespace, experiment: Experiment, spec: dict[str, Any], place: "World") -> None:
    from edm.evaluation.evaluate import evaluate
    from edm.evaluation.search import Found, SearchHistory
    from edm.evaluation.search import search as search_best
    from edm.sampling.drawing import block_of

    denoiser, about = _model(args, place.device)
    base = SamplerConfig.from_dict(spec["sampler"])
    images_in_all = math.prod(len(values) for values in spec["over"].values()) * spec["images"]
    (yardstick,) = _yardsticks(args, experiment, place.device, images_in_all, more=False)
    _prepared(denoiser, experiment, images_in_all * base.expected_nfe)
    block = block_of(spec["block"], denoiser.network.config)
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
        return evaluate(denoiser, sampler(settings), seeds, block, [yardstick], name, place)["distance"]

    fixed = {key: value for key, value in spec.items() if key not in ("over", "method", "max_sweeps")}
    identity = {**fixed, "sampler": base.to_dict(), "checkpoint": about["checkpoint"]["sha256"],
                "metric": yardstick.describe(), "made_from": made_from("search")}  # fmt: skip
    history = SearchHistory(args.history or f"{args.output}.history.jsonl", identity, place)
    start = {key: min(values, key=lambda value, key=key: abs((value or 0) - (getattr(base, key) or 0)))
             for key, values in spec["over"].items()}  # fmt: skip

    def found() -> Found:
        return search_best(distance, spec["over"], start, spec["method"], history, spec["max_sweeps"], valid)

    if not place.is_first:
        found()
        return
    journal = Journal(args.journal or f"{args.output}.journal.jsonl")
    details = {"model": args.model, "method": spec["method"], "images": spec["images"], "over": spec["over"]}
    run = run_below(journal, experiment.name, args.model, f"search/{args.search}", f"{args.model} {args.search}",
                    "search", details, about["checkpoint"])  # fmt: skip
    with run:
        started = time.monotonic()
        best = found()
        numbers = {"distance": best.value, "evaluations": best.evaluations, "seconds": time.monotonic() - started}
        label = yardstick.extractor.label
        run.metrics(numbers_of(numbers, label, spec["images"]), step=about["checkpoint"].get("images") or 0)
    write_json(args.output, {
        "format": "edm-search/1", "experiment": experiment.name, "model": args.model, "search": args.search,
        "run": run.key, **about, "metric": yardstick.describe(), **spec, "start": start, **best.to_dict(), **origin(),
    })  # fmt: skip
    say(f"{args.output}: {label} {best.value:.4g} at {best.settings} ({best.evaluations} evaluations)")


def sheet(args: Namespace) -> None:
    """Images to look at: the first seeds of a model."""
    experiment = params.load(args.params).experiment(args.experiment)
    spec = experiment.sheet_spec(args.model, args.sheet)
    params.check_spec(spec, args.expect, f"{args.experiment}/{args.model}: {args.sheet}")
    from edm.cluster.processes import pick_device
    from edm.commands.images import write_images
    from edm.models import checkpoint
    from edm.sampling.sample_files import sample_points, write_samples

    threads(args.threads)
    denoiser = checkpoint.load(args.checkpoint, pick_device(args.device))
    points = {"only": SamplerConfig.from_dict(spec["sampler"])}
    _prepared(denoiser, experiment, spec["images"] * points["only"].expected_nfe)
    seeds = range(spec["first_seed"], spec["first_seed"] + spec["images"])
    drawn = sample_points(denoiser, points, seeds, block=min(64, spec["images"]))
    about = {"experiment": experiment.name, "model": args.model, "sheet": args.sheet}
    write_samples(args.output, args.checkpoint, points, drawn, {**about, **origin()})
    picture = str(Path(args.output).with_suffix(".png"))
    write_images(picture, drawn)
    details = {**points["only"].to_dict(), "model": args.model, "images": len(seeds), "first_seed": seeds.start}
    run = run_below(Journal(f"{args.output}.journal.jsonl"), experiment.name, args.model, f"sheet/{args.sheet}",
                    f"{args.model} {args.sheet}", "sheet", details, _about(args)["checkpoint"])  # fmt: skip
    with run:
        run.artifact(picture, "samples")


def analyse(args: Namespace) -> None:
    """A study behind a figure: truncation error, degradation, leakage."""
    experiment = params.load(args.params).experiment(args.experiment)
    spec = experiment.analysis_spec(args.model, args.analysis)
    params.check_spec(spec, args.expect, f"{args.experiment}/{args.model}: {args.analysis}")
    from edm.analysis.studies import STUDIES
    from edm.cluster.processes import pick_device
    from edm.models.checkpoint import save_tensors

    denoiser, about = _model(args, pick_device(args.device))

    settings = {key: value for key, value in spec.items() if key != "kind"}
    if spec["kind"] == "leakage":
        from edm.data.archive import read_archive
        from edm.metrics.extractors import load_features

        settings |= {"dataset": read_archive(args.data), "augment": experiment.models[args.model].augment,
                     "features": load_features(experiment.features, args.weights, denoiser.device)}  # fmt: skip
    tensors, numbers = STUDIES[spec["kind"]](denoiser, **settings)
    header = {"format": "edm-analysis/1", "experiment": experiment.name, "model": args.model, "analysis": args.analysis,
              **about, "spec": spec, "numbers": numbers, **origin()}  # fmt: skip
    save_tensors(args.output, tensors, header)
    say(f"{args.output}: {spec['kind']} of {args.model}")


def _prepared(denoiser: "Denoiser", experiment: Experiment, evaluations: float) -> "Denoiser":
    """The denoiser as the experiment samples from it."""
    from edm.models.compilation import prepare

    return prepare(denoiser, experiment.sampling.precision, experiment.sampling.compile, evaluations)


def _model(args: Namespace, device: "torch.device") -> tuple["Denoiser", dict[str, Any]]:
    """The denoiser, and what the results say of it."""
    from edm.models import checkpoint

    threads(args.threads)
    return checkpoint.load(args.checkpoint, device), _about(args)


def _about(args: Namespace) -> dict[str, Any]:
    """What the results say of the model."""
    from edm.models import checkpoint

    about = checkpoint.describe(args.checkpoint)["about"]
    return {"checkpoint": {"path": args.checkpoint, "sha256": sha256_file(args.checkpoint), **about}}


def _yardsticks(
    args: Namespace, experiment: Experiment, device: "torch.device", images: int, more: bool = True
) -> list["Yardstick"]:
    """The experiment's extractors, for so many images, with their references; the first is the one that decides."""
    from edm.evaluation.evaluate import open_yardstick

    threads(args.threads)
    names = [experiment.features, *experiment.more_features] if more else [experiment.features]
    weights = {name: (experiment.more_features | {experiment.features: experiment.feature_weights})[name]
               for name in names}  # fmt: skip
    if args.weights:
        weights[experiment.features] = args.weights
    if len(args.ref) < len(names):
        raise UserError(f"--ref: {len(names)} files are needed, one for each of {', '.join(names)}")
    return [
        open_yardstick(name, weights[name], reference, device, experiment.metrics if not i else (), images)
        for i, (name, reference) in enumerate(zip(names, args.ref, strict=False))
    ]


def _found(path: str | None) -> dict[str, Any]:
    """The settings that a search found, and its hash; nothing without one."""
    if path is None:
        return {}
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != "edm-search/1" or "settings" not in record:
        raise UserError(f"{path}: not the outcome of a search; delete it and run snakemake again")
    return {"settings": record["settings"], "sha256": sha256_file(path)}


def _settled(sampler: SamplerConfig, found: dict[str, Any]) -> SamplerConfig:
    """The sampler with what a search found, where the grid does not say otherwise."""
    return SamplerConfig.from_dict({**found["settings"], **sampler.changes()}) if found else sampler

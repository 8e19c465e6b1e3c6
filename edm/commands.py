"""What the commands do. Each takes the parsed arguments; heavy modules are imported where a command needs them."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edm import params
from edm.config import SamplerConfig, TrainingConfig
from edm.errors import UserError
from edm.files import read_json, write_json
from edm.tracking import Journal, environment_tags

if TYPE_CHECKING:
    from edm.samples import Drawn


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def prepare(args: Namespace) -> None:
    from edm.prepare import STATABLE, prepare

    if args.dataset:
        spec = params.load(args.params).dataset(args.dataset)
        params.check_spec(spec, args.expect, f"dataset {args.dataset}")
    else:
        inputs = args.input if args.input is None or len(args.input) > 1 else args.input[0]
        spec = {"source": args.source, "path": inputs, "checksum": args.checksum}
        spec |= {name: getattr(args, name) for name in STATABLE}
    if spec["source"] is None:
        raise UserError("prepare: name a source (such as digits) or a dataset of params.yaml (--dataset)")
    stated = {name: spec[name] for name in (*STATABLE, "checksum") if spec.get(name) is not None}
    result = prepare(spec["source"], args.output, spec["path"], workers=args.workers, **stated)
    say(
        f"{args.output}: {result['images']} images of {result['resolution']}x{result['resolution']}, "
        f"{result['classes']} classes, sha256 {result['sha256'][:12]}"
    )


def features(args: Namespace) -> None:
    from edm.data import read_archive
    from edm.metrics.classifier import train_classifier

    dataset = read_archive(args.data)
    if dataset.labels is None:
        raise UserError(f"{args.data}: has no labels to train a classifier with")
    _threads(args.threads)
    record = train_classifier(dataset.images, dataset.labels, args.output, seed=args.seed)
    say(f"{args.output}: held-out accuracy {record['held_out_accuracy']:.3f} on {record['held_out_images']} images")


def train(args: Namespace) -> None:
    experiment, model = args.experiment, args.model
    if args.config:
        config = TrainingConfig.from_dict(_mapping(read_json(args.config), args.config))
    elif experiment and model:
        spec = params.load(args.params).experiment(experiment).training_spec(model)
        params.check_spec(spec, args.expect, f"{experiment}/{model}")
        config = TrainingConfig.from_dict(spec)
    else:
        raise UserError("train: name what to train: --experiment and --model of params.yaml, or --config FILE.json")
    if args.dry_run:
        print(json.dumps(config.to_dict(), indent=1))
        return
    if not args.data or not args.out:
        raise UserError("train: --data and --out are needed")

    from edm.data import read_archive
    from edm.distributed import world
    from edm.training import check, train

    _threads(args.threads)
    dataset = read_archive(args.data)
    out = Path(args.out)
    about = {"experiment": experiment, "model": model, **_origin()}
    with world(args.device) as place:
        check(config, dataset, place)  # before anything is written
        run = None
        if place.is_first:
            run = Journal(out / "journal.jsonl").run(
                f"{experiment}/{model}" if experiment else str(out),
                name=model or out.name,
                experiment=experiment or "edm",
                params=config.to_dict(),
                tags={"kind": "training", "dataset_sha256": dataset.sha256, **environment_tags()},
            )
        try:
            train(config, dataset, out, place, run=run, state_every=args.state_every, compile=args.compile, about=about)
        except BaseException as error:
            if run is not None:
                run.finish("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        if run is not None:
            run.artifact(out / "levels.json")
            run.finish()


def sample(args: Namespace) -> None:
    points, seeds, block, about = _what_to_sample(args)
    from edm import checkpoint
    from edm.distributed import pick_device
    from edm.samples import sample_points, write_samples

    _threads(args.threads)
    denoiser = checkpoint.load(args.checkpoint, pick_device(args.device))
    drawn = sample_points(denoiser, points, seeds, block, args.class_label)
    if args.output.endswith(".safetensors"):
        write_samples(args.output, args.checkpoint, points, drawn, {**about, **_origin()})
    else:
        _write_images(args.output, drawn)
    say(f"{args.output}: {len(seeds)} images x {len(points)} sampler settings")


def _what_to_sample(args: Namespace) -> tuple[dict[str, SamplerConfig], range, int, dict[str, Any]]:
    """Points, seeds, block and what the file says of itself, from params.yaml or from the command line."""
    if not args.output.endswith((".safetensors", ".png", ".zip")):
        raise UserError(f"{args.output}: choose an ending: .safetensors, .png (one sheet) or .zip (a dataset archive)")
    if args.grid:
        if not (args.experiment and args.model):
            raise UserError("sample: --grid goes with --experiment and --model")
        spec = params.load(args.params).experiment(args.experiment).sampling_spec(args.model, args.grid)
        params.check_spec(spec, args.expect, f"{args.experiment}/{args.model}/{args.grid}")
        points = {name: SamplerConfig.from_dict(choices) for name, choices in spec["points"].items()}
        seeds = range(spec["first_seed"], spec["first_seed"] + spec["images"])
        about = {"experiment": args.experiment, "model": args.model, "grid": args.grid}
        return points, seeds, spec["block"], about
    names = SamplerConfig().to_dict()
    choices = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return {"only": SamplerConfig.from_dict(choices)}, args.seeds, args.block, {}


def _write_images(output: str, drawn: "Drawn") -> None:
    from edm.data import write_archive

    (pixels,) = drawn.images.values()
    if output.endswith(".zip"):
        write_archive(output, pixels.numpy(), None if drawn.labels is None else drawn.labels.tolist())
        return
    from PIL import Image

    from edm.files import atomic_write
    from edm.report.sheet import image_grid

    columns = max(1, round(len(pixels) ** 0.5))
    with atomic_write(output) as temporary:
        Image.fromarray(image_grid(pixels.numpy(), columns, scale=max(1, 64 // pixels.shape[-1]))).save(temporary)


def fid_ref(args: Namespace) -> None:
    from torch import from_numpy

    from edm.data import read_archive
    from edm.distributed import pick_device
    from edm.metrics.extractors import extract, load_features
    from edm.metrics.frechet import save_statistics
    from edm.samples import in_batches

    _threads(args.threads)
    dataset = read_archive(args.data)
    extractor = load_features(args.features, args.weights, pick_device(args.device))
    statistics = extract(extractor, in_batches(from_numpy(dataset.images)))
    extra = {
        "count": statistics.count,
        "features": extractor.name,
        "dataset_sha256": dataset.sha256,
        "weights_sha256": extractor.weights_sha256,
    }
    save_statistics(args.output, statistics.mean, statistics.covariance, extra)
    say(f"{args.output}: {extractor.name} statistics of {statistics.count} images")


def fid(args: Namespace) -> None:
    from edm.distributed import pick_device
    from edm.files import sha256_file
    from edm.metrics.extractors import extract, load_features
    from edm.metrics.frechet import frechet_distance, load_statistics
    from edm.samples import in_batches, read_samples

    _threads(args.threads)
    samples, reference = read_samples(args.samples), load_statistics(args.ref)
    device = pick_device(args.device)
    extractor = load_features(args.features, args.weights, device)
    for what, theirs, ours in (
        ("features", reference.features, extractor.name),
        ("weights", reference.weights_sha256, extractor.weights_sha256),
    ):
        if theirs not in (None, ours):
            raise UserError(
                f"{args.ref}: its {what} are {theirs[:20]}, not {ours[:20]}; measure both in the same features"
            )
    rows = []
    for name, point in samples.header["points"].items():
        seen = extract(extractor, in_batches(samples.images[name]))
        distance = frechet_distance(seen.mean, seen.covariance, reference.mu, reference.sigma, device)
        rows.append({"id": name, **point, "images": seen.count, "distance": distance})
        say(f"{name}: {extractor.label} {distance:.4g} (NFE {point['nfe']}, {seen.count} images)")
    header = samples.header
    record = {
        "format": "edm-distances/1",
        **{key: header.get(key) for key in ("experiment", "model", "grid", "checkpoint")},
        "metric": {
            "label": extractor.label,
            "features": extractor.name,
            "description": extractor.description,
            "weights_sha256": extractor.weights_sha256,
        },
        "reference": {"sha256": sha256_file(args.ref), "images": reference.count},
        "first_seed": int(samples.seeds[0]),
        "points": rows,
        **_origin(),
    }
    if args.output:
        if header.get("experiment"):
            _record_evaluations(Path(args.journal or f"{args.output}.journal.jsonl"), record)
        write_json(args.output, record)


def _record_evaluations(journal_path: Path, record: dict[str, Any]) -> None:
    """One run per sampler setting, below the run of the model's training."""
    journal = Journal(journal_path)
    model = f"{record['experiment']}/{record['model']}"
    tags = {"kind": "evaluation", "grid": record["grid"], "model": record["model"], **environment_tags(),
            "checkpoint_sha256": record["checkpoint"]["sha256"],
            "dataset_sha256": record["checkpoint"].get("dataset_sha256")}  # fmt: skip
    for point in record["points"]:
        run = journal.run(
            f"{model}/{record['grid']}/{point['id']}",
            name=f"{record['model']} {record['grid']} {point['id']}",
            experiment=record["experiment"],
            params={
                **point["sampler"],
                "nfe": point["nfe"],
                "images": point["images"],
                "model": record["model"],
                "features": record["metric"]["features"],
            },
            tags=tags,
            parent=model,
        )
        run.metrics({"distance": point["distance"], "nfe": point["nfe"]}, step=record["checkpoint"].get("images") or 0)
        run.finish()


def tables(args: Namespace) -> None:
    from edm.report.tables import write_tables

    experiment = _experiment_for_report(args)
    written = write_tables(experiment, Path(args.results))
    _record_report(args, experiment.name, "tables", written)
    for path in written:
        if path.suffix == ".md":
            print(path.read_text(encoding="utf-8"))


def figures(args: Namespace) -> None:
    from edm.report.figures import write_figures

    experiment = _experiment_for_report(args)
    written = write_figures(experiment, Path(args.results), Path(args.runs), Path(args.data))
    _record_report(args, experiment.name, "figures", written)
    say("\n".join(str(path) for path in written))


def _experiment_for_report(args: Namespace):
    experiment = params.load(args.params).experiment(args.experiment)
    params.check_spec(experiment.results_spec(), args.expect, args.experiment)
    return experiment


def _record_report(args: Namespace, experiment: str, what: str, written: list[Path]) -> None:
    journal = Journal(Path(args.runs) / experiment / f"{what}.journal.jsonl")
    with journal.run(f"{experiment}/{what}", name=what, experiment=experiment,
                     tags={"kind": what, **environment_tags()}) as run:  # fmt: skip
        for path in written:
            run.artifact(path, what)


def track_sync(args: Namespace) -> None:
    from edm.tracking.sync import sync

    uri = args.uri or params.load(args.params).tracking_uri
    journals = sorted(path for folder in args.folders for path in Path(folder).rglob("*journal.jsonl"))
    if not journals:
        raise UserError(f"{', '.join(args.folders)}: no journal there yet; run a training or an evaluation first")
    report = sync(journals, uri)
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


def check(args: Namespace) -> None:
    loaded = params.load(args.params)
    for name in loaded.run:
        experiment = loaded.experiment(name)
        points = sum(len(experiment.grids[grid].points) for _, grid in experiment.evaluations())
        print(f"{name}: {len(experiment.models)} trainings, {points} evaluations of {experiment.images} images")


def _mapping(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object of configuration fields")
    return value


def _origin() -> dict[str, Any]:
    """Which code made a result."""
    tags = environment_tags()
    return {"commit": tags.get("commit"), "dirty": tags.get("dirty")}


def _threads(count: int | None) -> None:
    if count:
        import torch

        torch.set_num_threads(count)

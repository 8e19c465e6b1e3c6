"""The measuring jobs of the workflow: evaluate a grid, choose a snapshot, search sampler settings.

Every process of a run calls the same function with its ``world``; rank 0 writes. ``made_from`` is a digest of the
code version and of the inputs from earlier steps: an interrupted job resumes only if it is unchanged. ``say`` is called
with one line per result.
"""

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edm.cluster.processes import ALONE, World
from edm.config import NULL, SamplerConfig
from edm.errors import UserError
from edm.evaluation.evaluate import Yardstick, evaluate, open_yardstick
from edm.evaluation.finished import Finished
from edm.evaluation.history import SearchHistory
from edm.evaluation.recording import numbers_of, run_below
from edm.evaluation.records import MEASURED, read_search, write_choice, write_results, write_search
from edm.evaluation.search import Choice, Found, choice_cost, choose, cost, search
from edm.evaluation.shards import Draw, Whole, measure_part, merge_parts
from edm.files.hashes import digest, sha256_file
from edm.files.writing import atomic_write, named
from edm.models import checkpoint as checkpoints
from edm.models.compilation import prepare
from edm.models.denoiser import Denoiser
from edm.networks.flops import flops
from edm.params import Evaluation, Experiment
from edm.params.experiment import average_mark
from edm.sampling.drawing import block_of
from edm.tracking import Journal, SystemMetrics, description, origin

Say = Callable[[str], None]
FAR = 1e9  # stands for infinity when settings are compared


def _quiet(text: str) -> None:
    """Discards the line."""


def evaluate_grid(
    experiment: Experiment, evaluation: Evaluation, checkpoint: str, output: str, references: Sequence[str], *,
    weights: str | None = None, settings: str | None = None, guides: Mapping[str, str] | None = None,
    shard: tuple[int, int] | None = None,
    parts: Sequence[str] = (), journal: str | None = None, known: dict[str, dict[str, Any]] | None = None,
    command: str = "", made_from: str = "", world: World = ALONE, say: Say = _quiet,
) -> None:  # fmt: skip
    """Generates the images of an evaluation, measures them and writes the results file, or does one shard of that work.

    references: statistics files, one per extractor of the experiment, then that of its held-out images. weights: of
    the first extractor. settings: the outcome of a search; it sets what the grid does not. guides: checkpoints by the
    names that samplers give them. shard: (index, count), to measure one part and write a shard file; parts: shard files
    to merge into the results. known: results to reuse without images, by "POINT@REPEAT". command: repeats the work, for
    the runs' descriptions.
    Raises UserError if the files do not match, or if the sampler gives non-finite images.
    """
    if shard and not output.endswith(".safetensors"):
        raise UserError(f"{output}: a part of an evaluation goes into a .safetensors file, for --parts")
    if parts and not world.is_first:
        return
    found = {"settings": read_search(settings)["settings"], "sha256": sha256_file(settings)} if settings else {}
    about = about_checkpoint(checkpoint) | {"settings": {"path": settings, **found} if settings else None}
    draws = tuple(Draw(point.id, repeat, _settled(point.sampler, found), experiment.sampling.seeds(repeat))
                  for point, repeat in evaluation.draws)  # fmt: skip
    of = {"experiment": experiment.name, "model": evaluation.model, "evaluation": evaluation.name,
          "spec": digest([experiment.evaluation_spec(evaluation), made_from]),
          "checkpoint": about["checkpoint"]["sha256"], "settings": found.get("sha256")}  # fmt: skip
    about |= about_guides(guides or {})
    of |= {"guides": {name: one["sha256"] for name, one in about["guides"].items()}} if guides else {}
    count = sum(len(draw.seeds) for draw in draws)
    yardsticks = open_yardsticks(experiment, references, weights, world, count)
    block = block_of(experiment.sampling.block, checkpoints.network_of(checkpoint))
    whole = Whole(draws, block, yardsticks, of)
    take: Callable[[Draw, str], dict[str, Any]]
    if parts:
        merged = dict(zip(draws, merge_parts(parts, whole), strict=True))
        take = lambda draw, name: merged[draw]
    else:
        denoiser = checkpoints.load(checkpoint, world.device)
        denoiser.guides = load_guides(guides or {}, world.device)
        evaluations = sum(len(draw.seeds) * draw.sampler.expected_nfe for draw in draws)
        prepare(denoiser, experiment.sampling.precision, experiment.sampling.compile, evaluations)
        if shard:
            count = measure_part(output, denoiser, whole, *shard, world, origin())
            if world.is_first:
                say(f"{output}: part {shard[0] + 1} of {shard[1]}, {count} images")
            return
        with_bars = partial(evaluate, bars=True)
        take = lambda draw, name: with_bars(denoiser, draw.sampler, draw.seeds, block, yardsticks, name, world)
    runs = Journal(journal or f"{output}.journal.jsonl")
    finished = Finished(Path(runs.path).with_suffix(".finished.json"), whole.describe(), world, known, MEASURED)
    if not world.is_first:
        for draw in draws:
            finished.take(draw.mark, partial(take, draw, ""))
        return
    rows, system, label = [], SystemMetrics(), yardsticks[0].extractor.label
    for draw in draws:
        place = f"{evaluation.grid}/{draw.point}{f'@{draw.repeat}' if experiment.sampling.repeats > 1 else ''}"
        short = place.replace("/only", "").replace("/", " ")
        name = f"{evaluation.model} {short}"
        details = {**draw.sampler.to_dict(), "model": evaluation.model, "grid": evaluation.grid,
                   "features": experiment.features, "images": len(draw.seeds),
                   "first_seed": draw.seeds.start}  # fmt: skip
        what = f"{label} of {len(draw.seeds):,} images of {evaluation.model}, sampled with the settings `{short}`."
        run = run_below(runs, experiment.name, evaluation.model, place, name, "evaluation", details,
                        about["checkpoint"], made_from, description(what, command), dataset=experiment.dataset,
                        grid=evaluation.grid)  # fmt: skip
        with run:
            results = finished.take(draw.mark, partial(take, draw, name))
            results |= _cost_of(draw.sampler, results["nfe"], checkpoint, guides or {})
            run.metrics(numbers_of(results, label) | system.read(), step=about["checkpoint"].get("images") or 0)
        say(f"{name}: {label} {results['distance']:.4g}{_error(results)} (NFE {results['nfe']})")
        rows.append({"id": draw.point, "repeat": draw.repeat, "first_seed": draw.seeds.start,
                     "sampler": draw.sampler.to_dict(), "run": run.key, **results})  # fmt: skip
    names = {"experiment": experiment.name, "model": evaluation.model, "grid": evaluation.grid,
             "evaluation": evaluation.name}  # fmt: skip
    write_results(output, names, about, [yardstick.describe() for yardstick in yardsticks], rows)
    finished.remove()


def choose_snapshot(
    experiment: Experiment, model: str, snapshots: str, output: str, references: Sequence[str], *,
    weights: str | None = None, averages: Sequence[str] = (), journal: str | None = None, history: str | None = None,
    command: str = "", made_from: str = "", world: World = ALONE, say: Say = _quiet,
) -> None:  # fmt: skip
    """Copies the best snapshot of a training run to ``output`` and writes ``choice.json`` beside it.

    snapshots: the folder of the run's snapshots. averages: of these snapshots, which compete with them. journal,
    history: files of this choice alone, by default in the folder of the training run.
    Raises UserError unless both are exactly those set in params.yaml.
    """
    spec, folder = experiment.choice_spec(model), Path(snapshots)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    wanted = [f"{images:012d}.safetensors" for images in experiment.models[model].snapshots]
    if names != wanted:
        raise UserError(f"{folder}: {len(names)} snapshots, {len(wanted)} expected; train again to have them all")
    files = {name: folder / name for name in names if experiment.choice_of(model).snapshots}
    stated = [f"ema-{average_mark(width)}.safetensors" for width in spec.get("ema", ())]
    if [Path(path).name for path in averages] != stated:
        raise UserError(f"--averages: the choice of {model} is among {', '.join(stated) or 'none'}; name these")
    files |= {Path(path).name: Path(path) for path in averages}
    cheap, full = choice_cost(len(files), spec["confirm"])
    images_in_all = cheap * spec["images"] + full * spec["confirm_images"]
    (yardstick,) = open_yardsticks(experiment, references, weights, world, images_in_all, more=False)
    sampler, first_seed = SamplerConfig.from_dict(spec["sampler"]), spec["first_seed"]
    denoiser = checkpoints.load(next(iter(files.values())), world.device)
    prepare(denoiser, experiment.sampling.precision, experiment.sampling.compile, images_in_all * sampler.expected_nfe)
    block = block_of(spec["block"], denoiser.network.config)

    def distance(name: str, images: int) -> float:
        # Reuse the denoiser: its network may be compiled.
        denoiser.load_state_dict(checkpoints.load(files[name], world.device).state_dict())
        seeds = range(first_seed, first_seed + images)
        value: float = evaluate(denoiser, sampler, seeds, block, [yardstick], name, world)["distance"]
        if world.is_first:
            say(f"{name}: {yardstick.extractor.label} {value:.4g} of {images} images")
        return value

    # Identify snapshots by hash: another training run gives them the same names. Only rank 0 keeps the history.
    hashes = {name: sha256_file(path) for name, path in files.items()} if world.is_first else {}
    identity = {**spec, "sampler": sampler.to_dict(), "snapshots": hashes, "metric": yardstick.describe(),
                "made_from": made_from}  # fmt: skip
    known = SearchHistory(history or folder.with_name("choice.history.jsonl"), identity, world)

    def chosen() -> Choice:
        return choose(
            list(files), lambda name: distance(name, spec["images"]),
            lambda name: distance(name, spec["confirm_images"]), spec["confirm"], known,
        )  # fmt: skip

    if not world.is_first:
        chosen()
        return
    told = {name: checkpoints.describe(path)["about"] for name, path in files.items()}
    seen = {name: about.get("images") or 0 for name, about in told.items()}
    first = next(iter(told.values()))
    dataset = {"dataset_sha256": first.get("dataset_sha256")}  # the weights of the run are those of no single snapshot
    details = {**sampler.to_dict(), **{key: value for key, value in spec.items() if key != "sampler"}, "model": model}
    run = run_below(Journal(journal or folder.with_name("choice.journal.jsonl")), experiment.name, model, "choice",
                    f"{model} choice", "choice", details, dataset, made_from,
                    description(f"Choice among {experiment.choice_of(model).among(len(names))} of {model}.", command),
                    dataset=experiment.dataset)  # fmt: skip
    with run:
        choice = chosen()
        for images, values in ((spec["images"], choice.cheap), (spec["confirm_images"], choice.full)):
            for name, value in values.items():
                if value is not None:
                    measured = numbers_of({"distance": value}, yardstick.extractor.label, images)
                    ema = told[name].get("ema")  # all after the last image: each has a name of its own
                    mark = f"_ema_{named(ema['width'])}" if name in stated and ema else ""
                    run.metrics({f"{key}{mark}": number for key, number in measured.items()}, step=seen[name])
        run.tag("snapshot", choice.best)
    with atomic_write(output) as temporary:
        shutil.copyfile(files[choice.best], temporary)
    write_choice(Path(output).with_name("choice.json"), yardstick.describe(), {**choice.to_dict(), **spec})
    say(f"{output}: {choice.best}, {yardstick.extractor.label} {choice.value:.4g}")


def search_settings(
    experiment: Experiment, model: str, name: str, checkpoint: str, output: str, references: Sequence[str], *,
    weights: str | None = None, guides: Mapping[str, str] | None = None, journal: str | None = None,
    history: str | None = None, command: str = "", made_from: str = "", world: World = ALONE, say: Say = _quiet,
) -> None:  # fmt: skip
    """Searches for the sampler settings with the lowest distance (Table 5); writes them and all values to a file."""
    spec = experiment.search_spec(model, name)
    about, denoiser = (
        about_checkpoint(checkpoint) | about_guides(guides or {}),
        checkpoints.load(checkpoint, world.device),
    )
    denoiser.guides = load_guides(guides or {}, world.device)
    base = SamplerConfig.from_dict(spec["sampler"])
    images_in_all = cost(spec["over"], spec["method"], spec["max_sweeps"])[0] * spec["images"]
    (yardstick,) = open_yardsticks(experiment, references, weights, world, images_in_all, more=False)
    prepare(denoiser, experiment.sampling.precision, experiment.sampling.compile, images_in_all * base.expected_nfe)
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
        what = ",".join(f"{key}={value}" for key, value in settings.items())
        value: float = evaluate(denoiser, sampler(settings), seeds, block, [yardstick], what, world)["distance"]
        return value

    fixed = {key: value for key, value in spec.items() if key not in ("over", "method", "max_sweeps")}
    identity = {**fixed, "sampler": base.to_dict(), "checkpoint": about["checkpoint"]["sha256"],
                "metric": yardstick.describe(), "made_from": made_from}  # fmt: skip
    identity |= {"guides": {name: one["sha256"] for name, one in about["guides"].items()}} if guides else {}
    measured = SearchHistory(history or f"{output}.history.jsonl", identity, world)

    start = {key: _nearest(key, values, getattr(base, key)) for key, values in spec["over"].items()}

    def found() -> Found:
        return search(distance, spec["over"], start, spec["method"], measured, spec["max_sweeps"], valid)

    if not world.is_first:
        found()
        return
    details = {"model": model, "method": spec["method"], "images": spec["images"], "over": spec["over"]}
    label = yardstick.extractor.label
    run = run_below(Journal(journal or f"{output}.journal.jsonl"), experiment.name, model, f"search/{name}",
                    f"{model} {name}", "search", details, about["checkpoint"], made_from,
                    description(f"Search for the settings of {model} with the lowest {label}.", command),
                    dataset=experiment.dataset)  # fmt: skip
    with run:
        started = time.monotonic()
        best = found()
        numbers = {"distance": best.value, "evaluations": best.evaluations, "seconds": time.monotonic() - started}
        run.metrics(numbers_of(numbers, label, spec["images"]), step=about["checkpoint"].get("images") or 0)
    write_search(output, {"experiment": experiment.name, "model": model, "search": name, "run": run.key, **about,
                          "metric": yardstick.describe(), **spec, "start": start, **best.to_dict()})  # fmt: skip
    say(f"{output}: {label} {best.value:.4g} at {best.settings} ({best.evaluations} evaluations)")


def _error(results: dict[str, Any]) -> str:
    """The standard error of a distance, for the line of its result; empty without one."""
    s = (results.get("bar") or {}).get("s")
    return "" if s is None else f" ± {s:.2g}"


def about_checkpoint(path: str) -> dict[str, Any]:
    """The description of a model in results files: path, hash, and the ``about`` of its checkpoint."""
    return {"checkpoint": {"path": path, "sha256": sha256_file(path), **checkpoints.describe(path)["about"]}}


def about_guides(guides: Mapping[str, str]) -> dict[str, Any]:
    """The description of guides in results files: path and hash by name; nothing without any. Raises UserError."""
    for name, path in guides.items():
        if not Path(path).exists():
            raise UserError(
                f"{path}: not there; guide {name!r} is a snapshot or a model of params.yaml: train it again"
            )
    found = {name: {"path": path, "sha256": sha256_file(path)} for name, path in guides.items()}
    return {"guides": found} if found else {}


def load_guides(guides: Mapping[str, str], device: torch.device) -> dict[str, Denoiser]:
    """The networks of guides, by name."""
    return {name: checkpoints.load(path, device) for name, path in guides.items()}


def _cost_of(sampler: SamplerConfig, nfe: int, checkpoint: str, guides: Mapping[str, str]) -> dict[str, float]:
    """ "gflops" per image of a guided sampler, of both networks; nothing where no guide takes part.

    Nor for rk45 with an interval, whose counts of the two networks are not told apart.
    """
    if not sampler.guides:
        return {}
    everywhere = sampler.guidance_min == 0 and sampler.most_guided == math.inf
    own = nfe / 2 if sampler.own_nfe is None and everywhere else sampler.own_nfe
    if own is None:
        return {}
    net = checkpoints.network_of(checkpoint)
    guide = net if sampler.guide == NULL else checkpoints.network_of(guides[str(sampler.guide)])
    return {"gflops": (own * flops(net) + (nfe - own) * flops(guide)) / 1e9}


def open_yardsticks(
    experiment: Experiment, references: Sequence[str], weights: str | None, world: World, count: int, more: bool = True
) -> list[Yardstick]:
    """The experiment's extractors, for that many images, with their references; the first gives the main distance.

    Raises UserError if there are fewer references than extractors.
    """
    known = experiment.more_features | {experiment.features: weights or experiment.feature_weights}
    names = [experiment.features, *experiment.more_features] if more else [experiment.features]
    needed = [*names, *([f"the images of {experiment.test}"] if more and experiment.test else [])]
    if len(references) < len(needed):
        raise UserError(f"--ref: {len(needed)} files are needed, one for each of {', '.join(needed)}")
    test = references[len(names)] if len(needed) > len(names) else None
    metrics = experiment.metrics if more else ()
    first = open_yardstick(names[0], known[names[0]], references[0], world.device, metrics, count, test,
                           experiment.metric_settings)  # fmt: skip
    others = zip(names[1:], references[1:], strict=False)
    return [first, *(open_yardstick(name, known[name], path, world.device, (), count) for name, path in others)]


def _nearest(key: str, values: Sequence[float | None], to: float | None) -> float | None:
    """The listed value nearest to the one that a search starts from.

    None is infinity for S_max and guidance_max, and else 0.
    """
    absent = FAR if key in ("S_max", "guidance_max") else 0.0

    def size(value: float | None) -> float:
        return absent if value is None else min(value, FAR)

    return min(values, key=lambda value: abs(size(value) - size(to)))


def _settled(sampler: SamplerConfig, found: dict[str, Any]) -> SamplerConfig:
    """The sampler with the settings that a search found; settings of the grid take precedence."""
    return SamplerConfig.from_dict({**found["settings"], **sampler.changes()}) if found else sampler

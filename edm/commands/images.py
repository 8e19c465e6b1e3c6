"""Commands that sample images from a model and evaluate them."""

import os
from argparse import Namespace
from itertools import chain
from typing import TYPE_CHECKING, Any

from edm.commands.common import (
    Commands,
    compile_option,
    count,
    counted,
    features_options,
    machine,
    multistep_options,
    processes,
    say,
    seed_range,
    shard_option,
    threads,
    whole,
)
from edm.config import (
    ADAPTIVE,
    AUTO,
    DISCRETIZATIONS,
    MEMBERS,
    MULTISTEP,
    NULL,
    ORIGINAL,
    PRECISIONS,
    SCALINGS,
    SCHEDULES,
    SHIPPED,
    SOLVERS,
    SamplerConfig,
)
from edm.errors import UserError
from edm.files.hashes import sha256_file
from edm.files.writing import write_json
from edm.metrics import INCEPTION, METRICS, metric_error
from edm.metrics.jackknife import FEWEST_PER_FEATURE
from edm.tracking import origin
from edm.tracking.counting import Counting, counted_batches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from edm.sampling.sample_files import Drawn, SampleSet


def add(command: Commands) -> None:
    sub = command(
        "sample", sample, "sample images from a checkpoint",
        "Sample images from a checkpoint, one's own or an imported one. Image i depends only on seed i. Without "
        "options: Algorithm 1, 18 steps.",
    )  # fmt: skip
    sub.add_argument("checkpoint", help="model.safetensors of a training run or of `edm import`")
    sub.add_argument("output", help="*.safetensors (for `edm fid`), *.png (one sheet) or *.zip (dataset archive)")
    sub.add_argument("--seeds", type=seed_range, default=range(64), metavar="A-B", help="seeds, both included (0-63)")
    sub.add_argument(
        "--block", type=lambda text: text if text == AUTO else count(text), default=64, metavar="N",
        help="images per batch; auto: as many as keep a large GPU busy, on a CPU at most 64 (default 64)",
    )  # fmt: skip
    sub.add_argument("--precision", choices=PRECISIONS, default="fp32", help="precision of the network (default fp32)")
    compile_option(sub, AUTO, AUTO)
    sub.add_argument("--class", dest="class_label", type=whole, help="one class for all images (default: by seed)")
    sub.add_argument("--steps", "--num_steps", dest="num_steps", type=whole, metavar="N", help="steps (default 18)")
    names = (*SOLVERS, MULTISTEP, *MEMBERS, *SHIPPED, ADAPTIVE, *ORIGINAL)
    sub.add_argument("--solver", help=f"{', '.join(names)} (default heun)")
    multistep_options(sub)
    sub.add_argument("--final", help="end at zero, after a last Euler step, or at sigma_min (default zero)")
    sub.add_argument("--sigmas", nargs="+", type=float, metavar="SIGMA", help="the noise levels, in place of --steps")
    sub.add_argument("--discretization", help=f"time steps: {', '.join(DISCRETIZATIONS)} (default edm)")
    sub.add_argument("--schedule", help=f"sigma(t): {', '.join(SCHEDULES)} (default linear)")
    sub.add_argument("--scaling", help=f"s(t): {', '.join(SCALINGS)} (default none)")
    sub.add_argument("--guide", metavar="FILE", help="guide by this checkpoint, or null: by this one without labels")
    shard_option(sub, "sample only part K of N of the seeds, for `edm merge`")
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
        ("guidance", "weight w of the guided denoiser D_w = D_g + w (D - D_g) (default 1: none)"),
        ("guidance_min", "guide noise levels above this one (default 0)"),
        ("guidance_max", "guide noise levels up to this one (default infinity)"),
    ):
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))  # as in params.yaml, and as here
        sub.add_argument(*spellings, dest=name, type=float, metavar="X", help=text)
    sub.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="setting of a plugin, such as solver.eta=0.5"
    )
    machine(sub)

    sub = command(
        "merge", merge, "merge sample files by their seeds",
        "Merge sample files of one checkpoint and equal settings by their seeds, such as the parts that "
        "`edm sample --shard` wrote.",
    )  # fmt: skip
    sub.add_argument("output", help="*.safetensors to write")
    sub.add_argument("parts", nargs="+", metavar="PART", help="*.safetensors of `edm sample`, in any order")

    sub = command(
        "fid", fid, "Fréchet distance of sampled images from a dataset",
        "Fréchet distance of sampled images from reference statistics: FID in Inception-v3 features, else FD.",
    )  # fmt: skip
    sub.add_argument("samples", help="*.safetensors of `edm sample`; or an archive, or a folder or zip of pictures")
    sub.add_argument("--ref", required=True, help="*.npz of `edm fid-ref`, or published statistics")
    sub.add_argument("--output", help="JSON file to write")
    sub.add_argument("--metrics", nargs="+", help=f"further metrics: {', '.join(METRICS)}")
    features_options(sub, None, f"those of the statistics; of published ones {INCEPTION}")


def sample(args: Namespace) -> None:
    if not args.output.endswith((".safetensors", ".png", ".zip")):
        raise UserError(f"{args.output}: choose an ending: .safetensors, .png (one sheet) or .zip (a dataset archive)")
    names = SamplerConfig().to_dict()
    choices = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    points = {"only": SamplerConfig.from_dict(choices | dict(map(_setting, args.set)))}
    if args.shard and not args.output.endswith(".safetensors"):
        raise UserError(f"{args.output}: a part of the seeds goes into a .safetensors file, for `edm merge`")
    with processes(args.device) as place:
        from edm.models import checkpoint
        from edm.models.compilation import prepare
        from edm.sampling.drawing import TOGETHER, block_of, part_of
        from edm.sampling.sample_files import sample_points, write_samples

        threads(args.threads)
        denoiser = checkpoint.load(args.checkpoint, place.device)
        guide = None if args.guide in (None, NULL) else args.guide
        if guide:
            denoiser.guides[guide] = checkpoint.load(guide, place.device)
        prepare(denoiser, args.precision, args.compile, len(args.seeds) * points["only"].expected_nfe)
        together = points["only"].solver == TOGETHER
        block = block_of(args.block, denoiser.network.config, place.device.type == "cpu" and not together)
        seeds = args.seeds
        about = {"block": block, "precision": args.precision, "class": args.class_label, **origin()}
        about |= {"guide_sha256": sha256_file(guide)} if guide else {}
        if args.shard:
            seeds = part_of(seeds, block, *args.shard)
            about |= {"part_of": [args.seeds.start, args.seeds.stop]}
        own = len(part_of(seeds, block, place.rank, place.size))
        with Counting(args.output, own, place.is_first) as counting:
            drawn = sample_points(denoiser, points, seeds, block, args.class_label, place, counting.advance)
        if not place.is_first:
            return
        if args.output.endswith(".safetensors"):
            write_samples(args.output, args.checkpoint, points, drawn, about)
        else:
            write_images(args.output, drawn)
        say(f"{args.output}: {counted(len(seeds), 'image')}")


def _setting(text: str) -> tuple[str, Any]:
    """Text "solver.eta=0.5" as ("solver.eta", 0.5); a value is written as in params.yaml."""
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise UserError(f"--set {text}: expected KEY=VALUE, such as solver.eta=0.5")
    import yaml

    from edm.params.strict_yaml import read_yaml

    try:
        return key, read_yaml(value)
    except yaml.YAMLError:
        raise UserError(f"--set {text}: not a value as params.yaml has them") from None


def merge(args: Namespace) -> None:
    from edm.sampling.sample_files import merge_samples

    say(f"{args.output}: {counted(merge_samples(args.output, args.parts), 'image')}")


def write_images(output: str, drawn: "Drawn") -> None:
    """Writes sampled images as one sheet (*.png) or as a dataset archive (*.zip)."""
    from edm.data.archive import write_archive

    (pixels,) = drawn.images.values()
    if output.endswith(".zip"):
        write_archive(output, pixels.numpy(), None if drawn.labels is None else drawn.labels.tolist())
        return
    from PIL import Image

    from edm.files.writing import atomic_write
    from edm.report.sheet import image_grid

    columns = max(1, round(len(pixels) ** 0.5))
    with atomic_write(output) as temporary:
        Image.fromarray(image_grid(pixels.numpy(), columns, scale=max(1, 64 // pixels.shape[-1]))).save(temporary)


def fid(args: Namespace) -> None:
    from edm.cluster.processes import pick_device
    from edm.evaluation.evaluate import open_yardstick
    from edm.sampling.sample_files import read_samples

    threads(args.threads)
    pictures = os.path.isdir(args.samples) or args.samples.lower().endswith(".zip")
    samples = None if pictures else read_samples(args.samples)
    sets = list(_measured(args.samples, samples))  # told before weights are downloaded: what cannot be read
    yardstick = open_yardstick(
        args.features, args.weights, args.ref, pick_device(args.device), tuple(args.metrics or ())
    )
    rows = []
    for name, point, total, batches in sets:
        measuring = yardstick.begin(len(samples.seeds) if samples else 0)
        for batch in counted_batches(batches, args.samples if name == "only" else name, total):
            measuring.append(batch)
        results = measuring.results()
        rows.append({"id": name, **point, "images": measuring.count, **results})
        nfe = f"NFE {point['nfe']}, " if samples else ""
        numbers = "".join(
            f"; {key} {value:.4g}{_error(metric_error(key, results, measuring.count))}"
            for key, value in results.items() if key != "distance" and isinstance(value, int | float)
        )  # fmt: skip
        bar = results.get("bar", {})
        why = "" if "s" in bar else f"; no error bar: {_no_bar(bar)}"
        say(f"{args.samples if name == 'only' else name}: {yardstick.extractor.label} {results['distance']:.4g}"
            f"{_error(bar.get('s'))} ({nfe}{counted(measuring.count, 'image')}{why}){numbers}")  # fmt: skip
    if args.output:
        of = {"pictures": args.samples}
        if samples:
            of = {"checkpoint": samples.header["checkpoint"], "first_seed": int(samples.seeds[0])}
        write_json(args.output, {**of, "metric": yardstick.describe(), "points": rows, **origin()})


def _error(s: float | None) -> str:
    return "" if s is None else f" ± {s:.2g}"


def _no_bar(bar: dict[str, Any]) -> str:
    return (
        f"fewer than {FEWEST_PER_FEATURE} images per feature" if bar else "the order of pictures is not that of seeds"
    )


def _measured(path: str, samples: "SampleSet | None") -> "Iterator[tuple[str, dict[str, Any], int, Iterable[Tensor]]]":
    """The images to measure: per point of a sample file, its name, header, number of images and batches; else pictures.

    Raises UserError if the first pictures cannot be read.
    """
    from torch import from_numpy

    from edm.data.archive import count_images, images_in_chunks
    from edm.sampling.sample_files import in_batches

    if samples is None:
        chunks = images_in_chunks(path, 256)
        first = next(chunks)
        yield "only", {}, count_images(path), map(from_numpy, chain([first], chunks))
        return
    for name, point in samples.header["points"].items():
        yield name, point, len(samples.seeds), in_batches(samples.images[name])

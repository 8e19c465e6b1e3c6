"""The command that computes the likelihood of a dataset under a model."""

from argparse import Namespace

from edm.commands.common import Commands, count, machine, processes, say, threads
from edm.config import PRECISIONS, SOLVERS
from edm.files.hashes import sha256_file
from edm.files.writing import write_json
from edm.tracking import origin

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
    sub.add_argument("--images", type=count, default=1000, metavar="N", help="the first N images (default 1000)")
    sub.add_argument("--steps", type=count, default=100, metavar="N", help="steps (default 100)")
    sub.add_argument("--solver", choices=SOLVERS, default="heun", help="of order 2 or 1 (default heun)")
    sub.add_argument("--trace", choices=TRACES, default="hutchinson", help="exact: a backward pass per dimension")
    sub.add_argument("--probes", type=count, default=1, metavar="K", help="vectors per image (default 1)")
    sub.add_argument("--sigma-min", type=float, metavar="X", help="smallest noise level (default 0.002)")
    sub.add_argument("--sigma-max", type=float, metavar="X", help="largest noise level (default 80)")
    sub.add_argument("--block", type=count, default=64, metavar="N", help="images per batch (default 64)")
    sub.add_argument("--precision", choices=PRECISIONS, default="fp32", help="precision of the network (default fp32)")
    machine(sub)


def likelihood(args: Namespace) -> None:
    with processes(args.device) as place:
        from edm.analysis.likelihood import FORMAT, bits_of
        from edm.data.archive import read_archive
        from edm.models import checkpoint

        threads(args.threads)
        denoiser = checkpoint.load(args.checkpoint, place.device)
        denoiser.precision = args.precision
        dataset = read_archive(args.data)
        settings = {"num_steps": args.steps, "solver": args.solver, "trace": args.trace, "probes": args.probes,
                    "sigma_min": args.sigma_min, "sigma_max": args.sigma_max}  # fmt: skip
        found = bits_of(denoiser, dataset, args.images, args.block, place, **settings)
        if not place.is_first:
            return
        about = {"sha256": sha256_file(args.checkpoint), **checkpoint.describe(args.checkpoint)["about"]}
        settings |= {"block": args.block, "precision": args.precision}
        record = {"format": FORMAT, "checkpoint": about, "dataset_sha256": dataset.sha256, **settings}
        write_json(args.output, {**record, **found, **origin()})
        spread = "" if found["spread"] is None else f"; {found['spread']:.2g} of an image over its probes"
        say(f"{args.output}: {found['bits_per_dimension']:.4f} ± {found['s']:.2g} bits per dimension "
            f"({found['images']} images{spread})")  # fmt: skip

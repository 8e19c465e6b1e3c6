"""Images per second of training, compared with a straightforward implementation in the same run.

    python bench/training.py [--experiment cifar10-cond --model vp-F] [--channels N] [--batch N] [--device cuda]

Runs edm's training step (input preparation with augmentation, loss, gradients, Adam, moving average) on synthetic
images. The variants do one step each by turns. Compilation is part of the first step, whose time is reported
separately. Utilisation is the FLOP rate of the network's forward and backward passes, counted with plain convolutions,
relative to that of a large matrix product on the same device in the same precision. "bf16, recompute" computes each
block again for its gradient (`training: {recompute: true}`; on a CPU, bench/recompute.py). Every variant runs in its
own process; peak memory includes the first step.
With --each-core, one variant runs one process per core, and its images/s are their total.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from common import ROOT, arguments, by_turns, report, summary
from workers import Worker, serve

#: Name → precision and choice of compilation; "reference" is bench/reference.py.
ON_GPU = {"reference": ("fp32", "no"), "fp32": ("fp32", "no"), "tf32": ("tf32", "no"), "tf32 compiled": ("tf32", "yes"),
          "bf16": ("bf16", "no"), "bf16 compiled": ("bf16", "yes"), "fp16 compiled": ("fp16", "yes"),
          "bf16 graphs": ("bf16", "graphs"), "bf16, recompute": ("bf16", "no")}  # fmt: skip
ON_CPU = {"reference": ("fp32", "no"), "fp32": ("fp32", "no")}
COMPILED_ON_CPU = {"fp32 compiled": ("fp32", "yes")}
EACH_CORE = "fp32, one per core"  # one thread each, as the workflow runs small training runs and evaluations


def main() -> int:
    args = options(__doc__)
    from edm.networks.flops import training_flops

    config, place = setting(args)
    variants = chosen(args, place.device.type)
    if args.only:
        precision, compile = variants[args.only]
        return serve(*begin(args.only, replace(config, precision=precision), place, compile), place.device)
    workers = {name: Worker(name, copies_of(name)) for name in variants}
    seconds = by_turns(workers, args.rounds)
    rows = []
    for name, (precision, _) in variants.items():
        found, reference = summary(seconds[name]), summary(seconds["reference"])
        copies = copies_of(name) or 1
        images = config.batch_size * copies
        rate = images / found["median"]
        rows.append({
            "variant": name,
            "images/s": rate,
            "middle half": f"{images / found['high']:.4g} to {images / found['low']:.4g}",
            "times the reference": copies * reference["median"] / found["median"],
            "utilisation": f"{rate * training_flops(config) / ceiling(place.device, precision):.0%}",
            "first step (s)": workers[name].first,
            "peak memory (MiB)": workers[name].end(),
        })  # fmt: skip
    settings = {"experiment": args.experiment, "model": args.model, "model_channels": config.model_channels,
                "batch": config.batch_size, "microbatch": config.microbatch, "rounds": args.rounds,
                "threads": threads()}  # fmt: skip
    report(f"training-{args.name}", "Training: images per second", rows, settings, args.output, str(place.device))
    return 0


def options(about: str) -> argparse.Namespace:
    """The arguments of the training and sampling benchmarks."""
    parser = arguments(about, "cifar10", "cifar10-cond")
    parser.add_argument("--channels", type=int, help="overrides model_channels of the configuration")
    parser.add_argument("--batch", type=int, help="images per step (default: 512 on a GPU, 16 on a CPU)")
    parser.add_argument("--microbatch", type=int, help="images per pass (default: 128 on a GPU)")
    parser.add_argument("--rounds", type=int, default=10, help="steps of every variant (default 10)")
    parser.add_argument("--variants", nargs="+", help="only these")
    parser.add_argument("--each-core", action="store_true", help="on a CPU, also run one process per core at once")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser.parse_args()


def setting(args: argparse.Namespace):
    """The configuration, with batch sizes for the device, and the device."""
    from reference import place_of

    from edm import params

    place = place_of(args.device)
    gpu = place.device.type == "cuda"
    config = params.load(ROOT / "params.yaml").experiment(args.experiment).models[args.model]
    batch = args.batch or (512 if gpu else 16)
    micro = args.microbatch or (min(128, batch) if gpu else batch)
    config = replace(config, batch_size=batch, microbatch=micro, model_channels=args.channels or config.model_channels)
    return config, place


def chosen(args: argparse.Namespace, device: str) -> dict[str, tuple[str, str]]:
    """The variants to run, always including the reference."""
    more = COMPILED_ON_CPU if args.compiled or args.variants else {}
    if args.each_core:
        more = more | {EACH_CORE: ON_CPU["fp32"]}
    variants = ON_GPU if device == "cuda" else ON_CPU | more
    wanted = [args.only] if args.only else ["reference", *(args.variants or variants)]
    return {name: variant for name, variant in (ON_GPU | variants).items() if name in wanted}


def copies_of(name: str) -> int:
    """Number of single-threaded processes of a variant; 0 for one process with all threads."""
    return threads() if name == EACH_CORE else 0


def begin(name: str, config, place, compile: str) -> tuple[float, Callable[[], float]]:
    """The seconds of a variant's first step, and a function that runs another step and returns its seconds."""
    import torch
    from reference import Training, made_up

    from edm.cluster.memory import keep_freed
    from edm.models.compilation import options as compile_options
    from edm.networks.precision import float32_as
    from edm.training.step import TrainingStep

    dataset = made_up(config, 4 * config.batch_size)
    if name == "reference":
        step = Training(config, dataset, place.device)
    else:
        compiled = compile_options(compile, config.network(), float("inf"), place.device)
        step = TrainingStep(config, dataset, place, compiled, recompute=name.endswith(", recompute"))
    sums, images = torch.zeros(4, dtype=torch.float64, device=place.device), 0

    def run() -> float:
        nonlocal images
        start = time.perf_counter()
        with float32_as(config.precision):
            step(images, sums)
        wait(place.device)
        images += config.batch_size
        return time.perf_counter() - start

    if name != "reference":
        keep_freed()
    return run(), run


def wait(device) -> None:
    """Waits for the device to finish all queued work."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def threads() -> int:
    import torch

    return torch.get_num_threads()


_ceilings: dict[str, float] = {}


def ceiling(device, precision: str) -> float:
    """FLOP/s of a large matrix product: an upper bound of the device's practical rate."""
    import torch

    from edm.networks.precision import DTYPES, float32_as

    if precision not in _ceilings:
        size = 8192 if device.type == "cuda" else 2048
        a, b = (torch.randn(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
        best = float("inf")
        with float32_as(precision):
            for _ in range(8):
                start = time.perf_counter()
                a @ b
                wait(device)
                best = min(best, time.perf_counter() - start)
        _ceilings[precision] = 2 * size**3 / best
    return _ceilings[precision]


if __name__ == "__main__":
    sys.exit(main())

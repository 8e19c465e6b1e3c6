"""Training and sampling against a checkout of the authors' code, by turns in one process.

    git clone https://github.com/NVlabs/edm PATH
    python bench/peer.py PATH [--sizes digits cifar10 imagenet] [--threads 2 1] [--seconds 20] [--device cuda]

The checkout stays outside this project (its licence is CC BY-NC-SA); this script calls its public classes. Both sides
get the same weights, labels and images. Before a size is timed, the numbers of parameters must be equal and the
denoised images must agree. A training step is network, loss, augmentation, Adam and moving average; reading the dataset
is left out. Sampling is Algorithm 1. Ratios are medians over rounds, in each of which both sides run once.
"per core" compares their single process with one process of ours for each thread, with one thread each.
"""

import argparse
import copy
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import ROOT, report
from reference import finish_step, made_up, place_of
from workers import Worker, serve

from edm import params
from edm.cluster.memory import keep_freed
from edm.config import SamplerConfig, TrainingConfig
from edm.design import draws
from edm.foreign.published import constructor_call, differences, to_published
from edm.models.compilation import options as compile_options
from edm.models.compilation import prepare
from edm.networks.precision import float32_as
from edm.sampling.sampler import solve
from edm.training.step import TrainingStep, ema_decay_at, learning_rate_at


@dataclass(frozen=True)
class Size:
    """A model of params.yaml, and the work of one turn: images per step, images per draw, steps of Algorithm 1."""

    experiment: str
    model: str
    batch: int
    draws: int
    steps: int


ON_CPU = {"digits": Size("digits", "vp-F", 128, 128, 18), "cifar10": Size("cifar10-cond", "vp-F", 8, 8, 2),
          "imagenet": Size("imagenet", "adm-E", 1, 1, 2)}  # fmt: skip
ON_GPU = {"digits": Size("digits", "vp-F", 128, 1024, 18), "cifar10": Size("cifar10-cond", "vp-F", 128, 256, 18),
          "imagenet": Size("imagenet", "adm-E", 32, 64, 18)}  # fmt: skip
LEAST_ROUNDS, MOST_ROUNDS = 3, 200
TOLERANCE = 1e-4  # of denoised images: both sides sum in other orders


def main() -> int:
    args = _arguments()
    device = place_of(args.device).device
    sizes = ON_GPU if device.type == "cuda" else ON_CPU
    if args.only:
        torch.set_num_threads(1)
        size, what = args.only.split("/")
        turn = getattr(_Pair(sizes[size], args, device), f"our_{what}")
        return serve(timed(turn, device), lambda: timed(turn, device), device)
    rows = []
    for name in args.sizes:
        for threads in args.threads:
            torch.set_num_threads(threads)
            pair = _Pair(sizes[name], args, device)
            pair.check()
            for what, images in (("training", pair.size.batch), ("sampling", pair.size.draws)):
                turns = {"theirs": getattr(pair, f"their_{what}"), "ours": getattr(pair, f"our_{what}")}
                rows.append(_row(name, what, threads, images, *_compared(turns, args.seconds, device)))
                print(rows[-1], file=sys.stderr, flush=True)
                if threads > 1 and name == "digits" and device.type == "cpu":
                    worker = Worker(f"{name}/{what}", threads)
                    both = _compared({"theirs": turns["theirs"], "ours": worker}, args.seconds, device)
                    worker.end()
                    rows.append(_row(name, f"{what}, per core", threads, images, *both, copies=threads))
                    print(rows[-1], file=sys.stderr, flush=True)
            del pair, turns
    settings = {"seconds": args.seconds, "precision": args.precision, "compile": args.compile,
                "sizes": {name: vars(sizes[name]) for name in args.sizes}}  # fmt: skip
    report(f"peer-{args.name}", "The authors' code and ours", rows, settings, args.output, str(device))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", type=Path, help="a checkout of github.com/NVlabs/edm")
    parser.add_argument("--sizes", nargs="+", default=["digits", "cifar10"], choices=ON_CPU, help="imagenet: 12 GB")
    parser.add_argument("--threads", nargs="+", type=int, default=[2], help="of the CPU, one table row each")
    parser.add_argument("--seconds", type=float, default=15, help="of each comparison (default 15)")
    parser.add_argument("--precision", default="fp32", help="of our networks; theirs are as their options say")
    parser.add_argument("--compile", default="no", help="of our networks: no, yes, graphs")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--name", default="cpu", help="name of the results file")
    parser.add_argument("--output", help="JSON file (default bench/results/…)")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.path / "training" / "networks.py").is_file():
        parser.error(f"{args.path}: no training/networks.py; give a checkout of github.com/NVlabs/edm")
    return args


class _Pair:
    """Both implementations of one size: functions without arguments that run one training step or draw one batch."""

    def __init__(self, size: Size, args: argparse.Namespace, device: torch.device):
        self.size, self.device, self.precision = size, device, args.precision
        self.config = _config(size, args.precision)
        dataset = made_up(self.config, 4 * size.batch)
        compiled = compile_options(args.compile, self.config.network(), float("inf"), device)
        self.step = TrainingStep(self.config, dataset, place_of(str(device)), compiled)
        _enliven(self.step.net)
        self._sums, self._seen = torch.zeros(4, dtype=torch.float64, device=device), 1_000_000
        self.sampled = copy.deepcopy(self.step.net).eval().requires_grad_(False)
        prepare(self.sampled, args.precision, args.compile, float("inf"))
        keep_freed()  # of the whole process: theirs profits, too
        seeds = torch.arange(size.draws, device=device)
        self._latents = draws.latents(seeds, (self.config.channels, self.config.resolution, self.config.resolution))
        self._classes = draws.class_labels(seeds, self.config.classes)
        if not args.only:
            self._theirs(args.path, dataset)

    def _theirs(self, path: Path, dataset: Any) -> None:
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
        from generate import edm_sampler
        from training import augment, loss, networks

        config = self.config
        class_name, arguments = constructor_call(self.step.net)
        if found := differences(self.step.net, arguments):
            raise SystemExit(f"{self.size.model}: the authors' class computes something else: {found[0]}")
        half = config.precision == "fp16"
        self.their_net = getattr(networks, class_name)(**arguments, use_fp16=half).to(self.device).train()
        missing, extra = self.their_net.load_state_dict(to_published(self.sampled), strict=False)
        assert not missing and not extra, (missing, extra)
        self._their_ema = copy.deepcopy(self.their_net).eval().requires_grad_(False)
        self._their_loss = loss.EDMLoss(config.P_mean, config.P_std, config.sigma_data)
        self._their_augment = None
        if config.augment:
            self._their_augment = augment.AugmentPipe(
                p=config.augment, xflip=1e8, yflip=1, scale=1, rotate_frac=1, aniso=1, translate_frac=1
            )
        self._their_optimizer = torch.optim.Adam(self.their_net.parameters(), lr=0.0, betas=(0.9, 0.999), eps=1e-8)
        self._sampler = edm_sampler
        self._pixels = torch.from_numpy(dataset.images[: self.size.batch]).to(self.device)
        labels = torch.from_numpy(dataset.labels[: self.size.batch]).to(self.device)
        self._labels = torch.nn.functional.one_hot(labels, config.classes).to(torch.float32)
        self._drawn = torch.nn.functional.one_hot(self._classes, config.classes).to(torch.float32)

    def check(self) -> None:
        """Raises SystemExit unless both have equally many parameters, and denoise and draw the same images."""
        counts = [sum(p.numel() for p in net.parameters()) for net in (self.step.net, self.their_net)]
        if counts[0] != counts[1]:
            raise SystemExit(f"{self.size.model}: {counts[0]:,} parameters here, {counts[1]:,} there")
        width = self.step.net.network.config.augment_dim
        vectors = torch.randn(len(self._latents), width, device=self.device) * 0.1
        augmented = {"augment_labels": vectors} if width else {}
        tolerance = TOLERANCE if self.precision == "fp32" else 0.1
        with torch.no_grad(), float32_as(self.precision):
            for sigma in (0.02, 0.5, 20.0):
                x = sigma * self._latents.to(torch.float32)
                levels = torch.full((len(x),), sigma, device=self.device)
                ours = self.sampled(x, levels, self._classes, **augmented)
                theirs = self._their_ema(x, levels, self._drawn, **augmented).to(torch.float32)
                apart = float((ours - theirs).abs().max() / theirs.abs().max())
                if not apart <= tolerance:
                    raise SystemExit(f"{self.size.model}: denoised images differ by {apart:.2g} at sigma {sigma}")
            ours, theirs = self.our_sampling(), self.their_sampling()
        apart = float((ours - theirs).abs().max())
        if not apart <= 10 * tolerance * float(theirs.abs().max()):
            raise SystemExit(f"{self.size.model}: drawn images differ by {apart:.2g}")
        print(f"{self.size.model}: {counts[0]:,} parameters each; drawn images differ by {apart:.2g}", file=sys.stderr)

    def our_training(self) -> None:
        with float32_as(self.precision):
            self.step(self._seen, self._sums)
        self._seen += self.size.batch

    def our_sampling(self) -> torch.Tensor:
        with float32_as(self.precision):
            return solve(self.sampled, self._latents, self._classes, SamplerConfig(num_steps=self.size.steps))

    def their_sampling(self) -> torch.Tensor:
        with torch.no_grad():
            return self._sampler(self._their_ema, self._latents, self._drawn, num_steps=self.size.steps)

    def their_training(self) -> None:
        """One step of their classes, with the settings of theirs that the paper states."""
        config, seen = self.config, self._seen
        images = self._pixels.to(torch.float32) / 127.5 - 1
        error = self._their_loss(net=self.their_net, images=images, labels=self._labels,
                                 augment_pipe=self._their_augment)  # fmt: skip
        (error.sum() * (config.loss_scale / len(images))).backward()
        rate, beta = learning_rate_at(config, seen), ema_decay_at(config, seen)
        for group in self._their_optimizer.param_groups:
            group["lr"] = rate
        finish_step(self.their_net, self._their_ema, self._their_optimizer, beta)


def _config(size: Size, precision: str) -> TrainingConfig:
    config = params.load(ROOT / "params.yaml").experiment(size.experiment).models[size.model]
    scale = config.loss_scale if precision == "fp16" else 1.0
    return replace(config, batch_size=size.batch, microbatch=None, precision=precision, loss_scale=scale)


def _enliven(net: torch.nn.Module) -> None:
    """Random weights where they are zero or almost, so that equal outputs say something."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1 and parameter.std() < 1e-3:
                fresh = torch.randn(parameter.shape, generator=generator) * 0.5 * parameter[0].numel() ** -0.5
                parameter.copy_(fresh)


def timed(turn: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, with all work that it queued on the device."""
    start = time.perf_counter()
    found = turn()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return found if isinstance(found, float) else time.perf_counter() - start


def _compared(turns: dict[str, Callable[[], object]], seconds: float, device: torch.device) -> tuple[Any, Any]:
    """Seconds and processor seconds of every side in every round, for about ``seconds``."""
    for turn in turns.values():  # compiles, allocates, fills caches
        timed(turn, device)
    wall: dict[str, list[float]] = {name: [] for name in turns}
    cpu: dict[str, list[float]] = {name: [] for name in turns}
    until = time.monotonic() + seconds
    while len(wall["ours"]) < MOST_ROUNDS and (len(wall["ours"]) < LEAST_ROUNDS or time.monotonic() < until):
        for name, turn in turns.items():
            before = _processor_seconds()
            wall[name].append(timed(turn, device))
            cpu[name].append(_processor_seconds() - before)
    return wall, cpu


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _row(
    name: str, what: str, threads: int, images: int, wall: dict[str, list[float]], cpu: dict[str, list[float]],
    copies: int = 1,
) -> dict[str, Any]:  # fmt: skip
    ratios = sorted(copies * a / b for a, b in zip(wall["theirs"], wall["ours"], strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    work = {side: images * (copies if side == "ours" else 1) for side in wall}
    row = {"size": name, "work": what, "threads": threads,
           **{f"{side}, images/s": work[side] / statistics.median(wall[side]) for side in wall},
           "times theirs": middle, "middle half": f"{low:.3g} to {high:.3g}", "rounds": len(ratios)}  # fmt: skip
    if copies == 1:  # a subprocess is not counted
        row["by processor time"] = sum(cpu["theirs"]) / sum(cpu["ours"])
    return row


if __name__ == "__main__":
    sys.exit(main())

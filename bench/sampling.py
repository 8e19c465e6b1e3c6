"""Images per second of sampling, compared with a straightforward implementation in the same run.

    python bench/sampling.py [--experiment cifar10-cond --model vp-F] [--channels N] [--batch N] [--device cuda]

Algorithm 1 with 18 and 40 steps (NFE 35 and 79) by an untrained network whose last layer has larger random weights.
All variants run by turns, each in its own process, with the same latents; their images are compared with those of the
reference. Compilation happens beforehand; its time is reported separately. Peak memory includes compilation.
With --each-core, one variant runs one process per core, and its images/s are their total.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from common import by_turns, report, summary
from training import ceiling, chosen, copies_of, options, setting, threads, wait
from workers import Worker, serve

STEPS = (18, 40)


def main() -> int:
    args = options(__doc__)
    from edm.config import SamplerConfig
    from edm.networks.flops import flops

    config, place = setting(args)
    device, count = place.device, config.batch_size
    variants = chosen(args, device.type)
    if args.only:
        draw = drawing(args.only, config, device, *variants[args.only])
        return serve(draw(1), draw, device)
    workers = {name: Worker(name, copies_of(name)) for name in variants}
    rows = []
    with TemporaryDirectory() as folder:
        for num_steps in STEPS:
            files = {name: str(Path(folder, f"{number}.npy")) for number, name in enumerate(variants)}
            turns = {name: partial(worker, num_steps, files[name]) for name, worker in workers.items()}
            seconds = by_turns(turns, args.rounds)
            expected = np.load(files["reference"])
            nfe = SamplerConfig(num_steps=num_steps).nfe
            for name, (precision, _) in variants.items():
                found, reference = summary(seconds[name]), summary(seconds["reference"])
                copies = copies_of(name) or 1
                images = count * copies
                rate = images / found["median"]
                rows.append({
                    "variant": name,
                    "NFE": nfe,
                    "images/s": rate,
                    "middle half": f"{images / found['high']:.4g} to {images / found['low']:.4g}",
                    "times the reference": copies * reference["median"] / found["median"],
                    "utilisation": f"{rate * nfe * flops(config) / ceiling(device, precision):.0%}",
                    "largest difference (of 255)": float(np.abs(np.load(files[name]) - expected).max()) * 127.5,
                    "first evaluation (s)": workers[name].first,
                })  # fmt: skip
    peaks = {name: worker.end() for name, worker in workers.items()}
    rows = [row | {"peak memory (MiB)": peaks[row["variant"]]} for row in rows]
    settings = {"experiment": args.experiment, "model": args.model, "model_channels": config.model_channels,
                "batch": count, "rounds": args.rounds, "threads": threads()}  # fmt: skip
    report(f"sampling-{args.name}", "Sampling: images per second", rows, settings, args.output, str(device))
    return 0


def drawing(name: str, config, device, precision: str, compile: str) -> Callable[..., float]:
    """A variant: draws images with a number of steps, writes them to a file if given, returns the seconds."""
    import torch
    from reference import build, straightforward

    from edm.cluster.memory import keep_freed
    from edm.config import SamplerConfig
    from edm.design import draws as noise
    from edm.models.compilation import prepare
    from edm.networks.precision import float32_as
    from edm.sampling.sampler import solve

    seeds = torch.arange(config.batch_size, device=device)
    latents = noise.latents(seeds, (config.channels, config.resolution, config.resolution))
    labels = noise.class_labels(seeds, config.classes) if config.conditional and config.classes else None
    denoiser = lively(build(config, device)).eval().requires_grad_(False)
    if name != "reference":
        denoiser = prepare(denoiser.placed(device), precision, compile, float("inf"))
        keep_freed()

    def draw(num_steps: int, file: str | None = None) -> float:
        start = time.perf_counter()
        with straightforward() if name == "reference" else float32_as(precision):
            images = solve(denoiser, latents, labels, SamplerConfig(num_steps=num_steps))
        wait(device)
        seconds = time.perf_counter() - start
        if file is not None:  # all copies write the same images
            np.save(file, images.cpu().numpy())
        return seconds

    return draw


def lively(denoiser):
    """Gives the last layer weights of a trained network's size; initially they are almost zero."""
    import torch

    torch.nn.init.normal_(denoiser.network.out_conv.weight, std=0.02)
    return denoiser


if __name__ == "__main__":
    sys.exit(main())

"""How many images a second sampling draws, against a straightforward implementation in the same run.

    python bench/sampling.py [--experiment cifar10-cond --model vp-F] [--channels N] [--batch N] [--device cuda]

Algorithm 1 with 18 and 40 steps (NFE 35 and 79) by an untrained network whose last layer gives something to sample.
All variants draw the same latents by turns, and their images are compared with those of the reference. What is compiled
is compiled before, and that time reported apart.
"""

import json
import resource
import sys
import time
from functools import partial

from common import by_turns, report, summary
from training import ceiling, chosen, memory, options, setting, threads, wait

STEPS = (18, 40)


def main() -> int:
    args = options(__doc__)
    import torch

    from edm import noise
    from edm.config import SamplerConfig
    from edm.flops import flops

    config, place = setting(args)
    device = place.device
    seeds = torch.arange(config.batch_size, device=device)
    latents = noise.latents(seeds, (config.channels, config.resolution, config.resolution))
    labels = noise.class_labels(seeds, config.classes) if config.conditional and config.classes else None
    variants = chosen(args, device.type)
    draws, first = {}, {}
    for name, variant in variants.items():
        draws[name] = drawing(name, config, device, latents, labels, *variant)
        start = time.perf_counter()
        draws[name](1)  # compiles
        first[name] = time.perf_counter() - start
    if args.only:  # a process of its own, to see its memory
        draws[args.only](STEPS[0])
        print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
        return 0
    rows = []
    for num_steps in STEPS:
        images = {name: draw(num_steps) for name, draw in draws.items()}
        seconds = by_turns({name: partial(draw, num_steps) for name, draw in draws.items()}, args.rounds)
        nfe = SamplerConfig(num_steps=num_steps).nfe
        for name, (precision, _) in variants.items():
            found, reference = summary(seconds[name]), summary(seconds["reference"])
            rate = len(seeds) / found["median"]
            rows.append({
                "variant": name,
                "NFE": nfe,
                "images/s": rate,
                "middle half": f"{len(seeds) / found['high']:.4g} to {len(seeds) / found['low']:.4g}",
                "times the reference": reference["median"] / found["median"],
                "utilisation": f"{rate * nfe * flops(config) / ceiling(device, precision):.0%}",
                "largest difference (of 255)": (images[name] - images["reference"]).abs().max().item() * 127.5,
                "first evaluation (s)": first[name],
                "peak memory (MiB)": memory(args, name, partial(draws[name], 2), device),
            })  # fmt: skip
    settings = {"experiment": args.experiment, "model": args.model, "model_channels": config.model_channels,
                "batch": len(seeds), "rounds": args.rounds, "threads": threads()}  # fmt: skip
    report(f"sampling-{args.name}", "Sampling: images per second", rows, settings, args.output, str(device))
    return 0


def drawing(name: str, config, device, latents, labels, precision: str, compile: str):
    """A variant: the images of the latents, of a number of steps."""
    import torch
    from reference import build, straightforward

    from edm.compilation import prepare
    from edm.config import SamplerConfig
    from edm.precision import float32_as
    from edm.sampler import solve

    denoiser = lively(build(config, device)).eval().requires_grad_(False)
    if name != "reference":
        denoiser = prepare(denoiser.to(memory_format=torch.channels_last), precision, compile, float("inf"))

    def draw(num_steps: int) -> torch.Tensor:
        with straightforward() if name == "reference" else float32_as(precision):
            images = solve(denoiser, latents, labels, SamplerConfig(num_steps=num_steps))
        wait(device)
        return images

    return draw


def lively(denoiser):
    """The same network with a last layer that is not almost nothing, as in training's end: else all is skipped."""
    import torch

    torch.nn.init.normal_(denoiser.network.out_conv.weight, std=0.02)
    return denoiser


if __name__ == "__main__":
    sys.exit(main())

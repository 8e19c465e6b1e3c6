"""The sections of bench/gpu.sh, each in its own process: prints as it goes and writes FOLDER/SECTION.json.

python bench/gpu_sections.py golden --out FOLDER [--device cuda] [--seconds 60] [--tiny]
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from common import ROOT, machine

GOLDEN = ROOT / "tests" / "fixtures" / "golden"
#: Largest difference to the authors' outputs, relative to their largest value, as in docs/speed.md; tf32 has ten bits.
TOLERANCES = {"fp32": 1e-5, "tf32": 5e-3, "bf16": 2e-2, "fp16": 3e-3}
PHOTOS = (ROOT / "shared" / "data", ROOT.parent / "shared" / "data")
SIDE = 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("section", choices=[*SECTIONS, "summary"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=60, help="limit of this section")
    parser.add_argument("--photos", type=Path, help="zip of JPEG files CLASS/NAME.jpg, 32x32")
    parser.add_argument("--peer", type=Path, help="a checkout of the authors' code, for bench/peer.py")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, for a rehearsal")
    args = parser.parse_args()
    args.until = time.monotonic() + 0.85 * args.seconds
    args.out.mkdir(parents=True, exist_ok=True)
    if args.section == "summary":
        return summary(args)
    rows: list[dict[str, Any]] = []

    def tell(**row: Any) -> None:
        rows.append(row)
        print("  " + ", ".join(f"{key} {_short(value)}" for key, value in row.items()), flush=True)
        (args.out / f"{args.section}.json").write_text(json.dumps(rows, indent=1) + "\n")

    failed = SECTIONS[args.section](args, tell)
    return 1 if failed or any(row.get("holds") is False for row in rows) else 0


def golden(args: argparse.Namespace, tell: Any) -> bool:
    """The authors' numbers in every precision, compiled and not."""
    import torch
    from safetensors.torch import load_file

    import edm
    from edm.models.compilation import prepare
    from edm.networks.precision import float32_as

    cases = json.loads((GOLDEN / "index.json").read_text())
    # A compiled mode takes seconds per network: without compiling first, and the shortest list of cases. On a CPU it
    # takes minutes, so the rehearsal leaves it out.
    for compile in ("no",) if args.tiny else ("no", "yes"):
        for precision, tolerance in TOLERANCES.items():
            for case in cases[:1] if compile == "yes" or args.tiny else cases:
                if time.monotonic() > args.until:
                    tell(left_out=f"{precision}, compile {compile}: no time left")
                    return False
                tensors = load_file(GOLDEN / f"{case['name']}.safetensors")
                state = {k.removeprefix("param/"): t for k, t in tensors.items() if k.startswith("param/")}
                net = edm.from_published(case["class_name"], case["init_kwargs"], state).placed(args.device)
                given = [tensors.get(key) for key in ("x", "sigma", "class_labels", "augment_labels")]
                given = [None if tensor is None else tensor.to(args.device) for tensor in given]
                with torch.no_grad(), float32_as(precision):
                    found = prepare(net, precision, compile, math.inf)(*given).cpu().double()
                expected = tensors["D"].double()
                apart = float((found - expected).abs().max() / expected.abs().max())
                tell(case=case["name"], precision=precision, compile=compile, apart=apart, tolerance=tolerance,
                     holds=apart < tolerance)  # fmt: skip
    return False


def processes(args: argparse.Namespace, tell: Any) -> bool:
    """Two processes that share the device train as one; NCCL refuses that, and says so."""
    import torch
    import torch.multiprocessing as several

    folder, backends = args.out / "processes", ["gloo"] if args.device == "cpu" else ["gloo", "nccl"]
    folder.mkdir(exist_ok=True)
    _steps(0, 1, "", args.device, str(folder / "alone.pt"))
    alone = torch.load(folder / "alone.pt", weights_only=True)
    for backend in backends:
        start = time.perf_counter()
        try:
            several.spawn(_steps, (2, backend, args.device, str(folder / f"{backend}.pt")), nprocs=2)
        except Exception as error:
            tell(backend=backend, refused=str(error).strip().splitlines()[-1][:200])
            continue
        both = torch.load(folder / f"{backend}.pt", weights_only=True)
        apart = float((alone - both).abs().max() / alone.abs().max())
        tell(backend=backend, seconds=time.perf_counter() - start, apart=apart, holds=apart < 1e-4)
    return False


def _steps(rank: int, size: int, backend: str, device: str, path: str) -> None:
    """Three training steps of one of ``size`` processes; rank 0 writes the weights as one vector."""
    import torch
    import torch.distributed as dist
    from reference import made_up

    from edm import params
    from edm.cluster.processes import World
    from edm.training.step import TrainingStep

    if size > 1:
        dist.init_process_group(backend, f"file://{path}.store", rank=rank, world_size=size)
    place = torch.device(device, 0) if device == "cuda" else torch.device(device)
    config = params.load(ROOT / "params.yaml").experiment("digits").models["vp-F"]
    config = replace(config, batch_size=32, lr_rampup=0.0, learning_rate=1e-4)
    step = TrainingStep(config, made_up(config, 64), World(rank, size, place))
    sums = torch.zeros(4, dtype=torch.float64, device=place)
    for number in range(3):
        step(number * config.batch_size, sums)
    if rank == 0:
        torch.save(torch.cat([parameter.detach().flatten().cpu() for parameter in step.net.parameters()]), path)
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


def speed(args: argparse.Namespace, tell: Any) -> bool:
    """Training and sampling against the reference and, given a checkout, the authors' code."""
    bench, device = ROOT / "bench", ["--device", args.device]
    tiny = ["--experiment", "digits", "--model", "vp-C", "--channels", "8", "--batch", "2", "--rounds", "1"]
    fast = ["--variants", "tf32", "bf16", "bf16 compiled"]
    adm = ["--experiment", "imagenet", "--model", "adm-E"]
    commands = {
        "training-f": ["training.py", *(tiny if args.tiny else ["--batch", "512", "--rounds", "5", *fast])],
        "sampling-f": ["sampling.py", *(tiny if args.tiny else ["--batch", "128", "--rounds", "1", *fast])],
        "training-adm": ["training.py", *(tiny if args.tiny else [*adm, "--batch", "64", "--microbatch", "32",
                                                                  "--rounds", "3", "--variants", "bf16"])],
    }  # fmt: skip
    if args.peer:
        sizes = ["digits"] if args.tiny else ["cifar10", "imagenet"]
        often = ["--seconds", "1" if args.tiny else "8"]
        commands["peer"] = ["peer.py", str(args.peer), "--sizes", *sizes, *often]
        if not args.tiny:
            commands["peer-bf16"] = [*commands["peer"], "--precision", "bf16"]
    failed = False
    for name, (script, *words) in commands.items():
        left = args.until - time.monotonic()
        if left < 5:
            tell(left_out=f"{name}: no time left")
            continue
        file = args.out / f"speed-{name}.json"
        try:
            done = subprocess.run([sys.executable, bench / script, *words, *device, "--output", file],
                                  capture_output=True, text=True, timeout=left)  # fmt: skip
        except subprocess.TimeoutExpired:
            tell(what=name, stopped_after=left)
            continue
        if done.returncode:
            failed = True
            tell(what=name, error=(done.stderr.strip().splitlines() or ["no message"])[-1][:300])
            continue
        for row in json.loads(file.read_text())["rows"]:
            tell(what=name, **row)
    return failed


def features(args: argparse.Namespace, tell: Any) -> bool:
    """Features of a vision transformer (DINOv2's smallest, random weights) and the distance of 50,000 images."""
    import torch

    from edm.metrics.frechet import FeatureStatistics, frechet_distance
    from edm.metrics.vit import VisionTransformer
    from edm.networks.precision import float32_as

    count, batch, width = (64, 16, 32) if args.tiny else (50_000, 256, 2048)
    place = torch.device(args.device)
    network = VisionTransformer(*((32, 1, 2) if args.tiny else (384, 12, 6))).to(place).eval()
    pixels = torch.randint(256, (batch, 3, SIDE, SIDE), dtype=torch.uint8, device=place)
    seen, start = 0, time.perf_counter()
    statistics = FeatureStatistics()
    with torch.no_grad(), float32_as("fp32"):
        while seen < count and time.monotonic() < args.until - 0.4 * args.seconds:
            large = torch.nn.functional.interpolate(pixels / 255, (224, 224), mode="bicubic")
            statistics.append(network(large))
            seen += batch
    _wait(place)
    rate = seen / (time.perf_counter() - start)
    tell(what="features, 384 numbers, float32", images=seen, rate=rate, seconds_for_50000=50_000 / rate)
    sides = [FeatureStatistics(), FeatureStatistics()]
    start = time.perf_counter()
    for side in sides:
        for _ in range(0, count, 10 * batch):
            side.append(torch.randn(min(10 * batch, count), width, device=place))
    _wait(place)
    told, start = time.perf_counter() - start, time.perf_counter()
    moments = [moment for side in sides for moment in (side.mean, side.covariance)]
    distance = frechet_distance(*moments, device=place)
    seconds = time.perf_counter() - start
    tell(what=f"statistics of 2 x {sides[0].count} x {width}, then their distance", statistics=told,
         distance_seconds=seconds, distance=float(distance), holds=math.isfinite(distance))  # fmt: skip
    return False


def photos(args: argparse.Namespace, tell: Any) -> bool:
    """Configuration F on real photographs: loss curves of both variants for equal times, and a sheet of samples."""
    import numpy as np
    import torch
    from PIL import Image
    from reference import Training, made_up, place_of

    from edm import params
    from edm.config import SamplerConfig
    from edm.design import draws
    from edm.networks.precision import float32_as
    from edm.sampling.sampler import solve
    from edm.training.step import TrainingStep

    zips = [args.photos] if args.photos else [path for folder in PHOTOS for path in sorted(folder.glob("*.zip"))]
    config = params.load(ROOT / "params.yaml").experiment("cifar10-cond").models["vp-F"]
    config = replace(config, lr_rampup=0.05, ema_halflife=0.02, augment=0.0 if args.tiny else config.augment)
    if args.tiny:
        config = replace(config, batch_size=4, microbatch=4, model_channels=8, num_blocks=1)
    dataset = _photographs(zips, 64 if args.tiny else 10**6) if zips else made_up(config, 64)
    tell(photographs=len(dataset.images), real=bool(zips))
    place = place_of(args.device)
    each = (args.until - time.monotonic() - 0.1 * args.seconds) / 2
    each = min(each, 5.0) if args.tiny else each
    losses: dict[str, list[list[float]]] = {}
    variants = {"reference": (Training, "fp32"), "fast": (TrainingStep, "fp32" if args.tiny else "bf16")}
    for name, (kind, precision) in variants.items():
        own = replace(config, precision=precision)
        step = kind(own, dataset, place.device if kind is Training else place)
        start, seen, curve = time.monotonic(), 0, []
        with float32_as("fp32" if name == "reference" else "tf32"):
            while time.monotonic() - start < each:
                sums = torch.zeros(4, dtype=torch.float64, device=place.device)
                step(seen, sums)
                seen += own.batch_size
                curve.append([seen, float(sums[0] / sums[1]) / dataset.images[0].size])
        losses[name] = curve
        last = curve[-max(1, len(curve) // 10) :]
        end = sum(loss for _, loss in last) / len(last)
        tell(variant=name, precision=precision, images=seen, rate=seen / (time.monotonic() - start), loss=end,
             holds=math.isfinite(end))  # fmt: skip
    (args.out / "losses.json").write_text(json.dumps(losses))
    rows, steps = (2, 2) if args.tiny else (8, 18)
    seeds = torch.arange(rows * rows, device=place.device)
    latents = draws.latents(seeds, dataset.images.shape[1:])
    with float32_as("tf32"):
        images = solve(step.ema, latents, seeds % config.classes, SamplerConfig(num_steps=steps))
    sheet = (images.clamp(-1, 1) * 127.5 + 128).clamp(0, 255).to(torch.uint8).cpu().numpy()
    sheet = sheet.reshape(rows, rows, *sheet.shape[1:]).transpose(0, 3, 1, 4, 2).reshape(rows * SIDE, rows * SIDE, 3)
    Image.fromarray(np.ascontiguousarray(sheet)).save(args.out / "samples.png")
    return False


def _photographs(zips: list[Path], most: int) -> Any:
    """The images of zips with members CLASS/NAME.jpg."""
    import io

    import numpy as np
    from PIL import Image

    from edm.data.archive import Dataset

    images, names = [], []
    for path in zips:
        with zipfile.ZipFile(path) as opened:
            for member in opened.namelist()[: most // len(zips)]:
                if member.lower().endswith((".jpg", ".jpeg", ".png")):
                    picture = Image.open(io.BytesIO(opened.read(member))).convert("RGB")
                    images.append(np.asarray(picture).transpose(2, 0, 1))
                    names.append(member.split("/")[0])
    classes = sorted(set(names))
    return Dataset(np.stack(images), np.array([classes.index(name) for name in names]), "photographs", "photographs")


def resume(args: argparse.Namespace, tell: Any) -> bool:
    """A training run that kill -9 ends resumes to the weights of one without interruption, bit for bit."""
    from reference import made_up

    from edm import params
    from edm.data.archive import write_archive

    folder = args.out / "resume"
    folder.mkdir(exist_ok=True)
    config = params.load(ROOT / "params.yaml").experiment("digits").models["vp-F"]
    config = replace(config, batch_size=32, duration=0.0016 if args.tiny else 0.064, level_samples=16)
    made = made_up(config, 256)
    write_archive(folder / "data.zip", list(made.images), made.labels.tolist())
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    code = ("import sys, torch; torch.use_deterministic_algorithms(True, warn_only=True); "
            "from edm.cli import main; sys.exit(main(sys.argv[1:]))")  # fmt: skip
    command = [sys.executable, "-c", code, "train", "--config", folder / "config.json", "--data", folder / "data.zip",
               "--device", args.device, "--state-every", "0.2"]  # fmt: skip
    start = partial(subprocess.Popen, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for name in ("whole", "killed"):
        out = folder / name
        run = start([*command, "--out", out])
        if name == "killed":
            while run.poll() is None and not list(out.glob("state-*.safetensors")):
                time.sleep(0.02)
            os.kill(run.pid, signal.SIGKILL)
            killed = run.wait() == -signal.SIGKILL
            tell(killed=killed, states=len(list(out.glob("state-*.safetensors"))))
            run = start([*command, "--out", out])
        _, said = run.communicate()
        if run.returncode:
            tell(run=name, error=(said.strip().splitlines() or ["no message"])[-1][:300])
            return True
    weights = [(folder / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    tell(bytes=len(weights[0]), identical=weights[0] == weights[1], holds=weights[0] == weights[1])
    return False


def _wait(device: Any) -> None:
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def summary(args: argparse.Namespace) -> int:
    """All results in gpu.json; loss curves and samples in gpu.png."""
    read = lambda path: json.loads(path.read_text())
    found = {name: read(args.out / f"{name}.json") for name in SECTIONS if (args.out / f"{name}.json").exists()}
    states = [read(path) for path in sorted(args.out.glob("*.status.json"))]
    whole = {"machine": machine(args.device), "sections": states, **found}
    (args.out / "gpu.json").write_text(json.dumps(whole, indent=1) + "\n")
    print(f"written: {args.out / 'gpu.json'}")
    if (args.out / "losses.json").exists():
        _picture(read(args.out / "losses.json"), args.out / "samples.png", args.out / "gpu.png")
        print(f"written: {args.out / 'gpu.png'}")
    return 0


def _picture(losses: dict[str, list[list[float]]], sheet: Path, out: Path) -> None:
    """Loss (smoothed, logarithmic) vs. images on the left, samples on the right; Pillow alone, for a bare machine."""
    from PIL import Image, ImageDraw

    width, height, margin = 640, 512, 48
    picture = Image.new("RGB", (width + height, height), "white")
    ink = ImageDraw.Draw(picture)
    curves = {}
    for name, points in losses.items():
        near = max(1, len(points) // 40)
        parts = [points[i : i + near] for i in range(0, len(points), near)]
        curves[name] = [(part[-1][0], math.log10(sum(y for _, y in part) / len(part))) for part in parts]
    every = [point for curve in curves.values() for point in curve]
    right = max(x for x, _ in every)
    low, high = min(y for _, y in every), max(y for _, y in every)
    place = lambda x, y: (margin + x / right * (width - 2 * margin),
                          height - margin - (y - low) / max(high - low, 1e-9) * (height - 2 * margin))  # fmt: skip
    ink.rectangle((margin, margin, width - margin, height - margin), outline="grey")
    for number, (name, curve) in enumerate(curves.items()):
        colour = ("black", "red")[number % 2]
        ink.line([place(x, y) for x, y in curve], fill=colour, width=2)
        ink.text((width - 160, margin + 8 + 16 * number), f"{name}, {curve[-1][0]:,} images", fill=colour)
    ink.text((margin, height - margin + 8), f"0 to {right:,} training images", fill="black")
    ink.text((margin, margin - 20), f"loss per pixel, {10**low:.3g} to {10**high:.3g} (logarithmic)", fill="black")
    if sheet.exists():
        picture.paste(Image.open(sheet).resize((height, height), Image.Resampling.NEAREST), (width, 0))
    picture.save(out)


SECTIONS = {"golden": golden, "processes": processes, "speed": speed, "features": features, "photos": photos,
            "resume": resume}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())

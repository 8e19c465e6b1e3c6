"""Throughput of a GPU: measured on the user's machine, or else an estimate that is labelled as one.

The table is free of torch; only :func:`measure` needs it.
"""

import math
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from edm.config import NetworkConfig, TrainingConfig
from edm.errors import UserError
from edm.files.documents import TEXT, between, read_document, whole
from edm.files.hashes import digest
from edm.files.writing import write_json
from edm.networks.flops import flops
from edm.networks.pace import ANCHOR, ANCHOR_EVALUATIONS, ANCHOR_TRAINING, PEAKS

if TYPE_CHECKING:
    import torch

    from edm.models.compilation import Compiled

FORMAT = "edm-throughput/1"
_RATE = between(1e-9, 1e15)
_SHAPE = {"measurements": [{
    "network": TEXT, "flops": whole(1), "device": TEXT, "kind": TEXT, "precision": TEXT, "batch": whole(1),
    "training": _RATE, "evaluations": _RATE, "time": TEXT, "about": TEXT,
}]}  # fmt: skip

ANCHOR_LABEL = "estimate: V100 anchor of the paper scaled by FLOPs"

DEFAULT_BATCH = 64  # images per GPU and step: configuration F's on eight GPUs
WARM_UP, FEWEST = 3, 3  # steps before the clock starts, and steps that a median needs


@dataclass(frozen=True)
class Rate:
    """Training images, or network evaluations of one image, per second on one GPU, and the source of the number."""

    per_second: float
    source: str
    measured: bool


@dataclass(frozen=True)
class Measurement:
    """One line of the table. network: digest of the fields that affect its speed; flops: of one evaluation.

    device: its name; kind: "cuda", "cpu", …; training, evaluations: per second at ``batch`` images per step, both in
    that precision; time: in UTC; about: conditions of the measurement.
    """

    network: str
    flops: int
    device: str
    kind: str
    precision: str
    batch: int
    training: float
    evaluations: float
    time: str
    about: str

    @property
    def key(self) -> tuple[str, str, str]:
        """The key: a later measurement of the same device, precision and network replaces this one."""
        return self.device, self.precision, self.network


class Throughput:
    """Rates of any network, from the existing measurements.

    A network that was measured in a precision has its own rate. Any other has the rate of the nearest measurement on
    the same device (the same precision before other ones, then the nearest in FLOPs), scaled by FLOPs; without
    measurements, the published rate of a V100, scaled likewise.
    ``device``: part of a device's name; default: the GPU measured last, never a CPU. ``gpu``: of ``PEAKS``; only its
    measurements count, and without any the published rate is scaled by the data sheets, too.
    """

    def __init__(self, measurements: Iterable[Measurement] = (), gpu: str | None = None):
        self.gpu = gpu
        self.measurements = [m for m in measurements if gpu is None or gpu in m.device.lower()]

    @classmethod
    def load(cls, path: str | Path | None, gpu: str | None = None) -> "Throughput":
        """The table in a file; an empty one without a file. Raises UserError for a file of another format."""
        return cls(_read(Path(path)) if path is not None and Path(path).exists() else (), gpu)

    def training(self, config: TrainingConfig, device: str | None = None) -> Rate:
        """Training images per second and GPU, in the precision of the configuration. Raises UserError (``device``)."""
        return self._rate("training", config.network(), config.precision, device, ANCHOR_TRAINING)

    def evaluations(self, network: NetworkConfig, precision: str = "fp32", device: str | None = None) -> Rate:
        """Network evaluations of one image per second and GPU. Raises UserError if ``device`` was not measured."""
        return self._rate("evaluations", network, precision, device, ANCHOR_EVALUATIONS)

    def _rate(self, what: str, network: NetworkConfig, precision: str, device: str | None, anchor: float) -> Rate:
        size, name = flops(network), network_digest(network)
        there = self._on(device)
        if not there:
            factor, label = _scale(self.gpu, precision)
            return Rate(anchor * factor * flops(ANCHOR) / size, ANCHOR_LABEL + label, measured=False)
        m = min(there, key=lambda m: (m.precision != precision, m.network != name, abs(math.log(m.flops / size))))
        if (m.precision, m.network) == (precision, name):
            return Rate(getattr(m, what), f"measured: {m.device}, {precision}", measured=True)
        source = f"estimate: measured on {m.device} in {m.precision}, scaled by FLOPs"
        return Rate(getattr(m, what) * m.flops / size, source, measured=False)

    def _on(self, device: str | None) -> list[Measurement]:
        """The measurements of one device, since a plan must not mix devices."""
        if device is None:
            found = [m for m in self.measurements if m.kind != "cpu"]
        else:
            found = [m for m in self.measurements if device.lower() in m.device.lower()]
        if not found and device is not None:
            known = ", ".join(sorted({m.device for m in self.measurements})) or "none"
            raise UserError(f"no throughput was measured on {device!r} (measured: {known}); run `edm bench` there")
        last = max(found, key=lambda m: m.time).device if found else None
        return [m for m in found if m.device == last]


def _scale(gpu: str | None, precision: str) -> tuple[float, str]:
    """How many V100s a GPU is worth according to the data sheets, and a note that says so. A rough guess."""
    if gpu is None:
        return 1.0, ""
    column, kind = (0, "fp32") if precision == "fp32" else (1, "fp16")  # tf32 and bf16: the same ratio as fp16
    own, v100 = PEAKS[gpu][column], PEAKS["v100"][column]
    label = f", times {own / v100:.2f} for the {gpu.upper()}; data sheets: {own:g} and {v100:g} dense {kind} TFLOPS"
    return own / v100, f"{label if gpu != 'v100' else ''}; not measured"


def network_digest(network: NetworkConfig) -> str:
    """A digest of everything that affects a network's speed: its configuration without the dropout probability."""
    return digest({name: value for name, value in network.changes().items() if name != "dropout"})


def record(path: str | Path, measurement: Measurement) -> None:
    """Writes a measurement into the table of a file; it replaces an earlier one with the same key."""
    path = Path(path)
    table = {m.key: m for m in (_read(path) if path.exists() else ())}
    table[measurement.key] = measurement
    write_json(path, {"format": FORMAT, "measurements": [vars(table[key]) for key in sorted(table)]})


def _read(path: Path) -> list[Measurement]:
    table = read_document(path, FORMAT, _SHAPE, "a table of throughput", "delete it and run `edm bench` again")
    return [Measurement(**{name: row[name] for name in _SHAPE["measurements"][0]}) for row in table["measurements"]]


# Measuring ------------------------------------------------------------------------------------------------------------


def measure(
    config: TrainingConfig,
    device: "torch.device | str" = "auto",
    seconds: float = 20.0,
    batch: int | None = None,
    compile: str = "auto",
) -> Measurement:
    """Times training steps and network evaluations of a configuration on one device; the medians, after a warm-up.

    A step is a real training step on synthetic images: batch with augmentation, loss, gradients, Adam and moving
    average, without clipping and without communication between GPUs. An evaluation is D(x; σ).
    seconds: total time for both. batch: images per step, by default ``microbatch`` or 64. compile: as in train.
    Raises UserError if the batch does not fit in the device's memory.
    """
    import torch

    from edm.cluster.processes import pick_device
    from edm.models.compilation import options
    from edm.networks.precision import float32_as

    place = device if isinstance(device, torch.device) else pick_device(device)
    batch = min(config.microbatch or DEFAULT_BATCH, config.batch_size) if batch is None else batch
    if batch < 1 or seconds < 0:
        raise UserError(f"batch is {batch} and seconds {seconds:g}; at least 1 and 0 are needed")
    network = config.network()
    compiled = options(compile, network, math.inf, place)
    with float32_as(config.precision):
        try:
            step, evaluate = _work(replace(config, batch_size=batch, microbatch=None), place, compiled)
            times = [_pace(work, seconds / 2, place) for work in (step, evaluate)]
        except torch.OutOfMemoryError:
            raise UserError(f"{batch} images at once do not fit in the memory of {_name(place)}; lower batch") from None
    return Measurement(
        network=network_digest(network),
        flops=flops(network),
        device=_name(place),
        kind=place.type,
        precision=config.precision,
        batch=batch,
        training=batch / times[0],
        evaluations=batch / times[1],
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        about=f"{config.architecture} {config.resolution}x{config.resolution}, torch {torch.__version__}"
        + (", compiled" if compiled else ""),
    )


def _work(config: TrainingConfig, device: "torch.device", compiled: "Compiled | None") -> list[Callable[[], None]]:
    """A training step and a network evaluation of a minibatch, as functions to call repeatedly."""
    from itertools import count

    import numpy as np
    import torch

    from edm.cluster.processes import World
    from edm.data.archive import Dataset
    from edm.training.batches import Batches
    from edm.training.step import TrainingStep

    rng, batch = np.random.default_rng(0), config.batch_size
    shape = (4 * batch, config.channels, config.resolution, config.resolution)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    labels = rng.integers(0, max(config.classes, 1), len(images))
    dataset = Dataset(images, labels, "made up", "made up")
    step = TrainingStep(config, dataset, World(device=device), compiled)
    starts, sums = count(step=batch), torch.zeros(4, dtype=torch.float64, device=device)
    inputs = Batches(dataset, config, step.loss, device).draw(0, batch)
    noisy = inputs.noise * inputs.sigma[:, None, None, None]
    if compiled is not None:
        step.ema.network.compile(**compiled)

    def evaluate() -> None:
        with torch.no_grad():
            step.ema(noisy, inputs.sigma, inputs.labels)

    return [lambda: step(next(starts), sums), evaluate]


def _pace(work: Callable[[], None], seconds: float, device: "torch.device") -> float:
    """Median seconds of one call, from as many calls as fit into the time."""
    import torch

    def timed() -> float:
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - start

    for _ in range(WARM_UP):
        timed()
    times: list[float] = []
    while len(times) < FEWEST or sum(times) < seconds:
        times.append(timed())
    return median(times)


def _name(device: "torch.device") -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"
    return device.type

"""Training: one loop for a CPU, a GPU and many."""

import copy
import inspect
import math
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from edm import checkpoint, levels
from edm.batches import Batches
from edm.config import TrainingConfig
from edm.data import Dataset
from edm.denoiser import Denoiser
from edm.distributed import ALONE, World
from edm.errors import Preempted, UserError
from edm.files import remove_temporaries, write_json
from edm.losses import weighted_error
from edm.precision import set_float32
from edm.preemption import Notice, Pauses
from edm.resume import TrainingLog, TrainingState
from edm.tracking import Run, SystemMetrics

TICKS, TICK_IMAGES = 100, 100_000  # a look at loss and clock a hundred times in a run, and every 100,000 images
FINAL = ("model.safetensors", "levels.json")
FILES = ("log.jsonl", "snapshots/*.safetensors", "state-?.safetensors")
#: Of DistributedDataParallel: whether buffers are sent round in each step. Ours never change.
CONSTANT_BUFFERS = "forward_sync_buffers"
if CONSTANT_BUFFERS not in inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters:
    CONSTANT_BUFFERS = "broadcast_buffers"  # before torch 2.15
COMPUTE = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def train(
    config: TrainingConfig,
    dataset: Dataset,
    out: Path,
    world: World = ALONE,
    *,
    final: Path | None = None,
    run: Run | None = None,
    notice: Notice | None = None,
    state_every: float = 300.0,
    compile: bool = False,
    about: dict[str, Any] | None = None,
) -> Denoiser:
    """Trains a configuration on a dataset and returns the averaged (EMA) denoiser; in ``out`` it leaves

    model.safetensors, levels.json (loss per noise level before and after, and over training), log.jsonl, snapshots/
    where asked, and,
    until it is done, its last two states, state-0.safetensors and state-1.safetensors. An interrupted run of the same
    configuration continues from the newer one to the same weights, log and snapshots, to the bit.

    final: folder for the first two of these, in place of ``out``.
    run: told what is logged, and finished at the end. notice: asks for an early stop. state_every: seconds between two
    states. about: entries for the header of the checkpoint.
    Raises Preempted where ``notice`` asked for it, after the state was saved; UserError where the dataset does not fit
    the configuration or the loss stops being finite, and the last good state is kept then.
    """
    check(config, dataset, world)
    set_float32("tf32" if config.precision == "tf32" else "ieee")
    device, notice, final = world.device, notice or Notice(), final or out
    about = {**(about or {}), "dataset_sha256": dataset.sha256}

    torch.manual_seed(config.seed)
    net = checkpoint.build(config).to(device, memory_format=torch.channels_last)
    net.compute_dtype = COMPUTE[config.precision]
    loss = checkpoint.loss_of(config)
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.0, betas=(0.9, 0.999), eps=1e-8, fused=True)
    if world.is_first:
        for path in (*(final / name for name in FINAL), *(out / name for name in FILES)):
            remove_temporaries(path)  # of a process killed while it wrote
    state = TrainingState(out, config, dataset, net, ema, optimizer, world)
    images = state.restore()
    log = TrainingLog(out / "log.jsonl", images, world.is_first)
    if images == 0 and world.is_first:
        shutil.rmtree(out / "snapshots", ignore_errors=True)  # of an earlier run: not ours to be chosen from

    def measure() -> dict:
        batch = config.microbatch or 512
        return levels.error_per_level(ema, dataset, config.conditional, config.level_samples, world, batch)

    state.before = measure() if state.before is None else state.before
    batches = Batches(dataset, config, loss, device)
    model = nn.parallel.DistributedDataParallel(net, **{CONSTANT_BUFFERS: False}) if world.size > 1 else net
    error = torch.compile(weighted_error) if compile else weighted_error
    first_sample, share = _share(config.batch_size, world)
    micro = min(config.microbatch or share, share)
    parameters, averages = list(net.parameters()), list(ema.parameters())

    def keep() -> None:
        """Saves the state, after the log and the journal: continued from it, they lack no row."""
        log.sync()
        if run is not None:
            run.sync()
        state.save(images, time.monotonic() - started)
        pauses.saved()

    total, snapshots = config.steps * config.batch_size, set(config.snapshots)
    tick = max(1, min(config.steps // TICKS, TICK_IMAGES // config.batch_size)) * config.batch_size
    started, pauses = time.monotonic() - state.seconds, Pauses(world, notice, state_every)
    tick_time, tick_images = time.monotonic(), images
    sums = state.sums  # since the last row of the log: loss, images, non-finite gradient entries
    bar = tqdm(total=total, initial=images, unit="img", unit_scale=True, disable=None if world.is_first else True)
    net.train()
    system = SystemMetrics()
    notice.hold()
    while images < total:
        # One step: gradients of the mean loss over batch_size images, from this process's share in rounds of `micro`.
        if config.dropout > 0:
            torch.manual_seed(_step_seed(config.seed, images, world.rank))
        first = images + first_sample
        for start in range(0, share, micro):
            count = min(micro, share - start)
            batch = batches.draw(first + start, count)
            last = start + count == share
            with nullcontext() if last or world.size == 1 else model.no_sync():
                pixels = error(model, loss, batch.images, batch.sigma, batch.noise, batch.labels, batch.augment_labels)
                # Summed over pixels, averaged over the whole minibatch; DDP divides by the number of processes.
                (pixels.sum() * (config.loss_scale * world.size / config.batch_size)).backward()
            sums[0] += pixels.detach().sum(dtype=torch.float64)
            sums[1] += count
        replaced = _clean_gradients(parameters, config)
        sums[2] += replaced if world.is_first else 0  # DDP gave every process the same gradients
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(config, images)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - ema_decay_at(config, images))
        images += config.batch_size
        bar.update(config.batch_size)

        if images % tick == 0 or images >= total:
            loss_sum, seen, nonfinite = world.sum(sums).tolist()
            sums.zero_()
            mean = loss_sum / seen / math.prod(dataset.images.shape[1:])
            if not math.isfinite(mean):
                raise UserError(
                    f"{out}: the loss became {mean} after {images:,} images; the last good state "
                    f"({state.images:,} images) is kept. Try a lower learning_rate, clip_norm: 1.0 or precision: fp32"
                )
            now = time.monotonic()
            row = {
                "images": images,
                "loss": mean,
                "learning_rate": learning_rate_at(config, images - config.batch_size),
                "images_per_second": (images - tick_images) / max(now - tick_time, 1e-9),
                "seconds": now - started,
                "nonfinite_gradients": int(nonfinite),
            }
            tick_time, tick_images = now, images
            log.write(row)
            if run is not None and world.is_first:
                numbers = {key: value for key, value in row.items() if key != "images"}
                run.metrics(numbers | system.read(), step=images)
            bar.set_postfix_str(f"loss {mean:.4g}")
        if images in snapshots and world.is_first:
            snapshot = out / "snapshots" / f"{images:012d}.safetensors"
            if not snapshot.exists():  # else it was written before an interruption
                checkpoint.save(snapshot, ema, config, {**about, "images": images})
        pause = pauses.after_step(state.cost) if images < total else None
        if pause:  # last in a step: the state lacks nothing of it
            keep()
        if pause == "stop":
            bar.close()
            world.wait()  # the first process may still be writing
            raise Preempted(_stopped(notice, images, state.images) if world.is_first else "")
    bar.close()

    keep()  # whatever fails from here on costs no training
    notice.release()
    if world.is_first:
        checkpoint.save(final / "model.safetensors", ema, config, {**about, "images": images})
    after = measure()
    if world.is_first:
        for name, level in (("before", state.before), ("after", after)):
            if run is not None:
                run.metrics({f"error_{name}_training": sum(level["mean"]) / len(level["mean"])}, step=total)
        write_json(final / "levels.json", {"before": state.before, "after": after, "training": log.curve("loss")})
        if run is not None:
            run.artifact(final / "levels.json")
            run.finish()
    world.wait()
    notice.hold()  # it is done: a stop would be an error now
    if world.is_first:
        state.remove()  # last: a process killed before continues from it
    return ema


def check(config: TrainingConfig, dataset: Dataset, world: World) -> None:
    """Raises UserError where a dataset does not fit a configuration, or the processes cannot share its minibatch."""
    dataset.require(*config.dataset_size)
    if config.batch_size < world.size:
        raise UserError(f"batch_size {config.batch_size} is too small for {world.size} processes; start fewer")


def _share(batch_size: int, world: World) -> tuple[int, int]:
    """This process's part of every minibatch: its first sample and how many. Shares differ by one image at most."""
    first, last = (batch_size * (world.rank + more) // world.size for more in (0, 1))
    return first, last - first


def learning_rate_at(config: TrainingConfig, images: int) -> float:
    """Ramped linearly over the first ``lr_rampup`` Mimg, then constant (Table 7); of the step after ``images``."""
    ramp = config.lr_rampup * 1e6
    return config.learning_rate * min((images + config.batch_size) / ramp, 1.0) if ramp else config.learning_rate


def ema_decay_at(config: TrainingConfig, images: int) -> float:
    """β = 0.5^(batch/half-life); the half-life is capped at ``ema_rampup`` × images seen (Table 7)."""
    halflife = config.ema_halflife * 1e6
    if config.ema_rampup is not None:
        halflife = min(halflife, config.ema_rampup * images)
    return 0.5 ** (config.batch_size / halflife) if halflife > 0 else 0.0


def _clean_gradients(parameters: list[Tensor], config: TrainingConfig) -> Tensor:
    """Undoes the loss scale, replaces NaN by 0 and ±inf by ±1e5, clips; returns how many entries it replaced.

    In full precision nothing is replaced: a non-finite gradient is an error there, which the loss will show.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    replaced = torch.zeros((), dtype=torch.float64, device=grads[0].device)
    if config.loss_scale != 1.0:
        torch._foreach_div_(grads, config.loss_scale)
    if config.precision in ("fp16", "bf16"):
        replaced = sum((~grad.isfinite()).sum(dtype=torch.float64) for grad in grads)
        for grad in grads:
            torch.nan_to_num_(grad, nan=0.0, posinf=1e5, neginf=-1e5)
    if config.clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    return replaced


def _stopped(notice: Notice, images: int, saved: int) -> str:
    """What a person reads of an early stop."""
    kept = "the state is saved" if saved == images else f"only the state of {saved:,} images is kept"
    reason = notice.reason or "another process was asked to"
    return f"{reason}, after {images:,} images; {kept}, the same command continues"


def _step_seed(seed: int, images: int, rank: int) -> int:
    """The seed of a step's dropout: resuming needs no generator state."""
    return (seed * 1_000_003 + images * 4099 + rank) % 2**63

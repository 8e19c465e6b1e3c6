"""The training loop, for a CPU, one GPU and several GPUs."""

import copy
import math
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from edm.cluster.preemption import Notice, Pauses
from edm.cluster.processes import ALONE, World
from edm.config import TrainingConfig
from edm.data.archive import Dataset
from edm.errors import Preempted, UserError
from edm.files.background import Background
from edm.files.writing import remove_temporaries
from edm.models import checkpoint
from edm.models.compilation import Compiled
from edm.models.denoiser import Denoiser
from edm.networks.precision import set_float32
from edm.tracking import Run, SystemMetrics
from edm.training import loss_levels as levels
from edm.training.averaging import TRACKS
from edm.training.bound import bound
from edm.training.curves import write_curves
from edm.training.folder import FINAL, TrainingFolder
from edm.training.log import TrainingLog
from edm.training.overflows import Overflows
from edm.training.progress import Progress
from edm.training.state import TrainingState, remove_states
from edm.training.step import TrainingStep, learning_rate_at

TICKS, TICK_IMAGES = 100, 100_000  # a log row a hundred times per run, and at least every 100,000 images
FILES = ("log.jsonl", "snapshots/*.safetensors", "state-?.safetensors")


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
    compiled: Compiled | None = None,
    recompute: bool = False,
    about: dict[str, Any] | None = None,
    made_from: str = "",
    tell: bool = False,
) -> Denoiser:
    """Trains a configuration on a dataset and returns the averaged (EMA) denoiser.

    Writes to ``out``: model.safetensors, levels.json (loss per noise level before and after training, and the loss
    curve), log.jsonl, snapshots/ if configured, and, until training ends, its last two states, state-0.safetensors and
    state-1.safetensors. An interrupted run of the same configuration resumes from the newer state; its weights,
    log and snapshots are bit-identical to those of an uninterrupted run.

    final: folder for model.safetensors and levels.json, instead of ``out``.
    run: receives the logged metrics; finished at the end. notice: requests an early stop. state_every: seconds between
    two states. compiled, recompute: as in :class:`TrainingStep`. about: entries for the header of the checkpoint.
    made_from: identifies the code and the preceding steps; a state with another value is moved aside, not resumed.
    tell: prints lines about the progress where no terminal shows a bar.
    Raises Preempted if ``notice`` requests a stop, after saving the state; UserError if the dataset does not fit the
    configuration, or if the loss stops being finite (the last good state is then kept).
    """
    check(config, dataset, world)
    set_float32(config.precision)
    notice, final = notice or Notice(), final or out
    about = {**(about or {}), "dataset_sha256": dataset.sha256}

    step = TrainingStep(config, dataset, world, compiled, recompute)
    if world.is_first:
        tracks = [f"{TRACKS}/{width:g}/*.safetensors" for width in config.ema_widths]
        for path in (*(final / name for name in FINAL), *(out / name for name in (*FILES, *tracks))):
            remove_temporaries(path)  # left by a process killed while writing
    with Background() as background:
        state = TrainingState(out, config, dataset, step.net, step.ema, step.optimizer, world, background,
                              made_from, step.tracks)  # fmt: skip
        seen = state.restore()
        log = TrainingLog(out / "log.jsonl", seen, world.is_first)
        folder = TrainingFolder(out, final, config, dataset, made_from)
        if world.is_first:
            folder.note(finished=False)
        if seen == 0 and world.is_first:
            for name in ("snapshots", TRACKS):  # of an earlier run
                shutil.rmtree(out / name, ignore_errors=True)

        def measure() -> levels.Levels:
            batch = config.microbatch or 512
            return levels.error_per_level(step.ema, dataset, config.conditional, config.level_samples, world, batch)

        before = state.before = measure() if state.before is None else state.before

        def keep() -> None:
            """Saves the state after the log and the journal, so that a resumed run finds all rows up to its state."""
            log.sync()
            if run is not None:
                run.sync()
            state.save(seen, time.monotonic() - started)
            pauses.saved()

        total, snapshots = config.steps * config.batch_size, set(config.snapshots)
        tick = max(1, min(config.steps // TICKS, TICK_IMAGES // config.batch_size)) * config.batch_size
        started, pauses = time.monotonic() - state.seconds, Pauses(world, notice, state_every)
        tick_time, tick_start = time.monotonic(), seen
        sums = state.sums  # since the last log row
        parameters = sum(parameter.numel() for parameter in step.net.parameters())
        overflowing = Overflows(out, config, parameters, state.overflowing, world.is_first)
        progress = Progress(out, total, seen, world.is_first, tell)
        system = SystemMetrics()
        notice.hold()
        while seen < total:
            step(seen, sums)
            seen += config.batch_size
            progress.advance(config.batch_size)

            if seen % tick == 0 or seen >= total:
                loss_sum, in_tick, nonfinite, overflows = world.sum(sums).tolist()
                sums.zero_()
                mean = loss_sum / in_tick / math.prod(dataset.images.shape[1:])
                if not math.isfinite(mean):
                    background.wait()
                    kept = world.share(state.seen)  # of rank 0, which writes the states: the others wait for it
                    raise UserError(
                        f"{out}: the loss became {mean} after {seen:,} images; the last good state ({kept:,} "
                        "images) is kept. Try a lower learning_rate, clip_norm: 1.0 or precision: fp32"
                    )
                overflowing.look(int(overflows), int(nonfinite), round(in_tick) // config.batch_size, seen)
                state.overflowing = overflowing.in_a_row
                now = time.monotonic()
                row = {
                    "images": seen,
                    "loss": mean,
                    "learning_rate": learning_rate_at(config, seen - config.batch_size),
                    "images_per_second": (seen - tick_start) / max(now - tick_time, 1e-9),
                    "seconds": now - started,
                    "nonfinite_gradients": int(nonfinite),
                }
                tick_time, tick_start = now, seen
                log.write(row)
                if run is not None and world.is_first:
                    numbers = {key: value for key, value in row.items() if key != "images"}
                    run.metrics(numbers | system.read(), step=seen)
                progress.loss(mean)
            if seen in snapshots and world.is_first:
                for folder_name, average, kind in kept_averages(step):
                    snapshot = out / folder_name / f"{seen:012d}.safetensors"
                    if not snapshot.exists():  # else written before an interruption
                        taken, told = copy.deepcopy(average).cpu(), {**about, "images": seen, **kind}
                        background.do(partial(checkpoint.save, snapshot, taken, config, told))
                progress.tell("snapshot")
            pause = pauses.after_step(state.cost) if seen < total else None
            if pause:  # last in a step, so that the state includes the whole step
                keep()
            if pause == "stop":
                progress.close()
                background.wait()
                world.wait()  # the first process may still be writing
                raise Preempted(_stopped(notice, seen, state.seen) if world.is_first else "")
        progress.close()

        keep()  # a failure after this line loses no training
        background.wait()
        notice.release()
        if world.is_first:
            checkpoint.save(final / "model.safetensors", step.ema, config, {**about, "images": seen})
        after = measure()
        if world.is_first:
            for name, level in (("before", before), ("after", after)):
                if run is not None:
                    run.metrics({f"error_{name}_training": sum(level["mean"]) / len(level["mean"])}, step=total)
            write_curves(final / "levels.json", before, after, log.curve("loss"))
            if run is not None:
                if after["sigma"]:
                    bits = bound(after, config.sigma_data)
                    numbers = {"bits_per_dimension_bound": bits.bits, "bits_per_dimension_bound_s": bits.s or 0.0}
                    run.metrics(numbers, step=total)
                run.artifact(final / "levels.json")
                run.finish()
        world.wait()
        notice.hold()  # training is complete: stopping now would report a false interruption
        if world.is_first:
            folder.note(finished=True)
            remove_states(out)  # last: a process killed earlier resumes from them, or finds the training run finished
        return step.ema


def kept_averages(step: TrainingStep) -> Iterator[tuple[str, Denoiser, dict[str, Any]]]:
    """The averages that a snapshot keeps: folder, weights, entry of the header. The EMA's comes first."""
    yield "snapshots", step.ema, {}
    for width, average in step.tracks.items():
        yield f"{TRACKS}/{width:g}", average, {"ema": {"width": width}}


def check(config: TrainingConfig, dataset: Dataset, world: World) -> None:
    """Raises UserError if a dataset does not fit a configuration, or if a batch has fewer images than processes."""
    dataset.require(*config.dataset_size)
    if config.batch_size < world.size:
        raise UserError(f"batch_size {config.batch_size} is too small for {world.size} processes; start fewer")


def _stopped(notice: Notice, seen: int, saved: int) -> str:
    """The message about an early stop."""
    kept = "the state is saved" if saved == seen else f"only the state of {saved:,} images is kept"
    reason = notice.reason or "another process was asked to"
    return f"{reason}, after {seen:,} images; {kept}, the same command continues"

"""``edm.train``: a training run in one call."""

from pathlib import Path

import torch

from edm.checked import choose, fits
from edm.cluster.processes import World, pick_device
from edm.config import AUTO, COMPILE, TrainingConfig
from edm.data.archive import Dataset
from edm.errors import UserError
from edm.files.lock import exclusive
from edm.models import checkpoint
from edm.models.compilation import options
from edm.models.denoiser import Denoiser
from edm.networks.flops import BACKWARD
from edm.training import loop
from edm.training.folder import FINAL, TrainingFolder


def train(
    config: TrainingConfig,
    dataset: Dataset | str | Path,
    out: str | Path,
    *,
    device: str | torch.device = "auto",
    compile: str = AUTO,
    recompute: bool = False,
    state_every: float = 300.0,
) -> Denoiser:
    """Trains a configuration on a dataset in this process and returns the averaged (EMA) denoiser.

    dataset: a :class:`edm.Dataset`, or the path of an archive. out: folder for model.safetensors, levels.json (loss per
    noise level), log.jsonl, snapshots/, and the states of an unfinished run. The same call resumes an interrupted run
    bit for bit; that of a finished run loads its model. device: auto, cpu, cuda or cuda:N. compile, recompute: as in
    params.yaml.
    state_every: seconds between two states. Several GPUs: ``torchrun -m edm train``.

    Raises UserError if the dataset does not fit the configuration, if ``out`` holds another training run, if another
    process trains there, or if the loss stops being finite.
    """
    if not isinstance(config, TrainingConfig):
        raise UserError(f"config is of type {type(config).__name__}; expected an edm.TrainingConfig")
    if not isinstance(out, str | Path):
        raise UserError(f"out is of type {type(out).__name__}; expected the path of a folder")
    if not fits(state_every, float) or state_every < 0:
        raise UserError(f"state_every is {state_every!r}; expected a number of seconds")
    choose("compile", compile, COMPILE)
    if not isinstance(recompute, bool):
        raise UserError(f"recompute is {recompute!r}; expected True or False")
    if not isinstance(dataset, Dataset):
        dataset = Dataset.open(dataset)
    place, folder = World(device=pick_device(str(device))), Path(out)
    work = (1 + BACKWARD) * config.steps * config.batch_size
    compiled = options(compile, config.network(), work, place.device)
    loop.check(config, dataset, place)
    with exclusive(folder / ".training"):
        own = TrainingFolder(folder, folder, config, dataset)
        if own.is_finished():
            return checkpoint.load(folder / FINAL[0], place.device)
        own.require_own()
        return loop.train(config, dataset, folder, place, state_every=state_every, compiled=compiled,
                          recompute=recompute)  # fmt: skip

"""A small chain whose files the program itself has written, one or more of each of its formats."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edm import params
from edm.analysis.studies import save_study
from edm.chain import paths, throughput
from edm.chain.job import Job
from edm.chain.jobs import Chain
from edm.chain.provenance import start
from edm.cluster.processes import ALONE
from edm.config import TrainingConfig
from edm.data.archive import Dataset
from edm.evaluation.finished import Finished
from edm.evaluation.history import SearchHistory
from edm.evaluation.records import MEASURED, write_choice, write_results, write_search
from edm.files.download import pin
from edm.files.hashes import LOCAL, Hashes, sha256_file
from edm.files.tensors import save_tensors
from edm.files.writing import write_json
from edm.training.curves import write_curves
from edm.training.folder import TrainingFolder
from edm.training.log import TrainingLog

PARAMS = """
run: [tiny]
tracking: {uri: "sqlite:///mlruns/none.db"}
datasets:
  made: {source: folder, path: pictures, resolution: 8, channels: 1, classes: 0}
experiments:
  tiny:
    dataset: made
    features: pixels
    base: {conditional: false, model_channels: 8, num_blocks: 1, attn_resolutions: [], channel_mult: [1, 2]}
    columns: {vp: {architecture: ddpmpp}}
    ladder: {A: {duration: 1.0e-3, batch_size: 250, snapshot_every: 5.0e-4}}
    sampling: {images: 20, block: 10, first_seed: 100, repeats: 2, gpus: 0}
    choose: {grid: ladder, images: 10, confirm: 1}
    searches: {best: {models: [vp-A], images: 10, num_steps: 4, over: {S_churn: [0, 4], S_noise: [1.0, 1.007]}}}
    sheets: {look: {models: all, num_steps: 3, images: 4}}
    analyses:
      steps: {kind: truncation, models: [vp-A], num_steps: 4, rhos: [1, 7]}
      churned: {kind: degradation, models: [vp-A], sigmas: [1, 2], repetitions: [0, 10], images: 2}
      leak: {kind: leakage, models: [vp-A], images: 4}
    grids:
      ladder: {models: all, num_steps: 3}
      churn: {models: [vp-A], settings_from: best, num_steps: [4, 8]}
    tables:
      table2: {kind: configurations, title: T, grid: ladder}
      table4: {kind: samplers, title: T, nfe: of the best, columns: [vp-A], rows: {One: ladder, Two: churn}}
      table5: {kind: settings, title: T, columns: {ours: "vp-A:best"}}
    figures:
      curve: {kind: curve, over: nfe, lines: {A: "vp-A:churn"}}
      levels: {kind: levels, of: [vp-A]}
      looks: {kind: sheets, images: 4, panels: {A: "vp-A:look"}}
      steps: {kind: truncation, of: ["vp-A:steps"]}
      churned: {kind: degradation, of: ["vp-A:churned"]}
      leak: {kind: leakage, of: ["vp-A:leak"], images: 4}
"""
ADVICE = {name: 0.5 for name in ("sigma_data", "sigma_min", "sigma_max", "P_mean", "P_std")}
ADVICE |= {"P_mean_new": None, "P_std_new": None}
CONFIG = TrainingConfig(resolution=8, channels=1, classes=0, conditional=False)
HISTORY, FINISHED, RUN = Path("choice.history.jsonl"), Path("ladder.finished.json"), Path("run")
RATES, PINS, SHARD = Path("throughput.json"), Path("downloads.lock.json"), Path("1-of-2.safetensors")
OF, RESULT = {"of": "a choice"}, {"images": 20, "nfe": 5, "distance": 2.5, "kid": -0.1, "more": {"other": 3.5}}


def made(folder: Path) -> Chain:
    """Makes the files in a folder, which becomes the working directory; returns their chain."""
    os.chdir(folder)
    Path("params.yaml").write_text(PARAMS)
    Path("pictures").mkdir()
    Path("pictures/1.png").write_text("a picture")
    chain = Chain(params.load("params.yaml"))
    for job in chain.needed(chain.targets("tiny")):
        step = start(chain, job.name)
        for path in job.outputs:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(f"made by {job.name}")
        if job.rule in WRITERS:
            WRITERS[job.rule](chain, job)
        step.finish(processes=1, gpu="made up")
    hashes = Hashes(LOCAL / "hashes.json")
    old = {path: os.utime(path, (0, 0)) for path in ("params.yaml", "pictures/1.png")}
    hashes._known |= {path: [[1, 2, 3, 4], sha256_file(path)] for path in old}
    hashes._new = True
    hashes.save()
    for batch in (8, 16):
        rate = ("n" * 12, 10**6, f"GPU {batch}", "cuda", "fp32", batch, 10.0, 20.0, "2026-01-01", "made up")
        throughput.record(RATES, throughput.Measurement(*rate))
    pin(PINS, "downloads/a.pkl", "a" * 64)
    history = SearchHistory(HISTORY, OF)
    for name in ("a", "b"):
        history.measure({"candidate": name, "stage": "cheap"}, lambda: 2.5)
    Finished(FINISHED, OF, ALONE, each=MEASURED).take("one@0", lambda: RESULT)
    training_folder().note(finished=False)
    log = TrainingLog(RUN / "log.jsonl", 0, True)
    for images in (100, 200, 300):
        log.write({"images": images, "loss": 0.5, "seconds": 1.0})
    header = {"format": "edm-shard/1", "of": {"block": 4}, "part": 0, "parts": 2, "seen": [], "checksum": "0" * 12}
    save_tensors(SHARD, {"0/evaluations": torch.tensor(3)}, header)
    return chain


def training_folder() -> TrainingFolder:
    dataset = Dataset(np.zeros((1, 1, 8, 8), np.uint8), None, "d" * 64, "made up")
    return TrainingFolder(RUN, RUN, CONFIG, dataset)


def _about(job: Job) -> dict[str, Any]:
    checkpoint = {"path": job.one("model"), "sha256": sha256_file(job.one("model")), "dataset_sha256": "d" * 64}
    return {"checkpoint": {**checkpoint, "images": 1000}, "settings": None}


def _metric(job: Job) -> dict[str, Any]:
    return {"label": "FD (pixels)", "features": "pixels", "description": "pixels", "weights_sha256": None,
            "reference_sha256": sha256_file(job.inputs["references"][0]), "reference_images": 60,
            "dataset_sha256": "d" * 64}  # fmt: skip


def _evaluate(chain: Chain, job: Job) -> None:
    evaluation = chain.experiments["tiny"].evaluation(*job.key[1:])
    names = {"experiment": "tiny", "model": job.key[1], "grid": evaluation.grid, "evaluation": evaluation.name}
    rows = [{"id": point.id, "repeat": repeat, "first_seed": 100, "sampler": point.sampler.to_dict(), **RESULT,
             "run": f"tiny/{job.key[1]}/{point.id}", "distance": 3.5 - repeat}
            for point, repeat in evaluation.draws]  # fmt: skip
    write_results(job.outputs[0], names, _about(job), [_metric(job)], rows)


def _choose(chain: Chain, job: Job) -> None:
    snapshots = {"000000000500.safetensors": 2.5, "000000001000.safetensors": None}
    (path,) = (path for path in job.outputs if path.endswith(".json"))
    write_choice(path, _metric(job), {"best": "000000000500.safetensors", "value": 2.5, "cheap": snapshots,
                                      "full": snapshots, "confirm_images": 20})  # fmt: skip


def _search(chain: Chain, job: Job) -> None:
    write_search(job.outputs[0], {**_about(job), "metric": _metric(job), "settings": {"S_churn": 4, "S_noise": 1.007},
                                  "value": 2.5, "evaluations": 4, "converged": True, "method": "coordinate",
                                  "images": 10, "run": "tiny/vp-A/search/best"})  # fmt: skip


def _train(chain: Chain, job: Job) -> None:
    levels = {"sigma": [0.1, 1.0, 10.0], "mean": [0.5, 0.2, 0.4], "std": [0.1, 0.1, 0.2], "samples": 2}
    write_curves(paths.levels_file(chain.experiments["tiny"], job.key[1]), levels, levels,
                 {"images": [100, 200], "loss": [0.5, 0.4]})  # fmt: skip


def _pictures(*shape: int) -> torch.Tensor:
    return torch.arange(int(np.prod(shape)), dtype=torch.uint8).reshape(shape)


def _sample(chain: Chain, job: Job) -> None:
    save_tensors(job.outputs[0], {"images/only": _pictures(4, 1, 8, 8)}, {"format": "edm-samples/1"})


def _analyse(chain: Chain, job: Job) -> None:
    error = {"mean": [0.3, 0.2], "std": [0.1, 0.1]}
    curves = [{"rho": rho, "sigma": [10.0, 1.0], "euler": error, "heun": error} for rho in (1.0, 7.0)]
    degraded = {"1": torch.linspace(-1, 1, 512).reshape(2, 2, 2, 1, 8, 8)}
    leaked = {name: _pictures(4, 1, 8, 8) for name in ("dataset", "augmented", "generated")}
    studies: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]] = {
        "steps": ({}, {"num_steps": 4, "curves": curves}),
        "churned": (degraded, {"sigmas": [1.0, 2.0], "repetitions": [0, 10], "S_noise": [1.0]}),
        "leak": (leaked, {"distances": {"generated-clean": 1.25}, "metric": "FD (pixels)"}),
    }  # fmt: skip
    save_study(job.outputs[0], *studies[job.key[2]], _about(job))


WRITERS: dict[str, Callable[[Chain, Job], None]] = {
    "evaluate": _evaluate, "choose": _choose, "search": _search, "train": _train, "sample": _sample,
    "analyse": _analyse,
    "advise": lambda chain, job: write_json(job.outputs[0], ADVICE),
    "track": lambda chain, job: write_json(job.outputs[0], {"runs": 3, "reason": "no network"}),
}  # fmt: skip

"""A chain whose steps only pretend. Snakemake, the rules, plans and sidecars are the real ones.

Each step writes its own name into its files, in a second or so; a training another file each time, as on GPUs.
"""

import os
import re
import shlex
import signal
import sys
from pathlib import Path

import yaml

from edm import params
from edm.chain.jobs import Chain
from edm.chain.provenance import Provenance, start

ROOT = Path(__file__).parent.parent.parent
RAN = "ran.txt"
FAILING = "PRETEND_TO_FAIL"  # the name of a step
KILLING = "PRETEND_TO_KILL"  # the name of a step that kills Snakemake, and ends before its sidecar
PARAMS = """
run: [tiny]
datasets:
  made: {source: folder, path: pictures, resolution: 8, channels: 1, classes: 0}
experiments:
  tiny:
    dataset: made
    features: pixels
    base: {conditional: false, model_channels: 8, num_blocks: 1, attn_resolutions: [], channel_mult: [1, 2]}
    columns: {vp: {architecture: ddpmpp}}
    ladder: {A: {duration: 1.0e-3, batch_size: 300, snapshot_every: 3.0e-4}, B: {learning_rate: 2.0e-3}}
    sampling: {images: 20, block: 10, shards: 2}
    choose: {grid: ladder, images: 6, confirm: 2}
    grids:
      ladder: {models: all, num_steps: 3}
      steps: {models: [vp-A], settings_from: walk, num_steps: [4, 5]}
    searches: {walk: {models: [vp-A], num_steps: 2, images: 7, max_sweeps: 1, over: {S_churn: [0, 1]}}}
    sheets: {look: {models: all, num_steps: 5, images: 4}}
    analyses: {leak: {kind: leakage, models: [vp-A], images: 11}}
    tables:
      table2: {kind: configurations, title: T, grid: ladder}
      table3: {kind: samplers, title: T, nfe: of the best, rows: {ours: steps}, columns: [vp-A]}
      table5: {kind: settings, title: T, columns: {A: "vp-A:walk"}}
    figures:
      looks: {kind: sheets, panels: {A: "vp-A:look", B: "vp-B:look"}}
      leak: {kind: leakage, of: ["vp-A:leak"]}
"""


def pretend(folder, name, digest=None, fetched=()):
    """A step, from its start to its sidecar."""
    os.chdir(folder)
    chain = Chain(params.load("params.yaml"))
    step = start(chain, name, digest, fetched)
    once = os.urandom(4).hex() if step.job.rule == "train" else ""
    for path in step.job.outputs:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        assert not Path(path).exists(), path
        if not Path(path).suffix:  # made-up pictures
            Path(path).mkdir()
            path = f"{path}/1.png"
        Path(path).write_text(f"{name} made {path} {once}")
    if name == os.environ.get(KILLING):
        os.kill(os.getppid(), signal.SIGKILL)
    if name in (os.environ.get(FAILING), os.environ.get(KILLING)):
        sys.exit(1)
    step.finish()
    with open(RAN, "a", encoding="utf-8") as file:
        file.write(f"{name}\n")


def make(folder, text=PARAMS):
    """A folder whose chain was run once, and the stand-in for `edm`."""
    (folder / "pictures").mkdir(parents=True)
    (folder / "pictures" / "1.png").write_bytes(b"one")
    (folder / "params.yaml").write_text(text)
    command = folder / "bin" / "edm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} "$@"\n')
    command.chmod(0o755)
    here = os.getcwd()
    try:
        os.chdir(folder)
        chain = Chain(params.load("params.yaml"))
        for job in chain.needed(chain.targets("tiny")):
            pretend(folder, job.name)
    finally:
        os.chdir(here)
    for path in (folder / "runs").rglob("*.shards/*"):
        path.unlink()
    return folder


def snakemake(folder, *words):
    """Plain snakemake with the stand-in for `edm`."""
    import forking  # the stand-in does not find it, and does not need it

    path = os.pathsep.join((str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
    command = ["snakemake", "--snakefile", ROOT / "workflow" / "Snakefile", "--cores", "2", *words]
    return forking.run(command, folder, {"PATH": path, "PYTHONPATH": str(ROOT)})


def dry_run(folder, *words):
    """The steps that `snakemake -n` would run."""
    done = snakemake(folder, "-n", "-p", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    commands = re.findall(r"edm launch --step ('[^']*'|\S+)", done.stdout + done.stderr)
    return sorted(shlex.split(command)[0] for command in commands)


def run(folder, *words):
    """The steps that `snakemake` ran."""
    (folder / RAN).write_text("")
    done = snakemake(folder, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted((folder / RAN).read_text().splitlines())


def planned(target="tiny", forced=()):
    """The steps that a plan of the working directory counts."""
    chain = Chain(params.load("params.yaml"))
    return sorted(job.name for job in Provenance(chain).to_run(chain.targets(target), forced))


def edit(change):
    raw = yaml.safe_load(Path("params.yaml").read_text())
    change(raw)
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))


if __name__ == "__main__":
    if sys.argv[1] == "launch":
        told = sys.argv[2 : sys.argv.index("--")]
        value = lambda option: told[told.index(option) + 1]
        gone = [told[i + 1] for i, word in enumerate(told) if word == "--fetched"]
        pretend(os.getcwd(), value("--step"), value("--digest"), gone)
    else:
        from edm.cli import main

        sys.exit(main(sys.argv[1:]))

"""Command lines: every command with values of the wrong kind, size or type, and paths to what is no such file.

`python tests/fuzz/fuzz_cli.py --count 1500 --seed 1` runs them in this process, in a folder of small files that is put
back after each. Three things are replaced: `edm launch` starts no process, nothing leaves this machine, and MLflow gets
nothing.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import door

import edm.cli
from edm.cli import main
from edm.commands import launching

FIXTURES = Path(__file__).parent.parent / "fixtures" / "checkpoints"
PARAMS = """
run: [tiny]
tracking: {uri: "http://127.0.0.1:9"}
downloads:
  out/a.bin: {url: "http://127.0.0.1:9/a.bin"}
  in/b: {url: null, note: by hand}
pretrained: {fixture: {path: in/score_sde-vp.pth, resolution: 32, like: tiny/vp-A}}
datasets:
  made: {source: zip, path: in/d.zip, resolution: 8, channels: 1, classes: 4}
  rehearsed: {source: folder, path: runs/made-up/r, made_up: 4, images: 4, source_size: 8, resolution: 8, channels: 1, classes: 0}
experiments:
  tiny:
    dataset: made
    features: pixels
    base: {conditional: true, model_channels: 8, num_blocks: 1, attn_resolutions: [], channel_mult: [1], level_samples: 4}
    columns: {vp: {architecture: ddpmpp}}
    ladder: {A: {duration: 1.0e-4, batch_size: 50, snapshot_every: 5.0e-5}, B: {learning_rate: 2.0e-3}}
    sampling: {images: 6, block: 3}
    choose: {grid: ladder, images: 4, confirm: 1}
    grids: {ladder: {models: all, num_steps: 2}}
    searches: {walk: {models: [vp-A], num_steps: 2, images: 4, max_sweeps: 1, over: {S_churn: [0, 1]}}}
    sheets: {look: {models: all, num_steps: 2, images: 4}}
    analyses: {leak: {kind: leakage, models: [vp-A], images: 4}}
    tables: {table2: {kind: configurations, title: T, grid: ladder}}
    figures: {looks: {kind: sheets, panels: {A: "vp-A:look"}}}
"""  # noqa: E501 (an entry per line)

#: What each argument usually is. Of several, one by chance; arguments that are not listed are left out or of any kind.
USUAL: dict[str, list[str]] = {
    "alpha": ["1", "0.5"], "batch": ["2"], "beta_max": ["20"], "beta_min": ["0.1"], "block": ["4", "auto"],
    "compile": ["auto", "no"],
    "channels": ["1", "3"], "channels_per_head": ["32"], "checkpoint": ["in/m.safetensors"], "checksum": ["none"],
    "class_label": ["0", "3"], "classes": ["4", "0"], "column": ["vp"], "config": ["in/c.json"], "data": ["in/d.zip"],
    "device": ["cpu"], "digest": ["0" * 12], "discretization": ["edm", "vp"], "experiment": ["tiny"],
    "features": ["pixels", "digits-classifier"], "file": ["in/nvlabs-edm.pkl", "in/score_sde-vp.pth", "in/adm.pt"],
    "folders": ["in", "runs"], "gpus": ["0"], "history": ["out/h.jsonl"], "images": ["32"], "input": ["in/d.zip"],
    "journal": ["out/journal.jsonl"], "keep_features": ["5"], "limit": ["0.1"], "lock": ["out/lock.json"],
    "metrics": ["kid", "precision"], "model": ["vp-A", "vp-B"], "nodes": ["1"], "num_steps": ["2"],
    "out": ["out/run"], "params": ["params.yaml"], "place": ["runs/made-up/r"], "processes": ["1"],
    "published": ["fixture"], "ref": ["in/r.npz"], "report": ["tiny"], "resolution": ["8", "16"], "rho": ["7"],
    "rest": ["check"], "row": ["A"], "samples": ["in/s.safetensors"], "scaling": ["none", "vp"], "search": ["walk"],
    "schedule": ["linear", "vp"], "seconds": ["0.01"], "seed": ["0"], "seeds": ["0-3", "7"], "sheet": ["look"],
    "settings": ["in/search.json"], "shard": ["1/2"], "solver": ["heun", "euler", "rk45", "ddim"],
    "snapshots": ["in/snapshots"], "source": ["zip", "folder", "digits"], "source_size": ["8"], "analysis": ["leak"],
    "state_every": ["1"], "step": ["train tiny/vp-A"], "table": ["tiny/table2"], "target": ["tiny"], "threads": ["1"],
    "targets": ["tiny"], "throughput": ["in/throughput.json"], "time_limit": ["600"], "uri": ["http://127.0.0.1:9"],
    "weights": ["in/w.safetensors"], "workers": ["1", "2"], "evaluation": ["ladder"], "S_churn": ["1"],
    "path": ["out/a.bin", "in/b"], "parts": ["in/s.safetensors", "in/s2.safetensors"], "dataset": ["made", "rehearsed"],
    "names": ["table2", "looks"], "expect": ["0" * 12],
}  # fmt: skip
OUTPUTS = ["out/o.safetensors", "out/o.npz", "out/o.json", "out/o.png", "out/o.zip", "out/o.pt"]
NUMBERS = ["-1", "0", "1.5", "1e-300", "nan", "-inf", "inf", "1e400", "1e308", "9" * 20, "9" * 5000, "0x10", "٣", " 7",
           "99999999999", "2147483648", "1e3", "0-99999999999", "5-2", "1/0", "3/2", "1/99999999999"]  # fmt: skip
WORDS = ["", " ", "x", "only", "../..", "a\nb", "é", "e\u0301", "\udcff", "{x}", "$HOME", "%s", "'", "a" * 300,
         "b" * 9000, "-", "--", "--nonsense", "\x1b[31m",
         "a/b", "digits", "tiny/vp-A", "cuda", "cuda:99", "none"]  # fmt: skip
PLACES = ["pipe", "/dev/zero", "/dev/full", "/dev/null", "/dev/stdin", "/", ".", "in", "empty", "nothing.zip",
          "dangling", "circle", "missing/x", "in/m.safetensors/x", "a/" * 2500 + "x", "n" * 300 + ".zip", 
          "/proc/self/mem",
          "/proc/kmsg", "/proc/self/environ", "out/\udcff.json", "text", "name with space\n.zip"]  # fmt: skip


def generate(count: int, seed: int, place: Path | None = None) -> door.Inputs:
    """Command lines; ``seed:number`` names each and makes it again."""
    with contextlib.ExitStack() as stack:
        if place is None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.callback(shutil.rmtree, f"{place}.kept", ignore_errors=True)
        stack.callback(os.chdir, os.getcwd())
        make(place)
        for patch in replaced():
            stack.enter_context(patch)
        for number in range(count):
            name = f"{seed}:{number}"
            argv = line(random.Random(name))
            with put_back(place):
                yield f"{name} edm {' '.join(argv)[:200]!a}", partial(main, argv)


def replaced() -> list[contextlib.AbstractContextManager]:
    """What would start processes, reach the network, or wait."""
    offline = mock.Mock(side_effect=OSError(101, "Network is unreachable"))
    return [
        mock.patch.object(launching, "_run", lambda *_: (0, set(), False)),
        mock.patch("socket.socket.connect", offline),
        mock.patch("edm.files.download.time.sleep"),
        mock.patch("edm.tracking.sync.sync", lambda *_, **__: (_ for _ in ()).throw(edm.UserError("nothing is sent"))),
    ]


def line(chance: random.Random) -> list[str]:
    """One command line: up to two arguments are of any kind, the others usual or left out."""
    commands = commands_of(edm.cli.parser())
    name = chance.choice(sorted(commands))
    actions = [action for action in commands[name]._actions if action.dest != "help"]
    odd = set(chance.sample(range(len(actions)), min(chance.choice([0, 1, 1, 1, 2]), len(actions))))
    options: list[str] = []
    positional: list[str] = []
    for index, action in enumerate(actions):
        if index not in odd and not needed(name, action, chance):
            continue
        values = [value(chance, action, index in odd) for _ in range(many(chance, action))]
        if action.option_strings:
            options += [chance.choice(action.option_strings), *values]
        else:
            positional += values
    if name == "watch" and "--once" not in options:
        options.append("--once")  # else it ends with the chain
    rest = ["--"] if chance.random() < 0.05 else []
    return [name, *options, *rest, *positional] if chance.random() < 0.5 else [name, *positional, *options]


def commands_of(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (sub,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    return dict(sub.choices)


def needed(name: str, action: argparse.Action, chance: random.Random) -> bool:
    """Whether an argument is given without being of any kind."""
    own = {"train": ("config", "data", "out", "device"), "prepare": ("source", "input", "workers"), "track": ("limit",),
           "fid": ("features",), "fid-ref": ("features",), "bench": ("seconds", "batch"), "analyse": ("data",),
           "import": ("resolution",)}  # fmt: skip
    if action.dest in own.get(name, ()) or action.required:
        return True
    return chance.random() < 0.12


def many(chance: random.Random, action: argparse.Action) -> int:
    if action.nargs == 0:
        return 0
    if action.nargs in (None, "?"):
        return 1
    return 1 if chance.random() < 0.7 else chance.choice([1, 2, 3] if action.nargs == "+" else [0, 1, 2])


def value(chance: random.Random, action: argparse.Action, odd: bool) -> str:
    if not odd:
        if action.dest == "output":
            return chance.choice(OUTPUTS)
        usual = USUAL.get(action.dest) or list(action.choices or ["x"])
        return chance.choice(usual)
    kind = chance.random()
    others = [usual for values in USUAL.values() for usual in values] + OUTPUTS
    return chance.choice(PLACES if kind < 0.4 else DAMAGED if kind < 0.6 else NUMBERS if kind < 0.75 else
                         WORDS if kind < 0.9 else others)  # fmt: skip


# The folder -----------------------------------------------------------------------------------------------------------

DAMAGED = [f"damaged/{kind}-{name}" for kind in ("half", "flipped", "empty")
           for name in ("m.safetensors", "s.safetensors", "w.safetensors", "d.zip", "r.npz", "c.json", "nvlabs-edm.pkl",
                        "adm.pt", "search.json", "throughput.json", "journal.jsonl")]  # fmt: skip


def make(place: Path) -> None:
    """Small files of every kind, in ``in``, with damaged copies, and paths to what is no file. Goes there."""
    from edm.data.archive import write_archive

    os.chdir(place)
    for folder in ("in/raw/a", "in/raw/b", "empty", "out", "damaged", "in/snapshots"):
        Path(folder).mkdir(parents=True)
    Path("params.yaml").write_text(PARAMS)
    images = np.random.default_rng(0).integers(0, 256, (32, 1, 8, 8), dtype=np.uint8)
    write_archive("in/d.zip", images, [i % 4 for i in range(32)])
    for name in ("nvlabs-edm.pkl", "score_sde-vp.pth", "adm.pt"):
        shutil.copy(FIXTURES / name, "in")
    made = lambda words: _made(words.split())
    made("train --experiment tiny --model vp-A --data in/d.zip --out in --device cpu")
    shutil.copy("in/model.safetensors", "in/m.safetensors")
    made("train --experiment tiny --model vp-A --dry-run")
    made("sample in/m.safetensors in/s.safetensors --seeds 0-3 --steps 2 --shard 1/1")
    made("sample in/m.safetensors in/s2.safetensors --seeds 4-7 --steps 2")
    made("sample in/m.safetensors in/pictures.zip --seeds 0-3 --steps 1")
    made("fid-ref in/d.zip in/r.npz --features pixels --keep-features 9")
    made("search in/m.safetensors in/search.json --experiment tiny --model vp-A --search walk --ref in/r.npz")
    from edm.metrics.classifier import train_classifier

    train_classifier(images, np.arange(32) % 4, "in/w.safetensors", epochs=1)
    Path("in/c.json").write_text(json.dumps(edm.TrainingConfig(
        resolution=8, channels=1, classes=4, model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(),
        duration=1e-4, batch_size=50, level_samples=4).to_dict()))  # fmt: skip
    made("bench tiny --output in/throughput.json --seconds 0.01 --batch 2 --device cpu")
    for name in ("1.png", "2.png"):
        shutil.copy(FIXTURES.parent.parent.parent / "docs" / "images" / "report.png", f"in/raw/a/{name}")
    for path in map(Path, DAMAGED):
        kind, _, name = path.name.partition("-")
        content = bytearray((Path("in") / name).read_bytes())
        if kind == "flipped":
            for index in random.Random(name).sample(range(len(content)), min(40, len(content))):
                content[index] ^= 255
        path.write_bytes({"half": content[: len(content) // 2], "flipped": content, "empty": b""}[kind])
    Path("nothing.zip").write_bytes(b"")
    Path("text").write_text("hello\n")
    os.mkfifo("pipe")
    os.symlink("nowhere", "dangling")
    os.symlink("circle", "circle")
    shutil.copytree(place, f"{place}.kept", symlinks=True, ignore=lambda *_: ["pipe"])


def _made(argv: list[str]) -> None:
    with contextlib.redirect_stdout(open(os.devnull, "w")), contextlib.redirect_stderr(sys.stdout):
        assert main(argv) == 0, argv


@contextlib.contextmanager
def put_back(place: Path) -> Iterator[None]:
    """Afterwards, the folder is as it was made."""
    os.chdir(place)
    before = _state(place)
    try:
        yield
    finally:
        os.chdir(place)
        torch.set_num_threads(1)
        after = _state(place)
        for path in sorted(after.keys() - before.keys(), reverse=True):
            (shutil.rmtree if os.path.isdir(path) and not os.path.islink(path) else os.unlink)(path)
        for path in sorted(before):
            if before[path] != after.get(path):
                kept = Path(f"{place}.kept") / os.path.relpath(path, place)
                if os.path.isdir(kept):
                    os.makedirs(path, exist_ok=True)
                    continue
                if os.path.lexists(path):
                    os.unlink(path)
                if os.path.lexists(kept):
                    shutil.copy2(kept, path, follow_symlinks=False)
                else:
                    os.mkfifo(path)


def _state(place: Path) -> dict[str, tuple]:
    found = {}
    for folder, folders, files in os.walk(place):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            known = (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else ()
            found[path] = (status.st_mode, *known)
    return found


if __name__ == "__main__":
    sys.exit(door.command(generate, __doc__))

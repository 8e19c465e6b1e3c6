"""The four files of docs/extend.md in a folder outside the package, and a small params.yaml that uses them."""

import copy
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
RAW = yaml.safe_load((ROOT / "params.yaml").read_text())
KINDS = ("solver", "loss", "network", "metric")
PAGE = dict(re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "extend.md").read_text(), flags=re.DOTALL))


def write_lab(folder, columns=("vp", "my")):
    (folder / "my_lab").mkdir()
    for kind in KINDS:
        (folder / "my_lab" / f"{kind}.py").write_text(PAGE[kind])
    write_params(folder, columns=columns)


def write_params(folder, change=lambda raw: None, columns=("vp", "my")):
    digits = copy.deepcopy(RAW["experiments"]["digits"])
    both = {
        "vp": digits["columns"]["vp"],
        "my": {"architecture": "my-convolutions", "architecture.width": 8, "loss": "my-logistic", "loss.width": 0.8,
               "preconditioning": "edm"},
    }  # fmt: skip
    models = [f"{column}-A" for column in columns]
    tiny = {
        "dataset": "digits",
        "features": "pixels",
        "base": {"model_channels": 8, "num_blocks": 1, "attn_resolutions": [4], "duration": 1.28e-3,
                 "level_samples": 16},
        "columns": {name: both[name] for name in columns},
        "ladder": {"A": {**digits["ladder"]["A"], "lr_rampup": 0.004, "ema_halflife": 0.005, "batch_size": 32}},
        "sampling": {"images": 40, "block": 20},
        "grids": {
            "ours": {"models": models, "num_steps": [2, 4]},
            "mine": {"models": models, "solver": "my-midpoint", "solver.place": [0.4, 0.6], "num_steps": 2},
        },
        "metrics": ["my-nearest"],
        "metric_settings": {"my-nearest": {"quantile": 0.9}},
        "tables": {
            "mine": {"kind": "samplers", "title": "Mine", "nfe": "of the best", "metrics": ["my-nearest"],
                     "rows": {"Heun": "ours", "midpoint": "mine"}},
        },
    }  # fmt: skip
    raw = {
        "plugins": [f"my_lab/{kind}.py" for kind in KINDS],
        "run": ["tiny"],
        "datasets": {"digits": RAW["datasets"]["digits"]},
        "experiments": {"tiny": tiny},
    }
    change(raw)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))

"""params.yaml with the experiments of miniature.yaml in place of those of the same names; the smallest experiment."""

import copy
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import yaml

HERE = Path(__file__).parent


@cache
def _whole() -> dict[str, Any]:
    raw = yaml.safe_load((HERE.parent / "params.yaml").read_text())
    experiments = yaml.safe_load((HERE / "miniature.yaml").read_text())["experiments"]
    # An experiment that extends one of these goes with it.
    others = {name: e for name, e in raw["experiments"].items() if e.get("extends") not in experiments}
    return {**raw, "experiments": {**others, **experiments}}


def raw() -> dict[str, Any]:
    """Its content, to change at will."""
    return copy.deepcopy(_whole())


def smallest(**changes: Any) -> dict[str, Any]:
    """A params file with one model, ``vp-A`` of ``tiny``, trained in a second. changes: of ``tiny``."""
    tiny = {
        "dataset": "digits",
        "features": "pixels",
        "base": {"model_channels": 8, "num_blocks": 1, "attn_resolutions": [], "channel_mult": [1]},
        "columns": {"vp": {"architecture": "ddpmpp"}},
        "ladder": {"A": {"duration": 1e-3, "batch_size": 100}},
        "sampling": {"images": 12, "gpus": 0},
        "grids": {"ladder": {"models": "all", "num_steps": [2, 3]}},
        "tables": {"table2": {"kind": "configurations", "title": "T", "grid": "ladder"}},
    }
    dataset = {"source": "digits", "resolution": 8, "channels": 1, "classes": 10}
    return {"run": ["tiny"], "datasets": {"digits": dataset}, "experiments": {"tiny": {**tiny, **changes}}}


@cache
def path() -> Path:
    """A file with it, not to be changed."""
    made = Path(mkdtemp(prefix="miniature-")) / "params.yaml"
    made.write_text(yaml.safe_dump(_whole(), sort_keys=False))
    return made

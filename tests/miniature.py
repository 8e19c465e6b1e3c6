"""params.yaml with the experiments of miniature.yaml in place of those of the same names."""

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


@cache
def path() -> Path:
    """A file with it, not to be changed."""
    made = Path(mkdtemp(prefix="miniature-")) / "params.yaml"
    made.write_text(yaml.safe_dump(_whole(), sort_keys=False))
    return made

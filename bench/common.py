"""Shared by the benchmarks: timing of variants by turns, the table, and the results file with its provenance."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "pillow", "snakemake", "mlflow", "torch-fidelity")  # whose versions affect the results
sys.path.insert(0, str(ROOT))  # works without installing edm


def by_turns(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every variant in every round. All variants run in each round, so that disturbances affect all alike.

    Calls each variant once per round. If it returns a number, that is its time in seconds; otherwise the call is timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            start = time.perf_counter()
            own = run()
            seconds[name].append(own if isinstance(own, float) else time.perf_counter() - start)
    return seconds


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, which are robust to single disturbances."""
    ordered = sorted(seconds)
    quartiles = statistics.quantiles(ordered, n=4) if len(ordered) > 1 else [ordered[0]] * 3
    return {"median": statistics.median(ordered), "low": quartiles[0], "high": quartiles[2], "rounds": len(ordered)}


def environment() -> dict[str, str]:
    """Environment variables of a subprocess, with this checkout's edm and the commands beside this Python.

    Without what makes each process compile its modules again, as make's commands (container images often set it).
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}


def in_process(*words: str | Path) -> dict[str, Any]:
    """Runs this Python with ``words`` in a subprocess and returns the JSON object in the last line of its output.

    A child's peak memory starts at its parent's: to measure memory, this process must not have loaded much.
    """
    done = subprocess.run([sys.executable, *words], env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} ended with status {done.returncode}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def machine(device: str = "cpu") -> dict[str, Any]:
    """Hardware, versions and commit, which a reader needs to assess or reproduce the numbers."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    if device.startswith("cuda"):
        import torch

        versions["cuda"] = str(torch.version.cuda)
        device = torch.cuda.get_device_name(device)
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {"device": device, "processor": _processor(), "cores": len(os.sched_getaffinity(0)),
            "system": platform.system(), "versions": versions, "commit": commit.stdout.strip(),
            "time": datetime.now(UTC).isoformat(timespec="seconds")}  # fmt: skip


def _processor() -> str:
    """CPU model and its widest vector instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    widest = next((name for name in ("avx512f", "avx2", "asimd") if name in found.get("flags", "").split()), "")
    return " ".join(filter(None, (found.get("model name", platform.machine()), widest)))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table; numbers with four significant digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    padded = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
              for line in cells]  # fmt: skip
    return "\n".join([padded[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *padded[1:]])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def arguments(about: str, name: str, experiment: str) -> argparse.ArgumentParser:
    """The options of all benchmarks that run a model of params.yaml."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--experiment", default=experiment, help=f"experiment in params.yaml (default {experiment})")
    parser.add_argument("--model", default="vp-F", help="model of the experiment (default vp-F)")
    parser.add_argument("--compiled", action="store_true", help="compile also on a CPU: a minute or more per variant")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--name", default=name, help=f"name of the results file (default {name})")
    parser.add_argument("--output", help="JSON file (default bench/results/…)")
    return parser


def report(
    name: str, question: str, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], output: str | None,
    device: str = "cpu", **more: Any,
) -> None:  # fmt: skip
    """Prints the table and writes it as JSON with settings and machine, by default to ``bench/results/NAME.json``."""
    path = Path(output) if output else RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"question": question, "machine": machine(device), "settings": dict(settings), "rows": list(rows), **more}
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{question}\n\n{table(rows)}\n\n{json.dumps(found['machine'])}\nwritten to {path}")

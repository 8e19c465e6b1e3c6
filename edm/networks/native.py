"""Compiles a file of C beside the Python code, once per user and kind of processor, and loads it.

It needs GCC, Linux and a processor with AVX2 or AVX-512. Where one of these is missing, there is no library, and
torch's own operations take its place. Compiled files are kept in ``$XDG_CACHE_HOME/edm``, or ``~/.cache/edm``.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

#: GCC's flags for each of torch's names of what a processor can do.
FLAGS = {
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
}
COMMON = ("-std=gnu11", "-O3", "-fopenmp", "-fPIC", "-shared")


@cache
def library(source: Path) -> ctypes.CDLL | None:
    """The compiled source; None where it cannot be compiled. Threads are those of torch.

    Example: ``library(Path("edm/networks/winograd.c"))``.
    """
    flags = FLAGS.get(torch.backends.cpu.get_cpu_capability()) if sys.platform.startswith("linux") else None
    if flags is None:
        return None
    code = source.read_bytes()
    name = f"{source.stem}-{hashlib.sha256(code + repr((COMMON, flags)).encode()).hexdigest()[:16]}.so"
    with suppress(OSError):  # absent, or on a disk whose files the system does not execute
        return ctypes.CDLL(str(_folder() / name))
    compiler = shutil.which("gcc")
    if compiler is None:
        return None
    try:
        with tempfile.TemporaryDirectory(prefix="edm-") as folder:
            made = Path(folder) / name
            subprocess.run([compiler, *COMMON, *flags, "-o", str(made), str(source), "-lm"],
                           check=True, capture_output=True, text=True)  # fmt: skip
            loaded = ctypes.CDLL(str(made))
            with suppress(OSError):  # no home, or a full one: the next process compiles again
                _keep(made, _folder() / name)
            return loaded
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        warnings.warn(f"{source.name}: {told.strip().splitlines()[0]}; torch's slower layers take its place",
                      RuntimeWarning, stacklevel=2)  # fmt: skip
        return None


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "edm")


def _keep(made: Path, kept: Path) -> None:
    """Copies the file for later processes, whole or not at all; other processes may do the same at this time."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        copy = shutil.copyfile(made, Path(folder) / made.name)
        os.replace(copy, kept)

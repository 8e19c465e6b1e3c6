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
MOST_SECONDS = 120  # of a compiler that takes one
DIGEST = hashlib.sha256().digest_size  # bytes at the end of a kept file


@cache
def library(source: Path) -> ctypes.CDLL | None:
    """The compiled source; None where it cannot be compiled. Threads are those of torch.

    Example: ``library(Path("edm/networks/winograd.c"))``.
    """
    flags = FLAGS.get(torch.backends.cpu.get_cpu_capability()) if sys.platform.startswith("linux") else None
    if flags is None:
        return None
    key = hashlib.sha256(source.read_bytes() + repr((COMMON, flags)).encode()).hexdigest()[:16]
    name, folder = f"{source.stem}-{key}.so", _folder()
    if folder and (loaded := _kept(folder / name)):
        return loaded
    compiler = shutil.which("gcc")
    if compiler is None:
        return None
    told = ""
    for place in [folder, None] if folder else [None]:
        try:
            if place:
                place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place) as own:
                made = Path(own) / name
                subprocess.run([compiler, *COMMON, *flags, "-o", str(made), str(source), "-lm"], timeout=MOST_SECONDS,
                               check=True, capture_output=True, text=True, errors="replace")  # fmt: skip
                loaded = ctypes.CDLL(str(made))
                if place:
                    with suppress(OSError):  # a full disk: the next process compiles again
                        _keep(made, place / name)
                return loaded
        except OSError as error:  # a folder that cannot be written, or whose files the system does not execute
            told = str(error)
        except subprocess.TimeoutExpired:
            told = f"gcc did not end within {MOST_SECONDS} s"
            break
        except subprocess.CalledProcessError as error:
            told = error.stderr.strip() or str(error)
            break
    warnings.warn(f"{source.name}: {told.splitlines()[0]}; torch's slower layers take its place",
                  RuntimeWarning, stacklevel=2)  # fmt: skip
    return None


def _folder() -> Path | None:
    """The user's cache; None without an absolute path, which would be another in every working directory."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "edm")
    return folder if folder.is_absolute() else None


def _kept(path: Path) -> ctypes.CDLL | None:
    """The library that an earlier process kept, if it is whole: a part of one would end this process."""
    with suppress(OSError):
        content = path.read_bytes()
        if hashlib.sha256(content[:-DIGEST]).digest() == content[-DIGEST:]:
            return ctypes.CDLL(str(path))
    return None


def _keep(made: Path, kept: Path) -> None:
    """Writes the file with its digest for later processes, whole or not at all; others may do so at the same time."""
    copy, content = made.with_suffix(".copy"), made.read_bytes()
    with copy.open("wb") as file:
        file.write(content + hashlib.sha256(content).digest())
        file.flush()
        os.fsync(file.fileno())
    os.replace(copy, kept)

"""Hostile checkpoints, weights and statistics: foreign files, this program's own, weights of extractors, and .npz.

    python tests/fuzz/fuzz_checkpoints.py --count 2000 --seed 1

An audit hook counts as an execution whatever a reader runs, compiles, imports, unpickles or writes.
"""

import functools
import io
import json
import os
import pickletools
import random
import shutil
import struct
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from door import Inputs, command
from hostile_pickles import NUMBERS, PIECES, program
from hostile_zips import zip_of_zeros

sys.path.insert(0, str(Path(__file__).parents[1] / "foreign"))
import small_files

from edm.foreign import read
from edm.metrics.classifier import load_classifier, train_classifier
from edm.metrics.frechet import load_reference_features, load_statistics, save_statistics
from edm.metrics.weights import read_tensors
from edm.models import checkpoint

HOME = Path(tempfile.gettempdir()) / f"fuzz-checkpoints-{os.getpid()}"
CANARY = HOME / "executed"
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "exec", "compile",
             "import", "pickle.find_class", "ctypes.", "socket.", "os.remove", "os.rename", "os.mkdir", "os.chmod",
             "shutil.", "code.__new__", "function.__new__", "marshal.", "builtins.input", "webbrowser.")  # fmt: skip
Reader = Callable[[Path], object]


class Watch:
    """Creates the canary for what no file may cause, while ``armed``."""

    def __init__(self) -> None:
        self.armed = False
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple) -> None:
        if not self.armed:
            return
        writes = event == "open" and (set(str(arguments[1] or "")) & set("wax+"))
        if writes or event.startswith(FORBIDDEN):
            self.armed = False
            CANARY.touch()


WATCH = Watch()


@functools.cache
def seeds() -> list[tuple[bytes, Reader]]:
    """Small valid files of every kind, and their readers."""
    folder = HOME / "seeds"
    folder.mkdir()
    found: list[tuple[bytes, Reader]] = []
    for path, asked in small_files.tiny_files(folder).items():
        found.append((path.read_bytes(), functools.partial(read, **asked)))
        if path.suffix == ".safetensors":
            found.append((path.read_bytes(), checkpoint.load))
    state = {"fc.weight": torch.ones(8, 4), "fc.bias": torch.zeros(8).half(), "steps": torch.tensor(3)}
    for new in (True, False):
        torch.save(state, folder / "weights.pth", _use_new_zipfile_serialization=new)
        found.append(((folder / "weights.pth").read_bytes(), read_tensors))
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    train_classifier(images, np.arange(40) % 2, folder / "classifier.safetensors", epochs=1, features=2)
    found.append(((folder / "classifier.safetensors").read_bytes(), load_classifier))
    rows = np.zeros((5, 4), np.float32)
    save_statistics(folder / "reference.npz", np.ones(4), np.eye(4), {"count": 5, "features": "pixels"}, rows)
    statistics = (folder / "reference.npz").read_bytes()
    return [*found, (statistics, load_statistics), (statistics, load_reference_features)]


# Mutations of valid files ---------------------------------------------------------------------------------------------


@functools.cache
def instructions(data: bytes) -> list[int]:
    """Where the instructions of the pickles at the start of some bytes begin."""
    stream, found = io.BytesIO(data), []
    try:
        while stream.tell() < len(data):
            found += [place for _, _, place in pickletools.genops(stream)]
    except (ValueError, IndexError, KeyError):
        pass  # behind the pickles of a stream of torch.save lie numbers
    return found


def mutated(draw: random.Random, data: bytes) -> bytes:
    """One to four changes of the bytes of a file, half of them where an instruction begins."""
    places = instructions(data)
    data = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        at = draw.randrange(len(data) + 1)
        if places and draw.random() < 0.5:
            at = min(draw.choice(places), len(data))
        kind = draw.randrange(8)
        if kind <= 1 and data:
            data[at % len(data)] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del data[at : draw.choice([at + 1, at + 8, at + 100, len(data)])]
        elif kind == 3:
            data[at:at] = draw.choice(PIECES)
        elif kind == 4:
            number = draw.choice(NUMBERS)
            data[at : at + len(number)] = number
        elif kind == 5:
            other, _ = draw.choice(seeds())
            start = draw.randrange(len(other))
            data[at : at + draw.choice([0, 1, 16, 200])] = other[start : start + draw.choice([1, 16, 200])]
        elif kind == 6:
            part = bytes(data[at : at + draw.choice([1, 2, 16, 100])])
            data[at:at] = part * draw.choice([1, 2, 50])
        elif data:
            piece = draw.choice(PIECES)
            data[at : at + len(piece)] = piece
    return bytes(data)


def inside(draw: random.Random, data: bytes) -> bytes:
    """A change of a file's description alone, with its container's checksums and lengths made to fit again."""
    if data.startswith(b"PK"):
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
        changed = draw.choice([[name for name in names if name.endswith("data.pkl")] or names, names[:1], names[-1:]])
        change = lambda name, content: mutated(draw, content) if name in changed else content
        return rezipped(data, change, draw.choice([zipfile.ZIP_STORED] * 3 + [zipfile.ZIP_DEFLATED]))
    if data[8:9] == b"{":
        (length,) = struct.unpack("<Q", data[:8])
        return with_header(data, rewritten(draw, data[8 : 8 + length]))
    return mutated(draw, data)


def rezipped(data: bytes, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return out.getvalue()


def with_header(data: bytes, header: bytes) -> bytes:
    """A safetensors file with another header."""
    (length,) = struct.unpack("<Q", data[:8])
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def rewritten(draw: random.Random, header: bytes) -> bytes:
    """A safetensors header with other types, shapes, offsets or description, or with other bytes."""
    if draw.random() < 0.3:
        return mutated(draw, header)
    table = json.loads(header)
    metadata = table.get("__metadata__", {})
    for _ in range(draw.choice([1, 1, 3])):
        tensor = table[draw.choice([name for name in table if name != "__metadata__"])]
        kind = draw.randrange(5)
        if kind == 0:
            tensor["dtype"] = draw.choice(["F64", "I64", "F16", "U8", "BOOL", "F8_E4M3", "X", "C64", 3])
        elif kind == 1:
            tensor["shape"] = draw.choice([[-1], [2**63], [2**32, 2**32], [0, 2**62], [1] * 999, "4", [[]], [1.5], []])
        elif kind == 2:
            tensor["data_offsets"] = draw.choice([[0, 2**63], [-1, 4], [8, 0], [0, 0], [0, 4], [2**64, 2**65], [0]])
        elif metadata:
            key = next(iter(metadata))
            described = json.dumps(altered(draw, json.loads(json.loads(header)["__metadata__"][key])))
            metadata[key] = described if kind == 3 else "[" * draw.choice([1, 10**5])
    return json.dumps(table).encode()


def altered(draw: random.Random, value: object) -> object:
    """A JSON value with one entry replaced."""
    odd = [None, -1, 0, 2**70, 1e308, float("nan"), "x" * 9999, [], {}, [[[]]] * 9, True, "9" * 5000, 1 << 14]
    if not isinstance(value, dict | list) or not value or draw.random() < 0.2:
        return draw.choice(odd)
    key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    changed = value.copy()
    changed[key] = altered(draw, value[key])
    return changed


# Files that claim or unfold to much -----------------------------------------------------------------------------------


def unfolding(draw: random.Random) -> tuple[bytes, Reader]:
    """A small file that holds gigabytes: compressed weights, compressed statistics. Or one that claims terabytes."""
    if draw.random() < 0.4:
        out = io.BytesIO()
        torch.save({"x": torch.zeros(1)}, out)
        with zipfile.ZipFile(out) as old:
            members = {name: old.read(name).replace(b"K\x01", b"\x8a\4\0\0\0\x18") for name in old.namelist()}
        (name,) = (name for name in members if name.endswith("data/0"))
        return zip_of_zeros(members, name, b"", 4 * 0x18000000), draw.choice([read_tensors, read])
    side, zeros = draw.choice([(14_189, 1536 << 20), (1 << 20, 1 << 20)])
    arrays = {}
    for name, shape, kind in (("reference_features", (side, side), "<f4"), ("mu", (side,), "<f8"),
                              ("sigma", (side, side), "<f8")):  # fmt: skip
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
        arrays[f"{name}.npy"] = header.getvalue()
    arrays["mu.npy"] += bytes(8 * 14_189)
    largest = draw.choice(["sigma.npy", "reference_features.npy"])
    start = arrays.pop(largest)
    return zip_of_zeros(arrays, largest, start, zeros), draw.choice([load_statistics, load_reference_features])


def huge_claims(draw: random.Random) -> bytes:
    """A safetensors file or stream of torch.save with lengths beyond its end."""
    if draw.random() < 0.5:
        return struct.pack("<Q", draw.choice([2**63, 2**40, 2**64 - 1, 100])) + b"{" + draw.randbytes(50)
    out = io.BytesIO()
    torch.save({"x": torch.zeros(4)}, out, _use_new_zipfile_serialization=False)
    return out.getvalue().replace(b"K\x04", b"\x8a\x08" + struct.pack("<q", draw.choice([2**31, 2**40, 2**62])))


# Calls ----------------------------------------------------------------------------------------------------------------


def content(draw: random.Random) -> tuple[bytes, Reader]:
    """The bytes of a file, and the function that reads it."""
    kind = draw.random()
    data, reader = draw.choice(seeds())
    if kind < 0.03:
        return unfolding(draw)
    if kind < 0.07:
        return huge_claims(draw), draw.choice([read, read_tensors, checkpoint.load, load_classifier])
    if kind < 0.25:
        hostile = program(draw, CANARY)
        place = draw.randrange(4)
        if place == 0 and data.startswith(b"PK"):
            return rezipped(data, lambda name, old: hostile if name.endswith(("data.pkl", "mu.npy")) else old), reader
        if place == 1:
            return legacy_start() + hostile, draw.choice([read, read_tensors])
        return hostile, draw.choice([read, read_tensors])
    return draw.choice([mutated, inside])(draw, data), reader


@functools.cache
def legacy_start() -> bytes:
    """The pickles before the value in a stream of torch.save."""
    out = io.BytesIO()
    torch.save(0, out, _use_new_zipfile_serialization=False)
    data = out.getvalue()
    return data[: [at for at in instructions(data) if data[at : at + 1] == b"\x80"][3]]


def one(number: int, seed: int) -> None:
    """Makes and reads input ``number`` of a seed."""
    draw, path = random.Random(f"{seed}-{number}"), HOME / "input"
    data, reader = content(draw)
    path.write_bytes(data)
    WATCH.armed = reader not in (load_statistics, load_reference_features)  # numpy compiles the literals of its headers
    try:
        reader(path)
    finally:
        WATCH.armed = False


def generate(count: int, seed: int) -> Inputs:
    warnings.simplefilter("error")  # a warning is a second line
    torch.set_num_threads(1)
    HOME.mkdir(exist_ok=True)
    for data, reader in seeds():  # whatever is imported at first use, is now
        (HOME / "input").write_bytes(data)
        reader(HOME / "input")
    return _inputs(count, seed)


def _inputs(count: int, seed: int) -> Iterator[tuple[str, Callable[[], None]]]:
    try:
        for number in range(count):
            yield f"seed {seed}, input {number}", functools.partial(one, number, seed)
    finally:
        shutil.rmtree(HOME, ignore_errors=True)
        seeds.cache_clear()


if __name__ == "__main__":
    sys.exit(command(generate, __doc__, canary=CANARY))

"""Mutations of small checkpoints, each read in this process: none may run, crash, hang, or end in more than one line.

    python tests/foreign/fuzz.py COUNT SEED

The process has a limit of memory, each file one of time, and an audit hook sees what is run, compiled, imported,
unpickled or written while a file is read. Prints one JSON object; exits with status 1 where anything was found.
"""

import functools
import io
import json
import os
import pickletools
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import small_files
import torch

from edm.errors import UserError
from edm.foreign import read

MEMORY = 1 << 30  # bytes that all files together may take beyond what the process has before the first
SECONDS = 10.0  # for one file
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "exec", "compile",
             "import", "pickle.find_class", "ctypes.", "socket.", "os.remove", "os.rename", "os.mkdir", "os.chmod",
             "shutil.", "code.__new__", "function.__new__", "marshal.", "builtins.input", "webbrowser.")  # fmt: skip
#: Instructions of pickles, and what hostile ones are made of.
PIECES = [
    b"\x80\x04", b"\x95" + b"\xff" * 8, b"(", b")", b"t", b"]", b"}", b"\x8f", b"e", b"u", b"s", b"a", b"\x90", b"R",
    b"b", b"\x81", b"\x92", b"Q", b"P1\n", b"0", b"2", b"1", b".", b"\x94", b"h\x00", b"h\x05", b"j\x00\x00\x00\x00",
    b"q\x00", b"r\xff\xff\xff\xff", b"N", b"\x88", b"K\x01", b"J\xff\xff\xff\x7f", b"\x8a\x10" + b"\xff" * 16,
    b"\x8b\xff\xff\xff\x7f", b"G" + b"\x7f\xf8" + b"\0" * 6, b"\x8c\x04test", b"X\xff\xff\xff\xff",
    b"B\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8, b"C\x04test", b"cos\nsystem\n", b"cbuiltins\neval\n",
    b"c__builtin__\nexec\n", b"\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R", b"\x82\xf0", b"i", b"o",
    b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch.storage\n_load_from_bytes\n",
    b"c_codecs\nencode\n", b"X\x01\0\0\0xX\x06\0\0\0latin1\x86R", b"c__builtin__\nset\n",
]  # fmt: skip
NUMBERS = [b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\x7f", b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\1\0\0\0"]


@functools.cache
def instructions(data):
    """Where the instructions of the pickles at the start of some bytes begin."""
    stream, found = io.BytesIO(data), []
    try:
        while stream.tell() < len(data):
            found += [place for _, _, place in pickletools.genops(stream)]
    except (ValueError, IndexError, KeyError):
        pass  # behind the pickles of a stream of torch.save lie numbers
    return found


def mutated(draw, data, others):
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
        elif kind == 2 and draw.random() < 0.5:
            del data[at:]
        elif kind == 2:
            del data[at : at + draw.choice([1, 2, 8, 100])]
        elif kind == 3:
            data[at:at] = draw.choice(PIECES)
        elif kind == 4:
            number = draw.choice(NUMBERS)
            data[at : at + len(number)] = number
        elif kind == 5:
            other = draw.choice(others)
            start = draw.randrange(len(other))
            data[at : at + draw.choice([0, 1, 16, 200])] = other[start : start + draw.choice([1, 16, 200])]
        elif kind == 6:
            chunk = bytes(data[at : at + draw.choice([1, 2, 16, 100])])
            data[at:at] = chunk * draw.choice([1, 2, 50])
        elif data:
            piece = draw.choice(PIECES)
            data[at : at + len(piece)] = piece
    return bytes(data)


def inside(draw, data, others):
    """A change of a file's description alone, with its container's checksums and lengths made to fit again."""
    if data.startswith(b"PK"):
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                new.writestr(name, mutated(draw, content, others) if name.endswith("data.pkl") else content)
        return out.getvalue()
    if data[8:9] == b"{":
        (length,) = struct.unpack("<Q", data[:8])
        header = mutated(draw, data[8 : 8 + length], others)
        return struct.pack("<Q", len(header)) + header + data[8 + length :]
    return mutated(draw, data, others)


class Watch:
    """Counts what no file may cause, while ``armed``."""

    def __init__(self):
        self.armed, self.seen = False, Counter()
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        if not self.armed:
            return
        writes = event == "open" and (set(str(arguments[1] or "")) & set("wax+"))
        if writes or event.startswith(FORBIDDEN):
            self.seen[event] += 1


class Hang(BaseException):
    pass


def hang(*_):
    raise Hang


def main(count, seed):
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # a warning is a second line
    draw, results, worst, findings = random.Random(seed), Counter(), (0.0, ""), []
    watch = Watch()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        os.chdir(folder)
        seeds = [(path.read_bytes(), asked) for path, asked in small_files.tiny_files(Path(folder)).items()]
        everything = [data for data, _ in seeds]
        path = Path(folder) / "mutated"
        for data, asked in seeds:  # whatever is imported at first use, is now
            path.write_bytes(data)
            read(path, **asked)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.signal(signal.SIGALRM, hang)
        begun = time.monotonic()
        for number in range(count):
            data, asked = draw.choice(seeds)
            change = draw.choice([mutated, inside])
            path.write_bytes(content := change(draw, data, everything))
            start = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            watch.armed = True
            try:
                read(path, **asked)
                result = "read"
            except UserError as error:
                text = str(error)
                result = "refused" if "\n" not in text and len(text) < 600 and text.isprintable() else "unclear"
            except Hang:
                result = "hang"
            except Exception as error:
                result = f"{type(error).__name__}: {error}"[:200]
            finally:
                watch.armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
            results[result] += 1
            worst = max(worst, (time.monotonic() - start, f"{number}: {result}"))
            if (result not in ("read", "refused") or watch.seen) and len(findings) < 5:
                findings.append(f"{number}: {result}: {dict(watch.seen)}")
                if "FUZZ_KEEP" in os.environ:
                    Path(os.environ["FUZZ_KEEP"], f"{seed}-{number}").write_bytes(content)
        report = {
            "files": count,
            "seed": seed,
            "seconds": round(time.monotonic() - begun, 1),
            "results": dict(results),
            "forbidden events": dict(watch.seen),
            "slowest file (seconds)": round(worst[0], 2),
            "peak memory (MiB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
            "of which before the first file (MiB)": before >> 10,
            "other files written": sorted(set(os.listdir(folder)) - {"mutated", *_names(folder)}),
            "findings": findings,
        }
    print(json.dumps(report, indent=1))
    bad = watch.seen or report["other files written"] or set(results) - {"read", "refused"}
    return 1 if bad else 0


def _names(folder):
    return {path.name for path in Path(folder).iterdir() if path.suffix in (".pkl", ".pth", ".pt", ".safetensors")}


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))

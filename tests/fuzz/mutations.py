"""Damages JSON documents and files, by a seed: values, names, depth, sizes, bytes, and what is no regular file."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Text that JSON's writer cannot give, by the string that stands for it.
RAW = {
    "@nan": "NaN", "@inf": "-Infinity", "@1e400": "1e400", "@digits": "7" * 5000, "@many": "9" * 90,
    "@deep": "[" * 200_000 + "]" * 200_000, "@deeper": '{"a":' * 3000 + "1" + "}" * 3000, "@surrogate": '"\\ud800"',
}  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, -0.5, 1e-308, 1e308, 2**31, 2**63, 10**30, "", " ", "x", "x" * 10_000, "a\nb",
    "\x1b[31m",
    "{title}", "$\\frac{$", "<script>", "../../x", "/dev/zero", [], {}, [[]], [None], [1.5], ["x"], {"a": 1}, {"": {}},
    [0] * 100_000, [[[[[["x"]]]]]], {"a": {"b": {"c": [1, {"d": None}]}}}, *RAW,
]  # fmt: skip


def document(content: bytes, draw: random.Random) -> bytes:
    """A JSON document with one to three faults in its values and names, or in its bytes."""
    if draw.random() < 0.3:
        return bytes_of(content, draw)
    value = json.loads(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        value = _changed(value, draw)
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    if draw.random() < 0.05 and text.startswith('{"'):
        text = "{" + text[1 : text.index(":")] + ": 1, " + text[1:]  # the first name twice
    return text.encode()


def bytes_of(content: bytes, draw: random.Random) -> bytes:
    """Content cut off, with bits turned, with parts taken out or doubled, or other content."""
    kind = draw.randrange(5)
    if kind == 0:
        return content[: draw.randrange(len(content))]
    if kind == 1:
        return draw.choice((b"", b"[]", b"null", b"{}", b"7", b'"x"', b"\xff\xfe{}", b"\x00" * 100, b"\n" * 100))
    found = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        start = draw.randrange(len(found) or 1)
        if kind == 2 and found:
            found[start] ^= 1 << draw.randrange(8)
        else:
            end = start + draw.randint(0, 20)
            found[start:end] = b"" if kind == 3 else bytes(found[start:end]) * 2
    return bytes(found)


def lines(content: bytes, draw: random.Random) -> bytes:
    """JSON lines, of which one or two are damaged."""
    found = content.splitlines(keepends=True)
    for place in draw.sample(range(len(found)), draw.randint(1, 2)):
        found[place] = document(found[place].strip() or b"{}", draw) + b"\n" * draw.choice((0, 1, 1, 1, 1))
    return b"".join(found)


def tensor_file(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file with a fault in its own header, in the header of this program inside, or in its bytes."""
    kind, length = draw.randrange(6), int.from_bytes(content[:8], "little")
    if kind == 0:
        return bytes_of(content, draw)
    header = json.loads(content[8 : 8 + length])
    if kind == 1:
        text = document(content[8 : 8 + length], draw)
    else:
        inner = document(header["__metadata__"]["edm"].encode(), draw)
        header["__metadata__"]["edm"] = inner.decode(errors="replace")
        text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


Damage = Callable[[bytes, random.Random], bytes]
#: Puts something that is no regular file of this format at a path; returns nothing.
KINDS: list[Callable[[Path], object]] = [
    os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("nowhere"),
    lambda path: path.symlink_to(path.name), lambda path: _sparse(path, 80 << 20),
    lambda path: path.write_bytes(b"[" + b"{}," * 5_000_000 + b"{}]"),
]  # fmt: skip


def put(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Replaces whatever is at a path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    content(path) if callable(content) else path.write_bytes(content)


def _sparse(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size)


def _changed(value: Any, draw: random.Random) -> Any:
    """A value with a random place in it replaced, deleted, renamed or repeated."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.1:
        return draw.choice(VALUES)
    value = value.copy()
    place = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
    kind = draw.random()
    if kind < 0.7:
        value[place] = _changed(value[place], draw)
    elif kind < 0.85:
        del value[place]
    elif isinstance(value, list):
        value += [value[place]] * draw.choice((1, 1, 1000))
    else:
        value[draw.choice(("", "x", "a\nb", "x" * 5000, "constructor"))] = value.pop(place)
    return value

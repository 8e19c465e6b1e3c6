"""Hostile pickles: programs of random instructions, calls that would leave a trace, and small bombs."""

import os
import pickle
import random
from pathlib import Path

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
BOMBS = [
    b"})" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"Ns.",  # a key whose hash takes 2^60 steps
    b"]" * 600_000 + b".",
    b")" + b"\x85" * 400_000 + b".",
    b"]\x94" + b"(h\0h\0h\0h\0e" * 100_000 + b".",
    b"(" * 400_000 + b".",
    b"\x8b" + (1 << 22).to_bytes(4, "little") + b"\xff" * (1 << 22) + b".",
    b"I" + b"9" * 1_000_000 + b"\n.",
    b"\x8e" + (1 << 62).to_bytes(8, "little") + b"a.",
    b"N" + b"".join(b"r" + (2**32 - i).to_bytes(4, "little") for i in range(1, 20_000)) + b".",
    (b"X\0\0\x10\0" + b"a" * (1 << 20)) + b"\x94(" + b"h\0" * 100_000 + b"t.",
    b"ccollections\nOrderedDict\n\x94" + b"h\0)R" * 300_000 + b".",
]


class Payload:
    """Pickles to a call that would create a file."""

    def __init__(self, path: Path, which: int) -> None:
        calls = [(os.mkdir, (str(path),)), (open, (str(path), "w")), (eval, (f"open({str(path)!r}, 'w')",)),
                 (exec, (f"open({str(path)!r}, 'w')",)), (os.system, (f"touch {path}",)),
                 (pickle.loads, (pickle.dumps(1),))]  # fmt: skip
        self.call = calls[which % len(calls)]

    def __reduce__(self) -> tuple:
        return self.call


def program(draw: random.Random, canary: Path) -> bytes:
    """A pickle that no program would write."""
    kind = draw.randrange(3)
    if kind == 0:
        return draw.choice([b"\x80\x02", b"\x80\x04"]) + draw.choice(BOMBS)
    if kind == 1:
        trap = Payload(canary, draw.randrange(6))
        return pickle.dumps(draw.choice([trap, {"ema": trap}, {"model": {"x": trap}}, [trap]]), draw.randrange(6))
    return b"\x80\x04" + b"".join(draw.choices(PIECES, k=draw.choice([3, 30, 1000]))) + b"."

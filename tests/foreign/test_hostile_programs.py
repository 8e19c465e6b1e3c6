"""Programs in checkpoints that make no values, or too many: each ends in one line, soon and in little memory."""

import pickle
import sys

import pytest
from small_files import Extension, extension, named, text

pytestmark = pytest.mark.usefixtures("nothing_happens")

EMPTY = b"\x80\x04"
ORDERED, REBUILD = named("collections", "OrderedDict"), named("torch._utils", "_rebuild_tensor_v2")
PERSISTENT = named("torch_utils.persistence", "_reconstruct_persistent_obj")
PROGRAMS = {
    # Instructions that no checkpoint needs
    "INST": (b"(" + b"ios\nsystem\n.", "uses INST"),
    "OBJ": (b"(" + ORDERED + b"o.", "uses OBJ"),
    "NEWOBJ_EX": (ORDERED + b")}\x92.", "uses NEWOBJ_EX"),
    "EXT1": (b"\x82\x01.", "uses EXT1"),
    "EXT2": (b"\x83\x01\x00.", "uses EXT2"),
    "EXT4": (b"\x84\x01\x00\x00\x00.", "uses EXT4"),
    "PERSID": (b"Pos.system\n.", "uses PERSID"),
    "BINPERSID": (b"\x8c\x02os\x93Q.", "it takes a value|takes a value"),
    "BINPERSID of a plain pickle": (b"K\x01Q.", "refers to values outside"),
    "DUP": (b"]2.", "uses DUP"),
    "POP": (b"]0.", "uses POP"),
    "NEXT_BUFFER": (b"\x97.", "uses NEXT_BUFFER"),
    "LONG4": (b"\x8b\xff\xff\xff\x7f.", "uses LONG4"),
    "INT": (b"I" + b"9" * 5000 + b"\n.", "uses INT"),
    "an instruction that does not exist": (b"\xee.", "uses"),
    "a protocol that does not exist": (b"\x80\x63.", "protocol 99"),
    # States, calls and fills of what they are not for
    "BUILD of a list": (b"]}b.", "sets the state of a list"),
    "BUILD of a name": (ORDERED + b"}b.", "sets the state of a name"),
    "BUILD of a tensor": (REBUILD + b"}b.", "sets the state"),
    "BUILD twice": (PERSISTENT + b")R}b}b.", "sets the state of an object"),
    "a state that names methods": (ORDERED + b")R}" + text("__setstate__") + ORDERED + b"sb}.", "no single value"),
    "REDUCE of text": (text("os.system") + b")R.", "it calls os.system"),
    "REDUCE of an instance": (PERSISTENT + b")R)R.", "it calls an object"),
    "REDUCE of a name that is only a type": (named("builtins", "set") + b"K\x01\x85R.", "not one of names"),
    "REDUCE without a tuple": (ORDERED + b"]R.", "arguments that make no sense"),
    "NEWOBJ of a dictionary": (b"})\x81.", "it calls a dictionary"),
    "SETITEM of a list": (b"]K\x01K\x01s.", "fills a list"),
    "SETITEM of an instance": (PERSISTENT + b")RK\x01K\x01s.", "fills an object"),
    "APPEND to a dictionary": (b"}K\x01a.", "fills a dictionary"),
    "ADDITEMS to a list": (b"](K\x01\x90.", "fills a list"),
    "a key without a value": (b"}(K\x01u.", "key without a value"),
    "a list as a key": (b"}]K\x01s.", "a list as a key"),
    "a huge number as a key": (b"}\x8a\x08" + b"\x7f" * 8 + b"K\x01s.", "as a key"),
    "a dictionary of another": (ORDERED + b"}\x85R.", "makes a dictionary out of another"),
    # What the stack does not hold
    "an empty stack": (b"s.", "takes a value that is not there"),
    "no mark": (b"t.", "no mark"),
    "a mark left": (b"(K\x01.", "no single value"),
    "nothing": (b".", "no single value"),
    "two values": (b"NN.", "no single value"),
    "a memo that was not stored": (b"h\x05.", "never stored"),
    "no end": (b"N", "ends too early"),
    "a name without an end": (b"cos", "does not end"),
    "an endless name": (b"c" + b"a" * 100_000, "does not end"),
    # Claims
    "text of 4 GB": (b"X\xff\xff\xff\xffabc.", "more text than any checkpoint"),
    "text that ends early": (b"X\xff\x00\x00\x00abc.", "ends too early"),
    "text that is none": (b"\x8c\x02\xff\xfe.", "not UTF-8"),
    "bytes of 2^63": (b"\x8e" + b"\xff" * 7 + b"\x7fabc.", "claims 9,223,372,036,854,775,807 bytes"),
    "an integer of 255 bytes": (b"\x8a\xff" + b"\x01" * 255 + b".", "integer of 255 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_make_no_values_are_refused(tmp_path, refused, name):
    program, message = PROGRAMS[name]
    (tmp_path / "a.pkl").write_bytes(EMPTY + program)
    refused(message, tmp_path / "a.pkl")


def test_extension_codes_are_refused_where_they_are_registered(tmp_path, refused):
    with extension(240):
        data = pickle.dumps(Extension, 2)
        assert b"\x82\xf0" in data
        (tmp_path / "a.pkl").write_bytes(data)
        refused("uses EXT1", tmp_path / "a.pkl")


BOMBS = {
    "a million lists": (b"]" * 1_000_000 + b".", "more instructions"),
    "a million sets in a list": (b"](" + b"\x8f" * 1_000_000 + b"e.", "more instructions"),
    "a list that doubles": (b"]\x94" + b"(h\0h\0h\0h\0e" * 200_000 + b".", "more instructions"),
    "a list that holds itself": (b"]\x94h\0a.", "it holds a list"),
    "a dictionary that holds itself": (b"}\x94" + text("ema") + b"h\0s.", "no known checkpoint"),
    "nested lists": (b"]" * 200_000 + b"a" * 199_999 + b".", "it holds a list"),
    "nested tuples": (b")" + b"\x85" * 400_000 + b".", "it holds a tuple"),
    "nested tuples as a key": (b"}" + b")" + b"\x85" * 400_000 + b"Ns.", "a tuple as a key"),
    "nested marks": (b"(" * 400_000 + b".", "no single value"),
    "text twenty times": ((b"X\x00\x00\x10\x00" + b"a" * (1 << 20)) * 20 + b".", "more text"),
    "distant memos": (b"N" + b"".join(b"r" + i.to_bytes(4, "little") for i in range(2**32 - 9, 2**32)) + b".", "holds"),
    "one long list passed often": (
        b"(" + b"N" * 200_000 + b"t\x94" + (REBUILD + b"\x94h\0R") + b".", "arguments that make no sense"),
    "calls of no effect": (ORDERED + b"\x94" + b"h\0)R" * 400_000 + b".", "more instructions"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.first(1)
def test_bombs_end_soon_and_small(tmp_path, refused, name):
    program, message = BOMBS[name]
    (tmp_path / "a.pkl").write_bytes(EMPTY + program)
    refused(message, tmp_path / "a.pkl")


def test_integers_with_equal_hashes_do_not_stop_a_dictionary(tmp_path, refused):
    """Multiples of 2^61 − 1 all hash to 0: a dictionary of them would take the square of their number."""
    keys = ((sys.hash_info.modulus * i).to_bytes(11, "little") for i in range(1, 60_000))
    program = b"}(" + b"".join(b"\x8a\x0b" + key + b"N" for key in keys) + b"u."
    (tmp_path / "a.pkl").write_bytes(EMPTY + program)
    refused("as a key", tmp_path / "a.pkl")

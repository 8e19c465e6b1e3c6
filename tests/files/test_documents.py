"""A file of the project's own comes back as it was written, or is refused in one line that names the place."""

import json
import os

import pytest

from edm.errors import UserError
from edm.files.documents import (
    AMOUNT,
    COUNT,
    FLAG,
    LARGEST,
    NUMBER,
    SHA256,
    TEXT,
    DamagedError,
    Maybe,
    Names,
    parse,
    read_document,
    read_json,
)

SHAPE = {"label": TEXT, "rows": [{"distance": AMOUNT, "nfe": COUNT}], "more": Maybe(Names(NUMBER)), "done": FLAG}
WHOLE = {"format": "edm-thing/2", "label": "FID", "rows": [{"distance": 2.5, "nfe": 7}], "done": True}


def read(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return read_document(path, "edm-thing/2", SHAPE, "a thing", "delete it")


@pytest.mark.parametrize("extra", [{}, {"more": None}, {"more": {"kid": -0.5}}, {"unknown": [{"x": None}]}])
def test_a_whole_document_is_read_as_it_is(tmp_path, extra):
    assert read(tmp_path / "a.json", WHOLE | extra) == WHOLE | extra


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rows": [WHOLE["rows"][0], {"distance": "2.5", "nfe": 7}]}, "rows.2.distance is '2.5'; expected a number"),
        ({"rows": [{"distance": -1, "nfe": 7}]}, "rows.1.distance is -1; expected a number from 0 to"),
        ({"rows": [{"distance": 1e300, "nfe": 7}]}, r"rows.1.distance is 1e\+300; expected a number from 0 to"),
        ({"rows": [{"distance": True, "nfe": 7}]}, "rows.1.distance is true; expected a number"),
        ({"rows": [{"distance": 2.5, "nfe": [7]}]}, "rows.1.nfe is a list; expected a whole number"),
        ({"rows": [{"distance": 2.5, "nfe": 7.0}]}, "rows.1.nfe is 7.0; expected a whole number"),
        ({"rows": [{"distance": 2.5}]}, "rows.1.nfe is missing"),
        ({"rows": {}}, "rows is a dictionary; expected a list"),
        ({"more": {"kid": None}}, "more.kid is null; expected a number"),
        ({"more": {"a\nb": 1}}, "more is a dictionary; expected names of one line"),
        ({"label": "a\nb" * 1000}, r"label is 'a\\nba\\nb.*…'; expected one line of text"),
        ({"done": 1}, "done is 1; expected true or false"),
    ],
)
def test_a_damaged_value_is_named_with_its_place(tmp_path, change, told):
    with pytest.raises(DamagedError, match=rf"a\.json: {told}.*; delete it$") as caught:
        read(tmp_path / "a.json", WHOLE | change)
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    ["", "{", "nul", '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e400}', '{"a": 1, "a": 2}', '{"a": "\\ud800"}', '"\x01"',
     "9" * 101],
)  # fmt: skip
def test_what_is_not_strict_json_is_refused(text):
    with pytest.raises(ValueError, match=r"^not whole JSON$"):
        parse(text.encode())


@pytest.mark.parametrize("text", ["[" * 41 + "]" * 41, "[" * 10**6, '{"a":' * 10**5 + "1" + "}" * 10**5])
def test_depth_is_bounded(text):
    with pytest.raises(ValueError, match=r"^(nested too deep|not whole JSON)$"):
        parse(text.encode())


@pytest.mark.parametrize(
    ("format", "error", "told"),
    [("edm-thing/3", UserError, "is edm-thing/3, of a later version of this program; update the program"),
     ("edm-thing/1", DamagedError, r"not a thing \(its format is edm-thing/1, expected edm-thing/2\); delete it"),
     (["edm-thing/3"], DamagedError, r"not a thing \(its format is a list, expected edm-thing/2\); delete it")],
)  # fmt: skip
def test_another_format_is_told_from_a_later_version(tmp_path, format, error, told):
    with pytest.raises(UserError, match=told) as caught:
        read(tmp_path / "a.json", WHOLE | {"format": format})
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("make", "told"),
    [(os.mkfifo, "is a pipe; expected a JSON file"), (os.mkdir, "is a folder; expected a JSON file"),
     (lambda path: path.symlink_to("/dev/zero"), "is a device; expected a JSON file"),
     (lambda path: path.write_bytes(b" " * (LARGEST + 1)), "has more than 16,777,216 bytes; expected a JSON file")],
)  # fmt: skip
def test_only_a_regular_file_of_bounded_size_is_read(tmp_path, make, told):
    make(tmp_path / "a.json")
    with pytest.raises(UserError, match=rf"a\.json: {told}"):
        read_json(tmp_path / "a.json")


def test_a_checksum_has_64_hexadecimal_digits():
    assert SHA256.fits("aB" * 32) and not SHA256.fits("ab" * 31) and not SHA256.fits("ab" * 32 + "\n")

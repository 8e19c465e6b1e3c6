"""A message stays one printable line, whatever a file brought into it."""

import copy

import pytest

from edm.errors import LONGEST, UserError


@pytest.mark.parametrize("brought, shown", [
    ("a\nb", "a b"),
    ("a\x1b[2Jb\0", "a\\x1b[2Jb\\x00"),
    ("a\udc80b", "a\\udc80b"),
    ("Δσ – “é”", "Δσ – “é”"),
    ("two  spaces ", "two  spaces"),
])  # fmt: skip
def test_a_message_is_one_printable_line(brought, shown):
    assert str(UserError(brought)) == shown and shown.isprintable()


def test_a_long_message_keeps_its_beginning_and_its_end():
    text = str(UserError(f"params.yaml: {'x' * 10**6} is not a number; state one"))
    assert len(text) <= LONGEST and text.startswith("params.yaml: x") and text.endswith("x is not a number; state one")


def test_a_message_survives_a_process_boundary():
    """copy rebuilds an error as another process does: by its class and arguments (``__reduce_ex__``)."""
    assert str(copy.copy(UserError("a\nb"))) == "a b"

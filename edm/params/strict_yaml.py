"""YAML as plain data: text, numbers, lists and mappings. Everything is bounded before it is built."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import yaml

#: Limits of a params file with expanded aliases: levels, values, characters of a text. The project's own is 8 deep and
#: has 4,000 values.
MAX_DEPTH, MAX_VALUES, MAX_TEXT = 50, 50_000, 4000
_WORD = 20  # characters of text that count as one value
MAX_NUMBER = 2**63 - 1
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ENDLESS = "its aliases (*name) refer to themselves or expand without end"


def read_yaml(text: str) -> Any:
    """Plain data.

    Raises YAMLError for tags, for duplicate keys and keys that are no text, for aliases and merge keys that expand to
    too many values, for too deep nesting, for numbers beyond 64 bits, and for text that is too long, has control
    characters, or letters in a form other than NFC: two names that look the same would differ. It calls ``yaml.load``
    because ``yaml.safe_load`` takes no loader: ``_Strict`` is PyYAML's safe loader, which builds plain data only, with
    further refusals, and tags have been refused before (tests/params/test_params.py runs hostile files through it).
    """
    _check(text)
    return yaml.load(text, Loader=_Strict)


def size(value: Any) -> int:
    """The values inside plain data, itself included; a long text counts as several."""
    if isinstance(value, str):
        return 1 + len(value) // _WORD
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(size, inner))


@dataclass
class _Part:
    """A value, with its aliases expanded: its :func:`size`, and its depth."""

    anchor: str | None = None
    size: int = 1
    depth: int = 1

    def add(self, inner: "_Part") -> None:
        self.size, self.depth = self.size + inner.size, max(self.depth, inner.depth + 1)


def _check(text: str) -> None:
    """Raises YAMLError for what a parser of events can see, before objects are built, which is recursive."""
    stack, anchors = [_Part()], dict[str, _Part | None]()
    for event in yaml.parse(text, Loader=_Strict):
        part, anchor = None, getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            _check_tag(event)
            stack.append(_Part(anchor))
            anchors |= {anchor: None} if anchor else {}
        elif isinstance(event, yaml.CollectionEndEvent):
            part = stack.pop()
            anchor = part.anchor
        elif isinstance(event, yaml.ScalarEvent):
            _check_scalar(event)
            part = _Part(size=size(event.value))
        elif isinstance(event, yaml.AliasEvent):
            part, anchor = anchors.get(anchor or "", _Part()), None  # the composer refuses an undefined alias
            if part is None:
                raise _wrong(_ENDLESS, event)
        if part is not None:
            anchors |= {anchor: part} if anchor else {}
            stack[-1].add(part)
        if len(stack) - 1 + (part.depth if part else 0) > MAX_DEPTH + 1:  # one for the file itself
            raise _wrong(f"nested more than {MAX_DEPTH} deep", event)
        if stack[-1].size > MAX_VALUES:
            raise _wrong(_ENDLESS if anchors else f"more than {MAX_VALUES:,} values", event)


def _check_tag(event: Any) -> None:
    if event.tag is not None:
        raise _wrong(f"tag {event.tag[:40]!r}: tags (!name) are not supported; put text in quotes", event)


def _check_scalar(event: Any) -> None:
    _check_tag(event)
    value = event.value
    if len(value) > MAX_TEXT:
        raise _wrong(f"{value[:40]!r}… has more than {MAX_TEXT:,} characters", event)
    if _CONTROL.search(value):
        raise _wrong(f"{value[:40]!r} has a control character", event)
    if not unicodedata.is_normalized("NFC", value):
        raise _wrong(f"{value[:40]!r} has letters and accents apart; write each as one character (Unicode NFC)", event)


def _wrong(problem: str, event: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, event.start_mark)


# The stubs know libyaml's marks and the other ones as two types, and no choice between two bases.
class _Strict(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader, with an error for duplicate keys, of which PyYAML silently keeps the last."""

    def construct_object(self, node, deep=False):
        try:
            value = super().construct_object(node, deep)
        except (ValueError, OverflowError):  # PyYAML does not catch errors such as September 99
            kind = node.tag.rpartition(":")[2]
            problem = f"{str(node.value)[:40]!r} is no {kind}; put it in quotes if it is text"
            raise _wrong(problem, node) from None
        if type(value) is int and abs(value) > MAX_NUMBER:
            raise _wrong(f"{str(node.value)[:40]!r} is a number beyond 64 bits", node)
        return value

    def construct_mapping(self, node, deep=False):
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            value = self.construct_object(key, deep=True)
            if not isinstance(value, str):
                raise _wrong(f"key {value!r} is not text; put it in quotes", key)
            if value in seen:
                raise _wrong(f"duplicate key {value!r}; put its entries below that of line {seen[value]}", key)
            seen[value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)

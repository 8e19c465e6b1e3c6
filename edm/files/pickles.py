"""A restricted unpickler that builds only plain containers, numbers and text, and imports nothing.

A pickle is a program for a stack machine (``pickletools`` in Python's library lists its instructions). Python's own
unpickler imports and calls everything that the program names. This one resolves only the names that the caller lists,
each to a function of the caller, and checks every length that the pickle claims against the bytes in the file.

It has no instructions beyond those that checkpoints and CIFAR-10 need. Time and memory are bounded by a number of
instructions, which also bounds containers and memo, and by an amount of text. Long byte strings (the weights) are not
read but recorded as spans.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pickletools import code2op  # type: ignore[attr-defined]  # the stubs of Python lack it
from typing import Any, BinaryIO, NamedTuple

from edm.files.refusals import damaged, refused, shown

_INLINE = 64  # bytes of the longest byte string that is read; enough for a numpy scalar
_LONGEST_INTEGER = 16  # bytes
_LONGEST_NAME = 256  # of a module or a global, in bytes
_MOST_ARGUMENTS = 16  # of a call: passing one long tuple a hundred thousand times would take forever
_KEYS = 1 << 31  # integers below this cannot cause long chains of equal hashes in a dictionary
_NEWEST_PROTOCOL = 5


class Name(NamedTuple):
    """The name of a global in a pickle; it is never imported."""

    module: str
    name: str


class Span(NamedTuple):
    """The position in the file of a byte string that was not read."""

    start: int
    length: int


@dataclass(slots=True, eq=False)
class Instance:
    """Stands for an object of a class that is not imported: class name, constructor arguments and state."""

    name: str
    arguments: tuple
    state: Any = None


@dataclass
class Budget:
    """Limits for all pickles of one file together. The published files need less than a third of them.

    longest: characters of one text; the source code in the authors' pickles has 0.03 MB.
    """

    instructions: int = 500_000
    text: int = 16 << 20
    longest: int = 1 << 20


Names = Mapping[Name, Callable[..., Any] | None]


def interpret(
    file: BinaryIO, names: Names, budget: Budget, persistent: Callable[[Any], Any] | None = None,
    kind: str = "checkpoint",
) -> Any:  # fmt: skip
    """The value of the pickle that starts at the position of ``file``; leaves the position after its end.

    names: the globals that the pickle may use. When the pickle calls one, its function is called with the arguments;
        None marks a name that is only passed as an argument, as a :class:`Name`.
    persistent: returns the value for a persistent id, if the pickle may have them. kind: the file's kind in messages.
    Values are None, bool, int, float, str, bytes, tuple, list, dict, set, Name, Span, Instance and the results of the
    functions; containers may contain themselves. Raises UserError without the name of the file.
    """
    return _Machine(file, names, budget, persistent, kind).run()


class _Machine:
    def __init__(
        self, file: BinaryIO, names: Names, budget: Budget, persistent: Callable[[Any], Any] | None, kind: str
    ):
        self.file, self.names, self.budget, self.persistent, self.kind = file, names, budget, persistent, kind
        here = file.tell()
        self.size = file.seek(0, 2)
        file.seek(here)
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        actions, read = _ACTIONS, self.file.read
        while (code := read(1)) != b".":
            self.budget.instructions -= 1
            if self.budget.instructions < 0:
                raise refused(f"its pickle has more instructions than any {self.kind}")
            action = actions.get(code)
            if action is None:
                if not code:
                    raise damaged("its pickle ends too early")
                known = code2op.get(code.decode("latin1"))
                raise refused(f"its pickle uses {known.name if known else repr(code)}, as no {self.kind} does")
            action(self)
        if len(self.stack) != 1 or self.below:
            raise damaged("its pickle leaves no single value")
        return self.stack[0]

    # Parts of the instructions -----------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise damaged("its pickle ends too early")
        return data

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def pop(self) -> Any:
        if not self.stack:
            raise damaged("its pickle takes a value that is not there")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise damaged("its pickle takes a value that is not there")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        if not self.below:
            raise damaged("its pickle has no mark where it needs one")
        items, self.stack = self.stack, self.below.pop()
        return items

    def target(self, kind: type) -> Any:
        target = self.top()
        if type(target) is not kind:
            raise refused(f"its pickle fills {shown(target)} as if it were {shown(kind())}")
        return target

    # Values ------------------------------------------------------------------------------------------------------

    def text(self, layout: str) -> None:
        length = self.number(layout)
        self.budget.text -= length
        if length > self.budget.longest or self.budget.text < 0:
            raise refused(f"its pickle holds more text than any {self.kind}")
        try:
            self.stack.append(self.take(length).decode())
        except UnicodeDecodeError:
            raise damaged("text in its pickle is not UTF-8") from None

    def bytes(self, layout: str) -> None:
        length = self.number(layout)
        if length <= _INLINE:
            self.stack.append(self.take(length))
            return
        start = self.file.tell()
        if length > self.size - start:
            raise damaged(f"its pickle claims {length:,} bytes where {self.size - start:,} are left")
        self.file.seek(length, 1)
        self.stack.append(Span(start, length))

    def integer(self) -> None:
        length = self.number("<B")
        if length > _LONGEST_INTEGER:
            raise refused(f"its pickle holds an integer of {length} bytes")
        self.stack.append(int.from_bytes(self.take(length), "little", signed=True))

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def tuple_since_mark(self) -> None:
        items = self.since_mark()  # this changes the stack
        self.stack.append(tuple(items))

    # Containers: only exact lists, dictionaries and sets are filled ----------------------------------------------

    def append(self, items: list[Any]) -> None:
        self.target(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise damaged("its pickle has a key without a value")
        target = self.target(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def add_items(self, items: list[Any]) -> None:
        self.target(set).update(map(_key, items))

    # Memo --------------------------------------------------------------------------------------------------------

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise damaged("its pickle recalls a value that it never stored")
        self.stack.append(self.memo[index])

    # Names and calls ---------------------------------------------------------------------------------------------

    def name(self, module: Any, name: Any) -> None:
        known = isinstance(module, str) and isinstance(name, str) and Name(module, name) in self.names
        if not known:
            raise refused(f"it asks for {shown(module)}.{shown(name)}, which no {self.kind} needs")
        self.stack.append(Name(module, name))

    def lines(self) -> None:
        module, name = (self.file.readline(_LONGEST_NAME) for _ in range(2))
        if not (module.endswith(b"\n") and name.endswith(b"\n")):
            raise damaged("a name in its pickle does not end")
        self.name(module[:-1].decode("utf-8", "replace"), name[:-1].decode("utf-8", "replace"))

    def stacked_name(self) -> None:
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def call(self) -> None:
        arguments, name = self.pop(), self.pop()
        function = self.names.get(name) if type(name) is Name else None
        if function is None:
            raise refused(f"it calls {'.'.join(map(shown, name)) if type(name) is Name else shown(name)}")
        if type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS:
            raise damaged(f"it calls {'.'.join(name)} with arguments that make no sense")
        self.stack.append(function(*arguments))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if type(target) is Instance and target.state is None:
            target.state = state
        elif type(target) is not dict:  # the attributes (_metadata) of torch's state dicts are ignored
            raise refused(f"its pickle sets the state of {shown(target)}")

    def persistent_id(self) -> None:
        if self.persistent is None:
            raise refused("its pickle refers to values outside of it")
        self.stack.append(self.persistent(self.pop()))

    def protocol(self) -> None:
        version = self.number("<B")
        if version > _NEWEST_PROTOCOL:
            raise refused(f"its pickle is of protocol {version}; {_NEWEST_PROTOCOL} is the newest")

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []


def _key(key: Any) -> Any:
    """Accepts only text, bytes and small integers: they hash in linear time, without many equal hashes."""
    if type(key) in (str, bytes) or (isinstance(key, int) and abs(key) < _KEYS):
        return key
    raise refused(f"its pickle uses {shown(key)} as a key")


def _push(value: Any) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(value)


def _number(layout: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.number(layout))


_ACTIONS: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": _Machine.protocol,
    b"\x95": lambda m: m.take(8),  # the length of a frame, ignored
    b"N": _push(None), b"\x88": _push(True), b"\x89": _push(False), b")": _push(()),
    b"]": lambda m: m.stack.append([]), b"}": lambda m: m.stack.append({}), b"\x8f": lambda m: m.stack.append(set()),
    b"J": _number("<i"), b"K": _number("<B"), b"M": _number("<H"), b"G": _number(">d"), b"\x8a": _Machine.integer,
    b"\x8c": lambda m: m.text("<B"), b"X": lambda m: m.text("<I"),
    b"U": lambda m: m.bytes("<B"), b"T": lambda m: m.bytes("<I"),  # Python 2 writes text with these
    b"C": lambda m: m.bytes("<B"), b"B": lambda m: m.bytes("<I"), b"\x8e": lambda m: m.bytes("<Q"),
    b"\x85": lambda m: m.tuple_of(1), b"\x86": lambda m: m.tuple_of(2), b"\x87": lambda m: m.tuple_of(3),
    b"(": _Machine.mark,
    b"t": _Machine.tuple_since_mark,
    b"a": lambda m: m.append([m.pop()]), b"e": lambda m: m.append(m.since_mark()),
    b"s": lambda m: m.set_items([m.pop(), m.pop()][::-1]), b"u": lambda m: m.set_items(m.since_mark()),
    b"\x90": lambda m: m.add_items(m.since_mark()),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"q": lambda m: m.put(m.number("<B")), b"r": lambda m: m.put(m.number("<I")),
    b"h": lambda m: m.get(m.number("<B")), b"j": lambda m: m.get(m.number("<I")),
    b"c": _Machine.lines, b"\x93": _Machine.stacked_name,
    b"R": _Machine.call, b"\x81": _Machine.call, b"b": _Machine.build, b"Q": _Machine.persistent_id,
}  # fmt: skip

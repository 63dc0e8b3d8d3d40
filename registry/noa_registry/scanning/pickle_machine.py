"""Reads the instructions of a pickle without carrying them out.

A small abstract machine follows what each instruction does to stack and memo, so that the names a pickle asks for are
known exactly, however they were put together. Only texts, numbers, tuples and names are followed; everything else is
`UNKNOWN`. Long arguments are skipped, never read. An unknown instruction, a name that cannot be known, an early end:
each is an error, and the pickle is refused.

joblib puts the raw numbers of an array between the instructions; where the machine sees that happen, it skips them.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast

from noa_registry.scanning.blobs import Cursor, MalformedError
from noa_registry.scanning.limits import ScanLimits

_MOST_TEXT = 1024
_MOST_LINE = 1 << 20
_MOST_ITEMS = 64
_MOST_MEMO_CHARACTERS = 64 << 20
_MOST_PLACES = 1 << 25
_HAS_OBJECTS = 1  # the flag of NumPy types that hold Python objects
_MOST_NESTED = 8
_TORCH_MAGIC: Final = 0x1950A86A20F9469CFC6C
_OPCODES: Final = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_PREFIXES: Final = {
    pickletools.TAKEN_FROM_ARGUMENT1: "<B",
    pickletools.TAKEN_FROM_ARGUMENT4: "<i",
    pickletools.TAKEN_FROM_ARGUMENT4U: "<I",
    pickletools.TAKEN_FROM_ARGUMENT8U: "<Q",
}


class _Unknown:
    """Any object that is not followed."""


UNKNOWN: Final = _Unknown()
_MARK: Final = _Unknown()
_NONE: Final = _Unknown()


@dataclass(frozen=True, slots=True)
class Name:
    """A name that the pickle imports."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


_WRAPPER: Final = Name("joblib.numpy_pickle", "NumpyArrayWrapper")


@dataclass(slots=True)
class _Made:
    """What calling `of` gives."""

    of: object
    arguments: object
    state: object = UNKNOWN


@dataclass(slots=True)
class Walk:
    """What one pickle asks for. `calls`: whether it calls something; `value`: what it gives, where that is followed."""

    names: list[Name] = field(default_factory=list[Name])
    calls: bool = False
    ended: bool = False
    instructions: int = 0
    value: object = UNKNOWN

    @property
    def is_torch_magic(self) -> bool:
        """Whether it is the number with which old PyTorch files begin."""
        return self.value == _TORCH_MAGIC


def walk_pickle(cursor: Cursor, limits: ScanLimits, tick: Callable[[], None], *, into: Walk | None = None) -> Walk:
    """Follow one pickle from the cursor to its end; the cursor then stands behind it.

    `into` is filled as it goes, so that a caller sees what was found before an error.

    Raises:
        MalformedError: it is no whole pickle, hides a name, or is larger than the limits.
    """
    walk = Walk() if into is None else into
    _Machine(cursor, limits, tick, walk, 0).run()
    return walk


class _Machine:
    def __init__(self, cursor: Cursor, limits: ScanLimits, tick: Callable[[], None], walk: Walk, nested: int) -> None:
        self._cursor = cursor
        self._limits = limits
        self._tick = tick
        self._walk = walk
        self._nested = nested
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}
        self._seen = bytearray()  # which places of the memo were ever filled, also with what is not followed
        self._filled = 0
        self._memo_characters = 0

    def run(self) -> None:
        walk, cursor = self._walk, self._cursor
        while True:
            at = cursor.position
            code = cursor.byte()
            opcode = _OPCODES.get(code)
            if opcode is None:
                raise MalformedError(
                    f"ends without a last instruction, at {at}" if code < 0 else f"has an unknown instruction at {at}"
                )
            walk.instructions += 1
            if walk.instructions & 0xFFF == 0:
                self._tick()
                if walk.instructions > self._limits.opcodes or len(self._stack) > self._limits.stack:
                    raise MalformedError(f"has more than {self._limits.opcodes} instructions or too deep a stack")
            argument = None if opcode.arg is None else self.argument(opcode.arg)
            if opcode.name == "STOP":
                walk.value = self.pop()
                walk.ended = True
                return
            handler = _HANDLERS.get(opcode.name)
            if handler is None:
                self.by_table(opcode)
            else:
                handler(self, argument)

    def argument(self, kind: pickletools.ArgumentDescriptor) -> object:
        cursor = self._cursor
        if kind.n >= 0:
            return kind.reader(io.BytesIO(cursor.take(kind.n)))
        if kind.n == pickletools.UP_TO_NEWLINE:
            return self.line_argument(kind)
        prefix = _PREFIXES[kind.n]
        (length,) = struct.unpack(prefix, cursor.take(struct.calcsize(prefix)))
        if length < 0:
            raise MalformedError(f"claims a negative length at {cursor.position}")
        if length > _MOST_TEXT:
            cursor.skip(length)
            return UNKNOWN
        data = cursor.take(length)
        if "unicode" in kind.name:
            return data.decode("utf-8", "surrogatepass") if _is_text(data) else UNKNOWN
        if kind.name.startswith("long"):
            return int.from_bytes(data, "little", signed=True)
        return data.decode("latin-1") if kind.name.startswith("string") else UNKNOWN

    def line_argument(self, kind: pickletools.ArgumentDescriptor) -> object:
        line = self._cursor.line(_MOST_LINE)
        if kind.name == "stringnl_noescape_pair":
            return Name(_ascii(line), _ascii(self._cursor.line(_MOST_LINE)))
        if len(line) > _MOST_TEXT:
            return UNKNOWN
        if kind.name == "unicodestringnl":
            return line.decode("raw-unicode-escape", "replace")
        try:
            return kind.reader(io.BytesIO(line + b"\n"))
        except (ValueError, UnicodeError) as exc:
            raise MalformedError(f"has an unreadable argument before {self._cursor.position}") from exc

    def by_table(self, opcode: pickletools.OpcodeInfo) -> None:
        """Do to the stack what the standard library's table says about an instruction."""
        before = opcode.stack_before
        if any(entry is pickletools.markobject for entry in before):
            self.pop_to_mark()
            for _ in before[: before.index(pickletools.markobject)]:
                self.pop()
        else:
            for _ in before:
                self.pop()
        self._stack.extend(UNKNOWN for _ in opcode.stack_after)

    def pop(self) -> object:
        if not self._stack:
            raise MalformedError(f"takes more from the stack than there is, at {self._cursor.position}")
        return self._stack.pop()

    def pop_to_mark(self) -> list[object]:
        stack = self._stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is _MARK:
                items = stack[index + 1 :]
                del stack[index:]
                return items
        raise MalformedError(f"closes what was never opened, at {self._cursor.position}")

    def push(self, value: object) -> None:
        self._stack.append(value)

    def import_name(self, name: object) -> None:
        if not isinstance(name, Name):
            raise MalformedError(f"hides the name of what it imports, at {self._cursor.position}")
        if len(self._walk.names) >= self._limits.memo:
            raise MalformedError(f"imports more than {self._limits.memo} names")
        if "ArrayWrapper" in name.name and name != _WRAPPER:
            raise MalformedError(f"imports `{name}`, which reads on its own where it stands")
        self._walk.names.append(name)
        self.push(name)

    def stack_global(self, _argument: object) -> None:
        name, module = self.pop(), self.pop()
        self.import_name(Name(module, name) if isinstance(name, str) and isinstance(module, str) else UNKNOWN)

    def make_tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def tuple_to_mark(self, _argument: object) -> None:
        items = self.pop_to_mark()
        self.push(tuple(items) if len(items) <= _MOST_ITEMS else UNKNOWN)

    def call(self, of: object, arguments: object) -> None:
        self._walk.calls = True
        # joblib makes its wrapper in one way only; any other would hide that it reads on where it stands.
        if of == _WRAPPER or (isinstance(arguments, tuple) and _WRAPPER in arguments):
            raise MalformedError(f"makes `{_WRAPPER}` in an unusual way, at {self._cursor.position}")
        self.push(_Made(of, arguments))

    def reduce(self, _argument: object) -> None:
        arguments, of = self.pop(), self.pop()
        self.call(of, arguments)

    def new_object(self, _argument: object) -> None:
        arguments, of = self.pop(), self.pop()
        if of == _WRAPPER and arguments == ():
            self.push(_Made(of, arguments))
        else:
            self.call(of, arguments)

    def new_object_ex(self, _argument: object) -> None:
        self.pop()
        self.reduce(None)

    def make_object(self, _argument: object) -> None:
        items = self.pop_to_mark()
        if not items:
            raise MalformedError(f"makes an object of nothing, at {self._cursor.position}")
        self.call(items[0], UNKNOWN)

    def instance(self, argument: object) -> None:
        self.pop_to_mark()
        self.import_name(argument)
        self.call(self.pop(), UNKNOWN)

    def build(self, _argument: object) -> None:
        state = self.pop()
        self._walk.calls = True
        if not self._stack:
            raise MalformedError(f"sets the state of nothing, at {self._cursor.position}")
        made = self._stack[-1]
        if isinstance(made, _Made):
            made.state = state
            if made.of == _WRAPPER:
                self.skip_joblib_array(state)

    def make_dict(self, _argument: object) -> None:
        items = self.pop_to_mark()
        self.push(_pairs(items))

    def set_items(self, _argument: object) -> None:
        items = self.pop_to_mark()
        if self._stack and isinstance(table := self._stack[-1], dict) and len(items) <= 2 * _MOST_ITEMS:
            table.update(_pairs(items))

    def set_item(self, _argument: object) -> None:
        value, key = self.pop(), self.pop()
        if self._stack and isinstance(table := self._stack[-1], dict) and len(table) < _MOST_ITEMS:
            table.update(_pairs([key, value]))

    def remember(self, argument: object) -> None:
        index = argument if isinstance(argument, int) else -1
        if not self._stack or index < 0:
            raise MalformedError(f"remembers nothing, at {self._cursor.position}")
        if index >= _MOST_PLACES:
            raise MalformedError(f"remembers at place {index}, which no whole pickle reaches")
        if index >= len(self._seen):
            self._seen.extend(bytes(max(index + 1 - len(self._seen), len(self._seen))))
        self._filled += 1 - self._seen[index]
        self._seen[index] = 1
        value = self._stack[-1]
        if isinstance(value, _Unknown):
            self._memo.pop(index, None)
            return
        self._memo_characters += len(value) if isinstance(value, str) else 64
        if len(self._memo) >= self._limits.memo or self._memo_characters > _MOST_MEMO_CHARACTERS:
            raise MalformedError("remembers more than can be followed")
        self._memo[index] = value

    def memoize(self, _argument: object) -> None:
        self.remember(self._filled)  # the next place is the number of filled ones, as in the standard library

    def recall(self, argument: object) -> None:
        self.push(self._memo.get(argument, UNKNOWN) if isinstance(argument, int) else UNKNOWN)

    def forget_to_mark(self, _argument: object) -> None:
        self.pop_to_mark()

    def pop_one(self, _argument: object) -> None:
        self.pop()

    def duplicate(self, _argument: object) -> None:
        value = self.pop()
        self._stack += [value, value]

    def extension(self, _argument: object) -> None:
        raise MalformedError(f"imports by a number instead of a name, at {self._cursor.position}")

    def skip_joblib_array(self, state: object) -> None:
        """Go behind the numbers of an array, which joblib writes after the object that describes it.

        How many there are is decided by what NumPy will make of the description, so nothing in it may be unclear.
        """
        table = state if isinstance(state, dict) else {}
        shape, dtype, alignment = (table.get(key, UNKNOWN) for key in ("shape", "dtype", "numpy_array_alignment_bytes"))
        if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
            raise MalformedError(f"describes an array badly, at {self._cursor.position}")
        width = _element_bytes(dtype)
        self._stack[-1] = UNKNOWN  # joblib puts the array in its place
        if width is None:
            self._skip_pickle()
            return
        if type(alignment) is int:
            self._cursor.skip(self._cursor.take(1)[0])
        elif alignment is not _NONE and alignment is not UNKNOWN:
            raise MalformedError(f"describes an array badly, at {self._cursor.position}")
        self._cursor.skip(math.prod(cast("tuple[int, ...]", shape)) * width)

    def _skip_pickle(self) -> None:
        if self._nested >= _MOST_NESTED:
            raise MalformedError("holds pickles in pickles in pickles")
        inner = Walk(names=self._walk.names, instructions=self._walk.instructions)
        _Machine(self._cursor, self._limits, self._tick, inner, self._nested + 1).run()
        self._walk.instructions = inner.instructions


def _element_bytes(dtype: object) -> int | None:
    """Return the size of one element of a pickled NumPy type, None if it holds objects.

    The state that the type is given decides: it may say that there are objects, and how long texts and records are.
    """
    made = dtype if isinstance(dtype, _Made) and dtype.of == Name("numpy", "dtype") else None
    code = made.arguments[0] if made is not None and isinstance(made.arguments, tuple) and made.arguments else None
    state = made.state if made is not None else None
    if not isinstance(code, str) or not isinstance(state, tuple) or len(state) not in (8, 9):
        raise MalformedError("holds an array whose type is not followed")
    flags, size = state[7], state[5]
    if type(flags) is not int or type(size) is not int:
        raise MalformedError("holds an array whose type is not followed")
    if code[:1] == "O" or flags & _HAS_OBJECTS:
        return None
    if code[:1] not in "biufcSUVMm" or not code[1:].isdigit():
        raise MalformedError(f"holds an array of the type {code!a}, which is not followed")
    width = int(code[1:]) * (4 if code[0] == "U" else 1)
    if code[0] in "SUV" and size != width:
        raise MalformedError(f"holds an array whose type {code!a} says {width} bytes and then {size}")
    return width


def _pairs(items: list[object]) -> dict[str, object]:
    pairs = zip(items[::2], items[1::2], strict=False)
    return {key: value for key, value in pairs if isinstance(key, str)} if len(items) <= 2 * _MOST_ITEMS else {}


def _ascii(line: bytes) -> str:
    if len(line) > _MOST_TEXT:
        raise MalformedError("imports a name of many thousand characters")
    return line.decode("utf-8", "replace")


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def _constant(value: object) -> Callable[[_Machine, object], None]:
    return lambda machine, _argument: machine.push(value)


def _argument_itself(machine: _Machine, argument: object) -> None:
    machine.push(argument if isinstance(argument, str | int) else UNKNOWN)


_HANDLERS: Final[dict[str, Callable[[_Machine, object], None]]] = {
    **dict.fromkeys(
        ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        _argument_itself,
    ),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), _argument_itself),
    "NONE": _constant(_NONE),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "MARK": _constant(_MARK),
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_DICT": lambda machine, _argument: machine.push({}),
    "PROTO": lambda machine, argument: None,
    "FRAME": lambda machine, argument: None,
    "TUPLE": _Machine.tuple_to_mark,
    "TUPLE1": lambda machine, _argument: machine.make_tuple(1),
    "TUPLE2": lambda machine, _argument: machine.make_tuple(2),
    "TUPLE3": lambda machine, _argument: machine.make_tuple(3),
    "DICT": _Machine.make_dict,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.import_name,
    "STACK_GLOBAL": _Machine.stack_global,
    "INST": _Machine.instance,
    "OBJ": _Machine.make_object,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "NEWOBJ_EX": _Machine.new_object_ex,
    "BUILD": _Machine.build,
    "PUT": _Machine.remember,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": _Machine.memoize,
    "GET": _Machine.recall,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "POP": _Machine.pop_one,
    "POP_MARK": _Machine.forget_to_mark,
    "DUP": _Machine.duplicate,
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _Machine.extension),
}

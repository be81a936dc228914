"""A core's whole state as bytes: what a replay begins with when older history is overwritten.

A core is a graph of plain objects: instances of classes of `peerd.core`, containers, values, and
the functions that it keeps to be called with an outcome (bound methods, and functions inside
methods with what they closed over). Each mutable thing is written once and referred to by number
afterwards, so that what is shared stays shared.

Why a restored core behaves as the first one did: every attribute of every object is written, an
identity that a core may test is kept, and the code is that of the installed `peerd.core`. Frozen
dataclasses are written by their codec: of them only the value counts, but for the operations that
wait for their outcome, which a replay takes from the restored core itself.

Reading makes objects of classes of `peerd.core` and refers to functions of `peerd.core`; anything
else is refused. It never runs what it reads.
"""

import struct
import sys
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import CellType, CodeType, FunctionType, MethodType

from peerd.core.check import InvariantViolation
from peerd.core.replica import Replica
from peerd.recorder.codec import MALFORMED, Decode, blank
from peerd.recorder.forms import Forms

# limit: values of a checkpoint; writing one holds the event loop up by about 1 µs a value, so by
# some 30 ms at the very most, and only when a segment of the ring was filled
CHECKPOINT_VALUES_MAX = 30_000

_COUNT = struct.Struct("<I")
_INT = struct.Struct("<q")
_CORE = "peerd.core."


class NotCheckpointed(Exception):
    """This state cannot be written or read; one line says why."""


class GraphWriter:
    """Writes one graph."""

    def __init__(self, forms: Forms, encoders: dict[int, Callable[..., bytes]]) -> None:
        self._encode = {kind: encoders[number] for kind, number in forms.values.items()}
        self._tag = {kind: at for at, kind in enumerate(forms.values)}
        self._out: list[bytes] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[object] = []
        self._left = CHECKPOINT_VALUES_MAX

    def write(self, root: Replica) -> bytes:
        """The graph below `root`. Raises `NotCheckpointed`."""
        try:
            self._value(root)
        except (RecursionError, *MALFORMED) as error:
            raise NotCheckpointed(f"its state has no encoding: {error}") from error
        return b"".join(self._out)

    def _value(self, value: object) -> None:
        self._left -= 1
        if self._left < 0:
            raise NotCheckpointed(f"its state has more than {CHECKPOINT_VALUES_MAX} values")
        kind = type(value)
        encode = self._encode.get(kind)
        if encode is not None:
            self._out.append(b"V" + _COUNT.pack(self._tag[kind]) + encode(value))
        elif value is None:
            self._out.append(b"N")
        elif value is True or value is False:
            self._out.append(b"T" if value else b"F")
        elif kind is int:
            self._out.append(b"I" + _INT.pack(value))
        elif kind is str and isinstance(value, str):
            self._text(b"S", value)
        elif kind is bytes and isinstance(value, bytes):
            self._out.append(b"B" + _COUNT.pack(len(value)) + value)
        elif isinstance(value, memoryview):
            self._out.append(b"P" + _COUNT.pack(len(value)))
        elif isinstance(value, Enum):
            self._text(b"E", f"{_path(kind)}:{value.name}")
        elif isinstance(value, type):
            self._text(b"C", _path(value))
        else:
            self._shared(value)

    def _shared(self, value: object) -> None:
        """Things with an identity: the first time whole, then by their number."""
        number = self._numbers.get(id(value))
        if number is not None:
            self._out.append(b"R" + _COUNT.pack(number))
            return
        if isinstance(value, tuple):
            # Immutable, so it is written each time; what is in it keeps its identity.
            self._sequence(b"t", value)
            return
        if isinstance(value, MethodType):
            self._text(b"M", value.__func__.__name__)
            self._value(value.__self__)
            return
        self._numbers[id(value)] = len(self._numbers)
        self._kept.append(value)
        if isinstance(value, list):
            self._sequence(b"l", value)
        elif isinstance(value, deque):
            self._sequence(b"q", value)
            self._value(value.maxlen)
        elif isinstance(value, OrderedDict):
            self._pairs(b"o", value)
        elif isinstance(value, dict):
            self._pairs(b"d", value)
        elif isinstance(value, set | frozenset):
            self._set(value)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, CellType):
            self._out.append(b"c")
            self._value(value.cell_contents)
        else:
            self._object(value)

    def _text(self, tag: bytes, text: str) -> None:
        packed = text.encode()
        self._out.append(tag + _COUNT.pack(len(packed)) + packed)

    def _sequence(
        self, tag: bytes, values: "tuple[object, ...] | list[object] | deque[object]"
    ) -> None:
        self._out.append(tag + _COUNT.pack(len(values)))
        for value in values:
            self._value(value)

    def _pairs(self, tag: bytes, pairs: dict[object, object]) -> None:
        self._out.append(tag + _COUNT.pack(len(pairs)))
        for key, value in pairs.items():
            self._value(key)
            self._value(value)

    def _set(self, values: "set[object] | frozenset[object]") -> None:
        """In the order of their bytes: the order of a set is not the same in every process."""
        tag = b"s" if isinstance(values, set) else b"z"
        written = []
        outer, known = self._out, len(self._numbers)
        for value in values:
            self._out = []
            self._value(value)
            written.append(b"".join(self._out))
        self._out = outer
        if len(self._numbers) != known:
            raise NotCheckpointed("a set holds things that are told apart by identity")
        self._out.append(tag + _COUNT.pack(len(values)) + b"".join(sorted(written)))

    def _function(self, function: FunctionType) -> None:
        if not function.__module__.startswith(_CORE):
            raise NotCheckpointed(f"{function.__qualname__} is no function of the core")
        path, cells = f"{function.__module__}:{function.__qualname__}", function.__closure__ or ()
        if _function(path, list(cells)).__code__ is not function.__code__ or function.__defaults__:
            raise NotCheckpointed(f"{path} does not name one function")
        self._text(b"L", path)
        self._sequence(b"t", cells)

    def _object(self, value: object) -> None:
        kind = type(value)
        self._text(b"O", _path(kind))
        names = _attributes(kind, value)
        self._out.append(_COUNT.pack(len(names)))
        for name in names:
            self._text(b"S", name)
            self._value(getattr(value, name))


def _path(kind: type) -> str:
    if not kind.__module__.startswith(_CORE):
        raise NotCheckpointed(f"{kind.__module__}.{kind.__qualname__} is no class of the core")
    return f"{kind.__module__}:{kind.__qualname__}"


def _attributes(kind: type, value: object) -> list[str]:
    names = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
    names += getattr(value, "__dict__", {})
    return sorted(_mangled(kind, name) for name in names if hasattr(value, _mangled(kind, name)))


def _mangled(kind: type, name: str) -> str:
    if name.startswith("__") and not name.endswith("__"):
        return f"_{kind.__name__.lstrip('_')}{name}"
    return name


@dataclass(slots=True)
class _Empty:
    """Stands for what is still being read; nothing may ask for it."""


class GraphReader:
    """Reads one graph."""

    def __init__(self, forms: Forms, decoders: dict[int, Decode], data: bytes) -> None:
        self._decode = [decoders[number] for number in forms.values.values()]
        self._data = data
        self._at = 0
        self._things: list[object] = []

    def read(self) -> Replica:
        """The core. Raises `NotCheckpointed` if these bytes are not the state of one."""
        try:
            root = self._value()
        except (RecursionError, AttributeError, InvariantViolation, *MALFORMED) as error:
            raise NotCheckpointed(f"its bytes are not the state of a core: {error}") from error
        if not isinstance(root, Replica) or self._at != len(self._data):
            raise NotCheckpointed("its bytes are not the state of a core")
        return root

    def _count(self) -> int:
        (count,) = _COUNT.unpack_from(self._data, self._at)
        self._at += _COUNT.size
        return int(count)

    def _bytes(self) -> bytes:
        size = self._count()
        if size > len(self._data) - self._at:
            raise ValueError("a length leads beyond the end")
        self._at += size
        return self._data[self._at - size : self._at]

    def _text(self) -> str:
        return self._bytes().decode()

    def _value(self) -> object:
        tag = self._data[self._at : self._at + 1]
        self._at += 1
        if tag == b"V":
            decode = self._decode[self._count()]
            value, self._at = decode(self._data, self._at)
            return value
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        if tag == b"I":
            (number,) = _INT.unpack_from(self._data, self._at)
            self._at += _INT.size
            return number
        simple = _SIMPLE.get(tag)
        if simple is not None:
            return simple(self)
        number_of_thing = len(self._things)
        self._things.append(_Empty())
        self._things[number_of_thing] = _SHARED[tag](self, number_of_thing)
        return self._things[number_of_thing]

    # ------------------------------------------------------------------ without identity
    def _blank(self) -> object:
        return memoryview(blank(self._count()))

    def _enum(self) -> object:
        path, _, name = self._text().rpartition(":")
        kind = _class(path)
        if not issubclass(kind, Enum):
            raise ValueError(f"{path} is no enumeration")
        return kind[name]

    def _reference(self) -> object:
        return self._things[self._count()]

    def _tuple(self) -> object:
        return tuple([self._value() for _ in range(self._count())])

    def _method(self) -> object:
        name = self._text()
        owner = self._value()
        function = getattr(type(owner), name)
        if not isinstance(function, FunctionType) or not function.__module__.startswith(_CORE):
            raise ValueError(f"{name} is no method of the core")
        return MethodType(function, owner)

    # ------------------------------------------------------------------ with identity
    def _list(self, number: int) -> object:
        out: list[object] = []
        self._things[number] = out
        out.extend(self._value() for _ in range(self._count()))
        return out

    def _deque(self, _number: int) -> object:
        values = [self._value() for _ in range(self._count())]
        longest = self._value()
        return deque(values, maxlen=longest if isinstance(longest, int) else None)

    def _dict(self, number: int, *, ordered: bool = False) -> object:
        out: dict[object, object] = OrderedDict() if ordered else {}
        self._things[number] = out
        for _ in range(self._count()):
            key = self._value()
            out[key] = self._value()
        return out

    def _set(self, _number: int) -> object:
        return {self._value() for _ in range(self._count())}

    def _function(self, _number: int) -> object:
        path = self._text()
        self._at += 1  # the tag of the tuple of cells
        cells = [self._value() for _ in range(self._count())]
        return _function(path, [cell for cell in cells if isinstance(cell, CellType)])

    def _cell(self, number: int) -> object:
        cell = CellType()
        self._things[number] = cell
        cell.cell_contents = self._value()
        return cell

    def _object(self, number: int) -> object:
        kind = _class(self._text())
        made: object = object.__new__(kind)
        self._things[number] = made
        for _ in range(self._count()):
            self._at += 1  # the tag of a text
            object.__setattr__(made, self._text(), self._value())
        return made


_CONSTANTS: dict[bytes, object] = {b"N": None, b"T": True, b"F": False}
_SIMPLE: dict[bytes, Callable[[GraphReader], object]] = {
    b"S": GraphReader._text,
    b"B": GraphReader._bytes,
    b"P": GraphReader._blank,
    b"E": GraphReader._enum,
    b"C": lambda reader: _class(reader._text()),
    b"R": GraphReader._reference,
    b"t": GraphReader._tuple,
    b"M": GraphReader._method,
}
_SHARED: dict[bytes, Callable[[GraphReader, int], object]] = {
    b"l": GraphReader._list,
    b"q": GraphReader._deque,
    b"d": GraphReader._dict,
    b"o": lambda reader, number: reader._dict(number, ordered=True),
    b"s": GraphReader._set,
    b"z": lambda reader, _number: frozenset([reader._value() for _ in range(reader._count())]),
    b"L": GraphReader._function,
    b"c": GraphReader._cell,
    b"O": GraphReader._object,
}


def _module(path: str) -> tuple[object, list[str]]:
    """The loaded module of the core that a path names, and the names that follow."""
    module, _, names = path.partition(":")
    if not module.startswith(_CORE) or module not in sys.modules:
        raise ValueError(f"{module} is no module of the core")
    return sys.modules[module], names.split(".")


def _class(path: str) -> type:
    found, names = _module(path)
    for name in names:
        found = getattr(found, name)
    if not isinstance(found, type) or not found.__module__.startswith(_CORE):
        raise ValueError(f"{path} is no class of the core")
    return found


def _function(path: str, cells: list[CellType]) -> FunctionType:
    """A function of the core, also one inside a method, with what it closed over."""
    found, names = _module(path)
    before, _, inner = ".".join(names).partition(".<locals>.")
    for name in before.split("."):
        found = getattr(found, name)
    if not isinstance(found, FunctionType) or not found.__module__.startswith(_CORE):
        raise ValueError(f"{path} is no function of the core")
    if not inner:
        return found
    code: CodeType = found.__code__
    for name in inner.split(".<locals>."):
        inside = [c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name]
        if len(inside) != 1:
            raise ValueError(f"{path} is the name of {len(inside)} functions")
        code = inside[0]
    if len(code.co_freevars) != len(cells):
        raise ValueError(f"{path} closes over {len(code.co_freevars)} things, not {len(cells)}")
    return FunctionType(code, found.__globals__, code.co_name, None, tuple(cells))

"""Bytes of the values of `peerd.core`, by functions that are compiled from their type hints.

A peer records every event of every shard, so an encoding must cost about a microsecond. For each
dataclass one function is written as source and compiled, once: fields of fixed size that follow
each other, also those of nested dataclasses, become one `struct` call.

Why a decoded value is the one that was encoded: every field of every dataclass is encoded by its
type hint and nothing else is; a class whose hint has no rule fails when the codec is built, not
when it is used. Two things are left out on purpose:
- payloads: their length stands in the header beside them, and nothing in a core opens one. Decoded,
  a payload is that many zeros;
- names (of peers, stores, boots): each has a number in `Names`, which the reader must have as well.

`fingerprint` names the types as they are now: bytes of other types are never decoded by guess.
Decoding makes values of the listed classes and runs nothing else.
"""

import hashlib
import struct
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import NewType, Union, cast, get_args, get_origin, get_type_hints

from peerd.core import ids

Decode = Callable[[bytes | memoryview, int], tuple[object, int]]

# limit: bytes of zeros that stand for payloads after decoding; a longer payload gets its own
BLANK_BYTES = 1024 * 1024
_BLANK = memoryview(bytes(BLANK_BYTES))

_FIXED_OF_NEWTYPE: dict[object, str] = {
    ids.ShardId: "Q",
    ids.Epoch: "Q",
    ids.Offset: "Q",
    ids.RequestId: "Q",
    ids.Tick: "q",
}
# Plain integers are signed, but for the fields that fill 64 bits.
_UNSIGNED_FIELDS = "key_hash"
_NO_VALUE = 255
_NO_PRODUCER_PACKED = bytes(16)


def blank(size_bytes: int) -> bytes | memoryview:
    """What stands for a payload of this length."""
    return _BLANK[:size_bytes] if size_bytes <= BLANK_BYTES else bytes(size_bytes)


class Names(dict[str, int]):
    """Numbers of names, in the order in which they came; `on_new` is told before one is used."""

    def __init__(self, on_new: Callable[[int, str], None] | None = None) -> None:
        super().__init__()
        self._on_new = on_new

    def __missing__(self, name: str) -> int:
        number = self[name] = len(self)
        if self._on_new is not None:
            self._on_new(number, name)
        return number


class _Function:
    """One function that is being written: its fields in order, for both directions."""

    def __init__(self) -> None:
        self.before: list[str] = []
        self.parts: list[tuple[str, str, str]] = []  # format or "", expression or call, variable
        self.after: list[str] = []
        self._variables = 0

    def variable(self, stem: str) -> str:
        self._variables += 1
        return f"{stem}{self._variables}"

    def fixed(self, code: str, expression: str) -> str:
        """A field of fixed size; returns the variable that reading gives."""
        name = self.variable("y")
        self.parts.append((code, expression, name))
        return name

    def dynamic(self, number: int, expression: str) -> str:
        """A field that function `number` encodes."""
        name = self.variable("x")
        self.parts.append(("", f"{number} {expression}", name))
        return name


class Compiler:
    """Writes the functions for some root types. Build it once; `bind` gives functions."""

    def __init__(self) -> None:
        self._numbers: dict[object, int] = {}
        self._constants: dict[str, object] = {
            "blank": blank,
            "ZERO16": _NO_PRODUCER_PACKED,
            "COUNT": struct.Struct("<I"),
        }
        self._encoders: list[str] = []
        self._decoders: list[str] = []
        self._described: dict[str, str] = {}
        self.dataclasses: list[type] = []

    # ------------------------------------------------------------------ what is compiled
    def of(self, hint: object) -> int:
        """The number of the functions for `hint`; they are written at the first time."""
        number = self._numbers.get(hint)
        if number is None:
            number = self._numbers[hint] = len(self._numbers)
            self._write(hint, number)
        return number

    def tagged(self, cls: type, tag: int) -> int:
        """The functions for a dataclass that begins with its tag in a union."""
        key = ("tagged", cls, tag)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._numbers)
            function = _Function()
            function.fixed("B", str(tag))
            result = self.add(cls, "v", function)
            self.define(number, function, result)
        return number

    def number(self, key: object) -> int:
        """A new number for functions that the caller defines."""
        number = self._numbers[key] = len(self._numbers)
        return number

    def event(self, cls: type, tag: int) -> int:
        """Functions that also take what stands before each event: see `event_head`."""
        number = self.number(("event", cls))
        function = self.event_head(tag)
        result = self.add(cls, "v", function)
        self.define(number, function, result, "shard, stamp, digest, v")
        return number

    @staticmethod
    def event_head(tag: int) -> _Function:
        """Kind, shard, monotonic nanoseconds, digest of the effects."""
        function = _Function()
        for code, name in (("B", str(tag)), ("Q", "shard"), ("Q", "stamp"), ("I", "digest")):
            function.fixed(code, name)
        return function

    def constant(self, stem: str, value: object) -> str:
        """A name for `value` in the source."""
        name = f"{stem}_{len(self._constants)}"
        self._constants[name] = value
        return name

    # ------------------------------------------------------------------ one hint inside a function
    def add(self, hint: object, expression: str, function: _Function, field: str = "") -> str:
        """Write how `expression` of type `hint` is encoded; returns what decoding it gives."""
        code = _FIXED_OF_NEWTYPE.get(hint)
        if code is None and hint is int:
            code = "Q" if field.startswith(_UNSIGNED_FIELDS) else "q"
        if hint is bool:
            code = "?"
        if code is not None:
            return function.fixed(code, expression)
        if hint is ids.ProducerId:
            name = function.fixed("16s", expression)
            return f"(b'' if {name} == ZERO16 else {name})"
        if isinstance(hint, NewType) and hint.__supertype__ is str:
            return f"names[{function.fixed('I', f'ids[{expression}]')}]"
        if isinstance(hint, type) and issubclass(hint, Enum):
            return self._add_enum(hint, expression, function)
        if isinstance(hint, type) and is_dataclass(hint):
            return self._add_dataclass(hint, expression, function)
        inner = _optional_of(hint)
        if inner is not None and (inner is int or inner in _FIXED_OF_NEWTYPE):
            value = function.variable("w")
            function.before.append(f"{value} = {expression}")
            known = function.fixed("?", f"{value} is not None")
            result = self.add(inner, f"({value} or 0)", function, field)
            return f"({result} if {known} else None)"
        return function.dynamic(self.of(hint), expression)

    def _add_enum(self, hint: type[Enum], expression: str, function: _Function) -> str:
        members = list(hint)
        self._described[f"{hint.__module__}.{hint.__qualname__}"] = " ".join(
            member.name for member in members
        )
        numbers = self.constant("numbers", {member: at for at, member in enumerate(members)})
        listed = self.constant("members", members)
        return f"{listed}[{function.fixed('B', f'{numbers}[{expression}]')}]"

    def _add_dataclass(self, cls: type, expression: str, function: _Function) -> str:
        value = function.variable("w")
        function.before.append(f"{value} = {expression}")
        arguments = self.add_fields(cls, value, function)
        result = function.variable("r")
        function.after.append(f"{result} = {self.constant(cls.__name__, cls)}({arguments})")
        return result

    def add_fields(
        self, cls: type, value: str, function: _Function, without: frozenset[str] = frozenset()
    ) -> str:
        """The fields of a dataclass, but for some; returns them as keyword arguments."""
        if cls not in self.dataclasses:
            self.dataclasses.append(cls)
        hints = get_type_hints(cls)
        names = [each.name for each in fields(cls)]
        self._described[f"{cls.__module__}.{cls.__qualname__}"] = " ".join(
            f"{name}:{hints[name]}" for name in names
        )
        arguments: dict[str, str] = {}
        for name in names:
            if name in without:
                continue
            if name == "payload":
                arguments[name] = f"blank({arguments['header']}.payload_bytes)"
            else:
                arguments[name] = self.add(hints[name], f"{value}.{name}", function, name)
        return ", ".join(f"{name}={result}" for name, result in arguments.items())

    # ------------------------------------------------------------------ whole functions
    def _write(self, hint: object, number: int) -> None:
        origin, arguments = get_origin(hint), get_args(hint)
        if hint is str or hint is bytes:
            self._write_text(number, is_text=hint is str)
        elif origin in {Union, types.UnionType}:
            inner = _optional_of(hint)
            if inner is not None and not is_dataclass(inner):
                self._write_optional(number, self.of(inner))
            else:
                self._write_union(number, arguments)
        elif origin is Sequence or (origin is tuple and arguments[1:] == (Ellipsis,)):
            self._write_sequence(number, arguments[0])  # a tuple comes back, whatever it was
        elif origin is tuple:
            function = _Function()
            parts = [self.add(each, f"v[{at}]", function) for at, each in enumerate(arguments)]
            self.define(number, function, f"({', '.join(parts)},)")
        elif origin is not None and issubclass(origin, Mapping):
            self._write_mapping(number, arguments[0], arguments[1])
        elif isinstance(hint, type) and is_dataclass(hint):
            function = _Function()
            self.define(number, function, self.add(hint, "v", function))
        else:
            raise TypeError(f"the recorder has no encoding for {hint}")

    def _write_text(self, number: int, *, is_text: bool) -> None:
        raw = "v.encode()" if is_text else "v"
        made = "str(data[at:end], 'utf-8')" if is_text else "bytes(data[at:end])"
        self._encoders.append(f"def e{number}(v):\n b = {raw}\n return COUNT.pack(len(b)) + b")
        self._decoders.append(
            f"def d{number}(data, at):\n (n,) = COUNT.unpack_from(data, at)\n at += 4\n"
            f" end = at + n\n check(data, end)\n return {made}, end"
        )

    def _write_optional(self, number: int, inner: int) -> None:
        self._encoders.append(
            f"def e{number}(v):\n return NONE if v is None else SOME + e{inner}(v)\n"
            f"NONE, SOME = bytes(({_NO_VALUE},)), bytes(1)"
        )
        self._decoders.append(
            f"def d{number}(data, at):\n if data[at] == {_NO_VALUE}: return None, at + 1\n"
            f" return d{inner}(data, at + 1)"
        )

    def _write_union(self, number: int, arguments: tuple[object, ...]) -> None:
        encoders, decoders = [], []
        for tag, each in enumerate(arguments):
            if each is type(None):
                continue
            if not (isinstance(each, type) and is_dataclass(each)):
                raise TypeError(f"the recorder knows unions of dataclasses, not {each}")
            own = self.tagged(each, tag)
            encoders.append(f"{self.constant(each.__name__, each)}: e{own}")
            decoders.append(f"{tag}: d{own}")
        self._encoders.append(
            f"def e{number}(v):\n return NONE if v is None else u{number}[type(v)](v)\n"
            f"u{number} = {{{', '.join(encoders)}}}\nNONE = bytes(({_NO_VALUE},))"
        )
        self._decoders.append(
            f"def d{number}(data, at):\n if data[at] == {_NO_VALUE}: return None, at + 1\n"
            f" return u{number}[data[at]](data, at)\nu{number} = {{{', '.join(decoders)}}}"
        )

    def _write_sequence(self, number: int, element: object) -> None:
        function = _Function()
        own = self.number(("element", number))
        self.define(own, function, self.add(element, "v", function))
        self._encoders.append(
            f"def e{number}(v):\n"
            f" if len(v) == 1: return ONE + e{own}(v[0])\n"
            f" return COUNT.pack(len(v)) + b''.join([e{own}(x) for x in v])\nONE = COUNT.pack(1)"
        )
        self._decoders.append(
            f"def d{number}(data, at):\n (n,) = COUNT.unpack_from(data, at)\n at += 4\n"
            f" check(data, at + n)\n out = []\n"
            f" for _ in range(n):\n  x, at = d{own}(data, at)\n  out.append(x)\n"
            f" return tuple(out), at"
        )

    def _write_mapping(self, number: int, key: object, value: object) -> None:
        own = self.of(tuple[tuple[key, value], ...])  # type: ignore[valid-type]
        self._encoders.append(f"def e{number}(v):\n return e{own}(tuple(v.items()))")
        self._decoders.append(
            f"def d{number}(data, at):\n items, at = d{own}(data, at)\n return dict(items), at"
        )

    def define(self, number: int, function: _Function, result: str, parameters: str = "v") -> None:
        """Write function `number` in both directions: `result` is what decoding returns."""
        writes: list[str] = []
        reads: list[str] = []
        run: list[tuple[str, str, str]] = []

        def close() -> None:
            if run:
                packer = self.constant("S", struct.Struct("<" + "".join(part[0] for part in run)))
                writes.append(f"{packer}.pack({', '.join(part[1] for part in run)})")
                names = ", ".join(part[2] for part in run)
                reads.append(f"{names}, = {packer}.unpack_from(data, at); at += {packer}.size")
                run.clear()

        for part in function.parts:
            if part[0]:
                run.append(part)
                continue
            close()
            callee, _, expression = part[1].partition(" ")
            writes.append(f"e{callee}({expression})")
            reads.append(f"{part[2]}, at = d{callee}(data, at)")
        close()
        body = "\n ".join([*function.before, f"return {' + '.join(writes) or 'bytes()'}"])
        self._encoders.append(f"def e{number}({parameters}):\n {body}")
        body = "\n ".join([*reads, *function.after, f"return {result}, at"])
        self._decoders.append(f"def d{number}(data, at):\n {body}")

    # ------------------------------------------------------------------ use
    def fingerprint(self, order: str) -> bytes:
        """16 bytes that name the compiled types: their fields in order, with their hints; and
        `order`, of what is numbered by its place.
        """
        text = "\n".join(f"{name} {what}" for name, what in sorted(self._described.items()))
        return hashlib.sha256(f"{order}\n{text}".encode()).digest()[:16]

    def bind_encoders(self, names: Names) -> dict[int, Callable[..., bytes]]:
        """Encoding functions by number; `names` gives numbers to names."""
        namespace = {**self._constants, "ids": names}
        _run(self._encoders, namespace)
        return {
            number: cast("Callable[..., bytes]", namespace[f"e{number}"])
            for number in self._numbers.values()
        }

    def bind_decoders(self, names: list[str]) -> dict[int, Decode]:
        """Decoding functions by number; they raise what `MALFORMED` lists if the bytes are not
        what the encoder wrote.
        """
        namespace = {**self._constants, "names": names, "check": _check}
        _run(self._decoders, namespace)
        return {
            number: cast("Decode", namespace[f"d{number}"]) for number in self._numbers.values()
        }


def _run(sources: list[str], namespace: dict[str, object]) -> None:
    """Define the functions. Their source is written above, from the project's own classes alone."""
    exec(compile("\n".join(sources), "<recorder>", "exec"), namespace)  # noqa: S102


MALFORMED = (struct.error, LookupError, ValueError, TypeError, OverflowError)
"""What decoding bytes that nobody encoded may raise."""


def _check(data: bytes | memoryview, end: int) -> None:
    if end > len(data):
        raise ValueError(f"a length leads to byte {end} of {len(data)}")


def _optional_of(hint: object) -> object | None:
    """X of a hint `X | None`; None for any other hint."""
    arguments = get_args(hint)
    if get_origin(hint) in {Union, types.UnionType} and type(None) in arguments:
        others = [each for each in arguments if each is not type(None)]
        return others[0] if len(others) == 1 else None
    return None

"""Dataclasses to JSON and back, driven by their annotations and strict about both.

Decoding never guesses: a missing field without a default, an unknown field, a wrong type or a value
outside an enum is a `CodecError` that names the place. A field that has its default is left out, so
that a later version may add fields without changing what is written.

Covered on purpose and no more: str, int, bool, enums of str, NewTypes of these, tuples of one type,
tuples of fixed shape, dataclasses, and `X | None`.
"""

import json
import math
import types
import typing
from collections.abc import Callable, Hashable
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import TypeVar, cast

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]

T = TypeVar("T")
Encoder = Callable[[object], JsonValue]
Decoder = Callable[[JsonValue, str], object]


_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


class CodecError(Exception):
    """The text or value is not what it should be; the message says where."""


class UnknownName(CodecError):
    """A field, a value of an enum or a kind that this version has not: another one wrote it."""


def to_json(value: JsonValue) -> str:
    """The shortest JSON text of `value`."""
    return _ENCODER.encode(value)


def from_json(text: str | bytes) -> JsonValue:
    """The value of a JSON text. Raises `CodecError`."""
    try:
        return cast(JsonValue, json.loads(text))
    except (ValueError, RecursionError) as error:
        raise CodecError(f"not JSON: {error}") from error


def encode(value: object) -> JsonValue:
    """A dataclass as a JSON value."""
    return _encoder(cast(Hashable, type(value)))(value)


def decode(kind: type[T], value: JsonValue) -> T:
    """The `kind` that `value` stands for. Raises `CodecError`, or what `kind` raises when built."""
    return cast(T, _decoder(cast(Hashable, kind))(value, kind.__name__))


@cache
def _encoder(kind: object) -> Encoder:
    kind = _plain(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        return _dataclass_encoder(kind)
    if isinstance(kind, type) and issubclass(kind, str | int | float):
        return lambda value: value.value if isinstance(value, StrEnum) else cast(JsonValue, value)
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            item = _encoder(arguments[0])
            return lambda value: [item(each) for each in cast(tuple[object, ...], value)]
        items = [_encoder(argument) for argument in arguments]
        return lambda value: [
            one(each) for one, each in zip(items, cast(tuple[object, ...], value), strict=True)
        ]
    inner = _encoder(_without_none(kind))
    return lambda value: None if value is None else inner(value)


def _dataclass_encoder(kind: type) -> Encoder:
    hints = typing.get_type_hints(kind)
    plan = [(each.name, each.default, _encoder(hints[each.name])) for each in fields(kind)]

    def encode_dataclass(value: object) -> JsonValue:
        out: dict[str, JsonValue] = {}
        for name, default, encoder in plan:
            held = getattr(value, name)
            if default is MISSING or held != default:
                out[name] = encoder(held)
        return out

    return encode_dataclass


@cache
def _decoder(kind: object) -> Decoder:
    kind = _plain(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        return _dataclass_decoder(kind)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _enum_decoder(kind)
    if isinstance(kind, type) and issubclass(kind, str | int):
        return _scalar_decoder(kind)
    if kind is float:
        return _decode_float
    if typing.get_origin(kind) is tuple:
        return _tuple_decoder(typing.get_args(kind))
    inner = _decoder(_without_none(kind))
    return lambda value, at: None if value is None else inner(value, at)


def _dataclass_decoder(kind: type) -> Decoder:
    hints = typing.get_type_hints(kind)
    decoders = {each.name: _decoder(hints[each.name]) for each in fields(kind)}
    required = [each.name for each in fields(kind) if each.default is MISSING]

    def decode_dataclass(value: JsonValue, at: str) -> object:
        if not isinstance(value, dict):
            raise CodecError(f"{at}: expected an object")
        for name in required:
            if name not in value:
                raise CodecError(f"{at}: {name} is missing")
        for name in value:
            if name not in decoders:
                raise UnknownName(f"{at}: no field is called {name!r}")
        return kind(**{name: decoders[name](each, f"{at}.{name}") for name, each in value.items()})

    return decode_dataclass


def _enum_decoder(kind: type[StrEnum]) -> Decoder:
    def decode_enum(value: JsonValue, at: str) -> object:
        try:
            return kind(cast(str, value))
        except ValueError as error:
            raise UnknownName(f"{at}: {error}") from error

    return decode_enum


def _scalar_decoder(kind: type) -> Decoder:
    def decode_scalar(value: JsonValue, at: str) -> object:
        if type(value) is not kind:  # bool is an int, and must not pass for one
            raise CodecError(f"{at}: expected {kind.__name__}, got {type(value).__name__}")
        return value

    return decode_scalar


def _decode_float(value: JsonValue, at: str) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CodecError(f"{at}: expected a finite number, got {value!r}")
    return float(value)


def _tuple_decoder(arguments: tuple[object, ...]) -> Decoder:
    many = len(arguments) == 2 and arguments[1] is Ellipsis
    decoders = [_decoder(argument) for argument in (arguments[:1] if many else arguments)]

    def decode_tuple(value: JsonValue, at: str) -> object:
        if not isinstance(value, list):
            raise CodecError(f"{at}: expected a list")
        if many:
            return tuple(decoders[0](each, f"{at}[]") for each in value)
        if len(value) != len(decoders):
            raise CodecError(f"{at}: expected {len(decoders)} items, got {len(value)}")
        return tuple(one(each, f"{at}[]") for one, each in zip(decoders, value, strict=True))

    return decode_tuple


def _plain(kind: object) -> object:
    """The type below a NewType."""
    while hasattr(kind, "__supertype__"):
        kind = kind.__supertype__
    return kind


def _without_none(kind: object) -> object:
    """X of `X | None`; anything else is not covered here."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        others = [each for each in typing.get_args(kind) if each is not types.NoneType]
        if len(others) == 1:
            return others[0]
    raise CodecError(f"{kind!r} has no JSON form here")

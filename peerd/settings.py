"""Settings of a daemon: one TOML file, environment over it, command-line options over that.

The declaration of a daemon's settings (a tree of `Section` classes) is the only place where a key
exists: reading, checking, advice on mistakes and the reference page all come from it.

Invariants:
- A key that is not declared is an error, never ignored; so is a value of another type. (Unknown
  environment variables are ignored: process managers add their own under any prefix.)
- An error is one line: file and line, key, what is wrong, what to do.
- Settings that exist are valid and cannot be changed.

Must not: read a secret's contents, open a port, or know any particular key.
"""

import difflib
import os
import re
import tomllib
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

# limit: bytes of a configuration file; a real one has a few hundred
FILE_BYTES_MAX = 1024 * 1024

Settings = TypeVar("Settings", bound="Section")
Check = Callable[[Settings], Iterable[tuple[str, str]]]


class ConfigError(Exception):
    """The configuration cannot be used; the message is one line with place and advice."""


class Section(BaseModel):
    """Base of all declarations: unknown keys and wrong types are errors, values are constant."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


def check_address(text: str) -> str:
    """Accepts `host:port`, `[v6]:port`; port 0 lets the system choose.

    Raises:
        ValueError: it has another form.
    """
    host, separator, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    plain = host and not re.search(r"[\s/:\[\]]", host)
    if not separator or not (bracketed or plain):
        raise ValueError("expected host:port, such as 10.0.0.7:7400")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError("the port must be a number from 0 to 65535")
    return text


Address = Annotated[str, AfterValidator(check_address)]


def is_loopback(address: str) -> bool:
    """Whether `host:port` can be reached from this host alone."""
    host = address.rpartition(":")[0].strip("[]")
    return host in {"localhost", "::1"} or host.startswith("127.")


@dataclass(frozen=True, slots=True)
class Key:
    """One declared key: its dotted name, its environment variable and its declaration."""

    name: str
    variable: str
    field: FieldInfo

    @property
    def annotation(self) -> Any:
        """Its declared type."""
        return self.field.annotation

    @property
    def is_path(self) -> bool:
        """Whether its value is a path, or a list of them; in a file relative to that file."""
        return Path in (self.annotation, *get_args(self.annotation))


def keys_of(settings: type[Section], prefix: str) -> list[Key]:
    """All keys of a declaration, in its order; `prefix` begins the environment variables."""
    return list(_walk(settings, prefix, ""))


def changed_keys(before: Section, after: Section) -> list[str]:
    """Dotted names of the keys whose values differ between two settings of one declaration."""
    names = [key.name for key in keys_of(type(before), "")]
    return [name for name in names if _value_of(before, name) != _value_of(after, name)]


def _value_of(settings: Section, name: str) -> object:
    value: object = settings
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def load(
    settings: type[Settings],
    *,
    path: Path | None,
    prefix: str,
    overrides: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    check: Check[Settings] | None = None,
    only: Collection[str] | None = None,
) -> Settings:
    """Reads and checks settings.

    Args:
        settings: The declaration.
        path: The TOML file; None to use environment and options alone.
        prefix: Begins the environment variables, such as `PEERD`.
        overrides: Dotted key -> value, from the command line; texts are converted as needed.
        environment: Variables; those of the process if None.
        check: Returns (key, what is wrong) for what no single key can tell.
        only: Tables and keys of the file that are looked at; None: all, and unknown ones are wrong.

    Raises:
        ConfigError: the file is missing, unreadable or no TOML, or a key or value is wrong.
    """
    keys = {key.name: key for key in keys_of(settings, prefix)}
    source = _Source.read(path)
    asked = {key: each for key, each in source.values.items() if only is None or key in only}
    values = dict(_flatten(asked, keys))
    places = source.places()
    if path is not None:
        values = {name: _from_file(keys.get(name), value, path) for name, value in values.items()}
    environment = os.environ if environment is None else environment
    for key in keys.values():
        if key.variable in environment:
            places[key.name] = f"environment {key.variable}"
            values[key.name] = _from_text(key, environment[key.variable], places[key.name])
    for name, value in (overrides or {}).items():
        places[name] = "command line"
        values[name] = value
        if name in keys and isinstance(value, str):
            values[name] = _from_text(keys[name], value, places[name])
    errors = _Errors(keys, places, source.name)
    try:
        result = settings.model_validate(_nest(values, errors))
    except ValidationError as error:
        raise errors.of_validation(error.errors(include_url=False)) from None
    for name, message in check(result) if check is not None else ():
        raise errors.of_key(name, message)
    return result


# ------------------------------------------------------------------------------ the file


class _Source:
    """A configuration file, and where in it a key stands."""

    def __init__(self, name: str, text: str, values: dict[str, object]) -> None:
        self.name = name
        self.values = values
        self._lines = dict(_lines_of_keys(text))

    @classmethod
    def read(cls, path: Path | None) -> "_Source":
        """Reads `path`. Raises `ConfigError`."""
        if path is None:
            return cls("configuration", "", {})
        try:
            with path.open("rb") as file:
                content = file.read(FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file: name one with -c FILE") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
        if len(content) > FILE_BYTES_MAX:
            raise ConfigError(f"{path}: larger than {FILE_BYTES_MAX} bytes: is it the right file?")
        try:
            text = content.decode("utf-8")
            return cls(str(path), text, tomllib.loads(text))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 (byte {error.start}): is it TOML?") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not TOML: {error}") from None

    def places(self) -> dict[str, str]:
        """`FILE:LINE` of each table and key that stands in the file."""
        return {name: f"{self.name}:{line}" for name, line in self._lines.items()}


_TABLE = re.compile(r"\s*\[\[?([^\[\]]+)\]\]?\s*(#.*)?$")
_ASSIGNMENT = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*[^=\s.]+)*)\s*=""")


def _lines_of_keys(text: str) -> Iterator[tuple[str, int]]:
    """Dotted key -> line, for tables and assignments. Only for messages: tomllib tells no lines."""
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if found := _TABLE.match(line):
            table = _bare(found[1])
            yield table, number
        elif found := _ASSIGNMENT.match(line):
            key = _bare(found[1])
            yield f"{table}.{key}" if table else key, number


def _bare(dotted: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in dotted.split("."))


# ------------------------------------------------------------------------------ values


def _walk(settings: type[Section], prefix: str, above: str) -> Iterator[Key]:
    # Keys before tables, as they have to stand in a TOML file.
    sections = {}
    for field_name, field in settings.model_fields.items():
        name = f"{above}{field_name}"
        section = _section_of(field.annotation)
        if section is None:
            yield Key(name, f"{prefix}_{name.upper().replace('.', '_')}", field)
        else:
            sections[name] = section
    for name, section in sections.items():
        yield from _walk(section, prefix, f"{name}.")


def _section_of(annotation: Any) -> type[Section] | None:
    """The section behind `SomeSection` or `SomeSection | None`, if it is one."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _flatten(
    values: Mapping[str, object], keys: Mapping[str, Key], above: str = ""
) -> Iterator[tuple[str, object]]:
    """Dotted name -> value. A table that is itself a key's value (a mapping) stays whole."""
    for field_name, value in values.items():
        name = f"{above}{field_name}"
        declared_below = any(key.startswith(f"{name}.") for key in keys)
        if isinstance(value, dict) and value and declared_below:
            yield from _flatten(value, keys, f"{name}.")
        else:
            yield name, value


def _nest(values: Mapping[str, object], errors: "_Errors") -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *tables, last = name.split(".")
        branch = tree
        for table in tables:
            branch = branch.setdefault(table, {})
            if not isinstance(branch, dict):
                raise errors.of_key(name, "is below a key that is no table")
        branch[last] = value
    return tree


def _from_file(key: Key | None, value: object, path: Path) -> object:
    """Gives a TOML value the form that strict validation takes."""
    if key is not None and key.is_path and isinstance(value, str):
        return path.parent.absolute() / Path(value).expanduser()
    if isinstance(value, list):
        return tuple([_from_file(key, each, path) for each in value])
    return value


def _from_text(key: Key, text: str, place: str) -> object:
    """Converts a text of environment or command line to the key's type.

    Lists are written `a,b,c`, mappings `name=value,name=value`.
    """
    origin = get_origin(key.annotation)
    if key.is_path and origin is not tuple:
        return Path(text).expanduser().absolute()
    if origin is tuple:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return tuple(
            [Path(each).expanduser().absolute() for each in parts] if key.is_path else parts
        )
    if origin is dict:
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        return {name.strip(): value.strip() for name, _, value in pairs}
    try:
        return TypeAdapter(key.annotation).validate_python(text, strict=False)
    except ValidationError as error:
        message = _words(error.errors(include_url=False)[0])
        raise ConfigError(f"{place}: {key.name}: {message}") from None


# ------------------------------------------------------------------------------ errors


class _Errors:
    """Words for what is wrong, with place and advice."""

    def __init__(
        self, keys: Mapping[str, Key], places: Mapping[str, str], source_name: str
    ) -> None:
        self._keys = keys
        self._places = places
        self._source_name = source_name

    def of_validation(self, details: list[ErrorDetails]) -> ConfigError:
        """The first mistake in words, and how many more there are."""
        # A default made from another key is not made when that key is wrong; only that counts.
        real = [error for error in details if error["type"] != "default_factory_not_called"]
        # Nor does a list that is too short for lack of good entries, beside the bad entries.
        real = [error for error in real if not _is_explained(error, real)]
        # An unknown key is often the misspelt form of one that is then missing: name it first.
        real.sort(key=lambda error: error["type"] != "extra_forbidden")
        first = real[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            message = f"{self._place(name)}: unknown key {name}{self._nearest(name)}"
        elif first["type"] == "missing":
            message = f"{self._place(name)}: key {name} is missing{self._purpose(name)}"
        else:
            message = f"{self._place(name)}: {name}: {_words(first)}"
        rest = f" (and {len(real) - 1} more)" if len(real) > 1 else ""
        return ConfigError(message + rest)

    def of_key(self, name: str, message: str) -> ConfigError:
        """`message` about a key, with the place where that key stands."""
        return ConfigError(f"{self._place(name)}: {name}: {message}")

    def _place(self, name: str) -> str:
        while name:
            if name in self._places:
                return self._places[name]
            inside = [key for key in self._places if key.startswith(f"{name}.")]
            if inside:
                return self._places[inside[0]]
            name = name.rpartition(".")[0]
        return self._source_name

    def _nearest(self, name: str) -> str:
        """Advice: the key that was probably meant, by its whole name or by its last part."""
        last_parts = {key.rpartition(".")[2]: key for key in self._keys}
        tables = {key.rpartition(".")[0] for key in self._keys} - {""}
        near = difflib.get_close_matches(name, [*self._keys, *tables], n=1, cutoff=0.6)
        if not near:
            parts = difflib.get_close_matches(name.rpartition(".")[2], last_parts, n=1)
            near = [last_parts[part] for part in parts]
        if near:
            return f": did you mean {near[0]}?"
        return ": see docs/configuration.md for all keys"

    def _purpose(self, name: str) -> str:
        key = self._keys.get(name)
        return f": {_sentence(key.field)}" if key is not None else ""


def _words(error: ErrorDetails) -> str:
    """A validator's message in our words, with the value that it is about."""
    text = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    text = text.replace("should be", "must be").replace("should have", "must have")
    if error["type"] in {"model_type", "model_attributes_type", "dict_type"}:
        text = "must be a table"
    elif error["type"] == "tuple_type":
        text = "must be a list"
    elif error["type"] in {"path_type", "is_instance_of"}:
        text = "must be a path in quotes"
    given = error["input"]
    shown = repr(given) if isinstance(given, str | int | float | bool) else "a table or list"
    text = text[:1].lower() + text[1:]
    return text if isinstance(given, str) and shown in text else f"{text}, got {shown}"


def _is_explained(error: ErrorDetails, others: list[ErrorDetails]) -> bool:
    """Whether an error about a whole value only follows from one about its parts."""
    depth = len(error["loc"])
    return any(
        len(other["loc"]) > depth and other["loc"][:depth] == error["loc"] for other in others
    )


def _sentence(field: FieldInfo) -> str:
    return (field.description or "").split(". ")[0].rstrip(".")


# ------------------------------------------------------------------------------ the reference


def reference(settings: type[Section], prefix: str, title: str) -> str:
    """The reference of all keys as Markdown, one table per section."""
    lines = [f"## {title}", ""]
    section = None
    for key in keys_of(settings, prefix):
        table = key.name.rpartition(".")[0]
        if table != section:
            heading = f"### `[{table}]`" if table else "### Top of the file"
            lines += ([""] if section is not None else []) + [heading, ""]
            lines += ["| key | type | default | environment | meaning |", "| - | - | - | - | - |"]
            section = table
        cells = (
            f"`{key.name}`",
            type_words(key.annotation),
            _default_words(key.field),
            f"`{key.variable}`",
            (key.field.description or "").replace("|", "\\|"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def type_words(annotation: Any) -> str:
    """A declared type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(arguments[0])
    if origin is Literal:
        return " or ".join(f'`"{choice}"`' for choice in arguments)
    if origin is tuple:
        return f"list of {type_words(arguments[0])}"
    if origin is dict:
        return f"table of {type_words(arguments[1])}"
    if origin in {Union, types.UnionType}:
        return " or ".join(type_words(part) for part in arguments if part is not type(None))
    names = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}
    return names[annotation]


def _default_words(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None or field.default is PydanticUndefined:
        return "see meaning"
    if field.default is None:
        return "none"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, str):
        return f'`"{field.default}"`'
    return f"`{field.default}`"

"""docs/api.md, from the comments of the .proto files: `python -m deploy.proto_reference`.

The compiler says what there is, and which comment belongs to what; so nothing is parsed here. A
thing without a comment ends it: the page would not say what it is.

Public is what clients and tools call (`peerd/v1`, `las/v1`). Between the daemons is what only these
say to each other (`*/internal/v1`); it may change with any version and is left out.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

ROOT = Path(__file__).resolve().parents[1]
PROTO_DIRECTORY = ROOT / "proto"
PUBLIC = ("peerd/v1/", "las/v1/")

# Places in a descriptor, as the compiler numbers them in the paths of its comments.
_MESSAGE, _ENUM, _SERVICE = 4, 5, 6
_SYNTAX = 12
_IN_MESSAGE_FIELD, _IN_MESSAGE_NESTED, _IN_MESSAGE_ENUM = 2, 3, 4
_IN_ENUM_VALUE = _IN_SERVICE_METHOD = 2
_SCALARS = {
    value: name.removeprefix("TYPE_").lower()
    for name, value in FieldDescriptorProto.Type.items()
    if name not in {"TYPE_MESSAGE", "TYPE_ENUM", "TYPE_GROUP"}
}
_ROOM = re.compile(r"\s+")

_HEAD = (
    "What peers and LAS nodes answer to, from the comments of the `.proto` files (`make docs`). "
    "How a client uses it: [writing a client](client-protocol.md); what errors mean: "
    "[errors](errors.md). What daemons say to each other alone (`proto/*/internal`) is not here, "
    "and may change with any version. `optional`: that it was set is told from its default."
)

Place = tuple[int, ...]


class NoComment(Exception):
    """Something in a .proto has no comment."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file and the comments in it, by place."""

    descriptor: FileDescriptorProto
    comments: Mapping[Place, str]

    def told(self, place: Place, name: str) -> str:
        """The comment at a place, as one line. Raises `NoComment`."""
        text = self.comments.get(place, "")
        if not text:
            raise NoComment(f"{self.descriptor.name}: {name} has no comment")
        return text


def files(directory: Path = PROTO_DIRECTORY) -> list[_File]:
    """All public files, in the order of their names. Raises `SystemExit` if they do not compile."""
    protos = sorted(str(path.relative_to(directory)) for path in directory.rglob("*.proto"))
    with tempfile.TemporaryDirectory(prefix="peerd-api-") as temporary:
        out = Path(temporary) / "all"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{directory}"]
        command += ["--include_source_info", f"--descriptor_set_out={out}", *protos]
        if subprocess.run(command, check=False).returncode:
            sys.exit("deploy.proto_reference: the protos do not compile")
        everything = FileDescriptorSet.FromString(out.read_bytes())
    public = [each for each in everything.file if each.name.startswith(PUBLIC)]
    # Clients come first.
    public.sort(key=lambda each: (not each.name.startswith("peerd/"), each.name))
    return [_File(each, _comments(each)) for each in public]


def _comments(file: FileDescriptorProto) -> dict[Place, str]:
    found: dict[Place, str] = {}
    for each in file.source_code_info.location:
        text = each.leading_comments or each.trailing_comments
        if tuple(each.path) == (_SYNTAX,):
            text = each.leading_comments or "".join(each.leading_detached_comments)
        if text.strip():
            found[tuple(each.path)] = _line(text)
    return found


def _line(text: str) -> str:
    return _ROOM.sub(" ", text).strip().replace("|", "\\|").replace("<", "&lt;")


# ---------------------------------------------------------------------------------- the page
def page(directory: Path = PROTO_DIRECTORY) -> str:
    """The page's text. Raises `NoComment`."""
    found = files(directory)
    lines = ["# Services and messages", "", _HEAD, ""]
    for file in found:
        anchors = [each.name for each in file.descriptor.service]
        links = ", ".join(f"[{name}](#{name.lower()})" for name in anchors)
        lines.append(
            f"- [`{file.descriptor.name}`](#{_anchor(file.descriptor.name)})"
            f"{f': {links}' if links else ''}"
        )
    for file in found:
        lines += _file(file)
    return "\n".join(lines) + "\n"


def _anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-")


def _file(file: _File) -> Iterator[str]:
    descriptor = file.descriptor
    yield f"\n## `{descriptor.name}`\n"
    yield file.told((_SYNTAX,), "the file")
    for number, service in enumerate(descriptor.service):
        yield from _service(file, (_SERVICE, number), service)
    for number, enum in enumerate(descriptor.enum_type):
        yield from _enum(file, (_ENUM, number), enum.name, enum)
    for number, message in enumerate(descriptor.message_type):
        yield from _message(file, (_MESSAGE, number), message.name, message)


def _service(file: _File, place: Place, service: ServiceDescriptorProto) -> Iterator[str]:
    yield f"\n### {service.name}\n"
    yield file.told(place, service.name)
    yield "\n| call | takes | gives | |\n| - | - | - | - |"
    for number, method in enumerate(service.method):
        told = file.told((*place, _IN_SERVICE_METHOD, number), f"{service.name}.{method.name}")
        takes = _link(method.input_type, stream=method.client_streaming)
        gives = _link(method.output_type, stream=method.server_streaming)
        yield f"| `{method.name}` | {takes} | {gives} | {told} |"


def _message(file: _File, place: Place, name: str, message: DescriptorProto) -> Iterator[str]:
    if message.options.map_entry:
        return
    yield f"\n### {name}\n"
    yield file.told(place, name)
    if message.field:
        yield "\n| field | | type | |\n| - | - | - | - |"
    maps = {each.name: each for each in message.nested_type if each.options.map_entry}
    for number, field in enumerate(message.field):
        told = file.told((*place, _IN_MESSAGE_FIELD, number), f"{name}.{field.name}")
        yield f"| `{field.name}` | {field.number} | {_type(message, maps, field)} | {told} |"
    for number, nested in enumerate(message.nested_type):
        yield from _message(
            file, (*place, _IN_MESSAGE_NESTED, number), f"{name}.{nested.name}", nested
        )
    for number, enum in enumerate(message.enum_type):
        yield from _enum(file, (*place, _IN_MESSAGE_ENUM, number), f"{name}.{enum.name}", enum)


def _enum(file: _File, place: Place, name: str, enum: EnumDescriptorProto) -> Iterator[str]:
    yield f"\n### {name}\n"
    yield file.told(place, name)
    yield "\n| value | | |\n| - | - | - |"
    for number, value in enumerate(enum.value):
        told = file.told((*place, _IN_ENUM_VALUE, number), f"{name}.{value.name}")
        yield f"| `{value.name}` | {value.number} | {told} |"


def _type(
    message: DescriptorProto, maps: Mapping[str, DescriptorProto], field: FieldDescriptorProto
) -> str:
    entry = maps.get(field.type_name.rsplit(".", 1)[-1])
    if entry is not None:
        return f"map of {_plain(entry.field[0])} to {_plain(entry.field[1])}"
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {_plain(field)}"
    if field.proto3_optional:
        return f"optional {_plain(field)}"
    if field.HasField("oneof_index"):
        return f"{_plain(field)}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return _plain(field)


def _plain(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return _link(field.type_name)
    return _SCALARS[field.type]


def _link(type_name: str, *, stream: bool = False) -> str:
    """A type by its short name, linked if it is on this page."""
    package, name = _split(type_name.removeprefix(".").split("."))
    text = f"[{name}](#{_anchor(name)})" if package in {"peerd.v1", "las.v1"} else f"`{name}`"
    return f"stream of {text}" if stream else text


def _split(parts: Sequence[str]) -> tuple[str, str]:
    """The package and the name in it; names begin with a capital letter."""
    first = next(number for number, part in enumerate(parts) if part[0].isupper())
    return ".".join(parts[:first]), ".".join(parts[first:])


def main() -> None:
    """Print it, or say what has no comment."""
    try:
        sys.stdout.write(page())
    except NoComment as error:
        sys.exit(f"deploy.proto_reference: {error}")


if __name__ == "__main__":
    main()

"""Another calibration in an ONNX file's graph, and other words of the file about itself.

An ONNX file is one protobuf message. Of it only this is touched: what the graph gave as
`probabilities` is renamed and goes through some nodes more, in log-odds, by horizon,

    p' = sigmoid(slope · log(p / (1 - p)) + intercept), and no horizon below the one before,

and the metadata of the contract are replaced. Everything else stays byte for byte. So neither torch
nor the onnx package is needed; what comes out is tried like any other model.

Field numbers are those of onnx.proto: ModelProto.graph 7, .metadata_props 14; GraphProto.node 1,
.initializer 5; NodeProto.input 1, .output 2, .op_type 4, .attribute 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from las.forecast.contract import OUTPUT_NAME, ModelRefused

# Beyond this a probability's log-odds are rounding.
_EDGE = 1e-6
_GRAPH, _METADATA = 7, 14
_NODE, _INITIALIZER = 1, 5
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_FLOAT, _INT64 = 1, 7


def recalibrated(
    model: bytes, slopes: Sequence[float], intercepts: Sequence[float], metadata: Mapping[str, str]
) -> bytes:
    """The file with another calibration and the contract's `metadata`. Raises `ModelRefused`."""
    out = b""
    for field, wire, body, raw in _fields(model):
        if field == _GRAPH and wire == _BYTES:
            out += _blob(_GRAPH, _with_calibration(body, slopes, intercepts))
        elif not (field == _METADATA and _metadata_key(body).startswith("peerd.")):
            out += raw
    for key, value in metadata.items():
        out += _blob(_METADATA, _blob(1, key.encode()) + _blob(2, value.encode()))
    return out


def _with_calibration(graph: bytes, slopes: Sequence[float], intercepts: Sequence[float]) -> bytes:
    prefix = "recalibrated"
    while prefix.encode() in graph:  # once for each time that the file was recalibrated
        prefix += "_again"
    before = f"{prefix}_from"
    nodes, others = b"", b""
    for field, wire, body, raw in _fields(graph):
        if field == _NODE and wire == _BYTES:
            nodes += _blob(_NODE, _renamed(body, before))
        else:
            others += raw
    made, constants = _calibration(prefix, before, slopes, intercepts)
    nodes += b"".join(_blob(_NODE, node) for node in made)
    others += b"".join(_blob(_INITIALIZER, each) for each in constants)
    return nodes + others


def _renamed(node: bytes, name: str) -> bytes:
    """A node with `probabilities` called `name`, among its inputs and outputs."""
    return b"".join(
        _blob(field, name.encode())
        if field in {1, 2} and wire == _BYTES and body == OUTPUT_NAME.encode()
        else raw
        for field, wire, body, raw in _fields(node)
    )


def _calibration(
    prefix: str, before: str, slopes: Sequence[float], intercepts: Sequence[float]
) -> tuple[list[bytes], list[bytes]]:
    """Nodes from `before` to the output, and their constants."""

    def name(what: str) -> str:
        return f"{prefix}_{what}"

    def scalar(what: str, value: float) -> bytes:
        return _tensor(name(what), np.array(value, dtype=np.float32))

    constants = [
        scalar("low", _EDGE),
        scalar("high", 1.0 - _EDGE),
        scalar("one", 1.0),
        _tensor(name("slope"), np.array([slopes], dtype=np.float32)),
        _tensor(name("intercept"), np.array([intercepts], dtype=np.float32)),
    ]
    nodes = [
        _node("Clip", [before, name("low"), name("high")], name("clipped")),
        _node("Sub", [name("one"), name("clipped")], name("rest")),
        _node("Div", [name("clipped"), name("rest")], name("odds")),
        _node("Log", [name("odds")], name("log_odds")),
        _node("Mul", [name("log_odds"), name("slope")], name("scaled")),
        _node("Add", [name("scaled"), name("intercept")], name("shifted")),
        _node("Sigmoid", [name("shifted")], name("unordered")),
    ]
    columns: list[str] = []
    for place in range(len(slopes)):
        constants.append(_tensor(name(f"at_{place}"), np.array([place], dtype=np.int64)))
        column = name(f"column_{place}")
        nodes.append(_node("Gather", [name("unordered"), name(f"at_{place}")], column, axis=1))
        if columns:
            nodes.append(_node("Max", [columns[-1], column], name(f"ordered_{place}")))
            column = name(f"ordered_{place}")
        columns.append(column)
    nodes.append(_node("Concat", columns, OUTPUT_NAME, axis=1))
    return nodes, constants


def _node(operator: str, inputs: Sequence[str], output: str, *, axis: int | None = None) -> bytes:
    body = b"".join(_blob(1, each.encode()) for each in inputs)
    body += _blob(2, output.encode()) + _blob(4, operator.encode())
    if axis is not None:
        integer = 2  # AttributeProto.INT
        body += _blob(5, _blob(1, b"axis") + _number(3, axis) + _number(20, integer))
    return body


def _tensor(name: str, array: npt.NDArray[np.generic]) -> bytes:
    kind = _FLOAT if array.dtype == np.float32 else _INT64
    little = np.ascontiguousarray(array, dtype="<f4" if kind == _FLOAT else "<i8")
    dims = b"".join(_number(1, size) for size in array.shape)
    return dims + _number(2, kind) + _blob(8, name.encode()) + _blob(9, little.tobytes())


# ---------------------------------------------------------------------------------- protobuf
def _metadata_key(entry: bytes) -> str:
    for field, wire, body, _ in _fields(entry):
        if field == 1 and wire == _BYTES:
            return body.decode("utf-8", "replace")
    return ""


def _fields(message: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
    """(field, wire type, content, all of it) of each field. Raises `ModelRefused` if it is none."""
    at = 0
    while at < len(message):
        begin = at
        tag, at = _varint(message, at)
        field, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            _, end = _varint(message, at)
        elif wire == _BYTES:
            size, at = _varint(message, at)
            end = at + size
        elif wire in {_FIXED_64, _FIXED_32}:
            end = at + (8 if wire == _FIXED_64 else 4)
        else:
            raise ModelRefused("the file is no ONNX model: an unknown kind of field")
        if end > len(message):
            raise ModelRefused("the file is no ONNX model: it ends within a field")
        yield field, wire, message[at:end], message[begin:end]
        at = end


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    raise ModelRefused("the file is no ONNX model: a number has no end")


def _number(field: int, value: int) -> bytes:
    return _written(field << 3) + _written(value)


def _blob(field: int, content: bytes) -> bytes:
    return _written(field << 3 | _BYTES) + _written(len(content)) + content


def _written(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)

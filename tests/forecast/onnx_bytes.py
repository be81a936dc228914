"""Writes tiny ONNX files by hand, so that these tests need no ONNX library to make bad models.

Field numbers are those of onnx.proto (ModelProto, GraphProto, NodeProto, TensorProto).
"""

import numpy as np

FLOAT, INT64 = 1, 7


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def number(field, value):
    return varint(field << 3) + varint(value)


def blob(field, content):
    content = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(content)) + content


def tensor(name, array):
    kind = FLOAT if array.dtype == np.float32 else INT64
    dims = b"".join(number(1, size) for size in array.shape)
    return dims + number(2, kind) + blob(8, name) + blob(9, array.tobytes())


def value_info(name, dims):
    shape = b"".join(
        blob(1, blob(2, dim) if isinstance(dim, str) else number(1, dim)) for dim in dims
    )
    return blob(1, name) + blob(2, blob(1, number(1, FLOAT) + blob(2, shape)))


def node(operator, inputs, outputs, **integers):
    body = b"".join(blob(1, name) for name in inputs)
    body += b"".join(blob(2, name) for name in outputs)
    body += blob(4, operator)
    for name, value in integers.items():
        body += blob(5, blob(1, name) + number(3, value) + number(20, 2))
    return body


def newest_sample_model(window, weights, metadata, *, input_name="windows", gaps=False, ago=0):
    """probabilities = sigmoid(newest sample @ weights [features, horizons]), or that `ago` before.

    `gaps`: what is missing counts as 0; else it makes the answer NaN.
    """
    filled = (
        node("IsNaN", ["newest"], ["missing"]),
        node("Where", ["missing", "zero", "newest"], ["filled"]),
    )
    graph = b"".join(
        blob(1, part)
        for part in (
            node("Gather", [input_name, "last"], ["newest"], axis=1),
            *(filled if gaps else ()),
            node("MatMul", ["filled" if gaps else "newest", "weights"], ["odds"]),
            node("Sigmoid", ["odds"], ["probabilities"]),
        )
    )
    graph += blob(2, "test")
    graph += blob(5, tensor("last", np.array(window - 1 - ago, dtype=np.int64)))
    if gaps:
        graph += blob(5, tensor("zero", np.array(0, dtype=np.float32)))
    graph += blob(5, tensor("weights", np.asarray(weights, dtype=np.float32)))
    graph += blob(11, value_info(input_name, ["nodes", window, len(weights)]))
    graph += blob(12, value_info("probabilities", ["nodes", len(weights[0])]))
    model = number(1, 8) + blob(7, graph) + blob(8, blob(1, "") + number(2, 17))
    for key, value in metadata.items():
        model += blob(14, blob(1, key) + blob(2, value))
    return model

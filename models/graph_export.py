"""A trained network as an ONNX graph, and the contract written into it; the same for every head."""

import io
import warnings

import onnx
import torch

from las.forecast.contract import INPUT_NAME, OUTPUT_NAME, ModelContract, to_metadata

# How far graph and network may differ in a probability: rounding of float32.
PARITY_MAX = 1e-5
OPSET = 17
# Where boosted trees come from (`models/trees.py`).
TREES_DOMAIN, TREES_OPSET = "ai.onnx.ml", 3


class ParityBroken(Exception):
    """The exported graph does not answer like the network; the message says by how much."""


def to_graph(network: torch.nn.Module, example: torch.Tensor) -> bytes:
    """The graph of a network, for any number of nodes. `example`: some rows of its input."""
    graph = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter warns of its own successor; `dynamo=False` is the one that was measured.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            (example,),
            graph,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_axes={INPUT_NAME: {0: "nodes"}, OUTPUT_NAME: {0: "nodes"}},
            opset_version=OPSET,
            custom_opsets={TREES_DOMAIN: TREES_OPSET},
            dynamo=False,
        )
    return graph.getvalue()


def with_contract(graph: bytes, contract: ModelContract) -> bytes:
    """The graph as a model file."""
    model = onnx.load_from_string(graph)
    onnx.helper.set_model_props(model, to_metadata(contract))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())

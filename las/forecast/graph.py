"""A model file's graph: loaded whole or refused, run with one thread and fixed kernels.

What all heads have in common: the contract is read and checked, the signature is the contract's,
the self-test is answered as written on this machine, and every answer is checked to be
probabilities that never fall with the horizon. Anything else raises `ModelRefused`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_errors

from las.forecast.contract import (
    INPUT_NAME,
    MODEL_BYTES_MAX,
    OUTPUT_NAME,
    SELF_TEST_TOLERANCE,
    ModelContract,
    ModelRefused,
    check_probabilities,
    from_metadata,
)

_ONNX_ERRORS = (
    onnx_errors.Fail,
    onnx_errors.InvalidArgument,
    onnx_errors.InvalidGraph,
    onnx_errors.InvalidProtobuf,
    onnx_errors.NoSuchFile,
    onnx_errors.NotImplemented,
    onnx_errors.RuntimeException,
)


def read_bounded(path: Path) -> bytes:
    """The file's bytes. Raises `ModelRefused` if it is too large, `OSError` if unreadable."""
    if path.stat().st_size > MODEL_BYTES_MAX:
        raise ModelRefused(f"larger than {MODEL_BYTES_MAX >> 20} MiB")
    return path.read_bytes()


class Graph:
    """A checked graph with its contract. May be used from one thread at a time."""

    def __init__(self, content: bytes, check: Callable[[ModelContract], None]) -> None:
        """Load, check and try a model file.

        Args:
            content: The file's bytes.
            check: Raises `ModelRefused` unless the contract is for this program's inputs.
        """
        try:
            self._session = onnxruntime.InferenceSession(
                content, sess_options=_session_options(), providers=["CPUExecutionProvider"]
            )
        except _ONNX_ERRORS as error:
            raise ModelRefused(f"no ONNX model that can be run: {_first_line(error)}") from error
        self.contract = from_metadata(self._session.get_modelmeta().custom_metadata_map)
        check(self.contract)
        _check_signature(self._session, self.contract)
        answer = self.run(self.contract.self_test.windows)
        off_by = float(np.abs(answer - self.contract.self_test.expected).max())
        if not off_by <= SELF_TEST_TOLERANCE:
            raise ModelRefused(f"fails its self-test: off by {off_by:.2g}")

    def run(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """[nodes, window, features] to checked probabilities [nodes, horizons]."""
        try:
            answer = self._session.run([OUTPUT_NAME], {INPUT_NAME: features})[0]
        except _ONNX_ERRORS as error:
            raise ModelRefused(f"the graph cannot be run: {_first_line(error)}") from error
        if answer.shape != (len(features), len(self.contract.horizons_s)):
            raise ModelRefused(f"answers with shape {answer.shape}")
        check_probabilities(answer)
        probabilities: npt.NDArray[np.float32] = answer
        return probabilities


def _session_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    # One thread: the LAS shares its cores with consensus, and a sum keeps its order.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # what matters comes back as an error
    return options


def _check_signature(session: onnxruntime.InferenceSession, contract: ModelContract) -> None:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [i.name for i in inputs] != [INPUT_NAME] or [o.name for o in outputs] != [OUTPUT_NAME]:
        raise ModelRefused(f"wanted one input {INPUT_NAME} and one output {OUTPUT_NAME}")
    if inputs[0].type != "tensor(float)":
        raise ModelRefused(f"reads {inputs[0].type}, wanted tensor(float)")
    if list(inputs[0].shape[1:]) != [contract.window, len(contract.features)]:
        raise ModelRefused(f"the graph reads shape {inputs[0].shape}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]

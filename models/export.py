"""Writes a trained network as an ONNX file that keeps the contract of `las/forecast/contract.py`.

The file is accepted only if it answers like the network it came from (`PARITY_MAX`) on real
windows, on windows full of gaps, on a lone node and on several machines at once, and if the LAS's
own loader takes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from las.forecast.contract import (
    HORIZONS_S,
    INPUT_NAME,
    OUTPUT_NAME,
    ModelContract,
    SelfTest,
)
from las.forecast.model import ForecastModel
from models.dataset import Run
from models.features import FEATURES, IDENTITY, WINDOW
from models.graph_export import PARITY_MAX, ParityBroken, to_graph, with_contract
from models.network import JoinedNetwork
from peerd.daemon.telemetry.collector import SAMPLE_PERIOD_MS
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

# Fewer samples than this are too few to compare anything with; the base rate answers.
SAMPLES_MIN = 10
_COLUMNS = [TELEMETRY_SCHEMA.positions[name] for name in FEATURES]


def export(
    network: JoinedNetwork,
    runs: Sequence[Run],
    path: Path,
    *,
    base_rate: float,
    training_data: str,
    evaluate: Callable[[Path], dict[str, float]],
) -> ModelContract:
    """Write the file at `path`; nothing is left there when a check fails (`ParityBroken`)."""
    windows = _example_windows(runs)
    graph = to_graph(network, torch.zeros(3, WINDOW, len(FEATURES)))
    answer = _check_parity(network, graph, windows)
    contract = ModelContract(
        model_id=f"incident-{hashlib.sha256(graph).hexdigest()[:8]}",
        schema_version=TELEMETRY_SCHEMA.version,
        features=FEATURES,
        window=WINDOW,
        period_ms=SAMPLE_PERIOD_MS,
        samples_min=SAMPLES_MIN,
        horizons_s=HORIZONS_S,
        base_rates=(base_rate, base_rate + (1.0 - base_rate) * float(network.later)),
        training_data=training_data,
        figures={},
        self_test=SelfTest(windows=windows, expected=answer),
    )
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_bytes(with_contract(graph, contract))
        measured = {name: value for name, value in evaluate(beside).items() if np.isfinite(value)}
        contract = replace(contract, figures=measured)
        beside.write_bytes(with_contract(graph, contract))
        ForecastModel.load(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return contract


def _example_windows(runs: Sequence[Run]) -> npt.NDArray[np.float32]:
    """All peers of two moments of a run with a fault: while all is well, and near its end."""
    run = next(r for r in runs if any(node.stop_s is not None for node in r.truth.nodes))
    stop_s = max(node.stop_s or 0.0 for node in run.truth.nodes)
    moments = [run.windows(second, WINDOW) for second in (20, int(stop_s) - 3)]
    windows = np.concatenate(moments)[:, :, _COLUMNS]
    identity = FEATURES.index(IDENTITY)
    peers = len(run.truth.nodes)
    windows[:, :, identity] = np.repeat([1.0, 2.0], peers).astype(np.float32)[:, None]
    return np.ascontiguousarray(windows, dtype=np.float32)


def _check_parity(
    network: JoinedNetwork, graph: bytes, windows: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """The graph's answer to `windows`, once it was seen to equal the network's everywhere."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    gaps = windows.copy()
    gaps[random.random(gaps.shape) < 0.4] = np.nan
    nothing = np.full_like(windows, np.nan)
    for case in (nothing, gaps, windows[:1], windows):
        told = session.run([OUTPUT_NAME], {INPUT_NAME: case})[0]
        with torch.no_grad():
            wanted = network(torch.from_numpy(case)).numpy()
        off_by = float(np.abs(told - wanted).max())
        if not off_by <= PARITY_MAX:
            raise ParityBroken(f"graph and network differ by {off_by:.2g}")
    answer: npt.NDArray[np.float32] = told
    return answer

"""Writes a chain network as an ONNX file that keeps the contract, once it was seen to answer alike.

Checked before anything stands at the path: the graph answers like the network (`PARITY_MAX`) on
real inputs, on inputs full of gaps, on nothing and on a lone row; the LAS's own loader takes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from las.forecast.contract import (
    HEAD_HORIZONS_S,
    INPUT_NAME,
    OUTPUT_NAME,
    ModelContract,
    SelfTest,
)
from las.forecast.heads import Head, HeadTable
from models.chain import ChainNetwork
from models.graph_export import PARITY_MAX, ParityBroken, to_graph, with_contract

Inputs = npt.NDArray[np.float32]


def export_head(
    network: ChainNetwork,
    table: HeadTable,
    path: Path,
    *,
    examples: Inputs,
    period_ms: int,
    base_rates: tuple[float, ...],
    training_data: str,
    evaluate: Callable[[Head], Mapping[str, float]],
) -> Head:
    """Write the file at `path`; nothing is left there when a check fails (`ParityBroken`).

    Args:
        network: Trained and calibrated.
        table: What the head reads.
        path: Where the file goes.
        examples: Real inputs [rows, window, features]; they become the self-test.
        period_ms: Time between two rows of a window.
        base_rates: What a node without input gets, by horizon.
        training_data: SHA-256 of what it was trained on.
        evaluate: Gives the figures that the contract carries.
    """
    graph = to_graph(network, torch.from_numpy(examples[:3]))
    contract = ModelContract(
        model_id=f"{table.head}-{hashlib.sha256(graph).hexdigest()[:8]}",
        head=table.head,
        schema_version=table.version,
        features=table.names,
        window=table.window,
        period_ms=period_ms,
        samples_min=1,
        horizons_s=HEAD_HORIZONS_S[table.head],
        base_rates=base_rates,
        training_data=training_data,
        figures={},
        self_test=SelfTest(windows=examples, expected=check_parity(network, graph, examples)),
    )
    measured = evaluate(Head.from_bytes(with_contract(graph, contract), table))
    figures = {name: value for name, value in measured.items() if np.isfinite(value)}
    content = with_contract(graph, replace(contract, figures=figures))
    head = Head.from_bytes(content, table)
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(content)
    beside.replace(path)
    return head


def check_parity(network: ChainNetwork, graph: bytes, examples: Inputs) -> Inputs:
    """The graph's answer to the examples, once it was seen to equal the network's everywhere."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    gaps = examples.copy()
    gaps[random.random(gaps.shape) < 0.4] = np.nan
    answer = examples[:0, 0]
    for case in (np.full_like(examples, np.nan), gaps, examples[:1], examples):
        answer = session.run([OUTPUT_NAME], {INPUT_NAME: case})[0]
        with torch.no_grad():
            wanted = network(torch.from_numpy(case)).numpy()
        off_by = float(np.abs(answer - wanted).max())
        if not off_by <= PARITY_MAX:
            raise ParityBroken(f"graph and network differ by {off_by:.2g}")
    return answer

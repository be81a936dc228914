"""Whether a file is a model that the LAS may use: tried before anything is committed.

The file is loaded as a node would load it (contract, telemetry or table, signature, self-test), and
then answers for a fleet of `TRIAL_NODES` that has every kind of input: nothing at all, zeros, its
own self-test, random numbers with gaps. Whatever is no probability that never falls with the
horizon, or takes more CPU than its share of the `MODEL_TIMEOUT_S` that a fleet may take, refuses
it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from las.forecast.contract import INCIDENT, MODEL_TIMEOUT_S, ModelContract, ModelRefused
from las.forecast.graph import Graph
from las.forecast.heads import TABLES, Head
from las.forecast.model import ForecastModel
from peerd.daemon.telemetry.window import WINDOW_SAMPLES_MAX

TRIAL_NODES = 1_000
# A fleet is ten thousand nodes.
TRIAL_TIMEOUT_S = MODEL_TIMEOUT_S * TRIAL_NODES / 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A file that passed: what it says of itself, and the CPU seconds of the trial's fleet."""

    contract: ModelContract
    took_s: float


def tried(content: bytes, head: str = "") -> Trial:
    """Try a file. Blocks for a second at most, or for as long as a slow model takes once.

    Args:
        content: The file's bytes.
        head: The head that it has to be for; empty: whichever it says.

    Raises:
        ModelRefused: which rule it breaks.
    """
    graph = Graph(content, lambda contract: contract.check_head(head or contract.head))
    contract = graph.contract
    # As a node loads it: the checks of its own inputs included.
    if contract.head == INCIDENT:
        ForecastModel.from_bytes(content)
        if contract.window > WINDOW_SAMPLES_MAX:
            raise ModelRefused(
                f"reads {contract.window} samples, and peers keep {WINDOW_SAMPLES_MAX}"
            )
    else:
        Head.from_bytes(content, TABLES[contract.head])
    inputs = _inputs(contract)
    # Of this thread's CPU, which is the graph's: a busy machine makes no model slow.
    began_s = time.thread_time()
    graph.run(inputs)
    took_s = time.thread_time() - began_s
    if took_s > TRIAL_TIMEOUT_S:
        raise ModelRefused(
            f"takes {took_s:.1f} s of CPU for {TRIAL_NODES} nodes, at most {TRIAL_TIMEOUT_S:.1f} s"
        )
    return Trial(contract=contract, took_s=took_s)


def _inputs(contract: ModelContract) -> npt.NDArray[np.float32]:
    """[`TRIAL_NODES`, window, features]: a quarter of each kind."""
    shape = (TRIAL_NODES, contract.window, len(contract.features))
    inputs = np.zeros(shape, dtype=np.float32)
    quarter = TRIAL_NODES // 4
    inputs[:quarter] = np.nan
    known = contract.self_test.windows
    inputs[quarter : 2 * quarter] = known[np.arange(quarter) % len(known)]
    chance = np.random.default_rng(0)
    wild = chance.lognormal(0.0, 4.0, (quarter, *shape[1:])).astype(np.float32)
    wild[chance.random(wild.shape) < 0.2] = np.nan
    inputs[2 * quarter : 3 * quarter] = wild
    return inputs

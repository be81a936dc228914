"""A trouble that no recording holds: commits that grow slow within a quarter of a minute.

It is laid over a healthy peer of a held-out run, and only its commits get slower, so a forecaster
has less to go by than with a real disk; the demo's disk falls sick as fast. The gate and the tests
of the shipped model ask how soon it is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from models.dataset import Run
from models.judge import CONSECUTIVE, THRESHOLD, Judge
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA
from peerd.testing.faults import Ramp

# The ramp ends after a quarter of a minute; what is not called this many seconds after the onset
# counts as so many.
WATCHED_S = 24
_RUN_S_MIN = 90
_AT = TELEMETRY_SCHEMA.positions


def healthy_hosts(runs: Sequence[Run]) -> Iterator[tuple[Run, int]]:
    """Held-out runs with the row of a peer to whom nothing was done, for 80 s of load."""
    for run in runs:
        calm = [i for i, node in enumerate(run.truth.nodes) if node.kind == "healthy"]
        if run.truth.held_out and calm and run.values.shape[1] >= _RUN_S_MIN:
            yield run, calm[0]


def called_after(model: Judge, run: Run, onset: int, until: int) -> npt.NDArray[np.bool_]:
    """[seconds, peers]: whether each peer is called at each second after the onset."""
    windows = np.concatenate([run.windows(s, model.window) for s in range(onset, until)])
    windows[:, :, _AT["machine_identity"]] = np.repeat(
        np.arange(until - onset, dtype=np.float32), len(run.values)
    )[:, None]
    above = model.predict(windows).p_10_min.reshape(until - onset, -1) >= THRESHOLD
    held = np.lib.stride_tricks.sliding_window_view(above, CONSECUTIVE, axis=0)
    return np.asarray(held.all(axis=2))


def slowed(run: Run, row: int, onset: int, delay_ms: npt.NDArray[np.float32]) -> Run:
    """The run, with that peer's commits slower by `delay_ms` [seconds from the onset]."""
    values = run.values.copy()
    here = slice(onset, onset + len(delay_ms))
    for part in ("p50", "p99", "max"):
        values[row, here, _AT[f"commit_latency_ms_{part}"]] += delay_ms
    latency_ms = values[row, here, _AT["commit_latency_ms_p50"]]
    fewer = np.fmin(values[row, here, _AT["commits_per_s"]], 1000.0 / latency_ms)
    values[row, here, _AT["commits_per_s"]] = fewer
    stalls = np.where(delay_ms >= 100.0, fewer, 0.0)
    values[row, here, _AT["commit_stalls_per_s"]] += stalls
    return Run(truth=run.truth, values=values)


def seconds_until_called(model: Judge, runs: Sequence[Run], onset: int) -> list[int]:
    """By run: from the onset to the call, `WATCHED_S` where there was none."""
    ramp = Ramp(onset_s=0.0, start=1.0, end=180.0, duration_s=15.0)
    delay_ms = np.array([ramp.value(s + 0.5) for s in range(WATCHED_S)], dtype=np.float32)
    seconds = []
    for run, row in healthy_hosts(runs):
        until = onset + WATCHED_S
        called = called_after(model, slowed(run, row, onset, delay_ms), onset, until)
        first = np.flatnonzero(called[:, row])
        seconds.append(int(first[0]) if len(first) else WATCHED_S)
    return seconds

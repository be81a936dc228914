"""Small made-up runs that exercise the machinery of `models`; never training data."""

import numpy as np

from models.dataset import NodeTruth, Run, RunTruth
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

AT = TELEMETRY_SCHEMA.positions


def healthy_values(peers, seconds, random):
    values = np.full((peers, seconds, len(TELEMETRY_SCHEMA)), np.nan, dtype=np.float32)
    shape = (peers, seconds)
    half = np.exp(random.normal(0.5, 0.25, shape))
    values[..., AT["commit_latency_ms_p50"]] = half
    values[..., AT["commit_latency_ms_p99"]] = half * np.exp(np.abs(random.normal(0.8, 0.4, shape)))
    values[..., AT["commit_latency_ms_max"]] = values[..., AT["commit_latency_ms_p99"]] * 1.3
    values[..., AT["commit_age_ms"]] = 0.0
    values[..., AT["commit_stalls_per_s"]] = 0.0
    values[..., AT["commits_per_s"]] = random.normal(80.0, 8.0, shape)
    values[..., AT["commit_bytes_per_s"]] = random.normal(1e5, 1e4, shape)
    values[..., AT["loop_lag_ms_max"]] = np.exp(random.normal(1.0, 0.5, shape))
    values[..., AT["sample_delay_ms"]] = 0.2
    values[..., AT["process_cpu_cores"]] = random.normal(0.2, 0.02, shape)
    values[..., AT["process_run_wait_share"]] = 0.02
    values[..., AT["process_memory_anonymous_bytes"]] = 9e7
    values[..., AT["machine_identity"]] = 77.0
    return values


def make_run(number, *, peers=5, seconds=120, fault=True, seed=0):
    """One run; peer 0 falls sick (commits slow down until it stops) when `fault`."""
    random = np.random.default_rng((seed, number))
    values = healthy_values(peers, seconds, random)
    nodes = [
        NodeTruth(peer=f"peer-{i}", kind="healthy", onset_s=None, stop_s=None, parameters={})
        for i in range(peers)
    ]
    if fault:
        onset, stop = seconds // 3, seconds - 10
        delay = 1.0 * 300.0 ** np.linspace(0.0, 1.0, stop - onset)
        for part in ("p50", "p99", "max"):
            values[0, onset:stop, AT[f"commit_latency_ms_{part}"]] += delay
        values[0, onset:stop, AT["commits_per_s"]] = 1000.0 / (12.0 + delay)
        values[0, onset:stop, AT["commit_stalls_per_s"]] = np.where(delay > 100.0, 5.0, 0.0)
        values[0, stop:] = np.nan
        nodes[0] = NodeTruth(
            peer="peer-0",
            kind="storage_delay",
            onset_s=float(onset),
            stop_s=float(stop),
            parameters={"end_ms": 300.0},
        )
    else:
        # A stall that all peers of the machine share, and that means nothing.
        for part in ("p99", "max"):
            values[:, seconds // 2, AT[f"commit_latency_ms_{part}"]] = 700.0
    truth = RunTruth(number=number, seed=seed, load={"rate": 100.0}, shared=[], nodes=nodes)
    return Run(truth=truth, values=values)

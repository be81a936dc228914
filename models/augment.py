"""Varies training windows in ways that must not change the answer much.

The recordings come from one machine with one disk and short histories of one length; a fleet has
other disks, peers that have just started, machines with one peer, late heartbeats and kernels
that lack a metric. Each variation stands for one of these.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.features import FEATURES, IDENTITY

_LATENCIES = [FEATURES.index(f"commit_latency_ms_{part}") for part in ("p50", "p99", "max")]
_OPTIONAL = [
    FEATURES.index(name)
    for name in (
        "process_memory_limit_share",
        "process_file_descriptors_share",
        "round_trip_ms_p50",
        "disk_free_share",
        "sample_delay_ms",
        "round_trip_ms_max",
        "tcp_retransmits_per_s",
        "tcp_timeouts_per_s",
    )
]
_INPUT_COUNT = FEATURES.index(IDENTITY)
# A disk may be this many e-folds faster or slower than the lab's (one standard deviation).
_DISK_SPREAD = 0.6
_CUT_SHARE = 0.5
_ABSENT_SHARE = 0.2
_CUT_SAMPLES_MIN = 14
_LATE_SAMPLES_MAX = 2
_ALONE_SHARE = 0.25
# The lab's faults take 20 to 240 s; others take a quarter of it.
_HASTES = (1, 1, 2, 3, 4)


def vary(windows: npt.NDArray[np.float32], random: np.random.Generator) -> npt.NDArray[np.float32]:
    """A variation of [peers, window, features] of one machine; the identity column is kept."""
    varied = windows.copy()
    peers, window, _ = varied.shape
    if random.random() < _CUT_SHARE:
        kept = int(random.integers(_CUT_SAMPLES_MIN, window))
        varied[:, : window - kept, :_INPUT_COUNT] = np.nan
    for peer in range(peers):
        late = int(random.integers(0, _LATE_SAMPLES_MAX + 1))
        if late:
            varied[peer, window - late :, :_INPUT_COUNT] = np.nan
        factor = np.float32(np.exp(random.normal(0.0, _DISK_SPREAD)))
        varied[peer][:, _LATENCIES] *= factor
    for column in _OPTIONAL:
        if random.random() < _ABSENT_SHARE:
            varied[:, :, column] = np.nan
    return varied


def haste(random: np.random.Generator) -> int:
    """Take every how many-th sample of a run: 1 as it was, more for faults that grow faster."""
    return int(random.choice(_HASTES))


def part(peers: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Numbers of machines [peers], 0 to peers - 1, that part a run's peers at random.

    All on one, all alone, or two groups, so that the model can use companions and do without.
    """
    chance = random.random()
    if chance < _ALONE_SHARE:
        return np.arange(peers)
    if chance < 2.0 * _ALONE_SHARE:
        return random.integers(0, 2, size=peers)
    return np.zeros(peers, dtype=np.int64)

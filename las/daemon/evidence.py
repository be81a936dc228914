"""Why a node is down, as far as the evidence shows; else that it is not known. Pure.

In this order: the peer said that it stops; its storage failed; its last samples show memory used
up, or a disk that did not answer; its connections are refused, so that its process ended and its
host did not. Silence alone tells nothing. A process that is heard again was not gone: if it took
samples all the while it was the network, else it was held up, and nobody knows by what.
"""

import numpy as np
import numpy.typing as npt

from las.core.history import Cause
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

LAST_SAMPLES = 10
"""So many of the newest samples are looked at."""
# Above these lines a node is as good as full, or its disk as good as dead.
MEMORY_LIMIT_SHARE = 0.95
MEMORY_AVAILABLE_SHARE = 0.02
DISK_FREE_SHARE = 0.01
COMMIT_AGE_MS = 1_000.0
# In a shorter silence, samples of one a second tell nothing.
SILENT_SECONDS_MIN = 5
# Of the seconds that it was silent, so many must have a sample for it to have run all the while.
SAMPLED_SHARE = 0.8

Samples = npt.NDArray[np.float32]
"""[samples, metrics] in the order of the telemetry schema, newest last, NaN where missing."""


def cause_of_end(samples: Samples, *, refused: bool) -> Cause:
    """Why a process ended, from its last samples and whether its port is closed."""
    seen = samples[~np.isnan(samples).all(axis=1)][-LAST_SAMPLES:]
    if _reached(seen, "oom_kills_per_s", above=0.0):
        return Cause.MEMORY
    newest = seen[-1:]
    if _reached(newest, "process_memory_limit_share", above=MEMORY_LIMIT_SHARE) or _reached(
        newest, "memory_available_share", below=MEMORY_AVAILABLE_SHARE
    ):
        return Cause.MEMORY
    if _reached(newest, "commit_age_ms", above=COMMIT_AGE_MS) or _reached(
        newest, "disk_free_share", below=DISK_FREE_SHARE
    ):
        return Cause.DISK
    return Cause.CRASH if refused else Cause.UNKNOWN


_HARD_SIGNS = {
    "disk_io_errors_per_s": 0.0,
    "disk_smart_failed_share": 0.0,
    "memory_errors_uncorrected_per_s": 0.0,
    "oom_kills_per_s": 0.0,
    "process_memory_limit_share": MEMORY_LIMIT_SHARE,
}
"""Signs of trouble that no load makes, and the line above which they are some."""


def hard_signs(windows: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which nodes show one in their newest samples; `windows` is [nodes, samples, metrics]."""
    newest = windows[:, -LAST_SAMPLES:]
    found = np.zeros(len(windows), dtype=np.bool_)
    for metric, line in _HARD_SIGNS.items():
        found |= (newest[:, :, TELEMETRY_SCHEMA.positions[metric]] > line).any(axis=1)
    return found


def cause_of_silence(samples: Samples) -> Cause:
    """Why a process was not heard that is heard again; `samples` are those of the silence."""
    if len(samples) < SILENT_SECONDS_MIN:
        return Cause.UNKNOWN
    sampled = float((~np.isnan(samples).all(axis=1)).mean())
    return Cause.NETWORK if sampled >= SAMPLED_SHARE else Cause.UNKNOWN


def _reached(
    samples: Samples, metric: str, *, above: float = np.inf, below: float = -np.inf
) -> bool:
    """Whether a metric crossed a line in any of the samples; a missing one did not."""
    values = samples[:, TELEMETRY_SCHEMA.positions[metric]]
    return bool(((values > above) | (values < below)).any())

"""What can be done to a peer in a room: kinds of fault and look-alike, and their numbers. Pure.

Nine consecutive runs see each kind of fault three times (the abrupt ones in turn), and each third
of them, the held-out one too, once.
"""

from __future__ import annotations

import math
import random

# Trouble that grows until the peer stops: what a forecast is for.
GRADUAL = (
    "disk_slow",
    "cpu_quota",
    "disk_stalls",
    "packet_loss",
    "packet_delay",
    "descriptors",
    "disk_full",
    "memory_leak",
)
# Trouble that nothing announces: told apart from recall.
ABRUPT = ("disk_failure", "killed")
_GROUPS = (
    ("disk_slow", "cpu_quota", "disk_stalls"),
    ("packet_loss", "packet_delay", ""),  # one of the abrupt ones in the last place
    ("descriptors", "disk_full", "memory_leak"),
)
LOOK_ALIKES = (
    ("slow_disk", "connection_burst"),
    ("far", "temporary_file"),
    ("cpu_capped", "scrub"),
    ("lossy", "memory_step"),
    ("restart", "slow_disk"),
    ("temporary_file", "single_pause"),
    ("scrub", "connection_burst"),
)
EVERY = (*GRADUAL, *ABRUPT, *dict.fromkeys(kind for pair in LOOK_ALIKES for kind in pair))
# From onset to stop, log-uniform.
FAULT_S = (30.0, 300.0)
GROW_SHARE = (0.7, 1.0)
ONSET_S = (25.0, 110.0)
APPENDS_PER_S = (60.0, 900.0)
DESCRIPTORS_MAX = (256.0, 1024.0)
_SHAPES = ("linear", "exponential")
_FROM_THE_START = ("slow_disk", "far", "lossy", "cpu_capped")

Parameters = dict[str, float | str]


def faults_of(turn: int) -> tuple[str, ...]:
    """The kinds of a run, one peer each; never two of the network at once."""
    place, cycle = turn // 3 + turn % 3, turn // 9
    chosen = (group[(place + cycle * shift) % 3] for shift, group in enumerate(_GROUPS))
    return tuple(kind or ABRUPT[turn // 2 % len(ABRUPT)] for kind in chosen)


def look_alikes_of(turn: int) -> tuple[str, ...]:
    """Two of them a run."""
    return LOOK_ALIKES[turn % len(LOOK_ALIKES)]


def fault_parameters(kind: str, draw: random.Random) -> Parameters:
    """How far and in what shape a fault grows."""
    match kind:
        case "disk_slow":
            per_s = round(_log_uniform(150.0, 800.0, draw))
            return {"start_per_s": per_s, "end_per_s": 1.0, "shape": "exponential"}
        case "disk_stalls":
            return {
                "period_s": round(draw.uniform(1.5, 6.0), 2),
                "start_share": round(draw.uniform(0.02, 0.06), 3),
                "end_share": round(draw.uniform(0.7, 0.95), 3),
                "shape": draw.choice(_SHAPES),
            }
        case "cpu_quota":
            cores = round(draw.uniform(0.4, 1.0), 2)
            return {"start_cores": cores, "end_cores": 0.001, "shape": draw.choice(_SHAPES)}
        case "packet_loss":
            share = round(draw.uniform(0.6, 0.95), 2)
            return {"start_share": 0.002, "end_share": share, "shape": draw.choice(_SHAPES)}
        case "packet_delay":
            late_ms = round(_log_uniform(1000.0, 4000.0, draw))
            return {"start_ms": 1.0, "end_ms": late_ms, "shape": draw.choice(_SHAPES)}
        case "memory_leak":
            return {"shape": "linear"}
        case "descriptors" | "disk_full":
            return {"shape": draw.choice(("linear", "quadratic"))}
        case _:
            return {}


def look_alike_times(kind: str, length_s: float, draw: random.Random) -> tuple[float, float]:
    """Onset and length of a look-alike in a run of `length_s`."""
    onset_s = draw.uniform(20.0, max(length_s - 50.0, 25.0))
    if kind in _FROM_THE_START and draw.random() < 0.5:
        return 0.0, length_s
    if kind in ("single_pause", "restart"):
        return onset_s, 2.0
    return onset_s, draw.uniform(20.0, 60.0)


def look_alike_parameters(kind: str, draw: random.Random) -> Parameters:
    """How strong a look-alike is."""
    match kind:
        case "slow_disk":
            return {"writes_per_s": round(_log_uniform(40.0, 200.0, draw))}
        case "far":
            return {"delay_ms": round(_log_uniform(5.0, 40.0, draw), 1)}
        case "lossy":
            return {"loss_share": round(_log_uniform(0.002, 0.02, draw), 4)}
        case "cpu_capped":
            return {"cores": round(draw.uniform(0.4, 0.8), 2)}
        case "temporary_file" | "connection_burst" | "memory_step":
            return {"share": round(draw.uniform(0.3, 0.7), 2)}
        case "single_pause":
            return {"stopped_ms": round(_log_uniform(200.0, 1200.0, draw))}
        case _:
            return {}


def _log_uniform(low: float, high: float, draw: random.Random) -> float:
    return math.exp(draw.uniform(math.log(low), math.log(high)))

"""What a run of the lab will do, drawn from its number and a seed. Pure.

Kinds of fault, look-alike and shared event rotate with the number, so that training runs and
held-out runs (every third) both see all of them; everything else is drawn.

Runs below `FIRST_IN_ROOMS` are of the first plan: peers that share everything, three kinds of
fault. From there on each peer has a room of its own (`models/lab/room.py`), and what is done to it
stands in `models/lab/kinds.py`. A number keeps its plan, so that a recording keeps its meaning.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from models.lab import kinds

PEERS = 5
FIRST_IN_ROOMS = 45
# Which faults a run has, one peer each. Growing storage delay is the commonest real one.
FAULTS_BY_TURN: tuple[tuple[str, ...], ...] = (
    ("storage_delay", "pauses"),
    ("storage_delay", "memory_leak"),
    ("storage_delay",),
    ("pauses", "storage_delay"),
    ("memory_leak", "storage_delay"),
    ("pauses",),
)
LOOK_ALIKES_BY_TURN: tuple[tuple[str, ...], ...] = (
    ("slow_stable", "single_pause"),
    ("slow_spell", "restart"),
    ("slow_step", "slow_stable"),
    ("single_pause", "slow_spell"),
    ("slow_step", "restart"),
)
SHARED_BY_TURN: tuple[tuple[str, ...], ...] = (
    ("load_spike", "backup"),
    ("cpu_hog", "lull"),
    ("large_batches", "load_spike"),
    ("lull", "backup"),
    ("load_spike", "cpu_hog"),
)
# From onset to stop, log-uniform; the fault grows for a share of it and then stays. Seconds.
FAULT_S = (20.0, 130.0)
GROW_SHARE = (0.3, 1.0)
ONSET_S = (25.0, 80.0)
# A second fault of a run begins anywhere in the first two minutes.
SECOND_ONSET_S = (25.0, 120.0)
# Log-uniform: from nearly idle to what two cores bear beside all else.
APPENDS_PER_S = (60.0, 1_800.0)
# What a run goes on for after the last fault should have ended.
TAIL_S = 12.0
# Between the start of the peers and that of the load: an idle past is a past, too.
IDLE_S = (1.0, 20.0)
# limit: seconds of a run, whatever was drawn.
RUN_S_MAX = 300.0
SMOKE_ONSET_S = 10.0
SMOKE_FAULT_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """Something done to one peer: `kind`, when it begins, how long it lasts.

    A fault grows for the first `grow_s` of its duration.
    """

    kind: str
    peer: int
    onset_s: float
    duration_s: float
    grow_s: float = 0.0
    parameters: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Something that all peers of the machine feel."""

    kind: str
    start_s: float
    duration_s: float
    strength: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """One run: its length, its load, and everything that will happen in it."""

    number: int
    seed: int
    idle_s: float
    length_s: float
    appends_per_s: float
    record_bytes: int
    shards: int
    limit_memory: bool
    faults: tuple[Episode, ...]
    look_alikes: tuple[Episode, ...]
    shared: tuple[Shared, ...]
    in_rooms: bool = False
    descriptors_max: int = 0
    """What a peer in a room may open at once."""


def plan_run(number: int, seed: int) -> RunPlan:
    """The plan of run `number`; the same for the same arguments, on any machine."""
    return _first_plan(number, seed) if number < FIRST_IN_ROOMS else _rooms_plan(number, seed)


def smoke_plan(kind: str) -> RunPlan:
    """A run of half a minute, in rooms, with one fault or look-alike: to see that it works here."""
    draw = random.Random(kind)
    is_fault = kind in (*kinds.GRADUAL, *kinds.ABRUPT)
    duration_s = 0.0 if kind in kinds.ABRUPT else SMOKE_FAULT_S
    draw_parameters = kinds.fault_parameters if is_fault else kinds.look_alike_parameters
    what = Episode(
        kind=kind,
        peer=1,
        onset_s=SMOKE_ONSET_S,
        duration_s=duration_s,
        grow_s=duration_s,
        parameters=draw_parameters(kind, draw),
    )
    return RunPlan(
        number=0,
        seed=0,
        idle_s=1.0,
        length_s=SMOKE_ONSET_S + duration_s + 3.0,
        appends_per_s=150.0,
        record_bytes=500,
        shards=6,
        limit_memory=True,
        faults=(what,) if is_fault else (),
        look_alikes=() if is_fault else (what,),
        shared=(),
        in_rooms=True,
        descriptors_max=256,
    )


def _rooms_plan(number: int, seed: int) -> RunPlan:
    draw = random.Random(f"{seed}/{number}")
    turn = number - FIRST_IN_ROOMS
    peers = list(range(PEERS))
    draw.shuffle(peers)
    faults = []
    for kind in kinds.faults_of(turn):
        abrupt = kind in kinds.ABRUPT
        duration_s = 0.0 if abrupt else _log_uniform(*kinds.FAULT_S, draw)
        faults.append(
            Episode(
                kind=kind,
                peer=peers.pop(),
                onset_s=round(draw.uniform(*kinds.ONSET_S), 1),
                duration_s=round(duration_s, 1),
                grow_s=round(duration_s * draw.uniform(*kinds.GROW_SHARE), 1),
                parameters=kinds.fault_parameters(kind, draw),
            )
        )
    length_s = max(fault.onset_s + fault.duration_s for fault in faults) + TAIL_S
    look_alikes = []
    for kind in kinds.look_alikes_of(turn):
        onset_s, spell_s = kinds.look_alike_times(kind, length_s, draw)
        look_alikes.append(
            Episode(
                kind=kind,
                peer=peers.pop(),
                onset_s=round(onset_s, 1),
                duration_s=round(spell_s, 1),
                parameters=kinds.look_alike_parameters(kind, draw),
            )
        )
    shared = SHARED_BY_TURN[turn % len(SHARED_BY_TURN)]
    return RunPlan(
        number=number,
        seed=seed,
        idle_s=round(draw.uniform(*IDLE_S), 1),
        length_s=round(length_s, 1),
        appends_per_s=round(_log_uniform(*kinds.APPENDS_PER_S, draw), 1),
        record_bytes=round(_log_uniform(100.0, 3000.0, draw)),
        shards=draw.choice((6, 12, 20)),
        limit_memory=True,
        faults=tuple(faults),
        look_alikes=tuple(look_alikes),
        shared=tuple(_shared(kind, length_s, draw) for kind in shared),
        in_rooms=True,
        descriptors_max=round(_log_uniform(*kinds.DESCRIPTORS_MAX, draw)),
    )


def _first_plan(number: int, seed: int) -> RunPlan:
    draw = random.Random(f"{seed}/{number}")
    turn = number // 3 + 2 * (number % 3)
    peers = list(range(PEERS))
    draw.shuffle(peers)
    fault_kinds = FAULTS_BY_TURN[turn % len(FAULTS_BY_TURN)]
    faults = tuple(
        _fault(kind, peers.pop(), ONSET_S if index == 0 else SECOND_ONSET_S, draw)
        for index, kind in enumerate(fault_kinds)
    )
    ends_s = max(fault.onset_s + fault.duration_s for fault in faults)
    length_s = min(ends_s + TAIL_S, RUN_S_MAX)
    look_alikes = tuple(
        _look_alike(kind, peers.pop(), length_s, draw)
        for kind in LOOK_ALIKES_BY_TURN[turn % len(LOOK_ALIKES_BY_TURN)]
    )
    shared = tuple(
        _shared(kind, length_s, draw) for kind in SHARED_BY_TURN[turn % len(SHARED_BY_TURN)]
    )
    return RunPlan(
        number=number,
        seed=seed,
        idle_s=round(draw.uniform(*IDLE_S), 1),
        length_s=round(length_s, 1),
        appends_per_s=round(_log_uniform(*APPENDS_PER_S, draw), 1),
        record_bytes=round(_log_uniform(100.0, 3000.0, draw)),
        shards=draw.choice((6, 12, 20)),
        limit_memory="memory_leak" in fault_kinds or draw.random() < 0.5,
        faults=faults,
        look_alikes=look_alikes,
        shared=shared,
    )


def _log_uniform(low: float, high: float, draw: random.Random) -> float:
    return math.exp(draw.uniform(math.log(low), math.log(high)))


def _fault(kind: str, peer: int, onset_s: tuple[float, float], draw: random.Random) -> Episode:
    begins_s = draw.uniform(*onset_s)
    duration_s = min(_log_uniform(*FAULT_S, draw), RUN_S_MAX - TAIL_S - begins_s)
    parameters: dict[str, float | str] = {}
    if kind == "storage_delay":
        parameters = {
            "start_ms": round(draw.uniform(0.5, 3.0), 2),
            "end_ms": round(_log_uniform(120.0, 2500.0, draw), 1),
            "shape": draw.choice(("linear", "exponential", "exponential", "quadratic")),
            "jitter_share": round(draw.uniform(0.0, 0.6), 2),
            "ends_by": draw.choice(("failed_write", "hang")),
        }
    elif kind == "pauses":
        parameters = {
            "period_ms": round(_log_uniform(400.0, 2500.0, draw)),
            "start_share": round(draw.uniform(0.02, 0.06), 3),
            "end_share": round(draw.uniform(0.7, 0.95), 3),
            "shape": draw.choice(("linear", "exponential")),
        }
    elif kind == "memory_leak":
        parameters = {"leak_bytes": 400e6}
    return Episode(
        kind=kind,
        peer=peer,
        onset_s=round(begins_s, 1),
        duration_s=round(duration_s, 1),
        grow_s=round(duration_s * draw.uniform(*GROW_SHARE), 1),
        parameters=parameters,
    )


def _look_alike(kind: str, peer: int, length_s: float, draw: random.Random) -> Episode:
    onset_s = draw.uniform(20.0, max(length_s - 50.0, 25.0))
    duration_s = draw.uniform(15.0, 60.0)
    parameters: dict[str, float | str] = {
        "delay_ms": round(_log_uniform(4.0, 60.0, draw), 1),
        "jitter_share": round(draw.uniform(0.0, 0.6), 2),
    }
    if kind == "slow_stable":
        onset_s, duration_s = 0.0, length_s
    elif kind == "slow_step":
        duration_s = length_s - onset_s
    elif kind == "single_pause":
        parameters = {"stopped_ms": round(_log_uniform(200.0, 1200.0, draw))}
        duration_s = 2.0
    elif kind == "restart":
        parameters, duration_s = {}, 2.0
    return Episode(
        kind=kind,
        peer=peer,
        onset_s=round(onset_s, 1),
        duration_s=round(duration_s, 1),
        parameters=parameters,
    )


def _shared(kind: str, length_s: float, draw: random.Random) -> Shared:
    duration_s = draw.uniform(10.0, 35.0)
    return Shared(
        kind=kind,
        start_s=round(draw.uniform(15.0, max(length_s - duration_s, 20.0)), 1),
        duration_s=round(duration_s, 1),
        strength=round(_log_uniform(2.0, 6.0, draw), 2),
    )

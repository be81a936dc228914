"""What kind of run a seed is: a swarm draws every knob anew, so that rare mixes come up.

Rates are per second of virtual time and per cluster, probabilities per message or operation. A knob
that is 0 turns its fault off; in each drawn run several are off, since a fault can hide what
another one would show.
"""

import random
from dataclasses import dataclass, fields, replace

from peerd.core.limits import Limits

FAST_LIMITS = Limits(
    drain_timeout_ms=20,
    ready_timeout_ms=600,
    stall_timeout_ms=200,
    repeat_ms=50,
    table_timeout_ms=60_000,
    tail_timeout_ms=500,
    commit_persist_ms=100,
    stream_bytes_max=60,
    recent_bytes_max=60,
    catch_up_bytes=30,
)
"""Small bounds and short times, so that short runs reach them. A payload is some 10 bytes."""

CALM_LIMITS = Limits(
    drain_timeout_ms=20,
    ready_timeout_ms=600,
    stall_timeout_ms=200,
    repeat_ms=100,
    table_timeout_ms=60_000,
)
"""The bounds of production, with times that fit short runs."""


SILENCE_MS = 1_500
"""A forgetful run's `retry_silence_ms`: what has not been heard for so long is not sent again."""


TABLE_GONE_MS = 3_000
"""Where all holders may be lost, a table is looked for so long."""

TABLE_SLOW_MS = 5_000
"""And so long while one of them is connected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One kind of run. `trouble_ms` of faults, then everything heals and `settle_ms` at most."""

    peers: int = 4
    shards: int = 1
    copies: int = 3
    acks: int = 2
    las_nodes: int = 3
    tight_limits: bool = True
    """Bounds so small that replicas fall behind what is in memory all the time."""
    producers: int = 3
    """Producers of each shard; beside them one client without a producer id."""
    appends_per_s: float = 20.0
    """Of each shard."""
    window: int = 4
    """Unanswered batches of a producer."""
    conditional: float = 0.1
    """Share of appends that name the offset that they expect."""
    reads_per_s: float = 20.0
    trouble_ms: int = 4_000
    settle_ms: int = 60_000
    loss: float = 0.02
    repeat: float = 0.05
    ordered: bool = True
    """Streams keep their order, and a loss breaks them. Else every message goes its own way."""
    latency_ms: int = 2
    """A usual delay of a message."""
    slow_messages: float = 0.02
    """Share of messages that take a hundred times as long."""
    crashes_per_s: float = 1.0
    boundary_crashes: float = 0.7
    """Share of crashes that strike between two effects of one step."""
    pauses_per_s: float = 0.5
    partitions_per_s: float = 0.7
    slow_links_per_s: float = 0.2
    slow_disks_per_s: float = 0.2
    hung_disks_per_s: float = 0.1
    full_disks_per_s: float = 0.1
    failed_disks_per_s: float = 0.1
    clock_jumps_per_s: float = 0.2
    bit_flips_per_s: float = 0.2
    lost_stores: int = 0
    las_crashes_per_s: float = 0.2
    las_coups_per_s: float = 0.3
    """Another LAS node takes the lead while the old one goes on for a while."""
    las_outage_ms: int = 0
    """A quiet time in which no LAS node runs and nothing else fails (G9)."""
    whims_per_s: float = 1.0
    """Changes of plan without any reason."""
    real_raft: bool = False
    """The LAS group is the real Raft; else it is a linearizable register."""
    las_heartbeat_ms: int = 50
    """Of a LAS group that is the real Raft, as all the following; elections take some of them."""
    las_compaction_entries: int = 20
    """A snapshot is due after so many entries of the log."""
    las_power_cuts: float = 0.5
    """Share of the crashes of LAS nodes that take what was not synced."""
    las_blackouts_per_s: float = 0.0
    """All LAS nodes lose power at once."""
    las_pauses_per_s: float = 0.0
    las_slow_disks_per_s: float = 0.0
    las_failed_disks_per_s: float = 0.0
    """The next sync or write of a LAS node fails."""
    las_lost_directories: int = 0
    splits: int = 0
    """Shards that are split at most, each into two."""
    forgetful: bool = False
    """Producers are forgotten after seconds, and clients send a batch again for less than that."""
    trims_per_s: float = 0.0
    """Looks of a LAS node after which some shard is trimmed."""
    tier: bool = False
    """Primaries put what is committed into an object store, which fails now and then."""
    releases_per_s: float = 0.0
    """Moves of bytes that are begun without any reason; with some, surplus holders are released."""
    gaps: int = 0
    """How often `acks` voters lose their directories at once, which is more than §5 promises to
    survive. A person gives up what is gone (§4.2)."""
    mirrors: float = 0.0
    """Share of the plans with a primary at risk in which it has no vote."""
    false_suspicions: float = 0.01
    """Share of the looks of a LAS node in which it takes a healthy peer for dead."""

    def words(self) -> str:
        """All of it in one line that a person can compare with another."""
        return " ".join(f"{each.name}={getattr(self, each.name):g}" for each in fields(self))

    @property
    def limits(self) -> Limits:
        """The bounds of the cores."""
        limits = FAST_LIMITS if self.tight_limits else CALM_LIMITS
        if not self.forgetful:
            return limits
        return replace(
            limits,
            producer_expiry_ms=1_000,
            retry_silence_ms=SILENCE_MS,
            pause_ms_max=100,
            table_timeout_ms=TABLE_GONE_MS if self.gaps else limits.table_timeout_ms,
            table_patience_ms=TABLE_SLOW_MS if self.gaps else limits.table_patience_ms,
        )


def drawn(seed: int) -> Options:
    """The options of a seed."""
    rng = random.Random(f"options of {seed}")
    copies, acks = rng.choice(((3, 2), (3, 2), (3, 2), (2, 2), (3, 3), (2, 1), (1, 1), (4, 3)))
    peers = copies + rng.choice((1, 1, 2, 3))

    def rate(*choices: float) -> float:
        return rng.choice((0.0, *choices))

    options = Options(
        peers=peers,
        shards=rng.choice((1, 1, 2, 3)),
        copies=copies,
        acks=acks,
        las_nodes=rng.choice((1, 3, 3)),
        tight_limits=rng.random() < 0.7,
        producers=rng.choice((1, 2, 4)),
        appends_per_s=rng.choice((10.0, 20.0, 40.0)),
        window=rng.choice((1, 4, 8)),
        conditional=rate(0.1, 0.5),
        reads_per_s=rng.choice((10.0, 40.0)),
        trouble_ms=rng.choice((4_000, 6_000, 10_000)),
        loss=rate(0.01, 0.03, 0.1),
        repeat=rate(0.05, 0.3),
        ordered=rng.random() < 0.6,
        latency_ms=rng.choice((1, 2, 5)),
        slow_messages=rate(0.01, 0.05),
        crashes_per_s=rate(0.3, 1.0, 2.0),
        boundary_crashes=rate(0.5, 1.0),
        pauses_per_s=rate(0.3, 1.0),
        partitions_per_s=rate(0.5, 1.5),
        slow_links_per_s=rate(0.3),
        slow_disks_per_s=rate(0.3),
        hung_disks_per_s=rate(0.2),
        full_disks_per_s=rate(0.2),
        failed_disks_per_s=rate(0.2),
        clock_jumps_per_s=rate(0.3),
        bit_flips_per_s=rate(0.5),
        lost_stores=rng.choice((0, 0, 1)),
        las_crashes_per_s=rate(0.2, 0.5),
        las_coups_per_s=rate(0.3, 1.0),
        las_outage_ms=rng.choice((0, 0, 1_500)),
        whims_per_s=rate(0.5, 2.0, 5.0),
        false_suspicions=rate(0.01),
        splits=rng.choice((0, 0, 1, 2)),
        mirrors=rate(0.5),
        # By the number, so that all other seeds are what they were before there were such runs.
        forgetful=seed % 10 in {2, 4},
        trims_per_s=2.0 if seed % 10 in {1, 7} else 0.0,
        tier=seed % 10 in {7, 9},
        releases_per_s=3.0 if seed % 10 in {3, 6, 7} else 0.0,
    )
    return options if seed % 10 != 4 else with_gaps(options)


def with_gaps(options: Options) -> Options:
    """A run in which more is lost than may be. New producers are refused behind a gap until the
    past is silent, so such a run forgets. Not what would make it hard to say what may be missing.
    """
    return replace(
        options,
        peers=options.copies + 2 * options.acks + 1,
        gaps=2 if options.trouble_ms > 6_000 else 1,
        lost_stores=0,
        bit_flips_per_s=0.0,
        las_outage_ms=0,
        splits=0,
    )


def drawn_raft(seed: int) -> Options:
    """The options of a seed whose LAS group is the real Raft: the rest is drawn as ever."""
    rng = random.Random(f"options of raft {seed}")

    def rate(*choices: float) -> float:
        return rng.choice((0.0, *choices))

    return replace(
        drawn(seed),
        real_raft=True,
        las_nodes=rng.choice((1, 3, 3, 3, 5)),
        las_crashes_per_s=rate(0.2, 0.5, 1.0),
        las_heartbeat_ms=rng.choice((20, 50, 100)),
        las_compaction_entries=rng.choice((5, 20, 100, 5_000)),
        las_power_cuts=rng.choice((0.0, 0.5, 1.0)),
        las_blackouts_per_s=rate(0.1),
        las_pauses_per_s=rate(0.3),
        las_slow_disks_per_s=rate(0.3),
        las_failed_disks_per_s=rate(0.2),
        las_lost_directories=rng.choice((0, 0, 1)),
    )


def drawn_group(seed: int) -> Options:
    """The options of a seed whose run is a LAS group alone: no peers, but clients and trouble."""
    rng = random.Random(f"options of group {seed}")

    def rate(*choices: float) -> float:
        return rng.choice((0.0, *choices))

    return Options(
        peers=0,
        shards=0,
        real_raft=True,
        las_nodes=rng.choice((1, 3, 3, 3, 3, 5)),
        producers=rng.choice((2, 4, 8)),
        appends_per_s=rng.choice((5.0, 20.0, 60.0)),
        reads_per_s=rng.choice((5.0, 20.0)),
        trouble_ms=rng.choice((4_000, 8_000, 12_000)),
        loss=rate(0.01, 0.05),
        repeat=rate(0.05, 0.3),
        ordered=rng.random() < 0.6,
        latency_ms=rng.choice((1, 2, 5, 10)),
        slow_messages=rate(0.01, 0.05),
        partitions_per_s=rate(0.5, 1.0, 2.0),
        slow_links_per_s=rate(0.3),
        las_crashes_per_s=rate(0.3, 1.0, 2.0),
        boundary_crashes=rate(0.5, 0.9),
        las_heartbeat_ms=rng.choice((20, 50, 100)),
        las_compaction_entries=rng.choice((5, 20, 100, 5_000)),
        las_power_cuts=rng.choice((0.0, 0.5, 1.0)),
        las_blackouts_per_s=rate(0.3, 1.0),
        las_pauses_per_s=rate(0.3, 1.0),
        las_slow_disks_per_s=rate(0.3),
        las_failed_disks_per_s=rate(0.2, 0.6),
        las_lost_directories=rng.choice((0, 0, 1, 2)),
    )


CALM = Options(
    peers=5,
    shards=3,
    appends_per_s=12.0,
    reads_per_s=12.0,
    tight_limits=False,
    conditional=0.05,
    trouble_ms=120_000,
    loss=0.0002,
    repeat=0.001,
    slow_messages=0.001,
    crashes_per_s=0.02,
    pauses_per_s=0.01,
    partitions_per_s=0.02,
    slow_links_per_s=0.005,
    slow_disks_per_s=0.005,
    hung_disks_per_s=0.005,
    full_disks_per_s=0.005,
    failed_disks_per_s=0.005,
    clock_jumps_per_s=0.005,
    bit_flips_per_s=0.005,
    las_crashes_per_s=0.01,
    las_coups_per_s=0.01,
    whims_per_s=0.02,
    false_suspicions=0.0,
)
"""A day as it is: what the speed is measured on (`--speed`)."""

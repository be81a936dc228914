"""Bounds and times of one shard's core: each a named number with its unit and its reason.

Reaching a bound is answered with a typed refusal; nothing in the core grows without one.
"""

from dataclasses import dataclass

PRODUCER_WINDOW_BATCHES = 64
"""W (docs/decisions.md): remembered batches of a producer, and how far it may run ahead of one that
is unanswered, so that a retry always finds its entry."""

PRODUCERS_PER_SHARD_MAX = 100_000
"""docs/decisions.md. About 100 MB of table in memory at the very most, reached by misuse only.
Beyond it whoever is silent for longest is forgotten; while nobody is silent nobody new is taken."""

RETRIES_PER_BATCH_MAX = 16
"""Requests that wait for the same batch: more than a client with sane deadlines ever has."""

KEPT_TAIL_WAITERS_MAX = 1_024
"""Retries that wait until the kept tail is copied: 16 producers with a full window each."""

TAIL_WAITERS_MAX = 1_024
"""Requests for a linearizable tail that wait: they share rounds, so more is a caller without sane
deadlines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an operator may tune. All `*_ms` are ticks."""

    in_flight_bytes_max: int = 16 * 1024 * 1024
    """Uncommitted payload of a shard: its memory bound, about 100 ms of a disk at full speed."""
    in_flight_batches_max: int = 4_096
    """Uncommitted batches of a shard: bounds the bookkeeping when batches are tiny."""
    queued_requests_max: int = 4_096
    """Requests that wait for a switch or for the producer table."""
    queued_bytes_max: int = 16 * 1024 * 1024
    """Payload of those."""
    stream_bytes_max: int = 8 * 1024 * 1024
    """Sent to a replica and not yet acked; beyond it the replica is caught up from the store."""
    stream_frames_max: int = 4_096
    """Frames sent to a replica and not yet acked."""
    catch_up_bytes: int = 1024 * 1024
    """One load from the store: a full message of a replication stream."""
    recent_bytes_max: int = 4 * 1024 * 1024
    """Committed payload kept for replicas that have nearly caught up, so that they can."""
    commit_notice_ms: int = 5
    """The commit offset travels by itself after this time (§3, step 5). A peer sets what its
    configuration says, which is longer: so long that frames of appends that follow each other carry
    it for nothing.
    """
    commit_persist_ms: int = 1_000
    """An idle store makes the commit offset durable after this time: a lag costs only a header
    scan.
    """
    drain_timeout_ms: int = 50
    """A planned switch waits this long for what is in flight: half of the pause that is aimed at.
    """
    ready_timeout_ms: int = 5_000
    """The next primary has this long to say `Ready`, then the prepared segment is declined."""
    tail_timeout_ms: int = 2_000
    """A linearizable tail that nobody confirms is refused after this: longer than a lease, so that
    a failover that is under way ends the wait with its answer.
    """
    stall_timeout_ms: int = 500
    """A voter whose durable end stands still for this long is reported (§6)."""
    producer_expiry_ms: int = 7 * 24 * 3_600 * 1_000
    """A producer whose newest batch is older, by the log's time, is forgotten (§3.1): a week bounds
    the table and spares whoever appends once a day.
    """
    retry_silence_ms: int = 10 * 60 * 1_000
    """A producer that was heard within this time is never forgotten (§3.1): many times longer than
    any client goes on sending a batch. Not for operators; a simulated run has no ten minutes.
    """
    pause_ms_max: int = 60 * 1_000
    """A longer time between two appends counts as this much of it: nobody can tell it from a pause.
    """
    repeat_ms: int = 250
    """Period of everything that is repeated until it is answered."""
    table_timeout_ms: int = 10_000
    """A new primary looks for the producer table for this long before it goes on without."""
    table_patience_ms: int = 60_000
    """For this long, while a peer that may have it is connected and has not answered yet."""

"""Bounds of the services that clients call. Reaching one is a typed error with advice.

What a deployment may want to change is a field of `EdgeLimits`, set from the configuration; what
nobody has a reason to change is a constant. Sizes are bytes, times milliseconds.
"""

from dataclasses import dataclass

MIB = 1024 * 1024

# limit: bytes that a compressed batch may unpack to; 64 times the largest batch is more than real
# records compress, and a crafted frame must not fill the memory of the peer that counts it
DECOMPRESSED_BYTES_MAX = 64 * MIB
# limit: appends in one message of AppendStream, as the contract says
APPENDS_PER_MESSAGE_MAX = 1024
# limit: bytes of a header's name, as the contract says
HEADER_NAME_BYTES_MAX = 256
# limit: characters of a log's name, as the contract says
LOG_NAME_CHARACTERS_MAX = 128
# limit: results joined into one message of AppendStream; 64 KiB or so of receipts
RESULTS_PER_MESSAGE_MAX = 1024
# limit: payload bytes gathered into one message of a read. The servers' time for a record of 256 B
# is 1.5 µs at 256 KiB, 1.1 at 512 KiB, 0.9 at 1 MiB, which a slow reader would have us hold
READ_MESSAGE_BYTES = 512 * 1024
# limit: the same for the read of one shard that has filled the messages before: a GB in messages of
# 2 MiB takes both ends half of the CPU time that it takes in messages of 512 KiB, and a reader that
# takes so many can be trusted to want the next
LONG_READ_MESSAGE_BYTES = 2 * 1024 * 1024
# limit: bytes that stand beside each batch of a message; a longer message has no more batches than
# make it half as long again, which any client takes: gRPC's own bound is 4 MiB
BESIDE_BATCH_BYTES = 64
# Whose batches are smaller on the average gets no longer messages: what stands beside them counts.
LONG_READ_BATCH_BYTES_MIN = 1024
# limit: reads of a peer that get such messages at a time; each of them may hold one as long as its
# reader likes
LONG_READS_MAX = 32
# limit: messages of one whole-log read that are made but not yet sent
READ_MESSAGES_WAITING_MAX = 8
# limit: shards that one non-following read of a whole log reads at the same time; each holds one
# message, so that such a call stays below some 10 MiB however many shards it merges
READ_SHARDS_AT_ONCE_MAX = 8
# limit: shards asked at the same time for one GetTail of a whole log
TAIL_SHARDS_AT_ONCE_MAX = 16
# limit: consumers of one log whose positions are kept
CONSUMERS_PER_LOG_MAX = 1_000
# limit: shards that one position names: all of a log's, and as many that they came from by splits
POSITION_SHARDS_MAX = 2_048
# limit: bytes of all positions of a cluster; the primary of `_positions` holds them in memory
POSITIONS_BYTES_MAX = 64 * MIB
# limit: clients whose newest commit for a consumer is remembered: a late try changes nothing
POSITION_COMMITTERS_MAX = 4
# limit: consumers that were forgotten for whom the same is still remembered
POSITIONS_FORGOTTEN_MAX = 1_024
# limit: bytes of the positions in one answer of ListPositions, beyond its first; then comes a page
# of its own
POSITIONS_PAGE_BYTES_MAX = MIB
# The size of a client's random name (`CommitPositionRequest.committer`).
COMMITTER_BYTES = 16
# limit: commits of positions that wait for their turn at the primary of `_positions`
POSITION_COMMITS_WAITING_MAX = 4_096
# limit: commits of positions appended as one batch, and older positions copied with them
POSITIONS_PER_BATCH_MAX = 256
# limit: bytes of the same, beyond its first record; far below what a batch may have
POSITIONS_BATCH_BYTES_MAX = 256 * 1024
# limit: records of `_positions` that need not be read any more before the ones that hold are copied
# forward; it makes a new primary read some thousand records at most, or a few for each that holds
POSITIONS_STALE_RECORDS_MAX = 4_096
# How long an unanswered question to a neighbour is worth waiting for, where there is another way.
TAIL_FORWARD_TIMEOUT_MS = 1_000
# Advice to a client that ran into a bound: about the time of a few group commits.
RETRY_AFTER_MS = 20
# The same to one that came before the map did: about the time of a registration.
MAP_UNKNOWN_RETRY_MS = 100
# How long to wait before asking again where nothing tells that it has become worth it.
RETRY_STEP_MS = 20
# What is kept of a caller's deadline for the answer to travel: a typed refusal that arrives is
# worth more than the last try.
ANSWER_RESERVE_MS = 50
# limit: longest that a unary append is kept waiting, whatever deadline its caller set; what waits
# keeps its batch in memory
CALL_WAIT_MS_MAX = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeLimits:
    """Bounds of one peer that come from its configuration."""

    batch_bytes_max: int = MIB
    """Serialized batch: BATCH_TOO_LARGE."""

    inflight_bytes_max: int = 64 * MIB
    """Batches of all calls that wait for an answer: OVERLOADED."""

    stream_inflight_bytes_max: int = 16 * MIB
    """Batches of one AppendStream that wait for an answer: OVERLOADED."""

    no_primary_wait_ms: int = 10_000
    """Longest that an append or a read waits for a shard to have a reachable primary."""

    reads_max: int = 256
    """Read calls open at once: OVERLOADED."""


class ByteBudget:
    """A bound on bytes in flight. `whose` names it in refusals."""

    def __init__(self, whose: str, bytes_max: int) -> None:
        self.whose = whose
        self.bytes_max = bytes_max
        self.used_bytes = 0

    def take(self, size: int) -> bool:
        """Reserves `size` bytes; False, with nothing reserved, if there is no room.

        Something always fits into an empty budget, or what is larger could never pass.
        """
        if self.used_bytes and self.used_bytes + size > self.bytes_max:
            return False
        self.used_bytes += size
        return True

    def give(self, size: int) -> None:
        """Gives back what was taken."""
        self.used_bytes -= size

"""Bounds and times of the client library, each with its reason."""

from dataclasses import dataclass

from peerd.client.errors import InvalidRequest
from peerd.core.shard_map import Compression

KIB = 1024
MIB = 1024 * KIB


def compression_named(name: str) -> Compression:
    """Raises `InvalidRequest` for a compression that is none."""
    try:
        return Compression(name)
    except ValueError:
        known = ", ".join(Compression)
        raise InvalidRequest(f"compression: {name!r} is none of {known}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerOptions:
    """What may differ between the producers of one client. Sizes in bytes, times in seconds."""

    append_timeout_s: float = 30.0
    """How long an append is tried, over failovers, before it ends as unknown or not appended."""

    batch_bytes_max: int = 256 * KIB
    """Records are joined up to this size, before compression; beyond 256 KiB nothing is gained."""

    batch_records_max: int = 1024
    """Records joined into one batch at most."""

    batches_inflight_max: int = 8
    """Unanswered batches per shard. Fewer cost throughput; more only wait elsewhere. At most 64,
    what the servers remember of a producer."""

    small_batches_inflight_max: int = 4
    """With so many unanswered batches, one that is not half of `batch_bytes_max` yet waits and
    grows: it would cost as much as a large one on its way, and what is large gains nothing."""

    compression: str | None = None
    """"zstd" packs each batch whose records get smaller by it, "none" does not; None: as the log
    says. Worth it where network or disk is what bounds: it costs processor time here, at the peer
    that accepts the batch, and at each reader."""

    def __post_init__(self) -> None:
        """Raises `InvalidRequest` for a compression that is none."""
        if self.compression is not None:
            compression_named(self.compression)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions(ProducerOptions):
    """What a program may set at `connect`. Sizes in bytes, times in seconds."""

    call_timeout_s: float = 10.0
    """How long any other call is tried that is answered once."""

    connect_timeout_s: float = 5.0
    """How long `connect` looks for somebody who knows the map."""

    queue_bytes_max: int = 32 * MIB
    """Records of all shards that are not answered yet: `append` waits, `append_nowait` raises."""

    position_commit_s: float = 1.0
    """How often a read for a named consumer commits where it is. What came since is read again
    after a crash."""


# limit: appends joined into one message of a stream, as the contract says
APPENDS_PER_MESSAGE_MAX = 1024
# limit: bytes joined into one message of a stream; a larger batch travels alone
MESSAGE_BYTES_MAX = MIB
# limit: times that a batch is sent again because its bytes arrived damaged; a link that damages
# them more often will not carry them
DAMAGED_TRIES_MAX = 3
# Where nothing tells when to try again. A failover takes a hundred times as long, so that this
# adds nothing to a pause; and it is one message a step for a shard that has no primary.
RETRY_STEP_S = 0.020
# Peers of the versions before take a stream of appends without a word. One that is behind with its
# work says so later than this, too, and then the batch is written all the same.
STREAM_TAKEN_WAIT_S = 0.200
# A refusal that only an operator or repair ends is asked for again more slowly.
SLOW_RETRY_STEP_S = 0.200
# How often deadlines are looked at: those of batches under way, and those of records that wait, of
# which there may be very many.
TICK_S = 0.050
SCAN_S = 0.500
# An append that is unanswered for this long makes the client ask for the map, in case that those
# who should tell it hang.
STUCK_S = 0.500
# How long a read looks for somebody who serves it, without any progress.
READ_RETRY_S = 15.0

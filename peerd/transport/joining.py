"""Independent appends to one shard, joined into one batch while earlier ones are under way.

A batch costs a primary and its shadows much the same whatever is in it, and many small clients send
one record each. While `UNDER_WAY_MAX` batches of this process wait for their receipts, what comes
for the same shard gathers, and leaves as one batch when one of them is answered. A lone append
waits for nothing.

Correctness. Joined are only appends of which nothing but their records was said: no producer, no
expected offset, no checksum of the client's own, not compressed, and no field that this version
does not know. For these:

- The batch holds the records of each, byte for byte and side by side, in the order in which the
  appends came; so their offsets are the batch's base and on, and each gets a receipt of its own.
- The batch is taken as a whole or not at all (G5), so one outcome is true of each append in it: a
  receipt when the whole batch is durable, or a refusal with what it says of *taken*.
- No append overtakes another one to the same shard: what cannot be joined first sends what waits.
- What waits is bounded, by `JOINED_RECORDS_MAX` and `JOINED_BYTES_MAX` a shard, and always leaves:
  nothing waits unless batches are under way, and each of those is answered (the seam's own rule).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import crc32c

from peerd.core.batch import BatchHeader
from peerd.core.effects import AppendAccepted
from peerd.core.ids import Offset, ShardId
from peerd.internal.v1 import log_bytes_pb2
from peerd.transport.append_edge import CheckedAppend
from peerd.transport.host_api import AppendHost, AppendOutcome
from peerd.v1 import batch_pb2

# limit: batches of one shard under way beyond which appends gather; measured with one, from four
# clients on, each append waits shorter than with two, since fewer batches take the cores
UNDER_WAY_MAX = 1
# limit: records of a joined batch; beyond some hundred the cost is by the record
JOINED_RECORDS_MAX = 256
# limit: bytes of a joined batch, for the same reason
JOINED_BYTES_MAX = 256 * 1024

Done = Callable[[AppendOutcome], None]


@dataclass(frozen=True, slots=True)
class _Member:
    """An append that waits to be joined: its serialized records, and who is to hear."""

    records: list[bytes]
    done: Done


@dataclass(slots=True)
class _Line:
    """One shard's batches under way, and what waits behind them."""

    shard: ShardId
    under_way: int = 0
    waiting: list[_Member] = field(default_factory=list)
    records: int = 0
    payload_bytes: int = 0
    key_hash_low: int = 0
    key_hash_high: int = 0


class AppendJoiner:
    """Gives checked appends to a host, joined where that is possible and worth it."""

    def __init__(self, host: AppendHost, batch_bytes_max: int) -> None:
        """`batch_bytes_max` bounds any batch."""
        self._host = host
        self._bytes_max = min(batch_bytes_max, JOINED_BYTES_MAX)
        self._lines: dict[ShardId, _Line] = {}

    def append(self, append: CheckedAppend, done: Done) -> None:
        """Append it; `done` gets its own outcome, once, as by `AppendHost.append`."""
        line = self._lines.get(append.shard)
        if not append.joinable:
            if line is not None:
                self._send(line)
            self._host.append(
                append.shard, append.header, append.payload, append.expected_offset, done
            )
            return
        if line is None:
            line = self._lines[append.shard] = _Line(append.shard)
        records = None if line.under_way < UNDER_WAY_MAX else _records_of(append.payload)
        if records is not None:
            if not self._fits(line, append.header):
                self._send(line)
            self._add(line, append.header, _Member(records, done))
            return
        self._send(line)
        self._give(line, append.header, append.payload, done)

    def _fits(self, line: _Line, header: BatchHeader) -> bool:
        return (
            line.records + header.record_count <= JOINED_RECORDS_MAX
            and line.payload_bytes + header.payload_bytes <= self._bytes_max
            # A batch's key hashes say nothing of records without a key.
            and (not line.waiting or bool(line.key_hash_high) == bool(header.key_hash_high))
        )

    @staticmethod
    def _add(line: _Line, header: BatchHeader, member: _Member) -> None:
        first = not line.waiting
        line.key_hash_low = (
            header.key_hash_low if first else min(line.key_hash_low, header.key_hash_low)
        )
        line.key_hash_high = max(line.key_hash_high, header.key_hash_high)
        line.waiting.append(member)
        line.records += header.record_count
        # Each part's own frame is larger than its share of the joined one's.
        line.payload_bytes += header.payload_bytes

    def _send(self, line: _Line) -> None:
        """Give the host what waits, as one batch."""
        members = line.waiting
        if not members:
            return
        records = [record for member in members for record in member.records]
        payload = log_bytes_pb2.BatchBytes(
            record_count=len(records), records=log_bytes_pb2.RecordsBytes(records=records)
        ).SerializeToString()
        header = BatchHeader(
            record_count=len(records),
            payload_crc=crc32c.crc32c(payload),
            key_hash_low=line.key_hash_low,
            key_hash_high=line.key_hash_high,
            payload_bytes=len(payload),
        )
        line.waiting, line.records, line.payload_bytes = [], 0, 0
        line.key_hash_low = line.key_hash_high = 0

        def done(outcome: AppendOutcome) -> None:
            _answer(members, outcome)

        self._give(line, header, payload, done)

    def _give(self, line: _Line, header: BatchHeader, payload: bytes, done: Done) -> None:
        line.under_way += 1

        def ended(outcome: AppendOutcome) -> None:
            done(outcome)
            line.under_way -= 1
            if line.under_way < UNDER_WAY_MAX:
                self._send(line)
            if not line.under_way and self._lines.get(line.shard) is line:
                del self._lines[line.shard]

        self._host.append(line.shard, header, payload, None, ended)


def _records_of(payload: bytes) -> list[bytes] | None:
    """The serialized records of a checked batch; None if there is more to it than these."""
    batch = log_bytes_pb2.BatchBytes.FromString(payload)
    if batch.codec != batch_pb2.CODEC_UNSPECIFIED or batch.WhichOneof("data") != "records":
        return None
    batch.DiscardUnknownFields()  # type: ignore[no-untyped-call]
    if batch.ByteSize() != len(payload):
        return None
    return list(batch.records.records)


def _answer(members: list[_Member], outcome: AppendOutcome) -> None:
    """Tell each append of a joined batch what became of it."""
    if not isinstance(outcome, AppendAccepted):
        for member in members:
            member.done(outcome)
        return
    base = int(outcome.base)
    for member in members:
        count = len(member.records)
        member.done(
            AppendAccepted(
                request=outcome.request,
                shard=outcome.shard,
                epoch=outcome.epoch,
                base=Offset(base),
                record_count=count,
                timestamp_ms=outcome.timestamp_ms,
                durable_on=outcome.durable_on,
                duplicate=outcome.duplicate,
            )
        )
        base += count

"""Independent appends to one shard, joined into one batch while earlier ones are under way.

A batch costs a primary and its shadows much the same whatever is in it, and many small clients send
one record each. While `UNDER_WAY_MAX` batches of this process wait for their receipts, what comes
for the same shard gathers, and leaves as one batch when one of them is answered. A lone append
waits for nothing.

Where cores are scarce, most appends are not here yet when a batch is answered: they wait for a core
to be sent or taken in. Each batch then carries few, and batches take the cores that appends need.
So what gathers is held back further there: until as many wait as were lately in flight at one time,
as they do when clients that were answered together come back, or until `HOLD_ROUNDS` times as long
as the last batch took have passed. Where cores are idle nothing is held back: it would save what
nobody needs.

Correctness. Joined are only appends of which nothing but their records was said: no producer, no
expected offset, no checksum of the client's own, not compressed, and no field that this version
does not know. For these:

- The batch holds the records of each, byte for byte and side by side, in the order in which the
  appends came; so their offsets are the batch's base and on, and each gets a receipt of its own.
- The batch is taken as a whole or not at all (G5), so one outcome is true of each append in it: a
  receipt when the whole batch is durable, or a refusal with what it says of *taken*.
- No append overtakes another one to the same shard: what cannot be joined first sends what waits.
- What waits is bounded, by `JOINED_RECORDS_MAX` and `JOINED_BYTES_MAX` a shard, and always leaves:
  nothing waits unless batches are under way, each of which is answered (the seam's own rule), or a
  timer runs that sends it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import crc32c

from peerd.core.batch import BatchHeader
from peerd.core.effects import AppendAccepted
from peerd.core.ids import Offset, ShardId
from peerd.core.value import value
from peerd.internal.v1 import log_bytes_pb2
from peerd.transport.append_edge import CheckedAppend
from peerd.transport.host_api import AppendHost, AppendOutcome
from peerd.transport.plain_batch import plain_records
from peerd.v1 import batch_pb2

# limit: batches of one shard under way beyond which appends gather; measured with one, from four
# clients on, each append waits shorter than with two, since fewer batches take the cores
UNDER_WAY_MAX = 1
# limit: records of a joined batch; beyond some hundred the cost is by the record
JOINED_RECORDS_MAX = 256
# limit: bytes of a joined batch, for the same reason
JOINED_BYTES_MAX = 256 * 1024
# How long appends are held back where cores are scarce, in times of the last batch.
HOLD_ROUNDS = 2.0
# limit: seconds of the same; a batch that took longer met a fault, not a lack of cores
HOLD_S_MAX = 0.02
# limit: appends for which nothing is held back further: a batch's cost is spread over them
HELD_APPENDS_MAX = 32

Done = Callable[[AppendOutcome], None]


class Timer(Protocol):
    """A call that is due."""

    def cancel(self) -> None:
        """Do not make it."""


class Timers(Protocol):
    """What is used of an event loop."""

    def time(self) -> float:
        """Monotonic, in seconds."""

    def call_later(self, delay: float, callback: Callable[["_Line"], None], line: "_Line") -> Timer:
        """Call `callback` with `line` after so many seconds."""


@value(frozen=True, slots=True)
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
    in_flight: int = 1
    """Appends that were lately under way or waiting at one time."""
    hold: Timer | None = None
    """While what waits is held back, though nothing is under way."""

    @property
    def is_complete(self) -> bool:
        """Nothing more is to be expected soon."""
        return self.in_flight == 1 or len(self.waiting) >= min(self.in_flight, HELD_APPENDS_MAX)


class AppendJoiner:
    """Gives checked appends to a host, joined where that is possible and worth it."""

    def __init__(
        self,
        host: AppendHost,
        batch_bytes_max: int,
        *,
        cores_are_scarce: Callable[[], bool] = lambda: False,
        timers: Callable[[], Timers] = asyncio.get_running_loop,
    ) -> None:
        """`batch_bytes_max` bounds any batch; `timers` are asked for at each of them."""
        self._host = host
        self._bytes_max = min(batch_bytes_max, JOINED_BYTES_MAX)
        self._cores_are_scarce = cores_are_scarce
        self._timers = timers
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
        gathers = line.under_way >= UNDER_WAY_MAX or line.hold is not None
        records = _records_of(append.payload) if gathers else None
        if records is not None:
            if not self._fits(line, append.header):
                self._send(line)
            self._add(line, append.header, _Member(records, done))
            if line.hold is not None and line.is_complete:
                self._send(line)
            return
        self._send(line)
        self._give(line, append.header, append.payload, 1, done)

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
        if line.hold is not None:
            line.hold.cancel()
            line.hold = None
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

        self._give(line, header, payload, len(members), done)

    def _give(
        self, line: _Line, header: BatchHeader, payload: bytes, appends: int, done: Done
    ) -> None:
        line.under_way += 1
        timers = self._timers()
        given_s = timers.time()

        def ended(outcome: AppendOutcome) -> None:
            done(outcome)
            line.under_way -= 1
            line.in_flight = max(appends + len(line.waiting), line.in_flight - 1)
            if line.under_way < UNDER_WAY_MAX:
                if line.is_complete or not self._cores_are_scarce():
                    self._send(line)
                elif line.hold is None:
                    round_s = timers.time() - given_s
                    hold_s = min(HOLD_ROUNDS * round_s, HOLD_S_MAX)
                    line.hold = timers.call_later(hold_s, self._held_back, line)
            self._forget_idle(line)

        self._host.append(line.shard, header, payload, None, ended)

    def _held_back(self, line: _Line) -> None:
        """Long enough."""
        self._send(line)
        self._forget_idle(line)

    def _forget_idle(self, line: _Line) -> None:
        is_idle = not line.under_way and line.hold is None
        if is_idle and self._lines.get(line.shard) is line:
            del self._lines[line.shard]


def _records_of(payload: bytes) -> list[bytes] | None:
    """The serialized records of a checked batch; None if there is more to it than these."""
    plain = plain_records(payload)
    if plain is not None:
        return plain
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

"""A real store on a real directory, and a few words to drive it with."""

import threading
from collections.abc import Callable
from pathlib import Path

from crc32c import crc32c

from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.durable import AdoptEpoch, AppendBatches, Outcome, Refused, Stored, StoreOperation
from peerd.core.ids import Epoch, Offset, ProducerId, ShardId
from peerd.storage import StorageFailed, StorageOptions, Store

DEADLINE_S = 30.0
SHARD = ShardId(7)
EPOCH = Epoch(1)


def placed(
    base: int,
    payload: bytes = b"payload",
    *,
    record_count: int = 1,
    producer: bytes = b"",
    first_sequence: int = 0,
    timestamp_ms: int = 0,
    forget_before: int = 0,
) -> PlacedBatch:
    """A batch as the edges make it: its CRC fits its payload."""
    header = BatchHeader(
        record_count=record_count,
        payload_crc=crc32c(payload),
        producer=ProducerId(producer),
        first_sequence=first_sequence,
        timestamp_ms=timestamp_ms,
        payload_bytes=len(payload),
        forget_before=Offset(forget_before),
    )
    return PlacedBatch(base=Offset(base), header=header, payload=payload)


def append(
    *batches: PlacedBatch, commit: int = 0, epoch: int = EPOCH, shard: int = SHARD
) -> AppendBatches:
    """Store `batches` at the end of `epoch`."""
    return AppendBatches(
        shard=ShardId(shard), epoch=Epoch(epoch), batches=batches, commit=Offset(commit)
    )


def adopt(epoch: int = EPOCH, begin: int = 0, shard: int = SHARD) -> AdoptEpoch:
    """Begin the segment `epoch` at `begin`."""
    return AdoptEpoch(shard=ShardId(shard), epoch=Epoch(epoch), begin=Offset(begin))


class Outcomes:
    """Takes what a store delivers, and waits for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.delivered: list[tuple[object, Outcome]] = []
        self.groups: list[int] = []
        self.failures: list[StorageFailed] = []

    def deliver(self, outcomes: list[tuple[object, Outcome]]) -> None:
        with self._changed:
            self.delivered.extend(outcomes)
            self.groups.append(len(outcomes))
            self._changed.notify_all()

    def on_failure(self, failure: StorageFailed) -> None:
        with self._changed:
            self.failures.append(failure)
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, DEADLINE_S), "deadline"

    def wait_for_count(self, count: int) -> None:
        self.wait_for(lambda: len(self.delivered) >= count or bool(self.failures))
        assert not self.failures, self.failures


class Held:
    """A commit hook that lets no commit through until told; what queues up meanwhile is a group."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.reached = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self._open.wait(DEADLINE_S)

    def release(self) -> None:
        self._open.set()


class Driven:
    """A store and what it delivered."""

    def __init__(self, directory: Path, options: StorageOptions, **hooks: object) -> None:
        self.directory = directory
        self.outcomes = Outcomes()
        self.store = Store.open(
            directory,
            options,
            deliver=self.outcomes.deliver,
            on_failure=self.outcomes.on_failure,
            **hooks,
        )

    def do(self, *operations: StoreOperation) -> list[Outcome]:
        """Submit, wait for and give the outcomes of these operations."""
        before = len(self.outcomes.delivered)
        for number, operation in enumerate(operations):
            self.store.submit(operation, before + number)
        self.outcomes.wait_for_count(before + len(operations))
        pairs = self.outcomes.delivered[before:]
        assert [token for token, _ in pairs] == list(range(before, before + len(operations)))
        return [outcome for _, outcome in pairs]

    def stored(self, *operations: StoreOperation) -> list[Stored]:
        """The same, and every operation must be taken."""
        outcomes = self.do(*operations)
        refused = [outcome.why for outcome in outcomes if isinstance(outcome, Refused)]
        assert not refused, refused
        return [outcome for outcome in outcomes if isinstance(outcome, Stored)]

    def finish_drops(self) -> None:
        """Until no dead batch is left; each operation is a commit that deletes some."""
        while self.store._writer._state.drops:
            self.do(append(epoch=1 << 40))

    def payloads(
        self, from_offset: int = 0, to_offset: int = 1 << 60, *, epoch: int = EPOCH
    ) -> list[bytes]:
        """Payloads of all batches of the range."""
        batches = self.store.read_batches(
            SHARD, Epoch(epoch), Offset(from_offset), Offset(to_offset), 1 << 60
        )
        return [bytes(batch.payload) for batch in batches]

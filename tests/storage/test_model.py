"""Property: a store is what the rules say, kept: like a plain model in memory, also reopened."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from peerd.core import durable
from peerd.core.batch import PlacedBatch
from peerd.core.check import InvariantViolation
from peerd.core.durable import (
    AdoptEpoch,
    AppendBatches,
    DropTrimmed,
    FillSealed,
    InstallTable,
    LearnMap,
    Outcome,
    PromiseEpoch,
    Stored,
    StoredShard,
    StoreOperation,
)
from peerd.core.ids import Epoch, Offset, ProducerId, ShardId
from peerd.core.producer import TableBatch, TableSnapshot, extended, merged
from peerd.storage import StorageOptions
from peerd.storage.examine import examine
from peerd.storage.verify import Depth
from tests.storage.driving import Driven, placed

SHARDS = (1, 2)
EPOCHS = range(1, 7)
# The same in every batch, so that whatever offset is drawn lies between two batches of every epoch.
RECORDS = 2
# A few batches, so that chunks end.
CHUNK_BYTES = 10_000


@dataclass
class Model:
    """State by the rules; batches in dicts; tables by the core's own functions."""

    shards: dict[int, StoredShard] = field(default_factory=dict)
    batches: dict[tuple[int, int], dict[int, PlacedBatch]] = field(default_factory=dict)
    tables: dict[int, TableSnapshot] = field(default_factory=dict)

    def state(self, shard: int) -> StoredShard:
        return self.shards.get(shard, StoredShard(shard=ShardId(shard)))

    def table(self, shard: int) -> TableSnapshot:
        return self.tables.get(shard, TableSnapshot(as_of=Offset(0)))

    def apply(self, operation: StoreOperation) -> Outcome:
        shard = operation.shard
        before = self.state(shard)
        outcome, after = durable.apply(before, operation, CHUNK_BYTES)
        if not isinstance(outcome, Stored):
            return outcome
        if after != before:
            self.shards[shard] = after
        if isinstance(operation, AppendBatches | FillSealed):
            kept = self.batches.setdefault((shard, operation.epoch), {})
            kept.update({batch.base: batch for batch in operation.batches})
        if isinstance(operation, DropTrimmed):
            self._move_table(before, durable.before_drop(before, operation), operation)
        for epoch in EPOCHS:
            segment = after.segments.get(Epoch(epoch))
            kept = self.batches.get((shard, epoch), {})
            for base in list(kept):
                if segment is None or not segment.first <= base < segment.end:
                    del kept[base]
        self._move_table(before, after, operation)
        return outcome

    def _move_table(
        self, before: StoredShard, after: StoredShard, operation: StoreOperation
    ) -> None:
        shard = after.shard
        table = self.table(shard)
        if isinstance(operation, InstallTable) and after.table_as_of > before.table_as_of:
            installed = operation.table
            if installed.since:
                joined = merged(table, installed)
                assert joined is not None
                installed = joined
            table = installed
        for part in durable.table_ranges(after, table.as_of, after.table_as_of):
            headers = [
                (batch.base, batch.header)
                for base, batch in sorted(self.batches[shard, part.epoch].items())
                if part.begin <= base < part.end
            ]
            table = extended(table, part.epoch, headers)
        assert table.as_of == after.table_as_of
        self.tables[shard] = table


@st.composite
def batch_runs(draw: st.DrawFn, begin: int) -> tuple[PlacedBatch, ...]:
    """A few consecutive batches from `begin` on."""
    batches = []
    for _ in range(draw(st.integers(0, 4))):
        size = draw(st.sampled_from((0, 1, 3_928, 3_929, 9_000)))
        batch = placed(
            begin,
            draw(st.binary(min_size=1, max_size=1)) * size,
            record_count=RECORDS,
            producer=draw(st.sampled_from((b"", b"a" * 16, b"b" * 16))),
            first_sequence=draw(st.integers(0, 100)),
            timestamp_ms=draw(st.integers(0, 50)),
            forget_before=draw(st.sampled_from((0, 0, max(0, begin - RECORDS), begin))),
        )
        batches.append(batch)
        begin = batch.end
    return tuple(batches)


@st.composite
def fills(draw: st.DrawFn, state: StoredShard, epoch: Epoch, end: int) -> FillSealed:
    """A copy that goes on or begins, sometimes below what is trimmed."""
    segment = state.segments.get(epoch)
    begin = segment.begin if segment else draw(st.sampled_from((0, end)))
    trimmed_to = draw(st.sampled_from((0, 0, begin, begin + 2 * RECORDS)))
    at = segment.end if segment else begin
    if segment is None or segment.seal is not None:
        bound = segment.seal if segment else trimmed_to
        at = max(at, min(trimmed_to, bound))
    batches = draw(batch_runs(at))
    last = batches[-1].end if batches else begin
    seal = segment.seal if segment and segment.seal is not None else last + 2 * RECORDS
    return FillSealed(
        shard=state.shard,
        epoch=epoch,
        begin=Offset(begin),
        end=Offset(seal),
        open_epoch=Epoch(epoch + 1),
        batches=batches,
        trimmed_to=Offset(trimmed_to),
    )


@st.composite
def operations(draw: st.DrawFn, model: Model) -> StoreOperation:
    """An operation that fits the state often enough to get somewhere, and sometimes does not."""
    shard = ShardId(draw(st.sampled_from(SHARDS)))
    state = model.state(shard)
    adopted = state.segments.get(state.adopted)
    end = adopted.end if adopted else 0
    epoch = Epoch(draw(st.sampled_from(EPOCHS)))
    match draw(st.sampled_from("aaaaaadpmffttxx")):
        case "a":
            at = end + draw(st.sampled_from((0, 0, 0, 0, 0, RECORDS)))
            batches = draw(batch_runs(at))
            commit = draw(st.sampled_from((0, end, batches[-1].end if batches else end)))
            return AppendBatches(
                shard=shard,
                epoch=draw(st.sampled_from((state.adopted or epoch, epoch))),
                batches=batches,
                commit=Offset(commit),
            )
        case "d":
            return AdoptEpoch(
                shard=shard, epoch=epoch, begin=Offset(draw(st.sampled_from((0, end))))
            )
        case "p":
            return PromiseEpoch(shard=shard, fence=epoch, epoch=state.adopted)
        case "m":
            seals = [
                (segment.epoch, draw(st.sampled_from((segment.begin, segment.commit, segment.end))))
                for segment in state.segments.values()
                if draw(st.booleans())
            ]
            dead = [epoch] if draw(st.booleans()) else []
            return LearnMap(
                shard=shard, open_epoch=epoch, seals=tuple(seals), dead=tuple(map(Epoch, dead))
            )
        case "f":
            return draw(fills(state, epoch, end))
        case "x":
            places = [
                place
                for segment in state.segments.values()
                for place in (segment.begin, segment.commit, segment.end, segment.end + RECORDS)
            ]
            trimmed_to = draw(st.sampled_from((0, *places)))
            return DropTrimmed(shard=shard, open_epoch=epoch, trimmed_to=Offset(trimmed_to))
        case _:
            as_of = state.table_as_of + RECORDS * draw(st.integers(0, 3))
            entry = TableBatch(
                draw(st.integers(0, 9)), RECORDS, epoch, Offset(max(0, as_of - RECORDS)), 7
            )
            table = TableSnapshot(
                as_of=Offset(as_of),
                timestamp_ms=draw(st.integers(0, 99)),
                producers={ProducerId(b"a" * 16): (entry,)},
                since=draw(st.sampled_from((Offset(0), state.table_as_of))),
            )
            return InstallTable(shard=shard, table=table)


def submit_as_one_group(driven: Driven, model: Model, group: list[StoreOperation]) -> None:
    """All of the group in one transaction: the writer is kept out while it is queued."""
    expected = [model.apply(operation) for operation in group]
    before = len(driven.outcomes.delivered)
    with driven.store._writer._changed:
        for operation in group:
            driven.store.submit(operation, None)
    driven.outcomes.wait_for_count(before + len(group))
    assert [outcome for _, outcome in driven.outcomes.delivered[before:]] == expected


def assert_same(driven: Driven, model: Model, *, opened: bool) -> None:
    if opened:
        assert driven.store.shards == model.shards
    for shard in SHARDS:
        assert driven.store.read_table(ShardId(shard)) == model.table(shard)
        for epoch in EPOCHS:
            kept = model.batches.get((shard, epoch), {})
            read = driven.store.read_batches(
                ShardId(shard), Epoch(epoch), Offset(0), Offset(1 << 60), 1 << 40
            )
            assert read == [batch for _, batch in sorted(kept.items())]
            stored = model.state(shard).segments.get(Epoch(epoch))
            cut = driven.store.find_cut(
                ShardId(shard), Epoch(epoch), before=Offset(1 << 60), keep_bytes=0
            )
            if stored is None:
                assert cut is None
            else:
                assert cut is not None
                assert stored.first <= cut.offset <= stored.end
                behind = sum(
                    batch.header.payload_bytes for base, batch in kept.items() if base >= cut.offset
                )
                # A cut tail is counted as nothing; then too little is counted, never too much.
                assert cut.kept_bytes == stored.uncut_bytes <= max(behind, CHUNK_BYTES)


@settings(max_examples=40)
@given(st.data())
def test_a_store_is_what_the_rules_say_kept(data):
    model = Model()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "store"
        for _ in range(2):
            driven = Driven(directory, StorageOptions(chunk_bytes=CHUNK_BYTES))
            assert_same(driven, model, opened=True)
            for _ in range(data.draw(st.integers(1, 6))):
                group = []
                planned = Model(dict(model.shards), {k: dict(v) for k, v in model.batches.items()})
                planned.tables = dict(model.tables)
                for _ in range(data.draw(st.integers(1, 4))):
                    operation = data.draw(operations(planned))
                    try:
                        planned.apply(operation)
                    except InvariantViolation:
                        continue  # it would stop the process; told in test_directory.py
                    group.append(operation)
                submit_as_one_group(driven, model, group)
                assert_same(driven, model, opened=False)
            assert driven.store.close()
        driven = Driven(directory, StorageOptions())
        assert_same(driven, model, opened=True)
        assert driven.store.close()
        assert examine(directory, Depth.FULL).sound

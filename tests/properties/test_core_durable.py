"""Whatever is asked of a store in whatever order, its state keeps its invariants."""

from hypothesis import given, settings
from hypothesis import strategies as st

from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.check import InvariantViolation
from peerd.core.durable import (
    AdoptEpoch,
    AppendBatches,
    FillSealed,
    InstallTable,
    LearnMap,
    PromiseEpoch,
    Refused,
    StoredShard,
    StoreOperation,
)
from peerd.core.ids import Epoch, Offset, ProducerId, ShardId
from peerd.core.producer import empty_table, extended
from peerd.testing.sim.store import SimStore

SHARD = ShardId(1)
epochs = st.integers(1, 6).map(Epoch)
offsets = st.integers(0, 8).map(Offset)


@st.composite
def batches(draw: st.DrawFn) -> tuple[PlacedBatch, ...]:
    base, found = draw(offsets), []
    for _ in range(draw(st.integers(0, 2))):
        count = draw(st.integers(1, 3))
        header = BatchHeader(
            record_count=count,
            payload_crc=0,
            producer=ProducerId(bytes([draw(st.integers(1, 2))]) * 16),
            first_sequence=base,
            payload_bytes=1,
        )
        found.append(PlacedBatch(base=base, header=header, payload=b"x"))
        base = Offset(base + count)
    return tuple(found)


operations: st.SearchStrategy[StoreOperation] = st.one_of(
    st.builds(AdoptEpoch, shard=st.just(SHARD), epoch=epochs, begin=offsets),
    st.builds(AppendBatches, shard=st.just(SHARD), epoch=epochs, batches=batches(), commit=offsets),
    st.builds(PromiseEpoch, shard=st.just(SHARD), fence=epochs, epoch=epochs),
    st.builds(
        LearnMap,
        shard=st.just(SHARD),
        open_epoch=epochs,
        seals=st.lists(st.tuples(epochs, offsets), max_size=2).map(tuple),
        dead=st.lists(epochs, max_size=1).map(tuple),
    ),
    st.builds(
        FillSealed,
        shard=st.just(SHARD),
        epoch=epochs,
        begin=offsets,
        end=offsets,
        open_epoch=epochs,
        batches=batches(),
    ),
    st.just(InstallTable(shard=SHARD, table=empty_table())),
)


def step(store: SimStore, operation: StoreOperation) -> None:
    """One operation; what stops a real process leaves the state as it was."""
    before = store.state
    store.submit(operation)
    try:
        (outcome,) = store.commit()
    except InvariantViolation:
        assert store.state is before
        return
    after = store.state
    assert outcome.state is after
    if isinstance(outcome, Refused):
        assert after is before
    assert after.promised >= before.promised
    assert after.adopted >= before.adopted
    assert after.table_as_of >= before.table_as_of


def check(state: StoredShard) -> None:
    assert state.adopted <= state.promised
    for epoch, segment in state.segments.items():
        assert segment.epoch == epoch
        assert segment.begin <= segment.commit <= segment.end
        assert segment.seal is None or segment.end <= segment.seal


@settings(max_examples=400)
@given(st.lists(operations, max_size=25))
def test_the_state_of_a_store_keeps_its_invariants(sequence):
    store = SimStore(SHARD)
    for operation in sequence:
        step(store, operation)
        check(store.state)
        for epoch, segment in store.state.segments.items():
            content = store.read(epoch, segment.begin, segment.end)
            reached = content[-1].end if content else segment.begin
            assert reached >= segment.end or segment.seal is not None


@settings(max_examples=200)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=12), st.data())
def test_the_durable_table_is_what_the_log_below_it_says(counts, data):
    store, base = SimStore(SHARD), Offset(0)
    store.submit(AdoptEpoch(shard=SHARD, epoch=Epoch(1), begin=base))
    headers = []
    for number, count in enumerate(counts):
        header = BatchHeader(
            record_count=count,
            payload_crc=0,
            producer=ProducerId(bytes([1 + number % 2]) * 16),
            first_sequence=base,
            timestamp_ms=number,
            payload_bytes=1,
        )
        headers.append((base, header))
        batch = PlacedBatch(base=base, header=header, payload=b"x")
        ends = [Offset(0), *(Offset(at + each.record_count) for at, each in headers[:-1])]
        commit = data.draw(st.sampled_from(ends))
        store.submit(AppendBatches(shard=SHARD, epoch=Epoch(1), batches=(batch,), commit=commit))
        base = batch.end
    store.commit()
    as_of = store.state.table_as_of
    below = [(at, each) for at, each in headers if at < as_of]
    assert store.table() == extended(empty_table(), Epoch(1), below)

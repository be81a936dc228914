"""What a store takes, keeps over a restart, and gives back."""

import itertools
import random
import statistics
import time

import pytest

from peerd.core.durable import (
    FillSealed,
    InstallTable,
    LearnMap,
    PromiseEpoch,
    Refused,
    Stored,
    StoredShard,
    TableRange,
)
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.core.limits import PRODUCER_WINDOW_BATCHES
from peerd.core.producer import TableBatch, TableSnapshot, extended
from peerd.storage import Corrupt, StorageOptions, WriterOverloaded, store, writer
from peerd.storage.layout import PART_BYTES_MAX
from tests.storage.driving import EPOCH, SHARD, Held, adopt, append, placed

PRODUCER = b"p" * 16
OTHER = b"q" * 16

# Around each place where a payload needs one part more.
SIZES = [0, 1, 3_927, 3_928, 3_929, 7_928, 7_929, 65_536, 1 << 20]


def sealed_by_map(
    *seals: tuple[int, int], dead: tuple[int, ...] = (), open_epoch: int = 9
) -> LearnMap:
    return LearnMap(
        shard=SHARD,
        open_epoch=Epoch(open_epoch),
        seals=tuple((Epoch(epoch), Offset(seal)) for epoch, seal in seals),
        dead=tuple(Epoch(epoch) for epoch in dead),
    )


def fill(*batches, epoch: int, begin: int, end: int, open_epoch: int = 9) -> FillSealed:
    return FillSealed(
        shard=SHARD,
        epoch=Epoch(epoch),
        begin=Offset(begin),
        end=Offset(end),
        open_epoch=Epoch(open_epoch),
        batches=batches,
    )


# ------------------------------------------------------------------ batches
def test_batches_of_any_size_come_back_byte_for_byte_after_a_restart(open_store):
    payloads = [random.Random(size).randbytes(size) for size in SIZES]
    driven = open_store()
    driven.stored(adopt(), append(*(placed(base, data) for base, data in enumerate(payloads))))
    assert driven.payloads() == payloads
    assert driven.store.close()

    again = open_store()
    assert again.payloads() == payloads
    assert again.store.shards == {
        SHARD: StoredShard(
            shard=SHARD,
            promised=EPOCH,
            adopted=EPOCH,
            segments={EPOCH: again.store.shards[SHARD].segments[EPOCH]},
        )
    }
    segment = again.store.shards[SHARD].segments[EPOCH]
    assert (segment.begin, segment.end, segment.commit) == (0, len(SIZES), 0)


def test_a_read_begins_with_the_batch_that_contains_the_offset(open_store):
    driven = open_store()
    driven.stored(
        adopt(begin=10),
        append(
            placed(10, b"a" * 9_000, record_count=5),
            placed(15, b"b", record_count=1),
            placed(16, b"c" * 5_000, record_count=100),
        ),
    )
    for offset, first in [(0, 10), (10, 10), (12, 10), (14, 10), (15, 15), (16, 16), (115, 16)]:
        batches = driven.store.read_batches(SHARD, EPOCH, Offset(offset), Offset(200), 1)
        assert [batch.base for batch in batches] == [first], offset
    assert driven.store.read_batches(SHARD, EPOCH, Offset(116), Offset(200), 1) == []
    assert driven.store.read_batches(SHARD, EPOCH, Offset(10), Offset(10), 1) == []
    assert driven.store.read_batches(SHARD, Epoch(2), Offset(10), Offset(20), 1) == []
    assert driven.store.read_batches(ShardId(8), EPOCH, Offset(10), Offset(20), 1) == []


def test_a_read_is_bounded_in_bytes_and_by_its_end(open_store):
    driven = open_store()
    driven.stored(adopt(), append(*(placed(base, b"x" * 1_000) for base in range(10))))

    def bases(from_offset, to_offset, bytes_max):
        batches = driven.store.read_batches(
            SHARD, EPOCH, Offset(from_offset), Offset(to_offset), bytes_max
        )
        return [batch.base for batch in batches]

    assert bases(0, 100, 3_000) == [0, 1, 2]
    assert bases(0, 100, 2_999) == [0, 1]
    assert bases(7, 9, 1 << 20) == [7, 8]


def test_shards_and_epochs_do_not_mix(open_store):
    driven = open_store()
    for shard in (6, 7, 8):
        for epoch in (1, 2):
            driven.stored(
                adopt(epoch, begin=epoch * 10, shard=shard),
                append(placed(epoch * 10, f"{shard}/{epoch}".encode()), epoch=epoch, shard=shard),
            )
    assert driven.payloads(epoch=1) == [b"7/1"]
    assert driven.payloads(epoch=2) == [b"7/2"]


def test_headers_are_read_without_payloads_and_in_slices(open_store, monkeypatch):
    monkeypatch.setattr(store, "HEADERS_MAX", 3)
    driven = open_store()
    batches = [placed(base * 2, b"x" * 9_000, record_count=2) for base in range(5)]
    driven.stored(adopt(), append(*batches))
    headers = driven.store.read_headers(SHARD, EPOCH, Offset(3), Offset(99))
    assert headers == [(batch.base, batch.header) for batch in batches[1:4]]


def test_time_is_found_by_halving(open_store):
    driven = open_store()
    times = [100, 100, 200, 300, 300, 400]
    driven.stored(
        adopt(begin=50),
        append(
            *(
                placed(50 + 3 * number, record_count=3, timestamp_ms=time_ms)
                for number, time_ms in enumerate(times)
            )
        ),
    )
    for time_ms, offset in [(0, 50), (100, 50), (101, 56), (300, 59), (400, 65), (401, 68)]:
        assert driven.store.find_time(SHARD, EPOCH, time_ms) == offset
    assert driven.store.find_time(SHARD, Epoch(2), 0) is None


# ------------------------------------------------------------------ order in the queue
def test_what_queued_before_a_promise_is_in_its_answer_and_nothing_after_it_is_stored(open_store):
    held = Held()
    driven = open_store(before_commit=held)
    promise = PromiseEpoch(shard=SHARD, fence=Epoch(5), epoch=EPOCH)
    operations = [adopt(), append(placed(0)), append(placed(1)), promise, append(placed(2))]
    for token, operation in enumerate(operations):
        driven.store.submit(operation, token)
    held.release()
    driven.outcomes.wait_for_count(len(operations))

    assert [token for token, _ in driven.outcomes.delivered] == [0, 1, 2, 3, 4]
    answers = [outcome for _, outcome in driven.outcomes.delivered]
    assert [type(answer) for answer in answers] == [Stored] * 4 + [Refused]
    assert answers[3].state.segments[EPOCH].end == 2
    assert answers[3].state.promised == 5
    assert len(driven.payloads()) == 2


def test_all_that_is_queued_is_one_commit(open_store):
    held = Held()
    driven = open_store(before_commit=held)
    driven.store.submit(adopt(), "first")
    assert held.reached.wait(30)
    for number in range(50):
        driven.store.submit(append(placed(number)), number)
    held.release()
    driven.outcomes.wait_for_count(51)
    assert driven.outcomes.groups == [1, 50]


def test_a_commit_is_bounded_in_bytes(open_store):
    held = Held()
    driven = open_store(options=StorageOptions(commit_bytes_max=11_000), before_commit=held)
    driven.store.submit(adopt(), "first")
    assert held.reached.wait(30)
    for number in range(5):
        driven.store.submit(append(placed(number, b"x" * 4_000)), number)
    held.release()
    driven.outcomes.wait_for_count(6)
    assert driven.outcomes.groups == [1, 2, 2, 1]


def test_nothing_is_delivered_before_its_commit(open_store):
    held = Held()
    driven = open_store(before_commit=held)
    driven.store.submit(adopt(), "first")
    assert held.reached.wait(30)
    assert driven.outcomes.delivered == []
    assert driven.store.read_batches(SHARD, EPOCH, Offset(0), Offset(9), 1) == []
    held.release()
    driven.outcomes.wait_for_count(1)


def test_the_queue_is_bounded_but_promises_pass(open_store):
    held = Held()
    driven = open_store(options=StorageOptions(queue_bytes_max=20_000), before_commit=held)
    driven.store.submit(adopt(), "first")
    assert held.reached.wait(30)
    driven.store.submit(append(placed(0, b"x" * 15_000)), "taken")
    with pytest.raises(WriterOverloaded) as refused:
        driven.store.submit(append(placed(1, b"x" * 15_000)), "refused")
    assert refused.value.queued_bytes > 15_000
    driven.store.submit(PromiseEpoch(shard=SHARD, fence=Epoch(3), epoch=EPOCH), "promise")
    held.release()
    driven.outcomes.wait_for_count(3)
    tokens = [token for token, _ in driven.outcomes.delivered]
    assert tokens == ["first", "taken", "promise"]
    assert driven.store.queued_bytes == 0


def test_a_batch_larger_than_the_queue_is_taken_alone(open_store):
    driven = open_store(options=StorageOptions(queue_bytes_max=1_000, commit_bytes_max=1_000))
    driven.stored(adopt())
    driven.stored(append(placed(0, b"x" * 100_000)))
    assert driven.payloads() == [b"x" * 100_000]


def test_promises_flooding_the_queue_are_bounded_too(open_store, monkeypatch):
    monkeypatch.setattr(writer, "CONTROL_BYTES_MAX", 2_000)
    held = Held()
    driven = open_store(options=StorageOptions(queue_bytes_max=1_000), before_commit=held)
    driven.store.submit(adopt(), 0)
    assert held.reached.wait(30)
    promise = PromiseEpoch(shard=SHARD, fence=Epoch(3), epoch=EPOCH)
    for token in range(1, 6):
        driven.store.submit(promise, token)
    with pytest.raises(WriterOverloaded):
        driven.store.submit(promise, 6)
    held.release()
    driven.outcomes.wait_for_count(6)


def test_refused_operations_cost_no_commit(open_store):
    commits = []
    driven = open_store(before_commit=lambda: commits.append(1))
    outcomes = driven.do(append(placed(0)))
    assert isinstance(outcomes[0], Refused)
    assert commits == []
    assert driven.store.read_batches(SHARD, EPOCH, Offset(0), Offset(9), 1) == []


# ------------------------------------------------------------------ the committed map
def test_the_map_drops_tails_and_dead_epochs(open_store):
    driven = open_store()
    driven.stored(
        adopt(1),
        append(*(placed(base, b"x" * 5_000) for base in range(10)), epoch=1, commit=4),
        adopt(2, begin=4),
        append(*(placed(base) for base in range(4, 9)), epoch=2),
        adopt(3, begin=4),
        append(placed(4, b"third"), epoch=3),
    )
    driven.stored(sealed_by_map((1, 4), dead=(2,)))
    assert len(driven.payloads(epoch=1)) == 4
    assert driven.payloads(epoch=2) == []
    assert driven.payloads(epoch=3) == [b"third"]
    assert driven.store.close()

    state = open_store().store.shards[SHARD]
    assert sorted(state.segments) == [1, 3]
    assert (state.segments[Epoch(1)].end, state.segments[Epoch(1)].seal) == (4, 4)
    assert (state.promised, state.adopted) == (9, 3)


def test_dead_batches_are_deleted_slice_by_slice_also_after_a_restart(open_store, monkeypatch):
    monkeypatch.setattr("peerd.storage.group.DROP_ROWS_PER_COMMIT", 8)
    commits = []
    driven = open_store(before_commit=lambda: commits.append(1))
    driven.stored(adopt(), append(*(placed(base, b"x" * 20_000) for base in range(20))))
    driven.stored(sealed_by_map((1, 2)))
    assert driven.store.close()

    again = open_store(before_commit=lambda: commits.append(1))
    again.stored(adopt(10, begin=2))
    rows_left = 20 * 6
    while rows_left > 2 * 6:
        again.stored(append(epoch=10))
        with again.store._environment.read() as transaction:
            tables = again.store._environment.tables
            rows = transaction.stat(tables.batches)["entries"]
            pending = transaction.stat(tables.drops)["entries"]
        assert rows <= rows_left
        rows_left = rows
    assert len(commits) >= 18 * 6 // 8
    again.finish_drops()
    assert rows_left == 2 * 6
    assert pending in {0, 1}


def test_a_sealed_segment_is_filled_in_order_and_goes_on_after_a_restart(open_store):
    batches = [placed(base, f"{base}".encode() * 1_000) for base in range(100, 110)]
    driven = open_store()
    driven.stored(fill(*batches[:4], epoch=3, begin=100, end=110))
    skipped = driven.do(fill(*batches[5:], epoch=3, begin=100, end=110))
    assert isinstance(skipped[0], Refused)
    assert driven.store.close()

    again = open_store()
    segment = again.store.shards[SHARD].segments[Epoch(3)]
    assert (segment.begin, segment.end, segment.seal) == (100, 104, 110)
    again.stored(fill(*batches[4:], epoch=3, begin=100, end=110))
    assert again.payloads(epoch=3) == [batch.payload for batch in batches]
    assert isinstance(again.do(adopt(3, begin=100))[0], Refused)  # the map fences, too


def test_a_segment_filled_over_one_that_is_being_dropped_keeps_its_batches(open_store, monkeypatch):
    monkeypatch.setattr("peerd.storage.group.DROP_ROWS_PER_COMMIT", 1)
    held = Held()
    driven = open_store(before_commit=held)
    old = [placed(base, b"old" * 2_000) for base in range(50)]
    new = [placed(base, b"new" * 2_000, record_count=2) for base in range(0, 50, 2)]
    for token, operation in enumerate(
        [
            adopt(1),
            append(*old, epoch=1),
            sealed_by_map(dead=(1,)),
            fill(*new, epoch=1, begin=0, end=50),
        ]
    ):
        driven.store.submit(operation, token)
    held.release()
    driven.outcomes.wait_for_count(4)
    driven.finish_drops()
    assert driven.payloads(epoch=1) == [batch.payload for batch in new]


# ------------------------------------------------------------------ producers
def produced(base: int, sequence: int, count: int = 1, producer: bytes = PRODUCER):
    return placed(
        base,
        record_count=count,
        producer=producer,
        first_sequence=sequence,
        timestamp_ms=1_000 + base,
    )


def test_the_table_covers_exactly_what_is_below_the_commit_offset(open_store):
    driven = open_store()
    driven.stored(adopt(), append(produced(0, 0, 3), produced(3, 3), commit=0))
    assert driven.store.read_table(SHARD) == TableSnapshot(as_of=Offset(0))
    driven.stored(append(produced(4, 0, 2, OTHER), commit=4))
    first, second = (
        TableBatch(0, 3, EPOCH, Offset(0), 1_000),
        TableBatch(3, 1, EPOCH, Offset(3), 1_003),
    )
    table = TableSnapshot(
        as_of=Offset(4), timestamp_ms=1_003, producers={PRODUCER: (first, second)}
    )
    assert driven.store.read_table(SHARD) == table
    assert driven.store.close()

    again = open_store()
    assert again.store.read_table(SHARD) == table
    again.stored(append(commit=6))
    third = TableBatch(0, 2, EPOCH, Offset(4), 1_004)
    assert again.store.read_table(SHARD) == TableSnapshot(
        as_of=Offset(6), timestamp_ms=1_004, producers={PRODUCER: (first, second), OTHER: (third,)}
    )


def test_the_table_keeps_a_window_of_each_producer(open_store):
    driven = open_store()
    count = PRODUCER_WINDOW_BATCHES + 5
    driven.stored(adopt())
    for base in range(count):
        driven.stored(append(produced(base, base), commit=base + 1))
    row = driven.store.read_table(SHARD).producers[PRODUCER]
    assert [entry.first_sequence for entry in row] == list(range(5, count))


def test_an_installed_table_replaces_or_brings_forward_the_own_one(open_store):
    driven = open_store()
    driven.stored(adopt(), append(produced(0, 0), produced(1, 0, 1, OTHER), commit=2))
    entry = TableBatch(1, 4, Epoch(4), Offset(10), 5)
    changes = TableSnapshot(
        as_of=Offset(14), timestamp_ms=2_000, producers={PRODUCER: (entry,)}, since=Offset(2)
    )
    driven.stored(InstallTable(shard=SHARD, table=changes))
    table = driven.store.read_table(SHARD)
    assert (table.as_of, table.timestamp_ms) == (14, 2_000)
    assert table.producers[PRODUCER] == (entry,)
    assert [batch.base for batch in table.producers[OTHER]] == [1]

    whole = TableSnapshot(as_of=Offset(20), timestamp_ms=3_000, producers={OTHER: (entry,)})
    driven.stored(InstallTable(shard=SHARD, table=whole))
    assert driven.store.read_table(SHARD) == whole
    assert driven.store.close()
    assert open_store().store.read_table(SHARD) == whole


def test_an_installed_table_goes_on_over_what_is_stored_beyond_it(open_store):
    driven = open_store()
    driven.stored(adopt(5, begin=20), append(produced(20, 7), produced(21, 8), epoch=5, commit=22))
    assert driven.store.read_table(SHARD).as_of == 0  # the past is not known here
    before = TableBatch(6, 1, Epoch(4), Offset(19), 900)
    table = TableSnapshot(as_of=Offset(20), producers={PRODUCER: (before,)})
    driven.stored(InstallTable(shard=SHARD, table=table))
    read = driven.store.read_table(SHARD)
    assert (read.as_of, read.complete) == (22, True)
    assert [entry.first_sequence for entry in read.producers[PRODUCER]] == [6, 7, 8]


def test_a_table_is_loaded_over_ranges_that_are_not_committed(open_store):
    driven = open_store()
    batches = [produced(base, base) for base in range(6)]
    driven.stored(adopt(), append(*batches, commit=2))
    ranges = (TableRange(epoch=EPOCH, begin=Offset(0), end=Offset(5)),)

    def load(as_of, **how):
        asked = {"from_store": True, "or_later": False, "ranges": ranges} | how
        return driven.store.load_table(SHARD, as_of=Offset(as_of), **asked)

    everything = extended(
        TableSnapshot(as_of=Offset(0)), EPOCH, [(batch.base, batch.header) for batch in batches[:5]]
    )
    assert load(5) == everything
    assert load(1, ranges=()) is None
    assert load(1, ranges=(), or_later=True) == driven.store.read_table(SHARD)
    lost = load(
        5, from_store=False, ranges=(TableRange(epoch=EPOCH, begin=Offset(3), end=Offset(5)),)
    )
    assert (lost.as_of, lost.complete) == (5, False)
    assert [entry.base for entry in lost.producers[PRODUCER]] == [3, 4]


def test_producers_of_other_shards_are_not_touched(open_store):
    driven = open_store()
    for shard in (6, 7, 8):
        driven.stored(adopt(shard=shard), append(produced(0, 0, shard), commit=shard, shard=shard))
    whole = TableSnapshot(as_of=Offset(50), producers={})
    driven.stored(InstallTable(shard=SHARD, table=whole))
    assert driven.store.read_table(SHARD) == whole
    for shard in (6, 8):
        row = driven.store.read_table(ShardId(shard)).producers[PRODUCER]
        assert [entry.record_count for entry in row] == [shard]


# ------------------------------------------------------------------ size
def test_the_environment_syncs_data_and_meta_pages_and_maps_nothing_writable(open_store):
    flags = open_store().store._environment._lmdb.flags()
    assert (flags["sync"], flags["metasync"]) == (True, True)
    assert (flags["writemap"], flags["map_async"]) == (False, False)


def test_no_value_needs_two_contiguous_pages(open_store):
    driven = open_store()
    driven.stored(adopt(), append(*(placed(base, b"x" * size) for base, size in enumerate(SIZES))))
    driven.stored(append(*(produced(len(SIZES) + base, base) for base in range(100)), commit=109))
    environment = driven.store._environment
    with environment.read() as transaction:
        for table in (environment.tables.batches, environment.tables.producers):
            values = [len(value) for _, value in transaction.cursor(table)]
            assert max(values) <= PART_BYTES_MAX
            stat = transaction.stat(table)
            assert stat["overflow_pages"] == sum(size > 2_000 for size in values)


def test_the_map_grows_while_readers_read(open_store, monkeypatch):
    monkeypatch.setattr("peerd.storage.environment.MAP_BYTES_MIN", 1 << 20)
    driven = open_store(options=StorageOptions(commit_bytes_max=256 << 10))
    sizes = {driven.store._environment._map_bytes}
    driven.stored(adopt())
    payload = b"x" * 300_000
    for base in range(60):
        driven.stored(append(placed(base, payload)))
        sizes.add(driven.store._environment._map_bytes)
        batches = driven.store.read_batches(SHARD, EPOCH, Offset(base), Offset(base + 1), 1)
        assert batches[0].payload == payload
    assert len(sizes) > 1
    assert driven.store.space().stored_bytes > 60 * 300_000


def test_reads_of_what_is_absent_are_not_corrupt(open_store):
    driven = open_store()
    assert driven.payloads() == []
    assert driven.store.read_headers(SHARD, EPOCH, Offset(0), Offset(1)) == []
    assert driven.store.read_table(SHARD) == TableSnapshot(as_of=Offset(0))
    driven.stored(adopt())
    try:
        assert driven.payloads() == []
    except Corrupt:
        pytest.fail("nothing is stored, so nothing is damaged")


def test_a_store_that_has_aged_reuses_its_file_and_commits_as_fast_as_a_new_one(
    open_store, monkeypatch
):
    cpu_s = []
    driven = open_store(before_commit=lambda: cpu_s.append(time.thread_time()))
    draw = random.Random(1)
    payload = draw.randbytes(65_536)

    def commit_cpu_ms(shard: int) -> float:
        driven.stored(adopt(shard=shard))
        cpu_s.clear()
        for base in range(40):
            driven.stored(append(placed(base, payload), shard=shard))
        return 1_000 * statistics.median(b - a for a, b in itertools.pairwise(cpu_s))

    fresh_ms = commit_cpu_ms(1)
    shards = list(range(100, 140))
    driven.stored(*(adopt(shard=shard) for shard in shards))
    for base in range(20):
        draw.shuffle(shards)
        sizes = [draw.randrange(100, 60_000) for _ in shards]
        driven.stored(
            *(
                append(placed(base, draw.randbytes(size)), shard=shard)
                for shard, size in zip(shards, sizes, strict=True)
            )
        )
    full_bytes = driven.store._environment.file_bytes()
    for shard in shards[::2]:
        driven.stored(LearnMap(shard=ShardId(shard), open_epoch=Epoch(2), dead=(EPOCH,)))
    driven.finish_drops()

    assert commit_cpu_ms(2) < 5 * fresh_ms + 1
    assert driven.store._environment.file_bytes() == full_bytes


def test_rows_of_forgotten_producers_count_for_nothing_and_are_deleted_by_and_by(
    open_store, monkeypatch
):
    monkeypatch.setattr("peerd.storage.group.SWEEP_ROWS_PER_COMMIT", 2)
    names = [bytes([number]) * 16 for number in range(1, 7)]
    driven = open_store()
    driven.stored(adopt(shard=1))
    for base, name in enumerate(names):
        driven.stored(append(placed(base, producer=name), commit=base + 1, shard=1))
    rows = []
    for base in range(6, 10):
        batch = placed(base, producer=names[5], first_sequence=base, forget_before=base - 2)
        driven.stored(append(batch, commit=base + 1, shard=1))
        table = driven.store.read_table(ShardId(1))
        assert set(table.producers) == set(names[base - 2 :]) | {names[5]}
        assert table.forgotten_before == base - 2
        with driven.store._environment.read() as transaction:
            rows.append(transaction.stat(driven.store._environment.tables.producers)["entries"])
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < 6
    before = driven.store.read_table(ShardId(1))
    assert driven.store.close()
    assert open_store().store.read_table(ShardId(1)) == before

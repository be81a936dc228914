"""A shard whose log was deleted: its space comes back by and by, and nothing of it ever again."""

from itertools import pairwise

from peerd.core.durable import DropShard, Refused
from peerd.core.ids import DELETED_EPOCH, ShardId
from peerd.storage.group import DROP_ROWS_PER_COMMIT
from tests.storage.driving import SHARD, adopt, append, placed

OTHER = 8


def filled(open_store, count: int, **hooks: object):
    driven = open_store(**hooks)
    driven.stored(adopt(), adopt(shard=OTHER))
    for base in range(count):
        driven.stored(
            append(
                placed(base, b"x" * 9_000, producer=b"p" * 16, first_sequence=base),
                commit=base + 1,
            )
        )
    return driven


def rows(driven) -> tuple[int, int]:
    """Rows of batches and of producers."""
    tables = driven.store._environment.tables
    with driven.store._environment.read() as transaction:
        return tuple(
            int(transaction.stat(table)["entries"]) for table in (tables.batches, tables.producers)
        )


def test_its_rows_go_with_the_commits_that_follow(open_store):
    count = DROP_ROWS_PER_COMMIT
    watched, left = [], []

    def look() -> None:
        left.extend(rows(each)[0] for each in watched)

    driven = filled(open_store, count, before_commit=look)
    batches, producers = rows(driven)
    assert (batches, producers) == (3 * count, 1)
    watched.append(driven)
    (dropped,) = driven.stored(DropShard(shard=SHARD))
    assert dropped.state.promised == DELETED_EPOCH
    assert not dropped.state.segments
    driven.finish_drops()
    assert rows(driven) == (0, 0)
    # Before each commit, as the one before left it: the writer goes on by itself meanwhile.
    went = [before - after for before, after in pairwise((*left, 0))]
    assert max(went) == DROP_ROWS_PER_COMMIT
    driven.stored(append(placed(0), shard=OTHER))


def test_as_much_goes_as_is_written_beside_it(open_store, monkeypatch):
    driven = filled(open_store, 40)
    before, _ = rows(driven)
    monkeypatch.setattr("peerd.storage.group.DROP_ROWS_PER_COMMIT", 0)
    driven.stored(DropShard(shard=SHARD))
    assert rows(driven)[0] == before
    driven.stored(append(placed(0, b"x" * 40_000), shard=OTHER))
    assert rows(driven)[0] == before
    monkeypatch.undo()
    driven.finish_drops()
    assert 10 <= rows(driven)[0] < 20


def test_a_restart_keeps_the_promise_and_goes_on_dropping(open_store):
    driven = filled(open_store, 40)
    driven.stored(DropShard(shard=SHARD))
    driven.store.close()
    again = open_store()
    assert again.store.shards[SHARD].promised == DELETED_EPOCH
    (outcome,) = again.do(adopt(epoch=9))
    assert isinstance(outcome, Refused)
    again.finish_drops()
    assert rows(again) == (0, 0)
    assert not again.store.shards[SHARD].segments


def test_a_shard_that_was_never_here_can_be_deleted_too(open_store):
    driven = open_store()
    (dropped,) = driven.stored(DropShard(shard=ShardId(99)))
    assert dropped.state.promised == DELETED_EPOCH
    driven.store.close()
    assert open_store().store.shards[ShardId(99)].promised == DELETED_EPOCH

"""Retention: what is asked of whom, and that never more goes than the policy lets go."""

from dataclasses import dataclass, field

import pytest

from las.core import snapshot
from las.core.apply import apply
from las.core.commands import (
    FenceSegment,
    MarkAges,
    PrepareSegment,
    SegmentOpened,
    SetRetention,
    TrimShard,
)
from las.core.state import AGE_MARKS_MAX, ClusterState
from las.daemon.clock import CommittedClock
from las.daemon.retention import CLOCK_COMMIT_MS, Retention
from las.daemon.trimmer import CannotTell, FoundCut, Trimmer
from peerd.core.chunks import Chunk, find_cut
from peerd.core.ids import Epoch, Offset
from tests.las_core.builders import SHARD, do, done, plan_of, replica, shard_of, with_log

LOG = shard_of(with_log()).log
MINUTE_MS = 60_000


@dataclass
class World:
    """A LAS of one state, and stores whose segments have chunks of 100 bytes and 10 records."""

    state: ClusterState
    ends: dict[int, int] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    calls: int = 0
    now_ms: int = 5_000_000

    def indexed(self):
        return self.state, None

    async def submit(self, command):
        self.state, result = apply(self.state, command)
        return result

    async def find_cuts(self, target, orders):
        self.calls += 1
        if target.peer in self.silent:
            return None
        return [self._cut(order) for order in orders]

    def _cut(self, order):
        shard = shard_of(self.state)
        segment = next(s for s in (*shard.sealed, shard.open) if s.epoch == order.epoch)
        end = self.ends[order.epoch] if segment.end is None else segment.end
        first = max(segment.begin, min(shard.trimmed_to, end))
        chunks = [
            Chunk(end=Offset(at), payload_bytes=100)
            for at in range(segment.begin + 10, end + 1, 10)
            if at > first
        ]
        cut = find_cut(
            reversed(chunks),
            first=Offset(first),
            uncut_bytes=(end - segment.begin) % 10 * 10,
            before=min(order.before, Offset(end)),
            keep_bytes=order.keep_bytes,
        )
        return FoundCut(offset=cut.offset, kept_bytes=cut.kept_bytes, limit=Offset(end))

    def retention(self) -> Retention:
        clock = CommittedClock(self, lambda: self.now_ms)
        return Retention(self, self, Trimmer(self, self), period_ms=1, clock=clock)

    def trimmer(self) -> Trimmer:
        return Trimmer(self, self)

    @property
    def trimmed_to(self) -> int:
        return shard_of(self.state).trimmed_to


def switch(epoch: int, at: int):
    return (
        PrepareSegment(shard=SHARD, epoch=Epoch(epoch), plan=plan_of(1, 1, 2, 3)),
        SegmentOpened(
            shard=SHARD, epoch=Epoch(epoch + 1), begin=Offset(at), holders=(replica(1), replica(2))
        ),
    )


def kept(kept_bytes: int = 0, kept_ms: int = 0) -> SetRetention:
    return SetRetention(log=LOG, retention_bytes=kept_bytes, retention_ms=kept_ms)


@pytest.fixture
def world() -> World:
    """Epochs 1 [0, 35), 2 [35, 70) and the open 3 from 70 to 125."""
    return World(done(with_log(), *switch(1, 35), *switch(2, 70)), {3: 125})


# ------------------------------------------------------------------ trims
@pytest.mark.parametrize(
    ("before", "expected"),
    [(0, 0), (9, 0), (10, 10), (34, 30), (35, 35), (50, 45), (70, 70), (99, 90), (500, 120)],
)
async def test_a_trim_goes_to_the_last_cut_below(world, before, expected):
    await world.trimmer().trim(SHARD, Offset(before))
    assert world.trimmed_to == expected


async def test_a_trim_asks_another_holder_and_gives_up_when_there_is_none(world):
    world.silent = {"peer-1"}
    await world.trimmer().trim(SHARD, Offset(25))
    assert world.trimmed_to == 20
    with pytest.raises(CannotTell):
        await world.trimmer().trim(SHARD, Offset(99))
    assert world.trimmed_to == 20


async def test_a_trim_below_what_is_trimmed_asks_nobody(world):
    await world.trimmer().trim(SHARD, Offset(70))
    assert await world.trimmer().trim(SHARD, Offset(50)) is None
    assert world.calls == 0


# ------------------------------------------------------------------ bytes
@pytest.mark.parametrize(
    ("keep_bytes", "expected"),
    [
        (1, 120),
        (51, 110),
        (550, 70),
        (551, 65),
        (600, 65),
        (601, 55),
        (900, 35),
        (901, 30),
        (1_250, 0),
        (9_999, 0),
    ],
)
async def test_retention_by_bytes_keeps_so_many(world, keep_bytes, expected):
    world.state = done(world.state, kept(keep_bytes))
    retention = world.retention()
    for _ in range(3):
        await retention.look()
    assert world.trimmed_to == expected


async def test_a_log_without_retention_is_not_asked_about(world):
    await world.retention().look()
    assert (world.calls, world.trimmed_to) == (0, 0)


async def test_a_primary_that_does_not_answer_keeps_everything(world):
    world.state = done(world.state, kept(1))
    world.silent = {"peer-1"}
    await world.retention().look()
    assert world.trimmed_to == 0


async def test_nothing_is_trimmed_under_a_fence(world):
    world.state = done(world.state, kept(1), FenceSegment(shard=SHARD, epoch=Epoch(3)))
    await world.retention().look()
    assert world.trimmed_to == 0


# ------------------------------------------------------------------ age
async def test_what_is_younger_than_the_retention_stays(world):
    world.state = done(world.state, kept(kept_ms=16 * MINUTE_MS))
    retention = world.retention()
    for minute in range(40):
        await retention.look()
        committed_then = 125 + max(0, minute - 16)
        assert world.trimmed_to <= committed_then
        world.ends[3] += 1
        world.now_ms += MINUTE_MS
    assert world.trimmed_to >= 130
    assert len(world.state.shards[SHARD].ages) <= AGE_MARKS_MAX


async def test_an_idle_shard_grows_old_and_commits_no_more_than_the_clock(world):
    world.state = done(world.state, kept(kept_ms=10 * MINUTE_MS))
    retention = world.retention()
    await retention.look()
    (mark,) = world.state.shards[SHARD].ages
    for _ in range(20):
        world.now_ms += MINUTE_MS // 2
        await retention.look()
    assert world.trimmed_to == 120
    assert world.state.shards[SHARD].ages == (mark,)
    assert world.state.clock_ms - mark.clock_ms <= 10 * MINUTE_MS


async def test_time_without_a_leader_makes_nothing_older(world):
    world.state = done(world.state, kept(kept_ms=10 * MINUTE_MS))
    await world.retention().look()
    world.now_ms += 1_000 * MINUTE_MS  # another machine's clock stands elsewhere
    successor = world.retention()
    await successor.look()
    assert world.trimmed_to == 0
    world.now_ms += 10 * MINUTE_MS
    await successor.look()
    assert world.trimmed_to == 120


async def test_the_clock_is_committed_now_and_then_while_something_grows_old(world):
    world.state = done(world.state, kept(kept_ms=10_000 * MINUTE_MS))
    retention = world.retention()
    await retention.look()
    began_ms = world.state.clock_ms
    world.now_ms += CLOCK_COMMIT_MS
    await retention.look()
    assert world.state.clock_ms - began_ms == CLOCK_COMMIT_MS


# ------------------------------------------------------------------ what is committed of it
def test_the_clock_never_goes_back(world):
    state = done(world.state, MarkAges(clock_ms=50))
    after, result = do(state, MarkAges(clock_ms=49))
    assert (after, result.ok) == (state, False)


def test_marks_survive_a_snapshot_and_leave_the_version_alone(world):
    state = done(world.state, kept(1, 2))
    marked = done(state, MarkAges(clock_ms=50, marks=((SHARD, Offset(80)),)))
    assert marked.version == state.version
    assert snapshot.restore(snapshot.snapshot(marked)) == marked


def test_marks_of_what_is_trimmed_go_with_it(world):
    state = done(world.state, kept(1, 1_000))
    for clock_ms, offset in ((50, 80), (60, 90), (70, 85), (80, 100)):
        state = done(state, MarkAges(clock_ms=clock_ms, marks=((SHARD, Offset(offset)),)))
    assert [mark.offset for mark in state.shards[SHARD].ages] == [80, 90, 100]
    state = done(state, TrimShard(shard=SHARD, epoch=Epoch(3), trimmed_to=Offset(90)))
    assert [mark.offset for mark in state.shards[SHARD].ages] == [100]


def test_retention_of_a_log_that_is_not_there(world):
    _, result = do(world.state, SetRetention(log="none", retention_bytes=1, retention_ms=0))
    assert not result.ok

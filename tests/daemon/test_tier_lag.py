"""What waits for the tier is counted, and appends wait when it is too much, and no longer."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from peerd.core.chunks import Cut
from peerd.core.errors import Reason
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.core.shard_map import Segment, Shard, Tiered
from peerd.daemon.admission import LAG_RETRY_AFTER_MS, Admission
from peerd.daemon.tier_lag import TierLag
from peerd.storage.errors import Corrupt
from peerd.storage.options import Space
from tests.las_core.builders import plan_of, process

ONE = ShardId(1)
HOT = 1_000
RECORD_BYTES = 10


def segment(epoch: int, begin: int, end: int | None = None, primary: int = 1) -> Segment:
    return Segment(
        epoch=Epoch(epoch),
        plan=plan_of(primary, 1, 2, 3),
        begin=Offset(begin),
        end=None if end is None else Offset(end),
    )


@dataclass
class World:
    """A peer whose store cuts after each record of ten bytes, and its map."""

    ends: dict[int, int]
    entries: list[Shard]
    hot: int = HOT
    broken: bool = False
    logs: dict = field(default_factory=dict)
    space: Space = field(
        default_factory=lambda: Space(free_bytes=3_000, stored_bytes=1_000, in_reserve=False)
    )

    def __post_init__(self) -> None:
        self.logs = {"orders": SimpleNamespace(hot_bytes=self.hot)}

    def map_entries(self) -> list[Shard]:
        return self.entries

    async def find_cut(self, shard, epoch, *, before, keep_bytes):
        if self.broken:
            raise Corrupt(shard, epoch, before, "made for the test")
        if epoch not in self.ends:
            return None
        return Cut(offset=before, kept_bytes=RECORD_BYTES * (self.ends[epoch] - before))

    def lag(self, bytes_max: int | None = None) -> TierLag:
        return TierLag(
            me=process(1), host=self, map_cache=self, space=lambda: self.space, bytes_max=bytes_max
        )


def shard(*sealed: Segment, last: Segment, tier_end: int | None = None) -> Shard:
    tier = None if tier_end is None else Tiered(begin=Offset(0), end=Offset(tier_end), manifest="m")
    return Shard(
        shard=ONE,
        log="orders",
        key_hash_low=0,
        key_hash_high=1 << 64,
        open=last,
        sealed=sealed,
        tier=tier,
    )


async def looked(world: World, bytes_max: int | None = None) -> TierLag:
    lag = world.lag(bytes_max)
    await lag.look()
    return lag


async def test_what_is_not_in_the_tier_beyond_the_hot_bytes_waits():
    world = World({1: 100, 2: 250}, [shard(segment(1, 0, 100), last=segment(2, 100))])
    assert (await looked(world)).lag_bytes == 2_500 - HOT
    world.entries = [shard(segment(1, 0, 100), last=segment(2, 100), tier_end=40)]
    assert (await looked(world)).lag_bytes == 2_100 - HOT
    world.entries = [shard(segment(1, 0, 100), last=segment(2, 100), tier_end=200)]
    assert (await looked(world)).lag_bytes == 0  # less than the hot bytes waits


@pytest.mark.parametrize("hot", [0, HOT])
async def test_only_what_this_peer_orders_of_tiered_logs_counts(hot):
    other = segment(2, 100, primary=2)
    world = World({1: 100, 2: 1_000}, [shard(segment(1, 0, 100), last=other)], hot=hot)
    assert (await looked(world)).lag_bytes == 0
    world.entries = [shard(segment(1, 0, 100), last=segment(2, 100))]
    assert ((await looked(world)).lag_bytes > 0) == (hot > 0)


async def test_what_is_not_stored_here_or_cannot_be_read_holds_nothing_up():
    world = World({2: 300}, [shard(segment(1, 0, 100), last=segment(2, 100))])
    assert (await looked(world)).lag_bytes == 2_000 - HOT
    world.broken = True
    assert (await looked(world)).lag_bytes == 0


async def test_the_bound_is_half_of_the_room_or_what_is_configured():
    world = World({2: 400}, [shard(last=segment(2, 0))])
    lag = await looked(world)
    assert (lag.lag_bytes, lag.bytes_max) == (3_000, 2_000)
    assert "3000 bytes of peer-1 wait for the object tier" in lag.why_wait(ONE)
    lag.limit(3_000)
    assert lag.why_wait(ONE) is None
    lag.limit(0)
    assert lag.why_wait(ONE)
    world.entries = [shard(last=segment(2, 0), tier_end=400)]
    await lag.look()
    assert lag.why_wait(ONE) is None  # nothing waits, whatever the bound


async def test_only_shards_of_which_something_waits_are_held_up():
    other = replace(shard(last=segment(2, 0), tier_end=400), shard=ShardId(2))
    world = World({2: 400}, [shard(last=segment(2, 0)), other])
    lag = await looked(world, 2_999)
    assert lag.slows_appends
    assert lag.why_wait(ONE)
    assert lag.why_wait(ShardId(2)) is None
    assert lag.why_wait(ShardId(3)) is None  # of no tiered log


def admission(*, in_reserve: bool = False, queued: int = 0, full: bool = False) -> Admission:
    space = Space(free_bytes=0, stored_bytes=0, in_reserve=in_reserve)
    store = SimpleNamespace(space=lambda: space, queued_bytes=queued)
    return Admission("peer-1", store, SimpleNamespace(is_full=full), 100)


def test_each_bound_refuses_with_its_own_reason_and_when_to_come_again():
    assert admission().why_no_room(ONE) is None
    assert admission(queued=50).why_no_room(ONE) is None
    for busy in (admission(queued=51), admission(full=True)):
        refused = busy.why_no_room(ONE)
        assert (refused.reason, refused.retry_after_ms) == (Reason.OVERLOADED, 20)
    assert admission(in_reserve=True).why_no_room(ONE).reason is Reason.DISK_RESERVE


def test_appends_that_wait_for_the_tier_are_counted_and_told_why():
    room = admission()
    room.tier_lag = lambda _: "9 bytes wait"
    refused = room.why_no_room(ONE)
    assert (refused.reason, refused.message) == (Reason.OVERLOADED, "9 bytes wait")
    assert refused.retry_after_ms == LAG_RETRY_AFTER_MS
    assert room.slowed_appends == 1
    room.tier_lag = lambda _: None
    assert room.why_no_room(ONE) is None
    assert replace(refused, message="") != refused

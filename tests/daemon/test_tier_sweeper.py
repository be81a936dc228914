"""What lies in the tier of a deleted log goes, after a while, and nothing else does."""

from dataclasses import dataclass, field

import pytest

from peerd.core.ids import ShardId
from peerd.daemon import tier_sweeper
from peerd.daemon.tier import Tier
from peerd.daemon.tier_sweeper import TierSweeper
from peerd.tier import store as tier_store
from peerd.tier.errors import Inherited, TierUnavailable
from peerd.tier.heirs import inherit
from peerd.tier.keys import NO_KEYS
from peerd.tier.manifest import prefix_of
from peerd.tier.reader import TierReader
from peerd.tier.store import TierStore
from peerd.transport.map_cache import MapCache
from tests.tier.objects import MemoryBackend


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(tier_store, "_BACKOFF_MS", 0)


@dataclass
class World:
    """A tier with objects of shards 1 to 4; the map has 1 and 4, and was never told of 5."""

    backend: MemoryBackend = field(default_factory=MemoryBackend)
    cluster_id: str = "c1"
    deleted: set[int] = field(default_factory=lambda: {2, 3})
    now_s: float = 100.0
    removed: int = 0

    def __post_init__(self):
        for shard in range(1, 6):
            self.put("c1", f"log-{shard % 2}", shard, 3)
        store = TierStore(self.backend, deadline_ms=60_000, attempts=1)
        reader = TierReader(store, NO_KEYS, cache_bytes=1)
        self.sweeper = TierSweeper(
            tier=Tier(store, NO_KEYS, reader, lambda: self.cluster_id),
            map_cache=self,
            remove_after_s=60,
            removed=self.count,
            now_s=lambda: self.now_s,
        )

    def put(self, cluster: str, log: str, shard: int, count: int) -> None:
        for number in range(count):
            self.backend.objects[f"{prefix_of(cluster, log, ShardId(shard))}/{number}"] = b"x"

    def count(self, objects: int) -> None:
        self.removed += objects

    def is_deleted(self, shard: int) -> bool:
        return shard in self.deleted

    def left(self, cluster: str = "c1") -> set[int]:
        keys = [key for key in self.backend.objects if key.startswith(f"cluster-{cluster}/")]
        return {int(key.split("/")[2].removeprefix("shard-")) for key in keys}


async def test_shards_of_deleted_logs_go_after_a_while():
    world = World()
    await world.sweeper.look()
    assert world.left() == {1, 2, 3, 4, 5}
    world.now_s += 59
    world.deleted.add(4)
    await world.sweeper.look()
    assert world.left() == {1, 2, 3, 4, 5}
    world.now_s += 2
    await world.sweeper.look()
    assert (world.left(), world.removed) == ({1, 4, 5}, 6)
    world.now_s += 59
    await world.sweeper.look()
    assert (world.left(), world.removed) == ({1, 5}, 9)


async def test_other_clusters_backups_and_what_is_no_shard_stay():
    world = World()
    world.put("c2", "orders", 2, 2)
    strange = ["cluster-c1/log-x/shard-2/a", "cluster-c1/notes", "backups/x/shard-2"]
    world.backend.objects |= dict.fromkeys(strange, b"x")
    await world.sweeper.look()
    world.now_s += 61
    await world.sweeper.look()
    assert world.left("c2") == {2}
    assert set(strange) <= set(world.backend.objects)


async def test_a_look_removes_a_bounded_number(monkeypatch):
    monkeypatch.setattr(tier_sweeper, "REMOVED_AT_ONCE_MAX", 2)
    world = World()
    await world.sweeper.look()
    world.now_s += 61
    await world.sweeper.look()
    assert world.removed == 4
    await world.sweeper.look()
    await world.sweeper.look()
    assert (world.left(), world.removed) == ({1, 4, 5}, 6)


async def test_a_cluster_that_was_restored_sweeps_the_past_and_the_one_before_nothing():
    world = World()
    store = TierStore(world.backend, deadline_ms=60_000, attempts=1)
    world.put("heir", "orders", 3, 1)
    await inherit(store, "heir", "c1")
    world.cluster_id = "heir"
    await world.sweeper.look()
    world.now_s += 61
    await world.sweeper.look()
    assert (world.left("c1"), world.left("heir"), world.removed) == ({1, 4, 5}, set(), 7)
    world.cluster_id, world.deleted = "c1", {1}
    with pytest.raises(Inherited, match="of cluster heir since a restore"):
        await world.sweeper.look()
    assert world.left("c1") == {1, 4, 5}


async def test_a_restore_that_comes_between_look_and_removal_is_seen():
    world = World()
    await world.sweeper.look()
    world.now_s += 61
    listed = world.backend.listed

    async def restored_meanwhile(prefix: str):
        found = await listed(prefix)
        if prefix.startswith("cluster-c1/"):
            await inherit(TierStore(world.backend, deadline_ms=60_000, attempts=1), "heir", "c1")
        return found

    world.backend.listed = restored_meanwhile
    with pytest.raises(Inherited):
        await world.sweeper.look()
    assert (world.left(), world.removed) == ({1, 2, 3, 4, 5}, 0)


async def test_who_does_not_know_its_cluster_or_gets_no_answer_removes_nothing():
    world = World(cluster_id="")
    world.now_s += 61
    await world.sweeper.look()
    assert world.left() == {1, 2, 3, 4, 5}
    world.cluster_id = "c1"
    world.backend.faults = ["500"]
    with pytest.raises(TierUnavailable):
        await world.sweeper.look()
    assert world.removed == 0


def test_a_map_that_is_not_whole_knows_of_nothing_that_was_deleted():
    assert not MapCache(lambda: 0).is_deleted(ShardId(2))

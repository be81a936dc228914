"""The uploader: what it puts into the tier, what it reports, and that it never reports too much.

The store is one in memory that fails on purpose; the LAS is its core.
"""

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from las.core.apply import apply
from las.core.commands import CreateLog, PrepareSegment, SegmentOpened, TrimShard
from las.core.state import ClusterState
from las.core.tier import TIER_LEVEL
from las.core.tier_commands import CoolShard, SetTier, TierShard
from peerd.core.batch import PlacedBatch
from peerd.core.chunks import Cut
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.core.shard_map import Tiered
from peerd.daemon import uploader as uploading
from peerd.daemon.budget import Background, Rates
from peerd.daemon.tier import Tier
from peerd.daemon.uploader import Uploader
from peerd.tier import store as tier_store
from peerd.tier.directory import DirectoryBackend
from peerd.tier.heirs import inherit
from peerd.tier.keys import NO_KEYS
from peerd.tier.manifest import prefix_of
from peerd.tier.reader import TierReader
from peerd.tier.store import TierStore
from peerd.tier.writing import put_manifest
from peerd.transport.read_source import ReadSource
from tests.las_core.builders import (
    SHARD,
    done,
    plan_of,
    process,
    register,
    replica,
    shard_of,
    with_log,
)
from tests.las_core.builders import (
    name as node,
)
from tests.tier.objects import MemoryBackend, batches_of, plain

BATCH_BYTES = 1_000
CHUNK_BATCHES = 4
OBJECT_BYTES = 8 * BATCH_BYTES
RECORDS = 3


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(tier_store, "_BACKOFF_MS", 0)
    monkeypatch.setattr(uploading, "COMMIT_WAIT_S", 0.05)


@dataclass
class World:
    """peer-1 orders the shard; its store has all batches, and commits all of them."""

    state: ClusterState
    backend: MemoryBackend = field(default_factory=MemoryBackend)
    batches: list[PlacedBatch] = field(default_factory=list)
    committed_to: int = 0
    mute: bool = False
    now_s: float = 100.0
    reported: list[TierShard] = field(default_factory=list)
    cluster_id: str = "cluster-1"
    nodes: dict = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self):
        self.me = process(1)
        store = TierStore(self.backend, deadline_ms=60_000, attempts=2)
        reader = TierReader(store, NO_KEYS, cache_bytes=1 << 20)
        self.tier = Tier(store, NO_KEYS, reader, lambda: self.cluster_id)
        self.source = ReadSource(self, self, self.tier)
        self.uploader = self.new_uploader()

    def new_uploader(self) -> Uploader:
        return Uploader(
            me=self.me,
            host=self,
            map_cache=self,
            source=self.source,
            tier=self.tier,
            report=self.report,
            object_bytes=OBJECT_BYTES,
            bytes_per_s_max=1 << 40,
            background=Background(Rates.within(1 << 40, 1, 1), lambda: self.now_s, lambda: 0),
            remove_after_s=60,
            now_s=lambda: self.now_s,
            wall_ms=lambda: 1_000_000 + 90_000,
        )

    # the map
    @property
    def shards(self):
        return {number: entry.shard for number, entry in self.state.shards.items()}

    @property
    def logs(self):
        return self.state.logs

    def map_entries(self):
        return list(self.shards.values())

    # the store
    def committed(self, shard):
        return self.shards[shard].open.epoch, Offset(self.committed_to)

    def segment_begin(self, shard, epoch):
        return None

    def readable_limit(self, shard, epoch):
        return Offset(self.committed_to)

    async def find_cut(self, shard, epoch, *, before, keep_bytes):
        opened = self.shards[shard].open
        first = max(opened.begin, self.shards[shard].trimmed_to)
        chunk = CHUNK_BATCHES * RECORDS
        cut = opened.begin + (before - opened.begin) // chunk * chunk
        return Cut(offset=Offset(max(first, cut)), kept_bytes=0)

    async def read(self, shard, epoch, from_offset, to_offset, bytes_max):
        segments = (*self.shards[shard].sealed, self.shards[shard].open)
        segment = next(each for each in segments if each.epoch == epoch)
        assert segment.begin <= from_offset < (segment.end or self.committed_to)
        found, taken = [], 0
        for batch in self.batches:
            if from_offset < batch.end and batch.base < to_offset:
                taken += BATCH_BYTES
                if found and taken > bytes_max:
                    break
                found.append(batch)
        return found

    # the LAS
    def report(self, report) -> None:
        told = report.shard_tiered
        command = TierShard(
            shard=ShardId(told.shard),
            epoch=Epoch(told.epoch),
            by=self.me,
            follows=told.follows,
            begin=Offset(told.begin),
            end=Offset(told.end),
            manifest=told.manifest,
        )
        self.reported.append(command)
        if not self.mute:
            self.las(command)

    def las(self, *commands) -> None:
        for command in commands:
            self.state, result = apply(self.state, command)
            self.told = result
        event, self.changed = self.changed, asyncio.Event()
        event.set()

    # what is done
    def append(self, count: int) -> None:
        begin = self.batches[-1].end if self.batches else 0
        self.batches += batches_of([BATCH_BYTES] * count, begin=begin, seed=begin)
        self.committed_to = self.batches[-1].end

    async def all_looks(self) -> None:
        while await self.uploader.look():
            pass

    @property
    def tiered_to(self) -> int:
        tier = shard_of(self.state).tier
        return 0 if tier is None else tier.end

    async def in_the_tier(self) -> list:
        """All that the map says is there, as it is read from there alone."""
        entry = shard_of(self.state)
        listed = await self.tier.manifest(entry)
        reader = TierReader(self.tier.store, NO_KEYS, cache_bytes=1 << 20)
        found, at = [], entry.tier.begin
        while at < entry.tier.end:
            epoch = listed.entry_at(at).epoch
            found += await reader.read(listed, epoch, at, entry.tier.end, 1 << 20)
            at = found[-1].end
        return plain(found)


def switch(epoch: int, at: int, primary: int = 1):
    return (
        PrepareSegment(shard=SHARD, epoch=Epoch(epoch), plan=plan_of(primary, 1, 2, 3)),
        SegmentOpened(
            shard=SHARD, epoch=Epoch(epoch + 1), begin=Offset(at), holders=(replica(1), replica(2))
        ),
    )


@pytest.fixture
async def world() -> World:
    state = with_log()
    levels = [register(each, feature_level=TIER_LEVEL) for each in range(1, 6)]
    return World(done(state, *levels, SetTier(log="orders", hot_bytes=1)))


async def test_whole_chunks_go_to_the_tier_in_order_and_come_back(world):
    world.append(30)
    await world.all_looks()
    assert world.tiered_to == 28 * RECORDS
    assert await world.in_the_tier() == plain(world.batches[:28])
    assert [command.end for command in world.reported] == [24, 48, 72, 84]
    world.append(2)
    await world.all_looks()
    assert world.tiered_to == 32 * RECORDS
    figures = world.uploader.statistics()
    assert (figures.objects, figures.payload_bytes) == (5, 32 * BATCH_BYTES)
    assert (figures.errors, figures.oldest_waiting_s) == ({}, 0.0)


async def test_a_log_that_is_not_tiered_stays_where_it_is(world):
    world.append(30)
    world.las(SetTier(log="orders", hot_bytes=0))
    await world.all_looks()
    assert (world.reported, world.backend.objects) == ([], {})


async def test_what_is_sealed_goes_to_its_end_and_the_next_epoch_follows(world):
    world.append(10)
    world.las(*switch(1, 10 * RECORDS))
    world.append(9)
    await world.all_looks()
    assert world.tiered_to == 18 * RECORDS
    assert await world.in_the_tier() == plain(world.batches[:18])
    listed = await world.tier.manifest(shard_of(world.state))
    assert [each.epoch for each in listed.entries] == [1, 1, 2]


async def test_nobody_else_than_the_primary_uploads(world):
    world.append(10)
    world.las(*switch(1, 10 * RECORDS, primary=2))
    await world.all_looks()
    assert world.backend.objects == {}


async def test_a_store_that_fails_is_tried_again_later_and_nothing_is_reported(world):
    world.append(8)
    world.backend.faults = ["500"] * 2
    await world.all_looks()
    assert world.reported == []
    figures = world.uploader.statistics()
    assert figures.errors == {"TIER_UNAVAILABLE": 1}
    assert figures.oldest_waiting_s == 90.0
    assert figures.trouble == "TIER_UNAVAILABLE: memory: 500"
    await world.all_looks()
    assert world.reported == []
    world.now_s += 2
    await world.all_looks()
    assert world.tiered_to == 24
    figures = world.uploader.statistics()
    assert (figures.oldest_waiting_s, figures.trouble) == (0.0, "")


async def test_what_is_not_read_back_whole_is_not_reported(world):
    world.append(8)
    world.backend.spoil = True
    await world.all_looks()
    assert world.reported == []
    assert world.uploader.statistics().errors == {"DAMAGED_OBJECT": 1}
    world.backend.spoil = False
    world.now_s += 2
    await world.all_looks()
    assert await world.in_the_tier() == plain(world.batches)


async def test_a_commit_that_is_late_is_gone_on_from_and_a_lost_one_repeated(world):
    world.append(8)
    world.mute = True
    assert not await world.uploader.look()
    assert len(world.reported) == 1
    chunks = [key for key in world.backend.objects if key.endswith(".chunk")]
    world.mute = False
    await world.all_looks()
    assert world.tiered_to == 24
    assert [key for key in world.backend.objects if key.endswith(".chunk")] == chunks
    world.append(8)
    world.mute = True
    assert not await world.uploader.look()
    world.las(world.reported[-1])
    world.mute = False
    await world.all_looks()
    assert await world.in_the_tier() == plain(world.batches)


async def test_while_an_object_is_put_the_next_is_packed_and_no_third(world):
    world.append(24)
    world.backend.hung = 1
    look = asyncio.create_task(world.uploader.look())
    read: list[int] = []
    ahead = asyncio.Event()
    source_read = world.source.read

    async def noted(shard, span, offset, to_offset, bytes_max):
        read.append(offset)
        if offset:
            ahead.set()
        return await source_read(shard, span, offset, to_offset, bytes_max)

    world.source.read = noted
    async with asyncio.timeout(30):
        await ahead.wait()
    for _ in range(200):
        await asyncio.sleep(0)
    assert set(read) == {0, 24}
    assert (world.reported, world.backend.objects) == ([], {})
    look.cancel()
    await asyncio.gather(look, return_exceptions=True)
    world.source.read = source_read
    await world.all_looks()
    assert await world.in_the_tier() == plain(world.batches)


async def test_what_was_made_ahead_goes_nowhere_if_the_one_before_is_not_named(world):
    world.append(24)
    world.mute = True
    assert not await world.uploader.look()
    assert [command.end for command in world.reported] == [24]
    # Whoever orders it now goes on from the map.
    world.las(*switch(1, 24 * RECORDS))
    world.mute = False
    await world.all_looks()
    assert [command.begin for command in world.reported[1:]] == [0, 24, 48]
    assert await world.in_the_tier() == plain(world.batches)


async def test_a_shard_that_has_much_lets_others_have_their_turn(world):
    world.append(8 * (uploading.RUN_OBJECTS_MAX + 2))
    assert await world.uploader.look()
    assert len(world.reported) == uploading.RUN_OBJECTS_MAX
    await world.all_looks()
    assert await world.in_the_tier() == plain(world.batches)


async def test_a_restart_goes_on_from_the_map(world):
    world.append(12)
    await world.uploader.look()
    world.uploader = world.new_uploader()
    await world.all_looks()
    assert await world.in_the_tier() == plain(world.batches)
    assert len(world.reported) == 2


async def test_a_primary_that_is_deposed_on_the_way_changes_nothing(world):
    world.append(8)
    report = world.uploader._report

    def deposed_then_reported(told) -> None:
        world.las(*switch(1, 8 * RECORDS, primary=2))
        report(told)

    world.uploader._report = deposed_then_reported
    assert not await world.uploader.look()
    assert not world.told.ok
    assert world.tiered_to == 0


async def test_a_shard_goes_on_behind_what_was_trimmed(world):
    world.append(12)
    world.las(TrimShard(shard=SHARD, epoch=Epoch(1), trimmed_to=Offset(12)))
    await world.all_looks()
    assert shard_of(world.state).tier.begin == 12
    assert await world.in_the_tier() == plain(world.batches[4:])


async def test_what_is_trimmed_is_removed_after_a_while_and_old_manifests_too(world):
    world.append(24)
    await world.all_looks()
    prefix = prefix_of("cluster-1", "orders", SHARD)
    end = 24 * RECORDS
    world.las(
        CoolShard(shard=SHARD, epoch=Epoch(1), cold_to=Offset(end)),
        TrimShard(shard=SHARD, epoch=Epoch(1), trimmed_to=Offset(30)),
    )
    await world.uploader.look()
    assert sum(key.endswith(".chunk") for key in world.backend.objects) == 3
    world.now_s += 61
    await world.uploader.look()
    left = sorted(key.removeprefix(f"{prefix}/") for key in world.backend.objects)
    assert [name[21:41] for name in left if name.endswith(".chunk")] == [f"{24:020d}", f"{48:020d}"]
    assert sum(name.startswith("manifest-") for name in left) == 2
    assert await world.in_the_tier() == plain(world.batches[10:])
    assert world.uploader.statistics().removed_objects == 2


async def test_a_cluster_of_which_another_was_restored_adds_and_removes_nothing(world):
    world.append(24)
    await world.all_looks()
    before = await world.in_the_tier()
    await inherit(world.tier.store, "heir", "cluster-1")
    there = dict(world.backend.objects)
    world.las(
        CoolShard(shard=SHARD, epoch=Epoch(1), cold_to=Offset(24 * RECORDS)),
        TrimShard(shard=SHARD, epoch=Epoch(1), trimmed_to=Offset(30)),
    )
    await world.uploader.look()
    world.now_s += 61
    await world.uploader.look()
    assert world.uploader.statistics().trouble.startswith("INHERITED: what cluster cluster-1 has")
    world.tier = Tier(world.tier.store, NO_KEYS, world.tier.reader, lambda: world.cluster_id)
    world.uploader = world.new_uploader()  # after a restart, too
    world.append(16)
    await world.uploader.look()
    assert world.backend.objects == there
    assert "remove clusters/cluster-1/heir-00000001" in world.uploader.statistics().trouble
    # What is there can be read, and what was not taken waits on disks.
    assert await world.in_the_tier() == before[10:]
    del world.backend.objects["clusters/cluster-1/heir-00000001"]
    world.now_s += 600
    await world.all_looks()
    assert world.tiered_to == 40 * RECORDS


async def test_whether_there_is_an_heir_is_asked_once_a_look_and_again_after_a_while(world):
    asked, owned = [], world.tier.owned

    async def counted():
        asked.append(world.now_s)
        return await owned()

    world.append(8)
    await world.uploader.look()  # and what is left over is looked for, which asks, too
    world.tier.owned = counted
    world.append(24)
    await world.uploader.look()
    assert world.uploader.statistics().objects == 1 + 3
    assert len(asked) == 1
    created = world.backend.create

    async def slowly(key, data):
        world.now_s += uploading.OWNED_FOR_S + 0.1
        return await created(key, data)

    world.backend.create = slowly
    world.append(24)
    await world.uploader.look()
    assert world.uploader.statistics().objects == 1 + 3 + 3
    assert len(asked) == 1 + 3


async def test_a_restored_cluster_goes_on_from_objects_of_the_one_before_and_removes_these(world):
    world.append(24)
    await world.all_looks()
    entry = shard_of(world.state)
    heir = (await world.tier.manifest(entry)).inherited_by("heir")
    await inherit(world.tier.store, "heir", "cluster-1")
    name = await put_manifest(world.tier.store, heir)
    tier = Tiered(begin=entry.tier.begin, end=entry.tier.end, manifest=name)
    entry = replace(world.state.shards[SHARD], shard=replace(entry, tier=tier))
    world.state = world.state.changed(shards=(entry,))
    world.cluster_id = "heir"
    world.append(16)
    await world.all_looks()
    assert world.tiered_to == 40 * RECORDS
    assert await world.in_the_tier() == plain(world.batches)
    prefixes = [key.split("/")[0] for key in world.backend.objects if key.endswith(".chunk")]
    assert sorted(set(prefixes)) == ["cluster-cluster-1", "cluster-heir"]
    world.las(
        CoolShard(shard=SHARD, epoch=Epoch(1), cold_to=Offset(40 * RECORDS)),
        TrimShard(shard=SHARD, epoch=Epoch(1), trimmed_to=Offset(30)),
    )
    await world.uploader.look()
    world.now_s += 61
    await world.uploader.look()
    assert world.uploader.statistics().removed_objects >= 1
    prefixes = [key.split("/")[0] for key in world.backend.objects if key.endswith(".chunk")]
    assert (prefixes.count("cluster-cluster-1"), prefixes.count("cluster-heir")) == (2, 2)
    assert await world.in_the_tier() == plain(world.batches[10:])


def two_logs() -> ClusterState:
    """Both tiered; what the second one has is that of the first."""
    carts = CreateLog(
        name="carts", copies=3, acks=2, nodes=(node(1), node(2), node(3)), rows=((0, 1, 2),)
    )
    levels = [register(each, feature_level=TIER_LEVEL) for each in range(1, 6)]
    tiers = [SetTier(log=log, hot_bytes=1) for log in ("orders", "carts")]
    return done(with_log(), carts, *levels, *tiers)


async def test_a_directory_that_is_not_mounted_gets_nothing_that_the_map_names(tmp_path):
    """It takes what it is given and gives it back; once it is mounted nobody sees that again."""
    root, kept = tmp_path / "tier", tmp_path / "kept"
    world = World(two_logs(), backend=DirectoryBackend(root))
    world.append(24)
    await world.all_looks()
    before = world.shards
    assert [entry.tier.end for entry in before.values()] == [24 * RECORDS] * 2

    root.rename(kept)
    root.mkdir()
    nodes = (node(1), node(2), node(3))
    world.las(CreateLog(name="new", copies=3, acks=2, nodes=nodes, rows=((0, 1, 2),)))
    world.las(SetTier(log="new", hot_bytes=1))
    world.append(16)
    world.now_s += 600
    await world.all_looks()
    assert {shard: world.shards[shard] for shard in before} == before
    assert [entry.tier for entry in world.shards.values() if entry.log == "new"] == [None]
    assert not list(root.rglob("*.chunk"))
    assert "mounted" in world.uploader.statistics().trouble

    root.rmdir()
    kept.rename(root)
    world.now_s += 600
    await world.all_looks()
    assert [entry.tier.end for entry in world.shards.values()] == [40 * RECORDS] * 3
    assert await world.in_the_tier() == plain(world.batches)


@pytest.mark.parametrize("unmounted_at", [".chunk", "manifest-"])
async def test_what_was_put_while_it_was_not_mounted_is_not_named(world, unmounted_at):
    """Before and behind an object, or its manifest, everything is where it is to be."""
    world.append(8)
    await world.all_looks()
    before, mounted, create = shard_of(world.state), world.backend.objects, world.backend.create

    async def once(key, data):
        world.backend.objects = {} if unmounted_at in key else mounted
        return await create(key, data)

    world.backend.create = once
    world.append(8)
    await world.all_looks()
    assert shard_of(world.state) == before
    assert world.uploader.statistics().trouble.startswith("MISSING_OBJECT")

    world.backend.create, world.backend.objects = create, mounted
    world.now_s += 600
    await world.all_looks()
    assert world.tiered_to == 16 * RECORDS
    assert await world.in_the_tier() == plain(world.batches)


async def test_an_older_manifest_in_place_of_the_newest_is_told_and_other_shards_go_on(tmp_path):
    """Somebody brought the tier back as it was: no older list is ever taken for the newest."""
    backend = DirectoryBackend(tmp_path)
    world = World(two_logs(), backend=backend)
    other = next(shard for shard in world.shards if shard != SHARD)
    world.append(24)
    await world.all_looks()
    entry, folder = shard_of(world.state), tmp_path / prefix_of("cluster-1", "orders", SHARD)
    newest = folder / entry.tier.manifest
    sound = newest.read_bytes()
    older = max(path for path in folder.glob("manifest-*") if path != newest)
    there = {path.name for path in folder.iterdir()} - {newest.name}
    world.tier = Tier(
        world.tier.store,
        NO_KEYS,
        TierReader(world.tier.store, NO_KEYS, cache_bytes=1),
        lambda: "cluster-1",
    )
    world.uploader = world.new_uploader()
    for number, (bring_back, code) in enumerate(
        [
            (newest.unlink, "MISSING_OBJECT"),
            (lambda: newest.write_bytes(older.read_bytes()), "DAMAGED_OBJECT"),
        ],
        start=1,
    ):
        bring_back()
        world.append(8)
        world.now_s += 600
        await world.all_looks()
        assert world.uploader.statistics().errors[code] >= 1
        assert world.uploader.statistics().trouble.startswith(code)
        assert shard_of(world.state) == entry
        assert world.shards[other].tier.end == (24 + 8 * number) * RECORDS
        assert there <= {path.name for path in folder.iterdir()}
    newest.write_bytes(sound)
    world.now_s += 600
    await world.all_looks()
    assert await world.in_the_tier() == plain(world.batches)


async def test_many_objects_leave_no_trail_of_manifests(world):
    world.append(8 * 40)
    await world.all_looks()
    world.now_s += 61
    await world.uploader.look()
    manifests = [key for key in world.backend.objects if "manifest-" in key]
    assert len(manifests) < 20
    assert await world.in_the_tier() == plain(world.batches)


async def test_a_cut_is_found_among_what_the_tier_alone_has(world):
    world.append(24)
    await world.all_looks()
    world.las(CoolShard(shard=SHARD, epoch=Epoch(1), cold_to=Offset(60)))
    entry = shard_of(world.state)
    hot = Cut(offset=Offset(60), kept_bytes=4 * BATCH_BYTES)

    async def cut(before: int, keep_bytes: int = 0) -> tuple[int, int]:
        found = await world.tier.find_cut(
            entry, Epoch(1), hot, before=Offset(before), keep_bytes=keep_bytes
        )
        return found.offset, found.kept_bytes

    assert await cut(47) == (24, 12 * BATCH_BYTES)
    assert await cut(48) == (48, 4 * BATCH_BYTES)
    assert await cut(60, 5 * BATCH_BYTES) == (24, 12 * BATCH_BYTES)
    assert await cut(20) == (0, 20 * BATCH_BYTES)
    assert (await world.tier.find_cut(entry, Epoch(9), hot, before=Offset(9), keep_bytes=0)) == hot

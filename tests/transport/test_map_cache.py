"""The codec and cache of the map: nothing is lost on the wire, only what is newer changes it."""

import asyncio
from dataclasses import replace

import pytest

from las.v1 import shard_map_pb2
from peerd.core.ids import BootId, Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId, StoreId
from peerd.core.shard_map import (
    Plan,
    Segment,
    Shard,
    SkippedEpochs,
    Tiered,
    entries_of,
    joined,
)
from peerd.transport import map_codec
from peerd.transport.map_cache import UPDATES_KEPT_MAX, MapCache, MapForeign
from peerd.transport.map_codec import LogEntry, MapMalformed, NodeEntry

HALF = 1 << 63
TOP = (1 << 64) - 1


def replica(number):
    return ReplicaId(NodeName(f"peer-{number}"), StoreId(f"{number:032x}"))


def plan(*numbers, primary=None):
    first = replica(primary or numbers[0])
    return Plan(
        primary=ProcessId(first.peer, first.store, BootId("b" * 32)),
        voters=tuple(replica(number) for number in numbers[:2]),
        non_voters=tuple(replica(number) for number in numbers[2:]),
        acks=1,
    )


def shard(number=1, *, low=0, high=TOP, epoch=1, log="orders"):
    segment = Segment(epoch=Epoch(epoch), plan=plan(1, 2, 3), begin=Offset(0))
    return Shard(shard=ShardId(number), log=log, key_hash_low=low, key_hash_high=high, open=segment)


def node(number, address=None):
    return NodeEntry(
        name=NodeName(f"peer-{number}"),
        address=address or f"127.0.0.1:{7400 + number}",
        store=StoreId(f"{number:032x}"),
        boot=BootId("b" * 32),
        labels={"host": f"h{number}"},
    )


def update(version, *, full=False, nodes=(), logs=(), shards=(), removed_logs=(), removed_nodes=()):
    return shard_map_pb2.MapUpdate(
        cluster_id="c1",
        version=version,
        full=full,
        nodes=[map_codec.encode_node(entry) for entry in nodes],
        logs=[map_codec.encode_log(entry) for entry in logs],
        shards=[map_codec.encode_shard(entry) for entry in shards],
        removed_logs=removed_logs,
        removed_nodes=removed_nodes,
    )


def orders(*shards):
    return LogEntry(name="orders", copies=3, acks=2, shards=tuple(ShardId(one) for one in shards))


@pytest.fixture
def clock():
    return [1_000]


@pytest.fixture
def cache(clock):
    cache = MapCache(lambda: clock[0])
    halves = (shard(1, high=HALF - 1), shard(2, low=HALF))
    cache.apply(update(5, full=True, nodes=(node(1), node(2)), logs=(orders(1, 2),), shards=halves))
    return cache


def test_a_shard_with_every_field_set_survives_the_wire():
    sealed = Segment(
        epoch=Epoch(1),
        plan=plan(1, 2, 3),
        begin=Offset(0),
        end=Offset(100),
        known_commit=Offset(90),
        holders=(replica(1), replica(2)),
        wanted_holders=(replica(4),),
    )
    whole = Shard(
        shard=ShardId(7),
        log="orders",
        key_hash_low=3,
        key_hash_high=TOP,
        sealed=(sealed,),
        open=Segment(epoch=Epoch(4), plan=plan(2, 3, primary=3), begin=Offset(100)),
        prepared=Segment(epoch=Epoch(5), plan=plan(3, 4)),
        fence=Epoch(6),
        dead_epochs=(Epoch(2), Epoch(3)),
    )
    wire = shard_map_pb2.Shard.FromString(map_codec.encode_shard(whole).SerializeToString())
    assert map_codec.decode_shard(wire) == whole


def three_leads():
    """Three sealed segments that the same stores have, and the open one."""
    sealed = tuple(
        Segment(
            epoch=Epoch(2 * at + 1),
            plan=plan(1, 2, 3),
            begin=Offset(10 * at),
            end=Offset(10 * at + 10),
            known_commit=Offset(10 * at + 10),
            holders=(replica(1), replica(2)),
        )
        for at in range(3)
    )
    opened = Segment(epoch=Epoch(8), plan=plan(1, 2, 3), begin=Offset(30))
    return replace(shard(), sealed=joined(sealed), open=opened)


def test_an_entry_of_several_segments_survives_the_wire():
    whole = three_leads()
    message = map_codec.encode_shard(whole)
    assert len(message.sealed) == 1
    assert (message.sealed[0].begin, message.sealed[0].end, message.sealed[0].epoch) == (0, 30, 5)
    wire = shard_map_pb2.Shard.FromString(message.SerializeToString())
    again = map_codec.decode_shard(wire)
    assert again == whole
    assert [each.epoch for each in again.sealed] == [1, 3, 5]
    assert len(entries_of(again.sealed)) == 1
    assert map_codec.encode_shard(again).sealed[0] == message.sealed[0]
    # Who does not know such entries gets one for each segment, and reads the same.
    apart = map_codec.encode_shard(whole, share=False)
    assert len(apart.sealed) == 3
    assert not any(each.earlier_epochs for each in apart.sealed)
    assert map_codec.decode_shard(apart) == whole


def test_an_entry_whose_segments_do_not_follow_each_other_is_no_map():
    wire = shard_map_pb2.Shard.FromString(map_codec.encode_shard(three_leads()).SerializeToString())
    wire.sealed[0].earlier_epochs[1] = 6
    with pytest.raises(MapMalformed, match="epochs grow along a run"):
        map_codec.decode_shard(wire)
    del wire.sealed[0].earlier_ends[1]
    with pytest.raises(MapMalformed, match="an end for each earlier epoch"):
        map_codec.decode_shard(wire)


def test_what_is_in_the_tier_survives_the_wire():
    whole = replace(
        shard(),
        trimmed_to=Offset(5),
        tier=Tiered(begin=Offset(2), end=Offset(9), manifest="manifest-1"),
    )
    wire = shard_map_pb2.Shard.FromString(map_codec.encode_shard(whole).SerializeToString())
    assert map_codec.decode_shard(wire) == whole
    wire.tier.end = 4
    with pytest.raises(MapMalformed, match="stores keep what the tier does not have"):
        map_codec.decode_shard(wire)
    policy = replace(orders(1), hot_bytes=7)
    assert map_codec.decode_log(map_codec.encode_log(policy)) == policy


@pytest.mark.parametrize("entry", [node(1), replace(node(2), may_lead=False, up=False)])
def test_a_node_survives_the_wire(entry):
    assert map_codec.decode_node(map_codec.encode_node(entry)) == entry


def test_a_chain_with_a_gap_is_no_map():
    wire = map_codec.encode_shard(shard())
    wire.open.begin = 10
    with pytest.raises(MapMalformed, match=r"shard 1 of log 'orders'.*tile"):
        map_codec.decode_shard(wire)


def test_keys_find_the_shard_that_owns_their_hash(cache):
    assert cache.shard_for("orders", 0) == 1
    assert cache.shard_for("orders", HALF - 1) == 1
    assert cache.shard_for("orders", HALF) == 2
    assert cache.shard_for("orders", TOP) == 2
    assert cache.shard_for("nowhere", 0) is None
    assert cache.address_of(NodeName("peer-2")) == "127.0.0.1:7402"


def test_only_a_newer_update_changes_anything(cache):
    late = update(5, shards=(shard(1, high=HALF - 1, epoch=9),))
    assert not cache.apply(late)
    assert cache.shards[ShardId(1)].open.epoch == 1
    newer = update(6, shards=(shard(1, high=HALF - 1, epoch=9),))
    assert cache.apply(newer).shards == (1,)
    assert cache.shards[ShardId(1)].open.epoch == 9
    older_whole = update(4, full=True)
    assert not cache.apply(older_whole)
    assert len(cache.shards) == 2


def test_a_new_log_is_routed_at_once_and_a_removed_one_no_more(cache):
    cache.apply(
        update(
            6,
            logs=(LogEntry(name="carts", copies=1, acks=1, shards=(ShardId(3),)),),
            shards=(shard(3, log="carts"),),
        )
    )
    assert cache.shard_for("carts", 77) == 3
    change = cache.apply(update(7, removed_logs=("orders",), removed_nodes=("peer-1",)))
    assert set(change.removed_shards) == {1, 2}
    assert cache.shards_of("orders") == ()
    assert set(cache.shards) == {3}
    assert NodeName("peer-1") not in cache.nodes


def test_a_whole_map_tells_what_it_removed(cache):
    change = cache.apply(update(9, full=True, nodes=(node(2),)))
    assert set(change.removed_shards) == {1, 2}
    assert change.removed_nodes == ("peer-1",)
    assert change.nodes == ()


def test_the_map_of_another_cluster_is_refused(cache):
    foreign = update(99, full=True)
    foreign.cluster_id = "c2"
    with pytest.raises(MapForeign, match="another cluster"):
        cache.apply(foreign)
    assert cache.version == 5


def test_a_malformed_update_is_not_taken_in_part(cache):
    broken = update(6, logs=(orders(1),), shards=(shard(1, epoch=3),))
    broken.shards[0].open.begin = 3
    with pytest.raises(MapMalformed):
        cache.apply(broken)
    assert cache.version == 5
    assert len(cache.shards_of("orders")) == 2


def test_a_change_before_the_map_is_refused(clock):
    with pytest.raises(MapMalformed, match="before any whole map"):
        MapCache(lambda: clock[0]).apply(update(3, shards=(shard(),)))


def test_age_counts_from_what_was_last_heard(cache, clock):
    clock[0] += 700
    assert cache.age_ms == 700
    cache.apply(update(5, full=True))
    assert cache.age_ms == 0
    clock[0] += 100
    cache.heard_current()
    assert cache.age_ms == 0


async def test_whoever_waits_is_woken_and_subscribers_hear_each_change(cache):
    heard = []
    end = cache.subscribe(heard.append)
    changed = cache.changed
    cache.apply(update(6, shards=(shard(2, low=HALF, epoch=2),)))
    await asyncio.wait_for(changed.wait(), 1)
    assert not cache.changed.is_set()
    end()
    cache.apply(update(7, nodes=(node(3),)))
    assert [change.shards for change in heard] == [(2,)]


def test_a_watcher_gets_what_it_lacks(cache):
    assert [one.full for one in cache.updates_since(0)] == [True]
    assert cache.updates_since(5) == []
    cache.apply(update(6, nodes=(node(3),)))
    cache.apply(update(8, nodes=(node(4),)))
    assert [one.version for one in cache.updates_since(5)] == [6, 8]
    assert [one.version for one in cache.updates_since(6)] == [8]
    other = MapCache(lambda: 0)
    for one in cache.updates_since(0):
        other.apply(one)
    assert (other.nodes, other.logs, other.shards) == (cache.nodes, cache.logs, cache.shards)


def test_a_watcher_that_lags_far_gets_the_whole_map(cache):
    for version in range(6, 6 + UPDATES_KEPT_MAX + 1):
        cache.apply(update(version, nodes=(node(3, f"127.0.0.1:{version}"),)))
    assert [one.full for one in cache.updates_since(5)] == [True]
    assert [one.full for one in cache.updates_since(6)] == [False] * UPDATES_KEPT_MAX


def test_who_asks_with_a_version_gets_what_changed_since_as_one_update(cache):
    other = MapCache(lambda: 0)
    other.apply(cache.whole())
    cache.apply(update(6, nodes=(node(3),)))
    cache.apply(update(8, nodes=(node(4),), shards=(shard(1, epoch=2),)))
    change = cache.change_since(5)
    assert not change.full
    assert len(change.nodes) == 2
    other.apply(change)
    assert (other.nodes, other.logs, other.shards) == (cache.nodes, cache.logs, cache.shards)
    assert other.version == cache.version == 8
    nothing = cache.change_since(8)
    assert not nothing.full
    assert not nothing.nodes
    assert not other.apply(nothing)
    # What is not remembered, or went and may have come back, is told by the whole map alone.
    assert cache.change_since(0) is None
    assert cache.change_since(4) is None
    cache.apply(update(9, removed_nodes=("peer-4",)))
    assert cache.change_since(8) is None
    assert cache.change_since(9) is not None


def test_what_many_shards_have_in_common_is_made_once(monkeypatch):
    monkeypatch.setattr(map_codec, "KEPT_MAX", 3)
    for kept in ("_segments", "_encoded_segments"):
        monkeypatch.setattr(map_codec, kept, {})
    one, other = (
        map_codec.decode_shard(map_codec.encode_shard(shard(number))) for number in (1, 2)
    )
    assert one.open is other.open
    for epoch in range(1, 9):
        entry = shard(1, epoch=epoch)
        assert map_codec.decode_shard(map_codec.encode_shard(entry)) == entry
        assert len(map_codec._segments) <= 3
        assert len(map_codec._encoded_segments) <= 3


def test_one_log_of_the_map(cache):
    cache.apply(
        update(
            6,
            logs=(LogEntry(name="carts", copies=1, acks=1, shards=(ShardId(3),)),),
            shards=(shard(3, log="carts"),),
        )
    )
    part = cache.whole("carts")
    assert [log.name for log in part.logs] == ["carts"]
    assert [entry.shard for entry in part.shards] == [3]
    assert len(part.nodes) == 2


# ------------------------------------------------------------------------------ deleted logs
def log_of(name, *shards):
    return map_codec.encode_log(LogEntry(name=name, copies=1, acks=1, shards=shards))


def filled_cache(next_shard=4):
    cache = MapCache(lambda: 0)
    cache.apply(
        shard_map_pb2.MapUpdate(
            cluster_id="c",
            version=1,
            full=True,
            logs=[log_of("orders", 1, 2)],
            shards=[
                map_codec.encode_shard(shard(1, high=HALF - 1)),
                map_codec.encode_shard(shard(2, low=HALF)),
            ],
            next_shard=next_shard,
        )
    )
    return cache


def test_an_id_that_the_whole_map_lacks_is_deleted_if_it_was_drawn_and_only_then():
    cache = filled_cache()
    assert [cache.is_deleted(ShardId(each)) for each in (1, 2, 3, 4)] == [False, False, True, False]
    assert not filled_cache(next_shard=0).is_deleted(ShardId(3))


def test_an_id_that_was_skipped_is_not_deleted_also_for_whom_the_map_is_passed_on_to():
    cache = filled_cache()
    cache.apply(
        shard_map_pb2.MapUpdate(
            version=2,
            next_shard=20,
            skipped_shards=[shard_map_pb2.SkippedShards(first=4, last=18)],
        )
    )
    passed_on = MapCache(lambda: 0)
    passed_on.apply(cache.whole())
    for each in (cache, passed_on):
        deleted = [number for number in range(1, 22) if each.is_deleted(ShardId(number))]
        assert deleted == [3, 19]
    # Of a part of the map nobody concludes anything.
    part = MapCache(lambda: 0)
    part.apply(cache.whole("orders"))
    assert not part.is_deleted(ShardId(19))


def anew(*shards, version=1 << 32, given_up=False, logs=("orders",)):
    """The whole map of a LAS that began from data in which shard 1 is open in epoch 1."""
    skipped = (SkippedEpochs(first=Epoch(2), last=Epoch(99), given_up=given_up),)
    entries = [replace(each, skipped=skipped) for each in shards]
    return shard_map_pb2.MapUpdate(
        cluster_id="c",
        version=version,
        full=True,
        logs=[log_of(name, *(each.shard for each in entries)) for name in logs],
        shards=[map_codec.encode_shard(each) for each in entries],
        next_shard=1 << 32,
        skipped_shards=[shard_map_pb2.SkippedShards(first=3, last=(1 << 32) - 1)],
    )


def test_what_lost_commits_told_is_kept_until_a_person_has_given_it_up():
    older = shard(1)
    newer = replace(older, open=replace(older.open, epoch=Epoch(7)))
    cache = MapCache(lambda: 0)
    cache.apply(
        shard_map_pb2.MapUpdate(
            cluster_id="c",
            version=9,
            full=True,
            logs=[log_of("orders", 1), log_of("unknown", 3), log_of("taken", 4)],
            shards=[
                map_codec.encode_shard(each)
                for each in (
                    newer,
                    replace(shard(3), log="unknown"),
                    replace(shard(4), log="taken"),
                )
            ],
            next_shard=5,
        )
    )
    change = cache.apply(anew(older, logs=("orders", "taken")))
    assert (change.removed_shards, change.removed_logs) == ((4,), ())
    assert cache.shards[ShardId(1)].open.epoch == 7
    assert cache.shards_of("unknown") == (3,)
    # A restart of the LAS tells all again, and who asks here is told what is known here.
    cache.apply(anew(older, version=(1 << 32) + 1, logs=("orders", "taken")))
    passed_on = MapCache(lambda: 0)
    passed_on.apply(cache.whole())
    for each in (cache, passed_on):
        assert each.shards[ShardId(1)].open.epoch == 7
        assert each.shards_of("unknown") == (3,)
    cache.apply(anew(older, version=(1 << 32) + 2, given_up=True))
    assert cache.shards[ShardId(1)].open.epoch == 1
    # What was opened since then is newer than all that was lost.
    opened = anew(replace(older, open=replace(older.open, epoch=Epoch(100))), version=(1 << 32) + 3)
    passed_on.apply(opened)
    assert passed_on.shards[ShardId(1)].open.epoch == 100


def test_a_change_names_the_shards_that_are_gone_also_under_a_name_that_is_used_again():
    cache = filled_cache()
    change = cache.apply(
        shard_map_pb2.MapUpdate(
            version=2,
            logs=[log_of("orders", 4)],
            shards=[map_codec.encode_shard(shard(4))],
            removed_shards=[1, 2, 3],
            next_shard=5,
        )
    )
    assert change.removed_shards == (1, 2)
    assert not change.is_whole
    assert cache.shards_of("orders") == (4,)
    assert cache.shard_for("orders", TOP) == 4
    assert cache.is_deleted(ShardId(1))
    passed_on = MapCache(lambda: 0)
    passed_on.apply(cache.whole())
    assert passed_on.is_deleted(ShardId(1))
    part = MapCache(lambda: 0)
    part.apply(cache.whole("orders"))
    assert not part.is_deleted(ShardId(1))

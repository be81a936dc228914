"""What the map alone says of trouble: paused, thin, short, unreadable."""

import asyncio
from dataclasses import replace

from las.core.commands import (
    FenceSegment,
    HaltShard,
    PrepareSegment,
    RaiseCommandLevel,
    SegmentOpened,
    SetAtRisk,
    SetNodeState,
)
from las.core.index import FleetIndex, indexed
from las.core.state import JOINING_LEVEL, SHARED_ENTRY_LEVEL, ClusterState, NodeState
from las.daemon.map_feed import MapFeed, encode_part
from las.daemon.status_view import MapFacts, MapWatch, _alone
from peerd.core.ids import Epoch, Offset
from peerd.core.shard_map import Tiered, plan_of_nobody
from tests.las_core.builders import SHARD, done, name, plan_of, process, register, replica, with_log


def facts(state: ClusterState) -> MapFacts:
    return MapWatch().update(state, indexed(state))


def down(number: int) -> SetNodeState:
    return SetNodeState(node=name(number), boot=process(number).boot, state=NodeState.DOWN)


def moved(state: ClusterState) -> ClusterState:
    """From peers 1, 2, 3 to peers 4, 2, 3, with records before."""
    return done(
        state,
        PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(4, 4, 2, 3)),
        SegmentOpened(
            shard=SHARD,
            epoch=Epoch(2),
            begin=Offset(9),
            holders=(replica(1), replica(2), replica(3)),
        ),
    )


def test_a_healthy_shard_has_no_fact_against_it():
    found = facts(moved(with_log()))
    assert (found.paused, found.halted, found.thin) == ((), (), ())
    assert (found.short, found.unreadable) == (0, 0)


def test_a_shard_without_its_primary_process_is_paused():
    assert facts(done(with_log(), down(1))).paused == (("orders/1", "peer-1 is down"),)
    restarted = facts(done(with_log(), register(1, boot=2)))
    assert restarted.paused == (("orders/1", "peer-1 has restarted"),)


def test_a_shard_with_too_few_voters_is_paused_one_with_enough_is_thin():
    thin = facts(done(with_log(), down(2)))
    assert (thin.paused, thin.thin) == ((), ("orders/1",))
    paused = facts(done(with_log(), down(2), down(3)))
    assert paused.paused == (("orders/1", "1 of its 3 voters are up, 2 needed"),)


def test_nothing_is_at_stake_while_two_nodes_have_everything():
    assert not facts(moved(with_log())).worst.node
    assert not facts(done(moved(with_log()), down(2))).worst.node


def test_the_node_that_alone_has_records_is_told_with_what_it_has():
    found = facts(done(moved(with_log()), down(2), down(3))).worst
    # Peer 4 has the only live vote of the open segment, peer 1 alone the nine sealed records.
    assert (found.node, found.shards, found.sealed_records, found.open_shards) == (
        "peer-1",
        1,
        9,
        0,
    )
    found = facts(done(moved(with_log()), down(1), down(2), down(4))).worst
    assert (found.node, found.shards, found.sealed_records, found.open_shards) == (
        "peer-3",
        1,
        9,
        1,
    )


def test_what_is_at_stake_is_so_since_the_last_other_store_was_heard():
    found = facts(done(moved(with_log()), down(2), down(3)))
    heard_ms = {"peer-2": 70_000, "peer-3": 42_000, "peer-4": 0}
    # The nine sealed records of peer 1 are on peers 2 and 3, too: peer 3 was heard last.
    assert found.exposed_ms("peer-1", heard_ms.__getitem__) == 42_000
    assert facts(moved(with_log())).exposed_ms("peer-1", heard_ms.__getitem__) is None


def test_what_is_in_the_tier_is_not_at_stake():
    state = done(moved(with_log()), down(2), down(3), down(4))
    entry = state.shards[SHARD]
    tier = Tiered(begin=Offset(0), end=Offset(7), manifest="m")
    tiered = replace(entry.shard, tier=tier)
    (alone,) = _alone(state, replace(entry, shard=tiered))
    assert (alone.node, alone.records) == ("peer-1", 2)
    whole = replace(tiered, tier=replace(tier, end=Offset(9)))
    assert not list(_alone(state, replace(entry, shard=whole)))


def test_a_standing_fence_pauses():
    found = facts(done(with_log(), FenceSegment(shard=SHARD, epoch=Epoch(1))))
    assert "its end is being found out" in found.paused[0][1]


def test_a_fence_that_lacks_voters_names_them_and_the_last_resort():
    fence = FenceSegment(shard=SHARD, epoch=Epoch(1))
    assert "being found out" in facts(done(with_log(), down(1), fence)).paused[0][1]
    why = facts(done(with_log(), down(1), down(2), fence)).paused[0][1]
    assert why.startswith("what peer-1, peer-2 has is needed")
    assert "`peerctl recover shard`" in why


def test_a_halted_shard_is_told():
    halt = HaltShard(shard=SHARD, epoch=Epoch(7), node=name(2), why="never drawn")
    ((shard, why),) = facts(done(with_log(), halt)).halted
    assert shard == "orders/1"
    assert "never drawn" in why


def test_a_holder_at_risk_counts_as_no_copy_and_one_that_is_down_cannot_be_read():
    state = done(moved(with_log()), SetAtRisk(node=name(1), at_risk=True))
    assert (facts(state).short, facts(state).unreadable) == (1, 0)
    state = done(state, down(1), down(2), down(3))
    assert (facts(state).short, facts(state).unreadable) == (1, 1)


def test_what_no_store_keeps_lacks_no_copy():
    state = moved(with_log())
    entry = state.shards[SHARD]
    tier = Tiered(begin=Offset(0), end=Offset(9), manifest="m")
    for trimmed_to, lacks in ((8, 1), (9, 0)):
        shard = replace(entry.shard, trimmed_to=Offset(trimmed_to), tier=tier)
        gone = done(state.changed(shards=[replace(entry, shard=shard)]), *map(down, (1, 2, 3)))
        assert (facts(gone).short, facts(gone).unreadable) == (lacks, lacks)


def test_a_restored_shard_waits_for_peers_of_the_new_cluster():
    entry = with_log().shards[SHARD]
    opened = replace(entry.shard.open, plan=plan_of_nobody())
    shard = replace(entry.shard, open=opened, fence=Epoch(9))
    state = with_log().changed(shards=[replace(entry, shard=shard)])
    assert "waits for enough peers of the new cluster" in facts(state).paused[0][1]


def test_what_is_protected_is_looked_up_for_endangered_nodes_alone():
    state = done(moved(with_log()), SetAtRisk(node=name(5), at_risk=True))
    found = facts(state)
    assert found.shielded == found.expendable == {name(5)}


async def test_a_feed_gives_each_reader_what_it_lacks():
    before = with_log()
    after = moved(before)
    feed = MapFeed()
    assert feed.since(after, after.version) is None
    whole = await feed.whole(after)
    assert (whole.full, len(whole.nodes), len(whole.shards)) == (True, 5, 1)
    delta = feed.since(after, before.version)
    assert (delta.full, len(delta.nodes), len(delta.shards)) == (False, 0, 1)
    assert feed.since(after, before.version) is delta
    # A reader that claims to be ahead of what is committed gets everything.
    assert feed.since(before, after.version).full
    assert feed.since(after, before.version).version == after.version


async def test_an_older_peer_never_meets_an_entry_that_segments_share():
    """Of the feed everybody gets the same, so one of them decides for all."""
    levels = [register(each, feature_level=SHARED_ENTRY_LEVEL) for each in range(1, 6)]
    raised = RaiseCommandLevel(level=JOINING_LEVEL)
    state = done(with_log(), *levels, raised)
    for epoch in (1, 2):
        state = done(
            state,
            PrepareSegment(shard=SHARD, epoch=Epoch(epoch), plan=plan_of(1, 1, 2, 3)),
            SegmentOpened(
                shard=SHARD,
                epoch=Epoch(epoch + 1),
                begin=Offset(9 * epoch),
                holders=(replica(1), replica(2), replica(3)),
            ),
        )
    assert len(state.shards[SHARD].shard.sealed) == 2
    feed = MapFeed()
    for newest, entries in (
        (state, 1),
        (done(state, register(5, boot=2, feature_level=SHARED_ENTRY_LEVEL - 1)), 2),
    ):
        assert len((await feed.whole(newest)).shards[0].sealed) == entries
        assert len(feed.since(newest, 0).shards[0].sealed) == entries
        assert len(encode_part(newest, newest.logs["orders"]).shards[0].sealed) == entries


async def test_a_whole_map_is_encoded_in_slices_and_the_loop_goes_on_in_between(monkeypatch):
    """Heartbeats of the consensus group travel through the same loop."""
    monkeypatch.setattr("las.daemon.map_feed.SLICE_SHARDS_MAX", 2)
    state = with_log(rows=((0, 1, 2),) * 9)
    feed, turns = MapFeed(), 0
    first, second = (asyncio.ensure_future(feed.whole(state)) for _ in range(2))
    while not first.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 5
    assert await first is await second
    assert list((await first).shards) == list(feed.since(state, 0).shards)


def test_facts_that_follow_changes_equal_facts_made_anew():
    watch, index = MapWatch(), FleetIndex()
    state = with_log(rows=((0, 1, 2), (1, 2, 3), (2, 3, 4)))
    fence = FenceSegment(shard=SHARD, epoch=Epoch(1))
    back = register(1, boot=2)
    at_risk = SetAtRisk(node=name(3), at_risk=True)
    calm = SetAtRisk(node=name(3), at_risk=False)
    for command in (down(1), down(4), fence, back, at_risk, calm):
        state = done(state, command)
        index.update(state)
        assert watch.update(state, index) == facts(state)

"""Peers register, live, report and die; what the LAS does about it."""

from dataclasses import replace

import grpc
import pytest

from las.core.state import NodeState
from las.daemon.services import fleet as fleet_service
from las.v1 import fleet_pb2 as pb
from peerd.pki import Role
from peerd.transport.map_codec import encode_replica
from tests.las_daemon.stand_in import ADMIN, metadata, refused, until
from tests.las_daemon.test_logs import create, switch


def replica_of(las, name):
    return encode_replica(las.state.nodes[name].replica)


def by_name(las, name):
    return next(peer for peer in las.peers if peer.name == name)


def other_than(las, *names):
    return next(peer for peer in las.peers if peer.name not in names)


def open_segment(las, shard=1):
    return las.state.shards[shard].shard.open


def status(las):
    return las.fleet.GetStatus(pb.GetStatusRequest(), metadata=ADMIN, timeout=30)


# ---------------------------------------------------------------------------------- register
async def test_a_peer_gets_the_cluster_and_the_whole_map(las):
    (peer,) = await las.add_peers(1)
    answer = await peer.register()
    assert answer.cluster_id == las.state.cluster_id
    assert answer.map.full
    assert [node.name for node in answer.map.nodes] == ["peer-1"]
    assert (answer.heartbeat_period_ms, answer.lease_ms) == (50, 600_000)
    assert las.state.nodes["peer-1"].host == "host-1"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cluster_id": "another"}, "WRONG_CLUSTER"),
        ({"store_id": "f" * 32}, "STORE_ID_CHANGED"),
        ({"store_id": "short"}, "INVALID_ARGUMENT"),
        ({"boot_id": ""}, "INVALID_ARGUMENT"),
        ({"address": "nowhere"}, "INVALID_ARGUMENT"),
        ({"labels": {"colour": "red"}}, "INVALID_ARGUMENT"),
        ({"labels": {"host": ""}}, "INVALID_ARGUMENT"),
        ({"shards": [pb.StoredShard(shard=7, promised=1)]}, "LAS_LOST_ITS_PAST"),
    ],
)
async def test_a_registration_that_does_not_fit_is_refused(las, changes, reason):
    (peer,) = await las.add_peers(1)
    before = las.state.nodes
    found, refusal = await refused(peer.register(**changes))
    assert found == reason
    assert "peer-1" in refusal.message or "store" in refusal.message
    assert las.state.nodes is before


async def test_a_store_from_a_lost_past_is_told_until_it_is_let_in(las):
    (peer,) = await las.add_peers(1)
    await refused(peer.register(shards=[pb.StoredShard(shard=7, promised=1)]))
    (line,) = [each for each in (await status(las)).warnings if "not let in" in each]
    assert line.startswith("peer-1 is not let in: the store has shard 7, which this LAS never")
    assert "Keep the store" in line
    await peer.register()
    assert not any("not let in" in each for each in (await status(las)).warnings)


async def test_only_peers_register_and_under_their_own_name(las):
    (peer,) = await las.add_peers(1)
    call = las.fleet.Register(peer.registration(), metadata=metadata(Role.LAS, "x"), timeout=30)
    assert (await refused(call))[0] == "ROLE_NOT_ALLOWED"
    assert set(las.state.nodes) == {"peer-1"}


async def test_a_new_process_ends_the_old_one(las):
    (peer,) = await las.add_peers(1)
    old = peer.boot
    peer.boot = "b" * 32
    await peer.register()
    assert las.state.nodes["peer-1"].boot == peer.boot
    assert (await refused(peer.register(boot_id=old)))[0] == "PROCESS_SUPERSEDED"
    # The node is in, with the newer one: nobody has to do anything.
    assert not any("not let in" in each for each in (await status(las)).warnings)
    call = await peer.heartbeats(peer.beat(boot_id=old))
    assert await call.code() is grpc.StatusCode.ABORTED


async def test_an_epoch_that_was_never_drawn_halts_its_shard(las):
    peers = await las.add_peers(3)
    await create(las, shards=2)
    await peers[0].register(shards=[pb.StoredShard(shard=1, promised=9)])
    assert las.state.shards[1].halted
    assert not las.state.shards[2].halted
    assert (await status(las)).warnings[0].startswith("shard orders/1 is halted")


# ---------------------------------------------------------------------------------- heartbeats
async def test_heartbeats_are_answered_and_changes_come_at_once(las):
    peer, *_ = await las.add_peers(3)
    call = await peer.heartbeats(peer.beat(map_version=las.state.version))
    await until(lambda: len(peer.updates) == 1)
    assert not peer.updates[0].HasField("map")
    await create(las, shards=1)
    await until(lambda: len(peer.updates) == 2)
    update = peer.updates[1].map
    assert (update.full, update.version) == (False, las.state.version)
    assert [shard.shard for shard in update.shards] == [1]
    await call.write(peer.beat(map_version=update.version))
    await until(lambda: len(peer.updates) == 3)
    assert not peer.updates[2].HasField("map")
    found = {node.node.name: node for node in (await status(las)).nodes}["peer-1"]
    assert (found.free_bytes, found.stored_bytes) == (1 << 40, 7)


@pytest.mark.parametrize(
    ("waiting_s", "trouble", "told"),
    [
        (59, "TIER_UNAVAILABLE: s3: 500", ""),
        (61, "TIER_UNAVAILABLE: s3: 500", ", the oldest record for 61 s; "),
        (0, "NO_CREDENTIALS: s3 refuses this peer", "waits for the tier; "),
        (3_599, "", ""),
        (3_601, "", "the tier takes less than is written"),
    ],
)
async def test_a_tier_that_takes_nothing_is_told(las, waiting_s, trouble, told):
    peer, *_ = await las.add_peers(3)
    lag = pb.TierLag(waiting_ms=waiting_s * 1000, trouble=trouble)
    call = await peer.heartbeats(peer.beat(tier_lag=lag))
    await until(lambda: len(peer.updates) == 1)
    lines = [line for line in (await status(las)).warnings if "tier" in line]
    assert len(lines) == bool(told)
    assert all("peer-1" in line and told in line and trouble in line for line in lines)
    await call.write(peer.beat())
    await until(lambda: len(peer.updates) == 2)
    assert not [line for line in (await status(las)).warnings if "tier" in line]


async def test_damaged_batches_are_told_in_the_status_until_they_are_repaired(las):
    peer, *_ = await las.add_peers(3)
    call = await peer.heartbeats(peer.beat(damaged_batches=2, repaired_batches=5))
    await until(lambda: len(peer.updates) == 1)
    answer = await status(las)
    found = {node.node.name: node for node in answer.nodes}["peer-1"]
    assert (found.damaged_batches, found.repaired_batches) == (2, 5)
    assert not found.HasField("scrub_age_s")
    (line,) = [line for line in answer.warnings if "damaged" in line]
    assert line.startswith("2 stored batches are damaged on peer-1: no holder could give")
    await call.write(peer.beat(repaired_batches=7, scrub_age_s=40))
    await until(lambda: len(peer.updates) == 2)
    answer = await status(las)
    found = {node.node.name: node for node in answer.nodes}["peer-1"]
    assert (found.damaged_batches, found.repaired_batches, found.scrub_age_s) == (0, 7, 40)
    assert not [line for line in answer.warnings if "damaged" in line]


async def test_a_stream_of_an_unknown_process_is_refused(las):
    (peer,) = await las.add_peers(1)
    call = await peer.heartbeats(peer.beat(boot_id="c" * 32))
    assert await call.code() is grpc.StatusCode.ABORTED
    assert "register first" in await call.details()


async def test_too_many_samples_are_refused(las):
    (peer,) = await las.add_peers(1)
    call = await peer.heartbeats(peer.beat(samples=peer.samples(121, commit_ms=2.0)))
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_peer_that_falls_silent_is_down_after_its_lease_and_up_when_heard(start_las):
    las = await (await start_las(heartbeat_ms=50, lease_ms=300)).leading()
    (peer,) = await las.add_peers(1)
    call = await peer.heartbeats()
    await until(lambda: las.state.nodes["peer-1"].state is NodeState.DOWN)
    warnings = (await status(las)).warnings
    assert any(line.startswith("peer-1 is down") for line in warnings), warnings

    async def up() -> bool:
        await call.write(peer.beat())
        return las.state.nodes["peer-1"].state is NodeState.UP

    await until(up)


# ---------------------------------------------------------------------------------- reports
async def test_a_hand_over_is_prepared_opened_and_survives_repeats(las):
    await las.add_peers(3)
    await create(las, shards=1)
    primary = open_segment(las).plan.primary.peer
    heir = other_than(las, primary)
    await switch(las, 1, heir.name)
    opened = pb.PeerReport(
        segment_opened=pb.SegmentOpened(
            shard=1, epoch=2, begin=40, holders=[replica_of(las, primary)]
        )
    )
    await heir.report(opened)
    assert (open_segment(las).epoch, open_segment(las).begin) == (2, 40)
    sealed = las.state.shards[1].shard.sealed[0]
    assert [holder.peer for holder in sealed.holders] == [primary]
    await heir.report(opened)
    await heir.report(pb.PeerReport(holder_added=pb.HolderAdded(shard=1, epoch=1)))
    sealed = las.state.shards[1].shard.sealed[0]
    assert {holder.peer for holder in sealed.holders} == {primary, heir.name}
    await heir.report(pb.PeerReport(holder_lost=pb.HolderLost(shard=1, epoch=1)))
    sealed = las.state.shards[1].shard.sealed[0]
    assert [holder.peer for holder in sealed.holders] == [primary]


async def test_a_decline_counts_only_from_the_old_primary(las):
    await las.add_peers(3)
    await create(las, shards=1)
    primary = by_name(las, open_segment(las).plan.primary.peer)
    heir = other_than(las, primary.name)
    await switch(las, 1, heir.name)
    declined = pb.PeerReport(declined=pb.Declined(shard=1, epoch=1, prepared=2, why="no"))
    await heir.report(declined)
    assert las.state.shards[1].shard.prepared is not None
    await primary.report(declined)
    assert las.state.shards[1].shard.prepared is None


async def test_two_refused_connections_move_the_shards_elsewhere(las):
    await las.add_peers(4)
    await create(las, shards=1)
    victim = by_name(las, open_segment(las).plan.primary.peer)
    accusers = [peer for peer in las.peers if peer is not victim][:2]
    suspect = pb.Suspect(peer=victim.name, boot_id=victim.boot, connection_refused=True)
    for accuser in accusers:
        await accuser.report(pb.PeerReport(suspect=suspect))
    await until(lambda: open_segment(las).epoch > 1, "a new segment")
    assert las.state.nodes[victim.name].state is NodeState.DOWN
    assert victim.name not in {voter.peer for voter in open_segment(las).plan.voters}
    asked = [peer.name for peer in las.peers if peer.promised]
    assert len(asked) >= 2
    assert las.state.shards[1].shard.fence == 0


async def test_one_accuser_is_not_believed_while_others_hear_the_node(las):
    await las.add_peers(3)
    await create(las, shards=1)
    victim = by_name(las, open_segment(las).plan.primary.peer)
    accuser, witness = (peer for peer in las.peers if peer is not victim)
    witness.silences[victim.name] = 0
    suspect = pb.Suspect(peer=victim.name, boot_id=victim.boot, connection_refused=True)
    await accuser.report(pb.PeerReport(suspect=suspect))
    await until(lambda: not las.term.detector._nodes[victim.name].accusations, "was cleared")
    assert las.state.nodes[victim.name].state is NodeState.UP
    assert open_segment(las).epoch == 1


async def test_one_accuser_is_believed_if_the_stream_to_the_las_broke_as_well(las):
    await las.add_peers(3)
    await create(las, shards=1)
    victim = by_name(las, open_segment(las).plan.primary.peer)
    accuser, witness = (peer for peer in las.peers if peer is not victim)
    witness.silences[victim.name] = 0
    call = await victim.heartbeats()
    await until(lambda: len(victim.updates) > 0)
    call.cancel()
    await until(lambda: las.term.detector._nodes[victim.name].broken, "the end of the stream")
    suspect = pb.Suspect(peer=victim.name, boot_id=victim.boot, connection_refused=True)
    await accuser.report(pb.PeerReport(suspect=suspect))
    await until(lambda: las.state.nodes[victim.name].state is NodeState.DOWN)


async def test_the_end_of_an_old_stream_says_nothing_while_a_newer_one_lives(las):
    (peer,) = await las.add_peers(1)
    first = await peer.heartbeats()
    await until(lambda: len(peer.updates) == 1)
    await peer.heartbeats()
    await until(lambda: len(peer.updates) == 2)
    first.cancel()
    await until(first.done)
    await status(las)
    assert not las.term.detector._nodes["peer-1"].broken


async def test_a_stalled_voter_is_replaced_by_plan(las):
    await las.add_peers(4)
    await create(las, shards=1)
    plan = open_segment(las).plan
    primary = by_name(las, plan.primary.peer)
    voter = next(each for each in plan.voters if each.peer != primary.name)
    stall = pb.Stall(shard=1, epoch=1, voter=encode_replica(voter), stalled_ms=500)
    await primary.report(pb.PeerReport(stall=stall))
    await until(lambda: las.state.shards[1].shard.prepared is not None, "a prepared segment")
    prepared = las.state.shards[1].shard.prepared.plan
    assert prepared.primary == plan.primary
    assert voter not in prepared.voters
    assert voter in prepared.non_voters


async def test_a_failed_store_is_down_until_a_new_process_comes(las):
    peer, *_ = await las.add_peers(3)
    await peer.report(pb.PeerReport(storage_failed=pb.StorageFailed(why="fsync: EIO")))
    assert las.state.nodes["peer-1"].state is NodeState.FAILED
    warnings = (await status(las)).warnings
    assert any("storage of peer-1 failed" in line for line in warnings)
    peer.boot = "d" * 32
    await peer.register()
    assert las.state.nodes["peer-1"].state is NodeState.UP


async def test_a_promise_that_the_las_never_asked_for_halts_the_shard(las):
    peer, *_ = await las.add_peers(3)
    await create(las, shards=1)
    drawn = pb.HigherPromise(shard=1, epoch=1, promised=1)
    await peer.report(pb.PeerReport(higher_promise=drawn))
    assert not las.state.shards[1].halted
    never = pb.HigherPromise(shard=1, epoch=1, promised=5)
    await peer.report(pb.PeerReport(higher_promise=never))
    assert "epoch 5" in las.state.shards[1].halted


async def test_reports_have_bounds_and_a_sender(las):
    (peer,) = await las.add_peers(1)
    report = pb.PeerReport(holder_added=pb.HolderAdded(shard=1, epoch=1))
    assert (await refused(peer.report(*[report] * 1025)))[0] == "INVALID_ARGUMENT"
    assert (await refused(peer.report(pb.PeerReport())))[0] == "INVALID_ARGUMENT"
    await peer.report(*[report] * 200)
    peer.boot = "e" * 32
    assert (await refused(peer.report(report)))[0] == "STATE_CHANGED"


# ---------------------------------------------------------------------------------- operators
async def test_a_drained_node_is_left_and_told_so(las):
    await las.add_peers(4)
    await create(las, shards=1)
    victim = next(
        voter.peer
        for voter in open_segment(las).plan.voters
        if voter.peer != open_segment(las).plan.primary.peer
    )
    drain = pb.DrainRequest(node="nobody")
    assert (await refused(las.fleet.Drain(drain, metadata=ADMIN, timeout=30)))[0] == "UNKNOWN_NODE"
    await las.fleet.Drain(pb.DrainRequest(node=victim), metadata=ADMIN, timeout=30)
    await until(lambda: las.state.shards[1].shard.prepared is not None, "a prepared segment")
    prepared = las.state.shards[1].shard.prepared.plan
    assert victim not in {voter.peer for voter in prepared.voters}
    found = {node.node.name: node for node in (await status(las)).nodes}[victim]
    assert (found.node.draining, found.shielded) == (True, False)
    holders = [replica_of(las, voter.peer) for voter in open_segment(las).plan.voters]
    await by_name(las, prepared.primary.peer).report(
        pb.PeerReport(segment_opened=pb.SegmentOpened(shard=1, epoch=2, begin=0, holders=holders))
    )
    await until(lambda: len(las.state.events.get(victim, ())) >= 3, "shielded and expendable")
    found = {node.node.name: node for node in (await status(las)).nodes}[victim]
    assert (found.shielded, found.expendable) == (True, True)
    await las.fleet.Undrain(pb.UndrainRequest(node=victim), metadata=ADMIN, timeout=30)
    assert not las.state.nodes[victim].draining


async def test_a_new_store_is_told_until_somebody_lets_it_in(start_las):
    las = await (await start_las(heartbeat_ms=50, lease_ms=300)).leading()
    (peer,) = await las.add_peers(1)
    await peer.heartbeats()
    await until(lambda: las.state.nodes["peer-1"].state is NodeState.DOWN)
    assert (await refused(peer.register(store_id="f" * 32)))[0] == "STORE_ID_CHANGED"
    (line,) = [each for each in (await status(las)).warnings if "not let in" in each]
    assert f"`peerctl node replace peer-1 --store {'f' * 32}`" in line
    request = pb.ReplaceNodeRequest(node="peer-1", store_id="f" * 32)
    await las.fleet.ReplaceNode(request, metadata=ADMIN, timeout=30)
    # What is left to do is to start it.
    assert not any("not let in" in each for each in (await status(las)).warnings)


@pytest.mark.parametrize(
    ("method", "request_", "reason"),
    [
        ("RemoveNode", pb.RemoveNodeRequest(node="nobody"), "UNKNOWN_NODE"),
        ("RemoveNode", pb.RemoveNodeRequest(node="peer-1"), "STATE_CHANGED"),
        ("ReplaceNode", pb.ReplaceNodeRequest(node="nobody", store_id="f" * 32), "UNKNOWN_NODE"),
        ("ReplaceNode", pb.ReplaceNodeRequest(node="peer-1", store_id="f" * 32), "STATE_CHANGED"),
        ("ReplaceNode", pb.ReplaceNodeRequest(node="peer-1", store_id="new"), "INVALID_ARGUMENT"),
        ("CheckStop", pb.CheckStopRequest(node="nobody"), "UNKNOWN_NODE"),
    ],
)
async def test_a_membership_call_that_makes_no_sense_changes_nothing(las, method, request_, reason):
    await las.add_peers(1)
    before = las.state.version
    call = getattr(las.fleet, method)(request_, metadata=ADMIN, timeout=30)
    assert (await refused(call))[0] == reason
    assert las.state.version == before


async def test_what_a_stop_would_cost_is_told_shard_by_shard(las):
    await las.add_peers(4)
    await create(las, shards=1)
    plan = open_segment(las).plan
    primary = plan.primary.peer
    spare = next(name for name in las.state.nodes if name not in {v.peer for v in plan.voters})

    async def check(node: str) -> pb.CheckStopResponse:
        return await las.fleet.CheckStop(pb.CheckStopRequest(node=node), metadata=ADMIN, timeout=30)

    answer = await check(primary)
    assert not answer.safe
    assert answer.reasons[0] == "appends to orders/1 would pause until the LAS has replaced it"
    assert f"peerctl node drain {primary}" in answer.reasons[-1]
    assert [cost.kind for cost in answer.costs] == [
        pb.STOP_COST_KIND_PAUSE,
        pb.STOP_COST_KIND_FEWER_COPIES,
    ]
    assert answer.costs_total == 2
    assert await check(spare) == pb.CheckStopResponse(safe=True)


async def test_nothing_wrong_means_no_warning(las):
    peers = await las.add_peers(3)
    await create(las, shards=3)
    for peer in peers:
        await peer.heartbeats()
    answer = await status(las)
    assert list(answer.warnings) == []
    assert answer.las_leader == "las-1"
    assert [(node.name, node.up) for node in answer.las] == [("las-1", True)]
    assert (answer.logs, answer.shards, answer.shards_paused, answer.segments_short) == (1, 3, 0, 0)
    assert [(node.primaries, node.voting) for node in answer.nodes] == [(1, 3)] * 3


async def test_what_is_wrong_is_said_worst_first(las):
    peers = await las.add_peers(3)
    await create(las, shards=1)
    await create(las, name="pair", copies=2, acks=2)
    for peer in peers[1:]:
        await peer.report(pb.PeerReport(storage_failed=pb.StorageFailed(why="EIO")))
    await until(lambda: las.state.shards[1].shard.fence > 0 or bool(las.term.executor.shortages))
    answer = await status(las)
    assert answer.shards_paused >= 1
    assert "paused" in answer.warnings[0]
    assert any("peer-2 failed" in line for line in answer.warnings)
    assert any("acks = copies" in line for line in answer.warnings)
    positions = [
        next(at for at, line in enumerate(answer.warnings) if text in line)
        for text in ("paused", "peer-2 failed", "acks = copies")
    ]
    assert positions == sorted(positions)


# ---------------------------------------------------------------------------------- workload
async def workload(las, **wanted):
    return await las.fleet.GetWorkload(pb.GetWorkloadRequest(**wanted), metadata=ADMIN, timeout=30)


async def test_what_primaries_tell_of_their_shards_is_answered_the_busiest_first(las):
    await las.add_peers(3)
    await create(las, shards=2, copies=3)
    told = pb.NodeWorkload(
        period_s=10.0,
        shards=[
            pb.ShardWorkload(shard=1, bytes_per_s=5.0),
            pb.ShardWorkload(shard=2, bytes_per_s=7.0),
            pb.ShardWorkload(shard=99, bytes_per_s=9.0),
        ],
    )
    peer = by_name(las, "peer-1")
    call = await peer.heartbeats(peer.beat(workload=told))
    await until(lambda: las.term.vitals.of("peer-1") is not None)
    await call.write(peer.beat())  # one without figures leaves what was told
    answer = await workload(las)
    assert [(each.node, each.workload.shard) for each in answer.shards] == [
        ("peer-1", 2),
        ("peer-1", 1),
    ], "a shard that is not in the map is left out"
    assert not (await workload(las, node="peer-2")).shards
    reason, refusal = await refused(workload(las, log="another"))
    assert (reason, "there is no log 'another'" in refusal.message) == ("UNKNOWN_LOG", True)
    assert (await refused(workload(las, node="peer-9")))[0] == "UNKNOWN_NODE"
    # What is old tells of another time.
    heard = las.term.vitals.of("peer-1")
    las.term.vitals._heard["peer-1"] = replace(heard, workload_at_ms=heard.at_ms - 31_000)
    assert not (await workload(las)).shards


async def test_a_workload_of_too_many_shards_is_refused(las, monkeypatch):
    monkeypatch.setattr(fleet_service, "WORKLOAD_SHARDS_MAX", 1)
    (peer,) = await las.add_peers(1)
    shards = [pb.ShardWorkload(shard=number) for number in (1, 2)]
    call = await peer.heartbeats(peer.beat(workload=pb.NodeWorkload(shards=shards)))
    assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_narrow_link_gets_no_share_of_a_busy_shard(las):
    await las.add_peers(5)
    await create(las, shards=1, copies=3)
    plan = open_segment(las).plan
    primary = next(peer for peer in las.peers if peer.name == plan.primary.peer)
    busy = pb.NodeWorkload(period_s=10.0, shards=[pb.ShardWorkload(shard=1, bytes_per_s=5e6)])
    await primary.heartbeats(primary.beat(workload=busy))
    spare = [p for p in las.peers if p.name not in {voter.peer for voter in plan.voters}]
    # By its name alone the first one would be taken.
    await spare[0].heartbeats(spare[0].beat(network_bytes_per_s=2_500_000))
    await until(lambda: spare[0].name in las.term.view().network.capacity, "its link is known")
    await until(lambda: las.term.vitals.of(primary.name) is not None, "the workload is told")
    await las.term._writes.look()
    las.term.executor._placement = None  # it is kept for some seconds
    gone = next(v.peer for v in plan.voters if v.peer != primary.name)
    request = pb.DrainRequest(node=gone)
    await las.fleet.Drain(request, metadata=ADMIN, timeout=30)
    await until(lambda: las.state.shards[1].shard.prepared is not None, "another voter is planned")
    voters = las.state.shards[1].shard.prepared.plan.voters
    assert spare[1].name in {voter.peer for voter in voters}

"""Logs are created where there is room for them, and every refusal says why."""

import asyncio

import pytest

from las.core.commands import CreateLog, SegmentOpened, WithdrawSegment
from las.v1 import log_admin_pb2 as pb
from las.v1 import shard_map_pb2
from las.v1.shard_map_pb2 import COMPRESSION_NONE, COMPRESSION_ZSTD
from peerd.core.ids import Offset, ShardId
from peerd.pki import Role
from tests.las_daemon.stand_in import ADMIN, metadata, refused, until


def create(las, name="orders", shards=2, **fields):
    request = pb.CreateLogRequest(name=name, shards=shards, **fields)
    return las.logs.CreateLog(request, metadata=ADMIN, timeout=30)


def switch(las, shard, node):
    request = pb.SwitchPrimaryRequest(shard=shard, node=node)
    return las.logs.SwitchPrimary(request, metadata=ADMIN, timeout=30)


async def test_a_log_is_created_listed_and_described(las):
    await las.add_peers(3)
    log = (await create(las, shards=3)).log
    assert (log.name, log.copies, log.acks, list(log.shards)) == ("orders", 3, 2, [1, 2, 3])
    listed = await las.logs.ListLogs(pb.ListLogsRequest(), metadata=ADMIN, timeout=30)
    assert [each.name for each in listed.logs] == ["orders"]
    described = await las.logs.DescribeLog(
        pb.DescribeLogRequest(name="orders"), metadata=ADMIN, timeout=30
    )
    assert described.log == log
    assert [shard.shard for shard in described.shards] == [1, 2, 3]
    primaries = {shard.open.plan.primary.peer for shard in described.shards}
    assert primaries == {"peer-1", "peer-2", "peer-3"}
    assert all(len(shard.open.plan.voters) == 3 for shard in described.shards)


async def test_defaults_follow_the_hosts_that_are_up(las):
    assert (await refused(create(las)))[0] == "NOT_ENOUGH_PEERS"
    await las.add_peers(1)
    assert (await refused(create(las)))[0] == "NOT_ENOUGH_PEERS"
    assert (await create(las, name="single", copies=1)).log.acks == 1
    await las.add_peers(1)
    log = (await create(las)).log
    assert (log.copies, log.acks) == (2, 2)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "orders"}, "LOG_EXISTS"),
        ({"name": "Orders"}, "INVALID_ARGUMENT"),
        ({"name": ""}, "INVALID_ARGUMENT"),
        ({"name": "_positions"}, "INVALID_ARGUMENT"),
        ({"name": "a", "shards": 0}, "INVALID_ARGUMENT"),
        ({"name": "a", "shards": 1025}, "INVALID_ARGUMENT"),
        ({"name": "a", "copies": 2, "acks": 3}, "INVALID_ARGUMENT"),
        ({"name": "a", "copies": 4}, "NOT_ENOUGH_PEERS"),
        ({"name": "a", "acks": 4}, "INVALID_ARGUMENT"),
    ],
)
async def test_what_cannot_be_created_is_refused(las, fields, reason):
    await las.add_peers(3)
    await create(las)
    found, refusal = await refused(create(las, **fields))
    assert found == reason
    assert refusal.message
    assert set(las.state.logs) == {"orders"}


async def internal(las, peer, name="_positions"):
    request = pb.CreateInternalLogRequest(name=name)
    return (await las.logs.CreateInternalLog(request, metadata=peer.metadata, timeout=30)).log


async def test_a_peer_has_an_internal_log_created_once(las):
    await las.add_peers(3)
    made = await internal(las, las.peers[0])
    assert (made.name, made.copies, made.acks, len(made.shards)) == ("_positions", 3, 2, 1)
    assert await internal(las, las.peers[1]) == made
    listed = await las.logs.ListLogs(pb.ListLogsRequest(), metadata=ADMIN, timeout=30)
    assert list(listed.logs) == []
    described = await las.logs.DescribeLog(
        pb.DescribeLogRequest(name="_positions"), metadata=ADMIN, timeout=30
    )
    assert described.log == made
    split = las.logs.SplitShard(
        pb.SplitShardRequest(shard=made.shards[0]), metadata=ADMIN, timeout=30
    )
    assert (await refused(split))[0] == "INVALID_ARGUMENT"
    assert (await refused(internal(las, las.peers[0], "_other")))[0] == "INVALID_ARGUMENT"
    for fields in ({"copies": 1}, {"hot_bytes": 7, "retention_ms": 9}, {}):
        request = pb.AlterLogRequest(name="_positions", **fields)
        altered = las.logs.AlterLog(request, metadata=ADMIN, timeout=30)
        assert (await refused(altered))[0] == "INVALID_ARGUMENT"
    # It may go to the tier, for backups: that changes nothing of what it keeps.
    request = pb.AlterLogRequest(name="_positions", hot_bytes=0)
    tiered = await las.logs.AlterLog(request, metadata=ADMIN, timeout=30)
    assert tiered.log == made


async def test_peers_that_need_an_internal_log_at_the_same_time_get_the_same_one(las, monkeypatch):
    await las.add_peers(3)
    submit, all_ask = las.node.group.submit, asyncio.Barrier(3)

    async def submit_together(command):
        if isinstance(command, CreateLog):
            await all_ask.wait()
        return await submit(command)

    monkeypatch.setattr(las.node.group, "submit", submit_together)
    made = await asyncio.gather(*(internal(las, peer) for peer in las.peers))
    assert all(each == made[0] for each in made)


async def test_only_peers_have_internal_logs_created(las):
    await las.add_peers(3)
    request = pb.CreateInternalLogRequest(name="_positions")
    call = las.logs.CreateInternalLog(request, metadata=ADMIN, timeout=30)
    assert (await refused(call))[0] == "ROLE_NOT_ALLOWED"


async def test_an_internal_log_has_one_copy_only_where_there_is_one_host(las):
    await las.add_peers(1)
    made = await internal(las, las.peers[0])
    assert (made.copies, made.acks) == (1, 1)


async def test_unknown_logs_are_refused(las):
    call = las.logs.DescribeLog(pb.DescribeLogRequest(name="no"), metadata=ADMIN, timeout=30)
    reason, refusal = await refused(call)
    assert reason == "UNKNOWN_LOG"
    assert "'no'" in refusal.message
    call = las.map.GetMap(shard_map_pb2.GetMapRequest(log="no"), metadata=ADMIN, timeout=30)
    assert (await refused(call))[0] == "UNKNOWN_LOG"


async def test_a_primary_is_handed_over_on_an_operators_word(las):
    await las.add_peers(3)
    await create(las, shards=1)
    now = las.state.shards[1].shard.open.plan.primary.peer
    other = next(peer.name for peer in las.peers if peer.name != now)
    assert (await refused(switch(las, 9, other)))[0] == "UNKNOWN_SHARD"
    assert (await refused(switch(las, 1, "nobody")))[0] == "UNKNOWN_NODE"
    assert (await refused(switch(las, 1, now)))[0] == "STATE_CHANGED"
    assert (await switch(las, 1, other)).epoch == 2
    prepared = las.state.shards[1].shard.prepared
    assert prepared.plan.primary.peer == other
    reason, refusal = await refused(switch(las, 1, other))
    assert (reason, refusal.epoch) == ("STATE_CHANGED", 2)


async def test_the_map_is_watched_as_it_changes(las):
    await las.add_peers(2)
    call = las.map.WatchMap(shard_map_pb2.WatchMapRequest(), metadata=ADMIN)
    first = (await call.read()).map
    assert first.full
    assert [node.name for node in first.nodes] == ["peer-1", "peer-2"]
    await create(las, shards=1)
    second = (await call.read()).map
    assert not second.full
    assert [log.name for log in second.logs] == ["orders"]
    assert second.version == las.state.version
    await create(las, name="other")
    third = (await call.read()).map
    assert [log.name for log in third.logs] == ["other"]
    call.cancel()
    part = await las.map.GetMap(
        shard_map_pb2.GetMapRequest(log="orders"), metadata=ADMIN, timeout=30
    )
    assert part.map.full
    assert [log.name for log in part.map.logs] == ["orders"]
    assert [shard.log for shard in part.map.shards] == ["orders"]
    assert len(part.map.nodes) == 2


async def test_who_has_a_map_gets_what_changed_since(las):
    await las.add_peers(2)
    await create(las, shards=1)
    known = las.state.version
    await create(las, name="other")

    async def ask(version):
        request = shard_map_pb2.GetMapRequest(known_version=version)
        return (await las.map.GetMap(request, metadata=ADMIN, timeout=30)).map

    change = await ask(known)
    assert not change.full
    assert [log.name for log in change.logs] == ["other"]
    nothing = await ask(las.state.version)
    assert not nothing.full
    assert not nothing.logs
    for unknown in (0, las.state.version + 1):
        assert (await ask(unknown)).full
    for version, full in ((known, False), (las.state.version + 1, True)):
        request = shard_map_pb2.WatchMapRequest(known_version=version)
        call = las.map.WatchMap(request, metadata=ADMIN)
        assert (await call.read()).map.full == full
        call.cancel()


def delete(las, name="orders", **fields):
    request = pb.DeleteLogRequest(name=name, **fields)
    return las.logs.DeleteLog(request, metadata=ADMIN, timeout=30)


async def test_a_look_ahead_deletes_nothing(las):
    await las.add_peers(3)
    await create(las)
    ahead = await delete(las)
    assert not ahead.deleted
    assert [shard.shard for shard in ahead.shards] == [1, 2]
    assert list(ahead.nodes) == ["peer-1", "peer-2", "peer-3"]
    assert set(las.state.logs) == {"orders"}


async def test_a_log_is_deleted_when_the_peers_have_heard_and_others_are_named(las):
    await las.add_peers(3)
    await create(las)
    first, second = las.peers[:2]
    await second.heartbeats(second.beat(map_version=1_000))
    await first.heartbeats()
    await until(lambda: bool(first.updates) and bool(second.updates), "heartbeats")
    done = await delete(las, accept_loss=True, shards=[1, 2])
    assert done.deleted
    assert list(done.unheard) == ["peer-1", "peer-3"]
    assert not las.state.logs
    assert not las.state.shards

    def told() -> bool:
        maps = [each.map for each in first.updates]
        return any((m.removed_logs, m.removed_shards) == (["orders"], [1, 2]) for m in maps)

    await until(told, "the change")
    assert (await refused(delete(las, accept_loss=True)))[0] == "UNKNOWN_LOG"
    log = (await create(las, shards=1)).log
    assert list(log.shards) == [3]
    whole = (await las.peers[2].register()).map
    assert ([shard.shard for shard in whole.shards], whole.next_shard) == ([3], 4)


async def test_what_cannot_be_deleted_is_refused(las):
    await las.add_peers(3)
    await create(las)
    await internal(las, las.peers[0])
    for fields, reason in (
        ({"name": "none"}, "UNKNOWN_LOG"),
        ({"name": "_positions", "accept_loss": True}, "INVALID_ARGUMENT"),
        ({"shards": [1], "accept_loss": True}, "STATE_CHANGED"),
    ):
        assert (await refused(delete(las, **fields)))[0] == reason
    assert set(las.state.logs) == {"orders", "_positions"}


async def test_a_deletion_in_the_midst_of_a_failover_ends_it(las):
    await las.add_peers(3)
    await create(las, shards=2)
    for peer in las.peers:
        peer.answers["Promise"] = lambda _: None
    await las.peers[0].register(boot_id="f" * 32)
    await until(lambda: any(each.shard.fence for each in las.state.shards.values()), "a fence")
    await delete(las, accept_loss=True)
    await until(lambda: las.term.executor.recovering == 0, "no work left")
    assert (await create(las, shards=1)).log.shards == [3]


def alter(las, name="orders", **fields):
    request = pb.AlterLogRequest(name=name, **fields)
    return las.logs.AlterLog(request, metadata=ADMIN, timeout=30)


async def test_copies_and_acks_are_altered_and_shards_follow(las):
    await las.add_peers(4)
    await create(las, shards=2, copies=2, acks=2)
    log = (await alter(las, copies=3)).log
    assert (log.copies, log.acks) == (3, 2)
    await until(
        lambda: all(
            entry.shard.prepared is not None and len(entry.shard.prepared.plan.voters) == 3
            for entry in las.state.shards.values()
        ),
        "shards follow",
    )
    again = (await alter(las, copies=3)).log
    assert again == log


async def test_a_log_says_how_its_clients_pack(las):
    await las.add_peers(3)
    assert (await create(las, "plain")).log.compression == COMPRESSION_NONE
    made = (await create(las, compression=COMPRESSION_ZSTD)).log
    assert made.compression == COMPRESSION_ZSTD
    altered = (await alter(las, compression=COMPRESSION_NONE)).log
    assert altered.compression == COMPRESSION_NONE
    assert (await alter(las, copies=2)).log.compression == COMPRESSION_NONE


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "no", "copies": 2}, "UNKNOWN_LOG"),
        ({"compression": 99}, "INVALID_ARGUMENT"),
        ({"acks": 3}, "INVALID_ARGUMENT"),
        ({"copies": 1}, "INVALID_ARGUMENT"),
        ({"copies": 4}, "NOT_ENOUGH_PEERS"),
        ({"name": "_positions", "copies": 2}, "INVALID_ARGUMENT"),
    ],
)
async def test_what_cannot_be_altered_is_refused_and_nothing_changes(las, fields, reason):
    peers = await las.add_peers(3)
    await create(las, copies=2, acks=2)
    await internal(las, peers[0])
    before = las.state.logs
    assert (await refused(alter(las, **fields)))[0] == reason
    assert las.state.logs == before


async def test_who_may_not_is_refused(las):
    await las.add_peers(1)
    for role in (Role.READER, Role.APPENDER, Role.PEER):
        call = las.logs.CreateLog(
            pb.CreateLogRequest(name="a", shards=1, copies=1),
            metadata=metadata(role, "x"),
            timeout=30,
        )
        assert (await refused(call))[0] == "ROLE_NOT_ALLOWED"
    call = las.logs.ListLogs(
        pb.ListLogsRequest(), metadata=metadata(Role.ADMIN, "x", cluster="other"), timeout=30
    )
    assert (await refused(call))[0] == "WRONG_CLUSTER"


async def test_a_new_log_goes_to_nodes_with_room(las):
    first, *_ = await las.add_peers(4)
    await first.heartbeats(first.beat(free_bytes=1))
    await until(lambda: las.term.view().free_bytes.get("peer-1") == 1)
    await create(las, shards=4)
    voters = {
        voter.peer for entry in las.state.shards.values() for voter in entry.shard.open.plan.voters
    }
    assert voters == {"peer-2", "peer-3", "peer-4"}


# ---------------------------------------------------------------------------- splits


def split(las, shard=1, **fields):
    request = pb.SplitShardRequest(shard=shard, **fields)
    return las.logs.SplitShard(request, metadata=ADMIN, timeout=20)


async def prepared(las):
    """The closed segment that the peers are to carry out."""
    await until(lambda: las.state.shards[1].shard.prepared is not None)
    return las.state.shards[1].shard.prepared


async def open_it(las, epoch):
    voter = las.state.shards[1].shard.open.plan.voters[0]
    opened = SegmentOpened(shard=ShardId(1), epoch=epoch, begin=Offset(0), holders=(voter,))
    assert (await las.node.group.submit(opened)).ok


async def test_a_shard_is_split_on_an_operators_word(las):
    await las.add_peers(3)
    await create(las, shards=1)
    asked = asyncio.ensure_future(split(las))
    again = asyncio.ensure_future(split(las))
    segment = await prepared(las)
    assert segment.plan.closed
    await open_it(las, segment.epoch)
    assert list((await asked).children) == [2, 3]
    assert list((await again).children) == [2, 3]
    assert list((await split(las)).children) == [2, 3]
    assert las.state.shards[3].shard.key_hash_low == 1 << 63
    described = await las.logs.DescribeLog(
        pb.DescribeLogRequest(name="orders"), metadata=ADMIN, timeout=30
    )
    assert list(described.log.shards) == [2, 3]
    assert [shard.shard for shard in described.shards] == [1, 2, 3]
    assert list(described.shards[0].split.children) == [2, 3]
    assert described.shards[1].parent.shard == 1


async def test_a_split_that_comes_to_nothing_says_so(las):
    await las.add_peers(3)
    await create(las, shards=1)
    asked = asyncio.ensure_future(split(las, at_key_hash=7))
    segment = await prepared(las)
    primary = las.state.shards[1].shard.open.plan.primary
    withdraw = WithdrawSegment(shard=ShardId(1), epoch=segment.epoch, declined_by=primary)
    assert (await las.node.group.submit(withdraw)).ok
    reason, refusal = await refused(asked)
    assert reason == "STATE_CHANGED"
    assert "ask again" in refusal.message


async def test_what_cannot_be_split_is_refused(las, monkeypatch):
    await las.add_peers(3)
    await create(las, shards=1)
    assert (await refused(split(las, 9)))[0] == "UNKNOWN_SHARD"
    assert (await refused(split(las, at_key_hash=0)))[0] == "INVALID_ARGUMENT"
    monkeypatch.setattr("las.daemon.services.log_admin.SPLIT_WAIT_S", 0.05)
    reason, refusal = await refused(split(las))
    assert reason == "LAS_UNAVAILABLE"
    assert "ask again" in refusal.message
    assert (await refused(split(las, at_key_hash=7)))[0] == "STATE_CHANGED"

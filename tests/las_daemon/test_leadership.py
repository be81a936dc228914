"""Three nodes in one process: who does not lead names who does; nothing moves without a leader."""

import asyncio
import contextlib
from functools import partial

import grpc
import pytest

from las.core.cluster import Cluster
from las.core.commands import RaiseCommandLevel, SetDraining
from las.core.levels import COMMAND_LEVEL
from las.core.rows import StepShards
from las.daemon import group as las_group
from las.daemon.directory import init
from las.daemon.group import Group
from las.raft import OutcomeUnknown, Overloaded
from las.v1 import fleet_pb2, forecast_pb2, log_admin_pb2, shard_map_pb2
from peerd.core.errors import Reason, Taken
from peerd.testing.ports import free_port
from peerd.transport.status import Refused
from tests.las_daemon.stand_in import (
    ADMIN,
    StandInPeer,
    las_config,
    refused,
    until,
)
from tests.las_daemon.test_fleet import status
from tests.las_daemon.test_forecast import forecast
from tests.las_daemon.test_logs import create, switch


@pytest.fixture
async def three(start_las):
    """The leader, and the two others."""
    members = {f"las-{number}": f"127.0.0.1:{free_port()}" for number in (1, 2, 3)}
    nodes = [await start_las(name, members=members) for name in members]
    await until(lambda: any(each.term for each in nodes), "a leader")
    leader = next(each for each in nodes if each.term)
    others = [each for each in nodes if each is not leader]
    await until(lambda: all(each.node.group.leader for each in others))
    return leader, others


async def test_others_name_the_leader_and_serve_the_map(three):
    leader, (other, _) = three
    await leader.add_peers(3)
    calls = {
        "CreateLog": create(other),
        "SwitchPrimary": switch(other, 1, "peer-1"),
        "ListLogs": other.logs.ListLogs(
            log_admin_pb2.ListLogsRequest(), metadata=ADMIN, timeout=30
        ),
        "GetStatus": status(other),
        "Drain": other.fleet.Drain(
            fleet_pb2.DrainRequest(node="peer-1"), metadata=ADMIN, timeout=30
        ),
        "GetForecast": forecast(other),
    }
    for name, call in calls.items():
        reason, refusal = await refused(call)
        assert (reason, refusal.leader) == ("NOT_LAS_LEADER", leader.node.address), name
    peer = StandInPeer(9, other.node.address)
    assert (await refused(peer.register()))[0] == "NOT_LAS_LEADER"
    call = await peer.heartbeats()
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    await peer.stop()
    await create(leader, shards=2)
    await until(lambda: other.state.version == leader.state.version)
    answer = await other.map.GetMap(shard_map_pb2.GetMapRequest(), metadata=ADMIN, timeout=30)
    assert [log.name for log in answer.map.logs] == ["orders"]
    assert answer.age_ms == 0


async def test_a_new_leader_goes_on_and_streams_of_the_old_one_end(three):
    leader, others = three
    (peer,) = await leader.add_peers(1)
    call = await peer.heartbeats()
    await until(lambda: len(peer.updates) > 0)
    await create(leader, copies=1)
    term = leader.term
    await leader.node.stop()
    assert term.over.is_set()
    assert leader.term is None
    assert await call.code() is not grpc.StatusCode.OK
    await until(lambda: any(each.term for each in others), "a new leader")
    successor = next(each for each in others if each.term)
    assert set(successor.state.logs) == {"orders"}
    assert successor.state.nodes["peer-1"].state.value == "up"
    answer = await status(successor)
    assert any(line.startswith("LAS") and "cannot be reached" in line for line in answer.warnings)
    again = StandInPeer(1, successor.node.address)
    again.address = peer.address
    await again.register()
    await again.stop()


async def _to_the_end(stream):
    while await stream.read() is not grpc.aio.EOF:
        pass


async def test_without_a_majority_status_says_so_and_nothing_is_decided(three):
    leader, others = three
    (peer,) = await leader.add_peers(1)
    call = await peer.heartbeats()
    watch = leader.forecast.WatchForecast(forecast_pb2.WatchForecastRequest(), metadata=ADMIN)
    await watch.read()
    for each in others:
        await each.node.stop()
    await until(lambda: leader.term is None, "the leadership was given up")
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert "LAS leader" in await call.details()
    assert (await refused(_to_the_end(watch)))[0] == "NOT_LAS_LEADER"
    assert (await refused(create(leader, copies=1)))[0] == "NOT_LAS_LEADER"
    version = leader.state.version
    await until(lambda: not leader.node.group.leader)
    answer = await status(leader)
    assert answer.las_leader == ""
    assert "no leader" in answer.warnings[0]
    assert leader.state.version == version
    answer = await leader.map.GetMap(shard_map_pb2.GetMapRequest(), metadata=ADMIN, timeout=30)
    assert [node.name for node in answer.map.nodes] == ["peer-1"]
    assert leader.node.why_not_ready() == "no LAS leader is known"


async def test_a_node_that_never_heard_of_the_map_says_so(start_las):
    members = {f"las-{number}": f"127.0.0.1:{free_port()}" for number in (1, 2, 3)}
    alone = await start_las("las-1", members=members)
    call = alone.map.GetMap(shard_map_pb2.GetMapRequest(), metadata=ADMIN, timeout=30)
    assert (await refused(call))[0] == "MAP_UNKNOWN"
    reason, refusal = await refused(create(alone))
    assert (reason, refusal.leader) == ("NOT_LAS_LEADER", "")
    assert refusal.retry_after_ms > 0


async def test_a_member_of_another_cluster_is_kept_out(start_las, tmp_path):
    members = {f"las-{number}": f"127.0.0.1:{free_port()}" for number in (1, 2, 3)}
    stranger = las_config(tmp_path / "las-3", name="las-3", members=members)
    init(stranger, "00000000-0000-4000-8000-000000000002")
    nodes = [await start_las(name, members=members) for name in members]
    await until(lambda: any(each.term for each in nodes[:2]), "a leader")
    leader = next(each for each in nodes if each.term)
    await until(lambda: "las-3" not in leader.node.group.status.members_up)
    await leader.add_peers(1)
    await create(leader, copies=1)
    assert nodes[2].state.version == 0
    assert nodes[2].term is None


async def test_a_stopping_node_takes_no_commands_but_ends_those_under_way(las):
    await las.add_peers(1)
    group = las.node.group
    submitting = asyncio.ensure_future(group.submit(SetDraining(node="peer-1", draining=True)))
    await asyncio.sleep(0)
    await group.close(timeout_s=5)
    assert submitting.done()
    assert submitting.result().ok
    assert (await refused(create(las, copies=1)))[0] == "SHUTTING_DOWN"


async def test_a_command_without_an_outcome_is_never_called_failed():
    group = Group("las-1", {"las-1": "127.0.0.1:1"}, "id")
    for error, reason, taken in (
        (OutcomeUnknown("no outcome within 1 ms"), Reason.LAS_UNAVAILABLE, Taken.UNKNOWN),
        (Overloaded("1 command is open", 150), Reason.OVERLOADED, Taken.NO),
    ):
        refused_ = group._refused(error)
        assert isinstance(refused_, Refused)
        assert (refused_.refusal.reason, refused_.refusal.taken) == (reason, taken)
        assert refused_.refusal.retry_after_ms > 0


async def test_an_older_node_is_waited_for_with_commands_that_it_does_not_know(
    start_las, monkeypatch
):
    members = {f"las-{number}": f"127.0.0.1:{free_port()}" for number in (1, 2, 3)}
    nodes = [await start_las(name, members=members) for name in list(members)[:2]]
    with monkeypatch.context() as older:
        older.setattr(las_group, "Cluster", partial(Cluster, level=1))
        old = await start_las("las-3", members=members)
    await until(
        lambda: all(len(n.node.group.status.members_up) == 3 for n in (*nodes, old)), "three"
    )
    await until(lambda: any(each.term for each in (*nodes, old)), "a leader")
    leader = next(each for each in (*nodes, old) if each.term)
    await leader.add_peers(3)
    for command in (StepShards(), RaiseCommandLevel(level=2)):
        with pytest.raises(Refused) as refusal:
            await leader.node.group.submit(command)
        assert refusal.value.refusal.reason == Reason.LIMIT_REACHED
        assert "upgrade and start them all" in refusal.value.refusal.message
    await create(leader, shards=4)
    await old.node.stop()
    fresh = await start_las("las-3", members=members)
    group = (*nodes, fresh)
    await until(
        lambda: all(n.state.command_level == COMMAND_LEVEL for n in group), "the command level"
    )


async def test_another_policy_is_taken_without_a_restart_and_peers_come_again(start_las):
    las = await (await start_las(heartbeat_ms=50)).leading()
    (peer,) = await las.add_peers(1)
    stream = await peer.heartbeats()
    await until(lambda: las.term.vitals.of("peer-1") is not None, "it is heard")
    first = las.term
    config = las.node.config
    policy = config.policy.model_copy(update={"heartbeat_ms": 70, "at_risk_share_max": 0.5})
    las.node.take_config(config.model_copy(update={"policy": policy}))
    await las.leading()
    assert las.term is not first
    assert las.term.number == first.number
    assert (await peer.register()).heartbeat_period_ms == 70
    # The stream of the term before ends with its next heartbeat, if not with a change before that.
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await stream.write(peer.beat())
    assert (await stream.code()) is not grpc.StatusCode.OK
    await peer.heartbeats()
    await until(lambda: las.term.vitals.of("peer-1") is not None, "it is heard again")
    assert (await create(las, copies=1)).log.shards

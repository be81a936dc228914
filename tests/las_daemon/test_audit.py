"""Who changed what, over real calls; and drains that end by themselves."""

import pytest

from las.core.commands import SetDraining
from las.daemon import clock as clock_module
from las.daemon.clock import COMMIT_MS, CommittedClock, Deadlines
from las.v1 import fleet_pb2 as pb
from las.v1 import log_admin_pb2
from peerd.core.ids import NodeName
from peerd.pki import Role
from tests.las_core.builders import do, done, fleet, name
from tests.las_daemon.stand_in import ADMIN, metadata, refused, until
from tests.las_daemon.test_logs import create

OLIVE = metadata(Role.OPERATOR, "olive")


async def audit(las, caller=ADMIN, **fields):
    return await las.fleet.ListAudit(pb.ListAuditRequest(**fields), metadata=caller, timeout=30)


def told(answer):
    return [(r.role, r.who, r.what, r.log or r.node, r.ok) for r in answer.records]


async def test_what_people_do_is_recorded_with_their_certificate(las):
    await las.add_peers(3)
    await create(las)
    request = log_admin_pb2.AlterLogRequest(name="orders", retention_ms=7_000)
    await las.logs.AlterLog(request, metadata=OLIVE, timeout=30)
    request = log_admin_pb2.AlterLogRequest(name="orders", copies=2, acks=1)
    await las.logs.AlterLog(request, metadata=OLIVE, timeout=30)
    await las.fleet.Drain(pb.DrainRequest(node="peer-1"), metadata=ADMIN, timeout=30)
    await las.fleet.Undrain(pb.UndrainRequest(node="peer-1"), metadata=ADMIN, timeout=30)
    answer = await audit(las, OLIVE)
    assert told(answer) == [
        ("admin", "ann", "log create", "orders", True),
        ("operator", "olive", "log retain", "orders", True),
        ("operator", "olive", "log alter", "orders", True),
        ("admin", "ann", "node drain", "peer-1", True),
        ("admin", "ann", "node undrain", "peer-1", True),
    ]
    assert answer.records[0].before == ""
    assert answer.records[1].after == "shards: 2, copies: 3, acks: 2, keeps 7000 ms"
    assert [record.number for record in answer.records] == [1, 2, 3, 4, 5]
    assert (answer.recorded, answer.dropped, answer.matching) == (5, 0, 5)
    assert [r.what for r in (await audit(las, node="peer-1", limit=1)).records] == ["node undrain"]
    assert len((await audit(las, log="orders")).records) == 3
    later = answer.records[-1].timestamp_ms + 1
    assert not (await audit(las, since_ms=later)).records


async def test_what_is_refused_is_recorded_and_looks_ahead_are_not(las):
    await las.add_peers(3)
    await create(las, shards=1)
    drain, remove = pb.DrainRequest(node="no"), pb.RemoveNodeRequest(node="peer-1")
    split = log_admin_pb2.SplitShardRequest(shard=9)
    for call, reason in (
        (lambda: create(las), "LOG_EXISTS"),
        (lambda: create(las, name="wide", copies=9), "NOT_ENOUGH_PEERS"),
        (lambda: las.fleet.Drain(drain, metadata=OLIVE, timeout=30), "UNKNOWN_NODE"),
        (lambda: las.fleet.RemoveNode(remove, metadata=OLIVE, timeout=30), "STATE_CHANGED"),
        (lambda: las.logs.SplitShard(split, metadata=OLIVE, timeout=30), "UNKNOWN_SHARD"),
    ):
        assert (await refused(call()))[0] == reason
        record = (await audit(las)).records[-1]
        assert (record.ok, record.reason.upper()) == (False, reason)
        assert record.text
    look = log_admin_pb2.RecoverShardRequest(shard=1)
    await refused(las.logs.RecoverShard(look, metadata=OLIVE, timeout=30))
    assert (await audit(las)).recorded == 6


async def test_who_may_not_ask_may_not_look_and_each_is_told(las):
    await las.add_peers(3)
    reader = metadata(Role.READER, "rita")
    drain = las.fleet.Drain(pb.DrainRequest(node="peer-1"), metadata=reader, timeout=30)
    assert (await refused(drain))[0] == "ROLE_NOT_ALLOWED"
    assert (await refused(audit(las, reader)))[0] == "ROLE_NOT_ALLOWED"
    await until(lambda: las.state.audited == 1, "the record of both")
    (record,) = (await audit(las)).records
    assert (record.who, record.role, record.reason) == ("rita", "reader", "role_not_allowed")
    assert (await refused(audit(las, limit=1_001)))[0] == "INVALID_ARGUMENT"


async def test_peers_that_ask_again_and_again_do_not_fill_the_records(las):
    await las.add_peers(1)
    request = log_admin_pb2.CreateInternalLogRequest(name="_other")
    peer = las.peers[0].metadata
    call = las.logs.CreateInternalLog(request, metadata=peer, timeout=30)
    assert (await refused(call))[0] == "INVALID_ARGUMENT"
    request = log_admin_pb2.CreateInternalLogRequest(name="_positions")
    for _ in range(2):
        await las.logs.CreateInternalLog(request, metadata=peer, timeout=30)
    assert told(await audit(las)) == [("peer", "peer-1", "log create", "_positions", True)]


async def test_a_drain_with_a_deadline_ends_by_itself(las, monkeypatch):
    await las.add_peers(3)
    await las.fleet.Drain(pb.DrainRequest(node="peer-1", for_ms=1_000), metadata=OLIVE, timeout=30)
    status = await las.fleet.GetStatus(pb.GetStatusRequest(), metadata=OLIVE, timeout=30)
    entry = next(each for each in status.nodes if each.node.name == "peer-1")
    assert entry.node.draining
    assert 0 < entry.drain_ends_in_ms <= 1_000
    await until(lambda: not las.state.nodes["peer-1"].draining, "the end of the drain")

    def ended() -> bool:
        history = las.state.events.get("peer-1", ())
        return bool(history) and history[-1].text == "its time was over"

    await until(ended, "its line in the story")


@pytest.mark.parametrize("for_ms", [0, 999, 31 * 24 * 3_600_000])
async def test_a_drain_takes_a_second_to_thirty_days(las, for_ms):
    await las.add_peers(1)
    request = pb.DrainRequest(node="peer-1", for_ms=for_ms)
    call = las.fleet.Drain(request, metadata=OLIVE, timeout=30)
    assert (await refused(call))[0] == "INVALID_ARGUMENT"
    assert not las.state.nodes["peer-1"].draining


# ---------------------------------------------------------------------------------- the clock
class OneState:
    """A consensus of one state, and a machine's clock."""

    def __init__(self, state, now_ms: int) -> None:
        self.state = state
        self.now_ms = now_ms
        self.commands = 0

    def indexed(self):
        return self.state, None

    async def submit(self, command):
        self.commands += 1
        self.state, result = do(self.state, command)
        return result


async def test_the_next_leader_ends_a_drain_that_another_one_began():
    drain = SetDraining(node=name(1), draining=True, until_ms=60_000)
    world = OneState(done(fleet(2), drain), now_ms=7_000_000)
    first = Deadlines(world, CommittedClock(world, lambda: world.now_ms))
    world.now_ms += 40_000
    await first.look()
    assert world.state.clock_ms == 40_000
    # Nobody leads for an hour; the next leader's machine was started a moment ago.
    world.now_ms = 50
    second = Deadlines(world, CommittedClock(world, lambda: world.now_ms))
    world.now_ms += 19_999
    await second.look()
    assert world.state.nodes[NodeName("peer-1")].draining
    world.now_ms += 1
    await second.look()
    assert not world.state.nodes[NodeName("peer-1")].draining


async def test_the_clock_is_committed_now_and_then_and_only_for_a_deadline():
    world = OneState(done(fleet(1), SetDraining(node=name(1), draining=True)), now_ms=0)
    deadlines = Deadlines(world, CommittedClock(world, lambda: world.now_ms))
    world.now_ms += 10 * COMMIT_MS
    await deadlines.look()
    assert world.commands == 0
    until_ms = 100 * COMMIT_MS
    world.state = done(world.state, SetDraining(node=name(1), draining=True, until_ms=until_ms))
    for _ in range(20):
        world.now_ms += COMMIT_MS // 10
        await deadlines.look()
    assert world.commands == 2


def test_the_clock_of_a_leader_never_stands_behind_what_is_committed():
    world = OneState(fleet(1), now_ms=0)
    clock = CommittedClock(world, lambda: world.now_ms)
    world.state = done(world.state, clock_module.MarkAges(clock_ms=500))
    assert clock.clock_ms == 500

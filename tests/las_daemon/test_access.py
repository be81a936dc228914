"""Grants and revocations at the LAS, over real calls: told to peers, audited, never a trap."""

import asyncio

import grpc.aio
import pytest

from las.core.levels import COMMAND_LEVEL
from las.daemon.services import access as access_service
from las.v1 import access_pb2 as pb
from las.v1 import access_pb2_grpc, fleet_pb2, log_admin_pb2
from peerd.core.access import Revocation
from peerd.pki import Role
from tests.las_daemon.stand_in import ADMIN, metadata, refused, until
from tests.las_daemon.test_audit import audit
from tests.las_daemon.test_logs import create

OLIVE = metadata(Role.OPERATOR, "olive")
RITA = metadata(Role.READER, "rita")
NEW = 5
"""The feature level of a peer that knows grants."""


@pytest.fixture
async def access(las, monkeypatch):
    monkeypatch.setattr(access_service, "HEARD_S", 0.2)
    await until(lambda: las.state.command_level == COMMAND_LEVEL, "the command level")
    return access_pb2_grpc.AccessServiceStub(las.channel)


def grant(who, log, *rights):
    return pb.Grant(who=who, log=log, rights=rights)


async def add(access, *of, caller=ADMIN):
    return await access.AddGrant(pb.AddGrantRequest(grant=grant(*of)), metadata=caller, timeout=30)


async def revoke(access, caller=ADMIN, **fields):
    request = pb.RevokeRequest(revocation=pb.Revocation(**fields))
    return await access.Revoke(request, metadata=caller, timeout=30)


async def test_grants_are_kept_shown_and_taken_back(access):
    answer = await add(access, "shop-*", "orders", pb.RIGHT_READ, pb.RIGHT_APPEND)
    assert answer.table == pb.AccessTable(
        version=1, grants=[grant("shop-*", "orders", pb.RIGHT_APPEND, pb.RIGHT_READ)]
    )
    shown = await access.GetAccess(pb.GetAccessRequest(), metadata=OLIVE, timeout=30)
    assert shown.table == answer.table
    request = pb.RemoveGrantRequest(grant=grant("shop-*", "orders", 99))
    call = access.RemoveGrant(request, metadata=ADMIN, timeout=30)
    assert (await refused(call))[0] == "INVALID_ARGUMENT"
    request = pb.RemoveGrantRequest(grant=grant("shop-*", "orders"))
    answer = await access.RemoveGrant(request, metadata=ADMIN, timeout=30)
    assert not answer.table.grants


def make(las, name):
    request = log_admin_pb2.CreateLogRequest(name=name, shards=1)
    return las.logs.CreateLog(request, metadata=OLIVE, timeout=30)


async def test_only_administrators_change_it_and_each_change_is_audited(las, access):
    request = pb.SetAccessRequest(required=True)
    for caller in (OLIVE, RITA):
        call = access.SetAccess(request, metadata=caller, timeout=30)
        assert (await refused(call))[0] == "ROLE_NOT_ALLOWED"
    await access.SetAccess(request, metadata=ADMIN, timeout=30)
    await add(access, "x", "orders", pb.RIGHT_READ)
    assert (await refused(add(access, "a b", "orders", pb.RIGHT_READ)))[0] == "INVALID_ARGUMENT"
    await revoke(access, name="rob", why="left")
    await access.EndRevocation(
        pb.EndRevocationRequest(revocation=pb.Revocation(name="rob")), metadata=ADMIN, timeout=30
    )
    changes = [each for each in (await audit(las)).records if each.who == "ann"]
    assert [(each.what, each.ok) for each in changes] == [
        ("grant require", True),
        ("grant add", True),
        ("grant add", False),
        ("revoke", True),
        ("revoke --undo", True),
    ]
    assert changes[0].after == "by grants"
    assert changes[1].log == "orders"


async def test_peers_hear_of_it_at_registration_and_at_once_later(las, access):
    await las.add_peers(1)
    peer = las.peers[0]
    await peer.heartbeats(peer.beat(access_version=0))
    answer = await revoke(access, name="shop-1")
    assert answer.unheard == ["peer-1"]
    status = await las.fleet.GetStatus(fleet_pb2.GetStatusRequest(), metadata=ADMIN, timeout=30)
    assert status.access == (
        "clients need no grants, 0 grants, 1 revoked, version 1, not heard by peer-1"
    )
    await until(lambda: any(each.HasField("access") for each in peer.updates), "the table")
    (told,) = [each.access for each in peer.updates if each.HasField("access")]
    assert told == answer.table
    assert (await peer.register()).access == answer.table


async def test_a_change_answers_when_the_peers_that_are_up_have_it(las, access, monkeypatch):
    monkeypatch.setattr(access_service, "HEARD_S", 5.0)
    await las.add_peers(1)
    peer = las.peers[0]
    call = await peer.heartbeats(peer.beat())

    async def acknowledge():
        await until(lambda: any(each.HasField("access") for each in peer.updates), "the table")
        await call.write(peer.beat(access_version=1))

    telling = asyncio.create_task(acknowledge())
    assert (await revoke(access, name="shop-1")).unheard == []
    await telling


async def test_who_is_revoked_is_refused_here_too_and_its_stream_ends(las, access):
    await las.add_peers(1)
    peer = las.peers[0]
    call = await peer.heartbeats()
    await until(lambda: bool(peer.updates), "an answer")
    await revoke(access, name="peer-1", role="peer")
    await until(call.done, "the end of the stream")
    assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
    assert (await refused(peer.register()))[0] == "REVOKED"
    await revoke(access, name="olive")
    shown = access.GetAccess(pb.GetAccessRequest(), metadata=OLIVE, timeout=30)
    assert (await refused(shown))[0] == "REVOKED"


async def test_nobody_shuts_the_door_behind_themselves(las, access):
    for name in ("ann", "las-1"):
        reason, _ = await refused(revoke(access, name=name))
        assert reason == ("INVALID_ARGUMENT" if name == "ann" else "STATE_CHANGED")
    await revoke(access, name="las-1", role="reader")
    await revoke(access, name="ann", role="reader")
    assert las.state.access.revoked == (
        Revocation(name="ann", role="reader"),
        Revocation(name="las-1", role="reader"),
    )


async def test_operators_administer_the_logs_that_they_were_granted(las, access):
    await las.add_peers(3)
    for peer in las.peers:
        await peer.register(feature_level=NEW)
    await create(las)
    await access.SetAccess(pb.SetAccessRequest(required=True), metadata=ADMIN, timeout=30)
    alter = log_admin_pb2.AlterLogRequest(name="orders", retention_ms=7_000)
    switch = log_admin_pb2.SwitchPrimaryRequest(shard=1, node="peer-1")
    for call in (
        lambda: las.logs.AlterLog(alter, metadata=OLIVE, timeout=30),
        lambda: make(las, "other"),
        lambda: las.logs.SwitchPrimary(switch, metadata=OLIVE, timeout=30),
        lambda: las.logs.SplitShard(
            log_admin_pb2.SplitShardRequest(shard=1), metadata=OLIVE, timeout=30
        ),
        lambda: las.logs.RecoverShard(
            log_admin_pb2.RecoverShardRequest(shard=1), metadata=OLIVE, timeout=30
        ),
        lambda: las.logs.TrimShard(
            log_admin_pb2.TrimShardRequest(log="orders", shard=1), metadata=OLIVE, timeout=30
        ),
        lambda: las.logs.DeleteLog(
            log_admin_pb2.DeleteLogRequest(name="orders"), metadata=OLIVE, timeout=30
        ),
    ):
        reason, refusal = await refused(call())
        assert reason == "NOT_GRANTED"
        assert "`peerctl grant add olive" in refusal.message
    await add(access, "olive", "ord*", pb.RIGHT_ADMINISTER)
    await las.logs.AlterLog(alter, metadata=OLIVE, timeout=30)
    await make(las, "ord-2")
    assert (await refused(make(las, "other")))[0] == "NOT_GRANTED"


async def test_refused_calls_are_in_the_audit_joined(las):
    await las.add_peers(1)
    drain = fleet_pb2.DrainRequest(node="peer-1")
    for _ in range(5):
        await refused(las.fleet.Drain(drain, metadata=RITA, timeout=30))
    foreign = metadata(Role.ADMIN, "eve", cluster="other")
    await refused(las.fleet.Drain(drain, metadata=foreign, timeout=30))
    await until(lambda: las.state.audited == 2, "the records")
    found = {each.reason: each for each in (await audit(las)).records}
    record = found["role_not_allowed"]
    assert (record.who, record.role, record.ok) == ("rita", "reader", False)
    assert record.what == "/las.v1.FleetService/Drain"
    assert record.text.startswith("once: ")
    assert "eve" in found["wrong_cluster"].text


async def test_what_a_peer_refused_is_in_the_audit_with_its_name(las):
    await las.add_peers(1)
    peer = las.peers[0]
    told = pb.RefusedCalls(
        who="shop-1",
        role="appender",
        reason="NOT_GRANTED",
        what="append orders",
        count=7,
        text="no",
    )
    await peer.heartbeats(peer.beat(refused=[told]))
    await until(lambda: las.state.audited == 1, "the record")
    (record,) = (await audit(las)).records
    assert (record.who, record.what) == ("shop-1", "append orders")
    assert record.text == "7 times: at peer-1: no"


async def test_a_peer_that_speaks_for_another_process_or_accuses_nobody_is_in_the_audit(las):
    await las.add_peers(2)
    first, second = las.peers
    assert (await refused(second.register(boot_id=first.boot, store_id=first.store)))[0] == (
        "STORE_ID_CHANGED"
    )
    wrong = fleet_pb2.ReportRequest(boot_id=second.boot)
    report = first.fleet.Report(wrong, metadata=first.metadata, timeout=30)
    assert (await refused(report))[0] == "STATE_CHANGED"
    for name in ("peer-1", "peer-9"):
        suspect = fleet_pb2.Suspect(peer=name, boot_id=first.boot, silent_ms=9_000)
        await first.report(fleet_pb2.PeerReport(suspect=suspect))
    await first.report(
        fleet_pb2.PeerReport(suspect=fleet_pb2.Suspect(peer="peer-2", boot_id=second.boot))
    )
    await until(lambda: las.state.audited == 3, "three records")
    found = {(each.who, each.reason): each for each in (await audit(las)).records}
    assert found["peer-2", "store_id_changed"].what.endswith("/Register")
    assert "register first" in found["peer-1", "state_changed"].text
    # The second one is joined to it.
    assert found["peer-1", "invalid_argument"].text == "once: peer-1 accuses itself"


async def test_a_registration_that_is_sent_again_later_is_in_the_audit(las):
    await las.add_peers(1)
    peer = las.peers[0]
    old = peer.registration()
    await peer.register(boot_id="e" * 32)
    call = peer.fleet.Register(old, metadata=peer.metadata, timeout=30)
    assert (await refused(call))[0] == "PROCESS_SUPERSEDED"
    await until(lambda: las.state.audited == 1, "the record")
    (record,) = (await audit(las)).records
    assert (record.who, record.reason) == ("peer-1", "process_superseded")

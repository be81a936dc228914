"""Grants and revocations over real calls: default deny, typed refusals, streams that end."""

import asyncio

import grpc
import grpc.aio
import pytest

from peerd.core.access import AccessTable, Grant, Revocation, Right
from peerd.pki import Identity, Role
from peerd.testing.memory import CLUSTER
from peerd.transport.refused_calls import CALLERS_MAX, JOIN_S, OTHERS, RefusedCall, RefusedCalls
from peerd.transport.status import refusal_of_error
from peerd.transport.tls import plaintext_metadata
from peerd.v1 import errors_pb2, log_pb2

SHOP = plaintext_metadata(Identity(cluster=CLUSTER, role=Role.APPENDER, name="shop-1"))
RITA = plaintext_metadata(Identity(cluster=CLUSTER, role=Role.READER, name="rita"))
OLIVE = plaintext_metadata(Identity(cluster=CLUSTER, role=Role.OPERATOR, name="olive"))
PEER = plaintext_metadata(Identity(cluster=CLUSTER, role=Role.PEER, name="peer-2"))


def table(version, *grants, revoked=(), required=True):
    return AccessTable(version=version, required=required, grants=grants, revoked=tuple(revoked))


def grant(who, log, *rights):
    return Grant(who=who, log=log, rights=rights)


async def refused(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    refusal = refusal_of_error(caught.value)
    name = errors_pb2.ErrorReason.Name(refusal.reason).removeprefix("ERROR_REASON_")
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert refusal.taken == errors_pb2.TAKEN_NO
    return name, refusal.message


async def first_of(call):
    return await call.read()


def calls(stub, append, log="orders"):
    """Each data call, with who may make it by role and the right that it takes."""
    position = log_pb2.CommitPositionRequest(log=log, consumer="c")
    return (
        (lambda: stub.Append(append(log=log), metadata=SHOP), Right.APPEND),
        (lambda: first_of(stub.Read(log_pb2.ReadRequest(log=log), metadata=RITA)), Right.READ),
        (lambda: stub.GetTail(log_pb2.GetTailRequest(log=log), metadata=OLIVE), Right.ADMINISTER),
        (lambda: stub.CommitPosition(position, metadata=RITA), Right.READ),
        (
            lambda: stub.GetPosition(
                log_pb2.GetPositionRequest(log=log, consumer="c"), metadata=RITA
            ),
            Right.READ,
        ),
        (
            lambda: stub.ListPositions(log_pb2.ListPositionsRequest(log=log), metadata=RITA),
            Right.READ,
        ),
        (
            lambda: stub.Trim(
                log_pb2.TrimRequest(log=log, shard=1, before_offset=1), metadata=OLIVE
            ),
            Right.ADMINISTER,
        ),
    )


async def test_what_no_grant_allows_is_denied_at_every_data_call(cluster, stub, append):
    cluster.create_log("orders")
    cluster.access.take(table(1, grant("*", "other", *Right)))
    for call, _ in calls(stub(1), append):
        reason, message = await refused(call())
        assert reason == "NOT_GRANTED"
        assert "`peerctl grant add " in message
    assert cluster.access.refused.counts["NOT_GRANTED"] == 7


async def test_an_unknown_log_is_not_told_to_who_has_no_grant(cluster, stub, append):
    cluster.access.take(table(1))
    for call, _ in calls(stub(1), append, log="secret"):
        assert (await refused(call()))[0] == "NOT_GRANTED"


async def test_a_grant_opens_what_it_names_and_nothing_else(cluster, stub, append):
    cluster.create_log("orders")
    cluster.create_log("payments")
    cluster.access.take(table(1, grant("shop-*", "orders", Right.APPEND)))
    await stub(1).Append(append(log="orders"), metadata=SHOP)
    assert (await refused(stub(1).Append(append(log="payments"), metadata=SHOP)))[
        0
    ] == "NOT_GRANTED"
    await stub(1).GetTail(log_pb2.GetTailRequest(log="orders"), metadata=SHOP)
    # A peer passes on what it has judged, and an administrator needs no grant.
    await stub(1).Append(append(log="payments"), metadata=PEER)
    await stub(1).Append(append(log="payments"))


async def test_each_append_of_a_stream_is_judged_as_the_table_is_then(cluster, stub, append):
    cluster.create_log("orders")
    cluster.access.take(table(1, grant("shop-1", "orders", Right.APPEND)))
    call = stub(1).AppendStream(metadata=SHOP)

    async def send(number):
        one = log_pb2.StreamAppend(request_id=number, append=append(shard=1))
        await call.write(log_pb2.AppendStreamRequest(appends=[one]))
        (result,) = (await call.read()).results
        return result

    assert (await send(1)).HasField("receipt")
    cluster.access.take(table(2))
    assert (await send(2)).refusal.reason == errors_pb2.ERROR_REASON_NOT_GRANTED
    cluster.access.take(table(3, required=False))
    assert (await send(3)).HasField("receipt")
    call.cancel()


async def test_an_older_table_changes_nothing(cluster, stub, append):
    cluster.create_log("orders")
    assert cluster.access.take(table(5))
    assert not cluster.access.take(table(4, required=False))
    assert not cluster.access.take(table(5, required=False))
    assert (await refused(stub(1).Append(append(), metadata=SHOP)))[0] == "NOT_GRANTED"


async def test_a_reader_that_follows_ends_when_its_grant_is_taken_back(cluster, stub, append):
    cluster.create_log("orders")
    cluster.access.take(table(1, grant("rita", "orders", Right.READ)))
    await stub(1).Append(append())
    call = stub(1).Read(log_pb2.ReadRequest(log="orders", follow=True), metadata=RITA)
    await call.read()
    cluster.access.take(table(2, grant("rita", "orders", Right.APPEND)))

    async def rest():
        while await call.read() is not grpc.aio.EOF:
            pass

    assert (await refused(asyncio.wait_for(rest(), 5)))[0] == "NOT_GRANTED"


@pytest.mark.parametrize(
    "revocation",
    [Revocation(name="shop-1"), Revocation(name="shop-1", role="appender", why="stolen")],
)
async def test_who_is_revoked_is_refused_everywhere_also_where_nothing_is_required(
    cluster, stub, append, revocation
):
    cluster.create_log("orders")
    cluster.access.take(table(1, revoked=[revocation], required=False))
    reason, message = await refused(stub(1).Append(append(), metadata=SHOP))
    assert reason == "REVOKED"
    assert f"`peerctl revoke {revocation.subject} --undo`" in message
    assert revocation.why in message
    tail = log_pb2.GetTailRequest(log="orders")
    assert (await refused(stub(1).GetTail(tail, metadata=SHOP)))[0] == "REVOKED"
    await stub(1).GetTail(tail, metadata=RITA)
    cluster.access.take(table(2, required=False))
    await stub(1).Append(append(), metadata=SHOP)


async def test_a_revocation_in_another_role_is_about_another_certificate(cluster, stub, append):
    cluster.create_log("orders")
    cluster.access.take(
        table(1, revoked=[Revocation(name="shop-1", role="reader")], required=False)
    )
    await stub(1).Append(append(), metadata=SHOP)


async def test_streams_of_who_is_revoked_end_and_others_go_on(cluster, stub, append):
    cluster.create_log("orders")
    bad, good = stub(1).AppendStream(metadata=SHOP), stub(1).AppendStream()
    follow = stub(1).Read(log_pb2.ReadRequest(log="orders", follow=True), metadata=RITA)

    async def send(call, number):
        one = log_pb2.StreamAppend(request_id=number, append=append(shard=1))
        await call.write(log_pb2.AppendStreamRequest(appends=[one]))
        return await call.read()

    for call in (bad, good):
        assert (await send(call, 1)).results[0].HasField("receipt")
    await follow.read()
    revoked = [Revocation(name="shop-1"), Revocation(name="rita")]
    cluster.access.take(table(1, revoked=revoked, required=False))

    async def rest(call):
        while await call.read() is not grpc.aio.EOF:
            pass

    for call in (bad, follow):
        assert (await refused(asyncio.wait_for(rest(call), 5)))[0] == "REVOKED"
    assert (await send(good, 2)).results[0].HasField("receipt")
    good.cancel()
    assert cluster.access.refused.counts["REVOKED"] == 2


async def test_a_reader_that_does_not_read_is_ended_too(cluster, stub, append):
    cluster.create_log("orders")
    for _ in range(200):
        await stub(1).Append(append(bytes(60_000)))
    call = stub(1).Read(log_pb2.ReadRequest(log="orders", follow=True), metadata=RITA)
    await call.read()
    cluster.access.take(table(1, revoked=[Revocation(name="rita")], required=False))
    received = 0

    async def rest():
        nonlocal received
        while (answer := await call.read()) is not grpc.aio.EOF:
            received += answer.ByteSize()

    assert (await refused(asyncio.wait_for(rest(), 5)))[0] == "REVOKED"
    # What was in the pipes, and no more: it did not get all 12 MB.
    assert received < 200 * 60_000 // 2


# ------------------------------------------------------------------------------ refusals told


def call_of(number, reason="REVOKED", count=1):
    return RefusedCall(
        who=f"a{number}", role="reader", reason=reason, what="/x", text="t", count=count
    )


def test_the_first_refusal_is_told_at_once_and_those_of_a_minute_as_one():
    now, told = [0.0], []
    calls_ = RefusedCalls(told.append, lambda: now[0])
    for _ in range(5):
        calls_.add(call_of(1))
    calls_.add(call_of(1, "NOT_GRANTED"))
    assert [(each.reason, each.count) for each in told] == [("REVOKED", 1), ("NOT_GRANTED", 1)]
    now[0] = JOIN_S - 1
    calls_.look()
    assert len(told) == 2
    now[0] = JOIN_S
    calls_.look()
    assert [(each.reason, each.count) for each in told[2:]] == [("REVOKED", 4)]
    # A minute without any: the next is told at once again.
    now[0] = 2 * JOIN_S
    calls_.look()
    calls_.add(call_of(1))
    assert told[-1].count == 1
    assert sum(each.count for each in told) == sum(calls_.counts.values()) == 7


def test_beyond_a_bound_callers_are_told_as_one():
    now, told = [0.0], []
    calls_ = RefusedCalls(told.append, lambda: now[0])
    for number in range(CALLERS_MAX + 10):
        calls_.add(call_of(number))
    assert len(told) == CALLERS_MAX + 1
    assert told[-1].who == OTHERS
    now[0] = JOIN_S
    calls_.look()
    assert (told[-1].who, told[-1].count) == (OTHERS, 9)

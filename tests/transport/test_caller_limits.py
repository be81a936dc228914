"""What one caller may ask for: refused with the time to wait, at nobody else's cost."""

import grpc
import grpc.aio
import pytest

from peerd.pki import Identity, Role
from peerd.testing.memory import CLUSTER, MemoryCluster
from peerd.transport import caller_limits
from peerd.transport.caller_limits import CONNECTION_COUNTS_S, CallerLimits, CallerUse
from peerd.transport.refused_calls import RefusedCalls
from peerd.transport.status import Refused, refusal_of_error
from peerd.transport.tls import plaintext_metadata
from peerd.v1 import errors_pb2, log_pb2, log_pb2_grpc


def identity(name="shop-1", role=Role.APPENDER):
    return Identity(cluster=CLUSTER, role=role, name=name)


SHOP = plaintext_metadata(identity())
RITA = plaintext_metadata(identity("rita", Role.READER))


class Counted:
    """A `CallerUse` with a clock by hand."""

    def __init__(self, **limits):
        self.now_s = 100.0
        self.refused = RefusedCalls()
        self.use = CallerUse(CallerLimits(**limits), self.refused, lambda: self.now_s)

    def taken(self, size=0, who=None, address="a"):
        """0 if it was taken, else the milliseconds to wait."""
        try:
            self.use.take(who or identity(), address, size)
        except Refused as refused:
            return refused.refusal.retry_after_ms
        return 0


def test_a_second_s_worth_of_requests_then_as_many_as_the_rate():
    counted = Counted(requests_per_s=10)
    assert [counted.taken() for _ in range(10)] == [0] * 10
    assert counted.taken() == 101
    assert counted.taken(who=identity("shop-2")) == 0
    counted.now_s += 0.101
    assert counted.taken() == 0
    assert counted.taken() > 0
    counted.now_s += 1_000
    assert [counted.taken() for _ in range(11)][-1] == 101
    assert counted.refused.counts == {"OVERLOADED": 3}


def test_bytes_are_counted_and_one_that_is_larger_than_a_second_passes_a_full_bucket():
    counted = Counted(bytes_per_s=1_000)
    assert counted.taken(5_000) == 0
    assert counted.taken(1) == 4_002
    counted.now_s += 4.5
    assert counted.taken(500) == 0
    assert counted.taken(0) == 0
    assert counted.taken(1_000) > 900


def test_who_waits_as_told_gets_through():
    counted = Counted(requests_per_s=3, bytes_per_s=700)
    for size in (100, 900, 1, 650, 333):
        wait_ms = counted.taken(size)
        while wait_ms:
            counted.now_s += wait_ms / 1000
            wait_ms = counted.taken(size)


def test_what_a_read_sends_makes_it_wait_until_it_is_paid():
    counted = Counted(bytes_per_s=1_000)
    assert counted.use.sent(identity(), 1_000) == 0
    assert counted.use.sent(identity(), 500) == 0.5
    assert counted.use.sent(identity(), 9_000) == caller_limits.READ_PAUSE_S_MAX
    counted.now_s += 9.5
    assert counted.use.sent(identity(), 0) == 0


def test_connections_count_while_a_stream_is_open_or_for_a_minute():
    counted = Counted(connections_max=2)
    with counted.use.open_stream(identity(), "a"):
        assert counted.taken(address="a") == 0
        assert counted.taken(address="b") == 0
        assert counted.taken(address="c") > 0
        assert counted.taken(address="a") == 0
        assert counted.taken(address="c", who=identity("shop-2")) == 0
        counted.now_s += CONNECTION_COUNTS_S
        assert counted.taken(address="c") == 0
        assert counted.taken(address="b") > 0
    counted.now_s += CONNECTION_COUNTS_S
    assert counted.taken(address="b") == 0
    assert counted.taken(address="d") == 0


@pytest.mark.parametrize("role", [Role.PEER, Role.LAS])
def test_peers_are_not_counted(role):
    counted = Counted(requests_per_s=1, bytes_per_s=1, connections_max=1)
    who = identity("peer-1", role)
    assert [counted.taken(10, who, str(each)) for each in range(5)] == [0] * 5
    assert counted.use.sent(who, 10_000) == 0


def test_the_least_recently_used_callers_are_forgotten(monkeypatch):
    monkeypatch.setattr(caller_limits, "CALLERS_MAX", 2)
    counted = Counted(requests_per_s=1)
    for name in ("a", "b", "a", "c"):
        counted.taken(who=identity(name))
    assert [key[1] for key in counted.use._buckets] == ["a", "c"]


@pytest.fixture
async def limited():
    cluster = MemoryCluster(peers=1)
    cluster.callers = CallerLimits(requests_per_s=3, bytes_per_s=100_000)
    async with cluster:
        cluster.create_log("orders")
        async with grpc.aio.insecure_channel(cluster.addresses[0]) as channel:
            yield cluster, log_pb2_grpc.LogServiceStub(channel)
        assert cluster.bugs == []


async def overloaded(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    refusal = refusal_of_error(caught.value)
    assert refusal.reason == errors_pb2.ERROR_REASON_OVERLOADED
    assert refusal.retry_after_ms > 0
    assert "limits.requests_per_s = 3" in refusal.message


async def test_each_data_call_counts_and_another_caller_is_not_held_up(limited, append):
    _, stub = limited
    tail = log_pb2.GetTailRequest(log="orders")
    await stub.Append(append(), metadata=SHOP)
    for _ in range(2):
        await stub.GetTail(tail, metadata=SHOP)
    await overloaded(stub.Append(append(), metadata=SHOP))
    await overloaded(stub.GetTail(tail, metadata=SHOP))
    position = log_pb2.GetPositionRequest(log="orders", consumer="c")
    for _ in range(3):
        await stub.GetTail(tail, metadata=RITA)
    await overloaded(stub.GetPosition(position, metadata=RITA))
    await overloaded(stub.Read(log_pb2.ReadRequest(log="orders"), metadata=RITA).read())
    await stub.GetTail(tail)


async def test_each_append_of_a_stream_counts(limited, append):
    cluster, stub = limited
    call = stub.AppendStream(metadata=SHOP)
    appends = [
        log_pb2.StreamAppend(request_id=number, append=append(shard=1)) for number in range(5)
    ]
    await call.write(log_pb2.AppendStreamRequest(appends=appends))
    results = []
    while len(results) < 5:
        results += (await call.read()).results
    reasons = sorted(result.refusal.reason for result in results)
    assert reasons == [0] * 3 + [errors_pb2.ERROR_REASON_OVERLOADED] * 2
    assert cluster.access.refused.counts == {"OVERLOADED": 2}
    call.cancel()


async def test_a_read_is_slowed_and_gets_all(limited, append, monkeypatch):
    cluster, stub = limited
    for _ in range(3):
        await stub.Append(
            append(bytes(60_000)), metadata=plaintext_metadata(identity("peer-9", Role.PEER))
        )
    slept = []

    async def sleep(delay_s):
        slept.append(delay_s)
        service = cluster._services[next(iter(cluster._services))]
        service._use._buckets["reader", "rita"].size = 0

    from peerd.transport import access

    monkeypatch.setattr(access.asyncio, "sleep", sleep)
    received = 0
    async for answer in stub.Read(log_pb2.ReadRequest(log="orders"), metadata=RITA):
        received += answer.ByteSize()
    assert received > 180_000
    assert slept

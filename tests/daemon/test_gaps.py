"""A range that is lost for good, at real peers: the shard goes on, and who comes back drops it."""

import grpc
import grpc.aio

from peerd.core.errors import Reason
from peerd.core.ids import Epoch, Offset
from peerd.core.shard_map import Gap
from peerd.pki import Identity, Role
from peerd.transport.tls import plaintext_metadata
from peerd.v1 import log_pb2, log_pb2_grpc
from tests.daemon.fleet import (
    CLUSTER,
    LOG,
    SHARD,
    Fleet,
    StandInLas,
    append,
    opened,
    plan,
    sealed,
    shard_of,
    stored_end,
    until,
)

READER = plaintext_metadata(Identity(cluster=CLUSTER, role=Role.READER, name="app"))
RESUME = 2 + (1 << 40)


async def test_what_is_lost_is_told_and_a_store_that_comes_back_with_it_drops_it(
    fleet: Fleet, las: StandInLas
) -> None:
    one, two, three = await fleet.start("peer-1", "peer-2", "peer-3")
    first = opened(1, plan(one, one, two, three))
    las.commit(shard_of(first))
    await until(lambda: one.host.is_primary(SHARD), "peer-1 is primary")
    await append(one, b"a", b"b")
    await until(lambda: stored_end(three, 1) == 2, "peer-3 has it")
    await fleet.kill("peer-3")
    await append(one, b"lost")
    await until(lambda: stored_end(one, 1) == 3, "it is on its disk")
    for name in ("peer-1", "peer-2"):
        await fleet.kill(name)
    # Only peer-3 comes back, and it has not got the third record.
    three = await fleet.start_peer("peer-3")
    four = await fleet.start_peer("peer-4")
    gap = Gap(begin=Offset(2), end=Offset(RESUME), epochs=(Epoch(1),), why="two disks burned")
    behind = opened(2, plan(three, three, four), begin=RESUME)
    las.commit(shard_of(behind, sealed=(sealed(first, 2, three, four),), gaps=(gap,)))
    await until(lambda: three.host.is_primary(SHARD), "peer-3 leads behind the gap")
    assert (await append(three, b"c")).base == RESUME

    batches, gaps = [], []
    async with grpc.aio.insecure_channel(three.address) as channel:
        stub = log_pb2_grpc.LogServiceStub(channel)
        request = log_pb2.ReadRequest(log=LOG, shard=SHARD)
        async for message in stub.Read(request, metadata=READER, timeout=20):
            batches += [batch.base_offset for batch in message.batches]
            gaps += message.gaps
    assert batches == [0, RESUME]
    (told,) = gaps
    assert (told.first_offset, told.next_offset, told.message) == (2, RESUME, "two disks burned")
    assert Reason(told.reason) is Reason.LOST

    back = await fleet.start_peer("peer-1")
    await until(
        lambda: back.host.stored(SHARD).segments[Epoch(1)].seal == 2, "it learns where it was cut"
    )
    kept = back.host.stored(SHARD).segments[Epoch(1)]
    assert (kept.end, kept.commit) == (2, 2)

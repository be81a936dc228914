"""What ends a peer, and what refuses it, says so in one typed line."""

import contextlib
import json

import grpc
import grpc.aio
import pytest

from peerd.core.check import InvariantViolation
from peerd.core.effects import AppendAccepted
from peerd.core.errors import Reason, Taken
from peerd.core.ids import StoreId
from peerd.core.replica import Replica
from peerd.daemon.errors import (
    EXIT_BUG,
    EXIT_STORAGE_FAILED,
    BrokenInvariant,
    PortInUse,
    RegistrationRefused,
    StoreBroken,
    StoreUnusable,
)
from peerd.internal.v1 import replication_pb2, replication_pb2_grpc
from peerd.pki import Identity, Role
from peerd.transport.concurrency import CallOver, write_to
from peerd.transport.map_codec import encode_process
from peerd.transport.status import Refused, reason_of, refusal, refusal_of_error
from peerd.transport.tls import plaintext_metadata
from tests.daemon.fleet import (
    CLUSTER,
    CLUSTER_ID,
    SHARD,
    Fleet,
    StandInLas,
    append_later,
    opened,
    plan,
    shard_of,
    until,
)


async def test_a_failed_store_is_told_and_ends_the_peer(fleet: Fleet, las: StandInLas) -> None:
    faults = fleet.directory / "faults.json"
    one = await fleet.start_peer("peer-1", testing={"faults_file": faults})
    await until(lambda: one.map_cache.version, "registered")
    las.commit(shard_of(opened(1, plan(one, one, acks=1))))
    await until(lambda: one.host.is_primary(SHARD), "primary")
    faults.write_text(json.dumps({"fail": True}))
    # The fault file is looked at now and then only.
    outcome = await append_later(one, b"a")
    while isinstance(outcome, AppendAccepted):
        outcome = await append_later(one, b"a")
    assert (outcome.reason, outcome.taken) == (Reason.STORE_FAILED, Taken.UNKNOWN)
    failure = await one.ended()
    assert isinstance(failure, StoreBroken)
    assert failure.exit_status == EXIT_STORAGE_FAILED
    assert las.reported("storage_failed")
    assert (await append_later(one, b"b")).reason == Reason.STORE_FAILED


async def test_a_broken_invariant_ends_the_peer_and_nothing_is_taken_after_it(
    fleet: Fleet, las: StandInLas, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await fleet.start_peer("peer-1")
    await until(lambda: one.map_cache.version, "registered")
    las.commit(shard_of(opened(1, plan(one, one, acks=1))))
    await until(lambda: one.host.is_primary(SHARD), "primary")

    def break_promise(_replica: Replica, _event: object) -> None:
        raise InvariantViolation("made for the test")

    with monkeypatch.context() as patched:
        patched.setattr(Replica, "handle", break_promise)
        with pytest.raises(InvariantViolation):
            append_later(one, b"a")
    failure = await one.ended()
    assert isinstance(failure, BrokenInvariant)
    assert failure.exit_status == EXIT_BUG
    assert not append_later(one, b"b").done()


async def test_a_foreign_cluster_refuses_the_peer(fleet: Fleet, las: StandInLas) -> None:
    las.refuse_with = Refused(refusal(Reason.WRONG_CLUSTER, "this is cluster prod, not test"))
    one = await fleet.start_peer("peer-1")
    failure = await one.ended()
    assert isinstance(failure, RegistrationRefused)
    assert "this is cluster prod" in str(failure)


async def test_ports_and_directories_are_judged_before_anything_is_served(
    fleet: Fleet, las: StandInLas
) -> None:
    one = await fleet.start_peer("peer-1")
    with pytest.raises(PortInUse, match=f"{one.address} is in use by another process"):
        await fleet.start_peer("peer-2", listen=one.address)
    with pytest.raises(PortInUse, match=r"http_listen: .* is in use"):
        await fleet.start_peer("peer-2", http_listen=one.http_address)
    with pytest.raises(StoreUnusable, match="in use by another process"):
        await fleet.start_peer("peer-2", data_dir=fleet.directory / "peer-1")
    foreign = fleet.directory / "foreign"
    foreign.mkdir()
    (foreign / "letters.txt").write_text("dear reader")
    with pytest.raises(StoreUnusable, match="not a peerd data directory"):
        await fleet.start_peer("peer-2", data_dir=foreign)
    assert [path.name for path in foreign.iterdir()] == ["letters.txt"]


async def first_refusal(
    address: str, request, identity: Identity, *, answers: int = 1
) -> Reason | None:
    """Why the stream is refused; None if so many answers come."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = replication_pb2_grpc.ReplicationServiceStub(channel)
        while True:
            call = stub.Replicate(metadata=plaintext_metadata(identity))
            try:
                with contextlib.suppress(CallOver):
                    await write_to(call, request)
                for _ in range(answers):
                    await call.read()
            except grpc.aio.AioRpcError as error:
                # If a call ends under a write, grpc.aio makes up an INTERNAL in place of the status
                # that the server gave: then another call has to ask for it.
                if error.code() is grpc.StatusCode.INTERNAL and "execute_batch" in str(error):
                    continue
                return reason_of(refusal_of_error(error))
            call.cancel()
            return None


async def test_a_stream_names_cluster_store_and_sender_or_is_refused(
    fleet: Fleet, las: StandInLas
) -> None:
    one, two = await fleet.start("peer-1", "peer-2")
    sender = Identity(cluster=CLUSTER, role=Role.PEER, name="peer-2")
    good = replication_pb2.ReplicateRequest(
        cluster_id=CLUSTER_ID, sender=encode_process(two.me), target_store_id=one.me.store
    )
    assert await first_refusal(one.address, good, sender) is None

    other_cluster = replication_pb2.ReplicateRequest()
    other_cluster.CopyFrom(good)
    other_cluster.cluster_id = "another"
    assert await first_refusal(one.address, other_cluster, sender) is Reason.WRONG_CLUSTER

    other_store = replication_pb2.ReplicateRequest()
    other_store.CopyFrom(good)
    other_store.target_store_id = StoreId("0" * 32)
    assert await first_refusal(one.address, other_store, sender) is Reason.WRONG_STORE

    liar = Identity(cluster=CLUSTER, role=Role.PEER, name="peer-3")
    assert await first_refusal(one.address, good, liar) is Reason.ROLE_NOT_ALLOWED
    client = Identity(cluster=CLUSTER, role=Role.APPENDER, name="peer-2")
    assert await first_refusal(one.address, good, client) is Reason.ROLE_NOT_ALLOWED


async def test_a_damaged_batch_drops_the_stream_and_is_not_stored(
    fleet: Fleet, las: StandInLas
) -> None:
    one, two = await fleet.start("peer-1", "peer-2")
    request = replication_pb2.ReplicateRequest(
        cluster_id=CLUSTER_ID,
        sender=encode_process(two.me),
        target_store_id=one.me.store,
        number=1,
    )
    frame = request.frames.add(shard=SHARD, epoch=1)
    batch = frame.batches.add(payload=b"damaged")
    batch.header.record_count, batch.header.payload_crc = 1, 12345
    sender = Identity(cluster=CLUSTER, role=Role.PEER, name="peer-2")
    refused = await first_refusal(one.address, request, sender, answers=2)
    assert refused is Reason.CRC_MISMATCH
    assert SHARD not in one.host._replicas

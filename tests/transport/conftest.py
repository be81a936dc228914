import grpc.aio
import pytest

from peerd.testing.memory import MemoryCluster
from peerd.transport.limits import EdgeLimits
from peerd.v1 import batch_pb2, log_pb2, log_pb2_grpc


@pytest.fixture
async def cluster(request):
    """Bounds are small enough to be reached; a test that waits for one to pass marks itself so.

    `@impatient` makes the wait for a primary 300 ms, which a busy machine may exceed elsewhere.
    """
    limits = EdgeLimits(
        batch_bytes_max=64 * 1024,
        inflight_bytes_max=256 * 1024,
        stream_inflight_bytes_max=128 * 1024,
        no_primary_wait_ms=getattr(request, "param", 15_000),
        reads_max=3,
    )
    async with MemoryCluster(peers=3, limits=limits) as cluster:
        yield cluster
        assert cluster.bugs == []


@pytest.fixture
async def stub(cluster):
    """Returns the stub of a peer by its number, 1 to 3."""
    channels = {}

    def of(number):
        address = cluster.addresses[number - 1]
        if address not in channels:
            channels[address] = grpc.aio.insecure_channel(
                address, options=[("grpc.use_local_subchannel_pool", 1)]
            )
        return log_pb2_grpc.LogServiceStub(channels[address])

    yield of
    for channel in channels.values():
        await channel.close()


@pytest.fixture
def batch():
    def make(*values, key=None):
        records = [batch_pb2.Record(value=value, key=key) for value in values]
        return batch_pb2.Batch(
            record_count=len(records), records=batch_pb2.Records(records=records)
        )

    return make


@pytest.fixture
def append(batch):
    """Makes an AppendRequest of one record, with any field set otherwise."""

    def make(value=b"v", *, log="orders", key=None, **fields):
        fields.setdefault("batch", batch(value, key=key))
        return log_pb2.AppendRequest(log=log, **fields)

    return make

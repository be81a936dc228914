import asyncio
import threading

import pytest
import uvloop

import peerd.aio
from peerd.client.options import ClientOptions
from peerd.testing.memory import MemoryCluster
from peerd.transport.limits import EdgeLimits


def pytest_asyncio_loop_factories(config, item):
    """Users' programs run on either loop."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def cluster(request):
    """Its peers wait for a primary as long as the test's parameter says, in milliseconds."""
    limits = EdgeLimits(
        batch_bytes_max=512 * 1024, no_primary_wait_ms=getattr(request, "param", 5_000)
    )
    async with MemoryCluster(peers=3, limits=limits) as cluster:
        yield cluster
        assert cluster.bugs == []


@pytest.fixture
async def connect(cluster):
    """Opens clients of the cluster, with options, and closes them in the end."""
    opened = []

    async def connect(*addresses, **options):
        client = peerd.aio.connect(
            list(addresses) or [*cluster.addresses, cluster.las_address],
            options=ClientOptions(**options),
        )
        await client.__aenter__()
        opened.append(client)
        return client

    yield connect
    for client in opened:
        await client.close()


@pytest.fixture
async def client(connect):
    return await connect(append_timeout_s=20.0)


@pytest.fixture
def running_cluster():
    """A cluster on a thread of its own, as another process would be."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    cluster = MemoryCluster(peers=3)

    def run(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    run(cluster.__aenter__())
    yield cluster
    run(cluster.__aexit__())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()

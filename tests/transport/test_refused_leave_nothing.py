"""What a refused call held is free when the call has ended: the collector is not waited for."""

import gc

import grpc
import grpc.aio
import pytest

from peerd.transport.append_stream import AppendStream
from peerd.transport.authz import forget_frames
from tests.las_daemon.stand_in import until

CALLS = 40
MALFORMED = b"\x0a\x06orders" + b"\x0b" * 100


@pytest.fixture
def without_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def held() -> int:
    """Streams of appends that somebody still names."""
    return sum(isinstance(each, AppendStream) for each in gc.get_objects())


async def test_of_malformed_streams_nothing_is_left(cluster, without_collector):
    cluster.create_log("orders", shards=1)
    before = held()
    async with grpc.aio.insecure_channel(cluster.addresses[0]) as channel:
        for _ in range(CALLS):
            call = channel.stream_stream("/peerd.v1.LogService/AppendStream")(timeout=30)
            await call.write(MALFORMED)
            with pytest.raises(grpc.aio.AioRpcError, match="not the protobuf message"):
                await call.read()
    await until(lambda: held() <= before + 1, "all but the last are gone")


def test_frames_of_what_led_to_an_error_are_forgotten_too(without_collector):
    class Held:
        pass

    def fail(kept: Held, kind: type[Exception]) -> None:
        raise kind(f"{kept}")

    def lead(kept: Held) -> None:
        try:
            fail(kept, KeyError)
        except KeyError as error:
            raise ExceptionGroup("two", [ValueError("x")]) from error

    def alive() -> int:
        return sum(isinstance(each, Held) for each in gc.get_objects())

    with pytest.raises(ExceptionGroup) as raised:
        lead(Held())
    assert alive() == 1
    forget_frames(raised.value)
    assert alive() == 0

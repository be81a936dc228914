"""Who gets a recording, and what the others are told."""

import grpc
import grpc.aio
import pytest

from peerd.core.errors import Reason
from peerd.transport.incident_service import PART_BYTES_MAX, IncidentService
from peerd.transport.status import reason_of, refusal_of_error
from peerd.transport.typed_errors import TypedErrors
from peerd.v1 import incident_pb2, incident_pb2_grpc

ASK = incident_pb2.SaveRecordingRequest()


@pytest.fixture
async def stub_for():
    """Serves a file on loopback, and gives a stub for it."""
    ends = []

    async def serve(path):
        server = grpc.aio.server(interceptors=[TypedErrors(lambda error: None)])
        incident_pb2_grpc.add_IncidentServiceServicer_to_server(IncidentService(path), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        ends.extend([channel.close, lambda: server.stop(None)])
        return incident_pb2_grpc.IncidentServiceStub(channel)

    yield serve
    for end in ends:
        await end()


async def test_a_file_comes_in_parts(stub_for, tmp_path):
    path = tmp_path / "ring"
    path.write_bytes(bytes(range(256)) * (PART_BYTES_MAX // 128))
    stub = await stub_for(path)
    parts = [part.data async for part in stub.SaveRecording(ASK)]
    assert b"".join(parts) == path.read_bytes()
    assert len(parts) == 2
    assert [part async for part in stub.SaveRecording(ASK)]  # and again, once that has ended


async def test_one_reader_at_a_time(stub_for, tmp_path):
    path = tmp_path / "ring"
    path.write_bytes(bytes(100 * PART_BYTES_MAX))
    stub = await stub_for(path)
    first = stub.SaveRecording(ASK)
    await first.read()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.SaveRecording(ASK).read()
    refusal = refusal_of_error(refused.value)
    assert reason_of(refusal) is Reason.OVERLOADED
    assert refusal.retry_after_ms > 0
    first.cancel()


async def test_a_process_that_records_nothing_says_how_to(stub_for):
    stub = await stub_for(None)
    with pytest.raises(grpc.aio.AioRpcError, match="set flight_recorder_bytes") as refused:
        await stub.SaveRecording(ASK).read()
    assert reason_of(refusal_of_error(refused.value)) is Reason.NOT_SERVED_YET

"""Fetches flight recordings of running processes."""

from pathlib import Path

import grpc.aio

from peerd.client.errors import Unavailable, error_of_call
from peerd.recorder.ring import RING_BYTES_MAX
from peerd.transport.channels import Channels
from peerd.v1 import incident_pb2, incident_pb2_grpc

# How long one recording may take: 64 MiB over a link that also carries appends. Seconds.
SAVE_TIMEOUT_S = 60.0


async def save_recording(channels: Channels, address: str, path: Path) -> int:
    """Write the recording of the process at `address` to `path`; returns its bytes.

    A file of that name is there only when it is whole. Raises `PeerdError`, or `OSError` if it
    cannot be written.
    """
    stub = incident_pb2_grpc.IncidentServiceStub(channels.to(address))
    fresh = path.with_name(path.name + ".part")
    size_bytes = 0
    try:
        with fresh.open("wb") as file:
            async for part in stub.SaveRecording(
                incident_pb2.SaveRecordingRequest(), timeout=SAVE_TIMEOUT_S
            ):
                size_bytes += len(part.data)
                if size_bytes > RING_BYTES_MAX:
                    raise Unavailable(
                        f"{address} sends more than the {RING_BYTES_MAX} bytes of a recording"
                    )
                file.write(part.data)
        fresh.replace(path)
    except grpc.aio.AioRpcError as error:
        raise error_of_call(error, f"the recording of {address}") from error
    finally:
        fresh.unlink(missing_ok=True)
    return size_bytes

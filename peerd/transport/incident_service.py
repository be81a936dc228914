"""`peerd.v1.IncidentService`: gives out the flight recording of this process.

The file is read while it is written: a reader of it stops at a record that was overwritten
meanwhile (see `peerd.recorder.ring`). It is read in another thread, one reader at a time.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from peerd.core.errors import Reason
from peerd.transport.status import Context, Refused, refusal
from peerd.v1 import incident_pb2, incident_pb2_grpc

# limit: bytes of a recording in one message; few enough to be read between two appends
PART_BYTES_MAX = 256 * 1024
# What a second reader is told to wait: a full ring takes about a second.
SECOND_READER_RETRY_MS = 1_000


class IncidentService(incident_pb2_grpc.IncidentServiceServicer):
    """Serves one file."""

    def __init__(self, path: Path | None) -> None:
        """`path`: the ring; None if nothing is recorded."""
        self._path = path
        self._reading = False

    async def SaveRecording(
        self,
        request: incident_pb2.SaveRecordingRequest,  # noqa: ARG002 - it says nothing yet
        context: Context,  # noqa: ARG002 - the shape of a servicer's method
    ) -> AsyncIterator[incident_pb2.SaveRecordingResponse]:
        """The file in parts.

        Raises:
            Refused: NOT_SERVED_YET if nothing is recorded, OVERLOADED while somebody else reads.
        """
        if self._path is None:
            message = "this process records nothing: set flight_recorder_bytes"
            raise Refused(refusal(Reason.NOT_SERVED_YET, message))
        if self._reading:
            message = "the recording is being read by somebody else: ask again in a second"
            raise Refused(
                refusal(Reason.OVERLOADED, message, retry_after_ms=SECOND_READER_RETRY_MS)
            )
        self._reading = True
        try:
            with await asyncio.to_thread(self._path.open, "rb") as file:
                while part := await asyncio.to_thread(file.read, PART_BYTES_MAX):
                    yield incident_pb2.SaveRecordingResponse(data=part)
        finally:
            self._reading = False

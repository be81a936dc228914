"""Moves a snapshot from the leader to a follower that is behind the leader's log.

Invariants:
- A snapshot moves nothing at the follower before all of it is there, checked and on disk: a chunk
  carries no commit index, and counts as no more than a heartbeat.
- What is on its way is bounded (WINDOW_BYTES); the follower's answers open the window.
- A transfer belongs to one term and one link; when either ends, it ends.

Must not: install anything (the guard does), or talk to the library.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from las.internal.v1 import raft_pb2
from las.raft.disk import Disk
from las.raft.errors import FrameRefused
from las.raft.snapshot import SNAPSHOT_BYTES_MAX

# limit: bytes of one chunk; a small part of a gRPC message, and read in well under a millisecond
CHUNK_BYTES = 256 * 1024
# limit: bytes on their way to one follower; covers a round trip of 100 ms at 40 MB/s
WINDOW_BYTES = 4 * 1024 * 1024
# limit: seconds without an answer before a transfer is given up; several disk stalls of a second
STALL_S = 10.0


@dataclass(slots=True)
class _Outgoing:
    descriptor: int
    term: int
    last_index: int
    last_term: int
    total_bytes: int
    sent_bytes: int = 0
    acknowledged_bytes: int = 0
    heard_at: float = 0.0
    spoken_at: float = 0.0


class SnapshotSender:
    """The leader's side: at most one transfer per follower."""

    def __init__(
        self,
        path: Path,
        disk: Disk,
        *,
        heartbeat_s: float,
        clock: Callable[[], float],
        send: Callable[[str, raft_pb2.RaftFrame], None],
    ) -> None:
        self._path = path
        self._disk = disk
        self._heartbeat_s = heartbeat_s
        self._clock = clock
        self._send = send
        self._transfers: dict[str, _Outgoing] = {}

    def is_busy(self, peer: str) -> bool:
        """Tells whether a snapshot is on its way to `peer`."""
        return peer in self._transfers

    def start(self, peer: str, *, term: int, last_index: int, last_term: int) -> None:
        """Begins a transfer of the snapshot on disk, unless one is going on.

        Raises:
            OSError: the file cannot be read; the caller ends the process.
        """
        if peer in self._transfers:
            return
        descriptor = self._disk.open_to_read(self._path)
        transfer = _Outgoing(
            descriptor,
            term,
            last_index,
            last_term,
            total_bytes=self._disk.size_bytes(descriptor),
        )
        transfer.heard_at = self._clock()
        self._transfers[peer] = transfer
        self._pump(peer, transfer)

    def heartbeat(self, peer: str) -> None:
        """Keeps the follower from standing for election while it waits for chunks."""
        transfer = self._transfers[peer]
        if self._clock() - transfer.spoken_at >= self._heartbeat_s:
            self._send_chunk(peer, transfer, b"")

    def take_reply(self, peer: str, reply: raft_pb2.SnapshotReply) -> None:
        """Goes on after an answer of the follower."""
        transfer = self._transfers.get(peer)
        if transfer is None or reply.last_index != transfer.last_index:
            return
        if reply.held or reply.aborted:
            self.cancel(peer)
            return
        received = min(reply.received_bytes, transfer.sent_bytes)
        if received > transfer.acknowledged_bytes:
            transfer.acknowledged_bytes = received
            transfer.heard_at = self._clock()
        self._pump(peer, transfer)

    def tick(self, term: int | None) -> None:
        """Ends transfers of another term than `term` (None: not leading), and stalled ones."""
        now = self._clock()
        for peer, transfer in list(self._transfers.items()):
            if transfer.term != term or now - transfer.heard_at > STALL_S:
                self.cancel(peer)

    def cancel(self, peer: str) -> None:
        """Ends the transfer to `peer`, if there is one."""
        transfer = self._transfers.pop(peer, None)
        if transfer is not None:
            self._disk.close(transfer.descriptor)

    def _pump(self, peer: str, transfer: _Outgoing) -> None:
        while (
            transfer.sent_bytes < transfer.total_bytes
            and transfer.sent_bytes - transfer.acknowledged_bytes < WINDOW_BYTES
        ):
            data = self._disk.read_at(transfer.descriptor, CHUNK_BYTES, transfer.sent_bytes)
            if not data:
                raise OSError(f"{self._path} became shorter while it was read")
            self._send_chunk(peer, transfer, data)
            transfer.sent_bytes += len(data)

    def _send_chunk(self, peer: str, transfer: _Outgoing, data: bytes) -> None:
        chunk = raft_pb2.SnapshotChunk(
            last_index=transfer.last_index,
            last_term=transfer.last_term,
            total_bytes=transfer.total_bytes,
            offset_bytes=transfer.sent_bytes,
            data=data,
        )
        transfer.spoken_at = self._clock()
        self._send(peer, raft_pb2.RaftFrame(snapshot_chunk=chunk))


@dataclass(slots=True)
class _Incoming:
    leader: str
    term: int
    last_index: int
    last_term: int
    total_bytes: int
    descriptor: int
    received_bytes: int = 0


class SnapshotReceiver:
    """The follower's side: at most one snapshot at a time, into a draft on disk."""

    def __init__(self, draft: Path, disk: Disk) -> None:
        self._draft = draft
        self._disk = disk
        self._incoming: _Incoming | None = None

    def take(self, leader: str, term: int, chunk: raft_pb2.SnapshotChunk) -> Path | None:
        """Takes one chunk; returns the draft, synced, once it is complete.

        Raises:
            FrameRefused: the chunk does not follow what came before; what came is dropped.
            OSError: the disk failed; the caller ends the process.
        """
        incoming = self._incoming
        identity = (leader, term, chunk.last_index, chunk.last_term, chunk.total_bytes)
        if chunk.offset_bytes == 0 and chunk.data:
            incoming = self._begin(*identity)
        if incoming is None or identity != (
            incoming.leader,
            incoming.term,
            incoming.last_index,
            incoming.last_term,
            incoming.total_bytes,
        ):
            raise FrameRefused(f"a snapshot's middle from {leader} without its beginning")
        if not chunk.data:
            return None
        end = chunk.offset_bytes + len(chunk.data)
        if chunk.offset_bytes != incoming.received_bytes or end > incoming.total_bytes:
            self.drop()
            raise FrameRefused(f"snapshot bytes {chunk.offset_bytes}… of {leader} out of order")
        self._disk.write(incoming.descriptor, chunk.data)
        incoming.received_bytes = end
        if end < incoming.total_bytes:
            return None
        self._disk.sync(incoming.descriptor)
        self.drop()
        return self._draft

    @property
    def received_bytes(self) -> int:
        """Bytes of the snapshot on its way that came so far; 0 without one."""
        return self._incoming.received_bytes if self._incoming else 0

    def drop(self) -> None:
        """Forgets the snapshot on its way; its draft is overwritten by the next."""
        if self._incoming is not None:
            self._disk.close(self._incoming.descriptor)
            self._incoming = None

    def _begin(
        self, leader: str, term: int, last_index: int, last_term: int, total_bytes: int
    ) -> _Incoming:
        self.drop()
        if total_bytes > SNAPSHOT_BYTES_MAX:
            raise FrameRefused(f"a snapshot of {total_bytes} bytes from {leader} is too large")
        descriptor = self._disk.create(self._draft)
        self._incoming = _Incoming(leader, term, last_index, last_term, total_bytes, descriptor)
        return self._incoming

"""Stands between the library and the wire, and repairs what the library gets wrong in messages.

The library thinks it has a transport; each message that it sends becomes a frame or nothing, each
frame that comes becomes messages that are safe for the library or nothing. The rules, one per hole:

| the library                                            | here                                  |
| ------------------------------------------------------ | ------------------------------------- |
| raises the commit index on every piece of a snapshot,  | pieces are heartbeats to it; the      |
| over a tail that was never compared                    | whole snapshot comes as one message   |
| cuts the log behind `prevLogIdx`, in conflict or not,  | what is already here is stripped, so  |
| so a message sent again drops newer entries            | that only a conflict cuts             |
| acknowledges up to the end of its log                  | up to the end of the answered frame   |
| counts acknowledgements of any term                    | of the current term only              |
| counts votes, not voters                               | each member once per term             |
| answers an old leader with silence, for ever           | with its term, which ends that leader |
| steps back one entry per heartbeat to find a conflict  | straight to the commit index          |
| forwards commands, takes over leadership, reconfigures | does not                              |

Invariants: the sender of a frame is the member that its link was authenticated for. Every frame
leaves through `take_frames`, which `las.raft.member` calls after the journal was synced.

Must not: block, or do IO other than a snapshot's.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from pysyncobj.transport import Transport

from las.internal.v1 import raft_pb2
from las.raft.codec import command_of, text_of
from las.raft.disk import Disk
from las.raft.errors import CommandInvalid, FrameRefused
from las.raft.journal import Journal, LogEntry
from las.raft.library import Member, ReplicatedText
from las.raft.prevote import PreVote
from las.raft.sessions import Envelope
from las.raft.snapshot import SnapshotStore, parse_snapshot
from las.raft.transfer import SnapshotReceiver, SnapshotSender

# limit: bytes of commands in one AppendEntries frame; far below gRPC's message size, and large
# enough that a follower that is far behind catches up in few frames
FRAME_BYTES_MAX = 1024 * 1024
# Bytes of a frame beside its commands, per entry, rounded up.
_ENTRY_OVERHEAD_BYTES = 32

# A message as the library makes and takes them.
Message = dict[str, Any]
Frame = raft_pb2.RaftFrame


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """Which rules hold. All, always; tests switch one off to see that its absence is noticed."""

    snapshot_pieces_move_nothing: bool = True
    cut_only_on_conflict: bool = True
    acknowledgements_carry_term: bool = True
    one_vote_per_member: bool = True
    ask_before_standing: bool = True
    sync_before_sending: bool = True
    apply_once: bool = True
    rejoin_without_vote: bool = True


ALL_GUARDS = Guards()


@dataclass(slots=True, kw_only=True)
class Parts:
    """What the guard works with; `las.raft.member` puts it together after the library exists."""

    library: ReplicatedText
    journal: Journal
    snapshots: SnapshotStore
    disk: Disk
    sender: SnapshotSender
    receiver: SnapshotReceiver
    pre_vote: PreVote
    may_vote_in: Callable[[int], bool]
    cluster_id: str
    fatal: Callable[[str], NoReturn]


class Guard(Transport):  # type: ignore[misc]
    """The library's transport; owned by the raft thread."""

    def __init__(self, others: Iterable[str], guards: Guards = ALL_GUARDS) -> None:
        super().__init__(None, None, [])
        self._nodes = {name: Member(name) for name in others}
        self._guards = guards
        self._parts: Parts | None = None
        self._outbox: list[tuple[str, Frame]] = []
        # The newest AppendEntries to each member in the outbox: later entries join it.
        self._growing: dict[str, tuple[Frame, int]] = {}
        self._acknowledge_below: int | None = None
        # Where the leader was told to begin after a conflict, until something fits.
        self._advice: int | None = None
        self._voters: tuple[int, set[str]] = (0, set())
        self.up: set[str] = set()
        # Commit index that the current leader spoke of last, which may be beyond our log's end.
        self.leader_commit_index = 0

    def attach(self, parts: Parts) -> None:
        """Gives the guard what it could not have before the library was made."""
        self._parts = parts

    @property
    def _at(self) -> Parts:
        if self._parts is None:
            raise RuntimeError("the library spoke before its guard was ready")
        return self._parts

    @property
    def _term(self) -> int:
        return int(self._at.library.raftCurrentTerm)

    # ------------------------------------------------------------------ links

    def link_up(self, peer: str) -> None:
        """Frames to `peer` can leave from now on."""
        if peer in self._nodes and peer not in self.up:
            self.up.add(peer)
            self._onNodeConnected(self._nodes[peer])

    def link_down(self, peer: str) -> None:
        """Frames to `peer` are lost from now on."""
        if peer in self.up:
            self.up.discard(peer)
            self._at.sender.cancel(peer)
            self._onNodeDisconnected(self._nodes[peer])

    # ------------------------------------------------------------------ library → frames

    def send(self, node: Member, message: Message) -> bool:
        """Called by the library. Unknown kinds (forwarding, transfer, utility) go nowhere."""
        peer = node.id
        if peer not in self.up:
            return False
        match message["type"]:
            case "append_entries":
                self._send_append(peer, message)
            case "next_node_idx":
                self._send_append_reply(peer, message)
            case "request_vote":
                request = raft_pb2.RequestVote(
                    last_log_index=message["last_log_index"],
                    last_log_term=message["last_log_term"],
                )
                self.enqueue(peer, Frame(request_vote=request))
            case "response_vote":
                self.enqueue(peer, Frame(vote_granted=raft_pb2.VoteGranted()))
            case _:
                return False
        return True

    def enqueue(self, peer: str, frame: Frame) -> None:
        """Queues a frame, with the current term; it leaves after the next sync."""
        if peer in self.up:
            frame.term = self._term
            self._outbox.append((peer, frame))

    def take_frames(self) -> list[tuple[str, Frame]]:
        """Returns what was queued. The caller has synced the journal before."""
        frames, self._outbox = self._outbox, []
        self._growing.clear()
        return frames

    def _send_append(self, peer: str, message: Message) -> None:
        at = self._at
        if "prevLogIdx" not in message:
            last = at.journal[1]
            at.sender.start(peer, term=self._term, last_index=last.index, last_term=last.term)
            return
        if at.sender.is_busy(peer):
            # The library goes on behind the snapshot; the follower could not use it yet.
            at.sender.heartbeat(peer)
            return
        if "transmission" in message or message["prevLogIdx"] is None:
            at.fatal(f"the library made a message that it never should: {message.keys()}")
        previous = (message["prevLogIdx"], message["prevLogTerm"])
        self._queue_entries(peer, previous, message["entries"], message["commit_index"])

    def _queue_entries(
        self, peer: str, previous: tuple[int, int], entries: list[LogEntry], commit_index: int
    ) -> None:
        """Adds entries to the newest frame if they follow it; begins another where it is full."""
        frame, size = self._growing.get(peer, (None, 0))
        if frame is None or not _follows(frame, self._term, previous):
            frame, size = self._new_append(peer, previous), 0
        for entry in entries:
            added = len(entry.command) + _ENTRY_OVERHEAD_BYTES
            if size + added > FRAME_BYTES_MAX and frame.append_entries.entries:
                frame.append_entries.commit_index = commit_index
                frame, size = self._new_append(peer, previous), 0
            frame.append_entries.entries.append(_entry_to_wire(entry))
            size += added
            previous = (entry.index, entry.term)
        frame.append_entries.commit_index = commit_index
        self._growing[peer] = (frame, size)

    def _new_append(self, peer: str, previous: tuple[int, int]) -> Frame:
        frame = Frame(
            append_entries=raft_pb2.AppendEntries(
                previous_index=previous[0], previous_term=previous[1]
            )
        )
        self.enqueue(peer, frame)
        return frame

    def _send_append_reply(self, peer: str, message: Message) -> None:
        next_index, success = message["next_node_idx"], message["success"]
        journal = self._at.journal
        if success:
            self._advice = None
            if self._acknowledge_below is not None:
                next_index = min(next_index, self._acknowledge_below)
        elif next_index <= journal.last().index:
            # Everything committed is in every leader's log: begin there instead of one step back.
            next_index = self._advice = journal.commit_floor + 1
        elif self._advice is not None:
            # The frames behind a conflicting one seem to be beyond our end: do not take them there.
            next_index = self._advice
        reply = raft_pb2.AppendReply(next_index=next_index, success=success, reset=message["reset"])
        self.enqueue(peer, Frame(append_reply=reply))

    # ------------------------------------------------------------------ frames → library

    def receive(self, peer: str, frame: Frame) -> None:
        """Takes a frame from the member that its link belongs to.

        Raises:
            FrameRefused: it breaks the protocol. Nothing was changed.
        """
        if peer not in self._nodes:
            raise FrameRefused(f"{peer} is not a member")
        match frame.WhichOneof("body"):
            case "append_entries":
                self._receive_append(peer, frame.term, frame.append_entries)
            case "append_reply":
                self._receive_append_reply(peer, frame.term, frame.append_reply)
            case "request_vote":
                self._receive_request_vote(peer, frame.term, frame.request_vote)
            case "vote_granted":
                self._receive_vote(peer, frame.term)
            case "pre_vote":
                self._at.pre_vote.answer(peer, frame.pre_vote)
            case "pre_vote_reply":
                self._adopt_term(peer, frame.term)
                self._at.pre_vote.take_reply(peer, frame.pre_vote_reply)
            case "snapshot_chunk":
                self._receive_chunk(peer, frame.term, frame.snapshot_chunk)
            case "snapshot_reply":
                self._receive_snapshot_reply(peer, frame.term, frame.snapshot_reply)
            case other:
                raise FrameRefused(f"{peer} sent {other or 'an empty frame'} within a stream")

    def _deliver(self, peer: str, message: Message) -> None:
        self._onMessageReceived(self._nodes[peer], message)

    def _adopt_term(self, peer: str, term: int) -> None:
        """Takes over a higher term, and with it ends an own leadership; gives nobody a vote.

        To the library it is a request from a candidate whose log is behind every log.
        """
        if term > self._term:
            self._deliver(
                peer,
                {"type": "request_vote", "term": term, "last_log_index": 0, "last_log_term": 0},
            )

    def _receive_request_vote(self, peer: str, term: int, vote: raft_pb2.RequestVote) -> None:
        if not self._at.may_vote_in(term):
            self._adopt_term(peer, term)
            return
        self._deliver(
            peer,
            {
                "type": "request_vote",
                "term": term,
                "last_log_index": vote.last_log_index,
                "last_log_term": vote.last_log_term,
            },
        )

    def _receive_vote(self, peer: str, term: int) -> None:
        if self._voters[0] != term:
            self._voters = (term, set())
        if peer in self._voters[1] and self._guards.one_vote_per_member:
            return
        self._voters[1].add(peer)
        self._deliver(peer, {"type": "response_vote", "term": term})

    def _receive_append_reply(self, peer: str, term: int, reply: raft_pb2.AppendReply) -> None:
        self._adopt_term(peer, term)
        if term != self._term and self._guards.acknowledgements_carry_term:
            return
        last = self._at.journal.last().index
        if reply.success and reply.next_index > last + 1:
            raise FrameRefused(f"{peer} has entries up to {reply.next_index - 1}, there is {last}")
        self._deliver(
            peer,
            {
                "type": "next_node_idx",
                # Entry 1 is the same everywhere, so 2 is the first that is ever sent.
                "next_node_idx": max(2, min(reply.next_index, last + 1)),
                "reset": reply.reset,
                "success": reply.success,
            },
        )

    def _hear_leader(self, peer: str, term: int) -> bool:
        """Judges a leader's frame by its term; False if it comes from the past."""
        if term < self._term:
            return False
        leader = self._at.library._getLeader()
        if term == self._term and leader is not None and leader.id != peer:
            self._at.fatal(f"{peer} and {leader.id} both lead term {term}")
        if term > self._term:
            self.leader_commit_index = 0
        self._at.pre_vote.leader_heard()
        return True

    def _receive_append(self, peer: str, term: int, frame: raft_pb2.AppendEntries) -> None:
        if not self._hear_leader(peer, term):
            self.enqueue(peer, Frame(append_reply=raft_pb2.AppendReply()))
            return
        previous, entries = self._checked_entries(peer, term, frame)
        end = frame.previous_index + len(frame.entries)
        if self._guards.cut_only_on_conflict:
            previous, entries = self._strip_known(peer, previous, entries)
            self._acknowledge_below = end + 1
        self.leader_commit_index = frame.commit_index
        message = {
            "type": "append_entries",
            "term": term,
            # Only what was compared may count as committed, not what our log has beyond it.
            "commit_index": min(frame.commit_index, end),
            "prevLogIdx": previous[0],
            "prevLogTerm": previous[1],
            "entries": entries,
        }
        try:
            self._deliver(peer, message)
        finally:
            self._acknowledge_below = None

    def _checked_entries(
        self, peer: str, term: int, frame: raft_pb2.AppendEntries
    ) -> tuple[tuple[int, int], list[LogEntry]]:
        entries = []
        index, entry_term = frame.previous_index, frame.previous_term
        if index < 1:
            raise FrameRefused(f"{peer} sent entries after index {index}")
        for entry in frame.entries:
            if entry.index != index + 1 or not entry_term <= entry.term <= term:
                raise FrameRefused(
                    f"{peer} sent entry {entry.index} of term {entry.term} after {index} of "
                    f"{entry_term} in term {term}"
                )
            entries.append(_entry_from_wire(peer, entry))
            index, entry_term = entry.index, entry.term
        return (frame.previous_index, frame.previous_term), entries

    def _strip_known(
        self, peer: str, previous: tuple[int, int], entries: list[LogEntry]
    ) -> tuple[tuple[int, int], list[LogEntry]]:
        """Removes what our log has, so that the library cuts at a conflict or not at all."""
        journal = self._at.journal
        first = journal.first()
        if previous[0] < first.index:
            # Our log begins later; what it has dropped was committed, so it is the same.
            skipped = first.index - previous[0]
            if skipped <= len(entries) and entries[skipped - 1].term != first.term:
                raise FrameRefused(f"{peer} has another entry {first.index} than was committed")
            previous, entries = (first.index, first.term), entries[skipped:]
        if journal.term_at(previous[0]) != previous[1]:
            return previous, entries
        known = 0
        while known < len(entries) and journal.term_at(entries[known].index) == entries[known].term:
            known += 1
        if known == len(entries):
            # Nothing new. Comparing at our own end keeps a longer log whole.
            return (journal.last().index, journal.last().term), []
        if known:
            previous = (entries[known - 1].index, entries[known - 1].term)
        return previous, entries[known:]

    # ------------------------------------------------------------------ snapshots

    def _receive_chunk(self, peer: str, term: int, chunk: raft_pb2.SnapshotChunk) -> None:
        reply = raft_pb2.SnapshotReply(last_index=chunk.last_index)
        if not self._hear_leader(peer, term):
            reply.aborted = True
            self.enqueue(peer, Frame(snapshot_reply=reply))
            return
        moves_nothing = self._guards.snapshot_pieces_move_nothing
        commit_index = 0 if moves_nothing else chunk.last_index
        self._deliver(peer, _heartbeat(term, commit_index))
        try:
            if not self._holds(chunk):
                self._take_chunk(peer, term, chunk)
            reply.held = self._holds(chunk)
            reply.received_bytes = self._at.receiver.received_bytes
        except FrameRefused:
            reply.aborted = True
            raise
        finally:
            self.enqueue(peer, Frame(snapshot_reply=reply))

    def _holds(self, chunk: raft_pb2.SnapshotChunk) -> bool:
        """True if installing would take us back, or delete entries that we acknowledged."""
        journal = self._at.journal
        committed = chunk.last_index <= journal.commit_floor
        return committed or journal.term_at(chunk.last_index) == chunk.last_term

    def _take_chunk(self, peer: str, term: int, chunk: raft_pb2.SnapshotChunk) -> None:
        at = self._at
        draft = at.receiver.take(peer, term, chunk)
        if draft is None:
            return
        try:
            snapshot = parse_snapshot(at.disk.read_file(draft))
        except (ValueError, KeyError, TypeError) as error:
            raise FrameRefused(f"{peer} sent a snapshot that is damaged: {error}") from error
        position = (snapshot.last.index, snapshot.last.term)
        if snapshot.cluster_id != at.cluster_id or position != (chunk.last_index, chunk.last_term):
            raise FrameRefused(f"{peer} sent a snapshot that is not the one it announced")
        at.snapshots.install(draft)
        installed = _heartbeat(term, snapshot.last.index)
        self._deliver(peer, {**installed, "serialized": SnapshotStore.TOKEN})

    def _receive_snapshot_reply(self, peer: str, term: int, reply: raft_pb2.SnapshotReply) -> None:
        self._adopt_term(peer, term)
        if term != self._term or not self._at.library._isLeader():
            return
        self._at.sender.take_reply(peer, reply)
        last = self._at.journal.last().index
        held = reply.held and reply.last_index <= last
        self._deliver(
            peer,
            {
                "type": "next_node_idx",
                "next_node_idx": reply.last_index + 1 if held else 2,
                # Without `held` it is only a sign of life.
                "reset": held,
                "success": held,
            },
        )


def _heartbeat(term: int, commit_index: int) -> Message:
    """A leader's sign of life, as the library takes it: a piece of a snapshot without content."""
    return {
        "type": "append_entries",
        "term": term,
        "commit_index": commit_index,
        "serialized": None,
    }


def _follows(frame: Frame, term: int, previous: tuple[int, int]) -> bool:
    append = frame.append_entries
    if frame.term != term:
        return False
    if append.entries:
        return (append.entries[-1].index, append.entries[-1].term) == previous
    return (append.previous_index, append.previous_term) == previous


def _entry_to_wire(entry: LogEntry) -> raft_pb2.Entry:
    text = text_of(entry.command)
    if text is None:
        return raft_pb2.Entry(index=entry.index, term=entry.term)
    envelope = Envelope.from_text(text)
    command = raft_pb2.Command(
        client=envelope.client, sequence=envelope.sequence, body=envelope.body
    )
    return raft_pb2.Entry(index=entry.index, term=entry.term, command=command)


def _entry_from_wire(peer: str, entry: raft_pb2.Entry) -> LogEntry:
    if not entry.HasField("command"):
        return LogEntry(command_of(None), entry.index, entry.term)
    command = entry.command
    try:
        envelope = Envelope(client=command.client, sequence=command.sequence, body=command.body)
    except CommandInvalid as error:
        raise FrameRefused(f"{peer} sent entry {entry.index}: {error}") from error
    return LogEntry(command_of(envelope.to_text()), entry.index, entry.term)

"""One member of the group, without threads and sockets: events in, frames and outcomes out.

`las.raft.driver` calls it in one thread; the tests call it from a simulated network. The order of a
step is the heart of the safety argument:

    events (frames, links, commands) → tick → journal sync → frames and outcomes leave

Invariants:
- Whatever leaves a step is covered by that step's sync.
- Each proposed command gets exactly one outcome, unless the process ends: a result, an error that
  proves that it is not applied, or `OutcomeUnknown`.
- A member that has lost its leadership gives all its open commands back as `OutcomeUnknown`.
- In doubt the process ends (`fatal`): an exception out of the library or the state machine may have
  left half a change behind.

Must not: start threads (the snapshot writer's executor is passed in), sleep, or read a clock of its
own.
"""

import logging
import random
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import NoReturn, Protocol

from pysyncobj import FAIL_REASON

from las.internal.v1 import raft_pb2
from las.raft.codec import command_of
from las.raft.errors import (
    CommandSuperseded,
    FrameRefused,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    RaftError,
)
from las.raft.guard import ALL_GUARDS, Guard, Guards, Parts
from las.raft.journal import Journal
from las.raft.library import (
    ReplicatedText,
    adopt,
    configuration_of,
    load_snapshot,
    private,
    verify_library,
)
from las.raft.prevote import PreVote
from las.raft.rejoin import Rejoin
from las.raft.sessions import Envelope, SessionRow, Sessions, Superseded
from las.raft.snapshot import SnapshotStore
from las.raft.store import Store
from las.raft.transfer import SnapshotReceiver, SnapshotSender

logger = logging.getLogger(__name__)

# limit: commands that were given and have no outcome yet; at 64 KiB each they fill 64 MiB, and at
# 3,000 commits a second the last one waits a third of a second
OPEN_COMMANDS_MAX = 1024
# What a caller is told to wait when OPEN_COMMANDS_MAX is reached: half of that third.
OVERLOAD_RETRY_MS = 150
# limit: bytes of the journal that make a snapshot due before the number of entries does
JOURNAL_BYTES_COMPACT = 16 * 1024 * 1024


class StateMachine(Protocol):
    """What the group replicates; owned by the raft thread.

    Deterministic: the same commands in the same order give the same results and state everywhere.
    A domain error is a result; an exception ends the process.
    """

    def apply(self, command: str) -> str:
        """Applies a command (JSON text) and returns its result (JSON text)."""

    def freeze(self) -> Callable[[], bytes]:
        """Captures the state as immutable values, in constant time.

        The returned function serialises them in another thread, item by item: one long call into C
        would hold the interpreter's lock, and with it the raft thread.
        """

    def restore(self, snapshot: bytes) -> None:
        """Replaces the state by one that `freeze` gave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Times of the group; the same on each member. Seconds, since the library counts in them."""

    heartbeat_s: float = 0.1
    election_timeout_s: tuple[float, float] = (0.6, 1.2)
    # A leader without answers of a majority for so long steps down.
    leader_fallback_s: float = 1.0
    # A snapshot is due after so many entries, or after so long if anything was applied.
    compaction_entries: int = 5000
    compaction_interval_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftStatus:
    """What a member knows of the group. It may be outdated: only a barrier proves leadership.

    Attributes:
        name: This member.
        term: Its current term.
        leader: The leader of that term, as far as it knows.
        is_leader: It leads and has applied an entry of its own term, hence everything before.
        commit_index: Index up to which it knows the log to be committed.
        applied_index: Index up to which its state machine is.
        members_up: Members that it can send to, itself included, by name.
        voting: False while it rejoins.
        rejoined: Other members whose store was made by `las rejoin`: name and store id.
        command_level: Level of commands that all members have said they know, 1 while one of them
            has not been heard.
    """

    name: str
    term: int
    leader: str | None
    is_leader: bool
    commit_index: int
    applied_index: int
    members_up: tuple[str, ...]
    voting: bool = True
    rejoined: tuple[tuple[str, str], ...] = ()
    command_level: int = 1


# A command's result, None for a barrier, or the error that its caller gets.
Outcome = str | RaftError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step sets free, in this order."""

    frames: list[tuple[str, raft_pb2.RaftFrame]]
    outcomes: list[tuple[int, Outcome]]
    status: RaftStatus


class FailStop(BaseException):
    """Raised behind `fatal` where the process does not end (tests); nobody may catch and go on."""


class RaftMember:
    """See the module. Every method runs in the raft thread."""

    def __init__(
        self,
        *,
        store: Store,
        machine: StateMachine,
        seed: int,
        clock: Callable[[], float],
        background: Executor,
        fatal: Callable[[str], None],
        timing: Timing | None = None,
        guards: Guards = ALL_GUARDS,
        command_level: int = 1,
    ) -> None:
        """
        Args:
            store: The open directory; closed by `close`.
            machine: The state machine, in its initial state.
            seed: Of the timers' randomness; another one on each member.
            clock: Seconds, monotonic; the same clock that the library reads.
            background: Writes snapshots.
            fatal: Ends the process with a reason; does not return in production.
            timing: See Timing.
            guards: For tests only.
            command_level: Highest level of commands that `machine` knows; told to the others.

        Raises:
            LibraryChanged, StoreCorrupt: see `las.raft.library`, `las.raft.journal`.
        """
        verify_library()
        self._store = store
        self._machine = machine
        self._guards = guards
        self._on_fatal = fatal
        self._failed: str | None = None
        self._sessions = Sessions()
        self._open: set[int] = set()
        self._outcomes: list[tuple[int, Outcome]] = []
        self.refused_frames = 0
        self._rejoined: dict[str, str] = {}
        self._command_level = command_level
        self._levels: dict[str, int] = {}
        manifest = store.manifest
        self._others = tuple(name for name in manifest.members if name != manifest.name)
        timing = timing or Timing()
        rng = random.Random(seed)
        self._snapshots = SnapshotStore(
            store.snapshot_path,
            cluster_id=manifest.group_id,
            freeze=self._freeze,
            restore=self._restore,
            disk=store.disk,
            background=background,
            fatal=self._fatal,
        )
        snapshot = self._snapshots.read()
        self._journal = Journal(
            store.journal_path,
            covered=(snapshot.previous, snapshot.last) if snapshot else None,
            disk=store.disk,
            fatal=self._fatal,
        )
        self._guard = Guard(self._others, guards)
        self._library = self._make_library(timing, rng, clock)
        self._sender, self._pre_vote, self._rejoin = self._assemble(timing, rng, clock)
        if snapshot is not None:
            self._guarded(lambda: load_snapshot(self._library))
            if self._library.raftLastApplied != snapshot.last.index:
                self._fatal("the snapshot was not loaded")
        self.step()

    def _make_library(
        self, timing: Timing, rng: random.Random, clock: Callable[[], float]
    ) -> ReplicatedText:
        configuration = configuration_of(
            snapshot_path=self._store.snapshot_path,
            heartbeat_s=timing.heartbeat_s,
            election_timeout_s=timing.election_timeout_s,
            leader_fallback_s=timing.leader_fallback_s,
            commands_max=OPEN_COMMANDS_MAX,
            compaction_entries=timing.compaction_entries,
            compaction_interval_s=timing.compaction_interval_s,
        )
        library = ReplicatedText(
            self._store.manifest.name,
            list(self._others),
            configuration,
            self._guard,
            self._apply,
        )
        adopt(library, journal=self._journal, snapshots=self._snapshots, rng=rng, now=clock())
        return library

    def _assemble(
        self, timing: Timing, rng: random.Random, clock: Callable[[], float]
    ) -> tuple[SnapshotSender, PreVote, Rejoin]:
        store, guard = self._store, self._guard
        sender = SnapshotSender(
            store.snapshot_path,
            store.disk,
            heartbeat_s=timing.heartbeat_s,
            clock=clock,
            send=guard.enqueue,
        )
        rejoin = Rejoin(
            store=store,
            library=self._library,
            journal=self._journal,
            guard=guard,
            enforced=self._guards.rejoin_without_vote,
        )
        pre_vote = PreVote(
            library=self._library,
            journal=self._journal,
            others=self._others,
            shortest_timeout_s=timing.election_timeout_s[0],
            rng=rng,
            clock=clock,
            may_vote=rejoin.may_vote,
            send=guard.enqueue,
            enforced=self._guards.ask_before_standing,
        )
        self._receiver = SnapshotReceiver(store.directory / "snapshot.received.draft", store.disk)
        guard.attach(
            Parts(
                library=self._library,
                journal=self._journal,
                snapshots=self._snapshots,
                disk=store.disk,
                sender=sender,
                receiver=self._receiver,
                pre_vote=pre_vote,
                may_vote_in=rejoin.may_vote_in,
                cluster_id=store.manifest.group_id,
                fatal=self._fatal,
            )
        )
        return sender, pre_vote, rejoin

    # ------------------------------------------------------------------ events

    def hello(self) -> raft_pb2.RaftFrame:
        """Returns what this member says of itself when a stream begins, `receiver` left open."""
        manifest = self._store.manifest
        hello = raft_pb2.Hello(
            cluster_id=manifest.group_id,
            name=manifest.name,
            store_id=manifest.store_id,
            rejoined=manifest.rejoined,
            voting=not manifest.rejoining,
            command_level=self._command_level,
        )
        return raft_pb2.RaftFrame(term=self._library.raftCurrentTerm, hello=hello)

    def meet(self, peer: str, frame: raft_pb2.RaftFrame) -> None:
        """Takes a member's Hello, before anything else on its stream.

        Raises:
            PeerRefused: it has another directory than before, see `las.raft.store`.
        """
        hello = frame.hello
        self._guarded(lambda: self._meet_store(peer, hello.store_id, rejoined=hello.rejoined))
        self._rejoin.hear_hello(peer, frame.term, voting=hello.voting)
        # The newest word counts: a member may come back with another version.
        self._levels[peer] = max(1, hello.command_level)

    def _meet_store(self, peer: str, store_id: str, *, rejoined: bool) -> None:
        self._store.meet(peer, store_id, rejoined=rejoined)
        if rejoined:
            self._rejoined[peer] = store_id

    def link_up(self, peer: str) -> None:
        """Frames to `peer` leave from now on."""
        self._guard.link_up(peer)

    def link_down(self, peer: str) -> None:
        """Frames to `peer` are lost from now on."""
        self._guard.link_down(peer)

    def receive(self, peer: str, frame: raft_pb2.RaftFrame) -> None:
        """Takes a frame of a member; one that breaks the protocol is dropped and counted."""
        try:
            self._guarded(lambda: self._guard.receive(peer, frame))
        except FrameRefused as error:
            self.refused_frames += 1
            logger.warning("dropped a frame: %s", error)

    def propose(self, token: int, envelope: Envelope) -> None:
        """Takes a command; its outcome comes out of some step under `token`."""
        self._submit(token, command_of(envelope.to_text()))

    def barrier(self, token: int) -> None:
        """Takes a no-op; when it is applied, so is everything acknowledged before this call."""
        self._submit(token, command_of(None))

    def compact(self) -> None:
        """Makes a snapshot due now."""
        self._library.forceLogCompaction()

    # ------------------------------------------------------------------ step

    def step(self) -> Step:
        """Lets time pass, makes everything durable, and returns what may leave."""
        self._guarded(self._tick)
        if not self._library._isLeader():
            self._give_back("this LAS node lost the leadership before the command was committed")
        if self._guards.sync_before_sending:
            self._journal.sync()
        outcomes, self._outcomes = self._outcomes, []
        return Step(frames=self._guard.take_frames(), outcomes=outcomes, status=self.status())

    def status(self) -> RaftStatus:
        """Returns what this member knows now."""
        library = self._library
        leader = library._getLeader()
        applied, term = library.raftLastApplied, library.raftCurrentTerm
        name = self._store.manifest.name
        return RaftStatus(
            name=name,
            term=term,
            leader=leader.id if leader is not None else None,
            is_leader=library._isLeader() and self._journal.term_at(applied) == term,
            commit_index=library.raftCommitIndex,
            applied_index=applied,
            members_up=tuple(sorted({name, *self._guard.up})),
            voting=not self._store.manifest.rejoining,
            rejoined=tuple(sorted(self._rejoined.items())),
            command_level=min(
                self._command_level, *(self._levels.get(name, 1) for name in self._others)
            )
            if self._others
            else self._command_level,
        )

    def close(self, why: str = "this LAS node stops") -> list[tuple[int, Outcome]]:
        """Releases files and the directory, and returns the outcomes of what was still open."""
        self._give_back(why)
        for peer in self._others:
            self._guard.link_down(peer)
        self._receiver.drop()
        self._journal.close()
        self._store.close()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _tick(self) -> None:
        library = self._library
        self._pre_vote.before_tick()
        if self._journal.size_bytes > JOURNAL_BYTES_COMPACT and not self._snapshots.is_writing:
            library.forceLogCompaction()
        library.doTick(0.0)
        self._sender.tick(library.raftCurrentTerm if library._isLeader() else None)
        self._rejoin.after_tick()

    def _guarded(self, action: Callable[[], None]) -> None:
        """Runs something that changes state; an unexpected error ends the process."""
        try:
            action()
        except RaftError:
            raise
        except OSError as error:
            # The disk, which may fail under any write: expected, and the end all the same.
            self._fatal(f"the disk failed: {error}")
        except Exception as error:
            logger.critical("unexpected error in the raft thread", exc_info=True)
            self._fatal(f"unexpected error in the raft thread: {error!r}")
        # The library swallows even what ends a process, in one place.
        if self._failed is not None:
            raise FailStop(self._failed)

    def _fatal(self, reason: str) -> NoReturn:
        self._failed = self._failed or reason
        self._on_fatal(reason)
        raise FailStop(reason)

    # ------------------------------------------------------------------ commands

    def _submit(self, token: int, command: bytes) -> None:
        if not self._library._isLeader():
            self._outcomes.append((token, self._not_leader()))
            return
        self._open.add(token)
        self._library._applyCommand(
            command, lambda result, reason: self._on_outcome(token, result, reason)
        )

    def _on_outcome(self, token: int, result: object, reason: int) -> None:
        """Called by the library, which would apply an entry twice if this raised."""
        if token not in self._open:
            return
        self._open.discard(token)
        outcome: Outcome
        if reason == FAIL_REASON.SUCCESS:
            outcome = _outcome_of(result)
        elif reason == FAIL_REASON.QUEUE_FULL:
            outcome = Overloaded("too many commands are open", OVERLOAD_RETRY_MS)
        elif reason == FAIL_REASON.UNKNOWN_OUTCOME:
            outcome = OutcomeUnknown("the log position was passed by a snapshot")
        else:
            # Never appended, or another entry was committed in its place: it never will be.
            outcome = self._not_leader()
        self._outcomes.append((token, outcome))

    def _not_leader(self) -> NotLeader:
        leader = self._library._getLeader()
        known = leader is not None and leader.id != self._store.manifest.name
        return NotLeader(leader.id if known else None)

    def _give_back(self, why: str) -> None:
        """Ends all open commands as unknown; the library keeps callbacks of some for ever."""
        for token in sorted(self._open):
            self._outcomes.append((token, OutcomeUnknown(why)))
        self._open.clear()
        private(self._library, "commandsWaitingCommit").clear()
        private(self._library, "commandsWaitingReply").clear()

    # ------------------------------------------------------------------ state machine

    def _apply(self, text: str) -> str | Superseded:
        """Applies one committed command. An exception here would wedge every member for ever."""
        try:
            envelope = Envelope.from_text(text)
            if self._guards.apply_once:
                result = self._sessions.apply(envelope, self._machine.apply)
            else:
                result = self._machine.apply(envelope.body)
            if not isinstance(result, str | Superseded):
                raise TypeError(f"the state machine answered {type(result).__name__}, not text")
        except Exception as error:
            logger.critical("the state machine raised", exc_info=True)
            self._fatal(f"the state machine raised {error!r}")
        return result

    def _freeze(self) -> tuple[tuple[SessionRow, ...], Callable[[], bytes]]:
        return self._sessions.freeze(), self._machine.freeze()

    def _restore(self, sessions: Sessions, state: bytes) -> None:
        self._machine.restore(state)
        self._sessions = sessions


def _outcome_of(result: object) -> Outcome:
    if isinstance(result, Superseded):
        return CommandSuperseded(result.client, result.sequence, result.last_sequence)
    return result if isinstance(result, str) else None

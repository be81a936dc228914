"""The seam to pysyncobj: which release, which of its internals, and a proof that both are there.

`las.raft` makes the library safe from the outside; no module of it is patched. For that it replaces
some attributes of one object and reads others, all of them named here. That is sound only for the
very source that it was written and tested against, so `verify_library` compares hashes at start
and `adopt` checks that each attribute exists.

Must not: touch an attribute of the library that is not in PRIVATE_NAMES.
"""

import hashlib
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pysyncobj
from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from las.raft.errors import LibraryChanged
from las.raft.journal import Journal

# SHA-256 of the library's files that take part; the others (TCP, encryption, admin) are never used.
SOURCE_SHA256 = {
    "config.py": "fbbc7ff9f18e4d15a7fd563376e42f5bd192956879d4b810b056d5248b955698",
    "fast_queue.py": "8477fe5fdf36d9766df933310d3d66ee953d1afc195b1e6482b3a1498fc517bd",
    "journal.py": "9cf1eaf6acc704581a4cf7d3de330a404403913107adc91c929778b7e3f35edf",
    "node.py": "e4a3f027cd8291f558334bb9c977e952f6b6989e7e1fa1588d3005ef0b990e2c",
    "pickle.py": "e9327780738065cec5d600484b936c91e7c13875206cb584d5ff7f5d0dc9c474",
    "pipe_notifier.py": "587d964bfa5d62320f3541cbb283ff3e282cb2db95e1b8cfd888dc3d53af82aa",
    "poller.py": "f69ac749fb410670282fd9520c5805ffc684c8a5f762a927127753d9be8551e6",
    "serializer.py": "4d39fde2f15000ad8f507ec229ebd4f6a86371b6f84d4dc1439a9cccd52857ee",
    "syncobj.py": "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4",
    "transport.py": "0c9d89f9c4781ec9772df8011d7975a1a4a1a5f541357e12eae85a813e92b50b",
}
# Name-mangled attributes of SyncObj that this package reads or replaces.
PRIVATE_NAMES = (
    "commandsWaitingCommit",
    "commandsWaitingReply",
    "generateRaftTimeout",
    "loadDumpFile",
    "needLoadDumpFile",
    "pipeNotifier",
    "raftCommitIndex",
    "raftCurrentTerm",
    "raftElectionDeadline",
    "raftLog",
    "serializer",
    "votedForNodeId",
)
# Bytes of one AppendEntries that the library makes; it would cut commands above it in its own way.
# The bound on a command (64 KiB) and the cutting into frames are ours.
_BATCH_BYTES_NEVER_REACHED = 1 << 30
# The library asserts that a connection outlives an election; connections are ours, too.
_CONNECTION_TIMEOUT_RATIO = 3.0


def verify_library() -> None:
    """Compares the installed library with the one that this package was tested against.

    Raises:
        LibraryChanged: a source file has another hash. The message names it.
    """
    directory = Path(pysyncobj.__file__).parent
    for name, expected in SOURCE_SHA256.items():
        found = hashlib.sha256((directory / name).read_bytes()).hexdigest()
        if found != expected:
            raise LibraryChanged(
                f"pysyncobj's {name} has sha256 {found[:16]}…, expected {expected[:16]}…: install "
                "pysyncobj==0.3.17 unmodified; another one needs las/raft reviewed against it"
            )


def private(library: SyncObj, name: str) -> Any:
    """Reads one of PRIVATE_NAMES."""
    return getattr(library, f"_SyncObj__{name}")


def set_private(library: SyncObj, name: str, value: object) -> None:
    """Replaces one of PRIVATE_NAMES."""
    setattr(library, f"_SyncObj__{name}", value)


class Member(Node):  # type: ignore[misc]
    """A member by its name.

    The library keeps members in sets and sends in their order; Python's own hash of a text differs
    from process to process, and a schedule would not follow from its seed.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Member) and bool(self.id == other.id)

    def __hash__(self) -> int:
        return zlib.crc32(str(self.id).encode())


class _SilentNotifier:
    """Stands in for the pipe that would wake the library's own poller; our thread drives it."""

    def notify(self) -> None:
        """Does nothing: the thread that gives a command runs the tick, too."""


class ReplicatedText(SyncObj):
    """The library's object with the one replicated method. Only `las.raft.member` makes one."""

    def __init__(
        self,
        name: str,
        others: list[str],
        configuration: SyncObjConf,
        transport: Transport,
        apply: Callable[[str], object],
    ) -> None:
        # Before the library's constructor, which looks at every attribute of the object.
        self.apply_text = apply
        super().__init__(
            Member(name),
            [Member(other) for other in others],
            conf=configuration,
            nodeClass=Member,
            transport=transport,
        )

    @replicated
    def commit(self, text: str) -> object:
        """Called by the library for each committed entry that is no no-op."""
        return self.apply_text(text)


def configuration_of(
    *,
    snapshot_path: Path,
    heartbeat_s: float,
    election_timeout_s: tuple[float, float],
    leader_fallback_s: float,
    commands_max: int,
    compaction_entries: int,
    compaction_interval_s: float,
) -> SyncObjConf:
    """Returns the library's settings; docs of each reason stand beside it."""

    def unused(*_: object) -> None:
        raise LibraryChanged("pysyncobj called a serializer that had been replaced")

    return SyncObjConf(
        # Our thread ticks, and an exception ends the process instead of being logged and retried.
        autoTick=False,
        # True would hold a command back until the next heartbeat.
        appendEntriesUseBatch=False,
        appendEntriesBatchSizeBytes=_BATCH_BYTES_NEVER_REACHED,
        appendEntriesPeriod=heartbeat_s,
        raftMinTimeout=election_timeout_s[0],
        raftMaxTimeout=election_timeout_s[1],
        connectionTimeout=election_timeout_s[1] * _CONNECTION_TIMEOUT_RATIO,
        leaderFallbackTimeout=leader_fallback_s,
        commandsQueueSize=commands_max,
        # A command without a leader is refused at once; its caller knows where to go.
        commandsWaitLeader=False,
        # Static membership: the library's rule of one change at a time does not hold.
        dynamicMembershipChange=False,
        # Never fork a process with gRPC threads in it.
        useFork=False,
        logCompactionMinEntries=compaction_entries,
        logCompactionMinTime=compaction_interval_s,
        # Journal and snapshots are ours; the library demands a path where it has a serializer.
        journalFile=None,
        fullDumpFile=str(snapshot_path),
        serializer=unused,
        deserializer=unused,
    )


def adopt(
    library: ReplicatedText,
    *,
    journal: Journal,
    snapshots: object,
    rng: random.Random,
    now: float,
) -> None:
    """Replaces the library's log, snapshot writer, timer and notifier by ours.

    Raises:
        LibraryChanged: an attribute that should be replaced is not there, or more than the one
            method is replicated.
    """
    missing = [name for name in PRIVATE_NAMES if not hasattr(library, f"_SyncObj__{name}")]
    if missing:
        raise LibraryChanged(f"pysyncobj lacks {', '.join(missing)}: install pysyncobj==0.3.17")
    if len(library._idToMethod) != 1:
        raise LibraryChanged("pysyncobj numbers methods in another way than commands assume")
    configuration = library.conf
    shortest, longest = configuration.raftMinTimeout, configuration.raftMaxTimeout
    _close_notifier(library)
    set_private(library, "pipeNotifier", _SilentNotifier())
    set_private(library, "serializer", snapshots)
    set_private(library, "generateRaftTimeout", lambda: rng.uniform(shortest, longest))
    set_private(library, "raftElectionDeadline", now + rng.uniform(shortest, longest))
    set_private(library, "raftLog", journal)
    last = journal.last()
    set_private(library, "raftCurrentTerm", journal.current_term)
    set_private(library, "votedForNodeId", journal.voted_for)
    set_private(library, "raftCommitIndex", min(journal.commit_floor, last.index))
    # It would look for the file by itself, on a disk that may not be ours.
    set_private(library, "needLoadDumpFile", False)


def load_snapshot(library: ReplicatedText) -> None:
    """Lets the library begin with the snapshot that its serializer has, as it does at a start."""
    private(library, "loadDumpFile")(clearJournal=False)


def _close_notifier(library: ReplicatedText) -> None:
    notifier = private(library, "pipeNotifier")
    for name in ("_PipeNotifier__pipeR", "_PipeNotifier__pipeW"):
        descriptor = getattr(notifier, name, None)
        if descriptor is None:
            raise LibraryChanged(f"pysyncobj's PipeNotifier lacks {name}")
        library._poller.unsubscribe(descriptor)
        os.close(descriptor)

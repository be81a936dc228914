"""What consumers have committed, as the records of `_positions` up to some offset say.

Invariants:
- The table is a function of the log: who folds the same records has the same table. The newest
  record of a log and consumer holds; one without offsets takes the entry away.
- An entry knows the newest commit of each of the last `POSITION_COMMITTERS_MAX` clients that made
  one, and so does one of the last `POSITIONS_FORGOTTEN_MAX` that were taken away. A commit of one
  of them that is not newer is *overtaken*: a late try of a call that was answered or given up. It
  is not appended, so that what was committed after it holds.
- Whoever appends a record has folded everything before it (the append is conditional on the end of
  the log), so a bound that is checked against the table holds, and a copy never undoes a commit.
- At or beyond `whole_since` lies a record of every entry. It only grows, and each record carries
  it, so that a new primary begins to read there and not at the beginning. It moves by *passes*:
  once enough records are stale, each batch of commits takes some of the entries with it whose
  record is the oldest, until all have one beyond where the pass began. What lies before it is
  needed by nobody any more.

Must not: do IO or wait.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from peerd.internal.v1 import positions_pb2
from peerd.transport.limits import (
    CONSUMERS_PER_LOG_MAX,
    POSITION_COMMITTERS_MAX,
    POSITIONS_BATCH_BYTES_MAX,
    POSITIONS_BYTES_MAX,
    POSITIONS_FORGOTTEN_MAX,
    POSITIONS_PAGE_BYTES_MAX,
    POSITIONS_PER_BATCH_MAX,
    POSITIONS_STALE_RECORDS_MAX,
)
from peerd.v1 import log_pb2

# A pass begins when there are this many times more records than entries, so that copying costs at
# most a third of what commits cost.
_STALE_PER_ENTRY = 4
# An entry costs its token, its names, and about this much of Python's own.
_ENTRY_OVERHEAD_BYTES = 300
# What a remembered commit of a client costs in memory.
_COMMIT_BYTES = 150

Key = tuple[str, str]
"""Log and consumer."""
Commits = tuple[tuple[bytes, int], ...]
"""Committer and sequence, the newest first, each committer once."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """`token` is a serialized `ResumeToken`; `offset` is of the record that holds it."""

    token: bytes
    offset: int
    commits: Commits


class PositionTable:
    """The positions that hold after all records below `next` and from `whole_since` on."""

    def __init__(self) -> None:
        self.next = 0
        self.whole_since = 0
        # The entry with the oldest record first: one that is folded goes to the end.
        self._entries: dict[Key, _Entry] = {}
        self._consumers: dict[str, int] = {}
        self._bytes = 0
        self._pass_until: int | None = None
        # Of those that were forgotten, the one that was first comes first.
        self._forgotten: dict[Key, Commits] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def begin_at(self, whole_since: int) -> None:
        """Start an empty table where all that holds is still ahead."""
        self.next = self.whole_since = whole_since

    def get(self, log: str, consumer: str) -> log_pb2.ResumeToken:
        """The position of a consumer; empty if it has none."""
        entry = self._entries.get((log, consumer))
        return log_pb2.ResumeToken.FromString(b"" if entry is None else entry.token)

    def page(self, log: str, after: str) -> log_pb2.ListPositionsResponse:
        """The consumers of a log whose names sort after `after`, as many as fit into an answer."""
        names = sorted(name for of, name in self._entries if of == log and name > after)
        answer, size_bytes = log_pb2.ListPositionsResponse(), 0
        for name in names:
            token = self._entries[log, name].token
            size_bytes += _size((log, name), token, ())
            if answer.positions and size_bytes > POSITIONS_PAGE_BYTES_MAX:
                answer.more = True
                break
            answer.positions.add(consumer=name).position.ParseFromString(token)
        return answer

    def knows(self, log: str, consumer: str) -> bool:
        """Whether the consumer has a position."""
        return (log, consumer) in self._entries

    def commits(self, key: Key) -> Commits:
        """The newest commits for a consumer, also of one that was forgotten lately."""
        entry = self._entries.get(key)
        return self._forgotten.get(key, ()) if entry is None else entry.commits

    # -------------------------------------------------------------------------- folding

    def fold(self, offset: int, stored: positions_pb2.StoredPosition) -> None:
        """Take the record at `offset`, which is `next`."""
        self.next = offset + 1
        self.whole_since = max(self.whole_since, stored.whole_since)
        key = (stored.log, stored.consumer)
        commits = commits_of(stored)
        self._remove(key)
        if stored.position.offsets:
            token = stored.position.SerializeToString()
            self._entries[key] = _Entry(token, offset, commits)
            self._consumers[key[0]] = self._consumers.get(key[0], 0) + 1
            self._bytes += _size(key, token, commits)
        elif commits:
            self._forgotten[key] = commits
            if len(self._forgotten) > POSITIONS_FORGOTTEN_MAX:
                del self._forgotten[next(iter(self._forgotten))]
        self._end_pass()

    def skip_to(self, offset: int) -> None:
        """Records below `offset` are lost for good, as the map says: what was known holds on."""
        self.next = offset

    def _remove(self, key: Key) -> None:
        self._forgotten.pop(key, None)
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._bytes -= _size(key, entry.token, entry.commits)
        self._consumers[key[0]] -= 1
        if not self._consumers[key[0]]:
            del self._consumers[key[0]]

    # -------------------------------------------------------------------------- bounds

    def why_not(self, stored: positions_pb2.StoredPosition, beside: Collection[str]) -> str:
        """Why a commit would pass a bound, with advice; "" if it would not. `beside` are the new
        consumers of the same log in the same batch.
        """
        log, key = stored.log, (stored.log, stored.consumer)
        if not stored.position.offsets:
            return ""
        entry = self._entries.get(key)
        consumers = self._consumers.get(log, 0) + len(beside)
        is_new = entry is None and stored.consumer not in beside
        if is_new and consumers >= CONSUMERS_PER_LOG_MAX:
            return (
                f"log {log!r} has {CONSUMERS_PER_LOG_MAX} consumers, the bound: forget one that is "
                "not used any more (`peerctl position forget`)"
            )
        before = 0 if entry is None else _size(key, entry.token, entry.commits)
        after = _size(key, stored.position.SerializeToString(), commits_of(stored))
        if after > before and self._bytes - before + after > POSITIONS_BYTES_MAX:
            return (
                f"the positions of all consumers would take more than {POSITIONS_BYTES_MAX} bytes: "
                "forget some that are not used any more (`peerctl position forget`)"
            )
        return ""

    # -------------------------------------------------------------------------- copying forward

    def copies(self) -> Iterator[positions_pb2.StoredPosition]:
        """The entries that the next batch shall take with it; none while no pass is under way."""
        if self._pass_until is None:
            stale = self.next - self.whole_since - len(self._entries)
            enough = max(POSITIONS_STALE_RECORDS_MAX, _STALE_PER_ENTRY * len(self._entries))
            if stale < enough:
                return
            self._pass_until = self.next
        size = 0
        for count, ((log, consumer), entry) in enumerate(self._entries.items()):
            size += _size((log, consumer), entry.token, entry.commits)
            is_full = count == POSITIONS_PER_BATCH_MAX or (
                count and size > POSITIONS_BATCH_BYTES_MAX
            )
            if entry.offset >= self._pass_until or is_full:
                return
            yield positions_pb2.StoredPosition(
                log=log,
                consumer=consumer,
                position=log_pb2.ResumeToken.FromString(entry.token),
                commits=_encoded(entry.commits),
            )

    def _end_pass(self) -> None:
        if self._pass_until is None:
            return
        oldest = next(iter(self._entries.values()), None)
        if oldest is None or oldest.offset >= self._pass_until:
            self.whole_since = max(self.whole_since, self._pass_until)
            self._pass_until = None


def commits_of(stored: positions_pb2.StoredPosition) -> Commits:
    """What a record says of who committed; the first is its own commit, if it has any."""
    return tuple((commit.committer, commit.sequence) for commit in stored.commits)


def is_overtaken(stored: positions_pb2.StoredPosition, known: Commits) -> bool:
    """Whether its client made that commit, or a later one, already."""
    for committer, sequence in commits_of(stored)[:1]:
        return any(name == committer and newest >= sequence for name, newest in known)
    return False


def join_commits(stored: positions_pb2.StoredPosition, known: Commits) -> None:
    """Let a record that is about to be appended carry what is known of other clients' commits."""
    own = commits_of(stored)[:1]
    names = {name for name, _ in own}
    others = tuple(commit for commit in known if commit[0] not in names)
    del stored.commits[:]
    stored.commits.extend(_encoded((*own, *others)[:POSITION_COMMITTERS_MAX]))


def _encoded(commits: Commits) -> Sequence[positions_pb2.PositionCommit]:
    return [
        positions_pb2.PositionCommit(committer=committer, sequence=sequence)
        for committer, sequence in commits
    ]


def _size(key: Key, token: bytes, commits: Commits) -> int:
    names = len(key[0]) + len(key[1])
    return names + len(token) + _COMMIT_BYTES * len(commits) + _ENTRY_OVERHEAD_BYTES

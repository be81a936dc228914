"""The planned change of a shard's segment, as both primaries see it (docs/protocol.md §4.1).

`Switch` is the old primary P before the switch, `Handed` after it; `Candidate` is the new primary N
before `Begin`. What makes the switch safe stands in `Replica._finish_switch`.
"""

from peerd.core.durable import InstallTable, Outcome
from peerd.core.effects import Effects, FetchTable, LoadTable, Send
from peerd.core.ids import FIRST_OFFSET, ReplicaId, Tick
from peerd.core.limits import Limits
from peerd.core.messages import Begin, Ready
from peerd.core.producer import TableSnapshot, merged
from peerd.core.shard_map import Segment, Shard
from peerd.core.situation import Situation

READY_PATIENCE_MS = 1_000
"""N says `Ready` at the latest after this, with or without the producer table that it asked for:
`Begin` then carries more of it. A fifth of P's patience."""


class Switch:
    """P knows of a prepared segment and waits until N can take over; then it drains."""

    __slots__ = ("_drain_until", "draining", "is_over", "learned_at", "prepared", "table_as_of")

    def __init__(self, prepared: Segment, now: Tick) -> None:
        self.prepared = prepared
        self.learned_at = now
        self.draining = False
        self.is_over = False
        self.table_as_of = FIRST_OFFSET
        self._drain_until: Tick | None = None

    def tick(self, now: Tick, limits: Limits) -> None:
        """While draining: the drain is over `drain_timeout_ms` after the first tick of it."""
        if self._drain_until is None:
            self._drain_until = Tick(now + limits.drain_timeout_ms)
        self.is_over = self.is_over or now >= self._drain_until


class Handed:
    """P has stopped for good; `Begin` is repeated until N has answered it."""

    __slots__ = ("_said_at", "answered", "begin", "to")

    def __init__(self, begin: Begin, to: ReplicaId) -> None:
        self.begin = begin
        self.to = to
        self.answered = False
        self._said_at: Tick | None = None

    def tick(self, situation: Situation, out: Effects) -> None:
        """Say it, now or again."""
        now = situation.now
        if self.answered:
            return
        if self._said_at is None or now - self._said_at >= situation.limits.repeat_ms:
            self._said_at = now
            out.send.append(Send(to=self.to, message=self.begin))


class Candidate:
    """N learned that it shall be primary of `prepared`.

    §4.1: "N … fetches what it lacks of the producer table (P sends it ahead; only the changes since
    then travel with `Begin`) and tells P `Ready(e′)`."
    """

    def __init__(self, situation: Situation, prepared: Segment, shard: Shard) -> None:
        self.prepared = prepared
        self.base: TableSnapshot | None = None
        self._s = situation
        self._old = shard.open
        self._began_at = situation.now
        self._ready_at: Tick | None = None
        self._is_ready = False

    def start(self, out: Effects) -> None:
        """Load the own table as it is; it need not be of today."""
        out.load.append(
            LoadTable(
                shard=self._s.shard,
                token=self._s.await_table(self._loaded),
                from_store=True,
                ranges=(),
                as_of=self._s.stored.table_as_of,
                or_later=True,
            )
        )

    def _loaded(self, table: TableSnapshot | None, _reached: bool, out: Effects) -> None:
        if self._is_ready:
            return
        self.base = table if table is not None and table.complete else None
        as_of = self.base.as_of if self.base is not None else FIRST_OFFSET
        begin = self._old.begin or FIRST_OFFSET
        if as_of >= begin:
            self._become_ready(out)
            return
        out.load.append(
            FetchTable(
                shard=self._s.shard,
                token=self._s.await_table(self._fetched),
                source=self._old.plan.primary.replica,
                as_of=begin,
                or_later=True,
                since=as_of,
            )
        )

    def _fetched(self, table: TableSnapshot | None, _reached: bool, out: Effects) -> None:
        if self._is_ready:
            # P was told already what this process has: the base must not change any more.
            return
        whole = None
        if table is not None and table.complete:
            whole = table if table.since == 0 else self.base and merged(self.base, table)
        if table is not None and whole is not None:
            self.base = whole
            self._s.submit(InstallTable(shard=self._s.shard, table=table), _ignore, out)
        self._become_ready(out)

    def _become_ready(self, out: Effects) -> None:
        self._is_ready = True
        self._say_ready(out)

    def _say_ready(self, out: Effects) -> None:
        self._ready_at = self._s.now
        ready = Ready(
            shard=self._s.shard,
            epoch=self.prepared.epoch,
            sender=self._s.me,
            table_as_of=self.base.as_of if self.base is not None else FIRST_OFFSET,
        )
        out.send.append(Send(to=self._old.plan.primary.replica, message=ready))

    def tick(self, out: Effects) -> None:
        """Repeat `Ready`; stop waiting for the table."""
        now = self._s.now
        if self._is_ready:
            if self._ready_at is None or now - self._ready_at >= self._s.limits.repeat_ms:
                self._say_ready(out)
        elif now - self._began_at >= READY_PATIENCE_MS:
            self._become_ready(out)

    def whole_table(self, changes: TableSnapshot) -> TableSnapshot | None:
        """The table as of X from what `Begin` brings; None if that does not meet the base."""
        if changes.since == 0:
            return changes
        return merged(self.base, changes) if self.base is not None else None


def _ignore(_outcome: Outcome, _out: Effects) -> None:
    """The durable table is a convenience here: `Begin` brings what counts."""

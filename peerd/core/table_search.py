"""Finding the producer table as of an offset, for a primary that begins there (protocol.md §3.1).

In this order: "from `Begin`" (then there is nothing to search), "from its own store (table plus
headers up to X, and nothing beyond X), or fetched from a holder. If no holder is left, producers
that it does not know are refused with `PRODUCER_STATE_LOST`; it does not guess." Behind what a
restore brought back from the tier nobody is asked: no store was ever there.

A holder may not have heard yet that its segment is sealed, and then it cannot give the table: all
sources are asked again and again until `table_timeout_ms`. One that is silent is not waited for:
the next is asked beside it, and whichever answers first ends the search. So a lost message, or a
source that hangs, costs `NEXT_SOURCE_MS` and not the time after which a call is given up.

Slow is not gone: a peer that takes over hundreds of shards at once answers late, and giving up
costs producers ten minutes. So a source that is connected and has not answered yet is waited for
until `table_patience_ms`. One that is down, or says that it has no such table, prolongs nothing.
"""

from peerd.core.durable import InstallTable, Outcome, TableRange, table_ranges
from peerd.core.effects import Effects, FetchTable, LoadTable, TableAnswer
from peerd.core.events import TableAsked
from peerd.core.ids import FIRST_OFFSET, Offset, ReplicaId, RequestId, Tick
from peerd.core.producer import TableSnapshot, changed_since, empty_table
from peerd.core.shard_map import Shard
from peerd.core.situation import Situation

NEXT_SOURCE_MS = 500
"""A source that says nothing for so long is not the last that is asked; a table of 10,000 producers
takes less than half of it."""

SOURCE_PATIENCE_MS = 4_000
"""It is not asked again before: longer no call of a host takes, and a late answer is welcome."""

TABLE_REQUESTS_MAX = 64
"""Tables that are read for others at the same time; more than a shard has replicas."""


def serve_table(situation: Situation, event: TableAsked, out: Effects) -> None:
    """Give a replica the table as of `as_of` from the own store, or a later one if that will do."""
    stored = situation.stored
    ranges = table_ranges(stored, stored.table_as_of, event.as_of)
    reached = ranges[-1].end if ranges else stored.table_as_of
    known = reached >= event.as_of if event.or_later else reached == event.as_of
    if not known or len(situation.tables_awaited) >= TABLE_REQUESTS_MAX:
        out.reply.append(TableAnswer(request=event.request, table=None))
        return

    def loaded(table: TableSnapshot | None, _reached: bool, out: Effects) -> None:
        told = changed_since(table, event.since) if table is not None else None
        out.reply.append(TableAnswer(request=event.request, table=told))

    out.load.append(
        LoadTable(
            shard=situation.shard,
            token=situation.await_table(loaded),
            from_store=True,
            ranges=ranges,
            as_of=event.as_of,
            or_later=event.or_later,
        )
    )


def sources_of(shard: Shard, me: ReplicaId) -> tuple[ReplicaId, ...]:
    """Stores that may know the table as of the begin of the open segment, likely ones first.

    The replicas of the open segment come first: the LAS has just found them healthy.
    """
    found = dict.fromkeys(shard.open.plan.replicas)
    for segment in reversed(shard.sealed):
        found.update(dict.fromkeys(segment.holders))
    for segment in reversed(shard.sealed):
        if not segment.plan.is_nobodys:
            found.update(dict.fromkeys(segment.plan.replicas))
    found.pop(me, None)
    return tuple(found)


def _is_lost(shard: Shard | None, as_of: Offset) -> bool:
    """Whether no store has the table as of `as_of`: the tier alone has what comes before."""
    last = shard.sealed[-1] if shard is not None and shard.sealed else None
    return last is not None and last.end == as_of and last.plan.is_nobodys


def known_suffix(situation: Situation, as_of: Offset) -> tuple[TableRange, ...]:
    """The batches below `as_of` that the own store has without gap, going back as far as it can."""
    ranges: list[TableRange] = []
    end = as_of
    for segment in reversed(situation.map.sealed if situation.map is not None else ()):
        stored = situation.stored.segments.get(segment.epoch)
        if segment.end != end or stored is None or stored.end < end:
            break
        ranges.append(TableRange(epoch=segment.epoch, begin=stored.first, end=end))
        end = stored.begin
        if stored.first > stored.begin:
            break
    return tuple(reversed(ranges))


class TableSearch:
    """One search; `found` is set when it is over.

    What this store has without gap up to `as_of` begins at some offset. A table as of any offset
    from there on, installed in the store, moves on over these batches by itself; so a source need
    not have all of the past, and no single store need.
    """

    def __init__(self, situation: Situation, as_of: Offset, sources: tuple[ReplicaId, ...]) -> None:
        self.found: TableSnapshot | None = None
        self._s = situation
        self._begin = self._as_of = as_of
        gaps = situation.map.gaps if situation.map is not None else ()
        for gap in reversed(gaps):
            if gap.end == self._as_of:
                self._as_of = gap.begin
        self._sources = sources
        self._next_source = 0
        self._began_at = situation.now
        self._round_over_at: Tick | None = None
        self._asked_at: Tick | None = None
        self._silent: dict[ReplicaId, tuple[RequestId, Tick]] = {}
        self._unanswered = set(sources)
        self._is_settling = False
        self._giving_up = False

    def start(self, out: Effects) -> None:
        """Begin a round: the own store first, then one source after the other."""
        self._next_source = 0
        self._round_over_at = None
        self._asked_at = None
        if self._as_of == FIRST_OFFSET:
            self._finish(empty_table())
        elif self._s.stored.table_as_of == self._as_of:
            self._load((), from_store=True, out=out)
        elif _is_lost(self._s.map, self._as_of):
            self._give_up(out)
        else:
            self._ask_next(out)

    def tick(self, out: Effects) -> None:
        """Ask beside a silent source, begin another round, or give up."""
        if self.found is not None or self._giving_up:
            return
        limits, now = self._s.limits, self._s.now
        searched_ms = now - self._began_at
        patience_ms = limits.table_patience_ms if self._is_hopeful() else limits.table_timeout_ms
        if searched_ms >= patience_ms:
            self._give_up(out)
        elif self._round_over_at is not None:
            if now - self._round_over_at >= limits.repeat_ms:
                self.start(out)
        elif self._asked_at is not None and now - self._asked_at >= NEXT_SOURCE_MS:
            self._ask_next(out)

    def _is_hopeful(self) -> bool:
        """Whether a source may still answer that has not."""
        return not self._s.connected.isdisjoint(self._unanswered)

    # -------------------------------------------------------------- others
    def _ask_next(self, out: Effects) -> None:
        self._is_settling = False
        self._asked_at = None
        source = self._next_to_ask()
        if source is None:
            self._round_over_at = self._s.now
            if not self._sources:
                self._give_up(out)
            return

        def fetched(table: TableSnapshot | None, answered: bool, out: Effects) -> None:
            self._silent.pop(source, None)
            if answered:
                self._unanswered.discard(source)
            self._fetched(table, out)

        token = self._s.await_table(fetched)
        self._silent[source] = (token, self._s.now)
        self._asked_at = self._s.now
        out.load.append(
            FetchTable(
                shard=self._s.shard,
                token=token,
                source=source,
                as_of=self._suffix_begin(),
                or_later=True,
                since=self._s.stored.table_as_of,
            )
        )

    def _next_to_ask(self) -> ReplicaId | None:
        """The next source of this round; not one whose answer may still come."""
        while self._next_source < len(self._sources):
            source = self._sources[self._next_source]
            self._next_source += 1
            token, asked_at = self._silent.get(source, (None, Tick(0)))
            if token is None:
                return source
            if self._s.now - asked_at >= SOURCE_PATIENCE_MS:
                self._s.tables_awaited.pop(token, None)
                return source
        return None

    def _suffix_begin(self) -> Offset:
        ranges = known_suffix(self._s, self._as_of)
        return ranges[0].begin if ranges else self._as_of

    def _fetched(self, table: TableSnapshot | None, out: Effects) -> None:
        if self.found is not None or self._giving_up or self._is_settling:
            return
        if table is not None and table.complete and table.as_of <= self._as_of:
            self._settle()
            self._s.submit(InstallTable(shard=self._s.shard, table=table), self._installed, out)
        else:
            self._ask_next(out)

    def _installed(self, _outcome: Outcome, out: Effects) -> None:
        if self._s.stored.table_as_of == self._as_of:
            self._load((), from_store=True, out=out)
        else:
            self._ask_next(out)

    def _settle(self) -> None:
        """The own store is busy with what may be the table: nobody else is asked meanwhile."""
        self._is_settling = True
        self._asked_at = self._round_over_at = None

    # -------------------------------------------------------------- the own store
    def _load(self, ranges: tuple[TableRange, ...], *, from_store: bool, out: Effects) -> None:
        self._settle()
        out.load.append(
            LoadTable(
                shard=self._s.shard,
                token=self._s.await_table(self._loaded),
                from_store=from_store,
                ranges=ranges,
                as_of=self._as_of,
                or_later=False,
            )
        )

    def _loaded(self, table: TableSnapshot | None, _reached: bool, out: Effects) -> None:
        exact = table is not None and table.as_of == self._as_of and table.since == 0
        if table is not None and exact and (table.complete or self._giving_up):
            self._finish(table)
        elif self._giving_up:
            self._finish(empty_table(self._as_of, complete=False))
        else:
            self._ask_next(out)

    def _give_up(self, out: Effects) -> None:
        """Nobody has the past. What this store has of it without gap tells the last batch of every
        producer that it names; of the others nothing is known.
        """
        self._giving_up = True
        ranges = known_suffix(self._s, self._as_of)
        if ranges:
            self._load(ranges, from_store=False, out=out)
        else:
            self._finish(empty_table(self._as_of, complete=False))

    def _finish(self, table: TableSnapshot) -> None:
        """What was in a gap is not known, so nobody's state is, from before it or in it. Only the
        time goes on from that of what is left.
        """
        if self._as_of < self._begin:
            table = TableSnapshot(
                as_of=self._begin,
                complete=False,
                timestamp_ms=table.timestamp_ms,
                forgotten_before=Offset(self._begin - 1),
            )
        self.found = table

"""The replica's part: adopt, store, answer (docs/protocol.md §3).

"The first thing that a replica takes in an epoch is its `Adopt`." Whether it takes an `Adopt` or a
`Replicate` is decided by `durable.apply` at the place in the queue where the write happens; here
the outcome is told: `Ack` with the durable end, or `Expect`. So a replica never says that something
is durable before it is, and after a promise it says nothing of an older epoch any more (G6).

A commit offset that comes without batches is kept in memory and written with the next batch, or
when the shard has been idle for `commit_persist_ms`: it is a lower bound and may lag.
"""

from collections.abc import Callable

from peerd.core.durable import AdoptEpoch, AppendBatches, InstallTable, Outcome, Stored
from peerd.core.durable import table_ranges as ranges_of
from peerd.core.effects import Effects, FetchTable, Send
from peerd.core.ids import FIRST_OFFSET, NO_EPOCH, Epoch, Offset, ReplicaId, RequestId, Tick
from peerd.core.messages import Ack, Adopt, Expect, Frame
from peerd.core.producer import TableSnapshot
from peerd.core.shard_map import Plan, Shard
from peerd.core.situation import Situation

TABLE_FETCH_PERIOD_MS = 1_000
"""A replica without a whole producer table asks the primary this often: nothing waits for it."""

HigherPromiseMet = Callable[[Epoch, Epoch], None]
"""Gets the epoch that was refused and the higher one that is promised here."""


class Shadow:
    """What this peer does as a replica of whatever epoch it has adopted."""

    def __init__(self, situation: Situation, met_higher: HigherPromiseMet) -> None:
        self.plan: Plan | None = None
        self._plan_epoch = NO_EPOCH
        self._s = situation
        self._met_higher = met_higher
        self._heard_epoch = NO_EPOCH
        self._heard = FIRST_OFFSET
        self._heard_at = situation.now
        self._commit_written = FIRST_OFFSET
        self._table_asked_at: Tick | None = None
        self._table_token = RequestId(0)

    # -------------------------------------------------------------- messages
    def adopt(self, sender: ReplicaId, message: Adopt, out: Effects) -> None:
        """Begin the segment, or find out that it may not begin."""
        operation = AdoptEpoch(shard=self._s.shard, epoch=message.epoch, begin=message.begin)

        def told(outcome: Outcome, out: Effects) -> None:
            if isinstance(outcome, Stored) and message.epoch >= self._plan_epoch:
                self._plan_epoch, self.plan = message.epoch, message.plan
            self._answer(sender, message.epoch, outcome, out)

        self._s.submit(operation, told, out)

    def frame(self, sender: ReplicaId, message: Frame, out: Effects) -> None:
        """Store the batches; or, if there are none, hear the commit offset."""
        epoch = message.epoch
        if not message.batches:
            stored = self._s.stored
            if stored.adopted == epoch and stored.promised == epoch:
                self.hear(epoch, message.commit)
            else:
                self._expect(sender, epoch, out)
            return
        operation = AppendBatches(
            shard=self._s.shard, epoch=epoch, batches=message.batches, commit=message.commit
        )

        def told(outcome: Outcome, out: Effects) -> None:
            if isinstance(outcome, Stored):
                self.hear(epoch, message.commit)
                self._commit_written = max(self._commit_written, message.commit)
            self._answer(sender, epoch, outcome, out)

        self._s.submit(operation, told, out)

    def _answer(self, sender: ReplicaId, epoch: Epoch, outcome: Outcome, out: Effects) -> None:
        """`Ack` from the outcome of a write and from nothing else."""
        if isinstance(outcome, Stored):
            end = outcome.state.segments[epoch].end
            out.send.append(Send(to=sender, message=Ack(shard=self._s.shard, epoch=epoch, end=end)))
        else:
            self._expect(sender, epoch, out)

    def _expect(self, sender: ReplicaId, epoch: Epoch, out: Effects) -> None:
        stored = self._s.stored
        segment = stored.segments.get(stored.adopted)
        expect = Expect(
            shard=self._s.shard,
            promised=stored.promised,
            adopted=stored.adopted,
            end=segment.end if segment is not None else FIRST_OFFSET,
            refused_epoch=epoch,
        )
        out.send.append(Send(to=sender, message=expect))
        # A promise that came with an adoption is no half-done fence: its primary is at work.
        if stored.promised > epoch and stored.promised > stored.adopted:
            self._met_higher(epoch, stored.promised)

    # -------------------------------------------------------------- the commit offset
    def hear(self, epoch: Epoch, commit: Offset) -> None:
        """`commit` is a commit offset of `epoch`; from a frame that fits, or from the own past."""
        if epoch > self._heard_epoch:
            self._heard_epoch, self._heard, self._commit_written = epoch, commit, FIRST_OFFSET
        elif epoch == self._heard_epoch and commit > self._heard:
            self._heard = commit
        else:
            return
        self._heard_at = self._s.now

    def committed(self, epoch: Epoch) -> Offset:
        """The largest commit offset of `epoch` that was heard; it may be beyond the own end."""
        segment = self._s.stored.segments.get(epoch)
        durable = segment.commit if segment is not None else FIRST_OFFSET
        return max(durable, self._heard) if epoch == self._heard_epoch else durable

    def _commit_to_write(self) -> Offset | None:
        """What of the commit offset as heard is worth a write of its own; None: nothing."""
        stored = self._s.stored
        segment = stored.segments.get(self._heard_epoch)
        if segment is None or not self._heard_epoch == stored.adopted == stored.promised:
            return None
        reached = min(self._heard, segment.end)
        return reached if reached > max(segment.commit, self._commit_written) else None

    # -------------------------------------------------------------- time
    def tick(self, out: Effects) -> None:
        """Write the commit offset of an idle shard; complete the producer table."""
        commit = self._commit_to_write()
        if commit is not None and self._s.now - self._heard_at >= self._s.limits.commit_persist_ms:
            self._commit_written = commit
            operation = AppendBatches(
                shard=self._s.shard, epoch=self._heard_epoch, batches=(), commit=commit
            )
            self._s.submit(operation, _ignore, out)
        if self._table_source() is not None:
            self._fetch_table(out)

    def _table_source(self) -> ReplicaId | None:
        """Whom to ask for the producer table; None if it is whole, or cannot be asked for yet.

        A log-only shadow joined without the past, so its durable table stands still before a hole.
        It is completed once the map shows the adopted segment open: before, it may be dead.
        """
        shard_map, stored = self._s.map, self._s.stored
        if shard_map is None or shard_map.open.epoch != stored.adopted:
            return None
        begin = self._table_needed(shard_map)
        if stored.table_as_of >= begin:
            return None
        ranges = ranges_of(stored, stored.table_as_of, begin)
        reached = ranges[-1].end if ranges else stored.table_as_of
        source = shard_map.open.plan.primary.replica
        return source if reached < begin and source != self._s.me.replica else None

    def _table_needed(self, shard_map: Shard) -> Offset:
        """From where on the table moves by itself: the begin, or the first batch that is kept."""
        begin = shard_map.open.begin or FIRST_OFFSET
        here = self._s.stored.segments.get(shard_map.open.epoch)
        return begin if here is None else max(begin, here.first)

    def _fetch_table(self, out: Effects) -> None:
        now, source, shard_map = self._s.now, self._table_source(), self._s.map
        if source is None or shard_map is None:
            return
        if self._table_asked_at is not None and now - self._table_asked_at < TABLE_FETCH_PERIOD_MS:
            return
        self._table_asked_at = now
        # An answer that did not come in a whole period is not waited for any more.
        self._s.tables_awaited.pop(self._table_token, None)

        def answered(table: TableSnapshot | None, _reached: bool, out: Effects) -> None:
            if table is not None and table.complete:
                self._s.submit(InstallTable(shard=self._s.shard, table=table), _ignore, out)

        self._table_token = self._s.await_table(answered)
        out.load.append(
            FetchTable(
                shard=self._s.shard,
                token=self._table_token,
                source=source,
                as_of=self._table_needed(shard_map),
                or_later=True,
                since=self._s.stored.table_as_of,
                is_waited_for=False,
            )
        )

    def wake_in_ms(self) -> int | None:
        """When the next tick is due, counted from the last `now`."""
        if self._table_source() is not None:
            return TABLE_FETCH_PERIOD_MS if self._table_asked_at is not None else 0
        return self._s.limits.commit_persist_ms if self._commit_to_write() is not None else None


def _ignore(_outcome: Outcome, _out: Effects) -> None:
    """For writes that nothing waits for: a refusal means that a newer epoch has taken over."""

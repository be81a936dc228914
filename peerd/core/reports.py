"""What one shard has to tell the LAS, repeated until the committed map shows it (protocol.md §4.5).

A report may be lost, and so may the LAS leader that got it; only the map tells that it arrived.
"""

from peerd.core.effects import Declined, Effects, HigherPromise, SegmentOpened
from peerd.core.ids import Epoch, Tick
from peerd.core.shard_map import Shard
from peerd.core.situation import Situation


class Reports:
    """At most one of each kind stands: a newer one says all that an older one did."""

    def __init__(self, situation: Situation) -> None:
        self.opened: SegmentOpened | None = None
        self.declined: Declined | None = None
        self.higher: HigherPromise | None = None
        self._s = situation
        self._said_at: Tick | None = None

    def met_higher(self, epoch: Epoch, promised: Epoch) -> None:
        """§4.2: "A primary or replica that is refused because of a higher promise reports it, so
        that a half-done fence cannot leave a shard mute." Said with the next tick.
        """
        if promised <= self._s.map_open:
            return
        if self.higher is None or promised > self.higher.promised:
            self.higher = HigherPromise(shard=self._s.shard, epoch=epoch, promised=promised)
            self._said_at = None

    def learned(self, shard: Shard) -> None:
        """The committed map shows what was reported, or that it is of no use any more."""
        opened = shard.open.epoch
        if self.higher is not None and self.higher.promised <= opened:
            self.higher = None
        if self.opened is not None and self.opened.epoch <= opened:
            self.opened = None
        if self.declined is not None and self.declined.prepared <= opened:
            self.declined = None

    def tick(self, out: Effects) -> None:
        """Say again what stands."""
        now = self._s.now
        if self._said_at is not None and now - self._said_at < self._s.limits.repeat_ms:
            return
        self._said_at = now
        if self.opened is not None:
            out.report.append(self.opened)
        if self.higher is not None:
            out.report.append(self.higher)
        if self.declined is not None and self._is_prepared(self.declined.prepared):
            # A decline is remembered longer than it is said: until the map is past that epoch.
            out.report.append(self.declined)

    def _is_prepared(self, epoch: Epoch) -> bool:
        prepared = self._s.map.prepared if self._s.map is not None else None
        return prepared is not None and prepared.epoch == epoch

    def wake_in_ms(self) -> int | None:
        """When the next tick is due, counted from the last `now`."""
        if self.opened is None and self.declined is None and self.higher is None:
            return None
        return 0 if self._said_at is None else self._s.limits.repeat_ms

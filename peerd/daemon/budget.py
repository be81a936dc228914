"""One account of bytes for everything that a peer moves in the background.

Copies that it fetches, copies that it gives, what goes to the tier and what is read from there all
draw on one `Background`, so that together they take no more of the node than it was told to give.

Why it holds. `spend` moves one point in time, `free_at`, by what the bytes cost at the rate in
force, and whoever spent waits until then. Two that spend in turn wait for each other's bytes, so
the sum of all waits is the sum of all costs, whoever asks how often. Nothing is saved up: a point
in the past counts as now.

User traffic goes first. While this peer writes appends, its own shards' or as a replica, and for
`BUSY_FOR_S` after the last of them, copies move slower than at other times:
- A segment that would still have copies enough if another one were lost has time: all copies of
  such segments together move at `Rates.busy_bytes_per_s`, which appends hardly feel. They have an
  account of their own for that, beside the common one, and wait for the later of both.
- A segment that has too few (`presses`: the next loss may lose records, or leaves fewer than the
  appends were promised) moves at `Rates.urgent_bytes_per_s`, whatever appends feel. Such copies
  know the common account alone, where the others cost what they cost at the urgent rate. So they
  never wait out the slow pace of those, and all copies together stay within the urgent rate.
- Readers' own bytes (of the tier) are charged and never wait: the background waits for them.

Must not: wait by itself, or read a clock that it was not given.
"""

from collections.abc import Callable
from dataclasses import dataclass

from peerd.core.shard_map import Segment

# Appends of the last quarter of a second make a peer busy: a client that sends one batch after the
# other is always seen, and what is left alone is left alone at once.
BUSY_FOR_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Bytes a second: of all background work, and of copies beside appends, urgent ones and all
    others. None is above the one before.
    """

    bytes_per_s_max: int
    urgent_bytes_per_s: int
    busy_bytes_per_s: int

    @classmethod
    def within(
        cls, bytes_per_s_max: int, urgent_bytes_per_s: int, busy_bytes_per_s: int
    ) -> "Rates":
        """Rates as they were asked for: what is urgent is no slower than what is not."""
        urgent = min(bytes_per_s_max, max(urgent_bytes_per_s, busy_bytes_per_s))
        return cls(
            bytes_per_s_max=bytes_per_s_max,
            urgent_bytes_per_s=urgent,
            busy_bytes_per_s=min(urgent, busy_bytes_per_s),
        )


def presses(segment: Segment, safe_holders: int) -> bool:
    """Whether a copy of a sealed segment is urgent, which has so many holders on nodes that are up
    and not at risk.

    It is while they are fewer than the `acks` that its appends were answered with, or a single one
    of a segment that had several replicas: then the next loss may lose records.
    """
    return safe_holders < max(segment.plan.acks, min(2, len(segment.plan.voters)))


class Budget:
    """Spreads bytes over time. `now_s` is a monotonic clock."""

    def __init__(self, bytes_per_s_max: int, now_s: Callable[[], float]) -> None:
        self._bytes_per_s_max = bytes_per_s_max
        self._now_s = now_s
        self._free_at_s = now_s()

    def limit(self, bytes_per_s_max: int) -> None:
        """Another rate from now on."""
        self._bytes_per_s_max = bytes_per_s_max

    def spend(self, size_bytes: int) -> float:
        """Take `size_bytes`; returns how many seconds to wait before the next."""
        return self.spend_at(size_bytes, self._bytes_per_s_max)

    @property
    def debt_s(self) -> float:
        """How long who spends now would wait for those before."""
        return max(0.0, self._free_at_s - self._now_s())

    def spend_at(self, size_bytes: int, bytes_per_s: int) -> float:
        """The same at another rate than the usual one."""
        now_s = self._now_s()
        self._free_at_s = max(self._free_at_s, now_s) + size_bytes / bytes_per_s
        return self._free_at_s - now_s


class Background(Budget):
    """The budget of a node's background work. `user_writes` counts the appends written here."""

    def __init__(
        self, rates: Rates, now_s: Callable[[], float], user_writes: Callable[[], int]
    ) -> None:
        super().__init__(rates.bytes_per_s_max, now_s)
        self._rates = rates
        self._unhurried = Budget(rates.busy_bytes_per_s, now_s)
        self._user_writes = user_writes
        self._seen_writes = user_writes()
        self._busy_until_s = self._free_at_s
        self.spent_bytes = 0
        """All that was taken since the start."""

    def limits(self, rates: Rates) -> None:
        """Other rates from now on."""
        self.limit(rates.bytes_per_s_max)
        self._rates = rates

    @property
    def is_busy(self) -> bool:
        """Appends were written here in the last moments, as far as anybody looked."""
        now_s, writes = self._now_s(), self._user_writes()
        if writes != self._seen_writes:
            self._seen_writes = writes
            self._busy_until_s = now_s + BUSY_FOR_S
        return now_s < self._busy_until_s

    def copy_debt_s(self, *, urgent: bool) -> float:
        """How long who copies now would wait for those before."""
        return self.debt_s if urgent else max(self.debt_s, self._unhurried.debt_s)

    def spend(self, size_bytes: int) -> float:
        """Take `size_bytes` for what is no copy; returns how many seconds to wait before more."""
        self.spent_bytes += size_bytes
        return super().spend(size_bytes)

    def spend_copy(self, size_bytes: int, *, urgent: bool) -> float:
        """The same for a copy that this peer fetches, reads back, or gives; see `presses`."""
        self.spent_bytes += size_bytes
        common, unhurried = self._rates.bytes_per_s_max, self._rates.bytes_per_s_max
        if self.is_busy:
            common, unhurried = self._rates.urgent_bytes_per_s, self._rates.busy_bytes_per_s
        wait_s = self.spend_at(size_bytes, common)
        if urgent:
            return wait_s
        return max(wait_s, self._unhurried.spend_at(size_bytes, unhurried))

"""One account of bytes for everything that a peer moves in the background.

Copies that it fetches, copies that it gives, what goes to the tier and what is read from there all
draw on one `Background`, so that together they take no more of the node than it was told to give.

Why it holds. `spend` moves one point in time, `free_at`, by what the bytes cost at the rate in
force, and whoever spent waits until then. Two that spend in turn wait for each other's bytes, so
the sum of all waits is the sum of all costs, whoever asks how often. Nothing is saved up: a point
in the past counts as now.

User traffic goes first:
- Who gives way (copies) moves at `busy_bytes_per_s_max` while this peer writes appends, its own
  shards' or as a replica, and for `BUSY_FOR_S` after the last of them.
- Readers' own bytes (of the tier) are charged and never wait: the background waits for them.

Must not: wait by itself, or read a clock that it was not given.
"""

from collections.abc import Callable

# Appends of the last quarter of a second make a peer busy: a client that sends one batch after the
# other is always seen, and what is left alone is left alone at once.
BUSY_FOR_S = 0.25


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
        return self._spend(size_bytes, self._bytes_per_s_max)

    def _spend(self, size_bytes: int, bytes_per_s: int) -> float:
        now_s = self._now_s()
        self._free_at_s = max(self._free_at_s, now_s) + size_bytes / bytes_per_s
        return self._free_at_s - now_s


class Background(Budget):
    """The budget of a node's background work. `user_writes` counts the appends written here."""

    def __init__(
        self,
        bytes_per_s_max: int,
        busy_bytes_per_s_max: int,
        now_s: Callable[[], float],
        user_writes: Callable[[], int],
    ) -> None:
        super().__init__(bytes_per_s_max, now_s)
        self._busy_bytes_per_s_max = busy_bytes_per_s_max
        self._user_writes = user_writes
        self._seen_writes = user_writes()
        self._busy_until_s = self._free_at_s
        self.spent_bytes = 0
        """All that was taken since the start."""

    def limits(self, bytes_per_s_max: int, busy_bytes_per_s_max: int) -> None:
        """Other rates from now on."""
        self.limit(bytes_per_s_max)
        self._busy_bytes_per_s_max = busy_bytes_per_s_max

    @property
    def is_busy(self) -> bool:
        """Appends were written here in the last moments, as far as anybody looked."""
        now_s, writes = self._now_s(), self._user_writes()
        if writes != self._seen_writes:
            self._seen_writes = writes
            self._busy_until_s = now_s + BUSY_FOR_S
        return now_s < self._busy_until_s

    @property
    def debt_s(self) -> float:
        """How long who spends now would wait for those before."""
        return max(0.0, self._free_at_s - self._now_s())

    def spend(self, size_bytes: int, *, gives_way: bool = False) -> float:
        """Take `size_bytes`; returns how many seconds to wait before the next.

        `gives_way`: it goes at the lower rate while appends are written here.
        """
        self.spent_bytes += size_bytes
        rate = self._bytes_per_s_max
        if gives_way and self.is_busy:
            rate = min(rate, self._busy_bytes_per_s_max)
        return self._spend(size_bytes, rate)

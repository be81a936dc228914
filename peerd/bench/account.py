"""What is counted of a load, and when an open loop sends.

Rules:
- An append belongs to the run by its *intended* moment: in an open loop that is its place in the
  schedule, whenever it was really sent. Its latency counts from there. So a cluster that stands
  still for a second is charged for every append that should have left meanwhile, not for the one
  that was waiting (coordinated omission).
- Throughput counts acknowledgements by the moment at which they came.
- A pause is the time between two acknowledgements, from the beginning of the run on, to its end.

Pure: times are given, in seconds of one monotonic clock.
"""

import math
from collections import Counter

from peerd.bench.latencies import Latencies


class Account:
    """Counts the appends of one run, which lasts from `begin_s` until before `end_s`."""

    def __init__(self, begin_s: float, end_s: float) -> None:
        self.begin_s = begin_s
        self.end_s = end_s
        self.acknowledged = 0
        self.latencies = Latencies()
        self.errors: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        """The words of the first error of each kind."""
        self.longest_pause_s = 0.0
        self._last_s = begin_s

    def succeeded(self, intended_s: float, now_s: float) -> None:
        """An append was acknowledged."""
        if self.begin_s <= intended_s < self.end_s:
            self.latencies.record(now_s - intended_s)
        if now_s < self.begin_s:
            return
        if self._last_s < self.end_s:
            self.longest_pause_s = max(self.longest_pause_s, now_s - self._last_s)
            self._last_s = now_s
        if now_s < self.end_s:
            self.acknowledged += 1

    def failed(self, intended_s: float, error: Exception) -> None:
        """An append ended without a receipt."""
        if intended_s >= self.begin_s:
            kind = type(error).__name__
            self.errors[kind] += 1
            self.examples.setdefault(kind, str(error))

    def finish(self) -> None:
        """Every append has ended."""
        if self._last_s < self.end_s:
            self.longest_pause_s = max(self.longest_pause_s, self.end_s - self._last_s)
            self._last_s = self.end_s


class Schedule:
    """When the appends of an open loop are to be sent: `rate_per_s` evenly, from `begin_s` on."""

    def __init__(self, rate_per_s: float, begin_s: float, end_s: float) -> None:
        self.begin_s = begin_s
        self._rate_per_s = rate_per_s
        self._count = math.ceil((end_s - begin_s) * rate_per_s)
        self._next = 0

    @property
    def is_over(self) -> bool:
        """All were taken."""
        return self._next >= self._count

    @property
    def next_s(self) -> float:
        """The intended moment of the next append."""
        return self.begin_s + self._next / self._rate_per_s

    def take(self, now_s: float) -> float | None:
        """The intended moment of the next append if that has come; each is given once."""
        intended_s = self.next_s
        if self.is_over or intended_s > now_s:
            return None
        self._next += 1
        return intended_s

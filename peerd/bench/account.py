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
from array import array
from collections import Counter

import numpy as np
import numpy.typing as npt

from peerd.bench.latencies import Latencies

# limit: answers that are noted before they are counted; a megabyte
NOTED_MAX = 65_536


class Account:
    """Counts the appends of one run, which lasts from `begin_s` until before `end_s`.

    What is measured shares its processor with this: an answer is noted, and counted in bulk.
    """

    def __init__(self, begin_s: float, end_s: float) -> None:
        self.begin_s = begin_s
        self.end_s = end_s
        self.errors: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        """The words of the first error of each kind."""
        self._latencies = Latencies()
        self._acknowledged = 0
        self._longest_pause_s = 0.0
        self._last_s = begin_s
        # Intended moment and moment of the answer in turn.
        self._noted = array("d")

    def succeeded(self, intended_s: float, now_s: float) -> None:
        """An append was acknowledged, now."""
        noted = self._noted
        noted.append(intended_s)
        noted.append(now_s)
        if len(noted) >= 2 * NOTED_MAX:
            self._count_noted()

    def failed(self, intended_s: float, error: Exception) -> None:
        """An append ended without a receipt."""
        if intended_s >= self.begin_s:
            kind = type(error).__name__
            self.errors[kind] += 1
            self.examples.setdefault(kind, str(error))

    def finish(self) -> None:
        """Every append has ended."""
        self._count_noted()
        self._answered_at(np.array([self.end_s]))

    @property
    def acknowledged(self) -> int:
        """Answers so far that came within the run."""
        self._count_noted()
        return self._acknowledged

    @property
    def latencies(self) -> Latencies:
        """Of those that were meant within the run."""
        self._count_noted()
        return self._latencies

    @property
    def longest_pause_s(self) -> float:
        """Between two answers, the run's beginning and end counted as such."""
        self._count_noted()
        return self._longest_pause_s

    def _count_noted(self) -> None:
        if not self._noted:
            return
        intended_s, now_s = np.array(self._noted).reshape(-1, 2).T
        self._noted = array("d")
        counts = (self.begin_s <= intended_s) & (intended_s < self.end_s)
        self._latencies.record_all(now_s[counts] - intended_s[counts])
        answered_s = now_s[now_s >= self.begin_s]
        self._acknowledged += int(np.count_nonzero(answered_s < self.end_s))
        self._answered_at(answered_s)

    def _answered_at(self, moments_s: npt.NDArray[np.float64]) -> None:
        """Answers, in order, from the beginning of the run on; the first after its end ends it."""
        if self._last_s >= self.end_s or not moments_s.size:
            return
        within = int(np.count_nonzero(moments_s < self.end_s))
        moments_s = np.concatenate(([self._last_s], moments_s[: within + 1]))
        self._longest_pause_s = max(self._longest_pause_s, float(np.diff(moments_s).max()))
        self._last_s = float(moments_s[-1])


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

"""What became of a node after a moment: failed within the horizon, did not, or nobody knows.

A failure within the horizon is 1. Without one, a node that was drained, protected or stopped by an
operator within it is *unknown* and never 0: what was done to it may be why it did not fail. So is
a horizon that ends after the time up to which outages are known.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from las.core.history import Outage


@dataclass(frozen=True, slots=True, kw_only=True)
class Care:
    """From when to when (seconds since 1970) a node was drained, protected or stopped."""

    node: str
    begin_s: int
    end_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fates:
    """What is known of a fleet, up to `until_s`."""

    until_s: int
    outages: tuple[Outage, ...]
    cares: tuple[Care, ...] = ()
    _failures: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    _cares: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        """Order what was given by node and time."""
        for outage in sorted(self.outages, key=lambda each: each.begin_s):
            if outage.is_failure:
                self._failures[outage.node].append(outage.begin_s)
            else:
                end_s = self.until_s if outage.end_s is None else outage.end_s
                self._cares[outage.node].append((outage.begin_s, end_s))
        for care in self.cares:
            self._cares[care.node].append((care.begin_s, care.end_s))

    def failures(self, begin_s: int, end_s: int) -> Iterable[tuple[str, int]]:
        """(node, begin) of the failures of a time, end excluded."""
        for node, begins in self._failures.items():
            yield from ((node, at_s) for at_s in begins if begin_s <= at_s < end_s)

    def next_failure_s(self, node: str, moment_s: int) -> int | None:
        """When the node fails next after a moment; None if it is not known to."""
        begins = self._failures.get(node, [])
        place = bisect_right(begins, moment_s)
        return begins[place] if place < len(begins) else None

    def label(self, node: str, moment_s: int, horizon_s: int) -> int | None:
        """1, 0, or None for unknown."""
        end_s = moment_s + horizon_s
        failure_s = self.next_failure_s(node, moment_s)
        if failure_s is not None and failure_s <= end_s:
            return 1
        if end_s > self.until_s:
            return None
        cares = self._cares.get(node, ())
        if any(begin_s <= end_s and until_s >= moment_s for begin_s, until_s in cares):
            return None
        return 0

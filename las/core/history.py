"""What became of nodes: outages, with their causes.

One outage is one row, wherever it comes from: seen by the LAS, imported by an operator, or recorded
by somebody else's fleet and replayed. Times are seconds since 1970 UTC as the one who recorded them
had it: they say how long ago something was, and never order decisions.

A history holds a row once: node and begin name it, so that a file that is imported twice, or a
command that is committed twice, adds nothing. It is bounded; the oldest rows make room, and are
counted.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

# limit: characters of a node, host or rack name in an outage
OUTAGE_NAME_CHARS_MAX = 128
# limit: outages that are kept, the newest; at a failure a node and year those of 10,000 nodes over
# three years, and some 3 MB of a snapshot
OUTAGES_MAX = 32_768
TIME_S_MAX = 253_402_300_799
"""The end of the year 9999: what calendars of common programs can show."""


class Cause(StrEnum):
    """Why a node was down. `OPERATOR` is somebody's wish and no failure."""

    OPERATOR = "operator"
    CRASH = "crash"
    """Its process ended while its host went on; why is not known."""
    HARDWARE = "hardware"
    DISK = "disk"
    MEMORY = "memory"
    NETWORK = "network"
    POWER = "power"
    SOFTWARE = "software"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Outage:
    """One time that a node was down: from `begin_s` to `end_s`, or still (`end_s` is None).

    `in_service_s` is since when there has been such a node, None if nobody said so.
    """

    node: str
    host: str
    rack: str
    begin_s: int
    end_s: int | None
    cause: Cause
    in_service_s: int | None = None

    def __post_init__(self) -> None:
        """Checks names and times.

        Raises:
            ValueError: a name is empty or too long, a time is negative, or the end lies before the
                beginning. Host and rack may be empty: nobody said where the node stood.
        """
        if not self.node:
            raise ValueError("the node of an outage has no name")
        for what, name in (("node", self.node), ("host", self.host), ("rack", self.rack)):
            if len(name) > OUTAGE_NAME_CHARS_MAX:
                raise ValueError(
                    f"the {what} name of an outage has {len(name)} characters, "
                    f"at most {OUTAGE_NAME_CHARS_MAX} are kept"
                )
        if self.begin_s < 0:
            raise ValueError(f"the outage of {self.node} begins at {self.begin_s} s, before 1970")
        for time_s in (self.begin_s, self.end_s or 0, self.in_service_s or 0):
            if time_s > TIME_S_MAX:
                raise ValueError(f"a time of {self.node}, {time_s} s, lies after the year 9999")
        if self.end_s is not None and self.end_s < self.begin_s:
            raise ValueError(
                f"the outage of {self.node} ends at {self.end_s} s, "
                f"before it begins at {self.begin_s} s"
            )

        if self.in_service_s is not None and not 0 <= self.in_service_s <= self.begin_s:
            raise ValueError(
                f"{self.node} came into service at {self.in_service_s} s, "
                f"after its outage began at {self.begin_s} s"
            )

    @property
    def is_failure(self) -> bool:
        """Whether it came unwished."""
        return self.cause is not Cause.OPERATOR

    @property
    def length_s(self) -> int | None:
        """Seconds from begin to end; None while it goes on."""
        return None if self.end_s is None else self.end_s - self.begin_s

    @property
    def age_s(self) -> int | None:
        """For how long there had been such a node when it began; None if that is not known."""
        return None if self.in_service_s is None else self.begin_s - self.in_service_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of rows: new, in the place of another, or older than all that is kept."""

    added: int = 0
    changed: int = 0
    too_old: int = 0


NOTHING_TAKEN = Taken()


@dataclass(frozen=True, slots=True)
class FailureHistory:
    """Outages by begin and node, the oldest first, and how many have made room for newer ones."""

    outages: tuple[Outage, ...] = ()
    dropped: int = 0

    def __len__(self) -> int:
        """How many are kept."""
        return len(self.outages)

    def with_outages(self, rows: Iterable[Outage]) -> tuple["FailureHistory", Taken]:
        """The history with `rows`; the last word on an outage stands."""
        outages = list(self.outages)
        added = changed = too_old = dropped = 0
        for row in rows:
            at = bisect_left(outages, _place(row), key=_place)
            if at < len(outages) and _place(outages[at]) == _place(row):
                changed += outages[at] != row
                outages[at] = row
            elif at == 0 and len(outages) >= OUTAGES_MAX:
                too_old += 1
            else:
                outages.insert(at, row)
                added += 1
                if len(outages) > OUTAGES_MAX:
                    del outages[0]
                    dropped += 1
        taken = Taken(added=added, changed=changed, too_old=too_old)
        if not (added or changed):
            return self, taken
        return FailureHistory(tuple(outages), self.dropped + dropped), taken

    def still_down(self, node: str) -> Outage | None:
        """The newest outage of `node` that goes on; the search begins at the newest of all."""
        for outage in reversed(self.outages):
            if outage.node == node and outage.end_s is None:
                return outage
        return None

    def ended(self, node: str, end_s: int) -> "FailureHistory":
        """The history in which the outage of `node` that goes on has ended, if there is one.

        A clock that stands before its begin ends it there: it lasted no time that is known.
        """
        outage = self.still_down(node)
        if outage is None:
            return self
        return self.with_outages([replace(outage, end_s=max(end_s, outage.begin_s))])[0]


NO_HISTORY = FailureHistory()


def _place(outage: Outage) -> tuple[int, str]:
    """What an outage is ordered, and known, by."""
    return outage.begin_s, outage.node

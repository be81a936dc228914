"""What became of nodes: outages, with their causes.

One outage is one row, wherever it comes from: seen by the LAS, imported by an operator, or recorded
by somebody else's fleet and replayed. Times are seconds since 1970 UTC as the one who recorded them
had it: they say how long ago something was, and never order decisions.
"""

from dataclasses import dataclass
from enum import StrEnum

# limit: characters of a node, host or rack name in an outage
OUTAGE_NAME_CHARS_MAX = 128


class Cause(StrEnum):
    """Why a node was down. `OPERATOR` is somebody's wish and no failure."""

    OPERATOR = "operator"
    HARDWARE = "hardware"
    DISK = "disk"
    MEMORY = "memory"
    NETWORK = "network"
    POWER = "power"
    SOFTWARE = "software"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Outage:
    """One time that a node was down: from `begin_s` to `end_s`, or still (`end_s` is None)."""

    node: str
    host: str
    rack: str
    begin_s: int
    end_s: int | None
    cause: Cause

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
        if self.end_s is not None and self.end_s < self.begin_s:
            raise ValueError(
                f"the outage of {self.node} ends at {self.end_s} s, "
                f"before it begins at {self.begin_s} s"
            )

    @property
    def is_failure(self) -> bool:
        """Whether it came unwished."""
        return self.cause is not Cause.OPERATOR

"""What was given to be appended and is not part of a batch yet: entries, in order.

Must not: decide when they become a batch, or end one.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from peerd.client.values import Receipt


class Where(NamedTuple):
    """Where an append goes and for how long it is tried; see `Client.append`."""

    shard: int | None = None
    expected_offset: int | None = None
    timeout_s: float | None = None


@dataclass(slots=True)
class Entry:
    """Records that become part of one batch together. `deadline` is of the loop's clock."""

    serialized: bytes
    """The records as elements of a `peerd.v1.Records`, side by side."""
    record_count: int
    deadline: float
    future: "asyncio.Future[Receipt]"
    where: Where
    """As whoever appended it said."""
    key_hashes: tuple[int, ...]
    ended: bool = False
    is_formed: bool = False
    """It is part of a batch, which may be sent at any time."""

    @property
    def taken(self) -> str:
        """Whether it may be in the log, once its future was cancelled."""
        return "unknown" if self.is_formed else "no"


class Waiting:
    """Entries that are not part of a batch yet, in order, and how large they are together."""

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque()
        self.size_bytes = 0

    def take_all(self) -> list[Entry]:
        """All of them."""
        entries = list(self.entries)
        self.entries.clear()
        self.size_bytes = 0
        return entries

    def take(self) -> Entry:
        """The first one."""
        entry = self.entries.popleft()
        self.size_bytes -= len(entry.serialized)
        return entry

    def drop_ended(self) -> None:
        """Forget those that have ended."""
        self.entries = deque(entry for entry in self.entries if not entry.ended)
        self.size_bytes = sum(len(entry.serialized) for entry in self.entries)

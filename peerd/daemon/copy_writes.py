"""How much of what is copied may be on its way to the disk.

While appends are written here, a commit may have few bytes of copies only: whoever appends next
waits for it, and so do the flushes of other processes where they share a file system, whose
journal writes out all new bytes before it ends. Measured as flushes of 24 KiB beside copies of
18 MiB/s: with 256 or 512 KiB a commit they take as long as without copies, with 2 MiB a
p99 of 1.4 times that.

Invariants:
- Who asked for room and got it finds at most `busy_bytes_max` on their way together with his own,
  or nothing but his own, unless nobody appended when he asked.
- Whoever waits is woken at the next end of a write; while somebody waits, one is under way.

Must not: know what is written.
"""

import asyncio
from collections.abc import Callable


class CopyWrites:
    """Used on the event loop. `is_busy`: appends are written here."""

    def __init__(self, busy_bytes_max: int, is_busy: Callable[[], bool]) -> None:
        self._busy_bytes_max = busy_bytes_max
        self._is_busy = is_busy
        self._news = asyncio.Event()
        self.under_way_bytes = 0
        """Given to the store and not yet written."""

    async def room(self, size_bytes: int) -> None:
        """Wait until so many bytes may be given to the store; then do it before anything else."""
        while (
            self.under_way_bytes
            and self.under_way_bytes + size_bytes > self._busy_bytes_max
            and self._is_busy()
        ):
            self._news.clear()
            await self._news.wait()

    def begun(self, size_bytes: int) -> None:
        """The store has them."""
        self.under_way_bytes += size_bytes

    def ended(self, size_bytes: int) -> None:
        """They are written, or refused."""
        self.under_way_bytes -= size_bytes
        self._news.set()

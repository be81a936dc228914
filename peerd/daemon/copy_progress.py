"""How far a peer has come with what it shall copy, and when it will be through.

What is left is known in records, from the map; bytes are known of what has arrived. So the time
that is left comes from records a second, and what people see of the speed from bytes a second.
Both are means over the last `WINDOW_S`, or since copying began, whichever is shorter: a budget lets
bytes go in slices, and a moment says nothing.

Must not: promise anything. New segments may be wanted at any time.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WINDOW_S = 10.0
# Between two marks of the window; so it has at most a hundred.
_MARK_S = 0.1
# Copying that rested for so long begins anew: the pause says nothing of the speed.
_REST_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyProgress:
    """What is left, and how fast it goes. `left_s` is None while that cannot be told."""

    segments: int = 0
    records: int = 0
    records_per_s: float = 0.0
    bytes_per_s: float = 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds until all is here, at this speed."""
        if not self.records:
            return 0.0
        return self.records / self.records_per_s if self.records_per_s else None


class ProgressMeter:
    """Counts what arrives. `now_s` is a monotonic clock."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._records = self._size_bytes = 0
        self._last_s = float("-inf")
        self._marks: deque[tuple[float, int, int]] = deque()

    def copied(self, records: int, size_bytes: int) -> None:
        """So much arrived."""
        now_s = self._now_s()
        if now_s - self._last_s > _REST_S:
            self._marks.clear()
        self._last_s = now_s
        if not self._marks or now_s - self._marks[-1][0] >= _MARK_S:
            self._marks.append((now_s, self._records, self._size_bytes))
        while self._marks[0][0] < now_s - WINDOW_S:
            self._marks.popleft()
        self._records += records
        self._size_bytes += size_bytes

    def progress(self, *, segments: int, records: int) -> CopyProgress:
        """The speed now, beside what is left."""
        now_s = self._now_s()
        if not self._marks or now_s - self._last_s > _REST_S:
            return CopyProgress(segments=segments, records=records)
        begun_s, begun_records, begun_bytes = self._marks[0]
        took_s = max(now_s - begun_s, _MARK_S)
        return CopyProgress(
            segments=segments,
            records=records,
            records_per_s=(self._records - begun_records) / took_s,
            bytes_per_s=(self._size_bytes - begun_bytes) / took_s,
        )

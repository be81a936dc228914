"""A histogram of latencies with a bounded error, in the bucket layout of HdrHistogram.

Microseconds up to 2,047 are counted exactly; above that each power of two has 1,024 buckets of one
width, so a percentile is at most 1/1024 of its value too large and never too small. Memory does
not grow with the number of values.

(The `hdrhistogram` package brings build tools into every installation and needs a microsecond for a
value in the process that is measured; here a value is noted in 0.1 µs, and counted in bulk.)
"""

import math
from array import array

import numpy as np
import numpy.typing as npt

EXACT_BITS = 11
_PER_POWER = 1 << (EXACT_BITS - 1)
VALUE_BITS = 40
# limit: microseconds that are told apart, twelve days; what lies beyond counts as this
VALUE_US_MAX = (1 << VALUE_BITS) - 1
_BUCKETS = (VALUE_BITS - EXACT_BITS + 2) * _PER_POWER
# limit: values that are noted before they are counted; half a megabyte
NOTED_MAX = 65_536


class Latencies:
    """Counts latencies by bucket."""

    def __init__(self) -> None:
        self._noted = array("q")
        self._counts = np.zeros(_BUCKETS, dtype=np.int64)
        self._max_us = 0

    def record(self, latency_s: float) -> None:
        """Count one latency. Negative ones, by clocks that differ, count as none."""
        self._noted.append(int(latency_s * 1e6))
        if len(self._noted) >= NOTED_MAX:
            self._count_noted()

    def record_all(self, latencies_s: npt.NDArray[np.float64]) -> None:
        """Count many."""
        self._count((latencies_s * 1e6).astype(np.int64))

    def add(self, other: "Latencies") -> None:
        """Count what `other` counted, too."""
        other._count_noted()
        self._count_noted()
        self._counts += other._counts
        self._max_us = max(self._max_us, other._max_us)

    @property
    def count(self) -> int:
        """How many latencies were recorded."""
        self._count_noted()
        return int(self._counts.sum())

    @property
    def max_ms(self) -> float:
        """The largest, exactly; NaN if there is none."""
        return self._max_us / 1000.0 if self.count else math.nan

    def percentile_ms(self, percent: float) -> float:
        """The value that `percent` of all are at most; NaN if there is none."""
        total = self.count
        if not total:
            return math.nan
        rank = max(1, math.ceil(total * percent / 100.0))
        bucket = int(np.searchsorted(np.cumsum(self._counts), rank))
        return min(_upper_us(bucket), self._max_us) / 1000.0

    def _count_noted(self) -> None:
        if self._noted:
            values = np.asarray(self._noted, dtype=np.int64)
            self._noted = array("q")
            self._count(values)

    def _count(self, values_us: npt.NDArray[np.int64]) -> None:
        if not values_us.size:
            return
        values = np.clip(values_us, 0, VALUE_US_MAX)
        self._max_us = max(self._max_us, int(values.max()))
        # The bits of a value; a double holds every value here exactly.
        bits = np.frexp(values.astype(np.float64))[1]
        shifts = np.maximum(bits - EXACT_BITS, 0)
        buckets = shifts * _PER_POWER + (values >> shifts)
        self._counts += np.bincount(buckets, minlength=_BUCKETS)


def _upper_us(bucket: int) -> int:
    """The largest value of a bucket."""
    shift = max(bucket // _PER_POWER - 1, 0)
    return ((bucket - shift * _PER_POWER + 1) << shift) - 1

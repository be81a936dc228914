"""What clients do to each shard of this peer: rates, batches, keys, conditions, readers.

Counted where a primary takes a batch and where it serves a read, over intervals of `PERIOD_S`; the
figures of the last whole interval are what heartbeats carry and `/metrics` shows.

Keys are seen by the headers of batches, which have the lowest and the highest hash of their keys:
all of them where a batch has one or two records with keys, a part of them where it has more. So
`distinct_keys` (HyperLogLog with 256 registers, standard error 6.5 %) may be too low for large
batches, and `hottest_key_share` is that among the hashes seen (Misra-Gries with 32 counters, at
most 1/33 too low). Of a hash the lower bits count: its upper ones say which shard it belongs to, so
all keys of a shard share them.

Bounds: a shard's account has a fixed size; shards are those of this peer. An account costs about
two microseconds a batch. Used on one event loop; time is passed in.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from peerd.core.batch import BatchHeader
from peerd.core.ids import ShardId

PERIOD_S = 10.0
COLD_MS = 60_000
"""Records older than this are cold: what is read of them had left the caches, or may have."""

# limit: key hashes counted one by one in a shard's account; a key beyond this share of all is found
COUNTERS_MAX = 32
_REGISTER_BITS = 8
_REGISTERS = 1 << _REGISTER_BITS
_REST_BITS = 64 - _REGISTER_BITS
_ALPHA = 0.7213 / (1 + 1.079 / _REGISTERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLoad:
    """One shard's figures over an interval. A share without anything to share is NaN.

    `cold_read_share` is of the bytes read; `reader_lag_records` that of the reader furthest behind
    the committed end, of `readers` that follow.
    """

    appends_per_s: float
    records_per_s: float
    bytes_per_s: float
    records_per_batch: float
    distinct_keys: int
    hottest_key_share: float
    conditional_share: float
    read_bytes_per_s: float
    cold_read_share: float
    readers: int
    reader_lag_records: int


@dataclass(slots=True)
class _Account:
    """One shard in the interval under way."""

    appends: int = 0
    records: int = 0
    bytes: int = 0
    conditional: int = 0
    read_bytes: int = 0
    cold_bytes: int = 0
    hashes: int = 0
    registers: bytearray = field(default_factory=lambda: bytearray(_REGISTERS))
    counters: dict[int, int] = field(default_factory=dict)

    def seen(self, key_hash: int) -> None:
        """A key's hash came."""
        self.hashes += 1
        register, rest = key_hash & (_REGISTERS - 1), key_hash >> _REGISTER_BITS
        rank = (rest & -rest).bit_length() or _REST_BITS + 1
        self.registers[register] = max(self.registers[register], rank)
        counters = self.counters
        if key_hash in counters or len(counters) < COUNTERS_MAX:
            counters[key_hash] = counters.get(key_hash, 0) + 1
            return
        for counted in list(counters):
            if counters[counted] == 1:
                del counters[counted]
            else:
                counters[counted] -= 1

    def distinct(self) -> int:
        """The estimated number of different hashes."""
        if not self.hashes:
            return 0
        zeros = self.registers.count(0)
        if zeros:
            linear = _REGISTERS * math.log(_REGISTERS / zeros)
            if linear <= 2.5 * _REGISTERS:
                return round(linear)
        return round(_ALPHA * _REGISTERS**2 / sum(2.0**-rank for rank in self.registers))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadFigures:
    """The figures of one interval. `number` counts intervals from 1; 0: none is over yet."""

    number: int = 0
    period_s: float = 0.0
    shards: Mapping[ShardId, ShardLoad] = field(default_factory=dict)


class Workload:
    """All shards of one peer."""

    def __init__(self) -> None:
        self._accounts: dict[ShardId, _Account] = {}
        self._lags: dict[object, tuple[ShardId, Callable[[], int]]] = {}
        self._begun_s: float | None = None
        self._figures = WorkloadFigures()

    # ------------------------------------------------------------------ what happens

    def appended(self, shard: ShardId, header: BatchHeader, *, conditional: bool) -> None:
        """A primary took a batch."""
        account = self._accounts.get(shard)
        if account is None:
            account = self._accounts[shard] = _Account()
        account.appends += 1
        account.records += header.record_count
        account.bytes += header.payload_bytes
        account.conditional += conditional
        low, high = header.key_hash_low, header.key_hash_high
        if high:  # a batch without keys has 0 for both
            account.seen(low)
            if low != high:
                account.seen(high)

    def read(self, shard: ShardId, payload_bytes: int, *, age_ms: int) -> None:
        """Batches left for a reader, the oldest of which is `age_ms` old."""
        account = self._accounts.get(shard)
        if account is None:
            account = self._accounts[shard] = _Account()
        account.read_bytes += payload_bytes
        account.cold_bytes += payload_bytes if age_ms > COLD_MS else 0

    def reader_begins(self, reader: object, shard: ShardId, lag: Callable[[], int]) -> None:
        """`reader` follows the shard; `lag` tells how many records it is behind."""
        self._lags[reader] = (shard, lag)

    def reader_ends(self, reader: object) -> None:
        """It does not any more; also if it never did."""
        self._lags.pop(reader, None)

    # ------------------------------------------------------------------ what is told

    def figures(self, now_s: float) -> WorkloadFigures:
        """The figures of the last whole interval; ends the one under way if it is over."""
        if self._begun_s is None:
            self._begun_s = now_s
        elapsed_s = now_s - self._begun_s
        if elapsed_s >= PERIOD_S:
            accounts, self._accounts = self._accounts, {}
            self._begun_s = now_s
            lags: dict[ShardId, list[int]] = {}
            for shard, lag in self._lags.values():
                lags.setdefault(shard, []).append(max(0, lag()))
            self._figures = WorkloadFigures(
                number=self._figures.number + 1,
                period_s=elapsed_s,
                shards={
                    shard: _load(accounts.get(shard) or _Account(), lags.get(shard, []), elapsed_s)
                    for shard in sorted(accounts.keys() | lags.keys())
                },
            )
        return self._figures


def _load(account: _Account, lags: list[int], elapsed_s: float) -> ShardLoad:
    return ShardLoad(
        appends_per_s=account.appends / elapsed_s,
        records_per_s=account.records / elapsed_s,
        bytes_per_s=account.bytes / elapsed_s,
        records_per_batch=_share(account.records, account.appends),
        distinct_keys=account.distinct(),
        hottest_key_share=_share(max(account.counters.values(), default=0), account.hashes),
        conditional_share=_share(account.conditional, account.appends),
        read_bytes_per_s=account.read_bytes / elapsed_s,
        cold_read_share=_share(account.cold_bytes, account.read_bytes),
        readers=len(lags),
        reader_lag_records=max(lags, default=0),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan

"""What one caller may ask of one process: requests and bytes a second, and connections.

Why a limit holds, and costs nobody else anything: each identity has a bucket of a second's worth of
requests and one of bytes; both fill at the rate that was set and never above it. A request takes
one and the bytes that it brings, and is refused (`OVERLOADED`, with the time after which there is
room) while there is none; nothing of it was looked at by then. What a read sends is known only
afterwards: it is taken in advance of what comes next (`sent`), and the read waits until the bucket
has caught up, so that a stream of its own is slowed and never refused in the middle.

Peers and LAS nodes have no such limits: what they bring was counted where it came in.

Bounds: `CALLERS_MAX` buckets, the least recently used are forgotten (and are full when they come
back); a forgotten one had not asked for anything in the time in which it filled, or thousands of
callers came in between.

Must not: cost anything where no limit is set (`Unlimited`), or read another clock than its own.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from peerd.core.errors import Reason
from peerd.transport.refused_calls import RefusedCall, RefusedCalls
from peerd.transport.status import Refused, refusal
from peerd.transport.tls import Identity, Role

# limit: callers whose use is remembered; each some hundred bytes
CALLERS_MAX = 10_000
# How long a connection counts after its last call began. Seconds.
CONNECTION_COUNTS_S = 60.0
# What a client is told to wait where it has too many connections: until some may have been closed.
CONNECTION_RETRY_MS = 1_000
# limit: seconds that a read is held back at a time; then it looks again whether its caller is there
READ_PAUSE_S_MAX = 1.0
_EXEMPT = frozenset({Role.PEER, Role.LAS})


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerLimits:
    """Of each caller at one process; 0 is no limit."""

    requests_per_s: int = 0
    bytes_per_s: int = 0
    connections_max: int = 0

    @property
    def are_set(self) -> bool:
        """Whether there is any."""
        return bool(self.requests_per_s or self.bytes_per_s or self.connections_max)


class _Bucket:
    """What a caller may still ask for. `requests` and `size` may be negative: it is ahead."""

    __slots__ = ("at_s", "connections", "requests", "size")

    def __init__(self, limits: CallerLimits, now_s: float) -> None:
        self.at_s = now_s
        self.requests = float(limits.requests_per_s)
        self.size = float(limits.bytes_per_s)
        # By address: when a call of it last began, and how many of its streams are open.
        self.connections: dict[str, tuple[float, int]] = {}


class CallerUse:
    """Used on one event loop."""

    def __init__(
        self,
        limits: CallerLimits,
        refused: RefusedCalls,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`refused` is told of refusals."""
        self.limits = limits
        self._refused = refused
        self._clock_s = clock_s
        self._buckets: OrderedDict[tuple[str, str], _Bucket] = OrderedDict()

    def take(self, identity: Identity, address: str, size: int) -> None:
        """A request came that brings `size` bytes, over the connection from `address`.

        Raises:
            Refused: OVERLOADED.
        """
        if identity.role in _EXEMPT:
            return
        limits = self.limits
        bucket = self._bucket(identity)
        if limits.connections_max:
            self._connect(identity, bucket, address)
        if limits.requests_per_s:
            if bucket.requests < 1:
                wait_s = (1 - bucket.requests) / limits.requests_per_s
                self._refuse(identity, "requests_per_s", limits.requests_per_s, wait_s)
            bucket.requests -= 1
        if limits.bytes_per_s and size:
            # Something always fits into a full bucket, or what is larger could never pass.
            if bucket.size < min(size, limits.bytes_per_s):
                wait_s = (min(size, limits.bytes_per_s) - bucket.size) / limits.bytes_per_s
                self._refuse(identity, "bytes_per_s", limits.bytes_per_s, wait_s)
            bucket.size -= size

    def sent(self, identity: Identity, size: int) -> float:
        """A read has sent so much; returns for how many seconds it has to wait now."""
        rate = self.limits.bytes_per_s
        if not rate or identity.role in _EXEMPT:
            return 0.0
        bucket = self._bucket(identity)
        bucket.size -= size
        return min(READ_PAUSE_S_MAX, max(0.0, -bucket.size / rate))

    @contextmanager
    def open_stream(self, identity: Identity, address: str) -> Iterator[None]:
        """Its connection counts for as long as the stream in here is open."""
        if not self.limits.connections_max or identity.role in _EXEMPT:
            yield
            return
        bucket = self._bucket(identity)
        at_s, streams = bucket.connections.get(address, (self._clock_s(), 0))
        bucket.connections[address] = at_s, streams + 1
        try:
            yield
        finally:
            at_s, streams = bucket.connections.get(address, (self._clock_s(), 1))
            bucket.connections[address] = at_s, max(0, streams - 1)

    def _bucket(self, identity: Identity) -> _Bucket:
        """The caller's, filled up to now."""
        now_s, key = self._clock_s(), (identity.role.value, identity.name)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(self.limits, now_s)
            if len(self._buckets) > CALLERS_MAX:
                self._buckets.popitem(last=False)
            return bucket
        self._buckets.move_to_end(key)
        passed_s, bucket.at_s = now_s - bucket.at_s, now_s
        limits = self.limits
        bucket.requests = min(
            limits.requests_per_s, bucket.requests + passed_s * limits.requests_per_s
        )
        bucket.size = min(limits.bytes_per_s, bucket.size + passed_s * limits.bytes_per_s)
        return bucket

    def _connect(self, identity: Identity, bucket: _Bucket, address: str) -> None:
        now_s = self._clock_s()
        known = bucket.connections.get(address)
        if known is None and len(bucket.connections) >= self.limits.connections_max:
            bucket.connections = {
                each: (at_s, streams)
                for each, (at_s, streams) in bucket.connections.items()
                if streams or now_s - at_s < CONNECTION_COUNTS_S
            }
            if len(bucket.connections) >= self.limits.connections_max:
                wait_s = CONNECTION_RETRY_MS / 1000
                self._refuse(identity, "connections_max", self.limits.connections_max, wait_s)
        bucket.connections[address] = now_s, 0 if known is None else known[1]

    def _refuse(self, identity: Identity, name: str, bound: int, wait_s: float) -> None:
        """Raises `Refused`: OVERLOADED."""
        retry_after_ms = max(1, int(wait_s * 1000) + 1)
        text = (
            f"{identity.name} has reached limits.{name} = {bound} of this process: "
            f"wait {retry_after_ms} ms and send it again"
        )
        self._refused.add(
            RefusedCall(
                who=identity.name,
                role=identity.role.value,
                reason=Reason.OVERLOADED.name,
                what=f"limits.{name}",
                text=text,
            )
        )
        raise Refused(refusal(Reason.OVERLOADED, text, retry_after_ms=retry_after_ms))

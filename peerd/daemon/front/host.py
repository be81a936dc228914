"""Where a front worker's appends go: over the socket to its sequencer.

Correctness. A worker decides nothing about an append:

- `SequencerAppends.append` gives `done` the core's own answer to that append and to no other: each
  has a number that is used once, and an answer to a number that nobody waits for ends the worker.
- Whether the sequencer is primary is only a guess where to go, read from the map; the core refuses
  what is not its own. A wrong "no" costs a hop (the call goes to the peer port, as from another
  peer), a wrong "yes" a refusal that names the primary.
"""

from collections.abc import Callable

from peerd.core.batch import BatchHeader
from peerd.core.errors import Reason
from peerd.core.ids import ProcessId, ShardId
from peerd.core.value import value
from peerd.daemon.front.connection import Connection
from peerd.daemon.front.frames import (
    FrameMalformed,
    FrontAppend,
    Kind,
    decode_accepted,
    decode_refused,
    encode_append,
)
from peerd.transport.host_api import AppendOutcome
from peerd.transport.limits import RETRY_STEP_MS
from peerd.transport.map_cache import MapCache

# Refusals that say "not here": for one step of a retry the map's other word does not count.
_NOT_HERE = frozenset({Reason.NOT_PRIMARY, Reason.FENCED, Reason.MOVED})

Done = Callable[[AppendOutcome], None]


@value(frozen=True, slots=True)
class _Waiting:
    shard: ShardId
    done: Done


class SequencerAppends:
    """Fulfils `peerd.transport.host_api.AppendHost` over the socket. `connect` it before use."""

    def __init__(self, sequencer: ProcessId, cache: MapCache, now_s: Callable[[], float]) -> None:
        """`now_s` is monotonic, in seconds."""
        self._sequencer = sequencer
        self._cache = cache
        self._now_s = now_s
        self._connection: Connection | None = None
        self._next = 0
        self._waiting: dict[int, _Waiting] = {}
        # Shards that the sequencer said are not its own, until when that counts.
        self._not_here_until_s: dict[ShardId, float] = {}

    def connect(self, connection: Connection) -> None:
        """Send appends over `connection` from now on."""
        self._connection = connection

    @property
    def space_in_reserve(self) -> bool:
        """False: the sequencer says it, as a refusal of the append."""
        return False

    def is_primary(self, shard: ShardId) -> bool:
        """Whether the sequencer seems to order the shard's appends now."""
        entry = self._cache.shards.get(shard)
        if entry is None or entry.open.plan.primary != self._sequencer:
            return False
        until_s = self._not_here_until_s.get(shard)
        if until_s is not None:
            if self._now_s() < until_s:
                return False
            del self._not_here_until_s[shard]
        return True

    def append(
        self,
        shard: ShardId,
        header: BatchHeader,
        payload: bytes,
        expected_offset: int | None,
        done: Done,
    ) -> None:
        """See `AppendHost`. When the socket has ended the worker ends, and nobody is answered."""
        if self._connection is None:
            return
        self._next += 1
        self._waiting[self._next] = _Waiting(shard, done)
        self._connection.send(
            encode_append(FrontAppend(self._next, shard, header, payload, expected_offset))
        )

    def answered(self, kind: Kind, body: memoryview) -> None:
        """Take an `ACCEPTED` or a `REFUSED`.

        Raises:
            FrameMalformed: it is none, or answers what was not asked.
        """
        if kind is Kind.ACCEPTED:
            accepted = decode_accepted(body)
            self._take(accepted.request).done(accepted)
            return
        request, refusal = decode_refused(body)
        waiting = self._take(request)
        if refusal.reason in _NOT_HERE:
            self._not_here_until_s[waiting.shard] = self._now_s() + RETRY_STEP_MS / 1000
        waiting.done(refusal)

    def _take(self, request: int) -> _Waiting:
        waiting = self._waiting.pop(request, None)
        if waiting is None:
            raise FrameMalformed(f"an answer to append {request}, which waits for none")
        return waiting

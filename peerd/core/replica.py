"""One shard on one peer: the protocol without IO (docs/protocol.md §3, §4)."""

from peerd.core.durable import StoredShard
from peerd.core.effects import Step
from peerd.core.events import Event
from peerd.core.ids import Epoch, Offset, ProcessId, Tick
from peerd.core.limits import Limits


class Replica:
    """Decides for one shard on one peer. Events in, effects out; see `peerd.core.events`, `effects`."""

    def __init__(self, me: ProcessId, stored: StoredShard, limits: Limits) -> None:
        """`stored` is what the store has when the process starts (or a new `StoredShard(shard=…)`)."""
        self._me = me
        self._state = stored
        self._limits = limits

    def handle(self, event: Event) -> Step:
        """Take one event, return all that it causes.

        Raises `InvariantViolation` if the store or a peer contradicts the protocol: stop the process.
        """
        raise NotImplementedError

    @property
    def is_primary(self) -> bool:
        """Whether this process orders the shard's appends now."""
        raise NotImplementedError

    @property
    def epoch(self) -> Epoch:
        """The own epoch as primary, else the adopted one; 0 if none."""
        raise NotImplementedError

    @property
    def committed(self) -> Offset:
        """Largest offset known here to be committed in `epoch`."""
        raise NotImplementedError

    @property
    def leader_hint(self) -> ProcessId | None:
        """The process that most likely is primary."""
        raise NotImplementedError

    def readable_limit(self, epoch: Epoch) -> Offset | None:
        """First offset of `epoch` that this store may not serve (§7, G12); None: nothing of it is here."""
        raise NotImplementedError

    @property
    def stored(self) -> StoredShard:
        """The durable state as of the last `WriteDone`."""
        return self._state

    @property
    def wake_at(self) -> Tick | None:
        """When a `Ticked` is due; None: only after another event."""
        raise NotImplementedError

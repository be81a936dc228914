"""Commands for many shards at once, and the tables through which their rows name what they share.

A row has a store, a process or a reason by its place in a table of the command, so that 500 of them
fit in its 64 KiB. `Tables` fills the tables and counts the bytes of JSON, `Names` reads them. What
the rows mean is said in `las.core.many_shards` and `las.core.many_steps`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peerd.core.check import invariant
from peerd.core.ids import BootId, Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId, StoreId

# limit: changes of one command.
CHANGES_MAX = 512
# limit: bytes after which a command takes no further change; the last one still fits its 64 KiB.
CHANGES_BYTES_MAX = 56 * 1024
# What JSON adds at most to the numbers of a row, to a place and to what a table names.
_ROW_BYTES = 12
_PLACE_BYTES = 5
# limit: the highest place that a row is counted for; no command has room for so many names.
PLACES_MAX = 9_999
_NAME_BYTES = 14

FenceRow = tuple[ShardId, Epoch, Epoch, int]
"""Shard, open epoch, prepared epoch (0 = none), and the place of the reason in `whys`."""

EndRow = tuple[Offset, Offset, tuple[int, ...]]
"""A `RecoveredSegment`: end, known commit, and the places of its holders in `stores`."""

OpenRow = tuple[ShardId, Epoch, int, tuple[int, ...], tuple[int, ...], int, EndRow, EndRow | None]
"""Shard, fence, the primary's place in `processes`, the voters' and non-voters' places in `stores`,
acks, where the open segment ended, and where the prepared one did.
"""

BegunRow = tuple[ShardId, Epoch, Offset, tuple[int, ...]]
"""A `SegmentOpened`: shard, epoch, begin, and the places of the holders in `stores`."""

PlaceRow = tuple[ShardId, Epoch, int]
"""Shard, epoch and one place: of the process that declined in `processes`, or of the store that has
a segment whole, or has it no more, in `stores`.
"""

WantRow = tuple[ShardId, Epoch, tuple[int, ...]]
"""A `WantHolders`: shard, epoch, and the places of the stores."""

PrepareRow = tuple[ShardId, Epoch, int, int, tuple[int, ...], tuple[int, ...], int]
"""A `PrepareSegment`: shard, epoch, the reason's place, the primary's, the voters', the
non-voters', acks.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeShards:
    """`FenceSegment` and `OpenSegment` for many shards, each by itself; see `las.core.many_shards`.

    Attributes:
        whys: reasons of fences.
        stores: peer and store id.
        processes: place of the store in `stores`, and boot id.
        fences, opens: a row for each shard.
    """

    whys: tuple[str, ...] = ()
    stores: tuple[tuple[NodeName, StoreId], ...] = ()
    processes: tuple[tuple[int, BootId], ...] = ()
    fences: tuple[FenceRow, ...] = ()
    opens: tuple[OpenRow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShards:
    """Steps of planned changes of many shards, each by itself; see `las.core.many_steps`.

    Attributes:
        whys, stores, processes: as in `ChangeShards`.
        prepared, begun, withdrawn, wanted, added, dropped: a row for each `PrepareSegment`,
            `SegmentOpened`, `WithdrawSegment`, `WantHolders`, `AddHolder` and `DropHolder`.
    """

    whys: tuple[str, ...] = ()
    stores: tuple[tuple[NodeName, StoreId], ...] = ()
    processes: tuple[tuple[int, BootId], ...] = ()
    prepared: tuple[PrepareRow, ...] = ()
    begun: tuple[BegunRow, ...] = ()
    withdrawn: tuple[PlaceRow, ...] = ()
    wanted: tuple[WantRow, ...] = ()
    added: tuple[PlaceRow, ...] = ()
    dropped: tuple[PlaceRow, ...] = ()


class Tables:
    """The tables of a command as they grow, and how many bytes of JSON all of it fills at most."""

    def __init__(self) -> None:
        self.bytes = 0
        self._whys: dict[str, int] = {}
        self._stores: dict[ReplicaId, int] = {}
        self._processes: dict[ProcessId, int] = {}

    def row(self, *numbers: int) -> None:
        """Count a row with these numbers."""
        self.bytes += _ROW_BYTES + sum([len(str(number)) for number in numbers])

    def why(self, why: str) -> int:
        """The place of a reason."""
        place = self._whys.get(why)
        if place is None:
            place = self._whys[why] = len(self._whys)
            self.bytes += 2 * len(why.encode()) + _NAME_BYTES
        return place

    def process(self, process: ProcessId) -> int:
        """The place of a process."""
        place = self._processes.get(process)
        if place is None:
            self.places((process.replica,))
            place = self._processes[process] = len(self._processes)
            self.bytes += len(process.boot) + _NAME_BYTES
        return place

    def places(self, replicas: Sequence[ReplicaId]) -> tuple[int, ...]:
        """The places of stores."""
        for each in replicas:
            if each not in self._stores:
                self._stores[each] = len(self._stores)
                self.bytes += len(each.peer) + len(each.store) + _NAME_BYTES
        self.bytes += _PLACE_BYTES * len(replicas)
        return tuple([self._stores[each] for each in replicas])

    @property
    def whys(self) -> tuple[str, ...]:
        """As they stand in the command."""
        return tuple(self._whys)

    @property
    def stores(self) -> tuple[tuple[NodeName, StoreId], ...]:
        """As they stand in the command."""
        return tuple((each.peer, each.store) for each in self._stores)

    @property
    def processes(self) -> tuple[tuple[int, BootId], ...]:
        """As they stand in the command."""
        return tuple((self._stores[each.replica], each.boot) for each in self._processes)


class Names:
    """What the places in a command's rows stand for.

    Each method raises `InvariantViolation` for a place outside its table.
    """

    def __init__(self, command: ChangeShards | StepShards) -> None:
        self._whys = command.whys
        self._stores = [ReplicaId(peer, store) for peer, store in command.stores]
        self._processes = [
            ProcessId(replica.peer, replica.store, boot)
            for place, boot in command.processes
            for replica in self.stores((place,))
        ]

    def why(self, place: int) -> str:
        """A reason."""
        invariant(0 <= place < len(self._whys), "a reason is in its table", place=place)
        return self._whys[place]

    def stores(self, places: Iterable[int]) -> tuple[ReplicaId, ...]:
        """Stores."""
        found = []
        for place in places:
            invariant(0 <= place < len(self._stores), "a store is in its table", place=place)
            found.append(self._stores[place])
        return tuple(found)

    def process(self, place: int) -> ProcessId:
        """A process."""
        invariant(0 <= place < len(self._processes), "a process is in its table", place=place)
        return self._processes[place]

"""The newest shard map that this process has heard of, and who wants to know when it moves.

Peers and clients keep one each: fed by the LAS (or by a peer that passes on what it heard), asked
for every append and read, and served to others, so that nobody needs the LAS to start.

Invariants:
- The version only grows; an update that is not newer changes nothing (G7: one map). What comes late
  or twice, from whichever source, is therefore harmless.
- An update is taken whole or not at all.
- What was learned of a shard by a commit that the LAS has lost since is true and is kept, whatever
  older the LAS says, until a person has given it up (docs/protocol.md §4.6): so appends and reads
  find their way, and who asks here is told it, too.

Must not: do IO, or read a clock other than the one it was given.
"""

import asyncio
import bisect
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from las.v1 import shard_map_pb2
from peerd.core.ids import NodeName, ShardId
from peerd.core.shard_map import Shard
from peerd.transport.map_codec import (
    LogEntry,
    MapMalformed,
    NodeEntry,
    decode_log,
    decode_node,
    decode_shard,
    encode_log,
    encode_node,
    encode_shard,
)

# limit: shards encoded in one go where others wait for the event loop, some 5 ms of it
SLICE_SHARDS_MAX = 128
# limit: updates kept for watchers that lag; one that lags more gets the whole map once
UPDATES_KEPT_MAX = 256


class MapForeign(ValueError):
    """The update is of another cluster; nothing of it was taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapChange:
    """What an update changed. `shards` and `nodes` are new or changed; False = nothing did."""

    shards: tuple[ShardId, ...] = ()
    removed_shards: tuple[ShardId, ...] = ()
    nodes: tuple[NodeName, ...] = ()
    removed_nodes: tuple[NodeName, ...] = ()
    logs: tuple[str, ...] = ()
    removed_logs: tuple[str, ...] = ()
    is_whole: bool = False
    """Everything was replaced: shards may be known to be deleted that were never on this map."""

    def __bool__(self) -> bool:
        return bool(
            self.shards
            or self.removed_shards
            or self.nodes
            or self.removed_nodes
            or self.logs
            or self.removed_logs
        )


@dataclass(frozen=True, slots=True)
class _Routes:
    """A log's shards by key range: `lows[i]` is the lowest key hash of `shards[i]`."""

    lows: tuple[int, ...]
    shards: tuple[ShardId, ...]


class MapCache:
    """The map as plain values. Used on one event loop; reads are dictionary look-ups."""

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        """Starts empty, with version 0. `clock_ms` is monotonic, in milliseconds."""
        self.cluster_id = ""
        self.version = 0
        self.next_shard = 0
        self._skipped: tuple[shard_map_pb2.SkippedShards, ...] = ()
        self.nodes: dict[NodeName, NodeEntry] = {}
        self.logs: dict[str, LogEntry] = {}
        self.shards: dict[ShardId, Shard] = {}
        self._clock_ms = clock_ms
        self._heard_ms = clock_ms()
        self._changed = asyncio.Event()
        self._subscribers: list[Callable[[MapChange], None]] = []
        self._routes: dict[str, _Routes] = {}
        self._updates: deque[shard_map_pb2.MapUpdate] = deque()
        # A watcher that has this version or a later one can be served from `_updates`.
        self._updates_since = 0

    # -------------------------------------------------------------------------- telling

    @property
    def changed(self) -> asyncio.Event:
        """The event that is set at the next change; take it before looking, then wait."""
        return self._changed

    def subscribe(self, callback: Callable[[MapChange], None]) -> Callable[[], None]:
        """Calls `callback` after each change, in order; returns what ends that."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    @property
    def age_ms(self) -> int:
        """Time since the map was last heard to be current, in milliseconds."""
        return max(0, self._clock_ms() - self._heard_ms)

    def heard_current(self, ago_ms: int = 0) -> None:
        """The LAS said, so long ago, that there is nothing newer."""
        self._heard_ms = self._clock_ms() - ago_ms

    # -------------------------------------------------------------------------- asking

    def address_of(self, peer: NodeName) -> str | None:
        """Address host:port of a peer; None if the map does not know it."""
        node = self.nodes.get(peer)
        return node.address if node is not None and node.address else None

    def shard_for(self, log: str, key_hash: int) -> ShardId | None:
        """The shard of `log` that owns `key_hash`; None if there is no such log or range."""
        routes = self._routes.get(log) or self._build_routes(log)
        if routes is None:
            return None
        at = bisect.bisect_right(routes.lows, key_hash) - 1
        if at < 0 or key_hash > self.shards[routes.shards[at]].key_hash_high:
            return None
        return routes.shards[at]

    def is_deleted(self, shard: ShardId) -> bool:
        """Whether the shard's log was deleted: ids are drawn in order and never again.

        Of an id that a LAS skipped when it began from older data nobody knows (§4.6).
        """
        if shard >= self.next_shard or shard in self.shards:
            return False
        return not any(each.first <= shard <= each.last for each in self._skipped)

    def is_part(self, log: str, shard: int) -> bool:
        """Whether `shard` is one of the log's, or was until it was split."""
        entry = self.shards.get(ShardId(shard))
        return entry is not None and entry.log == log

    def family_of(self, log: str) -> tuple[ShardId, ...]:
        """The log's shards and those that they came from by splits, each after its parent."""
        entry = self.logs.get(log)
        family: dict[ShardId, None] = {}
        for shard in () if entry is None else entry.shards:
            line: list[ShardId] = []
            at: ShardId | None = shard
            while at is not None and at not in family and at in self.shards:
                line.append(at)
                parent = self.shards[at].parent
                at = None if parent is None else parent.shard
            family.update(dict.fromkeys(reversed(line)))
        return tuple(family)

    def shards_of(self, log: str) -> tuple[ShardId, ...]:
        """The log's shards that take appends, by key range; empty if there is no such log."""
        routes = self._routes.get(log) or self._build_routes(log)
        return () if routes is None else routes.shards

    def _build_routes(self, log: str) -> _Routes | None:
        entry = self.logs.get(log)
        if entry is None:
            return None
        known = [self.shards[shard] for shard in entry.shards if shard in self.shards]
        known.sort(key=lambda shard: shard.key_hash_low)
        routes = _Routes(
            lows=tuple(shard.key_hash_low for shard in known),
            shards=tuple(shard.shard for shard in known),
        )
        self._routes[log] = routes
        return routes

    # -------------------------------------------------------------------------- taking

    def apply(self, update: shard_map_pb2.MapUpdate) -> MapChange:
        """Takes `update` if it is newer, tells everybody, and returns what changed.

        Raises:
            MapForeign: it is of another cluster.
            MapMalformed: an entry is not one of any committed map, or a change came before the map.
        """
        if self.cluster_id and update.cluster_id and update.cluster_id != self.cluster_id:
            raise MapForeign(
                f"the map of cluster {update.cluster_id} was sent to a process of cluster "
                f"{self.cluster_id}: an address of the configuration leads to another cluster"
            )
        if update.version <= self.version:
            if update.version == self.version:
                self.heard_current()
            return MapChange()
        if not update.full and self.version == 0:
            raise MapMalformed(f"change to version {update.version} before any whole map")
        nodes = {node.name: node for node in map(decode_node, update.nodes)}
        logs = {log.name: log for log in map(decode_log, update.logs)}
        shards = {shard.shard: shard for shard in map(decode_shard, update.shards)}
        shards = {shard: self._newest(entry) for shard, entry in shards.items()}
        if update.full:
            strays = self._strays(logs, tuple(update.skipped_shards) or self._skipped)
            for entry in strays.values():
                logs.setdefault(entry.log, self.logs[entry.log])
            change = self._replace_all(nodes, logs, strays | shards)
        else:
            change = self._replace_some(nodes, logs, shards, update)
        self.cluster_id = update.cluster_id or self.cluster_id
        self.version = update.version
        if update.next_shard > self.next_shard:
            self.next_shard = update.next_shard
            self._skipped = tuple(update.skipped_shards)
        self.heard_current()
        self._remember(update)
        self._tell(change)
        return change

    def _newest(self, told: Shard) -> Shard:
        """What is told of a shard, or what is known of it by commits that were lost since."""
        known = self.shards.get(told.shard)
        if known is None or known.open.epoch < told.open.epoch:
            return told
        skipped = told.skipped_with(known.open.epoch)
        return told if skipped is None or skipped.given_up else known

    def _strays(
        self, logs: dict[str, LogEntry], skipped: tuple[shard_map_pb2.SkippedShards, ...]
    ) -> dict[ShardId, Shard]:
        """Shards that lost commits created, of logs whose names are no other log's by now."""
        return {
            shard: entry
            for shard, entry in self.shards.items()
            if any(each.first <= shard <= each.last for each in skipped)
            and entry.log in self.logs
            and entry.log not in logs
        }

    def _replace_all(
        self,
        nodes: dict[NodeName, NodeEntry],
        logs: dict[str, LogEntry],
        shards: dict[ShardId, Shard],
    ) -> MapChange:
        change = MapChange(
            shards=tuple(
                shard for shard, entry in shards.items() if self.shards.get(shard) != entry
            ),
            removed_shards=tuple(self.shards.keys() - shards.keys()),
            nodes=tuple(name for name, entry in nodes.items() if self.nodes.get(name) != entry),
            removed_nodes=tuple(self.nodes.keys() - nodes.keys()),
            logs=tuple(name for name, entry in logs.items() if self.logs.get(name) != entry),
            removed_logs=tuple(self.logs.keys() - logs.keys()),
            is_whole=True,
        )
        self.nodes, self.logs, self.shards = nodes, logs, shards
        self._routes.clear()
        return change

    def _replace_some(
        self,
        nodes: dict[NodeName, NodeEntry],
        logs: dict[str, LogEntry],
        shards: dict[ShardId, Shard],
        update: shard_map_pb2.MapUpdate,
    ) -> MapChange:
        removed_logs = tuple(name for name in update.removed_logs if name in self.logs)
        gone = {shard for name in removed_logs for shard in self.family_of(name)}
        gone.update(map(ShardId, update.removed_shards))
        removed_shards = tuple(sorted(gone & self.shards.keys()))
        removed_nodes = tuple(
            NodeName(name) for name in update.removed_nodes if NodeName(name) in self.nodes
        )
        for name in removed_logs:
            del self.logs[name]
        emptied = {self.shards.pop(shard).log for shard in removed_shards}
        for node in removed_nodes:
            del self.nodes[node]
        # Only what routes keys is built anew: a shard's entry moves often, its range never does.
        touched = {entry.log for number, entry in shards.items() if number not in self.shards}
        for name in touched | emptied | logs.keys() | set(removed_logs):
            self._routes.pop(name, None)
        self.nodes.update(nodes)
        self.logs.update(logs)
        self.shards.update(shards)
        return MapChange(
            shards=tuple(shards),
            removed_shards=removed_shards,
            nodes=tuple(nodes),
            removed_nodes=removed_nodes,
            logs=tuple(logs),
            removed_logs=removed_logs,
        )

    def _tell(self, change: MapChange) -> None:
        event, self._changed = self._changed, asyncio.Event()
        event.set()
        for callback in tuple(self._subscribers):
            callback(change)

    # -------------------------------------------------------------------------- passing on

    def _remember(self, update: shard_map_pb2.MapUpdate) -> None:
        if update.full:
            self._updates.clear()
            self._updates_since = update.version
            return
        self._updates.append(update)
        if len(self._updates) > UPDATES_KEPT_MAX:
            self._updates_since = self._updates.popleft().version

    def updates_since(self, version: int) -> list[shard_map_pb2.MapUpdate]:
        """The updates that bring a watcher with `version` up to date; empty if it is.

        `version` 0 means that it has nothing yet.
        """
        if version >= self.version:
            return []
        if version == 0 or version < self._updates_since:
            return [self.whole()]
        return [update for update in self._updates if update.version > version]

    def remembers(self, version: int) -> bool:
        """Whether `updates_since` gives a reader with `version` less than the whole map."""
        return version > 0 and version >= self._updates_since > 0

    def change_since(self, version: int) -> shard_map_pb2.MapUpdate | None:
        """What brings a reader with `version` up to date, as one update; None: only the whole map.

        Something that is gone is not told so: it may have come, or come back, in between.
        """
        if not self.remembers(version):
            return None
        change = shard_map_pb2.MapUpdate(
            cluster_id=self.cluster_id,
            version=self.version,
            next_shard=self.next_shard,
            skipped_shards=self._skipped,
        )
        for update in self._updates:
            if update.version <= version:
                continue
            if update.removed_logs or update.removed_nodes or update.removed_shards:
                return None
            change.nodes.extend(update.nodes)
            change.logs.extend(update.logs)
            change.shards.extend(update.shards)
        return change

    def whole(self, log: str = "") -> shard_map_pb2.MapUpdate:
        """The map as one full update; with `log`, only that log with its shards, and the nodes."""
        update, shards = self._whole_without_shards(log)
        update.shards.extend(map(encode_shard, shards))
        return update

    async def whole_in_slices(self, log: str = "") -> shard_map_pb2.MapUpdate:
        """As `whole`, as of the call; thousands of shards do not hold up the event loop."""
        update, shards = self._whole_without_shards(log)
        for begin in range(0, len(shards), SLICE_SHARDS_MAX):
            update.shards.extend(map(encode_shard, shards[begin : begin + SLICE_SHARDS_MAX]))
            await asyncio.sleep(0)
        return update

    def _whole_without_shards(self, log: str) -> tuple[shard_map_pb2.MapUpdate, list[Shard]]:
        logs = [entry for name, entry in self.logs.items() if not log or name == log]
        shards = [self.shards[shard] for entry in logs for shard in self.family_of(entry.name)]
        update = shard_map_pb2.MapUpdate(
            cluster_id=self.cluster_id,
            version=self.version,
            full=True,
            nodes=[encode_node(node) for node in self.nodes.values()],
            logs=[encode_log(entry) for entry in logs],
            next_shard=0 if log else self.next_shard,
            skipped_shards=() if log else self._skipped,
        )
        return update, shards

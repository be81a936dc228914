"""Which holder of a sealed segment is one too many, and may let it go: pure (protocol.md §8.4).

A segment comes to have more healthy holders than its log's `copies` when a node gets better whose
copies were made anew meanwhile, when the log's copies are made fewer, and when bytes are moved. The
copies of a node that is being drained for good are too many as soon as enough others are healthy.

- *Only what is settled.* Not while stores are wanted for the segment, nor of a halted shard.
- *Only what leaves enough*, by the rule of the command itself (`las.core.holders.kept_at_least`).
- *Who goes.* Who is drained; else who gives its copy in a move (`las.core.stored_balance`); else,
  of the healthy ones, whose rack or zone has most of them, else who stores most. One at a time of
  each segment. So of a move that nobody remembers any more the better placed copies stay.

A holder that is down keeps its place: it may be all that is left one day. One that is at risk, too.

Must not: look at a clock, or ask anybody (that is `las.daemon.surplus`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from las.core.holders import RELEASED_FEATURE_LEVEL, kept_at_least
from las.core.state import ClusterState, NodeState, ShardEntry
from peerd.core.ids import Epoch, NodeName, ReplicaId, ShardId
from peerd.core.shard_map import Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Surplus:
    """`holder` may let the segment go once enough of `others` say that they have it."""

    shard: ShardId
    epoch: Epoch
    holder: ReplicaId
    others: tuple[ReplicaId, ...] = field(default=())
    why: str


def surplus(
    state: ClusterState,
    shards: Iterable[ShardId] | None = None,
    *,
    stored_bytes: Mapping[NodeName, int] | None = None,
    givers: Mapping[tuple[ShardId, Epoch], ReplicaId] | None = None,
) -> Iterator[Surplus]:
    """Holders that are too many, by shard. `givers` are those of moves under way, by segment."""
    stored, gives = stored_bytes or {}, givers or {}
    for shard in sorted(state.shards if shards is None else shards):
        entry = state.shards.get(shard)
        if entry is None or entry.halted:
            continue
        for segment in entry.shard.sealed:
            if not segment.wanted_holders and len(segment.holders) > 1:
                giver = gives.get((entry.shard.shard, segment.epoch))
                found = _of(state, entry, segment, stored, giver)
                if found is not None:
                    yield found


def _of(
    state: ClusterState,
    entry: ShardEntry,
    segment: Segment,
    stored: Mapping[NodeName, int],
    giver: ReplicaId | None,
) -> Surplus | None:
    healthy = [each for each in segment.holders if state.is_healthy(each)]
    least = kept_at_least(state.logs[entry.shard.log], segment)
    leaving = [each for each in segment.holders if _leaves(state, each)]
    able = [
        each
        for each in (leaving or healthy)
        if len({state.nodes[other.peer].host for other in healthy if other != each}) >= least
        and state.nodes[each.peer].feature_level >= RELEASED_FEATURE_LEVEL
    ]
    if not able:
        return None

    def order(each: ReplicaId) -> tuple[bool, int, int, ReplicaId]:
        crowd = sum(_share(state, each, other) for other in healthy if other != each)
        return each != giver, -crowd, -stored.get(each.peer, 0), each

    holder = min(able, key=order)
    others = tuple(each for each in healthy if each != holder)
    why = f"{len(others)} others are healthy, {least} are needed"
    if holder in leaving:
        why = f"{holder.peer} is being drained; {why}"
    elif holder == giver:
        why = f"rebalance: others store less than {holder.peer}; {why}"
    return Surplus(
        shard=entry.shard.shard, epoch=segment.epoch, holder=holder, others=others, why=why
    )


def _leaves(state: ClusterState, holder: ReplicaId) -> bool:
    """Whether a holder's node is drained for good, and can be told so."""
    node = state.node_of(holder)
    if node is None or node.state is not NodeState.UP:
        return False
    return node.draining and not node.drain_until_ms


def _share(state: ClusterState, one: ReplicaId, other: ReplicaId) -> int:
    """How many places two healthy holders share: zone, and rack."""
    nodes = state.nodes[one.peer], state.nodes[other.peer]
    places = [(nodes[0].label(key), nodes[1].label(key)) for key in ("zone", "rack")]
    return sum(bool(here) and here == there for here, there in places)

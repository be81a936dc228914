"""The split of a shard (docs/protocol.md §4.3): prepared, committed with its children, or undone.

Why no record is lost or doubled, and none comes twice or in the wrong order:

- *One X.* The children are made by the very command that seals e at X and opens the closed segment.
  So no child exists while the parent may still take a batch, and nobody has another X
  (`child-begins-at-prepare`, `child-begins-at-begin`, `x-noted-at-prepare`).
- *A fence undoes what is only prepared.* The closed segment holds no batch, so recovery decides
  where e ends as ever, and what it opens is an ordinary segment (`split-kept-by-fence`).
- *Closed for good.* From the commit on every plan of the parent is closed, whoever composed it
  (`parent-reopens`).
- *The children's keys are the parent's*: their ranges tile its range, and they take its place in
  the log's list, so each key has one shard that takes it.

The names in brackets are mutants of the formal model.
"""

from dataclasses import replace

from las.core.state import (
    LOG_SHARDS_MAX,
    SHARDS_MAX,
    ClusterState,
    NodeState,
    ShardEntry,
)
from peerd.core.check import InvariantViolation
from peerd.core.ids import Epoch, Offset, ProcessId, ReplicaId, ShardId
from peerd.core.shard_map import Parent, Plan, Segment, Shard, Split


def split_error(shard: Shard, key_hash: int) -> str:
    """Why `shard` cannot be split at `key_hash`; empty if it can."""
    if shard.is_split:
        return f"shard {shard.shard} is split already"
    if not shard.key_hash_low < key_hash <= shard.key_hash_high:
        return (
            f"key hash {key_hash:#018x} does not cut the range of shard {shard.shard}, "
            f"{shard.key_hash_low:#018x} to {shard.key_hash_high:#018x}"
        )
    return ""


def room_error(state: ClusterState, shard: Shard) -> str:
    """Which bound leaves no room for the children; empty if none does."""
    if len(state.logs[shard.log].shards) >= LOG_SHARDS_MAX:
        return f"log {shard.log} has {LOG_SHARDS_MAX} shards, the bound"
    if len(state.shards) + 2 > SHARDS_MAX:
        return f"a cluster has at most {SHARDS_MAX} shards"
    return ""


def closed_as(shard: Shard, plan: Plan) -> Plan:
    """`plan` for an ordinary change of `shard`: closed exactly if the shard is split."""
    return replace(plan, closed=shard.is_split)


def undone(shard: Shard) -> Split | None:
    """The split of `shard` after its prepared segment came to nothing: a pending one is gone."""
    return shard.split if shard.is_split else None


def at(state: ClusterState, shard: Shard, end: Offset) -> Split | None:
    """The split of `shard` once its prepared segment opens at `end`: a pending one is committed."""
    if shard.split is None or shard.split.is_committed:
        return shard.split
    return replace(shard.split, end=end, children=(state.next_shard, ShardId(state.next_shard + 1)))


def committed(state: ClusterState, parent: ShardEntry) -> ClusterState:
    """`state` with `parent`, which `at` has just split, and with its children."""
    shard, split = parent.shard, parent.shard.split
    if split is None or split.end is None:
        raise InvariantViolation(f"shard {shard.shard} is not split yet")
    ranges = ((shard.key_hash_low, split.key_hash - 1), (split.key_hash, shard.key_hash_high))
    leaders = (shard.open.plan.primary, _second_leader(state, shard.open.plan))
    epoch = Epoch(parent.drawn + 1)
    entries = [
        ShardEntry(
            shard=Shard(
                shard=child,
                log=shard.log,
                key_hash_low=low,
                key_hash_high=high,
                open=Segment(
                    epoch=epoch,
                    plan=replace(shard.open.plan, primary=leader, closed=False),
                    begin=Offset(0),
                ),
                parent=Parent(shard=shard.shard, end=split.end),
            ),
            drawn=epoch,
        )
        for child, (low, high), leader in zip(split.children, ranges, leaders, strict=True)
    ]
    log = state.logs[shard.log]
    place = log.shards.index(shard.shard)
    shards = (*log.shards[:place], *split.children, *log.shards[place + 1 :])
    after = state.changed(logs=(replace(log, shards=shards),), shards=(parent, *entries))
    return replace(after, next_shard=ShardId(split.children[-1] + 1))


def _second_leader(state: ClusterState, plan: Plan) -> ProcessId:
    """Who leads the upper child: another voter that can, so that the load is parted at once."""

    def can(replica: ReplicaId) -> bool:
        node = state.nodes.get(replica.peer)
        return (
            node is not None
            and node.replica == replica
            and node.may_lead
            and node.state is NodeState.UP
            and not node.at_risk
            and not node.draining
        )

    for voter in plan.voters:
        if voter != plan.primary.replica and can(voter):
            return state.nodes[voter.peer].process
    return plan.primary

"""What should be changed, and why: a pure function of the committed state and the leader's view.

Invariants:
- *Protection never shrinks.* A new plan has at least the log's `acks` voters, or there is none.
- *Only a changed plan makes an action*, and only what needs a change is changed: what is healthy
  stays where it is. Planning again after the actions were carried out gives none.
- *A gone primary is recovered, everything else is planned* (docs/protocol.md §4): while the
  primary's process lives it alone knows what it acknowledged.
- Each action says in words why it is wanted; that text is what an operator reads.

Whether a node is at risk is judged elsewhere and committed; here it is a fact of the state.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from las.core.index import FleetIndex, indexed
from las.core.placement import FleetView, Health, Limits, Placement, Wish
from las.core.recovery import Recovered
from las.core.state import LOG_SHARDS_MAX, ClusterState, Log, NodeState, ShardEntry
from peerd.core.ids import NO_EPOCH, Epoch, NodeName, ReplicaId, ShardId
from peerd.core.shard_map import Plan, Segment

# limit: nodes among which the shards of one new log are spread; its creation must fit one command.
INITIAL_NODES_MAX = 512
# Copies of a log for which none are asked for, where so many hosts are up.
COPIES_DEFAULT = 3


class Urgency(IntEnum):
    """What goes first when not everything may go at once; lower is sooner."""

    PAUSED = 0
    STALLED = 1
    AT_RISK = 2
    DRAINING = 3
    SHORT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Recover:
    """The primary is gone, or a fence stands: docs/protocol.md §4.2."""

    shard: ShardId
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """A planned change of the open segment `epoch`: docs/protocol.md §4.1."""

    shard: ShardId
    epoch: Epoch
    plan: Plan
    why: str
    urgency: Urgency


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """Stores that shall fetch the sealed segment `epoch`, in place of those wanted now.

    `kept_tail`: fewer stores than `acks` have a kept tail, whose retries wait for it (§4.2); it
    goes before all others. `healthy` is the number of healthy holders: then the fewest go first.
    """

    shard: ShardId
    epoch: Epoch
    holders: tuple[ReplicaId, ...]
    why: str
    kept_tail: bool
    healthy: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """The shard needs a change, and too few nodes are left for one."""

    shard: ShardId
    why: str


Action = Recover | Prepare | Want | Shortage


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """A shard for which there is no room now: for its change, or for copies of its past.

    `order` says who goes first among those that lack the same; lower is sooner.
    """

    shard: ShardId
    copies: bool
    order: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What one round found: what to do now, the most urgent first, and what has to wait."""

    actions: list[Action]
    later: list[Later]


class _Round:
    """What one round of planning looks at."""

    def __init__(
        self,
        state: ClusterState,
        view: FleetView,
        limits: Limits,
        index: FleetIndex | None,
        placement: Placement | None = None,
    ) -> None:
        self.state = state
        self.view = view
        self.limits = limits
        self.index = indexed(state) if index is None else index
        self.placement = placement or Placement(state, view, limits, self.index)


def plan(
    state: ClusterState,
    view: FleetView,
    limits: Limits,
    *,
    index: FleetIndex | None = None,
    shards: Iterable[ShardId] | None = None,
    placement: Placement | None = None,
) -> list[Action]:
    """What should be done now, the most urgent first; nothing that is under way already.

    `index` is an index of `state`; it is built if there is none. `shards` restricts the look to
    shards that may need something. `placement` serves a planner that knows of every change, and
    tells it by `Placement.refresh`: then none is built.
    """
    wanted = state.shards if shards is None else shards
    return _planned(_Round(state, view, limits, index, placement), wanted).actions


def plan_round(
    state: ClusterState,
    view: FleetView,
    limits: Limits,
    *,
    index: FleetIndex,
    shards: Iterable[ShardId],
    placement: Placement,
) -> Planned:
    """What `plan` says for `shards`, and for which of them `limits` leave no room now."""
    return _planned(_Round(state, view, limits, index, placement), shards)


def _planned(seen: _Round, shards: Iterable[ShardId]) -> Planned:
    recoveries: list[Recover] = []
    needs: list[_Need] = []
    wants: list[Want] = []
    for shard in sorted(set(shards)):
        entry = seen.state.shards.get(shard)
        if entry is None or entry.halted:
            continue
        wants += _wants(seen, entry)
        found = _need(seen, entry)
        if isinstance(found, Recover):
            recoveries.append(found)
        elif found is not None:
            needs.append(found)
    wants.sort(key=lambda each: (*_worst_off(each.kept_tail, each.healthy), each.shard, each.epoch))
    later: list[Later] = []
    prepares, shortages = _prepares(seen, needs, later)
    fetches = _within(seen, wants, later)
    return Planned(actions=[*recoveries, *prepares, *fetches, *shortages], later=later)


# ---------------------------------------------------------------------------------- open segments
@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """An open segment that may need another plan, and why."""

    entry: ShardEntry
    troubles: tuple[str, ...]
    stalled: frozenset[ReplicaId]
    urgency: Urgency


def _need(seen: _Round, entry: ShardEntry) -> Recover | _Need | None:
    """What is wrong with the open segment of one shard."""
    shard = entry.shard
    if shard.fence != NO_EPOCH:
        return Recover(shard=shard.shard, why=f"fence {shard.fence} stands")
    if why := primary_gone(seen.state, entry):
        return Recover(shard=shard.shard, why=why)
    if shard.prepared is not None:
        return None
    now = shard.open.plan
    stalled = frozenset(each for each in now.voters if (shard.shard, each) in seen.view.stalled)
    if now.primary.peer in seen.view.slow:
        stalled |= {now.primary.replica}
    troubles = _troubles(seen, now, stalled)
    log = seen.state.logs[shard.log]
    if not troubles and (len(now.voters), now.acks) == (log.copies, log.acks):
        return None
    urgency = _urgency(seen, now, stalled)
    return _Need(entry=entry, troubles=tuple(troubles), stalled=stalled, urgency=urgency)


def _prepares(
    seen: _Round, needs: list[_Need], later: list[Later]
) -> tuple[list[Prepare], list[Shortage]]:
    """Plans for the most urgent needs, as many as may be under way; the others go to `later`."""
    room = seen.limits.changes_max - len(seen.index.unsettled)
    prepares: list[Prepare] = []
    shortages: list[Shortage] = []
    for need in sorted(needs, key=lambda each: (each.urgency, each.entry.shard.shard)):
        waits = seen.limits.yielding and need.urgency is not Urgency.PAUSED
        if waits or len(prepares) >= room:
            order = (need.urgency,)
            later.append(Later(shard=need.entry.shard.shard, copies=False, order=order))
            continue
        found = _answer(seen, need)
        if isinstance(found, Prepare):
            prepares.append(found)
        elif found is not None:
            shortages.append(found)
    return prepares, shortages


def _answer(seen: _Round, need: _Need) -> Prepare | Shortage | None:
    """The plan that answers a need; None if there is none better than the one it has."""
    shard = need.entry.shard
    now, log = shard.open.plan, seen.state.logs[shard.log]
    wish = Wish(
        log=log,
        kept=_kept(seen, now),
        shunned=need.stalled,
        primary=now.primary,
        heirs=frozenset(now.voters),
        closed=shard.is_split,
        bytes_per_s=seen.placement.rate(shard.shard),
    )
    composed = seen.placement.compose(wish)
    if composed is None:
        told = _list(need.troubles)
        why = f"{told}; fewer than {log.acks} nodes could vote, or none of them may lead"
        return Shortage(shard=shard.shard, why=why)
    same_voters = set(composed.voters) == set(now.voters)
    if composed.primary == now.primary and same_voters and composed.acks == now.acks:
        return None
    seen.placement.commit(composed, now, bytes_per_s=wish.bytes_per_s)
    return Prepare(
        shard=shard.shard,
        epoch=shard.open.epoch,
        plan=composed,
        why=_explain(need.troubles, now, composed),
        urgency=need.urgency,
    )


def primary_gone(state: ClusterState, entry: ShardEntry) -> str:
    """Why the primary process of the open segment cannot go on; empty if nothing is known."""
    primary = entry.shard.open.plan.primary
    node = state.nodes.get(primary.peer)
    if node is None or node.store != primary.store:
        return f"{primary.peer} has another store"
    if node.boot != primary.boot:
        return f"{primary.peer} has restarted"
    if node.state is NodeState.FAILED:
        return f"the storage of {primary.peer} failed"
    return f"{primary.peer} is down" if node.state is NodeState.DOWN else ""


def _troubles(seen: _Round, now: Plan, stalled: frozenset[ReplicaId]) -> list[str]:
    """What is wrong with the voters and the primary, in words."""
    found = []
    for voter in now.voters:
        health = seen.placement.health(voter)
        if health is Health.GONE:
            found.append(f"{voter.peer} is gone")
        elif health is Health.ENDANGERED:
            at_risk = seen.state.nodes[voter.peer].at_risk
            found.append(f"{voter.peer} is {'at risk' if at_risk else 'being drained'}")
        elif voter in stalled:
            leads = voter == now.primary.replica and voter.peer in seen.view.slow
            found.append(f"{voter.peer} stalls{' as primary' if leads else ''}")
    if now.primary.replica not in now.voters and not seen.placement.mirror(now.primary, now.voters):
        found.append(f"{now.primary.peer} leads without a vote")
    return found


def _kept(seen: _Round, now: Plan) -> tuple[ReplicaId, ...]:
    """Replicas of a plan, the primary first, so that it is the last to be left out."""
    first = now.primary.replica
    alive = [
        each
        for each in (*now.voters, *now.non_voters)
        if seen.placement.health(each) is not Health.GONE
    ]
    return tuple(sorted(alive, key=lambda each: each != first))


def _urgency(seen: _Round, now: Plan, stalled: frozenset[ReplicaId]) -> Urgency:
    able = [
        each
        for each in now.voters
        if seen.placement.health(each) is not Health.GONE and each not in stalled
    ]
    if len(able) < now.acks:
        return Urgency.PAUSED
    if stalled:
        return Urgency.STALLED
    nodes = [seen.state.nodes[each.peer] for each in able]
    if any(node.at_risk for node in nodes):
        return Urgency.AT_RISK
    return Urgency.DRAINING if any(node.draining for node in nodes) else Urgency.SHORT


def _explain(troubles: Iterable[str], before: Plan, after: Plan) -> str:
    told = _list(troubles) or "too few copies"
    if not troubles and (after.acks != before.acks or len(after.voters) < len(before.voters)):
        told = "its log's copies or acks were changed"
    joined = [each.peer for each in after.voters if each not in before.voters]
    stays = after.primary.replica
    left = [each.peer for each in before.voters if each not in after.voters and each != stays]
    parts = [f"{_list(joined)} joins" if joined else "", f"{_list(left)} leaves" if left else ""]
    if after.primary.replica not in after.voters:
        parts.append(f"{after.primary.peer} goes on leading without a vote")
    if after.primary != before.primary:
        parts.append(f"{after.primary.peer} leads in place of {before.primary.peer}")
    if after.acks != before.acks:
        parts.append(f"{after.acks} acks in place of {before.acks}")
    return f"{told}: {', '.join(part for part in parts if part)}"


def _list(words: Iterable[str]) -> str:
    return " and ".join(words)


# ---------------------------------------------------------------------------------- recovery
def recovery_plan(
    state: ClusterState,
    placement: Placement,
    *,
    shard: ShardId,
    recovered: Recovered,
    answered: frozenset[ReplicaId],
) -> Plan | None:
    """The plan of the segment that a fence opens; None if too few nodes could vote.

    Stores that have what was recovered come first, then others that answered. Who did not answer
    may well be down, whatever its node's state says: it votes only if too few others can.
    `placement` may serve a whole wave of recoveries, and spreads them.
    """
    entry = state.shards[shard].shard
    last = entry.open.plan if entry.prepared is None else entry.prepared.plan
    known = {*last.replicas, *entry.open.plan.replicas, *answered}
    silent = frozenset(known - answered)
    # The order of the last plan decides between equals, so that a recovery moves little.
    rank = {each: number for number, each in enumerate(last.replicas)}
    order = sorted(
        (each for each in known if each.peer in state.nodes),
        key=lambda each: (
            each not in recovered.sources,
            each not in answered,
            rank.get(each, len(rank)),
            each,
        ),
    )
    wish = Wish(
        log=state.logs[entry.log],
        kept=tuple(order),
        shunned=silent,
        heirs=recovered.sources,
        bytes_per_s=placement.rate(entry.shard),
    )
    composed = placement.compose(wish)
    if composed is not None:
        placement.commit(composed, entry.open.plan, bytes_per_s=wish.bytes_per_s)
    return composed


# ---------------------------------------------------------------------------------- the past
def _wants(seen: _Round, entry: ShardEntry) -> list[Want]:
    """Copies that the sealed segments of one shard lack, and wishes that are of no use any more."""
    copies, placement = seen.state.logs[entry.shard.log].copies, seen.placement
    found = []
    for segment in entry.shard.sealed:
        healthy = [each for each in segment.holders if placement.health(each) is Health.HEALTHY]
        wanted = [
            each for each in segment.wanted_holders if placement.health(each) is Health.HEALTHY
        ]
        lacking = copies - len(healthy) - len(wanted)
        if lacking > 0:
            lacking -= _awaited(seen, segment)
        if len(healthy) >= copies:
            # What the balance of bytes wants is one more than is needed, until another lets go.
            key = entry.shard.shard, segment.epoch
            wanted = [each for each in wanted if (*key, each) in seen.view.moving]
        elif lacking > 0:
            wanted = _choose(seen, entry, segment, wanted, lacking)
        if tuple(wanted) != segment.wanted_holders:
            why = f"{len(healthy)} of {copies} healthy holders"
            found.append(
                Want(
                    shard=entry.shard.shard,
                    epoch=segment.epoch,
                    holders=tuple(wanted),
                    why=why,
                    kept_tail=_lacks_tail(placement, segment),
                    healthy=len(healthy),
                )
            )
    return found


def _worst_off(kept_tail: bool, healthy: int) -> tuple[int, int]:
    """Who is copied first; smaller is sooner. The copier has the same order for what it is told to
    copy (`peerd.daemon.copier`).
    """
    return (not kept_tail, healthy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacking:
    """A sealed segment with fewer healthy holders than its log's `copies`, and who copies it."""

    shard: ShardId
    epoch: Epoch
    healthy: int
    copies: int
    kept_tail: bool
    wanted: tuple[NodeName, ...]


def lacking_copies(
    state: ClusterState, placement: Placement, node: NodeName, shards: Iterable[ShardId]
) -> list[Lacking]:
    """What `node` holds of `shards` and too few healthy nodes do, in the order of copying."""
    found = []
    for shard in shards:
        entry = state.shards[shard].shard
        copies = state.logs[entry.log].copies
        for segment in entry.sealed:
            healthy = sum(placement.health(each) is Health.HEALTHY for each in segment.holders)
            if healthy < copies and any(each.peer == node for each in segment.holders):
                found.append(
                    Lacking(
                        shard=shard,
                        epoch=segment.epoch,
                        healthy=healthy,
                        copies=copies,
                        kept_tail=_lacks_tail(placement, segment),
                        wanted=tuple(each.peer for each in segment.wanted_holders),
                    )
                )
    return sorted(
        found, key=lambda each: (*_worst_off(each.kept_tail, each.healthy), each.shard, each.epoch)
    )


def _awaited(seen: _Round, segment: Segment) -> int:
    """How many gone holders may still come back with their copies (docs/protocol.md §8).

    Zero while a single holder is left, or fewer than `acks` hold a kept tail: that is not left to
    luck.
    """
    if len(_alive(seen.placement, segment)) <= 1 or _lacks_tail(seen.placement, segment):
        return 0
    awaited = 0
    for each in segment.holders:
        node = seen.state.nodes.get(each.peer)
        if node is None or node.store != each.store or node.state is not NodeState.DOWN:
            continue
        since = seen.view.down_since.get(each.peer)
        awaited += since is not None and seen.view.now - since < seen.limits.repair_delay_ms
    return awaited


def _alive(placement: Placement, segment: Segment) -> list[ReplicaId]:
    """Holders from which a copy can be fetched."""
    return [each for each in segment.holders if placement.health(each) is not Health.GONE]


def _lacks_tail(placement: Placement, segment: Segment) -> bool:
    """Whether a kept tail is on fewer live stores than answer a retry."""
    has_tail = (segment.known_commit or 0) < (segment.end or 0)
    return has_tail and len(_alive(placement, segment)) < segment.plan.acks


def _choose(
    seen: _Round, entry: ShardEntry, segment: Segment, wanted: list[ReplicaId], lacking: int
) -> list[ReplicaId]:
    """New holders: the voters of the open segment first, then whoever is used least.

    A segment of which nobody is known to hold all is wanted from its own replicas: `acks` of them
    had all that was acknowledged, and who has it whole says so without a fetch.
    """
    placement, limits = seen.placement, seen.limits
    chosen = list(wanted)
    alive = _alive(placement, segment)
    first = () if alive else segment.plan.replicas
    for each in (*first, *entry.shard.open.plan.voters):
        if lacking <= 0 or len(chosen) >= limits.copies_per_segment_max:
            return chosen
        health = placement.health(each)
        usable = health is Health.HEALTHY or (each in first and health is Health.ENDANGERED)
        if not usable or each in segment.holders:
            continue
        if placement.host(each) not in {placement.host(other) for other in (*alive, *chosen)}:
            chosen.append(each)
            placement.use_for_copy(each)
            lacking -= 1
    while alive and lacking > 0 and len(chosen) < limits.copies_per_segment_max:
        blocked = {placement.host(other) for other in (*alive, *chosen)}
        added = placement.pick([*alive, *chosen], blocked, segment.holders)
        if added is None:
            break
        chosen.append(added)
        placement.use_for_copy(added)
        lacking -= 1
    return chosen


def _within(seen: _Round, wants: list[Want], later: list[Later]) -> list[Want]:
    """The wants that fit beside the fetches under way, and those that only take back; the others
    go to `later`.
    """
    room = seen.limits.copies_max - seen.index.fetching
    kept = []
    for want in wants:
        sealed = seen.state.shards[want.shard].shard.sealed
        before = next(each for each in sealed if each.epoch == want.epoch).wanted_holders
        more = len(want.holders) - len(before)
        waits = seen.limits.yielding and not want.kept_tail
        if more <= 0 or (more <= room and not waits):
            kept.append(want)
            room -= more
        else:
            order = _worst_off(want.kept_tail, want.healthy)
            later.append(Later(shard=want.shard, copies=True, order=order))
    return kept


# ---------------------------------------------------------------------------------- new logs
@dataclass(frozen=True, slots=True, kw_only=True)
class InitialPlacement:
    """Nodes and rows as `CreateLog` takes them: the first of a row is the primary."""

    nodes: tuple[NodeName, ...]
    rows: tuple[tuple[int, ...], ...]


def resolve_policy(state: ClusterState, copies: int, acks: int) -> tuple[int, int] | str:
    """Copies and acks of a new log, 0 meaning the default; a text says why there are none.

    Three copies where three hosts are up, else two, else refused: one copy must be asked for.
    """
    hosts = {node.host for node in state.nodes.values() if node.state is NodeState.UP}
    if copies == 0:
        copies = min(COPIES_DEFAULT, len(hosts))
        if copies < 2:
            return f"{len(hosts)} hosts are up: a log needs 2, or copies = 1 must be asked for"
    if acks == 0:
        acks = min(2, copies)
    if copies > len(hosts):
        return f"{copies} copies need as many hosts; {len(hosts)} are up"
    if acks > copies:
        return f"acks = {acks} is more than copies = {copies}"
    return copies, acks


def initial_plans(
    state: ClusterState,
    view: FleetView,
    limits: Limits,
    *,
    shards: int,
    copies: int,
    index: FleetIndex | None = None,
) -> InitialPlacement | str:
    """Where the shards of a new log go, spread over the fleet; a text says why they cannot."""
    if not 1 <= shards <= LOG_SHARDS_MAX:
        return f"a log has 1 to {LOG_SHARDS_MAX} shards"
    placement = _Round(state, view, limits, index).placement
    # All copies vote in the first segment, so a plan must reach them all, endangered ones too.
    log = Log(name="", copies=copies, acks=copies, shards=())
    nodes: dict[NodeName, int] = {}
    rows = []
    for _ in range(shards):
        composed = placement.compose(Wish(log=log, kept=()))
        if composed is None:
            return f"fewer than {copies} hosts with room are up, or none of them may lead"
        placement.commit(composed)
        first = composed.primary.replica
        ordered = sorted(composed.voters, key=lambda each: each != first)
        rows.append(tuple(nodes.setdefault(each.peer, len(nodes)) for each in ordered))
        if len(nodes) > INITIAL_NODES_MAX:
            return f"the shards would lie on more than {INITIAL_NODES_MAX} nodes: create fewer"
    return InitialPlacement(nodes=tuple(nodes), rows=tuple(rows))


def switch_plan(
    state: ClusterState,
    view: FleetView,
    limits: Limits,
    shard: ShardId,
    node: NodeName,
    *,
    index: FleetIndex | None = None,
) -> Plan | str:
    """The plan that makes `node` the primary of a shard on an operator's word; a text if it cannot.

    It joins as a voter if it is none; then the voter that is no primary and used most leaves.
    """
    entry = state.shards.get(shard)
    target = state.nodes.get(node)
    if entry is None:
        return f"there is no shard {shard}"
    if target is None:
        return f"no node is called {node}"
    if target.state is not NodeState.UP:
        return f"{node} is not up"
    if not target.may_lead:
        return f"{node} stores copies only and is never primary"
    seen = _Round(state, view, limits, index)
    now = entry.shard.open.plan
    if now.primary == target.process:
        return f"{node} is the primary already"
    kept = (target.replica, *_kept(seen, now))
    wish = Wish(
        log=state.logs[entry.shard.log],
        kept=tuple(dict.fromkeys(kept)),
        primary=target.process,
    )
    composed = seen.placement.compose(wish)
    if composed is None or composed.primary != target.process:
        return f"{node} is at risk or being drained, or its host has a copy already"
    return composed

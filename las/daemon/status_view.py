"""The fleet at a glance: counts, nodes, and what is wrong in words, worst first.

Invariants:
- No warning means that nothing is wrong: every shard takes appends, every sealed segment has its
  copies on healthy nodes, every node and LAS member is heard, the forecast answers.
- Each warning names what, and what to do next, in one line.

What follows from the committed map alone is kept up to date from its changes (`MapWatch`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from las.core import planner, protection
from las.core.index import FleetIndex
from las.core.levels import level_known, older_nodes
from las.core.state import HELD, ClusterState, Node, NodeState, ShardEntry
from las.daemon.access_view import access_words
from las.daemon.group import Group
from las.daemon.map_feed import encode_las_node
from las.daemon.model import Model
from las.daemon.scraped import ScrapedTelemetry
from las.daemon.term import Term, now_ms
from las.v1 import fleet_pb2
from peerd.core.ids import NO_EPOCH, NodeName, ReplicaId, ShardId
from peerd.core.shard_map import Shard, chain_behind, count_of, entries_of, newest_of

# limit: names listed in one warning; the rest is counted.
NAMES_LISTED_MAX = 5
TIER_FAILS_MS = 60_000
"""So long an object store may be away before it is told; a shorter while makes no difference."""
TIER_LAGS_MS = 3_600_000
"""So old is what waits for a tier that works, and is not fast enough."""
NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFacts:
    """What is wrong with one shard, called `log/number`; a reason is empty if that is not wrong."""

    name: str
    paused: str
    halted: str
    is_thin: bool
    short: int
    unreadable: int
    alone: tuple["Alone", ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """A node that alone, of those that are up, has a segment. `records` is None of the open one.

    `others` have it, too, and are down.
    """

    node: NodeName
    records: int | None
    others: tuple[NodeName, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapFacts:
    """What follows from one version of the map.

    Attributes:
        version: of the map.
        troubled: shards with something wrong, by id.
        shielded, expendable, mirrored: nodes at risk or being drained of which that is true.
    """

    version: int
    troubled: Mapping[ShardId, ShardFacts]
    shielded: frozenset[NodeName]
    expendable: frozenset[NodeName]
    mirrored: frozenset[NodeName]

    @property
    def paused(self) -> tuple[tuple[str, str], ...]:
        """Shards that take no appends, with the reason."""
        return tuple((each.name, each.paused) for each in self.troubled.values() if each.paused)

    @property
    def halted(self) -> tuple[tuple[str, str], ...]:
        """Shards that the LAS does not change until a person has looked, with the reason."""
        return tuple((each.name, each.halted) for each in self.troubled.values() if each.halted)

    @property
    def thin(self) -> tuple[str, ...]:
        """Shards whose open segment has fewer healthy voters than its log's copies."""
        return tuple(each.name for each in self.troubled.values() if each.is_thin)

    @property
    def worst(self) -> fleet_pb2.LoneNode:
        """The node whose death would put most shards out of reach; no name if none would."""
        told: dict[NodeName, fleet_pb2.LoneNode] = {}
        for facts in self.troubled.values():
            for name in {each.node for each in facts.alone}:
                told.setdefault(name, fleet_pb2.LoneNode(node=name)).shards += 1
            for each in facts.alone:
                told[each.node].sealed_records += each.records or 0
                told[each.node].open_shards += each.records is None
        worst_first = sorted(told.values(), key=lambda each: (-each.shards, each.node))
        return worst_first[0] if worst_first else fleet_pb2.LoneNode()

    def exposed_ms(self, node: NodeName, silent_ms: Callable[[NodeName], int]) -> int | None:
        """For how long that node has been the last that is up with what it has.

        What was acknowledged in that time is nowhere else; what is older is on stores that are
        down, too. By the heartbeats of the others: since the last of them was heard. None where
        the map names no other store. `silent_ms` says how long ago a node was heard.
        """
        told = [
            min(silent_ms(other) for other in each.others)
            for facts in self.troubled.values()
            for each in facts.alone
            if each.node == node and each.others
        ]
        return max(told, default=None)

    @property
    def short(self) -> int:
        """Sealed segments with fewer healthy holders than their log's copies."""
        return sum(each.short for each in self.troubled.values())

    @property
    def unreadable(self) -> int:
        """Sealed segments with no holder that is up."""
        return sum(each.unreadable for each in self.troubled.values())


class StatusView:
    """Builds answers to `GetStatus`. Used on the event loop."""

    def __init__(self, group: Group, model: Model) -> None:
        self._group = group
        self._model = model
        self._watch = MapWatch()

    def facts(self) -> MapFacts:
        """What follows from the newest map."""
        return self._watch.update(*self._group.indexed())

    def response(self, term: Term | None) -> fleet_pb2.GetStatusResponse:
        """The answer of this node, which leads in `term` or knows no leader."""
        state, index = self._group.indexed()
        facts = self.facts()
        members_up = set(self._group.status.members_up)
        return fleet_pb2.GetStatusResponse(
            cluster_id=state.cluster_id,
            group_id="+".join(filter(None, (state.cluster_id, state.recovery.id))),
            las_leader=self._group.leader,
            las=[
                fleet_pb2.LasNode(name=name, address=address, up=name in members_up)
                for name, address in sorted(self._group.addresses.items())
            ],
            nodes=[
                _node_status(state.nodes[name], index, facts, term) for name in sorted(state.nodes)
            ],
            logs=len(state.logs),
            shards=len(state.shards),
            shards_paused=len(facts.paused),
            segments_short=facts.short,
            copying=index.fetching,
            warnings=self.warnings(term),
            map_version=state.version,
            rebalance="" if term is None else term.rebalancer.told,
            worst=self.worst(term),
            access=access_words(state, term),
            level_used=state.command_level,
            level_known=0 if term is None else self.level_known(),
        )

    def worst(self, term: Term | None) -> fleet_pb2.LoneNode:
        """The node whose death would put most out of reach, and since when it is alone with it."""
        facts = self.facts()
        worst = facts.worst
        if worst.node and term is not None:
            now = now_ms()
            exposed_ms = facts.exposed_ms(
                NodeName(worst.node), lambda node: term.vitals.silent_ms(node, now)
            )
            if exposed_ms is not None:
                worst.exposed_ms = exposed_ms
        return worst

    def level_known(self) -> int:
        """What all LAS nodes and all peers know, as far as this node has heard."""
        state = self._group.state
        members = max(self._group.status.command_level, state.command_level)
        return max(level_known(state, members), state.command_level)

    def not_final(self) -> str:
        """Why what this node's version knows cannot be used yet; empty if it can."""
        state, level = self._group.state, self._group.machine.level
        if max(self._group.status.command_level, state.command_level) < level:
            return (
                f"not all LAS nodes have said that they know level {level}: upgrade and start "
                "them all"
            )
        if old := older_nodes(state, level):
            return (
                f"{_names(old)} registered last with a version that does not know level {level}: "
                "upgrade and start them, or `peerctl node remove` who is gone for good"
            )
        return ""

    # ------------------------------------------------------------------ what is wrong

    def warnings(self, term: Term | None) -> list[str]:
        """One line each, worst first."""
        state, _ = self._group.indexed()
        facts = self.facts()
        return [
            *self._about_leader(),
            *_about_recovery(state, facts),
            *_about_shards(facts),
            *_about_shortages(state, term),
            *_about_refused(term),
            *_about_nodes(state, term),
            *self._about_members(),
            *_about_forecast(state, facts, term),
            *self._about_model(term),
            *_about_copies(state, facts),
            *_about_tier(state, term),
        ]

    def _about_leader(self) -> Iterator[str]:
        if not self._group.leader:
            up = sorted(self._group.status.members_up)
            yield (
                f"the LAS has no leader that {self._group.name} knows: appends and reads go on, "
                f"every change of the map waits; it hears {_names(up)} of "
                f"{len(self._group.addresses)} LAS nodes, start the others"
            )

    def _about_members(self) -> Iterator[str]:
        up = set(self._group.status.members_up)
        missing = sorted(self._group.addresses.keys() - up)
        if missing and self._group.leader:
            spare = len(up) - (len(self._group.addresses) // 2 + 1)
            after = "no further loss can be borne" if spare <= 0 else "one more can be borne"
            yield (
                f"LAS {_names(missing)} cannot be reached from {self._group.name} "
                f"({len(up)} of {len(self._group.addresses)} are up, {after}): start it, or "
                "`las rejoin` if its data is lost"
            )

    def _about_model(self, term: Term | None) -> Iterator[str]:
        if self._model.note:
            yield self._model.note
        if term is not None and term.scraped is not None:
            yield from _about_scrapes(term.scraped)
        elif term is not None and term.forecaster.unreadable:
            names = _names(sorted(term.forecaster.unreadable))
            yield f"no forecast for {names}: another telemetry schema, update the older software"


class MapWatch:
    """Keeps the facts up to date from what changed: 100,000 shards take a second to go through."""

    def __init__(self) -> None:
        self._version = -1
        self._troubled: dict[ShardId, ShardFacts] = {}
        self._facts: MapFacts | None = None

    def update(self, state: ClusterState, index: FleetIndex) -> MapFacts:
        """The facts of `state`, of which `index` is an index."""
        if self._facts is not None and self._version == state.version:
            return self._facts
        change = state.changed_ids(self._version)
        if change is None:
            self._troubled.clear()
            affected = set(state.shards)
        else:
            affected = set(change.shards)
            for node in change.nodes:
                affected.update(index.shards_of(node))
        for shard in affected:
            entry = state.shards.get(shard)
            facts = None if entry is None else shard_facts(state, entry)
            if facts is None:
                self._troubled.pop(shard, None)
            else:
                self._troubled[shard] = facts
        self._version = state.version
        endangered = [name for name, node in state.nodes.items() if node.at_risk or node.draining]
        shielded = [name for name in endangered if protection.is_shielded(state, name, index)]
        self._facts = MapFacts(
            version=state.version,
            troubled=dict(sorted(self._troubled.items())),
            shielded=frozenset(shielded),
            mirrored=frozenset(
                name for name in endangered if protection.is_mirrored(state, name, index)
            ),
            expendable=frozenset(
                name for name in shielded if protection.is_expendable(state, name, index)
            ),
        )
        return self._facts


def shard_facts(state: ClusterState, entry: ShardEntry) -> ShardFacts | None:
    """What is wrong with one shard; None if nothing is."""
    copies = state.logs[entry.shard.log].copies
    paused = why_paused(state, entry)
    healthy = sum(state.is_healthy(voter) for voter in entry.shard.open.plan.voters)
    short = unreadable = 0
    # Of what lies below trimmed-to no store keeps anything: it is in the tier, or trimmed.
    behind = chain_behind(entry.shard.sealed, entry.shard.trimmed_to)
    for shared in entries_of(behind):
        segment, count = newest_of(shared), count_of(shared)
        if (segment.end or 0) <= entry.shard.trimmed_to:
            continue
        short += count * (sum(state.is_healthy(holder) for holder in segment.holders) < copies)
        unreadable += count * (not any(state.is_up(holder) for holder in segment.holders))
    if not (paused or entry.halted or short or unreadable or healthy < copies):
        return None
    return ShardFacts(
        name=shard_name(entry),
        paused=paused,
        halted=entry.halted,
        is_thin=healthy < copies,
        short=short,
        unreadable=unreadable,
        alone=tuple(_alone(state, entry)) if copies > 1 else (),
    )


def _alone(state: ClusterState, entry: ShardEntry) -> Iterator[Alone]:
    """Segments of which one node that is up has the only copy in reach, the tier's included."""
    shard = entry.shard
    voters = [voter.peer for voter in shard.open.plan.voters if state.is_up(voter)]
    if len(voters) == 1:
        others = _others(shard.open.plan.voters, voters[0])
        yield Alone(node=voters[0], records=None, others=others)
    for segment in shard.sealed:
        holders = [holder.peer for holder in segment.holders if state.is_up(holder)]
        begin, end = segment.begin or 0, segment.end or 0
        if shard.tier is not None and shard.tier.begin <= begin:
            begin = max(begin, shard.tier.end)
        if len(holders) == 1 and max(begin, shard.trimmed_to) < end:
            records = end - max(begin, shard.trimmed_to)
            others = _others(segment.holders, holders[0])
            yield Alone(node=holders[0], records=records, others=others)


def _others(replicas: Iterable[ReplicaId], name: NodeName) -> tuple[NodeName, ...]:
    return tuple(sorted({replica.peer for replica in replicas} - {name}))


def shard_name(entry: ShardEntry) -> str:
    """`orders/3`: a shard by its log and its id, as every command takes and shows it."""
    return f"{entry.shard.log}/{entry.shard.shard}"


def why_paused(state: ClusterState, entry: ShardEntry) -> str:
    """Why the open segment takes no appends, as far as the map tells; empty if it does."""
    if entry.shard.fence != NO_EPOCH:
        return _why_fenced(state, entry.shard)
    if gone := planner.primary_gone(state, entry):
        return gone
    plan = entry.shard.open.plan
    up = sum(state.is_up(voter) for voter in plan.voters)
    return f"{up} of its {len(plan.voters)} voters are up, {plan.acks} needed" * (up < plan.acks)


def _why_fenced(state: ClusterState, shard: Shard) -> str:
    """A fence ends when all but acks - 1 voters have answered (docs/protocol.md §4.2)."""
    plan = shard.open.plan
    if plan.is_nobodys:
        return "it was restored, and waits for enough peers of the new cluster"
    silent = sorted(voter.peer for voter in plan.voters if not state.is_up(voter))
    if shard.is_split or len(silent) < plan.acks:
        return "its primary is gone and its end is being found out"
    return (
        f"what {_names(silent)} has is needed to find out where it ended: start one of them, or, "
        "if none will ever come back, `peerctl recover shard`"
    )


def _node_status(
    node: Node, index: FleetIndex, facts: MapFacts, term: Term | None
) -> fleet_pb2.NodeStatus:
    name = node.name
    heard = term.vitals.of(name) if term is not None else None
    outlook = term.forecaster.latest.nodes.get(name) if term is not None else None
    return fleet_pb2.NodeStatus(
        node=encode_las_node(node),
        primaries=index.leading[name],
        voting=index.voting[name],
        holding=index.holding[node.replica],
        silent_ms=term.vitals.silent_ms(name, now_ms()) if term is not None else 0,
        p_10_min=outlook.p_10_min if outlook is not None and outlook.known else NAN,
        shielded=name in facts.shielded,
        expendable=name in facts.expendable,
        mirrored=name in facts.mirrored,
        free_bytes=heard.free_bytes if heard is not None else 0,
        stored_bytes=heard.stored_bytes if heard is not None else 0,
        damaged_batches=heard.damaged_batches if heard is not None else 0,
        repaired_batches=heard.repaired_batches if heard is not None else 0,
        scrub_age_s=heard.scrub_age_s if heard is not None else None,
        drain_ends_in_ms=_drain_ends_in_ms(node, term),
        copying=heard.copying if heard is not None and node.state is NodeState.UP else None,
    )


def _drain_ends_in_ms(node: Node, term: Term | None) -> int | None:
    if term is None or not node.draining or not node.drain_until_ms:
        return None
    return max(0, node.drain_until_ms - term.clock.clock_ms)


# ---------------------------------------------------------------------------------- in words
def _about_recovery(state: ClusterState, facts: MapFacts) -> Iterator[str]:
    """What a group that began from older data does not know (docs/protocol.md §4.6)."""
    held = [name for name, why in facts.halted if why == HELD]
    if held:
        unheard = _names(state.recovery.unheard) or "their primaries"
        yield (
            f"{_count(len(held), 'shard')} held ({_names(held)}) since the LAS began from older "
            f"data: appends go on, nothing is moved until it hears {unheard}; start them, or "
            "`peerctl recover shard` if one will never come back"
        )
    strays: dict[ShardId, list[str]] = {}
    for shard, node in state.recovery.strays:
        strays.setdefault(shard, []).append(node)
    for shard, nodes in list(strays.items())[:NAMES_LISTED_MAX]:
        yield (
            f"shard {shard} is on {_names(nodes)} and on no map: a commit that is lost created it; "
            "its records are kept"
        )
    if len(strays) > NAMES_LISTED_MAX:
        yield f"{len(strays) - NAMES_LISTED_MAX} more shards are on no map"


def _about_shards(facts: MapFacts) -> Iterator[str]:
    halted = [(name, why) for name, why in facts.halted if why != HELD]
    for name, why in halted[:NAMES_LISTED_MAX]:
        yield f"shard {name} is halted, the LAS does not change it until a person has looked: {why}"
    if len(halted) > NAMES_LISTED_MAX:
        yield f"{len(halted) - NAMES_LISTED_MAX} more shards are halted"
    for why, count in Counter(why for _, why in facts.paused).most_common():
        names = _names([name for name, reason in facts.paused if reason == why])
        yield f"{_count(count, 'shard')} paused ({names}), appends wait: {why}"
    if facts.unreadable:
        yield (
            f"{_count(facts.unreadable, 'sealed segment')} cannot be read: no node that has a copy "
            "is up; bring one of them back"
        )


def _about_shortages(state: ClusterState, term: Term | None) -> Iterator[str]:
    """Changes that cannot be made; the same reason is told once."""
    shortages = term.executor.shortages if term is not None else {}
    by_reason: dict[str, list[str]] = {}
    for shard, why in sorted(shortages.items()):
        if (entry := state.shards.get(shard)) is not None:
            by_reason.setdefault(why, []).append(shard_name(entry))
    for why, names in by_reason.items():
        yield f"no better place for {_names(names)}: {why}; add peers, or bring some back"


def _about_nodes(state: ClusterState, term: Term | None) -> Iterator[str]:
    for name in sorted(state.nodes):
        node = state.nodes[name]
        if node.state is NodeState.FAILED:
            yield f"the storage of {name} failed: run `peerd verify` on its data, then start it"
        elif node.state is NodeState.DOWN:
            silent_s = 0 if term is None else term.vitals.silent_ms(name, now_ms()) // 1000
            yield f"{name} is down (silent for {silent_s} s): start it, or look at its host"
        elif (damaged := _damaged(name, term)) > 0:
            yield (
                f"{_count(damaged, 'stored batch', 'stored batches')} damaged on {name}: no holder "
                "could give it the bytes yet; bring the other holders back, and look at its disk"
            )
    if not state.nodes and term is not None:
        yield "no peer has registered yet: start peers with this LAS in their `las` setting"


def _about_refused(term: Term | None) -> Iterator[str]:
    """Peers that would join and may not: they serve what they did, and hear of no change."""
    for name, why in sorted(term.refused.items()) if term is not None else ():
        yield f"{name} is not let in: {why}"


def _about_tier(state: ClusterState, term: Term | None) -> Iterator[str]:
    """Peers whose disks fill up because the object tier does not take what is to go there."""
    for name in sorted(state.nodes):
        heard = None if term is None else term.vitals.of(name)
        if heard is None or not state.is_node_up(name):
            continue
        trouble, waiting_ms = heard.tier_trouble, heard.tier_waiting_ms
        if heard.tier_slows_appends:
            yield (
                f"appends on {name} wait for the tier, for which {heard.tier_lag_bytes} bytes wait "
                f"(tier.lag_bytes_max): {trouble or 'the tier takes less than is written'}"
            )
            continue
        # What does not pass by itself is told at once.
        passes = not trouble or trouble.startswith("TIER_UNAVAILABLE")
        if passes and waiting_ms < (TIER_FAILS_MS if trouble else TIER_LAGS_MS):
            continue
        waiting = f", the oldest record for {waiting_ms // 1000} s" if waiting_ms else ""
        yield (
            f"{name} waits for the tier{waiting}; nothing is dropped before it is there, so disks "
            f"fill up: {trouble or 'the tier takes less than is written'}"
        )


def _damaged(name: NodeName, term: Term | None) -> int:
    heard = None if term is None else term.vitals.of(name)
    return 0 if heard is None else heard.damaged_batches


def _about_forecast(state: ClusterState, facts: MapFacts, term: Term | None) -> Iterator[str]:
    verdict = term.forecaster.latest.verdict if term is not None else None
    if verdict is not None and verdict.distrust:
        who = f" ({_names(verdict.crying)})" if verdict.crying else ""
        yield (
            f"the forecast is not believed: {verdict.distrust}{who}; nothing is moved for it; look "
            "for what these nodes have in common, and at the model"
        )
    for name in sorted(state.nodes):
        node = state.nodes[name]
        if not node.at_risk or node.state is not NodeState.UP:
            continue
        words = term.forecaster.words(name) if term is not None else ""
        if name in facts.expendable:
            what = "it may be stopped now: everything on it is elsewhere, too"
        elif name in facts.shielded:
            what = "appends do not need it any more, its past is being copied"
        elif name in facts.mirrored:
            what = "no record needs it any more; the shards that it orders pause when it dies"
        else:
            what = "its shards are being moved"
        yield f"{name} is at risk{f', {words}' if words else ''}: {what}"
    if verdict is not None and verdict.held_back:
        first = verdict.held_back[0]
        yield (
            f"{_names(verdict.held_back)} would be at risk, too, but a budget is spent; {first}: "
            f"{verdict.why[first]}"
        )


def _about_scrapes(scraped: ScrapedTelemetry) -> Iterator[str]:
    if scraped.failing:
        yield f"no telemetry, so no forecast soon: {scraped.failing}"
    elif unseen := scraped.unseen():
        yield (
            f"no fresh telemetry of {_names(unseen)}: look whether Prometheus scrapes it, with the "
            f"label {scraped.node_label!r}, and whether its clock is that of this host"
        )


def _about_copies(state: ClusterState, facts: MapFacts) -> Iterator[str]:
    if facts.short:
        yield (
            f"{_count(facts.short, 'sealed segment')} on fewer healthy nodes than promised: copies "
            "are made as soon as there is a node with room"
        )
    if facts.thin:
        yield (
            f"{_count(len(facts.thin), 'shard')} with fewer healthy voters than copies "
            f"({_names(facts.thin)}): replaced as soon as there is a node for it"
        )
    single = sorted(name for name, log in state.logs.items() if log.copies == 1)
    if single:
        yield f"one copy only, by choice: {_names(single)}; what its node loses is lost"
    stiff = sorted(name for name, log in state.logs.items() if 1 < log.copies == log.acks)
    if stiff:
        yield (
            f"every copy must answer in {_names(stiff)} (acks = copies): appends pause whenever "
            "one of its nodes stops, more hosts would change that for new logs"
        )


def _names(names: "list[str] | tuple[str, ...] | list[NodeName] | tuple[NodeName, ...]") -> str:
    listed = ", ".join(names[:NAMES_LISTED_MAX])
    more = len(names) - NAMES_LISTED_MAX
    return f"{listed} and {more} more" if more > 0 else listed


def _count(number: int, what: str, several: str = "") -> str:
    return f"{number} {what} is" if number == 1 else f"{number} {several or what + 's'} are"

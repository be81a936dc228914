"""What the page shows, as one JSON document: bounded, without secrets, the worst first.

Nodes, shards, events and the ledger are committed, so every LAS node shows them; forecasts, health
and silence are known to the leader alone and are null elsewhere.
"""

import heapq
import math
from collections.abc import Iterable
from itertools import islice

from las.core.ledger import Case
from las.core.state import ClusterState, Event, NodeState
from las.daemon.group import Group
from las.daemon.status_view import StatusView, shard_name
from las.daemon.term import Term, now_ms, wall_ms
from las.v1 import fleet_pb2
from peerd.core.ids import NodeName, ShardId
from peerd.core.shard_map import Shard
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

# limit: peers of the page; the worst come first, the others are counted.
PEERS_SHOWN_MAX = 200
# limit: shards of the page; those with something wrong come first, the others are counted.
SHARDS_SHOWN_MAX = 300
# limit: events of the page, the newest of all nodes; more are in `peerctl explain`.
EVENTS_SHOWN_MAX = 60
# limit: events of one node among them, so that a large fleet is looked through in time.
EVENTS_EACH_MAX = 10
# limit: alarms of the page, the newest; more are in `peerctl forecast ledger`.
CASES_SHOWN_MAX = 40
# Seconds of health that each peer's curves show.
HEALTH_S = 60
# Curves of a peer, by their name in the document.
CURVES = {
    "appended_per_s": "append_records_per_s",
    "flush_ms": "commit_latency_ms_p99",
    "replica_ms": "replication_ack_ms_p99",
}
_COLUMNS = {name: TELEMETRY_SCHEMA.positions[metric] for name, metric in CURVES.items()}

Document = dict[str, object]


def fleet_document(group: Group, status: StatusView, term: Term | None) -> Document:
    """Everything that the page shows, as this node knows it. `term` is the one that it leads in."""
    state, _ = group.indexed()
    answer = status.response(term)
    return {
        "cluster": answer.cluster_id,
        "node": group.name,
        "leader": answer.las_leader,
        "leads": term is not None,
        "now_ms": wall_ms(),
        "map_version": answer.map_version,
        "warnings": list(answer.warnings),
        "members": [{"name": member.name, "up": member.up} for member in answer.las],
        "counts": {
            "logs": answer.logs,
            "shards": answer.shards,
            "shards_paused": answer.shards_paused,
            "segments_short": answer.segments_short,
            "copying": answer.copying,
            "peers": len(answer.nodes),
            "peers_up": sum(node.state is NodeState.UP for node in state.nodes.values()),
        },
        "rebalance": answer.rebalance,
        "worst": {
            "node": answer.worst.node,
            "shards": answer.worst.shards,
            "sealed_records": answer.worst.sealed_records,
            "open_shards": answer.worst.open_shards,
            "exposed_s": answer.worst.exposed_ms // 1000,
        },
        "peers": _peers(state, answer.nodes, term),
        "logs": [
            {"name": name, "copies": log.copies, "acks": log.acks}
            for name, log in heapq.nsmallest(SHARDS_SHOWN_MAX, state.logs.items())
        ],
        "shards": _shards(state, status),
        "events": _events(state),
        "ledger": _ledger(state),
    }


def _peers(
    state: ClusterState, nodes: Iterable[fleet_pb2.NodeStatus], term: Term | None
) -> list[Document]:
    def urgency(each: fleet_pb2.NodeStatus) -> tuple[bool, bool, bool, float]:
        node = state.nodes[NodeName(each.node.name)]
        risk = 0.0 if math.isnan(each.p_10_min) else each.p_10_min
        return (node.state is not NodeState.UP, node.at_risk, node.draining, risk)

    shown = heapq.nlargest(PEERS_SHOWN_MAX, nodes, key=urgency)
    return [_peer(state, each, term) for each in shown]


def _peer(state: ClusterState, each: fleet_pb2.NodeStatus, term: Term | None) -> Document:
    node = state.nodes[NodeName(each.node.name)]
    known = term is not None
    return {
        "name": node.name,
        "state": node.state.value,
        "labels": dict(each.node.labels),
        "at_risk": node.at_risk,
        "draining": node.draining,
        "shielded": each.shielded,
        "expendable": each.expendable,
        "mirrored": each.mirrored,
        "p_10_min": None if math.isnan(each.p_10_min) else each.p_10_min,
        "why": term.forecaster.words(node.name) if term is not None else "",
        "primaries": each.primaries,
        "voting": each.voting,
        "holding": each.holding,
        "silent_ms": each.silent_ms if known else None,
        "stored_bytes": each.stored_bytes if known else None,
        "free_bytes": each.free_bytes if known else None,
        "damaged_batches": each.damaged_batches if known else None,
        "health": _health(node.name, term),
    }


def _health(node: NodeName, term: Term | None) -> dict[str, list[float | None]]:
    """The last minute of a peer, a value a second, oldest first; null where nothing was told."""
    if term is None:
        return {name: [] for name in CURVES}
    rows = term.forecaster.recent(node, now_ms=now_ms(), count=HEALTH_S)
    return {
        name: [None if math.isnan(value) else round(value, 3) for value in rows[:, column].tolist()]
        for name, column in _COLUMNS.items()
    }


def _shards(state: ClusterState, status: StatusView) -> list[Document]:
    """Those with something wrong first, then by their number."""
    troubled = status.facts().troubled
    calm = (shard for shard in state.shards if shard not in troubled)
    chosen = [*islice(troubled, SHARDS_SHOWN_MAX)]
    # Any of a hundred thousand: to sort them all for each look would take too long.
    chosen += sorted(islice(calm, SHARDS_SHOWN_MAX - len(chosen)))
    return [_shard(state, shard, status) for shard in chosen]


def _shard(state: ClusterState, shard: ShardId, status: StatusView) -> Document:
    entry = state.shards[shard]
    facts = status.facts().troubled.get(shard)
    trouble = ""
    if facts is not None:
        trouble = facts.halted or facts.paused or ("copies are missing" if facts.short else "")
        trouble = trouble or ("fewer voters than copies" if facts.is_thin else "")
    return {"name": shard_name(entry), "trouble": trouble, **_plan(entry.shard)}


def _plan(shard: Shard) -> Document:
    plan = shard.open.plan
    return {
        "epoch": shard.open.epoch,
        "primary": plan.primary.peer,
        "voters": [voter.peer for voter in plan.voters],
        "others": [replica.peer for replica in plan.replicas if replica not in plan.voters],
        "changing": shard.prepared is not None,
        "sealed": len(shard.sealed),
    }


def _events(state: ClusterState) -> list[Document]:
    """The newest of all nodes, newest first."""

    def moment(event: Event) -> int:
        return event.timestamp_ms

    every = (event for history in state.events.values() for event in history[-EVENTS_EACH_MAX:])
    return [
        {"at_ms": event.timestamp_ms, "node": event.node, "kind": event.kind, "text": event.text}
        for event in heapq.nlargest(EVENTS_SHOWN_MAX, every, key=moment)
    ]


def _ledger(state: ClusterState) -> list[Document]:
    """The newest alarms, newest first."""
    return [_case(state.cases[number]) for number in heapq.nlargest(CASES_SHOWN_MAX, state.cases)]


def _case(case: Case) -> Document:
    return {
        "number": case.number,
        "node": case.node,
        "opened_ms": case.opened_ms,
        "response": case.response.value,
        "outcome": case.outcome.value,
        "probability": case.probability,
        "lead_ms": case.lead_ms,
        "pause_ms": case.pause_ms,
        "why": case.why,
    }

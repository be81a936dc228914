"""Could a shard go on without its primary, if that died now? Asked of its voters, changing nothing.

What a take-over needs (docs/protocol.md §4.2): every voter but `acks` - 1 answers, the dead one not
among them; and one that answers may lead. Each voter is asked on its own address what it has, so
that "yes" says that their processes, disks' tables and links to here work now, and not only that
the LAS thinks so. Whether the LAS can decide is for its status to say, not for this.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import grpc.aio

from peerd.client.errors import error_of_call
from peerd.core.shard_map import Shard
from peerd.transport.channels import Channels
from peerd.transport.map_codec import NodeEntry
from peerd.v1 import log_pb2, log_pb2_grpc

# How long one voter may take to answer. A take-over would not wait for longer. Seconds.
ASK_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnTails:
    """What one peer says that it has of a log; `failure` is not empty if it did not answer."""

    epochs: Mapping[int, tuple[int, int]]
    """By shard: epoch and committed end, as it knows them."""
    answered_ms: float = 0.0
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VoterReport:
    """One voter beside the primary. `lag_records` is None if it did not answer for the shard."""

    node: str
    lag_records: int | None
    answered_ms: float
    trouble: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardDrill:
    """One shard. `successor` is the voter that has most and may lead; "" if there is none."""

    log: str
    shard: int
    primary: str
    successor: str
    needed: int
    """Voters beside the primary that would have to answer."""
    voters: tuple[VoterReport, ...]
    why_not: str

    @property
    def could_go_on(self) -> bool:
        """Whether appends would go on without the primary."""
        return not self.why_not


async def own_tails(channels: Channels, log: str, address: str, node: str) -> OwnTails:
    """What the peer at `address` has of a log."""
    stub = log_pb2_grpc.LogServiceStub(channels.to(address))
    request = log_pb2.GetTailRequest(log=log, consistency=log_pb2.TAIL_CONSISTENCY_OWN)
    began_s = time.monotonic()
    try:
        answer = await stub.GetTail(request, timeout=ASK_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        return OwnTails(epochs={}, failure=str(error_of_call(error, f"{node} at {address}")))
    return OwnTails(
        # An older peer passes the question on: that answer says nothing about itself.
        epochs={t.shard: (t.epoch, t.committed) for t in answer.tails if t.peer == node},
        answered_ms=(time.monotonic() - began_s) * 1000,
    )


async def ask_all(
    channels: Channels, log: str, shards: Iterable[Shard], nodes: Mapping[str, NodeEntry]
) -> dict[str, OwnTails]:
    """What each voter of these shards has, by its name; all are asked at once."""
    names = sorted({voter.peer for shard in shards for voter in shard.open.plan.voters})
    known = [name for name in names if name in nodes]
    answers = await asyncio.gather(
        *(own_tails(channels, log, nodes[name].address, name) for name in known)
    )
    return dict(zip(known, answers, strict=True))


def judge(
    shard: Shard, tails: Mapping[str, OwnTails], nodes: Mapping[str, NodeEntry]
) -> ShardDrill:
    """What the voters' answers say about one shard."""
    plan = shard.open.plan
    primary = plan.primary.peer
    _, committed = _answer_of(primary, shard, tails) or (0, 0)
    others = [voter.peer for voter in plan.voters if voter.peer != primary]
    heard = [answer for name in others if (answer := _answer_of(name, shard, tails)) is not None]
    newest = max([committed, *(end for _, end in heard)])
    voters = tuple(_report(name, shard, tails, newest, nodes) for name in others)
    answering = [each for each in voters if each.lag_records is not None]
    leaders = [each for each in answering if not each.trouble]
    # A voting primary that is dead is one of the acks - 1 that may be missing.
    needed = len(plan.voters) - (plan.acks - 1)
    why_not = ""
    if plan.acks == 1 and primary in {voter.peer for voter in plan.voters}:
        why_not = "each append is on its primary alone when it is answered (acks = 1)"
    elif len(answering) < needed:
        why_not = f"{len(answering)} of its other voters answer, {needed} would have to"
    elif not leaders:
        why_not = "no voter that answers may lead"
    best = min(leaders, key=lambda each: (each.lag_records or 0, each.node), default=None)
    return ShardDrill(
        log=shard.log,
        shard=shard.shard,
        primary=primary,
        successor="" if best is None or why_not else best.node,
        needed=needed,
        voters=voters,
        why_not=why_not,
    )


def _answer_of(name: str, shard: Shard, tails: Mapping[str, OwnTails]) -> tuple[int, int] | None:
    return tails[name].epochs.get(shard.shard) if name in tails else None


def _report(
    name: str,
    shard: Shard,
    tails: Mapping[str, OwnTails],
    newest: int,
    nodes: Mapping[str, NodeEntry],
) -> VoterReport:
    answer = _answer_of(name, shard, tails)
    node, told = nodes.get(name), tails.get(name)
    trouble = ""
    if node is None or told is None:
        trouble = "it has left the fleet"
    elif answer is None:
        trouble = told.failure or "it does not tell what it has itself: another version?"
    elif answer[0] != shard.open.epoch:
        trouble = f"it is at epoch {answer[0]}, the shard at {shard.open.epoch}"
    elif not node.up:
        trouble = "the LAS counts it as down"
    elif not node.may_lead:
        trouble = "it may not lead (role = shadow)"
    elif node.at_risk or node.draining:
        trouble = "it is at risk" if node.at_risk else "it is being drained"
    return VoterReport(
        node=name,
        lag_records=None if answer is None else max(0, newest - answer[1]),
        answered_ms=0.0 if told is None else told.answered_ms,
        trouble=trouble,
    )

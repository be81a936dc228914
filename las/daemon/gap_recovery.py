"""What a person may give up for a shard whose quorum is lost for good (docs/protocol.md §4.2, G10).

Why nothing more is lost than must be:

- All that can answer is asked once more, right before: what any of them has is kept.
- Given up are the voters that gave no answer, and none of them may be up: one that is has the
  records and needs only time. The command's guard says so again where it is applied.
- Where enough have answered nothing needs to be given up, and the proposal is refused: the leader
  finishes the fence by itself.

A proposal changes nothing but promises, which the standing fence asks for anyway.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from las.core.commands import RecoverWithGap
from las.core.placement import Placement
from las.core.planner import recovery_plan
from las.core.recovery import (
    Answer,
    Contradiction,
    Wait,
    decide,
    decide_with_gap,
    voters_to_ask,
)
from las.core.state import GAP_OFFSETS_MIN, ClusterState
from las.daemon.reconcile import PeerCalls, order_of
from peerd.core.errors import Reason
from peerd.core.ids import NO_EPOCH, NodeName, Offset, ReplicaId, ShardId
from peerd.core.shard_map import Shard
from peerd.transport.status import Refused, refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What would be given up, and the command that does it (its `why` is the asker's)."""

    command: RecoverWithGap
    answered: tuple[NodeName, ...]

    @property
    def end(self) -> Offset:
        """Where the records that are left end: the first offset of the gap."""
        return (self.command.ended_prepared or self.command.ended).end


async def propose(
    state: Callable[[], ClusterState],
    peers: PeerCalls,
    placement: Callable[[], Placement],
    shard: ShardId,
    why: str,
) -> Proposal:
    """Ask every voter of what is fenced, and say what has to be given up.

    Args:
        state: gives the newest applied state.
        peers: calls to them.
        placement: gives places in the newest state.
        shard: the shard; it exists.
        why: one line for readers of the gap.

    Raises:
        Refused: STATE_CHANGED, if nothing needs to be given up, or not yet; NOT_ENOUGH_PEERS, if
            the shard has nowhere to go on.
    """
    entry = state().shards[shard]
    if entry.halted:
        raise _not_now(f"shard {shard} is halted, look into that first: {entry.halted}")
    if entry.shard.fence == NO_EPOCH:
        raise _not_now(
            f"shard {shard} is not being recovered: nothing is known to be lost. A primary that is "
            "gone is found out within the lease; what lacks shadows gets others by itself"
        )
    answers = await _ask(peers, entry.shard)
    now = state()
    if now.shards.get(shard) != entry:
        raise _not_now(f"shard {shard} changed meanwhile: look with `peerctl status`")
    decision = decide(entry.shard, answers)
    if not isinstance(decision, Wait):
        raise _not_now(f"enough voters of shard {shard} have answered: it goes on by itself")
    given_up = _given_up(now, entry.shard, answers)
    recovered = decide_with_gap(entry.shard, answers)
    if isinstance(recovered, Contradiction):
        raise _not_now(f"the answers for shard {shard} contradict each other: {recovered.why}")
    answered = frozenset(answer.replica for answer in answers)
    plan = recovery_plan(now, placement(), shard=shard, recovered=recovered, answered=answered)
    if plan is None:
        log = now.logs[entry.shard.log]
        text = f"shard {shard} needs {log.copies} nodes that are up to go on: start or add some"
        raise Refused(refusal(Reason.NOT_ENOUGH_PEERS, text))
    command = RecoverWithGap(
        shard=shard,
        fence=entry.shard.fence,
        plan=plan,
        ended=recovered.ended,
        ended_prepared=recovered.ended_prepared,
        resume_at=Offset(recovered.begin + GAP_OFFSETS_MIN),
        given_up=given_up,
        why=why,
    )
    return Proposal(command=command, answered=tuple(sorted(each.peer for each in answered)))


async def _ask(peers: PeerCalls, shard: Shard) -> list[Answer]:
    """The answers of all voters that give one in time."""
    voters = voters_to_ask(shard)
    order = order_of(shard)
    told = await asyncio.gather(*(peers.promise(voter, [order]) for voter in voters))
    return [
        Answer(replica=voter, promised=each.promised, open=each.open, prepared=each.prepared)
        for voter, answers in zip(voters, told, strict=True)
        for each in answers or ()
        if each.shard == shard.shard
    ]


def _given_up(
    state: ClusterState, shard: Shard, answers: Sequence[Answer]
) -> tuple[ReplicaId, ...]:
    """The voters without an answer. Raises `Refused` if one of them is up."""
    told = {answer.replica for answer in answers}
    silent = tuple(each for each in voters_to_ask(shard) if each not in told)
    alive = sorted(each.peer for each in silent if state.is_up(each))
    if alive:
        raise _not_now(
            f"{', '.join(alive)} of shard {shard.shard} is up and gave no answer yet, it may have "
            "the records: wait for it, or stop it if its disk is broken"
        )
    return silent


def _not_now(text: str) -> Refused:
    return Refused(refusal(Reason.STATE_CHANGED, text))

"""The ledger on the leader: opens a case with each alarm, draws who is left alone, closes cases.

All that decides follows from the committed state and the histories of the nodes, so that a new
leader goes on with the cases of another one; only what a failure cost in pauses is known to the
leader that saw it, and is "not known" (-1) after a change of leader.

Must not: judge (`las.core.judgement`), or touch the map.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from las.core import casebook, ledger
from las.core.commands import CloseCase, Command, OpenCase
from las.core.judgement import Finding, Stake
from las.core.ledger import Case, Outcome, Response
from las.core.persistent import PersistentMap
from las.core.state import ClusterState, Event
from las.daemon.config import Policy
from las.daemon.group import Group
from las.daemon.story import DIED, EXPENDABLE, MIRRORED, SHIELDED, episode
from peerd.core.ids import NodeName
from peerd.daemon.logging import get_logger
from peerd.transport.status import Refused

# Pause between two looks at what has ended.
LOOK_MS = 500
# Time after a failure in which its shards are opened elsewhere; then its cost is known.
SETTLE_MS = 10_000
# A failure longer ago than this is not written down any more: nobody knows what was known then.
FORGOTTEN_MS = 3_600_000

_log = get_logger("ledger")

PauseOf = Callable[[NodeName], int]


def end_of_failure(case: Case, history: Sequence[Event], died_ms: int, pause_ms: int) -> CloseCase:
    """How a case ends whose node failed at `died_ms`, by the node's history."""
    since = {each.kind: each.timestamp_ms for each in episode(history, died_ms)}
    shielded_ms, expendable_ms = _protected_ms(since, died_ms)
    lead_s = max(0, died_ms - case.opened_ms) / 1_000
    if case.response is Response.PROTECT and shielded_ms >= 0:
        outcome, told = Outcome.HIT, f"{lead_s:.1f} s ahead; no append needed it any more"
        if SHIELDED not in since:
            told = f"{lead_s:.1f} s ahead; no record needed it any more, and it ordered some shards"
        if expendable_ms >= 0:
            told = f"{lead_s:.1f} s ahead; all that it had was elsewhere, too"
    else:
        outcome = Outcome.MISS
        told = {
            Response.PROTECT: f"too late: {lead_s:.1f} s did not suffice",
            Response.HELD_OUT: f"left alone for the experiment, {lead_s:.1f} s ahead",
            Response.HELD_BACK: f"no budget, {lead_s:.1f} s ahead",
            Response.NONE: "no signal",
        }[case.response]
    return CloseCase(
        number=case.number,
        outcome=outcome,
        closed_ms=died_ms,
        lead_ms=max(0, died_ms - case.opened_ms),
        shielded_ms=shielded_ms,
        expendable_ms=expendable_ms,
        pause_ms=pause_ms,
        told=told,
    )


def _protected_ms(since: Mapping[str, int], now_ms: int) -> tuple[int, int]:
    """For how long no new record, and none at all, needed a node; -1: it never came to that."""
    shielded = [since[kind] for kind in (MIRRORED, SHIELDED) if kind in since]
    return (
        now_ms - min(shielded) if shielded else -1,
        now_ms - since[EXPENDABLE] if EXPENDABLE in since else -1,
    )


def failures(history: Sequence[Event]) -> list[int]:
    """When the node failed, by its history, oldest first."""
    return [each.timestamp_ms for each in history if each.kind == DIED]


class Ledger:
    """Used on the event loop, during one term."""

    def __init__(
        self,
        group: Group,
        policy: Policy,
        *,
        wall_ms: Callable[[], int],
        pause_of: PauseOf,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`pause_of` tells what a node's failure cost in shard-milliseconds; `draw` is chance."""
        self._group = group
        self._policy = policy
        self._wall_ms = wall_ms
        self._pause_of = pause_of
        self._draw = draw
        self._begin_ms = wall_ms()
        self._watched: dict[NodeName, int] = {}
        self._seen_version = -1
        self._drift: tuple[PersistentMap[int, Case], str, str] | None = None

    # ------------------------------------------------------------------ alarms
    async def alarm(
        self,
        node: NodeName,
        finding: Finding,
        stake: Stake,
        *,
        model_id: str,
        why: str,
        held_back: bool = False,
    ) -> bool:
        """An alarm began; whether the node is to be protected. Raises `Refused`."""
        state, index = self._group.indexed()
        eligible = not held_back and casebook.costs_only_a_pause(state, index, node)
        left = ledger.is_held_out(self._draw(), self._policy.holdout, eligible=eligible)
        response = Response.HELD_OUT if left else Response.PROTECT
        case = Case(
            node=node,
            opened_ms=self._wall_ms(),
            response=Response.HELD_BACK if held_back else response,
            rule=finding.rule.value,
            probability=finding.probability,
            horizon_s=finding.horizon_s,
            line=finding.line,
            model_id=model_id,
            eligible=eligible,
            voting=stake.voting,
            stored_bytes=stake.stored_bytes,
            why=why,
        )
        await self._group.submit(OpenCase(case=case))
        return not (left or held_back)

    async def calm(self, node: NodeName) -> None:
        """The alarm of a node is over, and it did not fail. Raises `Refused`."""
        case = casebook.open_case_of(self._group.state, node)
        if case is not None:
            await self._group.submit(self._over(case, "calm again"))

    def left_alone(self) -> frozenset[NodeName]:
        """Nodes with an open alarm that are held out of protection."""
        cases = casebook.open_cases(self._group.state)
        return frozenset(node for node, case in cases.items() if case.response is Response.HELD_OUT)

    def drift(self, model_id: str) -> str:
        """See `las.core.ledger.drift`."""
        cases = self._group.state.cases
        if self._drift is None or self._drift[0] is not cases or self._drift[1] != model_id:
            self._drift = cases, model_id, ledger.drift(cases.values(), model_id)
        return self._drift[2]

    # ------------------------------------------------------------------ ends
    async def run(self) -> None:
        """Look for what has ended, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_MS / 1_000)

    async def look(self) -> None:
        """Commit the ends that are due."""
        state, now_ms = self._group.state, self._wall_ms()
        cases = casebook.open_cases(state)
        for command in [*self._ends(state, cases, now_ms), *self._unforeseen(state, cases, now_ms)]:
            try:
                await self._group.submit(command)
            except Refused as refused:
                # It is still due at the next look.
                _log.info("case not written", why=str(refused))
                return

    def _ends(
        self, state: ClusterState, cases: Mapping[NodeName, Case], now_ms: int
    ) -> Iterator[CloseCase]:
        for name, case in cases.items():
            node = state.nodes.get(name)
            history = state.events.get(name, ())
            died_ms = next((at for at in failures(history) if at >= case.opened_ms), None)
            if node is None:
                yield self._over(case, "it was taken out of the fleet", Outcome.UNKNOWN)
            elif died_ms is not None:
                if node.draining:
                    yield self._over(case, "stopped while it was drained", Outcome.UNKNOWN)
                elif now_ms - died_ms >= SETTLE_MS:
                    yield end_of_failure(case, history, died_ms, self._pause_ms(name, died_ms))
            elif case.response is Response.HELD_BACK:
                patience_ms = max(case.horizon_s, self._policy.off_after_s) * 1_000
                if not node.at_risk and now_ms - case.opened_ms >= patience_ms:
                    yield self._over(case, "no budget, and it did not fail in time")

    def _unforeseen(
        self, state: ClusterState, cases: Mapping[NodeName, Case], now_ms: int
    ) -> Iterator[Command]:
        """Failures without an alarm. Each becomes a case that the next look closes."""
        change = state.changed_ids(self._seen_version)
        self._seen_version = state.version
        for name in state.nodes if change is None else change.nodes:
            self._watched[name] = now_ms + 2 * SETTLE_MS
        for name in [name for name, until_ms in self._watched.items() if until_ms < now_ms]:
            del self._watched[name]
        for name in self._watched:
            node = state.nodes.get(name)
            if node is None or node.draining or name in cases:
                continue
            if node.at_risk:
                # It was foreseen and is left alone still: heard again and silent once more, it
                # fails on, and its case is closed already.
                continue
            died_ms = max(failures(state.events.get(name, ())), default=None)
            if died_ms is None or now_ms - died_ms > FORGOTTEN_MS:
                continue
            told = any(
                case.node == name and max(case.opened_ms, case.closed_ms) >= died_ms
                for case in state.cases.values()
            )
            if not told:
                yield OpenCase(case=Case(node=name, opened_ms=died_ms, response=Response.NONE))

    def _pause_ms(self, node: NodeName, died_ms: int) -> int:
        return self._pause_of(node) if died_ms >= self._begin_ms else -1

    def _over(self, case: Case, told: str, outcome: Outcome = Outcome.FALSE_ALARM) -> CloseCase:
        state = self._group.state
        node = state.nodes.get(case.node)
        if node is not None and node.draining:
            outcome, told = Outcome.UNKNOWN, "drained by an operator, and it did not fail"
        since = {
            each.kind: each.timestamp_ms
            for each in episode(state.events.get(case.node, ()), self._wall_ms())
        }
        now_ms = self._wall_ms()
        shielded_ms, expendable_ms = _protected_ms(since, now_ms)
        return CloseCase(
            number=case.number,
            outcome=outcome,
            closed_ms=now_ms,
            shielded_ms=shielded_ms,
            expendable_ms=expendable_ms,
            told=told,
        )

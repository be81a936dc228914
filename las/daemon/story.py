"""The history of each node, as the leader sees it: at risk, mirrored, shielded, expendable, gone.

What is due follows from the committed state and the history itself (`due_lines`), so that a new
leader goes on with a story that another one began, and tells nothing twice. Only a process that was
replaced without having been missed is noticed from one look to the next.

Lead times are told at the death, from the moments that were committed.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from las.core import protection
from las.core.commands import RecordEvent
from las.core.index import FleetIndex
from las.core.state import ClusterState, Event, Node, NodeState
from las.daemon.group import Group
from peerd.core.ids import BootId, NodeName
from peerd.daemon.logging import get_logger
from peerd.transport.status import Refused

# Pause between two looks while the map changes: a moment is told to about so many milliseconds.
LOOK_MS = 50

AT_RISK = "at_risk"
RECOVERED = "recovered"
DRAINING = "draining"
DRAIN_ENDED = "drain_ended"
MIRRORED = "mirrored"
SHIELDED = "shielded"
EXPENDABLE = "expendable"
DIED = "died"
RETURNED = "returned"

_log = get_logger("story")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a node's history."""

    kind: str
    text: str


def due_lines(
    state: ClusterState,
    index: FleetIndex,
    node: Node,
    *,
    why: str,
    now_ms: int,
) -> list[Line]:
    """What has to be added to the history of `node` so that it tells the committed state.

    Args:
        state: The committed state.
        index: An index of it.
        node: Its entry in `state`.
        why: What the forecast says of it, in words.
        now_ms: Wall time.
    """
    history = state.events.get(node.name, ())
    lines = [*_judged(node, history, why)]
    if node.at_risk or node.draining:
        lines += _protected(state, index, node.name, history)
    gone = node.state is not NodeState.UP
    died = _last(history, DIED, RETURNED) == DIED
    if gone and not died:
        what = "its storage failed" if node.state is NodeState.FAILED else "it is down"
        lines.append(Line(kind=DIED, text=f"{what}; {lead_words(state, index, node, now_ms)}"))
    elif died and not gone:
        lines.append(Line(kind=RETURNED, text="it is up again"))
    return lines


def _judged(node: Node, history: Sequence[Event], why: str) -> Iterator[Line]:
    was_at_risk = _last(history, AT_RISK, RECOVERED) == AT_RISK
    if node.at_risk and not was_at_risk:
        yield Line(kind=AT_RISK, text=why or "told by an earlier leader")
    elif was_at_risk and not node.at_risk:
        yield Line(kind=RECOVERED, text=why or "the forecast is calm")
    was_draining = _last(history, DRAINING, DRAIN_ENDED) == DRAINING
    if node.draining and not was_draining:
        for_a_time = ", for a time" if node.drain_until_ms else ""
        yield Line(kind=DRAINING, text=f"asked for by an operator{for_a_time}")
    elif was_draining and not node.draining:
        # Where an operator ends a drain its end is forgotten.
        by = "its time was over" if node.drain_until_ms else "asked for by an operator"
        yield Line(kind=DRAIN_ENDED, text=by)


def _protected(
    state: ClusterState, index: FleetIndex, name: NodeName, history: Sequence[Event]
) -> Iterator[Line]:
    """The node is endangered: what of it is safe already, once an episode."""
    told = {event.kind for event in episode(history)}
    if not told & {MIRRORED, SHIELDED} and protection.is_mirrored(state, name, index):
        led = index.leading[name]
        text = f"no record needs it: it votes nowhere, and orders {led} shards as their mirror"
        yield Line(kind=MIRRORED, text=text)
    if SHIELDED not in told and protection.is_shielded(state, name, index):
        yield Line(kind=SHIELDED, text="no open segment needs it: neither vote nor primary")
        told.add(SHIELDED)
    if EXPENDABLE not in told and SHIELDED in told and protection.is_expendable(state, name, index):
        count = index.holding[state.nodes[name].replica]
        yield Line(
            kind=EXPENDABLE,
            text=f"its sealed past ({count} segments) has healthy copies elsewhere, too",
        )


def lead_words(state: ClusterState, index: FleetIndex, node: Node, now_ms: int) -> str:
    """What the death of `node` meets: how long it was protected, or what it still had to do."""
    if node.at_risk or node.draining:
        since = {
            event.kind: event.timestamp_ms for event in episode(state.events.get(node.name, ()))
        }
        told = [
            f"{kind} for {max(0, now_ms - since[kind]) / 1000:.1f} s"
            for kind in (EXPENDABLE, SHIELDED, MIRRORED)
            if kind in since
        ]
        if told:
            return ", ".join(told)
    foreseen = "foreseen too late" if node.at_risk else "not foreseen"
    voted, led = index.voting[node.name], index.leading[node.name]
    return f"{foreseen}: it voted in {voted} shards and led {led} of them"


def episode(history: Sequence[Event], until_ms: int | None = None) -> Sequence[Event]:
    """Events since the node became at risk, or its drain began, the last time.

    With `until_ms`: as it was told then.
    """
    if until_ms is not None:
        history = [event for event in history if event.timestamp_ms <= until_ms]
    for at in range(len(history) - 1, -1, -1):
        if history[at].kind in {AT_RISK, DRAINING}:
            return history[at:]
        if history[at].kind in {RECOVERED, DRAIN_ENDED}:
            return ()
    return ()


def _last(history: Sequence[Event], *kinds: str) -> str:
    for event in reversed(history):
        if event.kind in kinds:
            return event.kind
    return ""


class Story:
    """Writes the histories during one term. Used on the event loop."""

    def __init__(
        self, group: Group, words: Callable[[NodeName], str], wall_ms: Callable[[], int]
    ) -> None:
        """`words` gives the forecast of a node in words."""
        self._group = group
        self._words = words
        self._wall_ms = wall_ms
        self._boots: dict[NodeName, BootId] = {}
        self._seen_version = -1
        self._unwritten: set[NodeName] = set()

    async def run(self) -> None:
        """Look after each change of the map, for ever."""
        with self._group.watch() as changed:
            while True:
                changed.clear()
                await self.look()
                await asyncio.sleep(LOOK_MS / 1000)
                await changed.wait()

    async def look(self) -> None:
        """Commit every line that is due."""
        state, index = self._group.indexed()
        now_ms = self._wall_ms()
        for name in self._changed(state):
            node = state.nodes[name]
            history = state.events.get(name, ())
            lines = due_lines(state, index, node, why=self._words(name), now_ms=now_ms)
            for line in (*lines, *self._replaced(node, history)):
                await self._write(
                    RecordEvent(node=name, kind=line.kind, text=line.text, timestamp_ms=now_ms)
                )

    def _changed(self, state: ClusterState) -> list[NodeName]:
        """Nodes about which there may be something to tell."""
        change = state.changed_ids(self._seen_version)
        self._seen_version = state.version
        names = set(state.nodes if change is None else change.nodes) | self._unwritten
        self._unwritten.clear()
        # What is protected follows from the shards, which change without the node.
        names.update(name for name, node in state.nodes.items() if node.at_risk or node.draining)
        return sorted(name for name in names if name in state.nodes)

    async def _write(self, line: RecordEvent) -> None:
        try:
            await self._group.submit(line)
        except Refused as refused:
            # It is still due at the next look.
            self._unwritten.add(line.node)
            _log.info("line not written", node=line.node, why=str(refused))

    def _replaced(self, node: Node, history: Sequence[Event]) -> Iterator[Line]:
        """A new process registered before anybody missed the old one."""
        before = self._boots.get(node.name)
        self._boots[node.name] = node.boot
        unnoticed = _last(history, DIED, RETURNED) != DIED
        if before is not None and before != node.boot and unnoticed:
            yield Line(kind=DIED, text="a new process took its place")

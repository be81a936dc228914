"""The LAS group as the services of one node see it: the committed state, who leads, commands.

Invariants:
- `state` is what this node has applied; right after `submit` returned it contains the command,
  right after `barrier` returned it contains all that was acknowledged before.
- A refusal other than LAS_UNAVAILABLE proves that the command was not and will not be applied.
- A watcher misses no change: its event is set after each one, never before.

Must not: know what any command is for.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from las.core.cluster import Cluster
from las.core.commands import (
    Audited,
    Command,
    RaiseCommandLevel,
    Result,
    command_to_json,
    result_from_json,
)
from las.core.index import FleetIndex
from las.core.levels import level_of
from las.core.state import ClusterState
from las.raft import (
    CommandTooLarge,
    NotLeader,
    NotRunning,
    OutcomeUnknown,
    Overloaded,
    RaftError,
    RaftNode,
    RaftStatus,
)
from peerd.core.errors import Reason, Taken
from peerd.transport.status import Refused, refusal

# How long a command or a barrier may take. Longer than the stall of a shared disk, shorter than the
# time that callers wait for an answer.
COMMAND_TIMEOUT_MS = 1_800
# Advice while there is no leader: about a third of an election.
RETRY_AFTER_MS = 300


class Group:
    """Used on one event loop, but for `state_changed`, which the consensus thread calls."""

    def __init__(self, name: str, addresses: Mapping[str, str], cluster_id: str) -> None:
        """`addresses` are those of all members by name; `name` is this one's."""
        self.name = name
        self.addresses = dict(addresses)
        self.machine = Cluster(cluster_id, self.state_changed)
        self._node: RaftNode | None = None
        self._loop = asyncio.get_running_loop()
        self._told = False
        self._index = FleetIndex()
        self._watchers: set[asyncio.Event] = set()
        self._status_callbacks: list[Callable[[RaftStatus], None]] = []
        self._current_at_s = self._loop.time()
        self._closing = False
        self._waiting_calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def attach(self, node: RaftNode) -> None:
        """Take commands to `node`, whose state machine is `machine`."""
        self._node = node

    # ------------------------------------------------------------------ what is

    @property
    def state(self) -> ClusterState:
        """The newest applied state."""
        return self.machine.state

    def indexed(self) -> tuple[ClusterState, FleetIndex]:
        """The newest applied state with an index of it, which the next call changes."""
        state = self.state
        self._index.update(state)
        return state, self._index

    @property
    def status(self) -> RaftStatus:
        """What this node knows of the group. Raises `NotRunning` before its start."""
        if self._node is None:
            raise NotRunning("this LAS node was not started")
        return self._node.status()

    @property
    def is_leader(self) -> bool:
        """Whether this node leads, as far as it knows."""
        return self.status.is_leader

    @property
    def leader(self) -> str:
        """Name of the leader; empty if none is known."""
        return self.status.leader or ""

    @property
    def age_ms(self) -> int:
        """Time since a leader was known, in milliseconds; 0 while one is."""
        if self.status.leader is not None:
            self._current_at_s = self._loop.time()
        return int((self._loop.time() - self._current_at_s) * 1000)

    # ------------------------------------------------------------------ what shall be

    async def submit(self, command: Command, *, timeout_ms: int = COMMAND_TIMEOUT_MS) -> Result:
        """Commit `command` and return its result, whether it is ok or not.

        Raises:
            Refused: NOT_LAS_LEADER, OVERLOADED, LIMIT_REACHED (too large, or a member of the group
                runs a version that does not know the command): not committed.
                LAS_UNAVAILABLE: no outcome in time; it may be committed now or later.
        """
        self._require_level(command)
        text = command_to_json(command)
        with self._counted():
            try:
                answer = await self._running().submit(text, timeout_ms=timeout_ms)
            except RaftError as error:
                raise self._refused(error) from error
        return result_from_json(answer)

    def _require_level(self, command: Command) -> None:
        """No command that a member does not know: it would have to stop (docs/protocol.md §4.7)."""
        needed, used = level_of(command), self.state.command_level
        inner = command.command if isinstance(command, Audited) else command
        if isinstance(inner, RaiseCommandLevel):
            needed, used = max(needed, inner.level), self.status.command_level
        if needed > used:
            text = (
                f"{type(command).__name__} needs command level {needed}, and not all LAS nodes "
                f"have said that they know more than {used}: upgrade and start them all"
            )
            raise Refused(refusal(Reason.LIMIT_REACHED, text))

    async def barrier(self) -> None:
        """Return once `state` holds all that was acknowledged before this call.

        Raises:
            Refused: NOT_LAS_LEADER, or LAS_UNAVAILABLE.
        """
        with self._counted():
            try:
                await self._running().barrier(timeout_ms=COMMAND_TIMEOUT_MS)
            except RaftError as error:
                raise self._refused(error) from error

    async def close(self, *, timeout_s: float) -> None:
        """Take no more commands, and wait for those under way."""
        self._closing = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            # Their callers learn that the outcome is not known when the node stops.
            return

    def not_leader(self) -> Refused:
        """What a call to another node than the leader is answered."""
        leader = self.leader
        if leader == self.name:
            # Elected, but the entries before its term are not applied yet.
            text = f"{self.name} is about to lead: try again in a moment"
            return Refused(refusal(Reason.NOT_LAS_LEADER, text, retry_after_ms=RETRY_AFTER_MS))
        if not leader:
            text = f"{self.name} knows no LAS leader: try again in a moment, or ask another node"
            return Refused(refusal(Reason.NOT_LAS_LEADER, text, retry_after_ms=RETRY_AFTER_MS))
        address = self.addresses[leader]
        text = f"{self.name} does not lead the LAS: ask {leader} at {address}"
        return Refused(refusal(Reason.NOT_LAS_LEADER, text, leader=address))

    def _running(self) -> RaftNode:
        if self._node is None:
            raise NotRunning("this LAS node was not started")
        if self._closing:
            raise NotRunning(f"{self.name} is stopping: ask another LAS node")
        return self._node

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._waiting_calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._waiting_calls -= 1
            if self._waiting_calls == 0:
                self._idle.set()

    def _refused(self, error: RaftError) -> Refused:
        if isinstance(error, NotLeader):
            return self.not_leader()
        if isinstance(error, Overloaded):
            after_ms = error.retry_after_ms
            return Refused(refusal(Reason.OVERLOADED, str(error), retry_after_ms=after_ms))
        if isinstance(error, CommandTooLarge):
            return Refused(refusal(Reason.LIMIT_REACHED, str(error)))
        if isinstance(error, NotRunning):
            return Refused(refusal(Reason.SHUTTING_DOWN, str(error)))
        why = error.why if isinstance(error, OutcomeUnknown) else str(error)
        text = f"the LAS did not answer ({why}); what was asked for may be done all the same: look"
        return Refused(
            refusal(
                Reason.LAS_UNAVAILABLE, text, taken=Taken.UNKNOWN, retry_after_ms=RETRY_AFTER_MS
            )
        )

    # ------------------------------------------------------------------ being told

    @contextmanager
    def watch(self) -> Iterator[asyncio.Event]:
        """An event that is set after each change of state or status; the watcher clears it."""
        event = asyncio.Event()
        self._watchers.add(event)
        try:
            yield event
        finally:
            self._watchers.discard(event)

    def on_status(self, callback: Callable[[RaftStatus], None]) -> None:
        """Call `callback` at each change of leader, term or links, before the watchers."""
        self._status_callbacks.append(callback)

    def status_changed(self, status: RaftStatus) -> None:
        """Called by the node on the event loop."""
        self._current_at_s = self._loop.time()
        for callback in self._status_callbacks:
            callback(status)
        self._tell()

    def state_changed(self, _state: ClusterState) -> None:
        """Called on the consensus thread. Tells the event loop once for many changes."""
        if not self._told:
            self._told = True
            try:
                self._loop.call_soon_threadsafe(self._state_changed)
            except RuntimeError:
                # The loop is closed: the process ends, and nobody watches any more.
                return

    def _state_changed(self) -> None:
        # First, so that a change from here on is told again.
        self._told = False
        self._tell()

    def _tell(self) -> None:
        for event in self._watchers:
            event.set()

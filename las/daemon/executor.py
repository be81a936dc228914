"""The leader's hands: sees what the map needs and carries it out, many shards at once.

A loop that compares what is committed with what should be, and starts what is missing. It holds
no plan of its own: everything that must survive is in the committed state, so a new leader's
executor goes on where the last one stopped, and a step that is done twice is refused once.

- *Planned*: commit `PrepareSegment`; the peers do the rest and report. A prepared segment that
  hangs is asked for (`HasBegun`) and, if nobody has begun it, fenced; sooner if it waits for a
  primary that does not answer (`las.daemon.hand_overs`).
- *Unplanned*: `las.daemon.reconcile.Recovery`, for each shard whose primary is gone or whose fence
  stands.
- *Copies*: commit `WantHolders`; the new holders fetch and report.

Bounds: each kind of work has one; what does not fit waits in a backlog until there is room. One
look goes through a bounded number of shards, so that the event loop it shares with heartbeats stays
responsive. Shards without a primary come first; one that is being recovered is looked at again when
that is over.

Must not: weigh evidence (detector), choose places (planner), decide ends (recovery).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from logging import INFO

from las.core.commands import (
    PrepareSegment,
    RecordEvent,
    Result,
    SetNodeState,
    WantHolders,
)
from las.core.history import Cause
from las.core.index import FleetIndex
from las.core.many_steps import ShardStep
from las.core.patience import TakeOvers
from las.core.placement import Limits, Placement
from las.core.planner import (
    Action,
    Prepare,
    Recover,
    Shortage,
    Urgency,
    Want,
    plan_round,
    primary_gone,
)
from las.core.state import ClusterState, Node, NodeState
from las.daemon.backlog import Backlog
from las.daemon.detector import Ask, Detector, Judged, Verdict
from las.daemon.hand_overs import HandOvers, HandOverTiming, hands_over, to_be_left
from las.daemon.reconcile import (
    Consensus,
    PeerCalls,
    PromiseBatcher,
    Recovery,
    RecoveryTiming,
    ShardGone,
    entry_of,
    is_running,
)
from las.daemon.shard_changes import ShardChanges
from peerd.core.ids import NO_EPOCH, Epoch, NodeName, ProcessId, ShardId, Tick
from peerd.core.shard_map import Plan
from peerd.daemon.crowd import Crowd
from peerd.daemon.logging import get_logger
from peerd.transport.status import Refused

_log = get_logger("executor")
_crowd = Crowd(_log)

Work = Callable[[], Coroutine[None, None, None]]

# limit: shards planned for in one look, some 15 ms of the event loop, through which the consensus
# group's frames travel, too; the others come next.
LOOK_SHARDS_MAX = 1_024
# limit: the same while shards wait for their recovery: all others share the loop with it.
LOOK_SHARDS_IN_RECOVERY_MAX = 256
# limit: shards looked at again in each look though nothing is known to have changed: 100,000 of
# them in 20 seconds.
SWEEP_SHARDS_MAX = 512
# limit: shards recovered at once; each waits for answers most of the time.
RECOVERIES_MAX = 2_048
# limit: commands and questions of other kinds under way at once.
TASKS_MAX = 1_024
# limit: lines of histories that wait to be committed; beyond it the oldest are left out
UNTOLD_MAX = 256


# While the last recovery began less long ago, planned changes wait for those under way: most take a
# second or two. One that waits for answers that do not come holds nothing up for longer.
YIELD_MS = 5_000
# So long planned changes rest for each shard that was just opened elsewhere, at most YIELD_MS after
# the last one: its new primary adopts, finds the producer table and answers clients meanwhile, on
# the nodes that have to do the changes, too.
SETTLE_MS_PER_SHARD = 3
# Orders in the backlogs below which a shard does not wait for recoveries: its appends pause, too,
# or a kept tail is on too few stores.
_PAUSED = (Urgency.PAUSED + 1,)
_KEPT_TAIL = (True,)

# How long one set of free places serves looks and recoveries.
PLACES_MS = 2_000
# limit: nodes that are taken one by one into a set of free places; for more it is made anew.
REFRESHED_MAX = 64


@dataclass(frozen=True, slots=True)
class _Places:
    at: Tick
    nodes: Mapping[NodeName, Node]
    slow: frozenset[NodeName]
    places: Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorTiming:
    """In milliseconds.

    Attributes:
        look_ms: pause between two looks if nothing wakes the executor.
        rest_ms: the shortest pause between two looks, whatever wakes it.
        again_ms: pause before shards are planned for again that did not fit, or lacked nodes.
        hang_ms: age from which a prepared segment hangs, above the 5 s after which its old primary
            declines it.
        hang_gone_ms: the same if the process that should begin it is gone.
        story_ms: time over which equal events of a node are told as one.
    """

    look_ms: int = 100
    rest_ms: int = 10
    again_ms: int = 250
    hang_ms: int = 7_000
    hang_gone_ms: int = 500
    story_ms: int = 300


class Executor:
    """One term's executor. `run` goes on until it is cancelled, and ends all that it started."""

    def __init__(
        self,
        *,
        consensus: Consensus,
        peers: PeerCalls,
        detector: Detector,
        limits: Limits,
        now: Callable[[], Tick],
        wall_ms: Callable[[], int],
        cause: Callable[[Judged], Cause] = lambda _: Cause.UNKNOWN,
        step: Callable[[ShardStep], Awaitable[Result]] | None = None,
        take_overs: TakeOvers | None = None,
        timing: ExecutorTiming | None = None,
        recovery_timing: RecoveryTiming | None = None,
        hand_over_timing: HandOverTiming | None = None,
    ) -> None:
        """`now` is a monotonic clock; `wall_ms` is for people who read the history.

        `cause` says why a node is down, or was. `step` commits like `consensus.submit`, which it is
        if not given, together with steps of other shards. `take_overs` is told who was given what.
        """
        self._consensus = consensus
        self._step: Callable[[ShardStep], Awaitable[Result]] = step or consensus.submit
        self._peers = peers
        self._detector = detector
        self._limits = limits
        self._now = now
        self._wall_ms = wall_ms
        self._cause = cause
        self._timing = timing or ExecutorTiming()
        self._recovery_timing = recovery_timing or RecoveryTiming()
        self._take_overs = take_overs
        self._hand_overs = HandOvers(peers.responds, now, hand_over_timing)
        self._handing_over: set[ProcessId] = set()
        self._story = _Story(wall_ms)
        self._untold: deque[RecordEvent] = deque(maxlen=UNTOLD_MAX)
        self._woken = asyncio.Event()
        self._seen_version = -1
        self._seen_slow: frozenset[NodeName] = frozenset()
        self._look_at: set[ShardId] = set()
        self._again: set[ShardId] = set()
        self._again_at = Tick(0)
        self._sweep: list[ShardId] = []
        self._busy: set[object] = set()
        self._recovering: set[ShardId] = set()
        self._recovery_began = Tick(0)
        self._settled_at = Tick(0)
        self._without_primary = Backlog()
        self._unchanged = Backlog()
        self._uncopied = Backlog()
        self._preparing = 0
        self._prepared_since: dict[tuple[ShardId, Epoch], Tick] = {}
        self._shortages: dict[ShardId, str] = {}
        self._pauses_ms: dict[NodeName, tuple[int, int]] = {}
        self._silent_ms: dict[NodeName, int] = {}
        self._placement: _Places | None = None

    @property
    def shortages(self) -> Mapping[ShardId, str]:
        """Shards that need a change for which too few nodes are left, and why."""
        return self._shortages

    @property
    def recovering(self) -> int:
        """Shards that are being recovered now."""
        return len(self._recovering)

    def take_pause_ms(self, node: NodeName) -> int:
        """Shard-milliseconds without appends that a node's last failure cost; told once.

        The time of its failovers, and for each how long the node had been silent before.
        """
        shards, took_ms = self._pauses_ms.pop(node, (0, 0))
        return took_ms + shards * self._silent_ms.pop(node, 0)

    def wake(self) -> None:
        """Something was heard or committed: look now and not only at the next turn."""
        self._woken.set()

    async def run(self) -> None:
        """Look and act until cancelled."""
        async with asyncio.TaskGroup() as group:
            recovery = Recovery(
                consensus=self._consensus,
                change=ShardChanges(self._consensus, group).submit,
                peers=self._peers,
                promises=PromiseBatcher(self._peers, group),
                timing=self._recovery_timing,
                placement=self._shared_placement,
                is_silent=self._hand_overs.is_silent,
            )
            while True:
                looked_at = self._now()
                self._look(group, recovery)
                try:
                    async with asyncio.timeout(self._timing.look_ms / 1000):
                        await self._woken.wait()
                except TimeoutError:
                    pass  # nothing was heard; time itself may make something due
                rest_ms = self._timing.rest_ms - (self._now() - looked_at)
                if rest_ms > 0:
                    await asyncio.sleep(rest_ms / 1000)
                self._woken.clear()

    # ------------------------------------------------------------------ one look
    def _look(self, group: asyncio.TaskGroup, recovery: Recovery) -> None:
        """Start everything that is due and fits."""
        now = self._now()
        state, index = self._consensus.indexed()
        for verdict in self._detector.judge(state, index, now):
            self._act_on_verdict(group, verdict)
        for shard, why in self._hanging(state, index, now):
            self._start_recovery(group, recovery, shard, why)
        for process in self._handing_over:
            if self._hand_overs.is_due(process):
                self._start(group, ("hand over", process), partial(self._hand_overs.ask, process))
        self._collect_dirty(state, index, now)
        # Before the backlog is emptied for this look: its recoveries begin beside what is planned.
        yields = self._is_yielding()
        if shards := self._next_shards(index, yields=yields):
            view = self._detector.view(state, now)
            changes_max = max(0, self._limits.changes_max - self._preparing)
            limits = replace(self._limits, changes_max=changes_max, yielding=yields)
            places = self._places_in(state, index)
            planned = plan_round(state, view, limits, index=index, shards=shards, placement=places)
            for later in planned.later:
                backlog = self._uncopied if later.copies else self._unchanged
                backlog.add(later.shard, later.order)
            for shard in shards:
                self._shortages.pop(shard, None)
            for action in planned.actions:
                self._act(group, recovery, state, action)
        self._untold.extend(self._story.due(now, self._timing.story_ms))
        if self._untold:
            self._start(group, "story", self._tell_all)

    def _next_shards(self, index: FleetIndex, *, yields: bool) -> set[ShardId]:
        """What this look goes through: what there is room for, then what may need something."""
        shards = set(self._without_primary.take(RECOVERIES_MAX - len(self._recovering)))
        # Twice the room, since not each of them still needs it.
        changes = 2 * (self._limits.changes_max - len(index.unsettled))
        copies = 2 * (self._limits.copies_max - index.fetching)
        shards.update(self._unchanged.take(changes, below=_PAUSED if yields else None))
        shards.update(self._uncopied.take(copies, below=_KEPT_TAIL if yields else None))
        many = LOOK_SHARDS_IN_RECOVERY_MAX if self._without_primary else LOOK_SHARDS_MAX
        while self._look_at and many > 0:
            shards.add(self._look_at.pop())
            many -= 1
        return shards - self._recovering

    def _is_yielding(self) -> bool:
        """Whether planned changes wait: shards without a primary are being opened elsewhere."""
        now = self._now()
        if now < self._settled_at:
            return True
        if not self._recovering and not self._without_primary:
            return False
        return now - self._recovery_began < YIELD_MS

    def _settle(self, shard: ShardId) -> None:
        """One more shard was opened elsewhere."""
        now = self._now()
        entry = self._consensus.indexed()[0].shards.get(shard)
        if self._take_overs is not None and entry is not None:
            voters = entry.shard.open.plan.voters
            self._take_overs.opened([voter.peer for voter in voters], now)
        settled_at = max(now, self._settled_at) + SETTLE_MS_PER_SHARD
        self._settled_at = Tick(min(settled_at, now + YIELD_MS))

    def _collect_dirty(self, state: ClusterState, index: FleetIndex, now: Tick) -> None:
        """Shards that may need something: what changed, what was put off, and a few in turn."""
        change = state.changed_ids(self._seen_version)
        self._seen_version = state.version
        if change is None:
            self._look_at.update(state.shards)
        else:
            self._refresh_places(state, change.nodes)
            self._look_at.update(change.shards)
            for node in change.nodes:
                self._look_at_all_of(node, state, index)
        self._look_at |= self._detector.stalled_shards()
        if self._detector.slow is not self._seen_slow:
            for node in self._detector.slow - self._seen_slow:
                _log.warning("stalls as primary", node=node)
                self._look_at_all_of(node, state, index)
            self._seen_slow = self._detector.slow
        if now >= self._again_at:
            self._look_at |= self._again
            # Each comes back behind the others, so all have their turn.
            self._look_at.update(islice(self._shortages, SWEEP_SHARDS_MAX))
            for shard in [each for each in self._shortages if each not in state.shards]:
                del self._shortages[shard]
            self._again = set()
            self._again_at = Tick(now + self._timing.again_ms)
            if not self._sweep:
                self._sweep = list(state.shards)
            self._look_at.update(self._sweep[-SWEEP_SHARDS_MAX:])
            del self._sweep[-SWEEP_SHARDS_MAX:]

    def _look_at_all_of(self, node: NodeName, state: ClusterState, index: FleetIndex) -> None:
        """A node has become another: look at its shards, at those that it cannot lead first."""
        for shard in index.shards_of(node):
            if primary_gone(state, state.shards[shard]):
                self._without_primary.add(shard, ())
                self._recovery_began = self._now()
            else:
                self._look_at.add(shard)

    def _hanging(
        self, state: ClusterState, index: FleetIndex, now: Tick
    ) -> list[tuple[ShardId, str]]:
        """Prepared segments that neither began nor were declined in time, or wait for a primary
        that does not answer.
        """
        since: dict[tuple[ShardId, Epoch], Tick] = {}
        hanging = []
        self._handing_over = set()
        for shard in index.unsettled - self._recovering:
            entry = state.shards[shard]
            prepared = entry.shard.prepared
            if prepared is None or entry.shard.fence != NO_EPOCH or entry.halted:
                continue
            key = (shard, prepared.epoch)
            since[key] = self._prepared_since.get(key, now)
            primary = prepared.plan.primary
            gone = not is_running(state, primary)
            patience_ms = self._timing.hang_gone_ms if gone else self._timing.hang_ms
            if now - since[key] >= patience_ms:
                what = "is gone" if gone else "has not begun it"
                hanging.append((shard, f"{prepared.epoch} is prepared and {primary.peer} {what}"))
                continue
            waits_for = hands_over(state, entry, self._detector.slow)
            if waits_for is None:
                continue
            self._handing_over.add(waits_for)
            is_sick = state.nodes[waits_for.peer].at_risk or waits_for.peer in self._detector.slow
            if self._hand_overs.is_silent(waits_for, since[key]):
                hanging.append((shard, f"{waits_for.peer} is to hand it over and does not answer"))
            elif is_sick and self._hand_overs.is_overdue(since[key]):
                hanging.append((shard, f"{waits_for.peer} is to hand it over and does not get on"))
        self._prepared_since = since
        return hanging

    def _shared_placement(self) -> Placement:
        return self._places_in(*self._consensus.indexed())

    def _places_in(self, state: ClusterState, index: FleetIndex) -> Placement:
        """Where there is room: looked up for many looks and recoveries, not for each."""
        now = self._now()
        found = self._placement
        # It counts what it placed itself, so it ages only by what others did.
        slow = self._detector.slow
        aged = found is None or now - found.at >= PLACES_MS
        if found is None or aged or found.nodes is not state.nodes or found.slow is not slow:
            view = self._detector.view(state, now)
            places = Placement(state, view, self._limits, index)
            found = self._placement = _Places(now, state.nodes, slow, places)
        return found.places

    def _refresh_places(self, state: ClusterState, changed: Iterable[NodeName]) -> None:
        """Take `changed` nodes, all that differ since the last look, into the set of free places.

        It is of that look's state or of a newer one, so it lacks no other change.
        """
        found = self._placement
        if found is None or found.nodes is state.nodes:
            return
        nodes = [state.nodes.get(name) for name in changed]
        if None in nodes or len(nodes) > REFRESHED_MAX:
            self._placement = None
            return
        for node in nodes:
            if node is not None:
                found.places.refresh(node)
        self._placement = _Places(found.at, state.nodes, found.slow, found.places)

    # ------------------------------------------------------------------ acting
    def _act_on_verdict(self, group: asyncio.TaskGroup, verdict: Verdict) -> None:
        if isinstance(verdict, Judged):
            self._start(group, ("judge", verdict.node), partial(self._judge, verdict))
        elif not self._start(group, ("ask", verdict.node), partial(self._ask, verdict)):
            self._detector.answered(verdict, {}, self._now())

    def _act(
        self,
        group: asyncio.TaskGroup,
        recovery: Recovery,
        state: ClusterState,
        action: Action,
    ) -> None:
        if isinstance(action, Recover):
            self._start_recovery(group, recovery, action.shard, action.why)
        elif isinstance(action, Prepare):
            before = state.shards[action.shard].shard.open.plan
            left = to_be_left(state, state.shards[action.shard], self._detector.slow)
            is_led_elsewhere = left is not None and left.peer != action.plan.primary.peer
            if left is not None and is_led_elsewhere and self._hand_overs.is_silent(left):
                # Others wait for it already: it would not hand over this one, either.
                why = f"{action.why}, and {left.peer} does not answer"
                self._start_recovery(group, recovery, action.shard, why)
            elif not self._start(group, action.shard, partial(self._prepare, action, before)):
                self._again.add(action.shard)
        elif isinstance(action, Want):
            key = ("want", action.shard, action.epoch)
            if not self._start(group, key, partial(self._want, action)):
                self._again.add(action.shard)
        else:
            self._shortage(action)

    def _start_recovery(
        self, group: asyncio.TaskGroup, recovery: Recovery, shard: ShardId, why: str
    ) -> None:
        if shard in self._busy:
            return
        if len(self._recovering) >= RECOVERIES_MAX:
            self._without_primary.add(shard, ())
            return
        self._recovering.add(shard)
        self._recovery_began = self._now()
        self._create(group, shard, partial(self._recover, recovery, shard, why))

    def _start(self, group: asyncio.TaskGroup, key: object, work: Work) -> bool:
        """Start `work`; False if work of that key is under way, or too much is."""
        if key in self._busy or len(self._busy) - len(self._recovering) >= TASKS_MAX:
            return False
        self._create(group, key, work)
        return True

    def _create(self, group: asyncio.TaskGroup, key: object, work: Work) -> None:
        self._busy.add(key)
        group.create_task(self._finish(key, work), name=f"executor {key}")

    async def _finish(self, key: object, work: Work) -> None:
        try:
            await work()
        except Refused as refused:
            # Not the leader any more, or in doubt: what is committed says how to go on.
            _log.info("put off", work=str(key), why=str(refused))
        except ShardGone as gone:
            _log.info("dropped", work=str(key), why=str(gone))
        finally:
            self._busy.discard(key)
        self.wake()

    async def _ask(self, ask: Ask) -> None:
        answers = await asyncio.gather(
            *(self._peers.hears(witness, ask.node) for witness in ask.witnesses)
        )
        silences = {
            witness: heard.silent_ms
            for witness, heard in zip(ask.witnesses, answers, strict=True)
            if heard is not None
        }
        verdict = self._detector.answered(ask, silences, self._now())
        if verdict is not None:
            await self._judge(verdict)

    async def _judge(self, verdict: Judged) -> None:
        if verdict.state is not NodeState.UP:
            self._pauses_ms.pop(verdict.node, None)
            self._silent_ms[verdict.node] = self._detector.silent_ms(verdict.node, self._now())
        result = await self._consensus.submit(
            SetNodeState(
                node=verdict.node,
                boot=verdict.boot,
                state=verdict.state,
                why=verdict.why,
                at_s=self._wall_ms() // 1000,
                cause=self._cause(verdict),
            )
        )
        if result.ok:
            _log.info("node judged", node=verdict.node, state=verdict.state, why=verdict.why)

    async def _prepare(self, action: Prepare, before: Plan) -> None:
        command = PrepareSegment(
            shard=action.shard, epoch=action.epoch, plan=action.plan, why=action.why
        )
        self._preparing += 1
        try:
            result = await self._step(command)
        except Refused:
            # Committed or not: the map will tell what is still to be done.
            self._again.add(action.shard)
            raise
        finally:
            self._preparing -= 1
        if not result.ok:
            self._again.add(action.shard)
            return
        stay = {voter.peer for voter in action.plan.voters}
        for node in sorted({voter.peer for voter in before.voters} - stay):
            led = before.primary.peer == node
            self._story.add("switch", node, action.why, self._now(), led=led)

    async def _want(self, action: Want) -> None:
        command = WantHolders(shard=action.shard, epoch=action.epoch, holders=action.holders)
        try:
            await self._step(command)
        except Refused:
            self._again.add(action.shard)
            raise

    async def _recover(self, recovery: Recovery, shard: ShardId, why: str) -> None:
        began = self._now()
        state, _ = self._consensus.indexed()
        try:
            primary = entry_of(state, shard).shard.open.plan.primary
            outcome = await recovery.recover(shard, why)
        finally:
            self._recovering.discard(shard)
            self._again.add(shard)
        _crowd.tell(INFO, "shard recovered", shard=shard, why=why, outcome=outcome.text)
        if outcome.opened is not None:
            self._settle(shard)
            took_ms = self._now() - began
            shards, before_ms = self._pauses_ms.get(primary.peer, (0, 0))
            self._pauses_ms[primary.peer] = shards + 1, before_ms + took_ms
            self._story.add("failover", primary.peer, why, self._now(), led=True, took_ms=took_ms)

    async def _tell_all(self) -> None:
        """Tell the histories what waits to be told. What is given up without a known outcome is
        told later, unless the history has it by then.
        """
        while self._untold:
            command = self._untold[0]
            if not self._is_told(command):
                try:
                    await self._consensus.submit(command)
                except Refused:
                    await asyncio.sleep(self._timing.again_ms / 1000)
                    raise
            self._untold.popleft()

    def _is_told(self, command: RecordEvent) -> bool:
        state, _ = self._consensus.indexed()
        return any(
            (event.timestamp_ms, event.kind) == (command.timestamp_ms, command.kind)
            for event in state.events.get(command.node, ())
        )

    def _shortage(self, action: Shortage) -> None:
        if self._shortages.get(action.shard) != action.why:
            _log.warning("too few nodes", shard=action.shard, why=action.why)
        self._shortages[action.shard] = action.why


@dataclass(slots=True)
class _Chapter:
    why: str
    at: Tick
    wall_ms: int
    shards: int = 0
    led: int = 0
    slowest_ms: int = 0


class _Story:
    """Joins what happened to many shards for one reason into one line of a node's history."""

    def __init__(self, wall_ms: Callable[[], int]) -> None:
        self._wall_ms = wall_ms
        self._chapters: dict[tuple[str, NodeName], _Chapter] = {}

    def add(
        self, kind: str, node: NodeName, why: str, now: Tick, *, led: bool, took_ms: int = 0
    ) -> None:
        """One more shard of which `node` was a voter, and `led` it or not."""
        key = (kind, node)
        if key not in self._chapters:
            self._chapters[key] = _Chapter(why=why, at=now, wall_ms=self._wall_ms())
        chapter = self._chapters[key]
        chapter.shards += 1
        chapter.led += led
        chapter.slowest_ms = max(chapter.slowest_ms, took_ms)

    def due(self, now: Tick, story_ms: int) -> list[RecordEvent]:
        """The chapters that are long enough ago to be whole."""
        commands = []
        for (kind, node), chapter in list(self._chapters.items()):
            if now - chapter.at < story_ms:
                continue
            del self._chapters[kind, node]
            shards = f"{chapter.shards} shard{'' if chapter.shards == 1 else 's'}"
            if kind == "failover":
                text = f"{shards} opened elsewhere, the slowest in {chapter.slowest_ms} ms"
            else:
                text = f"{shards} prepared without its vote, {chapter.led} of them led elsewhere"
            commands.append(
                RecordEvent(
                    node=node,
                    kind=kind,
                    text=f"{text}: {chapter.why}",
                    timestamp_ms=chapter.wall_ms,
                )
            )
        return commands

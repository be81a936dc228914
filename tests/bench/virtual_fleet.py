"""Deaths in a large fleet, in virtual time: what one waits for is skipped, what is computed counts.

The detector, the executor, the state machine and the JSON of its commands are the real ones. The
consensus log is a pause before a command is applied, peers are answers after a pause.
"""

import asyncio
import logging
import random
import selectors
import statistics
import time
from collections.abc import Callable, Sequence

import structlog

from las.core.cluster import Cluster
from las.core.commands import (
    ChangeShards,
    Command,
    OpenSegment,
    PrepareSegment,
    Result,
    SegmentOpened,
    SetNodeState,
    command_to_json,
    result_from_json,
)
from las.core.index import FleetIndex
from las.core.placement import Limits
from las.core.recovery import EpochAnswer
from las.core.state import ClusterState, Node, NodeState
from las.daemon.detector import Detector, DetectorTiming
from las.daemon.executor import Executor
from las.daemon.reconcile import Heard, Promised, PromiseOrder
from peerd.core.ids import (
    Epoch,
    NodeName,
    Offset,
    ReplicaId,
    Tick,
)
from peerd.garbage import settle_garbage
from tests.bench.fleet_state import NODES, SHARDS, fleet, node

# ---------------------------------------------------------------------------------- rack
# What a commit takes beside the leader's CPU, and a store to make promises durable.
COMMIT_S = 0.010
PROMISE_S = 0.020


class NoWaiting(selectors.SelectSelector):
    """What would be waited for is added to `skipped_s` instead."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found and timeout is not None and timeout > 0:
            self.skipped_s += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock is this process's CPU time plus all that it would have waited.

    So work takes as long as it takes alone on a core, whatever else the machine does.
    """

    def __init__(self) -> None:
        self._waits = NoWaiting()
        super().__init__(self._waits)

    def time(self) -> float:
        return time.process_time() + self._waits.skipped_s


class AnswersInTime:
    """A group and peers: each command is applied, each store that is up promises and has all."""

    def __init__(self, state: ClusterState) -> None:
        self.cluster = Cluster(state.cluster_id)
        self.cluster._become(state)
        self.index = FleetIndex()
        self.commands = 0
        self.changes: list[int] = []
        self.opened = 0
        self.promise_calls = 0

    def indexed(self) -> tuple[ClusterState, FleetIndex]:
        self.index.update(self.cluster.state)
        return self.cluster.state, self.index

    async def submit(self, command: Command) -> Result:
        text = command_to_json(command)
        await asyncio.sleep(COMMIT_S)
        self.commands += 1
        result = result_from_json(self.cluster.apply(text))
        if isinstance(command, PrepareSegment) and result.ok:
            asyncio.get_running_loop().call_later(PROMISE_S, self._begin, command, result.epoch)
        if isinstance(command, ChangeShards):
            self.changes.append(len(result.each))
            self.opened += len(command.opens)
            assert all(each.ok for each in result.each)
        self.opened += isinstance(command, OpenSegment)
        return result

    def _begin(self, command: PrepareSegment, epoch: Epoch) -> None:
        """The new primary has begun and says so."""
        begun = SegmentOpened(shard=command.shard, epoch=epoch, begin=Offset(1_001), holders=())
        self.cluster.apply(command_to_json(begun))

    async def promise(
        self, target: ReplicaId, orders: Sequence[PromiseOrder]
    ) -> Sequence[Promised] | None:
        await asyncio.sleep(PROMISE_S)
        self.promise_calls += 1
        if not self.cluster.state.is_up(target):
            return None
        begun = EpochAnswer(
            adopted=True, begin=Offset(1_000), end=Offset(1_001), commit=Offset(1_000)
        )
        return [
            Promised(shard=order.shard, promised=order.fence, open=begun, prepared=EpochAnswer())
            for order in orders
        ]

    async def has_begun(self, target: object, shard: object, epoch: object) -> None:
        return None

    async def hears(self, witness: object, suspect: object) -> None:
        return None

    async def responds(self, target: object, within_ms: object) -> bool:
        return True


async def _lose_a_rack() -> dict[str, object]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    loop = asyncio.get_running_loop()

    def now_ms() -> int:
        return int(loop.time() * 1000)

    group = AnswersInTime(fleet(100, 100_000))
    state = group.cluster.state
    # Twenty peers that lead 1,000 shards each; no two of them are among the three of one shard.
    dead = [node(number) for number in range(20)]
    names = {each.name for each in dead}
    lost = [
        shard for shard, each in state.shards.items() if each.shard.open.plan.primary.peer in names
    ]
    detector = Detector(DetectorTiming(lease_ms=600_000), Tick(now_ms()))
    for each in state.nodes.values():
        detector.heard(each.name, each.boot, Tick(now_ms()), 1 << 40)
    executor = Executor(
        consensus=group,
        peers=group,
        detector=detector,
        limits=Limits(),
        now=lambda: Tick(now_ms()),
        wall_ms=now_ms,
    )
    settle_garbage()
    running = asyncio.create_task(executor.run())
    await asyncio.sleep(8.0)  # the first looks at 100,000 shards find nothing to do
    before, began_s, cpu_s = group.commands, loop.time(), time.process_time()
    for each in dead:
        detector.stream_broken(each.name, each.boot)
    await asyncio.gather(
        *(
            group.submit(SetNodeState(node=each.name, boot=each.boot, state=NodeState.DOWN))
            for each in dead
        )
    )
    executor.wake()
    # Looked at now and then, so that looking costs nothing beside what is measured.
    while group.opened < len(lost) and loop.time() - began_s < 120:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    took_s, used_s = loop.time() - began_s, time.process_time() - cpu_s
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    shards = group.cluster.state.shards
    return {
        "shards_without_primary": len(lost),
        "not_recovered": sum(shards[each].shard.open.plan.primary.peer in names for each in lost),
        "recovered_within_s_virtual": round(took_s, 2),
        "leader_cpu_s": round(used_s, 2),
        "commands": group.commands - before,
        "shards_in_a_command": {
            "most": max(group.changes),
            "median": sorted(group.changes)[len(group.changes) // 2],
        },
        "promise_calls": group.promise_calls,
    }


def rack() -> dict[str, object]:
    """20 peers and 20,000 shards."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(_lose_a_rack())


# ---------------------------------------------------------------------------------- detect
DEATHS = 10
FRAME_S = 0.250
SILENCE_S = 1.000
LOOK_S = 0.050
NETWORK_S = 0.002


class SilentDeaths(AnswersInTime):
    """A fleet in which nobody is told of a death: frames stay away, and neighbours notice."""

    def __init__(self, state: ClusterState, detector: Detector, wake: Callable[[], None]) -> None:
        super().__init__(state)
        self._detector = detector
        self._wake = wake
        self._chance = random.Random(1)
        self._heard_s: dict[tuple[NodeName, NodeName], float] = {}

    def die(self, victim: Node) -> None:
        """From now on nothing comes from it; each neighbour heard it within the last frame time."""
        loop = asyncio.get_running_loop()
        state, index = self.indexed()
        neighbours = {
            replica.peer
            for shard in index.shards_of(victim.name)
            for replica in state.shards[shard].shard.open.plan.replicas
        }
        for name in sorted(neighbours - {victim.name}):
            heard_s = self._heard_s[name, victim.name] = loop.time() - self._chance.uniform(
                0.0, FRAME_S
            )
            noticed_s = heard_s + SILENCE_S + self._chance.uniform(0.0, LOOK_S)
            loop.call_at(noticed_s + NETWORK_S, self._accuse, name, victim)

    def _accuse(self, accuser: NodeName, victim: Node) -> None:
        now = Tick(int(asyncio.get_running_loop().time() * 1000))
        self._detector.suspected(accuser, victim.name, victim.boot, refused=False, now=now)
        self._wake()

    async def hears(self, witness: NodeName, suspect: NodeName) -> Heard:  # type: ignore[override]
        await asyncio.sleep(2 * NETWORK_S)
        heard_s = self._heard_s[witness, suspect]
        return Heard(silent_ms=int((asyncio.get_running_loop().time() - heard_s) * 1000))


async def _notice_deaths() -> dict[str, object]:
    loop = asyncio.get_running_loop()

    def now() -> Tick:
        return Tick(int(loop.time() * 1000))

    state = fleet(NODES, SHARDS)
    detector = Detector(DetectorTiming(), now())
    group = SilentDeaths(state, detector, lambda: executor.wake())  # noqa: PLW0108 -- made below
    executor = Executor(
        consensus=group,
        peers=group,
        detector=detector,
        limits=Limits(),
        now=now,
        wall_ms=now,
    )
    settle_garbage()
    running = asyncio.create_task(executor.run())
    pauses_s: list[float] = []
    judged_s: list[float] = []
    for number in range(DEATHS):
        for each in group.cluster.state.nodes.values():
            detector.heard(each.name, each.boot, now(), 1 << 40)
        await asyncio.sleep(10.0 if number == 0 else 1.0)
        victim = group.cluster.state.nodes[NodeName(f"peer-{(number * 397) % NODES}")]
        led = [
            shard
            for shard in group.indexed()[1].shards_of(victim.name)
            if group.cluster.state.shards[shard].shard.open.plan.primary.peer == victim.name
        ]
        died_s = loop.time()
        group.die(victim)
        while group.cluster.state.nodes[victim.name].state is NodeState.UP:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        judged_s.append(loop.time() - died_s)
        while any(  # noqa: ASYNC110
            group.cluster.state.shards[shard].shard.open.plan.primary.peer == victim.name
            for shard in led
        ):
            await asyncio.sleep(0.001)
        pauses_s.append(loop.time() - died_s)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return {
        "deaths": DEATHS,
        "judged_ms": _median_and_max(judged_s),
        "opened_elsewhere_ms": _median_and_max(pauses_s),
    }


def _median_and_max(times_s: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(times_s) * 1000),
        "max": round(max(times_s) * 1000),
    }


def detect() -> dict[str, object]:
    """One death after another among 10,000 peers."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(_notice_deaths())

"""The executor over a model fleet: what is committed gets done, whoever dies, nothing is lost."""

import asyncio
import itertools
import random
import time
from contextlib import asynccontextmanager

import pytest

from las.core.commands import (
    FenceSegment,
    OpenSegment,
    PrepareSegment,
    RecordEvent,
    SegmentOpened,
    SetAtRisk,
    SetDraining,
    WantHolders,
)
from las.core.patience import TakeOvers
from las.core.placement import Limits
from las.core.planner import Prepare, Urgency, Want
from las.core.protection import is_expendable, is_shielded
from las.core.state import NodeState
from las.daemon.detector import Detector, DetectorTiming
from las.daemon.executor import Executor, ExecutorTiming
from las.daemon.hand_overs import HandOverTiming
from las.daemon.reconcile import RecoveryTiming
from peerd.core.errors import Reason, Taken
from peerd.core.ids import Epoch, ShardId, Tick
from peerd.transport.status import Refused, refusal
from tests.las_core.builders import SHARD, name, plan_of, process, register, replica, with_log
from tests.las_core.model_fleet import ModelFleet

TIMING = ExecutorTiming(
    look_ms=5, rest_ms=0, again_ms=5, hang_ms=200, hang_gone_ms=20, story_ms=200
)
RECOVERY = RecoveryTiming(answer_grace_ms=5, retry_ms=5)


def clock() -> Tick:
    return Tick(int(time.monotonic() * 1000))


def detector_for(fleet: ModelFleet) -> Detector:
    """Leases far beyond a test: deaths come from accusations and registrations."""
    detector = Detector(DetectorTiming(lease_ms=600_000, pause_ms=600_000), clock())
    for node in fleet.state.nodes.values():
        detector.heard(node.name, node.boot, clock())
    return detector


@asynccontextmanager
async def running(
    fleet: ModelFleet,
    detector: Detector | None = None,
    limits: Limits | None = None,
    take_overs: TakeOvers | None = None,
    hand_over_timing: HandOverTiming | None = None,
    timing: ExecutorTiming = TIMING,
):
    executor = Executor(
        consensus=fleet,
        peers=fleet,
        detector=detector or detector_for(fleet),
        limits=limits or Limits(),
        now=clock,
        wall_ms=itertools.count(1).__next__,
        take_overs=take_overs,
        timing=timing,
        recovery_timing=RECOVERY,
        hand_over_timing=hand_over_timing,
    )
    task = asyncio.create_task(executor.run())
    try:
        yield executor
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def die(fleet: ModelFleet, detector: Detector, number: int) -> None:
    """Kill a peer; two neighbours find its port closed."""
    peer = fleet.kill(number)
    for accuser in [each for each in fleet.peers.values() if each.alive][:2]:
        detector.suspected(
            accuser.process.peer, peer.process.peer, peer.process.boot, refused=True, now=clock()
        )


def rows(count: int, nodes: int = 5) -> tuple[tuple[int, int, int], ...]:
    return tuple((each % nodes, (each + 1) % nodes, (each + 2) % nodes) for each in range(count))


def committed(fleet: ModelFleet, kind: type) -> list:
    return [command for command in fleet.commands if isinstance(command, kind)]


def events(fleet: ModelFleet, kind: str) -> list[RecordEvent]:
    return [event for event in committed(fleet, RecordEvent) if event.kind == kind]


def opened_epoch(fleet: ModelFleet) -> int:
    return fleet.state.shards[SHARD].shard.open.epoch


async def test_a_healthy_fleet_is_left_alone():
    fleet = ModelFleet(with_log())
    async with running(fleet) as executor:
        for _ in range(5):
            executor.wake()
            await asyncio.sleep(0)
    assert fleet.commands == []


async def test_every_shard_of_a_dead_primary_goes_on_and_loses_nothing():
    fleet = ModelFleet(with_log(rows=rows(30)))
    for shard in fleet.state.shards:
        assert fleet.append(shard)
    detector = detector_for(fleet)
    async with running(fleet, detector):
        die(fleet, detector, 1)
        await fleet.until(lambda: bool(committed(fleet, OpenSegment)) and fleet.settled())
        await fleet.until(lambda: bool(events(fleet, "failover")))
    assert fleet.state.nodes[name(1)].state is NodeState.DOWN
    assert all(fleet.append(shard) for shard in fleet.state.shards)
    fleet.check_nothing_lost()
    (event,) = events(fleet, "failover")
    assert event.node == name(1)
    assert event.text.startswith("6 shards opened elsewhere, the slowest in ")
    assert event.text.endswith("peer-1 is down")


async def test_promises_travel_joined_for_each_peer():
    fleet = ModelFleet(with_log(rows=((0, 1, 2),) * 100))
    detector = detector_for(fleet)
    async with running(fleet, detector):
        die(fleet, detector, 1)
        await fleet.until(lambda: len(committed(fleet, OpenSegment)) == 100)
    assert fleet.promise_calls < 100


async def test_an_endangered_node_becomes_expendable():
    fleet = ModelFleet(with_log(rows=rows(10)))
    for shard in fleet.state.shards:
        assert fleet.append(shard)
    async with running(fleet):
        fleet.commit(SetAtRisk(node=name(1), at_risk=True))
        await fleet.until(lambda: is_expendable(fleet.state, name(1)))
        await fleet.until(lambda: bool(events(fleet, "switch")))
    assert is_shielded(fleet.state, name(1))
    fleet.check_nothing_lost()
    assert committed(fleet, FenceSegment) == []
    (event,) = events(fleet, "switch")
    assert event.text.startswith("6 shards prepared without its vote, 2 of them led elsewhere: ")
    fleet.kill(1)
    assert all(fleet.append(shard) for shard in fleet.state.shards), "its death is no event"


async def test_changes_under_way_are_bounded_and_all_done_in_the_end():
    fleet = ModelFleet(with_log(rows=rows(20)))
    most = 0
    limits = Limits(changes_max=3)
    async with running(fleet, limits=limits):
        fleet.commit(SetDraining(node=name(1), draining=True))

        def drained() -> bool:
            nonlocal most
            most = max(most, len(fleet.indexed()[1].unsettled))
            return is_shielded(fleet.state, name(1))

        await fleet.until(drained)
    assert most <= 3


async def test_a_standing_fence_is_finished_by_the_next_leader():
    fleet = ModelFleet(with_log())
    fleet.append(SHARD)
    for peer in fleet.peers.values():
        peer.answers = False
    detector = detector_for(fleet)
    async with running(fleet, detector):
        die(fleet, detector, 1)
        await fleet.until(lambda: fleet.state.shards[SHARD].shard.fence != 0)
    fence = fleet.state.shards[SHARD].shard.fence
    for peer in fleet.peers.values():
        peer.answers = True
    async with running(fleet):
        await fleet.until(fleet.settled)
    assert opened_epoch(fleet) == fence
    assert len(committed(fleet, FenceSegment)) == 1
    fleet.check_nothing_lost()


async def test_a_prepared_segment_that_has_begun_is_confirmed_and_not_fenced():
    fleet = ModelFleet(with_log())
    fleet.append(SHARD)
    fleet.hold_reports = True
    fleet.commit(PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(2, 2, 3, 4)))
    assert fleet.append(SHARD), "the new primary acknowledges before the LAS knows"
    detector = detector_for(fleet)
    async with running(fleet, detector):
        die(fleet, detector, 1)
        await fleet.until(lambda: opened_epoch(fleet) == 2)
    assert committed(fleet, FenceSegment) == []
    fleet.check_nothing_lost()


async def test_a_begun_segment_whose_primary_dies_too_is_recovered():
    fleet = ModelFleet(with_log())
    fleet.append(SHARD)
    fleet.hold_reports = True
    fleet.commit(PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(2, 2, 3, 4)))
    assert fleet.append(SHARD)
    fleet.kill(1)
    fleet.kill(2)
    fleet.hold_reports = False
    detector = detector_for(fleet)
    async with running(fleet, detector):
        die(fleet, detector, 1)
        die(fleet, detector, 2)
        await fleet.until(fleet.settled)
    (opening,) = committed(fleet, OpenSegment)
    assert opening.ended_prepared is not None
    fleet.check_nothing_lost()


async def test_a_prepared_segment_that_never_began_is_dead_after_the_fence():
    fleet = ModelFleet(with_log())
    fleet.append(SHARD)
    fleet.kill(1)
    fleet.commit(PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(2, 2, 3, 4)))
    detector = detector_for(fleet)
    async with running(fleet, detector):
        die(fleet, detector, 1)
        await fleet.until(fleet.settled)
    assert fleet.state.shards[SHARD].shard.dead_epochs == (2,)
    fleet.check_nothing_lost()


async def test_a_switch_that_hangs_is_fenced():
    """P has stopped for good, N died before it reported: nobody orders, and P lives."""
    fleet = ModelFleet(with_log())
    fleet.append(SHARD)
    fleet.hold_reports = True
    fleet.commit(PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(2, 2, 3, 4)))
    fleet.kill(2)
    fleet.hold_reports = False
    detector = detector_for(fleet)
    async with running(fleet, detector):
        die(fleet, detector, 2)
        await fleet.until(fleet.settled)
    assert fleet.append(SHARD)
    fleet.check_nothing_lost()


async def test_a_switch_that_hangs_with_everybody_alive_is_fenced_later():
    fleet = ModelFleet(with_log())
    fleet.append(SHARD)
    fleet.peer(1).leads.clear()  # P has stopped, and its Begin never gets through
    fleet.commit(PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(2, 2, 3, 4)))
    async with running(fleet):
        await fleet.until(fleet.settled)
    assert len(committed(fleet, FenceSegment)) == 1
    fleet.check_nothing_lost()


async def test_with_too_few_answers_the_las_waits():
    fleet = ModelFleet(with_log())
    fleet.append(SHARD, reach=[2])
    detector = detector_for(fleet)
    async with running(fleet, detector):
        die(fleet, detector, 1)
        die(fleet, detector, 2)
        await fleet.until(lambda: fleet.promise_calls >= 12)
        assert committed(fleet, OpenSegment) == [], "the record may be on the silent two alone"
        fleet.restart(2)
        await fleet.until(fleet.settled)
    fleet.check_nothing_lost()


async def test_a_promise_above_the_fence_halts_the_shard():
    fleet = ModelFleet(with_log())
    fleet.peer(2).shard(SHARD).promised = 77
    detector = detector_for(fleet)
    async with running(fleet, detector):
        die(fleet, detector, 1)
        await fleet.until(lambda: bool(fleet.state.shards[SHARD].halted))
    assert "77" in fleet.state.shards[SHARD].halted
    assert committed(fleet, OpenSegment) == []


async def test_a_restarted_primary_is_recovered_at_once_and_may_lead_again():
    fleet = ModelFleet(with_log(nodes=3))
    fleet.append(SHARD)
    async with running(fleet):
        fleet.kill(1)
        fleet.restart(1)
        await fleet.until(fleet.settled)
    assert len(committed(fleet, OpenSegment)) == 1
    fleet.check_nothing_lost()


async def test_a_stalling_voter_is_replaced_with_the_primary_in_place():
    fleet = ModelFleet(with_log())
    detector = detector_for(fleet)
    async with running(fleet, detector):
        assert detector.stalled(name(1), SHARD, Epoch(1), replica(3), clock())
        await fleet.until(lambda: opened_epoch(fleet) == 2)
    plan = fleet.state.shards[SHARD].shard.open.plan
    assert plan.primary == process(1)
    assert replica(3) not in plan.voters


async def test_a_declined_change_is_planned_anew():
    fleet = ModelFleet(with_log())
    fleet.append(SHARD)
    fleet.kill(4)
    fleet.kill(5)
    async with running(fleet) as executor:
        fleet.commit(SetAtRisk(node=name(1), at_risk=True))
        await fleet.until(lambda: len(fleet.state.shards[SHARD].shard.sealed) == 1)
        assert executor.recovering == 0
    fleet.check_nothing_lost()


async def test_lost_copies_are_made_anew():
    fleet = ModelFleet(with_log())
    fleet.append(SHARD)
    fleet.commit(PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(1, 1, 2, 3)))
    detector = detector_for(fleet)
    async with running(fleet, detector, Limits(repair_delay_ms=0)):
        die(fleet, detector, 3)

        def repaired() -> bool:
            sealed = fleet.state.shards[SHARD].shard.sealed
            healthy = [holder for holder in sealed[0].holders if holder != replica(3)]
            return len(healthy) == 3

        await fleet.until(repaired)
    assert committed(fleet, WantHolders)
    fleet.check_nothing_lost()


async def test_a_shortage_is_told_and_ends_when_a_node_joins():
    fleet = ModelFleet(with_log(nodes=2, rows=((0, 1),), copies=2))
    detector = detector_for(fleet)
    async with running(fleet, detector) as executor:
        die(fleet, detector, 2)
        await fleet.until(lambda: SHARD in executor.shortages)
        assert executor.shortages[SHARD].startswith("peer-2 is gone")
        fleet.commit(register(3))
        fleet.peers[name(3)] = type(fleet.peer(1))(process=process(3), number=3)
        await fleet.until(lambda: opened_epoch(fleet) == 2)
        await fleet.until(lambda: not executor.shortages)


async def test_a_deposed_leader_changes_nothing_and_does_not_fall_over():
    fleet = ModelFleet(with_log())
    detector = detector_for(fleet)
    async with running(fleet, detector):
        fleet.leading = False
        die(fleet, detector, 1)
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert fleet.commands == []
        fleet.leading = True
        await fleet.until(lambda: bool(committed(fleet, OpenSegment)))


class Doubtful(ModelFleet):
    """Answers each of the first commands of some kinds with no outcome, after it was committed or
    without.
    """

    def __init__(self, state, *kinds: type, commits: bool) -> None:
        super().__init__(state)
        self.doubted = dict.fromkeys(kinds, 2)
        self.commits = commits

    async def submit(self, command):
        if self.doubted.get(type(command), 0) > 0:
            self.doubted[type(command)] -= 1
            if self.commits:
                await super().submit(command)
            raise Refused(refusal(Reason.LAS_UNAVAILABLE, "no outcome", taken=Taken.UNKNOWN))
        return await super().submit(command)


@pytest.mark.parametrize("commits", [True, False])
async def test_a_line_of_a_history_without_a_known_outcome_is_told_and_once(commits):
    fleet = Doubtful(with_log(), RecordEvent, commits=commits)
    detector = detector_for(fleet)
    async with running(fleet, detector):
        die(fleet, detector, 1)
        # The second line is told when the first one is.
        await fleet.until(
            lambda: bool(events(fleet, "failover")) and fleet.doubted[RecordEvent] == int(commits)
        )
        for _ in range(20):
            await asyncio.sleep(0.002)
    assert len(events(fleet, "failover")) == 1


@pytest.mark.parametrize("action", ["prepare", "want"])
async def test_a_step_that_is_given_up_without_an_outcome_is_looked_at_again(action):
    """Not when the sweep over all shards comes by: that may take many seconds."""
    fleet = Doubtful(with_log(), PrepareSegment, WantHolders, commits=False)
    plan = plan_of(2, 2, 3)
    executor = Executor(
        consensus=fleet,
        peers=fleet,
        detector=detector_for(fleet),
        limits=Limits(),
        now=clock,
        wall_ms=itertools.count(1).__next__,
    )
    before = fleet.state.shards[SHARD].shard.open.plan
    work = {
        "prepare": lambda: executor._prepare(
            Prepare(shard=SHARD, epoch=Epoch(1), plan=plan, why="risk", urgency=Urgency.AT_RISK),
            before,
        ),
        "want": lambda: executor._want(
            Want(
                shard=SHARD,
                epoch=Epoch(1),
                holders=(replica(4),),
                why="copies",
                kept_tail=False,
                healthy=1,
            )
        ),
    }[action]
    with pytest.raises(Refused):
        await work()
    assert executor._again == {SHARD}
    assert not fleet.commands


async def test_an_error_of_ours_ends_the_executor_loudly():
    fleet = ModelFleet(with_log())

    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    fleet.promise = broken
    fleet.kill(1)
    fleet.restart(1)
    executor = Executor(
        consensus=fleet,
        peers=fleet,
        detector=detector_for(fleet),
        limits=Limits(),
        now=clock,
        wall_ms=lambda: 0,
        timing=TIMING,
    )
    with pytest.raises(ExceptionGroup):
        await executor.run()


async def test_a_suspect_that_its_neighbours_hear_is_left_alone():
    fleet = ModelFleet(with_log())
    detector = detector_for(fleet)
    asked = asyncio.Event()
    hears = fleet.hears

    async def watched(*names: str):
        asked.set()
        return await hears(*names)

    fleet.hears = watched
    async with running(fleet, detector):
        detector.suspected(name(2), name(1), process(1).boot, refused=True, now=clock())
        await asyncio.wait_for(asked.wait(), 10)
        for _ in range(10):
            await asyncio.sleep(0.002)
    assert fleet.commands == []


@pytest.mark.parametrize("seed", range(12))
async def test_random_deaths_and_moves_lose_nothing_and_end_well(seed):
    rng = random.Random(seed)
    fleet = ModelFleet(with_log(nodes=6, rows=rows(6, nodes=6)))
    detector = detector_for(fleet)
    shards = sorted(fleet.state.shards)
    async with running(fleet, detector):
        for _ in range(120):
            step = rng.random()
            number = rng.randint(1, 6)
            dead = [each.number for each in fleet.peers.values() if not each.alive]
            if step < 0.6:
                reach = rng.sample(range(1, 7), rng.randint(2, 6))
                fleet.append(rng.choice(shards), reach)
            elif step < 0.68 and len(dead) < 2 and number not in dead:
                die(fleet, detector, number)
            elif step < 0.8 and dead:
                fleet.restart(dead[0])
                node = fleet.state.nodes[name(dead[0])]
                detector.heard(node.name, node.boot, clock())
            elif step < 0.9:
                fleet.commit(SetAtRisk(node=name(number), at_risk=rng.random() < 0.4))
            elif step < 0.95:
                fleet.hold_reports = rng.random() < 0.5
            await asyncio.sleep(rng.choice((0, 0, 0.001, 0.004)))
        fleet.hold_reports = False
        for peer in list(fleet.peers.values()):
            if not peer.alive:
                fleet.restart(peer.number)
        for number in range(1, 7):
            fleet.commit(SetAtRisk(node=name(number), at_risk=False))
        await fleet.until(fleet.settled)
    fleet.check_nothing_lost()
    assert all(fleet.append(shard) for shard in shards)
    assert len(fleet.acked) > 20
    assert not [each for each in committed(fleet, SegmentOpened) if each.shard == ShardId(99)]


async def test_planned_changes_yield_to_recoveries_but_not_to_those_that_hang(monkeypatch):
    """Voters that never answer must not hold up the whole fleet's planned changes."""
    monkeypatch.setattr("las.daemon.executor.YIELD_MS", 300)
    fleet = ModelFleet(with_log(rows=((0, 1, 2), (2, 3, 4))))
    detector = detector_for(fleet)
    async with running(fleet, detector):
        for number in (1, 2):
            fleet.peers[name(number)].answers = False
        # Before the recovery begins: however late this test looks, so long has passed since.
        began = clock()
        die(fleet, detector, 1)
        await fleet.until(lambda: fleet.state.shards[SHARD].shard.fence != 0)
        fleet.commit(SetDraining(node=name(4), draining=True))
        await fleet.until(lambda: is_shielded(fleet.state, name(4)))
        assert clock() - began >= 300
    assert fleet.state.shards[SHARD].shard.fence != 0


async def test_what_pauses_appends_does_not_yield(monkeypatch):
    monkeypatch.setattr("las.daemon.executor.YIELD_MS", 600_000)
    fleet = ModelFleet(with_log(rows=((0, 1, 2), (2, 3, 4))))
    detector = detector_for(fleet)
    async with running(fleet, detector):
        for number in (1, 2):
            fleet.peers[name(number)].answers = False
        die(fleet, detector, 1)
        await fleet.until(lambda: fleet.state.shards[SHARD].shard.fence != 0)
        for number in (4, 5):
            die(fleet, detector, number)
        # Its primary lives, and too few voters are left to acknowledge.
        await fleet.until(lambda: fleet.state.shards[ShardId(2)].shard.open.epoch > 1)


async def test_a_mass_take_over_is_told_and_planned_changes_rest_a_little(monkeypatch):
    monkeypatch.setattr("las.daemon.executor.SETTLE_MS_PER_SHARD", 20)
    fleet = ModelFleet(with_log(rows=((0, 1, 2),) * 20 + ((1, 2, 3),)))
    detector = detector_for(fleet)
    taken = TakeOvers(shards_min=20, patience_ms=60_000)
    async with running(fleet, detector, take_overs=taken):
        began = clock()
        die(fleet, detector, 1)
        await fleet.until(lambda: len(committed(fleet, OpenSegment)) == 20)
        fleet.commit(SetDraining(node=name(4), draining=True))
        await fleet.until(lambda: is_shielded(fleet.state, name(4)))
        assert clock() - began >= 20 * 20
    assert {name(2), name(3)} <= taken.busy(clock()).keys()


async def test_the_look_that_finds_a_death_already_yields_to_its_recoveries():
    """What it plans beside them would be committed and carried out before the first fence."""
    led, followed = ((0, 1, 2),) * 10, ((1, 0, 2), (2, 0, 1)) * 5
    fleet = ModelFleet(with_log(rows=(*led, *followed)))
    detector = detector_for(fleet)
    async with running(fleet, detector):
        die(fleet, detector, 1)
        await fleet.until(lambda: fleet.settled() and is_shielded(fleet.state, name(1)))
    kinds = [type(each) for each in fleet.commands]
    last_open = max(at for at, kind in enumerate(kinds) if kind is OpenSegment)
    assert PrepareSegment in kinds[last_open:]
    assert PrepareSegment not in kinds[:last_open]


async def test_what_does_not_fit_into_one_look_is_done_in_the_next(monkeypatch):
    for bound in ("LOOK_SHARDS_MAX", "SWEEP_SHARDS_MAX", "RECOVERIES_MAX", "TASKS_MAX"):
        monkeypatch.setattr(f"las.daemon.executor.{bound}", 2)
    fleet = ModelFleet(with_log(rows=rows(20)))
    detector = detector_for(fleet)
    most = 0
    async with running(fleet, detector) as executor:
        die(fleet, detector, 1)

        def recovered() -> bool:
            nonlocal most
            most = max(most, executor.recovering)
            return fleet.settled() and is_shielded(fleet.state, name(1))

        await fleet.until(recovered)
    assert 0 < most <= 2
    assert len(committed(fleet, OpenSegment)) == 4


async def test_the_primary_of_a_prepared_segment_that_is_gone_is_not_waited_for():
    fleet = ModelFleet(with_log())
    fleet.append(SHARD)
    fleet.kill(1)
    fleet.commit(PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(2, 2, 3, 4)))
    fleet.kill(2)
    detector = detector_for(fleet)

    async def asked(*_: object) -> None:
        raise AssertionError("it was asked")

    fleet.has_begun = asked
    die(fleet, detector, 2)
    async with running(fleet, detector):
        await fleet.until(lambda: fleet.state.nodes[name(2)].state is NodeState.DOWN)
        die(fleet, detector, 1)
        await fleet.until(lambda: fleet.state.shards[SHARD].shard.fence != 0)

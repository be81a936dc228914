"""Hand-overs that wait for a primary which does not answer are finished without it."""

from dataclasses import replace
from functools import partial

import pytest

from las.core.commands import FenceSegment, PrepareSegment, SetAtRisk, SetDraining
from las.daemon.detector import Detector
from las.daemon.hand_overs import HandOvers, HandOverTiming, hands_over
from peerd.core.ids import BootId, Epoch, ProcessId, Tick
from tests.las_core.builders import SHARD, name, plan_of, process, replica, with_log
from tests.las_core.model_fleet import ModelFleet
from tests.las_daemon import test_executor
from tests.las_daemon.test_executor import (
    clock,
    committed,
    detector_for,
    opened_epoch,
    rows,
)

TIMING = HandOverTiming(answer_ms=300, dial_ms=500, again_ms=100, silent_ms=3_000)

# Nothing is fenced for its age alone, however long this process is not run.
running = partial(test_executor.running, timing=replace(test_executor.TIMING, hang_ms=600_000))


class Asked:
    """A clock that stands, and a process that answers or not."""

    def __init__(self) -> None:
        self.now = Tick(1_000)
        self.answers = True
        self.within_ms: list[int] = []
        self.hand_overs = HandOvers(self._responds, lambda: self.now, TIMING)

    async def _responds(self, _target: ProcessId, within_ms: int) -> bool:
        self.within_ms.append(within_ms)
        self.later(0 if self.answers else within_ms)
        return self.answers

    def later(self, ms: int) -> None:
        self.now = Tick(self.now + ms)


def prepared(fleet: ModelFleet, *, to: int = 2) -> None:
    fleet.commit(PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(to, 2, 3, 4)))


# ---------------------------------------------------------------------------------- whom to ask
@pytest.mark.parametrize(
    "mark",
    [SetAtRisk(node=name(1), at_risk=True), SetDraining(node=name(1), draining=True)],
    ids=["at_risk", "draining"],
)
def test_a_node_that_is_to_be_left_is_waited_for(mark):
    fleet = ModelFleet(with_log())
    fleet.peer(1).answers = False
    fleet.commit(mark)
    prepared(fleet)
    assert hands_over(fleet.state, fleet.state.shards[SHARD]) == process(1)


def test_a_healthy_node_has_all_the_time_of_a_planned_change():
    fleet = ModelFleet(with_log())
    fleet.peer(1).answers = False
    prepared(fleet)
    assert hands_over(fleet.state, fleet.state.shards[SHARD]) is None


def test_nothing_is_waited_for_before_it_is_prepared_or_while_the_next_one_is_gone():
    fleet = ModelFleet(with_log())
    fleet.peer(1).answers = False
    fleet.commit(SetAtRisk(node=name(1), at_risk=True))
    assert hands_over(fleet.state, fleet.state.shards[SHARD]) is None
    prepared(fleet)
    fleet.restart(2)
    assert hands_over(fleet.state, fleet.state.shards[SHARD]) is None


# ---------------------------------------------------------------------------------- the question
async def test_who_answers_is_asked_again_after_a_while():
    asked = Asked()
    assert asked.hand_overs.is_due(process(1))
    await asked.hand_overs.ask(process(1))
    assert not asked.hand_overs.is_due(process(1))
    assert not asked.hand_overs.is_silent(process(1))
    asked.later(TIMING.again_ms)
    assert asked.hand_overs.is_due(process(1))


async def test_the_first_question_to_a_process_may_take_longer():
    asked = Asked()
    for _ in range(2):
        await asked.hand_overs.ask(process(1))
    await asked.hand_overs.ask(ProcessId(name(1), replica(1).store, BootId("another")))
    assert asked.within_ms == [TIMING.dial_ms, TIMING.answer_ms, TIMING.dial_ms]


async def test_only_what_was_to_be_handed_over_when_it_was_asked_counts():
    asked = Asked()
    asked.answers = False
    began = asked.now
    await asked.hand_overs.ask(process(1))
    assert asked.hand_overs.is_silent(process(1))
    assert asked.hand_overs.is_silent(process(1), began)
    assert not asked.hand_overs.is_silent(process(1), Tick(began + 1)), "asked before"
    assert not asked.hand_overs.is_silent(ProcessId(name(1), replica(1).store, BootId("another")))


async def test_an_answer_that_comes_later_or_a_while_ends_the_silence():
    asked = Asked()
    asked.answers = False
    await asked.hand_overs.ask(process(1))
    asked.answers = True
    await asked.hand_overs.ask(process(1))
    assert not asked.hand_overs.is_silent(process(1))
    asked.answers = False
    await asked.hand_overs.ask(process(1))
    asked.later(TIMING.silent_ms)
    assert not asked.hand_overs.is_silent(process(1))


# ---------------------------------------------------------------------------------- the executor
def leads_nothing(fleet: ModelFleet, number: int) -> bool:
    shards = fleet.state.shards.values()
    return all(each.shard.open.plan.primary.peer != name(number) for each in shards)


async def test_a_starved_primary_at_risk_is_not_waited_for():
    fleet = ModelFleet(with_log())
    fleet.append(SHARD)
    fleet.peer(1).answers = False
    fleet.commit(SetAtRisk(node=name(1), at_risk=True))
    async with running(fleet):
        await fleet.until(lambda: opened_epoch(fleet) > 1 and fleet.settled())
        assert process(1) in fleet.questions
    (fence,) = committed(fleet, FenceSegment)
    assert "peer-1 is to hand it over and does not answer" in fence.why
    entry = fleet.state.shards[SHARD].shard
    assert name(1) not in {each.peer for each in entry.open.plan.voters}
    assert fleet.append(SHARD)
    fleet.check_nothing_lost()


async def test_one_that_answers_and_does_not_get_on_has_a_bound():
    fleet = ModelFleet(with_log())
    fleet.append(SHARD)
    fleet.peer(1).stuck = True
    fleet.commit(SetAtRisk(node=name(1), at_risk=True))
    async with running(fleet, hand_over_timing=HandOverTiming(again_ms=1, finish_ms=30)):
        await fleet.until(lambda: opened_epoch(fleet) > 1 and fleet.settled())
    (fence,) = committed(fleet, FenceSegment)
    assert fence.why.endswith("peer-1 is to hand it over and does not get on")
    assert fleet.append(SHARD)
    fleet.check_nothing_lost()


async def test_one_that_is_drained_and_answers_keeps_its_time():
    fleet = ModelFleet(with_log())
    fleet.peer(1).stuck = True
    fleet.commit(SetDraining(node=name(1), draining=True))
    async with running(fleet, hand_over_timing=HandOverTiming(again_ms=1, finish_ms=0)):
        await fleet.until(lambda: len(fleet.questions) > 2)
        assert committed(fleet, FenceSegment) == []
        fleet.peer(1).stuck = False
        await fleet.until(lambda: fleet.settled() and leads_nothing(fleet, 1))
    assert committed(fleet, FenceSegment) == []


def late(fleet: ModelFleet) -> Detector:
    """A detector that has been told by peer 1 that all its voters stall."""
    detector, now = detector_for(fleet), clock()
    for number in (2, 3):
        detector.stalled(name(1), SHARD, Epoch(1), replica(number), now)
    for later_ms in (0, 300):
        detector.judge(*fleet.indexed(), Tick(now + later_ms))
    assert detector.slow == {name(1)}
    return detector


async def test_a_primary_that_says_that_all_others_stall_is_the_one_that_is_left():
    """Its packets are late: nobody else is replaced, and it is not waited for."""
    fleet = ModelFleet(with_log(rows=((0, 1, 2), (1, 0, 2))))
    fleet.append(SHARD)
    fleet.peer(1).answers = False
    async with running(fleet, late(fleet)):
        await fleet.until(lambda: leads_nothing(fleet, 1) and fleet.settled())
    (fence,) = committed(fleet, FenceSegment)
    assert "peer-1 is to hand it over and does not answer" in fence.why
    prepared, *_ = committed(fleet, PrepareSegment)
    assert prepared.why.startswith("peer-1 stalls as primary: ")
    assert not fleet.state.nodes[name(1)].at_risk
    plan = fleet.state.shards[SHARD].shard.open.plan
    assert {name(2), name(3)} < {each.peer for each in plan.voters}
    assert fleet.append(SHARD)
    fleet.check_nothing_lost()


async def test_what_was_prepared_for_itself_before_it_was_known_is_not_waited_for_either():
    fleet = ModelFleet(with_log())
    fleet.append(SHARD)
    fleet.peer(1).answers = False
    fleet.commit(PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(1, 1, 2, 4)))
    assert hands_over(fleet.state, fleet.state.shards[SHARD]) is None, "it is not to be left"
    async with running(fleet, late(fleet)):
        await fleet.until(lambda: leads_nothing(fleet, 1) and fleet.settled())
    (fence,) = committed(fleet, FenceSegment)
    assert fence.why == "peer-1 is to hand it over and does not answer"
    assert fleet.begun_questions == [], "nor asked whether it has begun"
    fleet.check_nothing_lost()


async def test_what_it_had_begun_itself_and_acknowledged_is_found_without_asking_it():
    fleet = ModelFleet(with_log())
    fleet.append(SHARD)
    fleet.hold_reports = True
    fleet.commit(PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(1, 1, 2, 4)))
    assert fleet.append(SHARD, reach=(2, 4)), "in what it has begun"
    fleet.peer(1).answers = False
    async with running(fleet, late(fleet)):
        await fleet.until(lambda: leads_nothing(fleet, 1) and fleet.settled())
    assert [each.prepared for each in committed(fleet, FenceSegment)] == [Epoch(2)]
    assert fleet.begun_questions == []
    assert len(fleet.acked) == 2
    fleet.check_nothing_lost()


def test_one_that_goes_on_without_a_vote_is_not_left():
    fleet = ModelFleet(with_log())
    fleet.peer(1).stuck = True
    fleet.commit(SetAtRisk(node=name(1), at_risk=True))
    mirrored = replace(plan_of(2, 2, 3, 4), primary=process(1), non_voters=(replica(1),))
    assert fleet.commit(PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=mirrored)).ok
    assert hands_over(fleet.state, fleet.state.shards[SHARD]) is None


async def test_one_that_is_late_and_answers_hands_over():
    fleet = ModelFleet(with_log())
    fleet.append(SHARD)
    async with running(fleet, late(fleet)):
        await fleet.until(lambda: leads_nothing(fleet, 1) and fleet.settled())
    assert committed(fleet, FenceSegment) == []
    fleet.check_nothing_lost()


async def test_what_it_was_not_asked_for_yet_is_not_even_prepared():
    fleet = ModelFleet(with_log(rows=rows(200)))
    fleet.peer(1).answers = False
    fleet.commit(SetDraining(node=name(1), draining=True))
    # What it did not answer counts to the end: many changes take their time.
    async with running(fleet, hand_over_timing=HandOverTiming(silent_ms=600_000)):
        await fleet.until(lambda: fleet.settled() and leads_nothing(fleet, 1))
    fences = [each.why for each in committed(fleet, FenceSegment)]
    assert len(fences) == len([row for row in rows(200) if row[0] == 1])
    assert any(why.endswith("and peer-1 does not answer") for why in fences)


async def test_a_primary_that_answers_hands_over_as_ever():
    fleet = ModelFleet(with_log(rows=rows(30)))
    fleet.commit(SetAtRisk(node=name(1), at_risk=True))
    async with running(fleet):
        await fleet.until(lambda: fleet.settled() and leads_nothing(fleet, 1))
    assert committed(fleet, FenceSegment) == []


async def test_one_that_had_begun_is_confirmed_and_not_fenced():
    """The old primary has switched and is starved since: the next one tells."""
    fleet = ModelFleet(with_log())
    fleet.append(SHARD)
    fleet.hold_reports = True
    prepared(fleet)
    fleet.commit(SetAtRisk(node=name(1), at_risk=True))
    fleet.peer(1).answers = False
    async with running(fleet):
        await fleet.until(lambda: opened_epoch(fleet) == 2)
    assert committed(fleet, FenceSegment) == []
    fleet.check_nothing_lost()

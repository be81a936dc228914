"""From an alarm to a case in the ledger, and from a failure to its end."""

import pytest

from las.core.commands import OpenCase, SetAtRisk, SetDraining, SetNodeState
from las.core.ledger import Case, Outcome, Response
from las.core.state import Event, NodeState
from las.daemon import ledger
from las.daemon.ledger import end_of_failure
from las.daemon.story import DIED, RETURNED
from las.v1 import fleet_pb2
from las.v1 import forecast_pb2 as pb
from peerd.core.ids import NodeName
from tests.las_daemon.stand_in import ADMIN, refused, until
from tests.las_daemon.test_forecast import calm, sicken
from tests.las_daemon.test_logs import create

PEER = NodeName("peer-1")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(ledger, "LOOK_MS", 20)
    monkeypatch.setattr(ledger, "SETTLE_MS", 300)


async def read(las, **fields):
    request = pb.GetLedgerRequest(**fields)
    return (await las.forecast.GetLedger(request, metadata=ADMIN, timeout=30)).cases


async def alarmed(las):
    first, *others = await las.add_peers(4)
    await create(las, shards=2, copies=3)
    for peer in others:
        await calm(peer)
    await sicken(first)
    await until(lambda: len(las.state.cases) == 1, "a case")
    return first


async def test_an_alarm_is_written_down_before_it_is_acted_on(las):
    await alarmed(las)
    await until(lambda: las.state.nodes["peer-1"].at_risk, "at risk")
    (case,) = await read(las, node="peer-1")
    assert (case.node, case.response, case.outcome) == ("peer-1", "protect", "open")
    assert (case.rule, case.horizon_s, case.model_id) == ("threshold", 600, "heuristic")
    assert case.probability == pytest.approx(0.85)
    assert "×45" in case.why
    assert (await read(las, node="peer-2")) == []
    request = pb.GetLedgerRequest(node="nobody")
    call = las.forecast.GetLedger(request, metadata=ADMIN, timeout=30)
    assert (await refused(call))[0] == "UNKNOWN_NODE"


async def test_a_failure_that_came_before_the_shards_had_moved_is_a_miss(las):
    first = await alarmed(las)
    await until(lambda: las.state.nodes["peer-1"].at_risk, "at risk")
    await first.report(fleet_pb2.PeerReport(storage_failed=fleet_pb2.StorageFailed(why="EIO")))
    await until(lambda: not las.state.cases[1].is_open, "the end")
    (case,) = await read(las)
    assert (case.outcome, case.shielded_ms) == ("miss", -1)
    assert case.told.startswith("too late")


async def test_a_failure_without_a_signal_is_a_miss_that_is_told_once(las):
    first, *_ = await las.add_peers(3)
    await first.report(fleet_pb2.PeerReport(storage_failed=fleet_pb2.StorageFailed(why="EIO")))
    await until(lambda: any(not case.is_open for case in las.state.cases.values()), "the end")
    for _ in range(3):
        await las.term.ledger.look()
    (case,) = await read(las)
    assert (case.response, case.outcome, case.told) == ("none", "miss", "no signal")


async def test_one_at_risk_that_falls_silent_again_is_no_second_failure(las):
    """As a link does that gets worse: what was foreseen is told once, and not as a miss."""
    await alarmed(las)
    await until(lambda: las.state.nodes["peer-1"].at_risk, "at risk")
    boot = las.state.nodes["peer-1"].boot

    def history() -> list[str]:
        return [each.kind for each in las.state.events.get(PEER, ())]

    for deaths in (1, 2):
        for state, told in ((NodeState.DOWN, DIED), (NodeState.UP, RETURNED)):
            command = SetNodeState(node=PEER, boot=boot, state=state, why="silent, or not")
            assert (await las.node.group.submit(command)).ok
            await until(lambda told=told, many=deaths: history().count(told) == many, told)
        await until(lambda: not las.state.cases[1].is_open, "the end")
        for _ in range(3):
            await las.term.ledger.look()
    assert len(las.state.cases) == 1


async def test_who_is_left_alone_is_drawn_and_then_not_touched(las):
    las.term.ledger._policy = las.term.ledger._policy.model_copy(update={"holdout": 0.5})
    las.term.ledger._draw = lambda: 0.49
    await alarmed(las)
    number = las.term.forecaster.latest.number
    await until(lambda: las.term.forecaster.latest.number > number + 3)
    assert not las.state.nodes["peer-1"].at_risk
    (case,) = await read(las)
    assert (case.response, case.eligible) == ("held_out", True)
    assert las.term.ledger.left_alone() == {"peer-1"}
    effect = await las.forecast.GetEffect(pb.GetEffectRequest(), metadata=ADMIN, timeout=30)
    assert (effect.protected, effect.held_out) == (0, 0)


async def test_a_drained_node_that_did_not_fail_is_unknown(las):
    await las.add_peers(3)
    group = las.node.group
    case = Case(node=PEER, opened_ms=0, response=Response.PROTECT)
    await group.submit(OpenCase(case=case))
    await group.submit(SetDraining(node=PEER, draining=True))
    await las.term.ledger.calm(PEER)
    assert las.state.cases[1].outcome is Outcome.UNKNOWN


async def test_calm_again_is_a_false_alarm_with_what_it_cost(las):
    await las.add_peers(3)
    group = las.node.group
    case = Case(node=PEER, opened_ms=0, response=Response.PROTECT, voting=3, stored_bytes=1 << 20)
    await group.submit(OpenCase(case=case))
    await group.submit(SetAtRisk(node=PEER, at_risk=True))

    def told_expendable():
        return [event.kind for event in las.state.events.get(PEER, ())][-1:] == ["expendable"]

    await until(told_expendable, "expendable")
    await las.term.ledger.calm(PEER)
    (told,) = await read(las)
    assert (told.outcome, told.copies_spent, told.bytes_spent) == ("false_alarm", 3, 1 << 20)


# ---------------------------------------------------------------------------------- pure
def history(**moments):
    return [Event(timestamp_ms=at, kind=kind, node=PEER, text="") for kind, at in moments.items()]


@pytest.mark.parametrize(
    ("response", "moments", "outcome", "words"),
    [
        (Response.PROTECT, {"at_risk": 10, "shielded": 200}, Outcome.HIT, "no append needed it"),
        (Response.PROTECT, {"at_risk": 10, "shielded": 20, "expendable": 30}, Outcome.HIT, "all"),
        (Response.PROTECT, {"at_risk": 10, "mirrored": 60}, Outcome.HIT, "no record needed it"),
        (
            Response.PROTECT,
            {"at_risk": 10, "mirrored": 60, "shielded": 90},
            Outcome.HIT,
            "no append needed it",
        ),
        (Response.PROTECT, {"at_risk": 10}, Outcome.MISS, "too late"),
        (Response.PROTECT, {"at_risk": 10, "died": 400, "shielded": 900}, Outcome.MISS, "too late"),
        (Response.HELD_OUT, {}, Outcome.MISS, "left alone"),
        (Response.HELD_BACK, {}, Outcome.MISS, "no budget"),
        (Response.NONE, {}, Outcome.MISS, "no signal"),
    ],
)
def test_how_a_failure_ends_a_case(response, moments, outcome, words):
    case = Case(number=3, node=PEER, opened_ms=100, response=response)
    end = end_of_failure(case, history(**moments), 500, 77)
    assert (end.number, end.outcome, end.lead_ms, end.pause_ms) == (3, outcome, 400, 77)
    assert words in end.told
    assert (end.shielded_ms >= 0) == (outcome is Outcome.HIT)

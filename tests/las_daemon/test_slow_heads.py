"""The history head in the daemon: it reads the LAS's outages, is joined, and decides nothing."""

import time
from dataclasses import replace

from las.core.state import ClusterState, Node
from las.daemon import slow_heads
from las.daemon.disk_readings import DiskReadings
from las.daemon.slow_heads import REFRESH_S, REST_S, SlowHeads
from las.forecast.contract import HARDWARE, HISTORY, ModelRefused
from las.forecast.heads import shipped_head
from las.v1 import history_pb2
from tests.las_daemon.stand_in import until
from tests.las_daemon.test_forecast import calm, forecast
from tests.las_daemon.test_history import row, take

DAY_S = 86_400


async def test_a_node_that_often_failed_is_feared_for_and_not_moved(las, monkeypatch):
    # The peers beat but once and count as dead soon; what is asked here does not depend on it.
    monkeypatch.setattr(slow_heads, "REST_S", 0)
    peers = await las.add_peers(2)
    for peer in peers:
        await calm(peer)
    now_s = int(time.time())
    days = (1, 2, 3, 5, 8, 13)
    hardware = history_pb2.OUTAGE_CAUSE_HARDWARE
    await take(las, *(row("peer-1", now_s - day * DAY_S, cause=hardware) for day in days))

    def feared():
        outlooks = las.term.forecaster.latest.slow.nodes.get("peer-1", ())
        return any(each.reasons for each in outlooks)

    await until(feared, "the history head's word")
    often, never = (await forecast(las)).forecasts
    assert [each.head for each in often.heads] == ["hardware", "history"]
    assert [each.known for each in often.heads] == [False, True]
    assert "failures in 90 d, the last" in often.heads[1].reasons[0].text
    place = [horizon.horizon_s for horizon in often.joined].index(7 * DAY_S)
    assert often.joined[place].probability > 2 * never.joined[place].probability > 0.0
    told = [horizon.probability for horizon in often.joined]
    assert len(told) == 5
    assert told == sorted(told)
    assert not often.at_risk


def an_empty_fleet(*names):
    return {
        name: Node(name=name, store="s", boot="b", address="a:1", labels=(), in_service_s=1)
        for name in names
    }


class Broken:
    """A head that answers with what is no probability."""

    class contract:  # noqa: N801
        window = 1
        features = ("x",)

    def predict(self, inputs):
        raise ModelRefused("answers with NaN or infinity")


def test_a_head_that_breaks_is_given_up_and_the_others_go_on():
    heads = SlowHeads({HARDWARE: Broken(), HISTORY: shipped_head(HISTORY)})
    state = ClusterState(cluster_id="c", nodes=an_empty_fleet("n1", "n2"))
    told = heads.ask(state, DiskReadings(), 1_000).nodes
    assert {name: [each.head for each in outlooks] for name, outlooks in told.items()} == {
        "n1": [HISTORY],
        "n2": [HISTORY],
    }
    assert "given up" in heads.note


def test_they_are_asked_anew_when_the_history_changes_or_a_minute_has_passed():
    heads = SlowHeads.load()
    state = ClusterState(cluster_id="c")
    first = heads.ask(state, DiskReadings(), 1_000)
    assert heads.ask(state, DiskReadings(), 1_000 + REFRESH_S - 1) is first
    second = heads.ask(state, DiskReadings(), 1_000 + REFRESH_S)
    assert second is not first
    changed = replace(state, nodes=an_empty_fleet("n1"))
    at_s = 1_000 + REFRESH_S
    assert heads.ask(changed, DiskReadings(), at_s + REST_S - 1) is second
    assert set(heads.ask(changed, DiskReadings(), at_s + REST_S).nodes) == {"n1"}

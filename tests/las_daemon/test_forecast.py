"""From samples in heartbeats to committed flags and a history, and what clients see of it."""

import math
import time

import numpy as np
import pytest

from las.core.state import NodeState
from las.daemon.model import Model
from las.forecast.answer import Forecast
from las.forecast.contract import ModelRefused
from las.v1 import fleet_pb2
from las.v1 import forecast_pb2 as pb
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA, TelemetrySchema
from tests.las_daemon.stand_in import ADMIN, refused, until
from tests.las_daemon.test_fleet import status
from tests.las_daemon.test_logs import create


def forecast(las, node=""):
    return las.forecast.GetForecast(pb.GetForecastRequest(node=node), metadata=ADMIN, timeout=30)


def explain(las, node):
    return las.forecast.Explain(pb.ExplainRequest(node=node), metadata=ADMIN, timeout=30)


async def sicken(peer):
    return await peer.heartbeats(peer.beat(samples=peer.samples(60, commit_ms=90.0)))


async def calm(peer):
    return await peer.heartbeats(peer.beat(samples=peer.samples(60, commit_ms=2.0)))


async def test_a_sick_node_is_at_risk_left_and_explained(las):
    first, *others = await las.add_peers(4)
    await create(las, shards=2, copies=3)
    for peer in others:
        await calm(peer)
    await sicken(first)
    await until(lambda: las.state.nodes["peer-1"].at_risk, "at risk")
    assert not any(las.state.nodes[peer.name].at_risk for peer in others)
    await until(lambda: bool(las.state.events.get("peer-1")), "a line")
    (found,) = (await forecast(las, "peer-1")).forecasts
    assert (found.at_risk, found.known, found.model_id) == (True, True, "heuristic")
    assert [horizon.horizon_s for horizon in found.horizons] == [600, 3600]
    assert found.horizons[0].probability > 0.8
    assert "×45" in found.reasons[0].text
    story = await explain(las, "peer-1")
    assert "p(10 min) 0.85 against policy.threshold 0.8" in story.judgement
    assert any(line.startswith("at risk: not below half") for line in story.judgement)
    assert story.facts[0] == "it is at risk"
    assert story.events[0].kind == "at_risk"
    assert "p(10 min) 0.85" in story.events[0].text
    assert "×45" in story.events[0].text
    warnings = (await status(las)).warnings
    assert any(line.startswith("peer-1 is at risk, p(10 min) 0.85") for line in warnings), warnings
    needed = [
        entry
        for entry in las.state.shards.values()
        if "peer-1" in {voter.peer for voter in entry.shard.open.plan.voters}
    ]
    shards = [entry.shard.shard for entry in needed]
    await until(lambda: all(las.state.shards[shard].shard.prepared for shard in shards))
    for shard in shards:
        prepared = las.state.shards[shard].shard.prepared.plan
        assert "peer-1" not in {voter.peer for voter in prepared.voters}


async def test_a_fleet_that_cries_is_not_believed(las):
    peers = await las.add_peers(3)
    for peer in peers[:2]:
        await sicken(peer)
    await calm(peers[2])
    await until(lambda: bool(las.term.forecaster.latest.verdict.crying), "the breaker")
    number = las.term.forecaster.latest.number
    await until(lambda: las.term.forecaster.latest.number > number + 3)
    assert not any(node.at_risk for node in las.state.nodes.values())
    warnings = (await status(las)).warnings
    assert any("2 of 3 nodes fail" in line and "not believed" in line for line in warnings)


async def test_samples_of_another_schema_are_not_read(las):
    (peer,) = await las.add_peers(1)
    await peer.register(telemetry_schema=1)
    await sicken(peer)
    number = las.term.forecaster.latest.number
    await until(lambda: las.term.forecaster.latest.number > number + 2)
    (found,) = (await forecast(las)).forecasts
    assert (found.known, found.at_risk, list(found.horizons)) == (False, False, [])
    assert any("no forecast for peer-1" in line for line in (await status(las)).warnings)


async def test_samples_of_an_earlier_schema_are_the_beginning_of_a_row(las):
    (peer,) = await las.add_peers(1)
    await peer.register(telemetry_schema=TelemetrySchema(TELEMETRY_SCHEMA.metrics[:14]).version)
    samples = peer.samples(20, commit_ms=2.0)
    for sample in samples:
        del sample.values[14:]
    await peer.heartbeats(peer.beat(samples=samples))
    await until(lambda: bool(las.term.forecaster.latest.nodes))
    now_ms = int(time.monotonic() * 1000)
    recent = las.term.forecaster.recent("peer-1", now_ms=now_ms, count=30)
    seen = recent[~np.isnan(recent).all(axis=1)]
    assert not np.isnan(seen[:, :14]).any()
    assert np.isnan(seen[:, 14:]).all()


async def test_of_the_dead_nothing_is_foreseen(las):
    peers = await las.add_peers(3)
    for peer in peers:
        await calm(peer)
    await until(lambda: len(las.term.forecaster.latest.nodes) == 3)
    failed = fleet_pb2.StorageFailed(why="EIO")
    await peers[0].report(fleet_pb2.PeerReport(storage_failed=failed))
    assert las.state.nodes["peer-1"].state is NodeState.FAILED
    await until(lambda: len(las.term.forecaster.latest.nodes) == 2)
    found = {node.node.name: node for node in (await status(las)).nodes}
    assert math.isnan(found["peer-1"].p_10_min)
    assert found["peer-2"].p_10_min == pytest.approx(0.001)
    await until(lambda: bool(las.state.events.get("peer-1")))
    assert [event.kind for event in (await explain(las, "peer-1")).events] == ["died"]


async def test_each_evaluation_is_watched(las):
    (peer,) = await las.add_peers(1)
    await calm(peer)
    call = las.forecast.WatchForecast(pb.WatchForecastRequest(), metadata=ADMIN)
    seen = [await call.read() for _ in range(3)]
    call.cancel()
    assert [each.node for each in seen[-1].forecasts] == ["peer-1"]
    assert seen[0].timestamp_ms < seen[1].timestamp_ms < seen[2].timestamp_ms


async def test_refusals(las):
    assert (await refused(forecast(las, "nobody")))[0] == "UNKNOWN_NODE"
    assert (await refused(explain(las, "nobody")))[0] == "UNKNOWN_NODE"
    both = pb.ExplainRequest(node="peer-1", shard=1)
    for request, reason in (
        (pb.ExplainRequest(shard=99), "UNKNOWN_SHARD"),
        (both, "INVALID_ARGUMENT"),
    ):
        told = las.forecast.Explain(request, metadata=ADMIN, timeout=30)
        assert (await refused(told))[0] == reason


async def test_a_shard_is_explained_by_the_planner(las):
    first, *_ = await las.add_peers(4)
    await create(las, shards=1, copies=3)
    answer = await las.forecast.Explain(pb.ExplainRequest(shard=1), metadata=ADMIN, timeout=30)
    assert first.name in answer.facts[0]
    assert answer.facts[-1].startswith("nothing is to be changed")
    assert not answer.actions


class _Broken:
    """A model that loads and then answers with something that is no probability."""

    model_id = "broken"
    window = 60

    def predict(self, windows: np.ndarray) -> Forecast:
        assert windows.shape[1] == self.window
        raise ModelRefused("answers with NaN")

    def reasons(self, windows, node, *, count=3):
        return ()


async def test_a_model_that_fails_is_given_up_for_the_rule_and_that_is_said():
    model = Model(_Broken(), "")
    windows = np.full((2, model.window, len(TELEMETRY_SCHEMA)), np.nan, dtype=np.float32)
    answer, reasons = await model.judge(windows)
    assert (answer.model_id, reasons) == ("heuristic", {})
    assert not answer.known.any()
    assert model.model_id == "heuristic"
    assert "answers with NaN" in model.note
    model.close()

"""A forecaster that is broken moves nothing and is told of, whatever it answers or does not."""

import asyncio
import threading

import numpy as np
import pytest

from las.daemon import model as daemon
from las.daemon.model import Model
from las.forecast.answer import Forecast
from las.forecast.contract import HORIZONS_S
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA
from tests.las_daemon.stand_in import until
from tests.las_daemon.test_fleet import status
from tests.las_daemon.test_forecast import calm
from tests.las_daemon.test_logs import create


class Broken:
    """Answers with what `answer` gives for [nodes, horizons]."""

    model_id = "broken"
    window = 60

    def __init__(self, answer):
        self._answer = answer

    def predict(self, windows):
        return Forecast(
            model_id=self.model_id,
            calibrated=True,
            probabilities=self._answer((len(windows), len(HORIZONS_S))).astype(np.float32),
            known=np.ones(len(windows), dtype=np.bool_),
        )

    def reasons(self, windows, node, *, count=3):
        return ()


def random_bits(shape, chance=np.random.default_rng(1)):
    return (chance.random(shape) < 0.5).astype(np.float32)


async def broken(las, answer):
    """Four peers and a log under a broken forecaster; rounds of twelve that were distrusted."""
    las.term.forecaster.model._forecaster = Broken(answer)
    peers = await las.add_peers(4)
    await create(las, shards=4, copies=3)
    distrusted = 0
    for number in range(12):
        if number % 3 == 0:
            for peer in peers:
                await calm(peer)
        await asyncio.wait_for(las.term.forecaster.evaluated.wait(), 10)
        distrusted += bool(las.term.forecaster.latest.verdict.distrust)
    return distrusted


@pytest.mark.parametrize(
    ("answer", "moved_max", "alerts"),
    [(np.ones, 0, True), (random_bits, 1, True), (lambda shape: np.full(shape, np.nan), 0, False)],
    ids=["always 1", "random", "not a number"],
)
async def test_a_broken_forecaster_starts_no_storm(las, answer, moved_max, alerts):
    distrusted = await broken(las, answer)
    assert las.term.forecaster.decisions["at_risk"] <= moved_max
    assert (distrusted > 0) == alerts
    for entry in las.state.shards.values():
        assert len(entry.shard.open.plan.voters) == 3
        plan = entry.shard.open.plan if entry.shard.prepared is None else entry.shard.prepared.plan
        assert len(plan.voters) == 3


async def test_a_fleet_that_always_cries_is_told_of(las):
    await broken(las, np.ones)
    warnings = (await status(las)).warnings
    assert any("4 of 4 nodes fail" in line and "not believed" in line for line in warnings)


async def test_a_model_that_takes_too_long_is_given_up_and_that_is_said(monkeypatch):
    monkeypatch.setattr(daemon, "MODEL_TIMEOUT_S", 0.05)
    released = threading.Event()

    def never(shape):
        released.wait(30)
        return np.zeros(shape)

    model = Model(Broken(never), "")
    windows = np.full((2, model.window, len(TELEMETRY_SCHEMA)), np.nan, dtype=np.float32)
    answer, _ = await model.judge(windows)
    released.set()
    assert answer.model_id == model.model_id == "heuristic"
    assert "takes more than" in model.note
    again, _ = await model.judge(windows)
    assert again.model_id == "heuristic"
    model.close()


async def test_nothing_is_moved_while_no_forecast_comes(las):
    """The leader serves on while its model hangs."""
    released = threading.Event()

    def never(shape):
        released.wait(30)
        return np.zeros(shape)

    las.term.forecaster.model._forecaster = Broken(never)
    for peer in await las.add_peers(3):
        await calm(peer)
    await create(las, shards=2, copies=3)
    assert not any(node.at_risk for node in las.state.nodes.values())
    released.set()
    number = las.term.forecaster.latest.number
    await until(lambda: las.term.forecaster.latest.number > number, "a forecast")

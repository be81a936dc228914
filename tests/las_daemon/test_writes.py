"""What is written to each shard: smoothed, and only as its primary tells it."""

import pytest

from las.core.commands import PrepareSegment
from las.daemon.vitals import Vitals
from las.daemon.writes import PERIOD_MS, Writes
from las.v1 import fleet_pb2 as pb
from peerd.core.ids import BootId, NodeName, ShardId
from tests.las_core.builders import SHARD, name, plan_of, with_log
from tests.las_core.model_fleet import ModelFleet


class Stage:
    def __init__(self, *rows: tuple[int, ...]) -> None:
        self.fleet = ModelFleet(with_log(rows=rows))
        self.vitals = Vitals(0)
        self.now_ms = 0
        self.writes = Writes(self.vitals, lambda: self.fleet.state, lambda: self.now_ms)

    def told(self, node: NodeName, **rates: float) -> None:
        shards = [
            pb.ShardWorkload(shard=int(key[1:]), bytes_per_s=rate) for key, rate in rates.items()
        ]
        workload = pb.NodeWorkload(period_s=10.0, shards=shards)
        self.vitals.heard(node, BootId("b"), pb.HeartbeatRequest(workload=workload), 0)

    async def look(self) -> dict[ShardId, float]:
        await self.writes.look()
        self.now_ms += PERIOD_MS
        return dict(self.writes.rates)


async def test_writes_are_smoothed_and_only_the_primary_is_believed(monkeypatch):
    monkeypatch.setattr("las.daemon.writes.SHARDS_PER_TURN_MAX", 1)
    stage = Stage((0, 1, 2), (1, 2, 3))
    stage.told(name(1), s1=1_000.0, s2=5.0, s99=7.0)
    stage.told(name(2), s1=9_000.0, s2=100.0)
    assert await stage.look() == {ShardId(1): 1_000.0, ShardId(2): 100.0}
    stage.told(name(1), s1=2_000.0)
    stage.told(name(2))
    rates = await stage.look()
    assert rates == {ShardId(1): pytest.approx(1_300.0), ShardId(2): pytest.approx(70.0)}
    for _ in range(20):
        rates = await stage.look()
    assert ShardId(2) not in rates, "what is not written to any more is forgotten"


async def test_a_shard_whose_plan_was_changed_keeps_its_rate_for_a_while():
    stage = Stage((0, 1, 2))
    stage.told(name(1), s1=1_000.0)
    assert await stage.look() == {SHARD: 1_000.0}
    stage.fleet.commit(PrepareSegment(shard=SHARD, epoch=1, plan=plan_of(2, 1, 2, 3)))
    stage.told(name(2), s1=10.0)
    for _ in range(3):
        assert await stage.look() == {SHARD: 1_000.0}
    assert await stage.look() == {SHARD: pytest.approx(703.0)}

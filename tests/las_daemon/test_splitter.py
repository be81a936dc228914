"""A shard is split by its load: after a while, one at a time, and not before what goes first."""

import asyncio
import itertools

import pytest

from las.core.commands import PrepareSegment, PrepareSplit, RecordEvent
from las.daemon.config import Policy
from las.daemon.splitter import LOOKS_HOT, REST_MS, Splitter
from las.daemon.vitals import Vitals
from las.v1 import fleet_pb2 as pb
from peerd.core.ids import ShardId
from peerd.transport.status import Refused
from tests.las_core.builders import SHARD, name, plan_of, with_log
from tests.las_core.model_fleet import ModelFleet

LINE = 1_000_000
ROWS = ((0, 1, 2), (1, 2, 3))


class Stage:
    """A model fleet, what its peers tell, a clock, and the splitter."""

    def __init__(self, **policy: object) -> None:
        self.fleet = ModelFleet(with_log(rows=ROWS))
        self.vitals = Vitals(0)
        self.rates: dict[ShardId, float] = {}
        self.now_ms = 0
        self.works = Splitter(
            self.fleet,
            Policy(**({"split_bytes_per_s": LINE} | policy)),
            self.vitals,
            writes=lambda: self.rates,
            now_ms=lambda: self.now_ms,
            wall_ms=itertools.count(1).__next__,
        )

    def write(self, shard: int, rate: float, told: float | None = None) -> None:
        """Its primary tells `told` and it is smoothed to `rate`; many keys."""
        self.rates[ShardId(shard)] = rate
        primary = self.fleet.state.shards[ShardId(shard)].shard.open.plan.primary
        each = pb.ShardWorkload(
            shard=shard,
            bytes_per_s=rate if told is None else told,
            distinct_keys=500,
            hottest_key_share=0.01,
        )
        workload = pb.NodeWorkload(period_s=10.0, shards=[each])
        self.vitals.heard(
            primary.peer, primary.boot, pb.HeartbeatRequest(workload=workload), self.now_ms
        )

    async def look(self, times: int = 1) -> None:
        for _ in range(times):
            await self.works.look()
            self.now_ms += 10_000

    @property
    def splits(self) -> list[PrepareSplit]:
        return [each for each in self.fleet.commands if isinstance(each, PrepareSplit)]


async def test_a_shard_that_is_hot_for_a_while_is_split_and_goes_on_in_its_children():
    stage = Stage()
    assert stage.fleet.append(SHARD)
    stage.write(1, 3 * LINE)
    await stage.look(LOOKS_HOT - 1)
    assert not stage.splits
    await stage.look()
    assert [each.shard for each in stage.splits] == [SHARD]
    parent = stage.fleet.state.shards[SHARD].shard
    assert parent.is_split
    children = parent.split.children
    assert stage.fleet.state.logs["orders"].shards == (*children, ShardId(2))
    assert all(stage.fleet.append(child) for child in children)
    stage.fleet.check_nothing_lost()
    (told,) = [each for each in stage.fleet.commands if isinstance(each, RecordEvent)]
    assert (told.node, told.kind) == (name(1), "split")
    assert told.text.startswith("shard 1 of orders is split: 3.0 MB/s are written to it")
    assert stage.works.splits == 1


async def test_one_at_a_time():
    stage = Stage()
    stage.write(1, 3 * LINE)
    stage.write(2, 2 * LINE)
    await stage.look(LOOKS_HOT)
    stage.rates.pop(SHARD)
    while stage.now_ms < REST_MS:
        await stage.look()
    assert len(stage.splits) == 1
    await stage.look(LOOKS_HOT)
    assert [each.shard for each in stage.splits] == [1, 2]


@pytest.mark.parametrize(("rate", "told"), [(3 * LINE, LINE - 1), (LINE - 1, 3 * LINE)])
async def test_a_burst_splits_nothing(rate, told):
    stage = Stage()
    stage.write(1, rate, told)
    await stage.look(2 * LOOKS_HOT)
    assert not stage.splits


async def test_it_must_be_hot_all_the_time():
    stage = Stage()
    for _ in range(5):
        stage.write(1, 3 * LINE)
        await stage.look(LOOKS_HOT - 1)
        stage.write(1, 1.0)
        await stage.look()
    assert not stage.splits


async def test_what_is_under_way_goes_first_and_what_nobody_tells_is_not_hot():
    stage = Stage()
    stage.write(1, 3 * LINE)
    stage.fleet.hold_reports = True
    shard = stage.fleet.state.shards[ShardId(2)].shard
    assert stage.fleet.commit(
        PrepareSegment(shard=ShardId(2), epoch=shard.open.epoch, plan=plan_of(3, 2, 3, 4))
    ).ok
    await stage.look(2 * LOOKS_HOT)
    assert not stage.splits
    stage.fleet.hold_reports = False
    stage.fleet.pump()
    await stage.look()
    assert len(stage.splits) == 1
    silent = Stage()
    silent.rates[SHARD] = 3.0 * LINE
    silent.rates[ShardId(99)] = 3.0 * LINE
    await silent.look(2 * LOOKS_HOT)
    assert not silent.splits


async def test_what_is_refused_is_tried_again_later():
    stage = Stage()
    stage.write(1, 3 * LINE)
    await stage.look(LOOKS_HOT - 1)
    stage.fleet.leading = False
    with pytest.raises(Refused):
        await stage.look()
    stage.fleet.leading = True
    stage.now_ms += REST_MS
    await stage.look(LOOKS_HOT)
    assert (len(stage.splits), stage.works.splits) == (1, 1)


async def test_without_a_line_nothing_is_looked_at(monkeypatch):
    monkeypatch.setattr("las.daemon.splitter.LOOK_S", 0.0)
    off, on = Stage(split_bytes_per_s=0), Stage()
    for stage in (off, on):
        stage.write(1, 3 * LINE)
    tasks = [asyncio.create_task(stage.works.run()) for stage in (off, on)]
    await on.fleet.until(lambda: len(on.splits) == 1)
    assert not off.splits
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

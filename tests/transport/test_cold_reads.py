"""Reads of what the tier alone has: the same batches and epochs, and typed words if not."""

import pytest

from las.core.tier_commands import CoolShard
from peerd.core.errors import Reason
from peerd.core.ids import Epoch, Offset
from peerd.transport.read_source import ReadSource
from peerd.transport.status import Refused, reason_of
from tests.daemon.test_uploader import World, switch, world  # noqa: F401 - a fixture
from tests.las_core.builders import SHARD, shard_of
from tests.tier.objects import plain


async def cold(world: World, *, cold_to: int = 60) -> World:  # noqa: F811
    """Epoch 1 [0, 30) and the open 2; below `cold_to` all is in the tier alone."""
    world.append(10)
    world.las(*switch(1, 30))
    world.append(16)
    await world.all_looks()
    world.las(CoolShard(shard=SHARD, epoch=Epoch(2), cold_to=Offset(cold_to)))
    assert world.told.ok, world.told
    return world


async def read_all(source: ReadSource, end: int):
    found, at = [], 0
    while at < end:
        span = source.span_at(SHARD, at)
        batches = await source.read(SHARD, span, at, end, 5_000)
        assert batches
        found += [(span.epoch, *row) for row in plain(batches)]
        at = batches[-1].end
    return found


async def test_a_reader_crosses_from_the_tier_to_stores_without_noticing(world):  # noqa: F811
    await cold(world)
    spans = [(each.epoch, each.begin, each.end, each.is_cold) for each in world.source.spans(SHARD)]
    assert spans == [(1, 0, 30, True), (2, 30, 60, True), (2, 60, None, False)]
    expected = [(1 if row[0] < 30 else 2, *row) for row in plain(world.batches)]
    assert await read_all(world.source, world.committed_to) == expected


async def test_times_are_found_in_the_tier(world):  # noqa: F811
    await cold(world)
    for number in (0, 3, 9):
        time_ms = world.batches[number].header.timestamp_ms
        tail = world.committed_to
        assert await world.source.offset_at(SHARD, time_ms, tail) == world.batches[number].base


async def test_what_the_tier_does_not_give_has_a_reason(world):  # noqa: F811
    await cold(world)
    span = world.source.span_at(SHARD, 0)
    first = min(key for key in world.backend.objects if key.endswith(".chunk"))
    sound = world.backend.objects[first]

    async def refused(source: ReadSource | None = None) -> tuple[Reason, str]:
        world.tier.reader.__init__(world.tier.store, world.tier.keys, cache_bytes=1 << 20)
        with pytest.raises(Refused) as error:
            await (source or world.source).read(SHARD, span, 0, 30, 5_000)
        return reason_of(error.value.refusal), error.value.refusal.message

    world.backend.objects[first] = sound[:60] + bytes([sound[60] ^ 1]) + sound[61:]
    reason, message = await refused()
    assert reason is Reason.CORRUPT
    assert f"DAMAGED_OBJECT: {first}: " in message
    del world.backend.objects[first]
    reason, message = await refused()
    assert reason is Reason.RANGE_UNAVAILABLE
    assert "MISSING_OBJECT" in message
    world.backend.objects[first] = sound
    world.backend.faults = ["500"] * 9
    reason, message = await refused()
    assert reason is Reason.RANGE_UNAVAILABLE
    assert "TIER_UNAVAILABLE" in message
    reason, message = await refused(ReadSource(world, world))
    assert reason is Reason.RANGE_UNAVAILABLE
    assert "TIER_NOT_CONFIGURED" in message
    counted = {"DAMAGED_OBJECT": 1, "MISSING_OBJECT": 1, "TIER_UNAVAILABLE": 1}
    assert world.uploader.statistics().read_errors == counted
    assert await world.source.read(
        SHARD, world.source.span_at(SHARD, 60), 60, world.committed_to, 5_000
    )
    assert shard_of(world.state).kept_from == 0

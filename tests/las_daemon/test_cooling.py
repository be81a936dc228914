"""Cooling: stores drop what the tier has, and never less than the hot bytes stay."""

import pytest

from las.core.commands import SetRetention
from las.core.tier import TIER_LEVEL
from las.core.tier_commands import CoolShard, SetTier, TierShard
from las.daemon.cooling import Cooling
from peerd.core.ids import Epoch, Offset
from tests.las_core.builders import SHARD, done, process, register, shard_of, with_log
from tests.las_daemon.test_retention import World, switch


@pytest.fixture
def world() -> World:
    """Epochs 1 [0, 35), 2 [35, 70) and the open 3 from 70 to 125; chunks of 100 bytes."""
    levels = [register(each, feature_level=TIER_LEVEL) for each in range(1, 6)]
    return World(done(with_log(), *switch(1, 35), *switch(2, 70), *levels), {3: 125})


def tiered(world: World, end: int) -> None:
    tier = shard_of(world.state).tier
    command = TierShard(
        shard=SHARD,
        epoch=Epoch(3),
        by=process(1),
        follows="" if tier is None else tier.manifest,
        begin=Offset(0 if tier is None else tier.end),
        end=Offset(end),
        manifest=f"m{end}",
    )
    world.state = done(world.state, command)


async def cooled(world: World, hot_bytes: int) -> int:
    world.state = done(world.state, SetTier(log="orders", hot_bytes=hot_bytes))
    await Cooling(world, world.trimmer(), period_ms=1).look()
    assert shard_of(world.state).kept_from == 0
    return world.trimmed_to


@pytest.mark.parametrize(
    ("tiered_to", "hot_bytes", "expected"),
    [
        (125, 1, 120),  # 50 bytes are behind the last chunk
        (125, 51, 110),
        (125, 150, 110),
        (125, 151, 100),
        (125, 550, 70),
        (125, 551, 65),
        (90, 1, 90),
        (95, 1, 90),
        (75, 1, 70),
        (60, 1, 55),
        (34, 1, 30),
        (5, 1, 0),
        (125, 1 << 40, 0),
    ],
)
async def test_all_but_the_hot_bytes_is_left_to_the_tier(world, tiered_to, hot_bytes, expected):
    tiered(world, tiered_to)
    assert await cooled(world, hot_bytes) == expected


async def test_what_is_cold_is_not_asked_about_again(world):
    tiered(world, 70)
    assert await cooled(world, 1) == 70
    calls = world.calls
    assert await cooled(world, 1) == 70
    assert world.calls == calls


async def test_nothing_is_asked_where_there_is_no_tier(world):
    await Cooling(world, world.trimmer(), period_ms=1).look()
    world.state = done(world.state, SetTier(log="orders", hot_bytes=1))
    await Cooling(world, world.trimmer(), period_ms=1).look()
    assert (world.calls, world.trimmed_to) == (0, 0)


async def test_who_cannot_be_asked_keeps_everything(world):
    tiered(world, 125)
    world.silent = {"peer-1", "peer-2", "peer-3"}
    assert await cooled(world, 1) == 0


async def test_retention_by_age_reaches_what_the_tier_alone_has(world):
    world.state = done(
        world.state, SetRetention(log="orders", retention_bytes=0, retention_ms=60_000)
    )
    await world.retention().look()
    world.ends[3] = 145
    tiered(world, 140)
    world.state = done(world.state, CoolShard(shard=SHARD, epoch=Epoch(3), cold_to=Offset(140)))
    world.now_ms += 61_000
    retention = world.retention()
    await retention.look()
    for _ in range(3):
        world.now_ms += 61_000
        await retention.look()
    assert shard_of(world.state).kept_from == 140


async def test_between_two_looks_everywhere_only_what_has_grown_is_looked_at(world):
    world.state = done(world.state, SetTier(log="orders", hot_bytes=1))
    cooling = Cooling(world, world.trimmer(), period_ms=5_000)
    tiered(world, 60)
    await cooling.look(everywhere=False)
    assert world.trimmed_to == 55
    asked: list[Offset] = []

    async def counted(entry, hot_bytes):
        asked.append(entry.shard.tier.end)

    cooling._cold_to = counted
    await cooling.look(everywhere=False)
    assert asked == []
    await cooling.look()
    tiered(world, 90)
    await cooling.look(everywhere=False)
    await cooling.look(everywhere=False)
    assert asked == [60, 90]

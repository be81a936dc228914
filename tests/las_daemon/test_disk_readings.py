"""Daily readings from heartbeats to the hardware head, and what `forecast` says of each disk."""

import time

import numpy as np
import pytest

from las.daemon import slow_heads
from las.daemon.disk_readings import DAY_S, DiskReadings
from las.forecast.hardware_inputs import DAYS_BEFORE, HARDWARE_NAMES, PRESENT, READING_DAYS_MAX
from las.v1 import fleet_pb2 as pb
from peerd.core.ids import NodeName
from tests.las_daemon.stand_in import until
from tests.las_daemon.test_forecast import calm, forecast

ONE, TWO = NodeName("peer-1"), NodeName("peer-2")
WEEK_S = 7 * DAY_S


def a_day(day, **attributes):
    told = {"a5": 0, "a9": 20_000, "a187": 0, "a197": 0, "a198": 0} | attributes
    return pb.DiskDay(
        day=day,
        capacity_bytes=4 * 10**12,
        attributes=[pb.SmartAttribute(number=int(k[1:]), raw=v) for k, v in told.items()],
    )


def healthy(today, days=60):
    return [a_day(today - before, a9=20_000 - 24 * before) for before in range(days, -1, -1)]


def dying(today, days=60):
    """As `healthy`, but for the last ten days, in which sectors go bad."""
    made = healthy(today, days)[:-10]
    for before in range(9, -1, -1):
        bad = (10 - before) * 8
        counts = {"a5": bad * 4, "a187": bad // 4, "a197": bad * 2, "a198": bad * 2}
        made.append(a_day(today - before, a9=20_000 - 24 * before, **counts))
    return made


def test_readings_join_and_a_whole_takes_their_place():
    disks = DiskReadings()
    disks.take(ONE, pb.DiskDays(whole=True, days=healthy(1_000, 3)))
    assert disks.number == 1
    disks.take(ONE, pb.DiskDays(days=[a_day(1_000, a5=8)]))  # within a day
    assert disks.number == 1
    disks.take(ONE, pb.DiskDays(days=[a_day(1_001, a5=16)]))
    assert disks.number == 2
    window = disks.windows([ONE], 1_001 * DAY_S)[0]
    assert window.shape == (len(DAYS_BEFORE), len(HARDWARE_NAMES))
    assert window[-1, PRESENT] == 16.0
    assert window[-2, PRESENT] == 8.0
    assert window[-1, HARDWARE_NAMES.index("capacity_tb")] == 4.0
    disks.take(ONE, pb.DiskDays(whole=True, days=[a_day(1_001, a5=1)]))
    window = disks.windows([ONE], 1_001 * DAY_S)[0]
    assert window[-1, PRESENT] == 1.0
    assert np.isnan(window[-2]).all()


def test_days_are_bounded():
    disks = DiskReadings()
    disks.take(ONE, pb.DiskDays(whole=True, days=[a_day(n) for n in range(500)]))
    assert len(disks._disks[ONE].days) == READING_DAYS_MAX


def test_what_is_missing_is_said():
    disks = DiskReadings()
    assert disks.why_without(ONE) == "no SMART"
    disks.take(ONE, pb.DiskDays(whole=True))
    assert disks.why_without(ONE) == "no SMART"
    nvme = pb.DiskDay(day=9, attributes=[pb.SmartAttribute(number=9, raw=1)])
    disks.take(ONE, pb.DiskDays(whole=True, days=[nvme]))
    assert disks.why_without(ONE) == "no SMART of a SATA disk"
    disks.take(ONE, pb.DiskDays(whole=True, days=[a_day(9)]))
    assert disks.why_without(ONE) == "no SMART for days"
    assert np.isnan(disks.windows([ONE, TWO], 99 * DAY_S)).all()
    assert disks.windows([], 0).shape[0] == 0


async def test_a_dying_disk_is_feared_for_and_one_without_smart_is_named(las, monkeypatch):
    monkeypatch.setattr(slow_heads, "REST_S", 0)
    sick, well, without = await las.add_peers(3)
    today = int(time.time()) // DAY_S
    for peer, days in ((sick, dying(today)), (well, healthy(today)), (without, [])):
        await calm(peer)
        await peer.heartbeats(peer.beat(disk=pb.DiskDays(whole=True, days=days)))

    async def told():
        heads = [each.heads for each in (await forecast(las)).forecasts]
        return all(heads) and heads[0][0].known and heads[1][0].known

    await until(told, "the hardware head's word")
    found = (await forecast(las)).forecasts
    hardware = [each.heads[0] for each in found]
    assert [each.known for each in hardware] == [True, True, False]
    assert [each.without for each in hardware] == ["", "", "no SMART"]
    weeks = [
        {horizon.horizon_s: horizon.probability for horizon in each.horizons}[WEEK_S]
        for each in hardware[:2]
    ]
    assert weeks[0] > 20 * weeks[1] > 0.0
    joined = [
        {horizon.horizon_s: horizon.probability for horizon in each.joined}[WEEK_S]
        for each in found
    ]
    assert joined[0] > joined[1]
    assert any("sectors" in reason.text for reason in hardware[0].reasons)
    assert not any(each.at_risk for each in found)


@pytest.mark.parametrize("whole", [True, False])
def test_what_a_peer_should_not_send_harms_nothing(whole):
    disks = DiskReadings()
    wild = pb.DiskDay(
        day=(1 << 32) - 1,
        capacity_bytes=(1 << 64) - 1,
        attributes=[
            pb.SmartAttribute(number=(1 << 32) - 1, raw=1),
            pb.SmartAttribute(number=5, raw=(1 << 64) - 1),
        ],
    )
    disks.take(ONE, pb.DiskDays(whole=whole, days=[wild, wild]))
    assert np.isnan(disks.windows([ONE], 1_000 * DAY_S)).all()

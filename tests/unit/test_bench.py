"""What a benchmark counts, with times that the test decides."""

import asyncio
import math
import random

import pytest

from peerd.bench.account import Account, Schedule
from peerd.bench.appending import AppendCounts, joined
from peerd.bench.failover import pauses_ms
from peerd.bench.latencies import VALUE_US_MAX, Latencies
from peerd.bench.loops import closed_loop, open_loop
from peerd.bench.machine import Servers, calibrate
from peerd.client.errors import Unavailable


def latencies_of(values_s):
    counted = Latencies()
    for value_s in values_s:
        counted.record(value_s)
    return counted


# ------------------------------------------------------------------------------ histogram


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_at_most_a_thousandth_too_large(seed):
    drawn = random.Random(seed)
    values = sorted(int(10 ** drawn.uniform(0, 9)) for _ in range(2_000))
    counted = latencies_of(value / 1e6 + 1e-7 for value in values)
    for percent in (1, 25, 50, 90, 99, 99.9, 100):
        true_us = values[max(1, math.ceil(len(values) * percent / 100)) - 1]
        told_us = counted.percentile_ms(percent) * 1000
        assert true_us <= told_us + 1e-6 <= true_us * (1 + 1 / 1024) + 1e-3
    assert counted.max_ms == values[-1] / 1000


def test_small_values_are_exact():
    counted = latencies_of((value + 0.5) / 1e6 for value in range(2048))
    assert counted.percentile_ms(50) == 1.023
    assert counted.count == 2048


def test_no_values_have_no_percentiles():
    assert math.isnan(Latencies().percentile_ms(50))
    assert math.isnan(Latencies().max_ms)


def test_what_lies_outside_is_counted_at_the_edge():
    counted = latencies_of([-0.001, 1e9])
    assert counted.percentile_ms(50) == 0.0
    assert counted.max_ms == VALUE_US_MAX / 1000


def test_histograms_add_up(monkeypatch):
    monkeypatch.setattr("peerd.bench.latencies.NOTED_MAX", 3)
    whole, parts = latencies_of([]), ([0.001] * 10, [0.004] * 89, [0.9])
    for part in parts:
        whole.add(latencies_of(part))
    assert whole.count == 100
    assert whole.percentile_ms(10) == 1.0
    assert whole.percentile_ms(11) == pytest.approx(4.0, rel=1 / 1024)
    assert whole.max_ms == 900.0


# ------------------------------------------------------------------------------ account


def test_throughput_counts_by_the_answer_and_latency_by_the_intended_moment():
    account = Account(10.0, 20.0)
    account.succeeded(9.0, 9.5)  # before
    account.succeeded(9.9, 10.5)  # answered within, meant before
    account.succeeded(15.0, 15.25)
    account.succeeded(19.9, 20.4)  # meant within, answered after
    account.succeeded(20.1, 20.5)
    account.finish()
    assert account.acknowledged == 2
    assert account.latencies.count == 2
    assert account.latencies.max_ms == pytest.approx(500.0)


def test_pauses_are_between_answers_from_the_beginning_to_the_end():
    account = Account(10.0, 20.0)
    account.succeeded(9.0, 9.5)
    account.succeeded(9.0, 13.0)
    assert account.longest_pause_s == 3.0
    account.succeeded(9.0, 14.0)
    account.finish()
    assert account.longest_pause_s == 6.0


def test_a_pause_that_outlasts_the_run_is_told_whole_and_once():
    account = Account(10.0, 20.0)
    account.succeeded(10.0, 19.0)
    account.succeeded(10.0, 31.0)
    account.succeeded(10.0, 60.0)
    account.finish()
    assert account.longest_pause_s == 12.0


def test_errors_are_counted_by_kind_with_an_example():
    account = Account(10.0, 20.0)
    account.failed(9.0, Unavailable("before"))
    account.failed(11.0, Unavailable("first"))
    account.failed(12.0, Unavailable("second"))
    account.failed(13.0, ValueError("other"))
    assert account.errors == {"Unavailable": 2, "ValueError": 1}
    assert account.examples == {"Unavailable": "first", "ValueError": "other"}


def test_processes_add_up():
    parts = [
        AppendCounts(acknowledged=3, latencies=latencies_of([0.1]), longest_pause_s=0.2),
        AppendCounts(acknowledged=4, latencies=latencies_of([0.3]), longest_pause_s=0.1),
    ]
    parts[1].errors["NotAppended"] = 2
    parts[1].examples["NotAppended"] = "why"
    whole = joined(parts)
    assert (whole.acknowledged, whole.latencies.count, whole.longest_pause_s) == (7, 2, 0.2)
    assert (whole.errors, whole.examples) == ({"NotAppended": 2}, {"NotAppended": "why"})


# ------------------------------------------------------------------------------ loops


def test_a_schedule_gives_each_append_once_at_its_time():
    schedule = Schedule(10.0, 100.0, 100.5)
    assert schedule.take(99.99) is None
    assert schedule.take(100.0) == 100.0
    assert schedule.take(100.0) is None
    late = [schedule.take(200.0) for _ in range(5)]
    assert late == [pytest.approx(100.1 + 0.1 * n) for n in range(4)] + [None]
    assert schedule.is_over


class Clock:
    """Moves when somebody pauses."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    async def pause(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)


async def test_an_open_loop_charges_a_stall_to_all_that_were_due():
    """One answer takes a second. A load that waited for it would see one slow append of 100."""
    clock = Clock(0.0)
    account = Account(0.0, 2.0)
    calls = 0

    async def append() -> None:
        nonlocal calls
        calls += 1
        if calls == 50:
            clock.now_s += 1.0

    schedule = Schedule(100.0, 0.0, 2.0)
    await open_loop(append, account, schedule, clock=clock, pause=clock.pause)
    assert calls == account.latencies.count == 200
    assert account.latencies.max_ms >= 990.0
    # It stood still from about 0.49 s to 1.49 s: half of all appends were due then.
    assert account.latencies.percentile_ms(40) < 20.0
    assert account.latencies.percentile_ms(80) > 400.0
    assert account.longest_pause_s >= 1.0


async def test_an_open_loop_that_may_have_no_more_unanswered_still_counts_from_when_it_was_due(
    monkeypatch,
):
    monkeypatch.setattr("peerd.bench.loops.OPEN_LOOP_UNANSWERED_MAX", 1)
    clock = Clock(0.0)
    account = Account(0.0, 1.0)

    async def append() -> None:
        await clock.pause(0.5)

    schedule = Schedule(10.0, 0.0, 1.0)
    await open_loop(append, account, schedule, clock=clock, pause=clock.pause)
    assert account.latencies.count == 10
    assert account.latencies.max_ms == pytest.approx(10 * 500 - 900, rel=0.01)


async def test_a_closed_loop_keeps_so_many_under_way_and_counts_what_fails():
    clock = Clock(0.0)
    account = Account(0.0, 1.0)
    under_way = most = calls = 0

    async def append() -> None:
        nonlocal under_way, most, calls
        under_way, calls = under_way + 1, calls + 1
        number = calls
        most = max(most, under_way)
        await clock.pause(0.01)
        under_way -= 1
        if number == 7:
            raise Unavailable("now")

    await closed_loop(append, account, 3, clock=clock, pause=clock.pause)
    assert most == 3
    assert account.errors == {"Unavailable": 1}
    assert account.latencies.count == calls - 1
    assert account.acknowledged <= account.latencies.count


# ------------------------------------------------------------------------------ failovers


def test_a_round_has_the_longest_pause_that_ends_before_the_next_round():
    acked_s = [0.0, 0.9, 1.0, 1.5, 1.6, 2.9, 3.1, 3.2, 9.0]
    assert pauses_ms([1.2, 3.0], acked_s) == pytest.approx([1300.0, 5800.0])
    assert pauses_ms([1.2, 3.0], [2.0]) == [0.0, 0.0]
    assert pauses_ms([], acked_s) == []


# ------------------------------------------------------------------------------ machine


def test_the_disk_is_calibrated_and_left_clean(tmp_path, monkeypatch):
    monkeypatch.setattr("peerd.bench.machine.WRITES_MAX", 3)
    assert len(calibrate(tmp_path)) <= 3
    assert not list(tmp_path.iterdir())


def test_servers_elsewhere_have_no_cpu_here(tmp_path):
    assert Servers(tmp_path).cpu_s() is None

"""A disk's days: asked of a program, kept across restarts, told whole to whoever is new."""

import json
from pathlib import Path

import pytest

from peerd.daemon.telemetry.disk_days import (
    DAY_S,
    DAYS_MAX,
    FILE_NAME,
    NOTHING_TOLD,
    DiskDay,
    DiskDays,
)
from peerd.daemon.telemetry.smart import SmartReader

# Raw values on the last days of a disk: reallocated, uncorrectable and pending sectors grow.
DYING = [(0, 0, 0), (0, 0, 8), (16, 2, 24), (120, 9, 88)]


@pytest.fixture
def smartctl(tmp_path, monkeypatch):
    """A program of that name on the PATH, which answers as a disk does on a day."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")

    def answers(reallocated, uncorrectable, pending, serial="Z1"):
        table = ((5, reallocated), (187, uncorrectable), (197, pending), (9, 20_000), (241, 7))
        answer = {
            "serial_number": serial,
            "user_capacity": {"blocks": 7_814_037_168, "bytes": 4_000_787_030_016},
            "smart_status": {"passed": True},
            "ata_smart_attributes": {
                "table": [{"id": number, "raw": {"value": raw}} for number, raw in table]
            },
        }
        program = programs / "smartctl"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(answer)}\nEND\n")
        program.chmod(0o755)

    return answers


def ask(directory, day):
    """A process that starts, asks the disk once on that day, and ends."""
    reader = SmartReader(
        directory, device=Path("/dev/sdz"), wall_clock=lambda: day * DAY_S + 3_600.0
    )
    reader.days.load()
    values = reader._ask()
    return reader.days, values


def test_a_dying_disk_is_kept_day_by_day_across_restarts(tmp_path, smartctl):
    for day, counts in enumerate(DYING, start=20_000):
        smartctl(*counts)
        days, values = ask(tmp_path, day)
        assert values["disk_pending_sectors"] == counts[2]
    told = days.news(NOTHING_TOLD)
    assert told.whole
    assert [each.day for each in told.days] == [20_000, 20_001, 20_002, 20_003]
    assert [
        (each.attributes[5], each.attributes[187], each.attributes[197]) for each in told.days
    ] == DYING
    newest = told.days[-1]
    assert newest.capacity_bytes == 4_000_787_030_016
    assert set(newest.attributes) == {5, 9, 187, 197}  # 241 is nobody's


def test_of_a_day_the_newest_reading_is_kept(tmp_path, smartctl):
    smartctl(0, 0, 0)
    ask(tmp_path, 20_000)
    smartctl(8, 0, 0)
    days, _ = ask(tmp_path, 20_000)
    (day,) = days.news(NOTHING_TOLD).days
    assert day.attributes[5] == 8


def test_another_disk_begins_anew(tmp_path, smartctl):
    smartctl(120, 9, 88)
    ask(tmp_path, 20_000)
    smartctl(0, 0, 0, serial="Z2")
    days, _ = ask(tmp_path, 20_001)
    assert [each.day for each in days.news(NOTHING_TOLD).days] == [20_001]


def a_day(day, reallocated=0):
    return DiskDay(day, 4_000, {5: reallocated})


def test_a_listener_is_told_each_thing_once_and_all_when_it_is_new(tmp_path):
    days = DiskDays(tmp_path / FILE_NAME)
    nothing = days.news(NOTHING_TOLD)
    assert (nothing.whole, nothing.days) == (True, ())
    days.add("Z1", a_day(1))
    first = days.news(nothing.number)
    assert (first.whole, first.days) == (True, (a_day(1),))  # the first of this disk
    assert days.news(first.number).days == ()
    days.add("Z1", a_day(2))
    second = days.news(first.number)
    assert (second.whole, second.days) == (False, (a_day(2),))
    days.add("Z1", a_day(2))  # nothing new
    assert days.news(second.number).days == ()
    days.add("Z2", a_day(3))
    third = days.news(second.number)
    assert (third.whole, third.days) == (True, (a_day(3),))


def test_days_are_bounded(tmp_path):
    days = DiskDays(tmp_path / FILE_NAME)
    for day in range(DAYS_MAX + 20):
        days.add("Z1", a_day(day))
    kept = days.news(NOTHING_TOLD).days
    assert [each.day for each in kept] == list(range(20, DAYS_MAX + 20))
    again = DiskDays(tmp_path / FILE_NAME)
    again.load()
    assert again.news(NOTHING_TOLD).days == kept


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "7",
        '{"format":2,"serial":"Z1","days":[]}',
        '{"format":1,"serial":7,"days":[]}',
        '{"format":1,"serial":"Z1","days":[[1,2]]}',
        '{"format":1,"serial":"Z1","days":[[1,2,[[5,-1]]]]}',
        '{"format":1,"serial":"Z1","days":[[1,2,[[6,1]]]]}',
        '{"format":1,"serial":"Z1","days":[[2,2,[]],[1,2,[]]]}',
        '{"format":1,"serial":"Z1","days":[["1",2,[]]]}',
        "[" * 100_000,
        " " * ((1 << 20) + 1),
    ],
)
def test_a_file_that_cannot_be_read_begins_anew(tmp_path, content):
    path = tmp_path / FILE_NAME
    path.write_text(content)
    days = DiskDays(path)
    days.load()
    assert days.news(NOTHING_TOLD).days == ()
    days.add("Z1", a_day(1))
    again = DiskDays(path)
    again.load()
    assert again.news(NOTHING_TOLD).days == (a_day(1),)


def test_one_that_cannot_be_written_leaves_the_readings_in_memory(tmp_path):
    days = DiskDays(tmp_path / "nowhere" / FILE_NAME)
    days.add("Z1", a_day(1))
    assert days.news(NOTHING_TOLD).days == (a_day(1),)

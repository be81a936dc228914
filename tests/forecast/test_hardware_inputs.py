"""The hardware head's input: which reading stands for which day, and when there is none."""

import math

import numpy as np
import pytest

from las.forecast.hardware_inputs import (
    DAYS_BEFORE,
    HARDWARE_FEATURES,
    HARDWARE_NAMES,
    STALE_DAYS_MAX,
    Reading,
    hardware_inputs,
)
from las.forecast.heads import HARDWARE_NAMES as READ_BY_THE_HEAD
from las.forecast.heads import SHIPPED, shipped_head

TODAY = 20_000


def reading(day, **values):
    named = dict.fromkeys(HARDWARE_NAMES, 0.0) | {"power_on_hours": 24.0 * (day - 19_000)} | values
    return Reading(day, tuple(named[name] for name in HARDWARE_NAMES))


def test_each_day_has_the_newest_reading_at_or_before_it():
    readings = [reading(day, smart_5=float(day)) for day in range(TODAY - 100, TODAY + 3)]
    del readings[95]  # the disk was not read five days ago
    window = hardware_inputs(readings[::-1], TODAY)
    wanted = [TODAY - before for before in DAYS_BEFORE]
    wanted[DAYS_BEFORE.index(5)] = TODAY - 6
    assert window[:, HARDWARE_NAMES.index("smart_5")].tolist() == wanted


def test_before_the_first_reading_nothing_is_known():
    window = hardware_inputs([reading(day) for day in range(TODAY - 8, TODAY + 1)], TODAY)
    assert [not math.isnan(row[0]) for row in window] == [before <= 8 for before in DAYS_BEFORE]


def test_a_disk_that_is_not_read_any_more_has_no_input():
    old = [reading(TODAY - STALE_DAYS_MAX)]
    assert not np.isnan(hardware_inputs(old, TODAY)[-1]).any()
    assert np.isnan(hardware_inputs(old, TODAY + 1)).all()
    assert np.isnan(hardware_inputs([], TODAY)).all()


def test_a_reading_of_another_table_is_refused():
    with pytest.raises(ValueError, match="2 values in a reading"):
        hardware_inputs([Reading(TODAY, (1.0, 2.0))], TODAY)


def test_every_counter_names_its_attribute_and_unit():
    for feature in HARDWARE_FEATURES:
        assert feature.unit
        assert feature.meaning
        assert feature.name == f"smart_{feature.attribute}" or not feature.name.startswith("smart")
    assert READ_BY_THE_HEAD == HARDWARE_NAMES


def test_the_shipped_head_fears_for_a_disk_whose_sectors_go():
    head = shipped_head("hardware")
    calm = [reading(TODAY - before) for before in range(91)]
    dying = [
        reading(
            TODAY - before,
            smart_5=max(0.0, 40.0 * (10 - before)),
            smart_187=max(0.0, 3.0 * (10 - before)),
            smart_197=16.0 * (before < 8),
            smart_198=16.0 * (before < 8),
        )
        for before in range(91)
    ]
    windows = np.stack([hardware_inputs(each, TODAY) for each in (calm, dying)])
    week = head.predict(windows).probabilities[:, 1]
    assert week[1] > 50 * week[0]
    reasons = head.reasons(windows[1])
    assert len(reasons) >= 2
    assert {reason.metric for reason in reasons} <= {
        "smart_5",
        "smart_187",
        "smart_197",
        "smart_198",
    }
    assert any("in 7 d" in reason.text for reason in reasons)


def test_a_disk_that_reports_few_counters_is_judged_all_the_same():
    head = shipped_head("hardware")
    window = hardware_inputs([reading(TODAY, smart_187=math.nan, smart_196=math.nan)], TODAY)
    forecast = head.predict(window[None])
    assert forecast.known.all()
    assert 0.0 < forecast.probabilities[0, 1] < 0.05


def test_its_card_stands_beside_it():
    head = shipped_head("hardware")
    card = (SHIPPED / "hardware.md").read_text()
    assert head.model_id in card
    assert head.contract.training_data in card

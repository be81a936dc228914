"""The heads' splits and figures: fixed by name and time, nothing of the future in training."""

import hashlib

import numpy as np
import pytest

from las.core.history import Cause, Outage
from las.forecast.history_inputs import Place
from models.disks import Disks, is_held_out
from models.histories import History, down_or_fails, held_out
from models.rank import calibration_error, precisions, reliability, warnings_by_machine

DAY_S = 86_400


def test_one_disk_in_five_is_held_out_by_its_name_alone():
    names = range(5_000)
    share = np.mean([is_held_out(name) for name in names])
    assert share == pytest.approx(0.2, abs=0.03)
    assert is_held_out(7) == (int(hashlib.sha256(b"7").hexdigest(), 16) % 5 == 0)
    assert np.mean([held_out("lanl", f"2/{n}") for n in names]) == pytest.approx(0.2, abs=0.03)


def a_disk(*, failed):
    """One disk, seen from day 10 to day 100; a sector goes on day 50."""
    return Disks(
        keys=np.array([10.0, 50.0]),
        day_start=np.array([10.0, 50.0]),
        poh_start=np.array([0.0, 960.0]),
        counters=np.array([[0.0] * 9, [1.0] + [0.0] * 8], dtype=np.float32),
        disk_id=np.array([1]),
        first_day=np.array([10.0]),
        last_day=np.array([100.0]),
        failed=np.array([failed]),
        size_tb=np.array([4.0], dtype=np.float32),
        held_out=np.array([False]),
        end_day=200.0,
    )


def test_a_window_is_what_stood_on_those_days():
    window = a_disk(failed=True).windows(np.array([0]), np.array([51.0]))[0]
    assert window[:, 0].tolist()[-4:] == [0.0, 0.0, 1.0, 1.0]
    assert np.isnan(window[:3]).all()
    assert window[-1, 9:].tolist() == [960.0 + 24.0, 4.0]


def test_labels_know_no_failure_after_what_is_known():
    rows, days = np.array([0, 0]), np.array([95.0, 60.0])
    assert a_disk(failed=True).labels(rows, days, 200.0).tolist() == [[0, 1, 1], [0, 0, 0]]
    told = a_disk(failed=True).labels(rows, days, 99.0)
    assert told[0, 0] == 0.0
    assert np.isnan(told[0, 1:]).all()
    # A disk that was taken away whole says nothing of the days after.
    assert np.isnan(a_disk(failed=False).labels(rows, days, 200.0)[0, 1:]).all()


def test_a_node_that_is_down_is_not_judged_and_its_next_failure_is_the_label():
    outages = [
        Outage("n", "", "", 10 * DAY_S, 12 * DAY_S, Cause.DISK),
        Outage("n", "", "", 20 * DAY_S, None, Cause.OPERATOR),
    ]
    history = History(
        name="x",
        outages=outages,
        places=[Place("n", since_s=0)],
        until_s=np.array([30 * DAY_S]),
        split_s=0,
    )
    moments = [day * DAY_S for day in (5, 11, 15, 25)]
    serving, labels = down_or_fails(history, moments, [7 * DAY_S, 20 * DAY_S])
    assert serving[:, 0].tolist() == [True, False, True, False]
    assert labels[0, 0].tolist() == [1.0, 1.0]
    # What an operator wished is no failure; and beyond the end of the record nobody knows.
    assert labels[2, 0, 0] == 0.0
    assert np.isnan(labels[2, 0, 1])


def test_figures_of_a_perfect_and_of_a_blind_score():
    random = np.random.default_rng(0)
    labels = (random.random(2_000) < 0.05).astype(float)
    machines = np.arange(2_000) // 4
    scores = {"perfect": labels, "blind": np.zeros(2_000)}
    figures, leads, lift = precisions(labels, scores, machines, first="perfect", rounds=50)
    assert figures["perfect"].value == 1.0
    assert figures["blind"].value == pytest.approx(labels.mean())
    assert leads["blind"].low > 0.9
    assert lift.value == pytest.approx(1.0 / labels.mean())


def test_a_calibrated_score_has_hardly_any_calibration_error():
    random = np.random.default_rng(0)
    said = random.random(100_000) ** 4
    came = (random.random(100_000) < said).astype(float)
    lower, top = reliability(came, said)
    assert sum(each.rows for each in top) == 1_000
    assert calibration_error([*lower, *top]) < 0.005
    assert calibration_error(reliability(came, said / 2.0)[1]) > 0.4


def test_machines_are_called_at_the_line_that_few_calm_ones_reach():
    machines = np.repeat(np.arange(110), 3)
    days = np.tile([0.0, 7.0, 14.0], 110)
    scores = np.zeros(330)
    scores[machines == 105] = [0.0, 0.9, 0.9]
    scores[machines == 3] = 1.0
    failing = dict.fromkeys(range(100, 110), 20.0)
    found = warnings_by_machine(scores, days, machines, failing, false_share=0.01, rounds=20)
    assert found.detected_share.value == pytest.approx(0.1)
    assert found.lead_days_median.value == 13.0
    assert found.false_share <= 0.01

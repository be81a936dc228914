"""The gate between a model that was trained and the one that is shipped."""

from dataclasses import replace

import pytest
from synthetic import make_run

from las.forecast.heuristic import HeuristicForecaster
from models import gate
from models.baselines import BaseRate

FIGURES = ("shielded_share", "average_precision", "false_alarms_per_node_hour")


def held_out_runs():
    runs = [make_run(number) for number in (2, 5, 8)]
    housed = replace(runs[0].truth, load=runs[0].truth.load | {"in_rooms": 1.0})
    return [replace(runs[0], truth=housed), *runs[1:]]


@pytest.fixture
def models(monkeypatch):
    """Forecasters in the place of files, by name."""
    known = {"rule": HeuristicForecaster(), "base": BaseRate(0.1), "alarmist": BaseRate(1.0)}
    monkeypatch.setattr(gate.ForecastModel, "load", lambda path: known[path])


def test_an_equal_and_a_better_one_pass_on_each_kind_of_run(models):
    for candidate, live in (("rule", "rule"), ("rule", "base")):
        refusals, lines = gate.compare(candidate, live, held_out_runs(), rounds=40)
        assert refusals == []
        assert sum("| in rooms |" in line for line in lines) == 3
        assert sum("| shared |" in line for line in lines) == 3


def test_one_that_shields_less_or_cries_more_is_refused(models):
    refusals, _ = gate.compare("base", "rule", held_out_runs(), rounds=40)
    assert any(why.startswith("shielded_share on runs in rooms") for why in refusals)
    refusals, _ = gate.compare("alarmist", "base", held_out_runs(), rounds=40)
    assert any(why.startswith("false_alarms_per_node_hour") for why in refusals)


def test_one_that_calls_a_fast_disk_later_is_refused(models):
    # Long enough to lay the made-up trouble over a peer that is well.
    refusals, lines = gate.compare("base", "rule", held_out_runs(), rounds=40)
    assert any("made up" in line for line in lines)
    assert any(why.startswith("a disk that grows slow fast") for why in refusals)


def test_runs_of_training_do_not_count(models):
    refusals, lines = gate.compare("base", "rule", [make_run(1), make_run(3)])
    assert refusals == []
    assert len(lines) == 2


@pytest.fixture
def seconds(monkeypatch):
    """By file and onset: after how many seconds a made-up disk is called; all else is equal."""
    told = {}
    monkeypatch.setattr(gate.ForecastModel, "load", lambda path: path)
    monkeypatch.setattr(gate, "_judged", lambda _, runs: [])
    monkeypatch.setattr(gate, "figures", lambda _: dict.fromkeys(FIGURES, 1.0))
    monkeypatch.setattr(gate, "leads", lambda *_, **__: dict.fromkeys(FIGURES, (0.0, (-1.0, 1.0))))
    monkeypatch.setattr(gate, "seconds_until_called", lambda model, runs, onset: told[model][onset])
    return told


def test_a_fast_disk_is_asked_for_with_little_and_with_much_of_a_past(seconds):
    """Late after half a minute alone is late."""
    seconds |= {"rule": {30: [10, 12], 60: [10, 12]}, "slow": {30: [11, 19], 60: [4, 6]}}
    refusals, _ = gate.compare("slow", "rule", held_out_runs(), rounds=40)
    assert refusals == [
        "a disk that grows slow fast, from second 30 on, is called after 15 s, not 11 (the median)"
    ]


def test_a_fast_disk_that_is_late_on_every_fourth_peer_is_late(seconds):
    seconds |= {
        "rule": {30: [10] * 6, 60: [10] * 6},
        "late": {30: [10] * 4 + [24] * 2, 60: [9] * 6},
    }
    refusals, _ = gate.compare("late", "rule", held_out_runs(), rounds=40)
    assert len(refusals) == 1
    assert refusals[0].endswith("from second 30 on, is called after 24 s, not 10 (four in five)")

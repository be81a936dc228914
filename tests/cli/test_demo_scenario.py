"""A scenario is drawn from its seed alone, before anything starts."""

from pathlib import Path

import pytest

from peerd.cli.demo.scenario import Fault, ScenarioError, draw, from_environment

AVAILABLE = 1_469_307
SICK = (Fault.SLOW_STORAGE, Fault.SLOW_DISK, Fault.PAUSES, Fault.SUDDEN)


def test_a_seed_draws_the_same_for_ever():
    first = draw(4711, Fault.SLOW_STORAGE, 100_000)
    assert draw(4711, Fault.SLOW_STORAGE, 100_000) == first
    # Literal: whoever changes what a seed means changes what was reported with it.
    assert (round(first.onset_s, 3), round(first.kill_s or 0, 3)) == (24.12, 51.089)


@pytest.mark.parametrize("fault", SICK)
def test_the_kill_comes_20_to_40_s_after_the_onset_and_within_the_appends(fault):
    for seed in range(200):
        scenario = draw(seed, fault, 100_000)
        assert scenario.kill_s is not None
        assert 20.0 <= scenario.kill_s - scenario.onset_s <= 40.0
        assert scenario.kill_s < scenario.append_s
        assert 0.0 <= scenario.victim_draw < 1.0
        # Full-grown before any kill.
        assert scenario.grow_s < 20.0


def test_nobody_is_killed_in_a_look_alike():
    assert draw(1, Fault.LOOK_ALIKE, 100_000).kill_s is None


@pytest.mark.parametrize(
    ("transactions", "append_s", "shards"),
    [(1_500, 75.0, 1), (5_000, 75.0, 3), (100_000, 75.0, 12), (AVAILABLE, 367.32675, 12)],
)
def test_rates_are_enough_to_tell_a_pause_and_not_too_much(transactions, append_s, shards):
    scenario = draw(1, Fault.SLOW_STORAGE, transactions)
    assert (scenario.append_s, scenario.shards) == (append_s, shards)
    assert scenario.appends_per_s / scenario.shards >= 20.0
    assert scenario.appends_per_s <= 4_000.0


def test_the_environment_says_what_is_wanted():
    asked = {
        "DEMO_TRANSACTIONS": "all",
        "DEMO_SEED": "42",
        "DEMO_FAULT": "sudden",
        "DEMO_DIR": "elsewhere",
    }
    scenario, directory = from_environment(asked, AVAILABLE)
    assert scenario == draw(42, Fault.SUDDEN, AVAILABLE)
    assert directory == Path("elsewhere")


def test_the_default_draws_a_seed_and_tells_it():
    scenario, directory = from_environment({"DEMO_SEED": "", "DEMO_FAULT": ""}, AVAILABLE)
    assert scenario == draw(scenario.seed, Fault.SLOW_STORAGE, 100_000)
    assert directory == Path("build/demo")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"DEMO_TRANSACTIONS": "10"}, "DEMO_TRANSACTIONS=10: choose 1,500 to 1,469,307, or all"),
        ({"DEMO_TRANSACTIONS": "2000000"}, "choose 1,500"),
        ({"DEMO_TRANSACTIONS": "many"}, "DEMO_TRANSACTIONS=many: a whole number is needed"),
        ({"DEMO_SEED": "-1"}, "DEMO_SEED=-1: a whole number is needed"),
        ({"DEMO_FAULT": "fire"}, "DEMO_FAULT=fire: choose one of slow-storage, slow-disk"),
    ],
)
def test_what_cannot_be_is_one_line(asked, words):
    with pytest.raises(ScenarioError, match=words) as caught:
        from_environment(asked, AVAILABLE)
    assert len(str(caught.value).splitlines()) == 1

"""Random schedules: they break nothing, unless one of the rules is switched off."""

import pytest
from raft_fuzz import Fuzz, Violation

from las.raft.guard import Guards

SEEDS = 100
SEEDS_PER_TEST = 10


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_random_schedules_keep_every_promise(clock, tmp_path, first):
    acknowledged = 0
    for seed in range(first, first + SEEDS_PER_TEST):
        acknowledged += Fuzz(seed, clock, tmp_path / str(seed)).run()
    assert acknowledged > 10 * SEEDS_PER_TEST


def test_a_schedule_follows_from_its_seed(tmp_path, clock):
    def applied(number):
        clock.now = 1000.0
        fuzz = Fuzz(4, clock, tmp_path / str(number))
        fuzz.run()
        return fuzz.applied

    assert applied(1) == applied(2)


@pytest.mark.parametrize(
    ("rule", "seed"),
    [
        ("snapshot_pieces_move_nothing", 43),
        ("cut_only_on_conflict", 5),
        ("sync_before_sending", 0),
        ("apply_once", 2),
        ("rejoin_without_vote", 10),
    ],
)
def test_a_missing_rule_is_noticed(clock, tmp_path, rule, seed):
    """Of the other rules, `test_holes` and `test_guard` have schedules that miss them."""
    with pytest.raises(Violation):
        Fuzz(seed, clock, tmp_path, Guards(**{rule: False})).run()

"""Each rule that is broken on purpose is noticed: otherwise the checks would be worth nothing."""

import pytest

from peerd.core.check import InvariantViolation
from peerd.testing.sim import BrokenPromise, Simulation, drawn
from tests.core import mutants, test_durable, test_handover, test_primary, test_takeover
from tests.core.words import B, Peer, plan

RUNS_MAX = 60
"""Every mutant is caught within a third of it; the rest is room for changes of the simulation."""


def is_caught(seed: int) -> bool:
    """Whether one run breaks a promise or an invariant, or trips over itself."""
    try:
        Simulation(seed, drawn(seed)).run()
    except (BrokenPromise, InvariantViolation, KeyError):
        return True
    return False


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_broken_rule_is_noticed(mutant, monkeypatch):
    mutant(monkeypatch)
    assert any(is_caught(seed) for seed in range(RUNS_MAX))


def test_a_dropping_adoption_is_noticed(monkeypatch):
    mutants.adoption_drops_tail(monkeypatch)
    with pytest.raises(AssertionError):
        test_durable.test_an_adoption_drops_no_older_tail_since_its_epoch_may_be_dead()


def test_a_second_begin_is_noticed(monkeypatch):
    mutants.begin_twice(monkeypatch)
    peer = Peer(B)
    peer.learn(test_handover.prepared(plan(B)))
    with pytest.raises(AssertionError):
        test_handover.test_begin_for_another_boot_is_refused(peer)


def test_an_early_answer_is_noticed(monkeypatch):
    mutants.retry_answered_early(monkeypatch)
    with pytest.raises(AssertionError):
        test_takeover.test_a_retry_of_the_kept_tail_waits_until_acks_stores_have_it()


def test_a_vote_of_a_non_voter_is_noticed(monkeypatch):
    mutants.non_voters_counted(monkeypatch)
    with pytest.raises(AssertionError):
        test_primary.test_an_ack_of_a_non_voter_counts_for_nothing()

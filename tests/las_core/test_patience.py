"""Patience with nodes that take over many shards: who, from when, and for how long at most."""

from las.core.patience import TakeOvers
from peerd.core.ids import NodeName

A, B = NodeName("a"), NodeName("b")


def test_a_mass_take_over_makes_busy_a_small_one_does_not():
    taken = TakeOvers(shards_min=3, patience_ms=1_000)
    for _ in range(2):
        taken.opened([A, B], 100)
    assert taken.busy(100) == {}
    taken.opened([A], 300)
    assert taken.busy(300) == {A: 800}
    assert taken.busy(1_099) == {A: 1}
    assert taken.busy(1_100) == {}


def test_more_shards_do_not_make_it_longer_and_then_there_is_none_for_as_long_again():
    taken = TakeOvers(shards_min=1, patience_ms=1_000)
    busy_ms = 0
    for now in range(0, 10_000, 10):
        taken.opened([A], now)
        busy_ms += 10 * (A in taken.busy(now))
    assert busy_ms == 5_000
    assert taken.busy(999 + 8_000) == {A: 1}
    assert taken.busy(1_001 + 8_000) == {}


def test_no_patience_is_none():
    taken = TakeOvers(shards_min=1, patience_ms=0)
    taken.opened([A], 5)
    assert taken.busy(5) == {}

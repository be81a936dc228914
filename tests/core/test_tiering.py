"""What a primary decides when it puts the past into the tier (docs/protocol.md §8.3)."""

from dataclasses import replace

import pytest

from peerd.core.ids import Epoch, Offset
from peerd.core.shard_map import Gap, Shard, Tiered
from peerd.core.tiering import Verdict, judged, limit, next_offset, outcome
from tests.las_core.builders import SHARD, with_log


def shard(*, tier: Tiered | None = None, gaps: tuple[Gap, ...] = (), **changes) -> Shard:
    """Open from 90 on, behind what is trimmed."""
    entry = with_log().shards[SHARD].shard
    opened = replace(entry.open, epoch=Epoch(9), begin=Offset(90))
    return replace(entry, open=opened, trimmed_to=Offset(90), tier=tier, gaps=gaps, **changes)


def test_an_object_begins_where_the_tier_ends_or_behind_a_lost_range():
    assert next_offset(shard()) == 90
    assert next_offset(shard(tier=Tiered(begin=Offset(90), end=Offset(95), manifest="m"))) == 95
    lost = Gap(begin=Offset(80), end=Offset(90), epochs=(Epoch(4),), why="gone")
    assert next_offset(replace(shard(gaps=(lost,)), trimmed_to=Offset(80))) == 90


@pytest.mark.parametrize(
    ("end", "stable", "committed", "expected"),
    [
        # Sealed: as far as it may be read, whoever leads.
        (50, None, None, 50),
        (50, 40, (9, 99), 40),
        (50, 60, None, 50),
        # Open: what is committed, and only in its own epoch.
        (None, None, (4, 44), 44),
        (None, None, (3, 44), None),
        (None, None, (5, 44), None),
        (None, None, None, None),
    ],
)
def test_only_what_is_for_good_goes_there(end, stable, committed, expected):
    assert limit(Epoch(4), end, stable, committed) == expected


def test_an_object_is_listed_when_it_was_read_back_whoever_put_it():
    assert judged(same=True, is_new=True) is Verdict.LISTED
    assert judged(same=True, is_new=False) is Verdict.LISTED
    assert judged(same=False, is_new=False) is Verdict.OTHER_NAME
    assert judged(same=False, is_new=True) is Verdict.GIVEN_UP


def test_a_report_waits_until_the_map_has_it_or_somebody_was_faster():
    before = shard(tier=Tiered(begin=Offset(90), end=Offset(91), manifest="m1"))
    named = shard(tier=Tiered(begin=Offset(90), end=Offset(95), manifest="m2"))
    assert outcome(before, before, Offset(95), "m2") is None
    assert outcome(before, named, Offset(95), "m2") is True
    assert outcome(before, named, Offset(95), "m3") is False
    less = shard(tier=Tiered(begin=Offset(90), end=Offset(93), manifest="m2"))
    assert outcome(before, less, Offset(95), "m3") is None
    assert outcome(before, None, Offset(95), "m2") is False
    other = replace(named, open=replace(named.open, epoch=Epoch(10)))
    assert outcome(before, other, Offset(95), "m2") is False

"""What the death of a node would meet, step by step as its shards are moved."""

from dataclasses import replace

from las.core.commands import AddHolder, PrepareSegment, SegmentOpened, SetAtRisk
from las.core.index import indexed
from las.core.protection import is_copied, is_expendable, is_mirrored, is_shielded, is_spared
from las.core.state import ClusterState
from peerd.core.ids import Epoch, Offset
from tests.las_core.builders import SHARD, done, name, plan_of, replica, with_log

PREPARE = PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(2, 2, 3, 4, non=(1,)))


def opened(epoch: int, begin: int, *holders: int) -> SegmentOpened:
    return SegmentOpened(
        shard=SHARD,
        epoch=Epoch(epoch),
        begin=Offset(begin),
        holders=tuple(map(replica, holders)),
    )


def held_by(state: ClusterState, *numbers: int) -> ClusterState:
    adds = [AddHolder(shard=SHARD, epoch=Epoch(1), holder=replica(each)) for each in numbers]
    return done(state, *adds)


def at_risk(number: int) -> SetAtRisk:
    return SetAtRisk(node=name(number), at_risk=True)


def test_shielded_and_expendable_follow_the_committed_map():
    state = done(with_log(), at_risk(1))
    assert not is_shielded(state, name(1))
    state = done(state, PREPARE)
    assert not is_shielded(state, name(1)), "the open segment needs it until the next is open"
    state = done(state, opened(2, 9, 1, 2, 3))
    assert is_shielded(state, name(1))
    assert not is_expendable(state, name(1)), "two others hold what came before"
    state = held_by(state, 4)
    assert is_expendable(state, name(1))
    assert is_expendable(state, name(1), indexed(state))
    assert not is_expendable(done(state, at_risk(2)), name(1)), "a holder at risk is none"


def test_a_prepared_segment_needs_its_voters_too():
    state = done(with_log(), PREPARE)
    assert not is_shielded(state, name(4))
    assert is_shielded(state, name(5))
    assert is_shielded(state, name(5), indexed(state))


def test_a_mirror_is_no_risk_for_records_and_no_shield_for_appends():
    mirror = plan_of(1, 2, 3, 4, non=(1,))
    state = done(with_log(), at_risk(1), replace(PREPARE, plan=mirror))
    assert not is_mirrored(state, name(1)), "it votes in the open segment"
    state = done(state, opened(2, 9, 1, 2, 3))
    assert is_mirrored(state, name(1))
    assert is_mirrored(state, name(1), indexed(state))
    assert not is_shielded(state, name(1))
    assert not is_mirrored(state, name(2)), "it votes"
    assert not is_mirrored(state, name(5)), "it orders nothing"
    assert not is_spared(state, name(1)), "its past is not elsewhere yet"
    state = held_by(state, 4)
    assert is_copied(state, name(1))
    assert is_spared(state, name(1))
    assert not is_expendable(state, name(1)), "its death pauses the shard"

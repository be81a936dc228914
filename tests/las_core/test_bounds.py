"""Bounds that a small fleet never reaches, lowered here, and values that no sane caller gives: each
is answered with its reason.
"""

from dataclasses import dataclass, replace

import pytest

from las.core import apply as las_apply
from las.core import holders, placement, planner, split
from las.core.codec import CodecError, decode
from las.core.commands import PrepareSplit, Reason, WantHolders
from las.core.placement import FleetView, Limits
from las.core.planner import initial_plans, primary_gone, switch_plan
from las.core.snapshot import restore, snapshot
from las.core.state import KEY_HASHES
from peerd.core.check import InvariantViolation
from peerd.core.ids import Epoch, NodeName, Offset, ProcessId, ShardId, StoreId, Tick
from tests.las_core.builders import (
    SHARD,
    do,
    done,
    fleet,
    name,
    plan_of,
    process,
    register,
    replica,
    shard_of,
    with_log,
)
from tests.las_core.test_apply import create

VIEW = FleetView(now=Tick(0))


def test_a_full_cluster_takes_no_node_and_no_log(monkeypatch):
    monkeypatch.setattr(las_apply, "NODES_MAX", 4)
    monkeypatch.setattr(las_apply, "SHARDS_MAX", 0)
    state = fleet(4)
    for command in (register(5), create()):
        _, result = do(state, command)
        assert result.reason is Reason.LIMIT_REACHED


def prepare_split() -> PrepareSplit:
    return PrepareSplit(
        shard=SHARD, epoch=Epoch(1), key_hash=KEY_HASHES // 2, plan=plan_of(1, 1, 2, 3)
    )


@pytest.mark.parametrize("bound", ["LOG_SHARDS_MAX", "SHARDS_MAX"])
def test_a_split_needs_room_for_its_children(monkeypatch, bound):
    monkeypatch.setattr(split, bound, 1)
    _, result = do(with_log(), prepare_split())
    assert result.reason is Reason.LIMIT_REACHED


def test_children_of_a_shard_that_is_not_split_are_a_bug():
    state = with_log()
    with pytest.raises(InvariantViolation, match="not split"):
        split.committed(state, state.shards[SHARD])


def test_not_too_many_stores_fetch_one_segment(monkeypatch):
    monkeypatch.setattr(holders, "WANTED_HOLDERS_MAX", 0)
    state = with_log()
    sealed = replace(shard_of(state).open, end=Offset(5), holders=(replica(1),))
    opened = replace(sealed, epoch=Epoch(2), begin=Offset(5), end=None, holders=())
    entry = state.shards[SHARD]
    shard = replace(entry.shard, sealed=(sealed,), open=opened)
    state = state.changed(shards=(replace(entry, shard=shard),))
    _, result = do(state, WantHolders(shard=SHARD, epoch=Epoch(1), holders=(replica(4),)))
    assert "more than 0 stores" in result.text


def test_a_log_must_not_spread_over_more_nodes_than_one_command_names(monkeypatch):
    monkeypatch.setattr(planner, "INITIAL_NODES_MAX", 3)
    told = initial_plans(fleet(8), VIEW, Limits(), shards=4, copies=3)
    assert isinstance(told, str)
    assert "more than 3 nodes" in told


def test_only_so_many_nodes_are_weighed_for_one_place(monkeypatch):
    monkeypatch.setattr(placement, "CANDIDATES_MAX", 1)
    placed = initial_plans(fleet(5), VIEW, Limits(), shards=1, copies=3)
    assert not isinstance(placed, str)
    assert placed.nodes == (name(1), name(2), name(3))


def test_one_that_may_lead_gets_the_last_place():
    state = done(fleet(1), *(register(number, may_lead=False) for number in (2, 3, 4)))
    placed = initial_plans(state, VIEW, Limits(), shards=1, copies=3)
    assert not isinstance(placed, str)
    assert placed.nodes[placed.rows[0][0]] == name(1)


def test_if_no_voter_that_is_there_may_lead_one_makes_room():
    state = with_log(rows=((0, 1, 2),))
    state = done(state, *(register(number, may_lead=False) for number in (1, 2, 3)))
    made = switch_plan(state, VIEW, Limits(), SHARD, name(4))
    assert not isinstance(made, str)
    assert made.primary == process(4)
    assert len(made.voters) == 3


def test_a_switch_to_nobody_or_of_nothing_is_told():
    state = with_log()
    assert switch_plan(state, VIEW, Limits(), ShardId(9), name(1)) == "there is no shard 9"
    told = switch_plan(state, VIEW, Limits(), SHARD, NodeName("x"))
    assert told == "no node is called x"


def test_a_primary_with_another_store_is_gone():
    state = with_log()
    entry = state.shards[SHARD]
    stranger = ProcessId(name(1), StoreId("another"), process(1).boot)
    plan = replace(entry.shard.open.plan, primary=stranger, voters=(stranger.replica, replica(2)))
    shard = replace(entry.shard, open=replace(entry.shard.open, plan=plan))
    assert primary_gone(state, replace(entry, shard=shard)) == "peer-1 has another store"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Odd:
    value: int | str


def test_a_value_of_two_kinds_has_no_json_form():
    with pytest.raises(CodecError, match="no JSON form"):
        decode(_Odd, {"value": 1})


def test_a_snapshot_whose_shard_is_no_list_is_damaged():
    rows = snapshot(with_log()).split(b"\n")
    at = next(number for number, row in enumerate(rows) if row.startswith(b"[1,"))
    rows[at] = b'{"shard":1}'
    with pytest.raises(CodecError):
        restore(b"\n".join(rows))

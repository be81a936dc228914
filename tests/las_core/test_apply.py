"""Logs, nodes and events of the committed state."""

from dataclasses import replace
from itertools import pairwise

import pytest

from las.core.commands import (
    CreateLog,
    Reason,
    RecordEvent,
    SetAtRisk,
    SetDraining,
    SetNodeState,
)
from las.core.recovered import suspicious
from las.core.state import DEAD_BOOTS_MAX, EVENTS_MAX, KEY_HASHES, NodeState
from peerd.core.ids import BootId, Epoch, ShardId, StoreId
from tests.las_core.builders import (
    SHARD,
    do,
    done,
    fleet,
    name,
    node_of,
    process,
    register,
    replica,
    with_log,
)


def create(**changes) -> CreateLog:
    facts = {
        "name": "orders",
        "copies": 3,
        "acks": 2,
        "nodes": (name(1), name(2), name(3), name(4)),
        "rows": ((0, 1, 2), (1, 2, 3), (3, 0, 1)),
    }
    return CreateLog(**(facts | changes))


# ---------------------------------------------------------------------------------- logs
def test_a_new_log_has_an_open_first_segment_in_each_shard():
    state, result = do(fleet(4), create())
    assert result.shards == (1, 2, 3)
    shard = state.shards[ShardId(2)].shard
    assert (shard.open.epoch, shard.open.begin, shard.sealed) == (1, 0, ())
    assert shard.open.plan.primary == process(2)
    assert shard.open.plan.voters == (replica(2), replica(3), replica(4))
    assert shard.open.plan.acks == 2


def test_the_shards_of_a_log_tile_the_key_hashes():
    for count in (1, 2, 3, 7, 1000):
        state = done(fleet(4), create(rows=((0, 1, 2),) * count))
        shards = [state.shards[shard].shard for shard in state.logs["orders"].shards]
        assert shards[0].key_hash_low == 0
        assert shards[-1].key_hash_high == KEY_HASHES - 1
        for before, after in pairwise(shards):
            assert after.key_hash_low == before.key_hash_high + 1


def test_shard_ids_are_never_used_again():
    state = done(fleet(4), create(), create(name="other"))
    assert state.logs["other"].shards == (4, 5, 6)
    assert state.next_shard == 7


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "Orders"}, Reason.INVALID_ARGUMENT),
        ({"name": ""}, Reason.INVALID_ARGUMENT),
        ({"rows": ()}, Reason.INVALID_ARGUMENT),
        ({"rows": ((0, 1, 2),) * 1025}, Reason.INVALID_ARGUMENT),
        ({"acks": 4}, Reason.INVALID_ARGUMENT),
        ({"acks": 0}, Reason.INVALID_ARGUMENT),
        ({"rows": ((0, 1, 1),)}, Reason.INVALID_ARGUMENT),
        ({"rows": ((0, 1),)}, Reason.INVALID_ARGUMENT),
        ({"rows": ((0, 1, 9),)}, Reason.INVALID_ARGUMENT),
        ({"nodes": (name(1), name(2), name(9), name(4))}, Reason.UNKNOWN_NODE),
    ],
)
def test_a_log_that_cannot_be_is_refused(changes, reason):
    _, result = do(fleet(4), create(**changes))
    assert result.reason is reason


def test_a_log_is_created_once():
    assert do(done(fleet(4), create()), create())[1].reason is Reason.LOG_EXISTS


def test_a_shadow_leads_no_new_shard():
    state = done(fleet(4), register(1, may_lead=False))
    assert do(state, create())[1].reason is Reason.INVALID_ARGUMENT


# ---------------------------------------------------------------------------------- nodes
def test_a_new_boot_id_proves_the_old_process_dead():
    state = done(fleet(1), register(1, boot=2))
    assert node_of(state, 1).boot == "boot-1-2"
    assert node_of(state, 1).dead_boots == ("boot-1-1",)
    assert do(state, register(1, boot=1))[1].reason is Reason.STALE_BOOT


def test_the_same_process_may_register_again():
    state = fleet(1)
    again, result = do(state, register(1))
    assert result.ok
    assert again is state


def test_another_store_is_refused_under_a_known_name():
    _, result = do(fleet(1), register(1, boot=2, store=StoreId("store-9")))
    assert result.reason is Reason.STORE_ID_CHANGED


def test_a_node_keeps_its_judgement_over_a_restart_but_not_its_state():
    state = done(
        fleet(1),
        SetAtRisk(node=name(1), at_risk=True),
        SetDraining(node=name(1), draining=True),
        SetNodeState(node=name(1), boot=process(1).boot, state=NodeState.DOWN),
    )
    assert node_of(done(state, register(1)), 1).state is NodeState.DOWN
    node = node_of(done(state, register(1, boot=2)), 1)
    assert (node.state, node.at_risk, node.draining) == (NodeState.UP, True, True)


def test_a_registered_epoch_above_all_drawn_halts_the_shard():
    state = with_log()
    stored = suspicious(state, [(SHARD, Epoch(1)), (SHARD, Epoch(2))])
    assert stored == ((SHARD, 2),)
    after, result = do(state, register(2, boot=2, stored=stored))
    assert result.ok
    assert result.shards == (SHARD,)
    assert "above all that was drawn" in after.shards[SHARD].halted


def test_what_looked_too_high_to_a_lagging_leader_is_looked_at_again():
    state = done(with_log(), register(2, boot=2, stored=((SHARD, Epoch(1)),)))
    assert not state.shards[SHARD].halted


def test_a_store_of_a_lost_past_is_refused():
    state = with_log()
    stored = suspicious(state, [(ShardId(77), Epoch(1))])
    _, result = do(state, register(6, stored=stored))
    assert result.reason is Reason.LAS_LOST_ITS_PAST


def test_only_the_registered_process_is_judged():
    state = done(fleet(1), register(1, boot=2))
    late = SetNodeState(node=name(1), boot=BootId("boot-1-1"), state=NodeState.DOWN)
    assert do(state, late)[1].reason is Reason.STALE_BOOT


def test_a_failed_store_is_only_ended_by_a_new_process():
    failed = SetNodeState(node=name(1), boot=process(1).boot, state=NodeState.FAILED)
    state = done(fleet(1), failed)
    assert do(state, replace(failed, state=NodeState.UP))[1].reason is Reason.STATE_CHANGED
    assert node_of(done(state, register(1, boot=2)), 1).state is NodeState.UP


def test_dead_boot_ids_are_bounded():
    state = fleet(1)
    for boot in range(2, DEAD_BOOTS_MAX + 5):
        state = done(state, register(1, boot=boot))
    assert len(node_of(state, 1).dead_boots) == DEAD_BOOTS_MAX


@pytest.mark.parametrize(
    "command",
    [
        SetAtRisk(node=name(9), at_risk=True),
        SetDraining(node=name(9), draining=True),
        SetNodeState(node=name(9), boot=BootId("b"), state=NodeState.UP),
        RecordEvent(node=name(9), kind="died", text="", timestamp_ms=0),
    ],
)
def test_an_unknown_node_is_said_to_be_unknown(command):
    assert do(fleet(1), command)[1].reason is Reason.UNKNOWN_NODE


# ---------------------------------------------------------------------------------- version, events
def test_the_newest_events_of_a_node_are_kept_and_the_map_stays():
    state = fleet(1)
    version = state.version
    for number in range(EVENTS_MAX + 3):
        event = RecordEvent(node=name(1), kind="at_risk", text=str(number), timestamp_ms=number)
        state = done(state, event)
    history = state.events[name(1)]
    assert len(history) == EVENTS_MAX
    assert history[-1].text == str(EVENTS_MAX + 2)
    assert state.version == version


def test_a_change_of_the_map_is_one_version():
    state = fleet(4)
    assert done(state, create()).version == state.version + 1
    assert done(state, SetAtRisk(node=name(1), at_risk=False)).version == state.version


def test_a_delta_holds_what_changed_and_nothing_else():
    before = done(fleet(4), create())
    state = done(before, SetAtRisk(node=name(2), at_risk=True), create(name="other"))
    delta = state.changes_since(before.version)
    assert not delta.full
    assert [node.name for node in delta.nodes] == [name(2)]
    assert [log.name for log in delta.logs] == ["other"]
    assert [entry.shard.shard for entry in delta.shards] == [4, 5, 6]
    assert delta.version == state.version
    assert state.changes_since(state.version).shards == ()


def test_a_delta_that_is_not_remembered_is_the_whole_map():
    state = with_log()
    for version in (-1, state.version + 1):
        delta = state.changes_since(version)
        assert delta.full
        assert len(delta.nodes) == 5
        assert delta.shards == (state.shards[SHARD],)


def test_remembered_changes_are_bounded(monkeypatch):
    monkeypatch.setattr("las.core.state.CHANGES_MAX", 8)
    state = with_log()
    start = state.version
    for number in range(20):
        state = done(state, SetAtRisk(node=name(1), at_risk=number % 2 == 0))
    assert len(state.changes) == 8
    assert state.changes_since(start).full
    assert not state.changes_since(state.version - 8).full

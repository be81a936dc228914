"""What is planned for which trouble, that it is enough, and that it ends."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from las.core.apply import apply
from las.core.commands import (
    AddHolder,
    CreateLog,
    FenceSegment,
    PrepareSegment,
    RecoveredSegment,
    SegmentOpened,
    SetAtRisk,
    SetCopies,
    SetDraining,
    SetNodeState,
    WantHolders,
)
from las.core.index import FleetIndex, indexed
from las.core.placement import FleetView, Health, Limits, Placement
from las.core.planner import (
    Action,
    Prepare,
    Recover,
    Shortage,
    Urgency,
    Want,
    initial_plans,
    plan,
    recovery_plan,
    resolve_policy,
    switch_plan,
)
from las.core.recovery import Recovered
from las.core.segments import plan_error
from las.core.state import ClusterState, NodeState
from peerd.core.ids import BootId, Epoch, NodeName, Offset, ShardId, Tick
from peerd.core.shard_map import Plan
from tests.las_core.builders import (
    SHARD,
    done,
    fleet,
    name,
    node_of,
    plan_of,
    process,
    register,
    replica,
    shard_of,
    with_log,
)

VIEW = FleetView(now=Tick(0))
LIMITS = Limits()


def at_risk(number: int, flag: bool = True) -> SetAtRisk:
    return SetAtRisk(node=name(number), at_risk=flag)


def down(number: int, boot: int = 1) -> SetNodeState:
    return SetNodeState(
        node=name(number), boot=BootId(f"boot-{number}-{boot}"), state=NodeState.DOWN
    )


def planned(state: ClusterState, view: FleetView = VIEW, limits: Limits = LIMITS) -> list[Action]:
    return plan(state, view, limits)


def numbers(replicas) -> set[int]:
    return {int(each.peer.removeprefix("peer-")) for each in replicas}


def only(actions: list[Action], kind: type) -> object:
    (action,) = actions
    assert isinstance(action, kind)
    return action


def prepare_of(state: ClusterState, view: FleetView = VIEW) -> Prepare:
    return only(planned(state, view), Prepare)


# ---------------------------------------------------------------------------------- planned
def test_a_healthy_shard_needs_nothing():
    assert planned(with_log()) == []


def test_an_endangered_voter_stays_as_a_non_voter_and_a_healthy_one_joins():
    action = prepare_of(done(with_log(), at_risk(2)))
    assert numbers(action.plan.voters) & {4, 5}
    assert numbers(action.plan.voters) >= {1, 3}
    assert numbers(action.plan.non_voters) == {2}
    assert action.plan.primary == process(1)
    assert action.urgency is Urgency.AT_RISK
    assert action.why.startswith("peer-2 is at risk: ")


def test_an_endangered_primary_hands_over_to_one_who_has_the_tail():
    action = prepare_of(done(with_log(), at_risk(1)))
    assert action.plan.primary in (process(2), process(3))
    assert 1 not in numbers(action.plan.voters)
    assert numbers(action.plan.non_voters) == {1}
    assert "leads in place of peer-1" in action.why


MIRROR = replace(LIMITS, mirror=True)


def mirrored(*commands) -> ClusterState:
    """peer-1 is at risk and orders the shard without a vote."""
    state = done(with_log(), at_risk(1))
    (action,) = planned(state, limits=MIRROR)
    assert action.plan.primary == process(1)
    assert numbers(action.plan.non_voters) == {1}
    assert len(action.plan.voters) == 3
    assert "peer-1 goes on leading without a vote" in action.why
    prepare = PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=action.plan, why=action.why)
    begun = SegmentOpened(shard=SHARD, epoch=Epoch(2), begin=Offset(0), holders=())
    return done(state, prepare, begun, *commands)


def test_an_endangered_primary_goes_on_as_a_mirror_where_that_is_wanted():
    assert planned(mirrored(), limits=MIRROR) == []


def test_a_mirror_that_recovers_votes_again():
    (action,) = planned(mirrored(at_risk(1, False)), limits=MIRROR)
    assert action.plan.primary == process(1)
    assert 1 in numbers(action.plan.voters)
    assert action.why.startswith("peer-1 leads without a vote")


@pytest.mark.parametrize(
    ("commands", "limits"),
    [((), LIMITS), ((SetDraining(node=name(1), draining=True),), MIRROR)],
    ids=["not wanted any more", "being drained"],
)
def test_a_mirror_hands_over_where_it_may_not_go_on(commands, limits):
    (action,) = planned(mirrored(*commands), limits=limits)
    assert action.plan.primary in (process(2), process(3))
    assert 1 not in numbers(action.plan.voters)


def test_a_mirror_whose_disk_fills_hands_over_before_it_refuses_appends():
    view = replace(VIEW, free_bytes={name(1): MIRROR.free_bytes_min - 1})
    (action,) = planned(mirrored(), view, MIRROR)
    assert action.plan.primary in (process(2), process(3))
    (action,) = planned(done(with_log(), at_risk(1)), view, MIRROR)
    assert action.plan.primary in (process(2), process(3))


def test_a_mirror_whose_voters_are_no_better_hands_over():
    state = done(with_log(), at_risk(1), *(down(number) for number in (4, 5)), at_risk(3))
    (action,) = planned(state, limits=MIRROR)
    assert action.plan.primary == process(2)


def test_a_mirror_that_dies_is_recovered_from_its_voters():
    (action,) = planned(mirrored(down(1)), limits=MIRROR)
    assert isinstance(action, Recover)


def test_a_drain_is_a_risk_of_its_own():
    action = prepare_of(done(with_log(), SetDraining(node=name(1), draining=True)))
    assert numbers(action.plan.non_voters) == {1}
    assert action.urgency is Urgency.DRAINING
    assert "peer-1 is being drained" in action.why


def test_a_dead_voter_is_replaced_by_a_log_only_shadow_at_once():
    action = prepare_of(done(with_log(), down(3)))
    assert numbers(action.plan.voters) > {1, 2}
    assert len(action.plan.voters) == 3
    assert 3 not in numbers(action.plan.replicas)


def test_a_stalling_voter_is_replaced_by_the_primary_itself():
    view = FleetView(now=Tick(0), stalled=frozenset({(SHARD, replica(3))}))
    action = prepare_of(with_log(), view)
    assert action.plan.primary == process(1)
    assert 3 not in numbers(action.plan.voters)
    assert action.urgency is Urgency.STALLED
    other = FleetView(now=Tick(0), stalled=frozenset({(ShardId(2), replica(3))}))
    assert planned(with_log(), other) == []


def test_too_few_live_voters_go_first():
    state = with_log(nodes=7, rows=((0, 1, 2), (3, 4, 5)))
    state = done(state, at_risk(6), down(2), down(3))
    first, second = planned(state)
    assert (first.shard, first.urgency) == (1, Urgency.PAUSED)
    assert (second.shard, second.urgency) == (2, Urgency.AT_RISK)


def test_without_a_replacement_an_endangered_node_still_leaves_the_voters():
    action = prepare_of(done(with_log(nodes=3), at_risk(3)))
    assert numbers(action.plan.voters) == {1, 2}
    assert numbers(action.plan.non_voters) == {3}


def test_never_fewer_voters_than_acks_an_endangered_one_votes_on():
    state = done(with_log(nodes=3), at_risk(2), at_risk(3))
    action = prepare_of(state)
    assert len(action.plan.voters) == 2
    assert 1 in numbers(action.plan.voters)
    after = carried_out(state, action)
    assert planned(after) == []


def test_a_shortage_is_said_and_changes_nothing():
    state = done(with_log(nodes=2, rows=((0, 1),), copies=2), down(2))
    shortage = only(planned(state), Shortage)
    assert shortage.why.startswith("peer-2 is gone; fewer than 2 nodes")


def test_who_may_not_lead_votes_but_does_not():
    state = done(with_log(nodes=4, rows=((0, 1, 2),)), register(2, may_lead=False))
    action = prepare_of(done(state, at_risk(1)))
    assert action.plan.primary == process(3)
    assert numbers(action.plan.voters) == {2, 3, 4}


def test_a_place_is_kept_for_one_who_may_lead():
    state = done(
        with_log(nodes=5), *(register(each, may_lead=False) for each in (2, 3, 4)), at_risk(1)
    )
    action = prepare_of(state)
    assert action.plan.primary == process(5)
    assert len(action.plan.voters) == 3


def test_if_nobody_else_may_lead_the_endangered_primary_goes_on():
    state = done(with_log(nodes=3), *(register(each, may_lead=False) for each in (2, 3)))
    assert isinstance(only(planned(done(state, at_risk(1))), Shortage), Shortage)


def test_a_node_that_came_back_votes_again():
    state = done(with_log(nodes=3), down(3))
    state = carried_out(state, prepare_of(state))
    assert numbers(shard_of(state).open.plan.voters) == {1, 2}
    action, want = planned(done(state, register(3, boot=2)))
    assert numbers(want.holders) == {3}
    assert numbers(action.plan.voters) == {1, 2, 3}
    assert action.urgency is Urgency.SHORT


def test_what_recovered_is_not_moved_back_at_once():
    state = done(with_log(), at_risk(2))
    state = carried_out(state, prepare_of(state))
    state = done(state, at_risk(2, flag=False))
    assert [each for each in planned(state) if isinstance(each, Prepare)] == []


def test_the_hosts_of_a_plan_are_apart():
    state = done(with_log(nodes=4), register(4, labels=(("host", "host-1"),)), down(3))
    action = prepare_of(state)
    assert numbers(action.plan.voters) == {1, 2}, "peer-4 shares a host with peer-1"


def test_the_host_of_an_endangered_copy_is_used_when_it_must_be():
    state = done(with_log(nodes=4), register(4, labels=(("host", "host-3"),)), at_risk(3))
    action = prepare_of(state)
    assert numbers(action.plan.voters) == {1, 2, 4}
    assert action.plan.non_voters == ()


def test_racks_and_zones_are_preferred_apart():
    state = done(
        with_log(nodes=6, rows=((0, 1, 2),)),
        *(
            register(each, labels=(("host", f"host-{each}"), ("rack", rack)))
            for each, rack in ((1, "a"), (2, "b"), (3, "c"), (4, "a"), (5, "b"), (6, "c"))
        ),
        down(3),
    )
    assert numbers(prepare_of(state).plan.voters) == {1, 2, 6}


def test_a_node_without_room_is_never_chosen():
    view = FleetView(now=Tick(0), free_bytes={name(4): 1 << 20, name(5): 1 << 40})
    assert numbers(prepare_of(done(with_log(), down(3)), view).plan.voters) == {1, 2, 5}


def test_work_is_spread_over_the_fleet():
    state = with_log(nodes=12, rows=tuple((0, 1, 2) for _ in range(9)))
    actions = planned(done(state, at_risk(1)))
    leaders = [action.plan.primary.peer for action in actions]
    assert {leaders.count(name(2)), leaders.count(name(3))} == {4, 5}
    joined = [number for action in actions for number in numbers(action.plan.voters) - {2, 3}]
    assert sorted(joined) == [4, 4, 4, 7, 7, 7, 10, 10, 10], "those of the zone that is missing"


def test_changes_under_way_are_bounded():
    state = done(with_log(rows=((0, 1, 2),) * 9), at_risk(1))
    limits = Limits(changes_max=4)
    first = planned(state, limits=limits)
    assert len(first) == 4
    for action in first[:3]:
        state = done(
            state, PrepareSegment(shard=action.shard, epoch=action.epoch, plan=action.plan)
        )
    assert len(planned(state, limits=limits)) == 1


def test_a_halted_shard_is_left_alone():
    state = done(with_log(), at_risk(1))
    entry = replace(state.shards[SHARD], halted="look")
    assert planned(state.changed(shards=(entry,))) == []


# ---------------------------------------------------------------------------------- unplanned
@pytest.mark.parametrize(
    ("command", "why"),
    [
        (down(1), "peer-1 is down"),
        (register(1, boot=2), "peer-1 has restarted"),
        (
            SetNodeState(node=name(1), boot=process(1).boot, state=NodeState.FAILED),
            "the storage of peer-1 failed",
        ),
        (FenceSegment(shard=SHARD, epoch=Epoch(1)), "fence 2 stands"),
    ],
)
def test_a_gone_primary_is_recovered(command, why):
    assert planned(done(with_log(), command)) == [Recover(shard=SHARD, why=why)]


def test_a_gone_primary_is_recovered_with_a_segment_prepared_too():
    prepare = PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(2, 2, 3))
    assert planned(done(with_log(), prepare)) == []
    only(planned(done(with_log(), prepare, down(1))), Recover)


def recovered(*holders: int) -> Recovered:
    return Recovered(
        ended=RecoveredSegment(
            end=Offset(9), known_commit=Offset(9), holders=tuple(map(replica, holders))
        )
    )


def after_fence(state: ClusterState, holders, answered) -> Plan | None:
    state = done(state, down(1), FenceSegment(shard=SHARD, epoch=Epoch(1)))
    return recovery_plan(
        state,
        Placement(state, VIEW, LIMITS, indexed(state)),
        shard=SHARD,
        recovered=recovered(*holders),
        answered=frozenset(map(replica, answered)),
    )


def test_who_has_what_was_recovered_leads():
    found = after_fence(with_log(), holders=(3,), answered=(2, 3))
    assert found.primary == process(3)
    assert numbers(found.voters) > {2, 3}
    assert 1 not in numbers(found.replicas)


def test_a_silent_node_votes_only_if_it_must():
    found = after_fence(with_log(nodes=6), holders=(3,), answered=(3,))
    assert 2 not in numbers(found.voters)
    assert len(found.voters) == 3
    forced = after_fence(with_log(nodes=3), holders=(3,), answered=(3,))
    assert numbers(forced.voters) == {2, 3}


def test_an_endangered_heir_does_not_lead_while_another_can():
    found = after_fence(done(with_log(), at_risk(3)), holders=(3,), answered=(2, 3))
    assert found.primary == process(2)
    assert numbers(found.non_voters) == {3}


def test_no_plan_with_fewer_voters_than_acks():
    state = with_log(nodes=2, rows=((0, 1),), copies=2)
    assert after_fence(state, holders=(2,), answered=(2,)) is None


# ---------------------------------------------------------------------------------- the past
def sealed(state: ClusterState, holders=(1, 2, 3), known: int = 10) -> ClusterState:
    """Epoch 1 sealed at 10 with these holders, epoch 2 open with the same plan."""
    prepare = PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=shard_of(state).open.plan)
    opened = SegmentOpened(
        shard=SHARD, epoch=Epoch(2), begin=Offset(10), holders=tuple(map(replica, holders))
    )
    state = done(state, prepare, opened)
    entry = state.shards[SHARD]
    segment = replace(entry.shard.sealed[0], known_commit=Offset(known))
    return state.changed(shards=(replace(entry, shard=replace(entry.shard, sealed=(segment,))),))


def wants(state: ClusterState, view: FleetView = VIEW, limits: Limits = LIMITS) -> list[Want]:
    return [each for each in planned(state, view, limits) if isinstance(each, Want)]


def test_enough_healthy_holders_need_no_copy():
    assert wants(sealed(with_log())) == []


def test_a_missing_copy_is_fetched_by_who_votes_now():
    (want,) = wants(sealed(with_log(), holders=(1, 2)))
    assert want.holders == (replica(3),)
    assert want.why == "2 of 3 healthy holders"


def test_a_copy_on_an_endangered_node_does_not_count():
    (want,) = wants(done(sealed(with_log()), at_risk(3)))
    assert len(want.holders) == 1
    assert numbers(want.holders) <= {4, 5}


def test_a_dead_nodes_copies_are_waited_for_then_made_anew():
    state = done(sealed(with_log()), down(3))
    early = FleetView(now=Tick(1000), down_since={name(3): Tick(0)})
    late = FleetView(now=Tick(LIMITS.repair_delay_ms), down_since={name(3): Tick(0)})
    assert wants(state, early) == []
    assert len(wants(state, late)) == 1
    assert len(wants(state, VIEW)) == 1, "a node that is down for unknown long is not waited for"


def test_a_single_holder_is_not_left_to_luck():
    state = done(sealed(with_log(), holders=(2, 3)), down(3))
    early = FleetView(now=Tick(1000), down_since={name(3): Tick(0)})
    (want,) = wants(state, early)
    assert len(want.holders) == 2


def test_a_kept_tail_is_copied_at_once_and_first():
    state = sealed(with_log(rows=((0, 1, 2), (0, 1, 2))), holders=(2, 3), known=7)
    tail = replace(
        state.shards[SHARD].shard.sealed[0],
        plan=replace(state.shards[SHARD].shard.sealed[0].plan, acks=3),
    )
    entry = state.shards[SHARD]
    state = state.changed(shards=(replace(entry, shard=replace(entry.shard, sealed=(tail,))),))
    (want,) = wants(state)
    assert want.kept_tail


def test_a_segment_without_a_known_holder_is_wanted_from_its_own_replicas():
    (want,) = wants(sealed(with_log(), holders=()))
    assert numbers(want.holders) <= {1, 2, 3}
    (want,) = wants(done(sealed(with_log(), holders=()), *map(at_risk, (1, 2, 3, 4, 5))))
    assert numbers(want.holders) <= {1, 2, 3}


def test_a_wanted_holder_that_fell_ill_is_replaced():
    state = sealed(with_log(), holders=(1, 2))
    state = done(state, WantHolders(shard=SHARD, epoch=Epoch(1), holders=(replica(3),)))
    assert wants(state) == []
    (want,) = wants(done(state, at_risk(3)))
    assert len(want.holders) == 1
    assert numbers(want.holders) <= {4, 5}


def test_a_wish_that_came_true_otherwise_is_taken_back():
    state = sealed(with_log(), holders=(1, 2))
    state = done(
        state,
        WantHolders(shard=SHARD, epoch=Epoch(1), holders=(replica(4),)),
        AddHolder(shard=SHARD, epoch=Epoch(1), holder=replica(3)),
    )
    (want,) = wants(state)
    assert want.holders == ()


def test_fetches_under_way_are_bounded():
    state = sealed(with_log(), holders=(1,))
    assert wants(state, limits=Limits(copies_max=1)) == []
    assert len(wants(state, limits=Limits(copies_max=2))) == 1
    (want,) = wants(state, limits=Limits(copies_per_segment_max=1))
    assert len(want.holders) == 1


# ---------------------------------------------------------------------------------- logs, switch
def test_a_new_log_is_spread_evenly():
    found = initial_plans(fleet(6), VIEW, LIMITS, shards=12, copies=3)
    create = CreateLog(name="orders", copies=3, acks=2, nodes=found.nodes, rows=found.rows)
    index = indexed(done(fleet(6), create))
    assert set(index.voting.values()) == {6}
    assert set(index.leading.values()) == {2}


def test_a_new_log_avoids_who_is_ill_unless_it_needs_them():
    state = done(fleet(4), at_risk(1))
    found = initial_plans(state, VIEW, LIMITS, shards=4, copies=3)
    assert name(1) not in found.nodes
    found = initial_plans(done(state, down(2)), VIEW, LIMITS, shards=4, copies=3)
    assert set(found.nodes) == {name(1), name(3), name(4)}
    assert isinstance(
        initial_plans(done(state, down(2), down(3)), VIEW, LIMITS, shards=4, copies=3), str
    )


def test_the_default_policy_follows_the_hosts():
    assert resolve_policy(fleet(5), 0, 0) == (3, 2)
    assert resolve_policy(fleet(2), 0, 0) == (2, 2)
    assert resolve_policy(fleet(1), 1, 0) == (1, 1)
    for state, copies, acks in ((fleet(1), 0, 0), (fleet(2), 3, 0), (fleet(3), 2, 3)):
        assert isinstance(resolve_policy(state, copies, acks), str)


def test_an_operator_may_choose_the_primary():
    assert switch_plan(with_log(), VIEW, LIMITS, SHARD, name(2)).primary == process(2)
    joined = switch_plan(with_log(), VIEW, LIMITS, SHARD, name(5))
    assert joined.primary == process(5)
    assert len(joined.voters) == 3
    for node, why in ((name(1), "already"), (name(9), "no node")):
        assert why in switch_plan(with_log(), VIEW, LIMITS, SHARD, node)
    ill = done(with_log(), at_risk(2), down(3), register(4, may_lead=False))
    for number, why in ((2, "at risk"), (3, "not up"), (4, "never primary")):
        assert why in switch_plan(ill, VIEW, LIMITS, SHARD, name(number))


# ---------------------------------------------------------------------------------- properties
def carried_out(state: ClusterState, action: Action) -> ClusterState:
    """The state after peers and LAS did what an action asks for, without any failure."""
    if isinstance(action, Prepare):
        shard = state.shards[action.shard].shard
        begin = Offset((shard.open.begin or 0) + 1)
        holders = tuple(
            each
            for each in shard.open.plan.replicas
            if state.nodes[each.peer].state is NodeState.UP
        )
        state, result = apply(
            state,
            PrepareSegment(shard=action.shard, epoch=action.epoch, plan=action.plan),
        )
        assert result.ok, result
        return done(
            state,
            SegmentOpened(shard=action.shard, epoch=result.epoch, begin=begin, holders=holders),
        )
    if isinstance(action, Want):
        for holder in action.holders:
            state = done(state, AddHolder(shard=action.shard, epoch=action.epoch, holder=holder))
    return state


# ---------------------------------------------------------------------------------- policy
def altered(copies: int, acks: int) -> SetCopies:
    return SetCopies(log="orders", copies=copies, acks=acks)


@pytest.mark.parametrize(
    ("copies", "acks", "words"),
    [
        (4, 2, "too few copies: peer-4 joins"),
        (2, 2, "its log's copies or acks were changed: peer-3 leaves"),
        (3, 3, "its log's copies or acks were changed: 3 acks in place of 2"),
        (3, 1, "its log's copies or acks were changed: 1 acks in place of 2"),
    ],
)
def test_shards_follow_their_logs_policy_and_then_rest(copies, acks, words):
    state = done(with_log(), altered(copies, acks))
    (action,) = planned(state)
    assert isinstance(action, Prepare)
    assert action.why == words
    assert (len(action.plan.voters), action.plan.acks) == (copies, acks)
    assert action.plan.primary == process(1)
    after = carried_out(state, action)
    assert (shard_of(after).open.plan.acks, shard_of(after).sealed[0].plan.acks) == (acks, 2)
    assert not [each for each in planned(after) if isinstance(each, Prepare)]


def test_more_copies_are_made_of_the_past_too():
    state = done(with_log(), altered(4, 2))
    state = carried_out(state, planned(state)[0])
    (want,) = [each for each in planned(state) if isinstance(each, Want)]
    assert [each.peer for each in want.holders] == ["peer-4"]


def test_a_recovery_opens_with_the_acks_of_now():
    state = done(with_log(), altered(3, 3), FenceSegment(shard=SHARD, epoch=Epoch(1)))
    assert plan_error(state, "orders", plan_of(2, 2, 3, 4)).startswith("log orders has acks = 3")


def test_a_policy_that_cannot_be_met_is_told_and_changes_nothing():
    state = done(with_log(nodes=3), altered(3, 3), down(3))
    (action,) = planned(state)
    assert isinstance(action, Shortage)


@st.composite
def troubled_fleets(draw: st.DrawFn) -> ClusterState:
    nodes = draw(st.integers(3, 8))
    order = st.permutations(range(nodes))
    rows = tuple(tuple(draw(order)[:3]) for _ in range(draw(st.integers(1, 4))))
    state = with_log(nodes=nodes, rows=rows)
    for number in range(1, nodes + 1):
        labels = (("host", f"host-{draw(st.integers(1, nodes))}"), ("rack", "a"))
        if draw(st.integers(0, 4)) == 0 and number > 3:
            state = done(state, register(number, labels=labels))
        trouble = draw(st.sampled_from(["", "", "", "risk", "down", "drain", "shadow"]))
        if trouble == "risk":
            state = done(state, at_risk(number))
        elif trouble == "down":
            state = done(state, down(number))
        elif trouble == "drain":
            state = done(state, SetDraining(node=name(number), draining=True))
        elif trouble == "shadow":
            state = done(state, register(number, may_lead=False))
    return state


@given(troubled_fleets())
def test_every_plan_keeps_the_rules_and_planning_ends(state):
    for _ in range(4):
        actions = planned(state)
        placement = Placement(state, VIEW, LIMITS, indexed(state))
        for action in actions:
            if isinstance(action, Prepare):
                log = state.shards[action.shard].shard.log
                assert plan_error(state, log, action.plan) == ""
                healths = [placement.health(each) for each in action.plan.voters]
                assert Health.GONE not in healths
                if Health.ENDANGERED in healths:
                    assert len(healths) == state.logs[log].acks
        if not any(isinstance(action, Prepare | Want) for action in actions):
            break
        for action in actions:
            state = carried_out(state, action)
    assert not [each for each in planned(state) if isinstance(each, Prepare | Want)]


@given(troubled_fleets(), st.data())
def test_an_index_that_followed_equals_one_built_anew(state, data):
    index = FleetIndex()
    for _ in range(3):
        index.update(state)
        for action in planned(state):
            if data.draw(st.booleans()):
                state = carried_out(state, action)
    index.update(state)
    anew = indexed(state)
    for counter in ("voting", "leading", "holding"):
        assert +getattr(index, counter) == +getattr(anew, counter)
    assert (index.unsettled, index.fetching) == (anew.unsettled, anew.fetching)
    for node in state.nodes:
        assert set(index.shards_of(node)) == set(anew.shards_of(node))
    assert plan(state, VIEW, LIMITS, index=index) == planned(state)


def test_an_index_follows_fences_and_forgets_what_it_missed(monkeypatch):
    index = FleetIndex()
    state = with_log()
    index.update(state)
    fenced = done(state, FenceSegment(shard=SHARD, epoch=Epoch(1)))
    assert index.update(fenced).shards == (SHARD,)
    assert index.unsettled == {SHARD}
    forgotten = replace(fenced, changes=type(fenced.changes)(), version=fenced.version + 9)
    assert NodeName("peer-1") in index.update(forgotten).nodes


def test_only_the_shards_asked_for_are_looked_at():
    state = done(with_log(rows=((0, 1, 2), (0, 1, 2))), at_risk(1))
    found = plan(state, VIEW, LIMITS, shards=[ShardId(2), ShardId(99)])
    assert [action.shard for action in found] == [2]
    assert node_of(state, 1).at_risk

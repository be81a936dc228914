"""What voters' answers say about a take-over: each reason why a shard would pause."""

from dataclasses import replace

import pytest

from peerd.client.drill import OwnTails, judge, own_tails
from peerd.core.ids import BootId, Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId, StoreId
from peerd.core.shard_map import Plan, Segment, Shard
from peerd.transport.channels import Channels
from peerd.transport.map_codec import NodeEntry

NAMES = ("p1", "p2", "p3")


def replica(name: str) -> ReplicaId:
    return ReplicaId(NodeName(name), StoreId(f"store-{name}"))


def shard(acks: int = 2, voters: tuple[str, ...] = NAMES, primary: str = "p1") -> Shard:
    plan = Plan(
        primary=ProcessId(NodeName(primary), StoreId(f"store-{primary}"), BootId("boot")),
        voters=tuple(map(replica, voters)),
        non_voters=() if primary in voters else (replica(primary),),
        acks=acks,
    )
    return Shard(
        shard=ShardId(4),
        log="orders",
        key_hash_low=0,
        key_hash_high=(1 << 64) - 1,
        open=Segment(epoch=Epoch(7), plan=plan, begin=Offset(0)),
    )


def node(name: str, **fields: object) -> NodeEntry:
    entry = NodeEntry(
        name=NodeName(name),
        address=f"{name}:7400",
        store=StoreId(f"store-{name}"),
        boot=BootId("boot"),
    )
    return replace(entry, **fields)


NODES = {name: node(name) for name in NAMES}


def tails(**ends: int | tuple[int, int] | None) -> dict[str, OwnTails]:
    """By name: a committed end at epoch 7, (epoch, end), or None for no answer."""
    told = {}
    for name, end in ends.items():
        if end is None:
            told[name] = OwnTails(epochs={}, failure="no answer")
        else:
            told[name] = OwnTails(epochs={4: end if isinstance(end, tuple) else (7, end)})
    return told


def test_the_voter_that_has_most_would_go_on():
    found = judge(shard(), tails(p1=100, p2=90, p3=100), NODES)
    assert (found.could_go_on, found.successor, found.needed) == (True, "p3", 2)
    assert {each.node: each.lag_records for each in found.voters} == {"p2": 10, "p3": 0}


def test_a_primary_that_is_gone_already_is_not_needed_for_the_answer():
    found = judge(shard(), tails(p1=None, p2=90, p3=100), NODES)
    assert (found.could_go_on, found.successor) == (True, "p3")


@pytest.mark.parametrize(
    ("acks", "voters", "answers", "why"),
    [
        (2, NAMES, {"p1": 9, "p2": 9, "p3": None}, "1 of its other voters answer, 2 would have to"),
        (2, ("p1", "p2"), {"p1": 9, "p2": None}, "0 of its other voters answer, 1 would have to"),
        (1, ("p1", "p2"), {"p1": 9, "p2": 9}, "on its primary alone"),
        (1, ("p1",), {"p1": 9}, "on its primary alone"),
    ],
)
def test_too_few_that_answer_would_pause_it(acks, voters, answers, why):
    found = judge(shard(acks, voters), tails(**answers), NODES)
    assert not found.could_go_on
    assert why in found.why_not
    assert found.successor == ""


@pytest.mark.parametrize(
    ("fields", "trouble"),
    [
        ({"may_lead": False}, "may not lead"),
        ({"at_risk": True}, "at risk"),
        ({"draining": True}, "drained"),
        ({"up": False}, "counts it as down"),
    ],
)
def test_who_may_not_lead_is_no_successor_but_answers(fields, trouble):
    nodes = {**NODES, "p3": node("p3", **fields)}
    found = judge(shard(), tails(p1=100, p2=90, p3=100), nodes)
    assert (found.could_go_on, found.successor) == (True, "p2")
    assert trouble in found.voters[1].trouble
    nobody = {**nodes, "p2": node("p2", **fields)}
    assert (
        judge(shard(), tails(p1=9, p2=9, p3=9), nobody).why_not == "no voter that answers may lead"
    )


def test_another_epoch_and_another_version_are_told():
    found = judge(shard(), {**tails(p1=9, p2=(6, 9)), "p3": OwnTails(epochs={})}, NODES)
    assert not found.could_go_on
    assert "epoch 6, the shard at 7" in found.voters[0].trouble
    assert "another version" in found.voters[1].trouble


def test_a_voter_that_left_the_fleet_is_told():
    nodes = {name: NODES[name] for name in ("p1", "p2")}
    found = judge(shard(), tails(p1=9, p2=9), nodes)
    assert found.voters[1].trouble == "it has left the fleet"


def test_of_a_primary_that_has_no_vote_every_voter_counts():
    found = judge(shard(2, ("p2", "p3"), primary="p1"), tails(p1=9, p2=9, p3=9), NODES)
    assert (found.could_go_on, found.needed, len(found.voters)) == (True, 1, 2)


async def test_a_peer_that_does_not_answer_says_so_in_a_line():
    channels = Channels(None)
    try:
        found = await own_tails(channels, "orders", "127.0.0.1:1", "p2")
    finally:
        await channels.close()
    assert found.epochs == {}
    assert "p2 at 127.0.0.1:1" in found.failure
    assert "\n" not in found.failure
    assert (
        judge(shard(), {**tails(p1=9, p3=9), "p2": found}, NODES).voters[0].trouble == found.failure
    )

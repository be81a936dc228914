"""What anticipation buys: cases, what is measured of them, and what the documents say of it."""

import math

import pytest

from models.lab.bought import PAGE, PICTURE, README, page, picture, short_table, told_between
from models.lab.buys import (
    ACTIONS,
    KINDS,
    OFF,
    Answered,
    Case,
    cases_of,
    longest_ms,
    plan_of,
    read_results,
    settings_of,
    write_results,
)
from models.lab.copies import Copies
from models.lab.kinds import ABRUPT, FAULT_S
from peerd.core.ids import BootId, Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId, StoreId
from peerd.core.shard_map import Plan, Segment, Shard

MEASURED = read_results()


def test_with_and_without_are_the_same_trouble():
    for kind in KINDS:
        plans = {repr(plan_of(Case(kind=kind, seed=3, policy=each))) for each in (OFF, *ACTIONS)}
        assert len(plans) == 1
    (trouble,) = plan_of(Case(kind="packet_loss", seed=0, policy=OFF)).faults
    (other,) = plan_of(Case(kind="packet_loss", seed=1, policy=OFF)).faults
    assert trouble != other
    assert FAULT_S[0] <= trouble.duration_s <= FAULT_S[1]


def test_without_nothing_foreseen_counts_and_slow_still_does():
    off = settings_of(OFF)
    assert off["policy.threshold"] == 1.0
    assert not any("slow" in key for key in off)
    assert settings_of("mirror")["policy.at_risk_action"] == "mirror"


def test_pairs_come_one_after_the_other():
    cases = cases_of(2, ["killed", "descriptors"], ["hand_over"])
    assert [(each.kind, each.policy) for each in cases[:2]] == [
        ("killed", OFF),
        ("killed", "hand_over"),
    ]
    assert [each.seed for each in cases] == [0] * 4 + [1] * 4


def test_a_pause_counts_from_the_intended_time_of_what_was_under_way():
    answers = [
        Answered(intended_s=1.0, ended_s=1.01),
        Answered(intended_s=2.0, ended_s=5.0),
        Answered(intended_s=9.0, ended_s=9.5),
    ]
    assert longest_ms(answers, 4.0, 6.0) == 3000.0
    assert longest_ms(answers, 9.2, math.inf) == 500.0
    assert longest_ms(answers, 5.5, 8.0) == 0.0


def replica(name):
    return ReplicaId(NodeName(name), StoreId(f"{ord(name):032x}"))


def segment(epoch, begin, end, peers):
    replicas = tuple(replica(name) for name in peers)
    primary = ProcessId(replicas[0].peer, replicas[0].store, BootId("0" * 32))
    return Segment(
        epoch=Epoch(epoch),
        plan=Plan(primary=primary, voters=replicas, acks=2),
        begin=Offset(begin),
        end=None if end is None else Offset(end),
        known_commit=None if end is None else Offset(end),
        holders=replicas if end is not None else (),
    )


def shard(*segments):
    *sealed, last = segments
    return Shard(
        shard=ShardId(1),
        log="log",
        key_hash_low=0,
        key_hash_high=2**64 - 1,
        open=last,
        sealed=tuple(sealed),
    )


def test_records_that_only_two_living_peers_have_count_by_the_second():
    copies = Copies(3)
    whole = shard(segment(1, 0, None, "abc"))
    handed = shard(segment(1, 0, 10, "abc"), segment(2, 10, None, "bcd"))
    for second in range(3):
        copies.see(float(second), [whole])
    for second in range(3, 6):
        copies.see(float(second), [handed])
    acked = [(0.0, 1, offset) for offset in range(10)] + [(3.5, 1, offset) for offset in (10, 11)]
    assert copies.below_record_s(acked, {}) == 0.0
    # From 4 s on the sealed ten are below; the open ones have b, c and d.
    assert copies.below_record_s(acked, {"a": 4.0}) == 10.0
    assert copies.below_record_s(acked, {"b": 4.0}) == 12.0
    # An open segment has what was acknowledged by then.
    assert copies.below_record_s(acked, {"c": 1.0}) == 10.0 + 10.0 + 10.0 + 12.0


def test_what_was_measured_is_kept_as_it_was(tmp_path):
    path = tmp_path / "some.jsonl"
    write_results(MEASURED, path)
    assert read_results(path) == sorted(MEASURED, key=MEASURED.index)
    assert read_results(tmp_path / "none.jsonl") == []


def test_nothing_acknowledged_was_lost_and_stores_agree():
    assert MEASURED
    assert sum(each.lost for each in MEASURED) == 0
    assert sum(each.unlike for each in MEASURED) == 0
    assert {each.kind for each in MEASURED} >= set(ABRUPT)


@pytest.mark.parametrize(("path", "told"), [(README, short_table), (PAGE, page)])
def test_the_documents_say_what_was_measured(path, told):
    assert told_between(path.read_text()) == told(MEASURED).strip()


def test_the_picture_shows_what_was_measured():
    assert PICTURE.read_text() == picture(MEASURED)

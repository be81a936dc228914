"""Persistent maps, the JSON of commands, snapshots, and the state machine around them."""

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from las.core import snapshot
from las.core.access_commands import AddGrant, EndRevocation, RemoveGrant, Revoke, SetAccess
from las.core.cluster import Cluster, UnknownCommand
from las.core.codec import CodecError
from las.core.commands import (
    COMMANDS,
    AddHolder,
    Audited,
    Caller,
    CloseCase,
    CreateLog,
    DeleteLog,
    DropHolder,
    FenceSegment,
    GiveUpSkipped,
    HaltShard,
    InstallModel,
    MarkAges,
    OpenCase,
    OpenSegment,
    PrepareSegment,
    PrepareSplit,
    PromoteModel,
    RaiseCommandLevel,
    Reason,
    RecordEvent,
    RecordOutages,
    RecordRefusal,
    RecordRejoin,
    RecoveredSegment,
    RecoverWithGap,
    ReleaseShards,
    RemoveNode,
    ReplaceNode,
    Result,
    RollBackModel,
    SegmentOpened,
    SetAtRisk,
    SetCompression,
    SetCopies,
    SetDraining,
    SetNodeState,
    SetRetention,
    StoreModelPiece,
    Target,
    TrimShard,
    WantHolders,
    WithdrawSegment,
    command_from_json,
    command_to_json,
    result_from_json,
    result_to_json,
)
from las.core.history import Cause, Outage
from las.core.holder_commands import AddHolderAgain, ReleaseHolder
from las.core.ledger import Case, Outcome, Response
from las.core.levels import COMMAND_LEVEL, level_of
from las.core.model_registry import ModelHead
from las.core.persistent import PersistentMap
from las.core.rows import ChangeShards, StepShards
from las.core.state import JOINING_LEVEL, NodeState
from las.core.tier_commands import CoolShard, SetTier, TierShard
from peerd.core.access import Grant, Revocation, Right
from peerd.core.ids import Epoch, Offset, ShardId, StoreId
from peerd.core.shard_map import Compression, Plan, Segment, Shard
from tests.las_core.builders import (
    SHARD,
    done,
    name,
    plan_of,
    process,
    register,
    replica,
    with_log,
)

ENDED = RecoveredSegment(end=Offset(9), known_commit=Offset(7), holders=(replica(2),))
ANN = Caller(who="ann", role="admin", what="node drain", clock_ms=7, timestamp_ms=1)
EXAMPLES = [
    CreateLog(name="orders", copies=2, acks=2, nodes=(name(1), name(2)), rows=((0, 1), (1, 0))),
    PrepareSegment(
        shard=SHARD, epoch=Epoch(1), plan=plan_of(1, 1, 2, non=(3,)), why="peer-4 at risk"
    ),
    PrepareSplit(shard=SHARD, epoch=Epoch(1), key_hash=1 << 63, plan=plan_of(1, 1, 2), why="hot"),
    SegmentOpened(shard=SHARD, epoch=Epoch(2), begin=Offset(1 << 63), holders=(replica(1),)),
    WithdrawSegment(shard=SHARD, epoch=Epoch(2), declined_by=process(1)),
    FenceSegment(shard=SHARD, epoch=Epoch(1), prepared=Epoch(2), why="peer-1 is gone"),
    OpenSegment(shard=SHARD, fence=Epoch(3), plan=plan_of(2, 2, 3), ended=ENDED),
    OpenSegment(
        shard=SHARD,
        fence=Epoch(3),
        plan=plan_of(2, 2, 3),
        ended=ENDED,
        ended_prepared=ENDED,
    ),
    StepShards(
        whys=("peer-1 is gone",),
        stores=((name(2), StoreId("store-2")), (name(3), StoreId("store-3"))),
        processes=((0, process(2).boot),),
        prepared=((ShardId(1), Epoch(3), 0, 0, (0, 1), (), 2),),
        begun=((ShardId(2), Epoch(4), Offset(9), (0, 1)),),
        withdrawn=((ShardId(3), Epoch(4), 0),),
        wanted=((ShardId(4), Epoch(1), (0, 1)),),
        added=((ShardId(5), Epoch(1), 1),),
        dropped=((ShardId(6), Epoch(1), 1),),
    ),
    RaiseCommandLevel(level=2),
    ChangeShards(
        whys=("peer-1 is gone",),
        stores=((name(2), StoreId("store-2")), (name(3), StoreId("store-3"))),
        processes=((0, process(2).boot),),
        fences=((SHARD, Epoch(1), Epoch(2), 0),),
        opens=(
            (ShardId(2), Epoch(3), 0, (0, 1), (), 2, (Offset(9), Offset(7), (0,)), None),
            (
                ShardId(3),
                Epoch(3),
                0,
                (0,),
                (1,),
                1,
                (Offset(9), Offset(7), (0,)),
                (Offset(9), Offset(9), ()),
            ),
        ),
    ),
    RecoverWithGap(
        shard=SHARD,
        fence=Epoch(3),
        plan=plan_of(2, 2, 3),
        ended=ENDED,
        resume_at=Offset(1 << 41),
        given_up=(replica(1),),
        why="burned",
    ),
    WantHolders(shard=SHARD, epoch=Epoch(1), holders=(replica(4),)),
    AddHolder(shard=SHARD, epoch=Epoch(1), holder=replica(4)),
    AddHolderAgain(shard=SHARD, epoch=Epoch(1), holder=replica(4), version=9),
    ReleaseHolder(
        shard=SHARD,
        epoch=Epoch(1),
        holder=replica(4),
        confirmed=(replica(1), replica(2)),
        why="one too many",
    ),
    DropHolder(shard=SHARD, epoch=Epoch(1), holder=replica(4)),
    TrimShard(shard=SHARD, epoch=Epoch(1), trimmed_to=Offset(7)),
    TierShard(
        shard=SHARD,
        epoch=Epoch(1),
        by=process(1),
        follows="",
        begin=Offset(0),
        end=Offset(7),
        manifest="manifest-1",
    ),
    CoolShard(shard=SHARD, epoch=Epoch(1), cold_to=Offset(7)),
    SetTier(log="orders", hot_bytes=1 << 30),
    SetCopies(log="orders", copies=3, acks=1),
    SetAccess(required=True),
    AddGrant(grant=Grant(who="shop-*", log="orders", rights=(Right.APPEND, Right.READ))),
    RemoveGrant(grant=Grant(who="shop-*", log="orders", rights=())),
    Revoke(revocation=Revocation(name="shop-1", role="appender", why="stolen")),
    EndRevocation(revocation=Revocation(serial="ab12")),
    SetCompression(log="orders", compression=Compression.ZSTD),
    DeleteLog(log="orders", shards=(SHARD,)),
    SetRetention(log="orders", retention_bytes=1 << 30, retention_ms=0),
    MarkAges(clock_ms=60_000, marks=((SHARD, Offset(7)),)),
    StoreModelPiece(digest="ab", number=3, piece="YQ=="),
    InstallModel(head=ModelHead.HISTORY, model_id="history-1", digest="ab", timestamp_ms=1),
    PromoteModel(head=ModelHead.INCIDENT, version=2),
    RollBackModel(head=ModelHead.INCIDENT, version=2),
    OpenCase(case=Case(node=name(1), opened_ms=7, response=Response.PROTECT, probability=0.25)),
    CloseCase(number=1, outcome=Outcome.MISS, closed_ms=9, told="no signal"),
    HaltShard(shard=SHARD, epoch=Epoch(9), node=name(1), why="it promised 9"),
    ReleaseShards(shards=(SHARD,)),
    GiveUpSkipped(shard=SHARD, why="two LAS hosts burned"),
    register(1, stored=((SHARD, Epoch(1)),)),
    SetNodeState(node=name(1), boot=process(1).boot, state=NodeState.DOWN, why="silent"),
    SetAtRisk(node=name(1), at_risk=True),
    SetDraining(node=name(1), draining=True),
    RemoveNode(node=name(1)),
    ReplaceNode(node=name(1), store=StoreId("f" * 32), accept_loss=True),
    RecordEvent(node=name(1), kind="at_risk", text="fsync p99 ×31", timestamp_ms=1),
    Audited(caller=ANN, command=SetDraining(node=name(1), draining=True, until_ms=9)),
    RecordRefusal(caller=ANN, target=Target(log="orders"), reason="log_exists", text="it is there"),
    RecordRejoin(caller=ANN, store="store-7"),
    RecordOutages(
        outages=(
            Outage("p1", "h1", "r1", 1_000, 1_060, Cause.DISK),
            Outage("p2", "", "", 1_000, None, Cause.UNKNOWN, in_service_s=1),
        )
    ),
]


# ---------------------------------------------------------------------------------- maps
@given(st.lists(st.tuples(st.integers(0, 2000), st.booleans())))
def test_a_persistent_map_is_a_dict_whose_past_stays(steps):
    plain: dict[int, int] = {}
    kept: PersistentMap[int, int] = PersistentMap()
    past = []
    for number, (key, put) in enumerate(steps):
        past.append((dict(plain), kept))
        if put:
            plain[key] = number
            kept = kept.with_item(key, number)
        else:
            plain.pop(key, None)
            kept = kept.without(key)
    for expected, found in [*past, (plain, kept)]:
        assert dict(found) == expected
        assert len(found) == len(expected)


def test_a_persistent_map_has_the_views_of_a_mapping():
    kept = PersistentMap((number, f"v{number % 3}") for number in range(2_000)).without(7)
    plain = {number: f"v{number % 3}" for number in range(2_000) if number != 7}
    assert dict(kept.items()) == plain
    assert sorted(kept.values()) == sorted(plain.values())
    assert (len(kept.items()), len(kept.values())) == (1_999, 1_999)
    assert (8, "v2") in kept.items()
    assert (7, "v1") not in kept.items()
    assert "v9" not in kept.values()
    assert set(kept.items()) == set(plain.items())


def test_a_persistent_map_takes_names_too():
    kept = PersistentMap([("b", 1), ("a", 2)])
    assert kept["a"] == 2
    assert kept.get("c") is None
    assert kept == PersistentMap([("a", 2), ("b", 1)])
    assert "'a': 2" in repr(kept)


# ---------------------------------------------------------------------------------- JSON
def test_every_command_has_an_example_here():
    assert {type(example) for example in EXAMPLES} == set(COMMANDS.values())


@pytest.mark.parametrize("command", EXAMPLES, ids=lambda command: type(command).__name__)
def test_a_command_survives_its_json(command):
    text = command_to_json(command)
    assert command_from_json(text) == command
    assert len(text) < 1_000


def test_a_result_survives_its_json():
    for result in (
        Result(ok=True),
        Result(ok=False, reason=Reason.FENCED, text="no", epoch=Epoch(4), shards=(SHARD,)),
    ):
        assert result_from_json(result_to_json(result)) == result


AUDITED = command_to_json(EXAMPLES[-4])
PREPARE = json.loads(command_to_json(EXAMPLES[1]))
TORN_LABEL = command_to_json(register(1)).replace('["host","host-1"]', '["host"]')


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON"),
        ("[]", "a command is a JSON object"),
        ('{"command":["x"]}', "a command has a name"),
        ('{"command":"audited","of":{}}', "expected a caller and the command"),
        (AUDITED.replace("set_draining", "audited"), "audited already"),
        (AUDITED.replace('"ann"', "7"), "Caller.who: expected str"),
        (json.dumps({**PREPARE, "shard": "1"}), "PrepareSegment.shard: expected int, got str"),
        (json.dumps({**PREPARE, "shard": True}), "expected int, got bool"),
        (json.dumps({**PREPARE, "plan": 7}), "PrepareSegment.plan: expected an object"),
        (json.dumps({**PREPARE, "plan": {**PREPARE["plan"], "voters": 1}}), "expected a list"),
        (json.dumps({**PREPARE, "plan": {**PREPARE["plan"], "acks": 5}}), "acks within the voters"),
        ('{"command":"set_at_risk","node":"peer-1"}', "at_risk is missing"),
        ('{"command":"create_log","name":"a","copies":1,"acks":1,"nodes":[],"rows":[1]}', "list"),
        (TORN_LABEL, "expected 2 items, got 1"),
    ],
)
def test_a_text_that_is_no_command_is_answered_and_changes_nothing(text, why):
    cluster = Cluster("cluster-1")
    before = cluster.state
    result = result_from_json(cluster.apply(text))
    assert result.reason is Reason.MALFORMED
    assert why in result.text
    assert cluster.state is before


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"command":"drop_all"}', "no command is called 'drop_all'"),
        (AUDITED.replace("set_draining", "drop_all"), "no command is called 'drop_all'"),
        (json.dumps({**PREPARE, "force": True}), "no field is called 'force'"),
        (
            '{"command":"set_node_state","node":"a","boot":"b","state":"sleepy"}',
            "SetNodeState.state",
        ),
        (command_to_json(RaiseCommandLevel(level=COMMAND_LEVEL + 1)), "the group is of command"),
    ],
)
def test_a_command_of_another_version_is_not_answered_and_changes_nothing(text, why):
    """Nodes that know it change their state by it: answering it would part this one from them."""
    cluster = rich_cluster()
    before = cluster.state
    with pytest.raises(UnknownCommand, match=why) as refused:
        cluster.apply(text)
    assert "upgrade this LAS node" in str(refused.value)
    assert cluster.state is before


def test_a_node_of_an_older_level_stops_at_what_it_does_not_know_and_at_such_a_snapshot():
    old, new = Cluster("cluster-1", level=1), Cluster("cluster-1")
    raised = command_to_json(RaiseCommandLevel(level=2))
    steps = command_to_json(StepShards())
    for text in (raised, steps):
        before = old.state
        with pytest.raises(UnknownCommand, match="up to level 1"):
            old.apply(text)
        assert old.state is before
        new.apply(text)
    assert new.state.command_level == 2
    with pytest.raises(UnknownCommand, match="the snapshot is of command level 2"):
        old.restore(new.freeze()())
    assert old.state.command_level == 1


def test_the_command_level_survives_a_snapshot_and_never_goes_back():
    cluster = Cluster("cluster-1")
    assert b'"format":2' in cluster.freeze()()
    cluster.apply(command_to_json(RaiseCommandLevel(level=2)))
    version = cluster.state.version
    cluster.apply(command_to_json(RaiseCommandLevel(level=1)))
    again = Cluster("cluster-1")
    again.restore(cluster.freeze()())
    assert again.state == cluster.state
    assert (again.state.command_level, again.state.version) == (2, version)


def test_every_command_has_a_level_that_this_version_knows():
    # With 4 came no command: entries of the map that several segments share.
    levels = {level_of(example) for example in EXAMPLES} | {JOINING_LEVEL}
    assert levels == set(range(1, COMMAND_LEVEL + 1))
    audited = Audited(caller=ANN, command=RaiseCommandLevel(level=2))
    assert level_of(audited) == 2


# ---------------------------------------------------------------------------------- snapshots
def rich_cluster() -> Cluster:
    """Every kind of thing that a snapshot holds."""
    cluster = Cluster("cluster-1")
    state = done(
        with_log(rows=((0, 1, 2), (1, 2, 3))),
        EXAMPLES[1],
        SegmentOpened(shard=SHARD, epoch=Epoch(2), begin=Offset(7), holders=(replica(1),)),
        WantHolders(shard=SHARD, epoch=Epoch(1), holders=(replica(4),)),
        PrepareSegment(shard=SHARD, epoch=Epoch(2), plan=plan_of(1, 1, 2)),
        WithdrawSegment(shard=SHARD, epoch=Epoch(3), declined_by=process(1)),
        PrepareSegment(shard=SHARD, epoch=Epoch(2), plan=plan_of(1, 1, 2)),
        FenceSegment(shard=SHARD, epoch=Epoch(2), prepared=Epoch(4)),
        HaltShard(shard=SHARD, epoch=Epoch(5), node=name(1), why="contradiction", fence=Epoch(5)),
        register(3, boot=2),
        *[each for each in EXAMPLES if isinstance(each, OpenCase | CloseCase)],
        StoreModelPiece(digest="ab", number=0, piece="YQ=="),
        *EXAMPLES[-10:-7],
        *EXAMPLES[-5:],
    )
    cluster.restore(snapshot.snapshot(state))
    return cluster


def test_a_snapshot_is_the_whole_state_and_goes_on():
    cluster = rich_cluster()
    data = cluster.freeze()()
    other = Cluster("cluster-1")
    other.restore(data)
    assert other.state == cluster.state
    assert other.freeze()() == data
    command = command_to_json(SetDraining(node=name(2), draining=True))
    assert other.apply(command) == cluster.apply(command)
    assert other.state == cluster.state


def test_a_snapshot_has_every_field_of_a_shard():
    """`las.core.snapshot` writes shards field by field: a new field has to be written there."""
    assert {field.name for field in fields(Shard)} == {
        *("shard", "log", "key_hash_low", "key_hash_high", "open", "sealed", "prepared", "fence"),
        *("dead_epochs", "split", "parent", "gaps", "trimmed_to", "skipped", "tier"),
    }
    assert {field.name for field in fields(Segment)} == {
        *("epoch", "begin", "end", "known_commit", "plan", "holders", "wanted_holders"),
        "released",
    }
    assert {field.name for field in fields(Plan)} == {
        *("primary", "voters", "non_voters", "acks", "closed"),
    }


def test_a_frozen_state_does_not_see_what_comes_later():
    cluster = rich_cluster()
    before = cluster.freeze()()
    frozen = cluster.freeze()
    cluster.apply(command_to_json(register(9)))
    assert frozen() == before


def test_changes_are_told_once_each():
    told = []
    cluster = Cluster("cluster-1", on_change=told.append)
    for command in (register(1), register(1), SetAtRisk(node=name(9), at_risk=True)):
        cluster.apply(command_to_json(command))
    assert told == [cluster.state]


def test_a_snapshot_of_another_cluster_is_refused():
    with pytest.raises(CodecError, match="of cluster cluster-1"):
        Cluster("cluster-2").restore(rich_cluster().freeze()())


def test_a_damaged_snapshot_is_refused_wherever_it_was_cut():
    data = rich_cluster().freeze()()
    for cut in range(0, len(data), 97):
        with pytest.raises(CodecError):
            Cluster("cluster-1").restore(data[:cut])
    with pytest.raises(CodecError, match="goes on after its end"):
        Cluster("cluster-1").restore(data + b"\n[]")
    with pytest.raises(CodecError, match="format 7 or older"):
        Cluster("cluster-1").restore(data.replace(b'"format":3', b'"format":8'))


def test_equal_states_make_equal_bytes_whatever_their_history():
    first = done(with_log(), SetAtRisk(node=name(1), at_risk=True))
    backwards = sorted(first.nodes, reverse=True)
    second = replace(first, nodes=PersistentMap((each, first.nodes[each]) for each in backwards))
    assert snapshot.snapshot(first) == snapshot.snapshot(second)

"""Who changed what: each change of a person's leaves one record, in the same step, and so does each
refusal; the newest are kept and what fell off is counted.
"""

from dataclasses import replace

from las.core import audit
from las.core.apply import apply
from las.core.commands import (
    Audited,
    Caller,
    Command,
    CreateLog,
    MarkAges,
    PrepareSegment,
    Reason,
    RecordRefusal,
    RecordRejoin,
    SetCompression,
    SetCopies,
    SetDraining,
    SetRetention,
    Target,
    TrimShard,
)
from las.core.snapshot import restore, snapshot
from las.core.state import NO_SHARD, ClusterState
from peerd.core.ids import Epoch, NodeName, Offset
from peerd.core.shard_map import Compression
from tests.las_core.builders import (
    SHARD,
    done,
    fleet,
    name,
    node_of,
    plan_of,
    register,
    with_log,
)

ANN = Caller(who="ann", role="admin", what="log alter", clock_ms=0, timestamp_ms=1_000)


def by_ann(state: ClusterState, command: Command, **changes: object) -> ClusterState:
    after, _ = apply(state, Audited(caller=replace(ANN, **changes), command=command))
    return after


def newest(state: ClusterState) -> object:
    return state.audit[state.audited]


def test_a_change_and_its_record_are_one_step():
    before = with_log()
    command = SetCopies(log="orders", copies=2, acks=1)
    after = by_ann(before, command)
    assert after.logs == done(before, command).logs
    record = newest(after)
    assert (record.number, record.who, record.role, record.what) == (1, "ann", "admin", "log alter")
    assert (record.log, record.node, record.shard) == ("orders", "", NO_SHARD)
    assert record.before == "shards: 1, copies: 3, acks: 2"
    assert record.after == "shards: 1, copies: 2, acks: 1"
    assert (record.ok, record.reason, record.timestamp_ms) == (True, "", 1_000)


def test_what_was_created_was_not_there_before():
    command = CreateLog(
        name="orders", copies=2, acks=2, nodes=(name(1), name(2)), rows=((0, 1), (1, 0))
    )
    record = newest(by_ann(fleet(2), command))
    assert (record.before, record.after) == ("", "shards: 2, copies: 2, acks: 2")


def test_a_refused_command_changes_nothing_but_the_record():
    before = with_log()
    after, result = apply(
        before, Audited(caller=ANN, command=SetCopies(log="none", copies=2, acks=1))
    )
    assert result.reason is Reason.UNKNOWN_LOG
    record = newest(after)
    assert (record.ok, record.reason, record.text) == (False, "unknown_log", result.text)
    assert replace(after, audit=before.audit, audited=0) == before
    assert after.version == before.version


def test_a_rejoin_of_a_las_node_is_told_once_and_again_for_another_store():
    rejoin = RecordRejoin(caller=replace(ANN, who="las-2", what="las rejoin"), store="store-7")
    state = done(fleet(1), rejoin, rejoin)
    assert (state.audited, newest(state).who) == (1, "las-2")
    assert "store-7" in newest(state).text
    state = restore(snapshot(state))
    assert done(state, rejoin).audited == 1
    assert done(state, replace(rejoin, store="store-8")).audited == 2
    assert done(state, replace(rejoin, caller=replace(ANN, who="las-1"))).audited == 2


def test_a_refusal_before_any_command_is_told_as_well():
    refusal = RecordRefusal(
        caller=ANN,
        target=Target(node=NodeName("peer-1")),
        reason="invalid_argument",
        text="x" * 1_000,
    )
    record = newest(done(fleet(1), refusal))
    assert (record.ok, record.reason, record.node) == (False, "invalid_argument", "peer-1")
    assert record.before == record.after == "up, store store-1"
    assert len(record.text) == audit.AUDIT_TEXT_MAX


def test_the_shard_and_the_node_that_it_was_about_are_named():
    state = by_ann(
        with_log(),
        PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(2, 2, 3, 4)),
        what="shard switch",
    )
    record = newest(state)
    assert (record.log, record.shard) == ("orders", SHARD)
    assert record.before == "epoch 1 open at peer-1"
    assert record.after == "epoch 1 open at peer-1, epoch 2 prepared at peer-2"
    state = by_ann(state, SetDraining(node=name(3), draining=True, until_ms=5))
    assert newest(state).node == name(3)
    assert newest(state).after == "up, store store-3, draining until 5 ms"
    state = by_ann(state, SetRetention(log="orders", retention_bytes=7, retention_ms=8))
    assert newest(state).after.endswith("keeps 7 bytes a shard, keeps 8 ms")
    state = by_ann(state, SetCompression(log="orders", compression=Compression.ZSTD))
    assert newest(state).after.endswith("keeps 8 ms, packed with zstd")
    state = by_ann(
        with_log(), TrimShard(shard=SHARD, epoch=Epoch(1), trimmed_to=Offset(9)), what="log trim"
    )
    assert newest(state).after == "epoch 1 open at peer-1, trimmed to 9"


def test_the_newest_are_kept_and_the_others_counted(monkeypatch):
    monkeypatch.setattr(audit, "AUDIT_MAX", 3)
    state = with_log()
    for copies in (1, 2, 3, 4, 5):
        state = by_ann(state, SetCopies(log="orders", copies=copies, acks=1))
    assert sorted(state.audit) == [3, 4, 5]
    assert state.audited == 5
    restored = restore(snapshot(state))
    assert restored == state
    assert snapshot(restored) == snapshot(state)


def test_a_snapshot_of_a_program_without_records_is_read():
    data = snapshot(with_log())
    old = data.replace(b'{"format":2,', b'{"format":1,', 1)
    assert restore(old) == with_log()


def test_the_clock_goes_with_the_record_and_never_back():
    state = by_ann(with_log(), SetCopies(log="orders", copies=2, acks=1), clock_ms=500)
    assert (state.clock_ms, newest(state).clock_ms) == (500, 500)
    state = by_ann(state, SetCopies(log="orders", copies=2, acks=1), clock_ms=400)
    assert (state.clock_ms, newest(state).clock_ms) == (500, 500)


def test_words_say_a_prepared_split_a_gap_a_fence_and_a_halt():
    state = with_log()
    entry = state.shards[SHARD]
    odd = replace(entry, halted="two answers", shard=replace(entry.shard, fence=Epoch(2)))
    state = state.changed(shards=(odd,))
    words = audit.words_of(state, Target(shard=SHARD))
    assert words == "epoch 1 open at peer-1, fence 2 stands, halted"


# ---------------------------------------------------------------------------------- deadlines
def draining(until_ms: int = 60_000) -> ClusterState:
    return done(fleet(3), SetDraining(node=name(1), draining=True, until_ms=until_ms))


def test_a_drain_with_an_end_is_over_when_the_clock_has_come_there():
    state = done(draining(), MarkAges(clock_ms=59_999))
    assert node_of(state, 1).draining
    version = state.version
    state = done(state, MarkAges(clock_ms=60_000))
    assert not node_of(state, 1).draining
    assert state.version == version + 1
    assert state.changed_ids(version).nodes == (name(1),)


def test_an_audited_change_moves_the_clock_and_ends_it_too():
    state = by_ann(draining(), SetDraining(node=name(2), draining=True), clock_ms=60_000)
    assert not node_of(state, 1).draining
    assert node_of(state, 2).draining


def test_asked_again_the_new_end_counts():
    state = done(
        draining(),
        SetDraining(node=name(1), draining=True, until_ms=90_000),
        MarkAges(clock_ms=60_000),
    )
    assert node_of(state, 1).draining
    state = done(state, SetDraining(node=name(1), draining=True), MarkAges(clock_ms=1_000_000))
    assert node_of(state, 1).draining


def test_an_end_that_has_passed_is_refused():
    state = done(fleet(1), MarkAges(clock_ms=100))
    after, result = apply(state, SetDraining(node=name(1), draining=True, until_ms=100))
    assert after is state
    assert result.reason is Reason.INVALID_ARGUMENT


def test_a_restart_during_a_drain_keeps_its_end_and_an_undrain_forgets_it():
    state = done(draining(), register(1, boot=2))
    assert node_of(state, 1).drain_until_ms == 60_000
    state = done(state, SetDraining(node=name(1), draining=False))
    assert (node_of(state, 1).draining, node_of(state, 1).drain_until_ms) == (False, 0)


def test_a_drain_with_an_end_survives_a_snapshot():
    assert restore(snapshot(draining())) == draining()

"""The access table in the committed state: each change is a version, and one audit record."""

from dataclasses import replace

import pytest

from las.core import access, recovered
from las.core.access import ACCESS_LEVEL, VERSIONS_SKIPPED
from las.core.access_commands import AddGrant, EndRevocation, RemoveGrant, Revoke, SetAccess
from las.core.apply import apply
from las.core.commands import Audited, Caller, Reason
from las.core.snapshot import restore, snapshot
from las.core.state import ClusterState
from peerd.core.access import Grant, Revocation, Right
from tests.las_core.builders import do, done, fleet, register

ANN = Caller(who="ann", role="admin", what="grant add", clock_ms=0, timestamp_ms=1)


def grant(who: str = "shop-*", log: str = "orders", *rights: Right) -> Grant:
    return Grant(who=who, log=log, rights=rights or (Right.APPEND,))


def modern(count: int = 3) -> ClusterState:
    nodes = (register(each, feature_level=ACCESS_LEVEL) for each in range(1, count + 1))
    return done(ClusterState(cluster_id="cluster-1"), *nodes)


def refused(state: ClusterState, command, reason: Reason) -> str:
    _, result = do(state, command)
    assert result.reason is reason
    return result.text


def test_each_change_is_a_version_of_the_table_and_none_of_the_map():
    state = modern()
    after = done(state, AddGrant(grant=grant()), SetAccess(required=True))
    assert (after.access.version, after.access.required) == (2, True)
    assert after.version == state.version
    assert done(after, SetAccess(required=True), AddGrant(grant=grant())) == after
    assert done(after, SetAccess(required=False)).access.version == 3


def test_rights_are_added_to_and_taken_from_what_was_given():
    state = done(
        modern(),
        AddGrant(grant=grant("b", "orders", Right.READ)),
        AddGrant(grant=grant("a", "orders")),
        AddGrant(grant=grant("b", "orders", Right.APPEND)),
    )
    assert state.access.grants == (
        grant("a", "orders"),
        grant("b", "orders", Right.APPEND, Right.READ),
    )
    left = done(state, RemoveGrant(grant=grant("b", "orders", Right.READ)))
    assert left.access.grants[1] == grant("b", "orders", Right.APPEND)
    assert done(left, RemoveGrant(grant=grant("b", "orders", Right.READ))) == left
    everything = Grant(who="b", log="orders", rights=())
    assert done(left, RemoveGrant(grant=everything)).access.grants == (grant("a", "orders"),)
    text = refused(left, RemoveGrant(grant=grant("c")), Reason.INVALID_ARGUMENT)
    assert "peerctl grant list" in text


def test_what_is_no_grant_is_refused():
    state = modern()
    refused(state, AddGrant(grant=grant("a b")), Reason.INVALID_ARGUMENT)
    nothing = Grant(who="a", log="b", rights=())
    refused(state, AddGrant(grant=nothing), Reason.INVALID_ARGUMENT)


def test_grants_and_revocations_have_a_bound(monkeypatch):
    monkeypatch.setattr(access, "GRANTS_MAX", 1)
    monkeypatch.setattr(access, "REVOCATIONS_MAX", 1)
    state = done(modern(), AddGrant(grant=grant()), Revoke(revocation=Revocation(name="a")))
    refused(state, AddGrant(grant=grant("other")), Reason.LIMIT_REACHED)
    done(state, AddGrant(grant=grant("shop-*", "orders", Right.READ)))
    refused(state, Revoke(revocation=Revocation(name="b")), Reason.LIMIT_REACHED)


def test_a_revocation_stands_until_it_is_ended_in_the_same_words():
    by_name = Revocation(name="shop-1", role="appender", why="stolen")
    state = done(modern(), Revoke(revocation=Revocation(serial="ab")), Revoke(revocation=by_name))
    assert [each.subject for each in state.access.revoked] == ["serial ab", "appender/shop-1"]
    assert done(state, Revoke(revocation=replace(by_name, why="again"))) == state
    other = EndRevocation(revocation=Revocation(name="shop-1"))
    refused(state, other, Reason.INVALID_ARGUMENT)
    after = done(state, EndRevocation(revocation=replace(by_name, why="")))
    assert [each.subject for each in after.access.revoked] == ["serial ab"]
    refused(state, Revoke(revocation=Revocation()), Reason.INVALID_ARGUMENT)


def test_grants_are_not_required_of_a_fleet_that_knows_none():
    old = fleet(2)
    text = refused(old, SetAccess(required=True), Reason.STATE_CHANGED)
    assert "peer-1, peer-2" in text
    required = done(modern(1), SetAccess(required=True))
    low = register(2, feature_level=ACCESS_LEVEL - 1)
    assert "upgrade" in refused(required, low, Reason.STATE_CHANGED)
    done(required, register(2, feature_level=ACCESS_LEVEL))
    done(done(required, SetAccess(required=False)), low)


def test_an_audit_record_says_what_was_and_what_is():
    state = modern()
    for command, log, before, after in (
        (AddGrant(grant=grant()), "orders", "", "shop-* may append on orders"),
        (SetAccess(required=True), "", "open", "by grants"),
        (Revoke(revocation=Revocation(name="x")), "", "", "x is refused"),
        (EndRevocation(revocation=Revocation(name="x")), "", "x is refused", ""),
        (RemoveGrant(grant=grant()), "orders", "shop-* may append on orders", ""),
    ):
        state, result = apply(state, Audited(caller=ANN, command=command))
        assert result.ok
        record = state.audit[state.audited]
        assert (record.log, record.before, record.after) == (log, before, after)


def test_the_table_survives_a_snapshot_which_older_programs_refuse():
    state = done(modern(), AddGrant(grant=grant()), Revoke(revocation=Revocation(serial="ab")))
    assert restore(snapshot(state)) == state
    assert b'"format":6' in snapshot(state)
    assert b'"format":2' in snapshot(modern())


@pytest.mark.parametrize("changes", [0, 2])
def test_a_group_that_begins_from_older_data_never_draws_a_version_twice(changes):
    state = done(modern(), *(AddGrant(grant=grant(f"a{each}")) for each in range(changes)))
    caller = replace(ANN, what="las recover")
    after = recovered.begun_anew(state, recovery_id="r", caller=caller, told="lost")
    assert after.access == state.access
    again = done(after, AddGrant(grant=grant("new")))
    assert again.access.version == VERSIONS_SKIPPED + 1

"""Who may do what to which log: roles bound, grants narrow, revocations stand above both."""

import pytest

from peerd.core.access import (
    AccessTable,
    Grant,
    Revocation,
    Right,
    fits,
    grant_error,
    revocation_error,
)

SHOP = Grant(who="shop-*", log="orders", rights=(Right.APPEND,))
AUDITOR = Grant(who="rita", log="*", rights=(Right.READ,))
TABLE = AccessTable(version=3, required=True, grants=(AUDITOR, SHOP))


def test_a_name_fits_itself_or_what_begins_like_the_pattern():
    assert fits("shop-*", "shop-1")
    assert fits("*", "anybody")
    assert not fits("shop-*", "shop")
    assert not fits("shop", "shop-1")


def test_only_what_a_grant_allows_is_allowed():
    assert TABLE.rights_of("appender", "shop-1", "orders") == {Right.APPEND}
    assert TABLE.rights_of("appender", "shop-1", "orders-2") == set()
    assert TABLE.rights_of("reader", "rita", "payments") == {Right.READ}
    assert TABLE.rights_of("reader", "rob", "payments") == set()
    both = AccessTable(
        required=True, grants=(SHOP, Grant(who="*", log="orders", rights=(Right.READ,)))
    )
    assert both.rights_of("appender", "shop-1", "orders") == {Right.APPEND, Right.READ}


def test_grants_mean_nothing_until_they_are_required():
    table = AccessTable(version=1, grants=(SHOP,))
    assert table.rights_of("reader", "rob", "payments") == set(Right)


@pytest.mark.parametrize("role", ["admin", "peer", "las"])
def test_who_needs_no_grant(role):
    assert TABLE.rights_of(role, "x", "_positions") == set(Right)


def test_a_grant_on_everything_gives_no_internal_log():
    assert TABLE.rights_of("reader", "rita", "_positions") == set()


def test_a_revocation_is_of_a_name_of_a_name_in_a_role_or_of_one_certificate():
    table = AccessTable(
        revoked=(
            Revocation(name="ann"),
            Revocation(name="bob", role="reader"),
            Revocation(serial="ab12"),
        )
    )
    assert table.revocation_of("admin", "ann") is table.revoked[0]
    assert table.revocation_of("reader", "bob") is table.revoked[1]
    assert table.revocation_of("appender", "bob") is None
    assert table.revocation_of("reader", "carl", "ab12") is table.revoked[2]
    assert table.revocation_of("reader", "carl", "") is None
    subjects = [each.subject for each in table.revoked]
    assert subjects == ["ann", "reader/bob", "serial ab12"]


@pytest.mark.parametrize(
    ("who", "log", "wrong"),
    [
        ("", "orders", "who"),
        ("a*b", "orders", "who"),
        ("-a", "orders", "who"),
        ("a" * 64, "orders", "who"),
        ("ann", "", "log"),
        ("ann", "Orders", "log"),
        ("ann", "o*s", "log"),
        ("ann", "_positions", "system's own"),
        ("ann", "_*", "system's own"),
    ],
)
def test_names_that_a_grant_must_not_have(who, log, wrong):
    assert wrong in grant_error(who, log)


@pytest.mark.parametrize(
    ("who", "log"), [("ann", "orders"), ("*", "*"), ("a*", "o-*"), ("a" * 63, "o" * 128)]
)
def test_names_that_it_may_have(who, log):
    assert grant_error(who, log) == ""


@pytest.mark.parametrize(
    ("revocation", "wrong"),
    [
        (Revocation(), "not by both"),
        (Revocation(name="ann", serial="ab"), "not by both"),
        (Revocation(serial="0ab"), "hexadecimal"),
        (Revocation(serial="xyz"), "hexadecimal"),
        (Revocation(name="a b"), "name"),
        (Revocation(name="ann", role="king"), "role"),
        (Revocation(serial="ab", role="reader"), "role"),
        (Revocation(name="ann", why="x" * 201), "why"),
    ],
)
def test_what_a_revocation_must_not_be(revocation, wrong):
    assert wrong in revocation_error(revocation)


def test_what_it_may_be():
    assert revocation_error(Revocation(name="ann", role="admin", why="left")) == ""
    assert revocation_error(Revocation(serial="f" * 40)) == ""

"""The access table in the committed state (`peerd.core.access` says what it means).

Each change makes a new version of the table and no new version of the map: who routes by the map
has nothing to do with it. A group that begins from older data (`las.core.recovered`) may know an
older table than its peers. They keep theirs, so that nobody who was revoked gets in by that, until
a person changes something: that version is above all that a lost commit can have made.

A peer below `ACCESS_LEVEL` asks nobody for grants: they are not required while one is registered,
and once they are, such a peer does not register.
"""

from dataclasses import replace

from las.core.access_commands import AddGrant, EndRevocation, RemoveGrant, Revoke, SetAccess
from las.core.commands import Command, Reason, Result
from las.core.segments import Applied, refuse
from las.core.state import ClusterState
from peerd.core.access import (
    GRANTS_MAX,
    REVOCATIONS_MAX,
    AccessTable,
    Grant,
    Revocation,
    Right,
    grant_error,
    revocation_error,
)

ACCESS_LEVEL = 5
"""Feature level from which a node asks its clients for grants, and refuses who is revoked."""
VERSIONS_SKIPPED = 1 << 32
"""How many versions are skipped for each time that the cluster began from older data."""


def set_access(state: ClusterState, command: SetAccess) -> Applied:
    """Say whether clients need grants.

    | `SetAccess(required)` | if required: every node knows grants | clients need a grant for what
    they do to a log, or need none. |
    """
    table = state.access
    if table.required == command.required:
        return state, Result(ok=True, text="so it is already")
    old = sorted(node.name for node in state.nodes.values() if node.feature_level < ACCESS_LEVEL)
    if command.required and old:
        text = f"{', '.join(old[:5])} run a version that knows no grants: upgrade them first"
        return refuse(state, Reason.STATE_CHANGED, text)
    text = "clients need grants"
    if not command.required:
        text = "clients need no grants"
    elif not table.grants:
        text = "clients need grants, and there is none yet: only administrators get through"
    return _changed(state, replace(table, required=command.required), text)


def add_grant(state: ClusterState, command: AddGrant) -> Applied:
    """Give rights.

    | `AddGrant(who, log, rights)` | names and rights are well formed; there are fewer than 2,000
    grants | these callers have these rights to these logs, beside what they had. |
    """
    grant = command.grant
    if wrong := grant_error(grant.who, grant.log):
        return refuse(state, Reason.INVALID_ARGUMENT, wrong)
    if not grant.rights:
        return refuse(state, Reason.INVALID_ARGUMENT, "a grant names at least one right")
    known = _grant_of(state.access, grant)
    if known is None and len(state.access.grants) >= GRANTS_MAX:
        text = f"there are {GRANTS_MAX} grants, the bound: one with * in place of many"
        return refuse(state, Reason.LIMIT_REACHED, text)
    rights = set(grant.rights) | set(() if known is None else known.rights)
    after = replace(grant, rights=_in_order(rights))
    if after == known:
        return state, Result(ok=True, text="so it is already")
    return _changed(state, _with(state.access, grant, after), after.words)


def remove_grant(state: ClusterState, command: RemoveGrant) -> Applied:
    """Take rights back.

    | `RemoveGrant(who, log, rights)` | there is a grant for exactly these names | it has these
    rights no more; without rights named, or without any left, it is gone. |
    """
    grant = command.grant
    known = _grant_of(state.access, grant)
    if known is None:
        text = f"there is no grant for {grant.who!r} on {grant.log!r}: `peerctl grant list`"
        return refuse(state, Reason.INVALID_ARGUMENT, text)
    left = set(known.rights) - set(grant.rights or known.rights)
    if left == set(known.rights):
        return state, Result(ok=True, text="so it is already")
    after = replace(known, rights=_in_order(left)) if left else None
    text = f"{known.who} has nothing on {known.log} any more" if after is None else after.words
    return _changed(state, _with(state.access, grant, after), text)


def revoke(state: ClusterState, command: Revoke) -> Applied:
    """Refuse a certificate.

    | `Revoke(name or serial)` | it is well formed; there are fewer than 2,000 | whoever shows such
    a certificate is refused by peers and LAS nodes, and what it has open ends. |
    """
    revocation = command.revocation
    if wrong := revocation_error(revocation):
        return refuse(state, Reason.INVALID_ARGUMENT, wrong)
    others = _without(state.access, revocation)
    if len(others) < len(state.access.revoked):
        return state, Result(ok=True, text="so it is already")
    if len(others) >= REVOCATIONS_MAX:
        text = f"{REVOCATIONS_MAX} certificates are revoked, the bound: end those that expired"
        return refuse(state, Reason.LIMIT_REACHED, text)
    revoked = tuple(sorted((*others, revocation), key=_key))
    table = replace(state.access, revoked=revoked)
    return _changed(state, table, f"{revocation.subject} is refused")


def end_revocation(state: ClusterState, command: EndRevocation) -> Applied:
    """Take a certificate back.

    | `EndRevocation(name or serial)` | it is revoked, in these words | it is refused no more. |
    """
    revocation = command.revocation
    others = _without(state.access, revocation)
    if len(others) == len(state.access.revoked):
        text = f"{revocation.subject} is not revoked: `peerctl grant list` shows what is"
        return refuse(state, Reason.INVALID_ARGUMENT, text)
    return _changed(
        state, replace(state.access, revoked=others), f"{revocation.subject} is refused no more"
    )


def registration_error(state: ClusterState, name: str, feature_level: int) -> str:
    """Why a node may not register because of grants; empty if it may."""
    if state.access.required and feature_level < ACCESS_LEVEL:
        return f"{name} runs a version that asks nobody for grants, and they are required: upgrade"
    return ""


def words_for(state: ClusterState, command: Command) -> str | None:
    """What the table says about what `command` is about, for its record; None: it is another's."""
    table = state.access
    if isinstance(command, SetAccess):
        return "by grants" if table.required else "open"
    if isinstance(command, AddGrant | RemoveGrant):
        known = _grant_of(table, command.grant)
        return "" if known is None else known.words
    if isinstance(command, Revoke | EndRevocation):
        stands = len(_without(table, command.revocation)) < len(table.revoked)
        return f"{command.revocation.subject} is refused" if stands else ""
    return None


def log_of(command: Command) -> str:
    """The log, or the beginning of names, that a grant is about; empty if `command` is none."""
    return command.grant.log if isinstance(command, AddGrant | RemoveGrant) else ""


def _changed(state: ClusterState, table: AccessTable, text: str) -> Applied:
    skipped = len(state.recovery.skipped_shards) * VERSIONS_SKIPPED
    after = replace(table, version=max(state.access.version, skipped) + 1)
    return replace(state, access=after), Result(ok=True, text=text)


def _grant_of(table: AccessTable, grant: Grant) -> Grant | None:
    return next(
        (each for each in table.grants if (each.who, each.log) == (grant.who, grant.log)), None
    )


def _with(table: AccessTable, grant: Grant, after: Grant | None) -> AccessTable:
    others = [each for each in table.grants if (each.who, each.log) != (grant.who, grant.log)]
    if after is not None:
        others.append(after)
    return replace(table, grants=tuple(sorted(others, key=lambda each: (each.who, each.log))))


def _without(table: AccessTable, revocation: Revocation) -> tuple[Revocation, ...]:
    return tuple(each for each in table.revoked if _key(each) != _key(revocation))


def _key(revocation: Revocation) -> tuple[str, str, str]:
    return revocation.name, revocation.role, revocation.serial


def _in_order(rights: set[Right]) -> tuple[Right, ...]:
    return tuple(right for right in Right if right in rights)

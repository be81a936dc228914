"""Who may do what to which log, and who is refused everywhere: the access table, as plain values.

Three rules, and nothing beside them:

1. A role bounds, a grant narrows. What a role may never do (`peerd.transport.authz`) no grant
   allows; once grants are required, what no grant allows is denied.
2. Administrators, peers and LAS nodes need no grant: the first must be able to give grants, the
   others act for callers that were judged where they came in. Internal logs (`_…`) are open to
   these alone.
3. A revocation stands above all of that, whether grants are required or not.

A table is replaced whole by one of a higher version; nothing is merged, so that whoever has version
v has what the LAS committed as v and nothing else.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

EVERY = "*"
"""At the end of a name or of a log's name: all that begin so."""
INTERNAL = "_"
"""The logs of the system itself begin so."""
# limit: grants of one cluster; the table travels whole, 0.4 MB at this size
GRANTS_MAX = 2_000
# limit: revocations of one cluster; what has expired can be taken out
REVOCATIONS_MAX = 2_000
# limit: characters of what is said about a revocation
WHY_CHARACTERS_MAX = 200

_WHO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}|([A-Za-z0-9][A-Za-z0-9._-]{0,61})?\*")
_LOG = re.compile(r"[a-z0-9._-]{1,128}|[a-z0-9._-]{0,127}\*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SERIAL = re.compile(r"[1-9a-f][0-9a-f]{0,39}")


class Right(StrEnum):
    """What may be done to a log."""

    APPEND = "append"
    READ = "read"
    ADMINISTER = "administer"


NEED_NO_GRANT = frozenset({"admin", "peer", "las"})
"""Roles that grants say nothing about."""
REVOCABLE_ROLES = frozenset(
    {"", "admin", "operator", "appender", "reader", "forecaster", "peer", "las"}
)
"""Roles that a revocation may name; the empty one means every role."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Callers whose name fits `who` may do `rights` to logs whose name fits `log`."""

    who: str
    log: str
    rights: tuple[Right, ...]

    def covers(self, name: str, log: str) -> bool:
        """Whether it says anything about this caller and this log."""
        return fits(self.who, name) and fits(self.log, log)

    @property
    def words(self) -> str:
        """In one line."""
        return f"{self.who} may {', '.join(self.rights)} on {self.log}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """A certificate that is refused: by `name`, of one `role` or of all (""), or by `serial`."""

    name: str = ""
    role: str = ""
    serial: str = ""
    why: str = ""

    @property
    def subject(self) -> str:
        """What is refused, in one word."""
        if self.serial:
            return f"serial {self.serial}"
        return f"{self.role}/{self.name}" if self.role else self.name

    def is_about(self, role: str, name: str) -> bool:
        """Whether it refuses this name in this role."""
        return bool(self.name) and self.name == name and self.role in ("", role)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessTable:
    """All that is said, as of `version`; 0: nothing ever was, and everything is open.

    `grants` are sorted by who and log, one for each pair; `revoked` by what they refuse.
    """

    version: int = 0
    required: bool = False
    grants: tuple[Grant, ...] = ()
    revoked: tuple[Revocation, ...] = ()

    def rights_of(self, role: str, name: str, log: str) -> frozenset[Right]:
        """What a caller may do to a log, as far as this table goes."""
        if not self.required or role in NEED_NO_GRANT:
            return frozenset(Right)
        if log.startswith(INTERNAL):
            return frozenset()
        return frozenset(
            right for grant in self.grants if grant.covers(name, log) for right in grant.rights
        )

    def revocation_of(self, role: str, name: str, serial: str = "") -> Revocation | None:
        """What refuses this certificate, if anything does."""
        for each in self.revoked:
            if each.is_about(role, name) or (serial and each.serial == serial):
                return each
        return None


NO_ACCESS_TABLE = AccessTable()


def fits(pattern: str, name: str) -> bool:
    """Whether `name` is the pattern, or begins with what stands before its `*`."""
    return name.startswith(pattern[:-1]) if pattern.endswith(EVERY) else name == pattern


def grant_error(who: str, log: str) -> str:
    """What is wrong with the names of a grant; empty if nothing is."""
    if not _WHO.fullmatch(who):
        return (
            f"who = {who!r}: the last part of a certificate's identity, 1 to 63 of "
            "A-Z a-z 0-9 . _ -, or the beginning of such names and *"
        )
    if log.startswith(INTERNAL):
        return f"log = {log!r}: names that begin with '_' are the system's own, nobody gets them"
    if not _LOG.fullmatch(log):
        return f"log = {log!r}: a log's name, 1 to 128 of a-z 0-9 . _ -, or its beginning and *"
    return ""


def revocation_error(revocation: Revocation) -> str:
    """What is wrong with a revocation; empty if nothing is."""
    if bool(revocation.name) == bool(revocation.serial):
        return "a revocation is by name or by serial number, and not by both"
    if revocation.serial and not _SERIAL.fullmatch(revocation.serial):
        return (
            f"serial = {revocation.serial!r}: up to 40 hexadecimal digits, as "
            "`peerctl pki show` prints them"
        )
    if revocation.name and not _NAME.fullmatch(revocation.name):
        return f"name = {revocation.name!r}: the last part of a certificate's identity"
    if revocation.role not in REVOCABLE_ROLES or (revocation.serial and revocation.role):
        return f"role = {revocation.role!r}: a role of certificates, with a name"
    if len(revocation.why) > WHY_CHARACTERS_MAX:
        return f"why has more than {WHY_CHARACTERS_MAX} characters"
    return ""

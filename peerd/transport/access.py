"""The access table as a process knows it, asked with each call (docs/security.md).

Invariants:
- A table is replaced whole by one of a higher version, and by nothing else: what is late changes
  nothing.
- Whoever a new table refuses is refused from the next call on, and a stream of its that is open
  ends (`watching`): its task is cancelled, and the call ends with the refusal as its status.
- While nothing is required and nobody is revoked, a call costs two look-ups of attributes here.

Bound: one verdict for each pair of a caller and a log that was asked about since the last change,
`VERDICTS_KEPT_MAX` of them.

Must not: do IO, or know where a table comes from.
"""

import asyncio
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from cryptography import x509

from las.v1 import access_pb2
from peerd.core.access import (
    NO_ACCESS_TABLE,
    AccessTable,
    Grant,
    Revocation,
    Right,
    grant_error,
    revocation_error,
)
from peerd.core.errors import Reason
from peerd.transport.caller_limits import CallerUse
from peerd.transport.refused_calls import RefusedCall, RefusedCalls
from peerd.transport.status import Context, Refused, reason_of, refusal, refuse
from peerd.transport.tls import Identity, identity_of
from peerd.v1 import errors_pb2

# limit: verdicts kept; a caller asks about a handful of logs, and what is forgotten is found again
VERDICTS_KEPT_MAX = 10_000
# limit: certificates whose serial numbers are remembered as read
SERIALS_KEPT_MAX = 4_096
# What gRPC calls the certificate that the caller showed.
_CERTIFICATE = "x509_pem_cert"

_RIGHTS: Mapping[Right, access_pb2.Right.ValueType] = {
    Right.APPEND: access_pb2.RIGHT_APPEND,
    Right.READ: access_pb2.RIGHT_READ,
    Right.ADMINISTER: access_pb2.RIGHT_ADMINISTER,
}
_RIGHTS_BACK = {number: right for right, number in _RIGHTS.items()}


class AccessMalformed(ValueError):
    """The bytes are no access table of any version."""


class _Running:
    """A call that is under way, and what a new table may say about it."""

    def __init__(
        self, task: "asyncio.Task[object]", verdict: Callable[[], errors_pb2.Refusal | None]
    ) -> None:
        self.task = task
        self.verdict = verdict
        self.refusal: errors_pb2.Refusal | None = None


class Access:
    """Used on one event loop."""

    def __init__(
        self, cluster: str, *, plaintext: bool = False, refused: RefusedCalls | None = None
    ) -> None:
        """Starts with nothing said. `plaintext` as in `identity_of`; `refused` counts refusals."""
        self.table: AccessTable = NO_ACCESS_TABLE
        self.refused = RefusedCalls() if refused is None else refused
        self._cluster = cluster
        self._plaintext = plaintext
        self._verdicts: dict[tuple[str, str, str], frozenset[Right]] = {}
        self._running: set[_Running] = set()
        self._names: frozenset[str] = frozenset()
        self._serials: frozenset[str] = frozenset()
        self._subscribers: list[Callable[[AccessTable], None]] = []

    # -------------------------------------------------------------------------- taking

    def take(self, table: AccessTable) -> bool:
        """Replace the table if `table` is newer; ends the streams that it refuses."""
        if table.version <= self.table.version:
            return False
        self.table = table
        self._verdicts.clear()
        self._names = frozenset(each.name for each in table.revoked if each.name)
        self._serials = frozenset(each.serial for each in table.revoked if each.serial)
        for running in tuple(self._running):
            if running.refusal is None and (found := running.verdict()) is not None:
                running.refusal = found
                running.task.cancel()
        for callback in tuple(self._subscribers):
            callback(table)
        return True

    def subscribe(self, callback: Callable[[AccessTable], None]) -> None:
        """Call `callback` with each new table."""
        self._subscribers.append(callback)

    # -------------------------------------------------------------------------- revocations

    def revocation(self, identity: Identity, context: Context) -> errors_pb2.Refusal | None:
        """Why this caller is refused everywhere; None if it is not."""
        if not self.table.revoked:
            return None
        serial = serial_of(context) if self._serials else ""
        if identity.name not in self._names and serial not in self._serials:
            return None
        found = self.table.revocation_of(identity.role.value, identity.name, serial)
        return None if found is None else _revoked(identity, found)

    async def run(
        self,
        call: Callable[[object, Context], object],
        request: object,
        context: Context,
        identity: Identity,
        method: str,
    ) -> None:
        """A streaming call, which ends when its caller is revoked."""
        try:
            with self.watching(lambda: self.revocation(identity, context)):
                await call(request, context)  # type: ignore[misc]
        except Refused as refused:
            self.note(identity, method, refused.refusal)
            await refuse(context, refused.refusal)

    @contextmanager
    def watching(self, verdict: Callable[[], errors_pb2.Refusal | None]) -> Iterator[None]:
        """Ends the current task's work in here when `verdict` refuses it after a change.

        Raises:
            Refused: it did.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("no task runs here")
        running = _Running(task, verdict)
        self._running.add(running)
        try:
            yield
        except asyncio.CancelledError:
            if running.refusal is None:
                raise
            task.uncancel()
            raise Refused(running.refusal) from None
        finally:
            self._running.discard(running)

    # -------------------------------------------------------------------------- grants

    def require(self, context: Context, log: str, *rights: Right) -> None:
        """Go on if the caller has one of `rights` to `log`.

        Raises:
            Refused: NOT_GRANTED.
        """
        if self.table.required:
            self.require_of(self.identity_of(context), log, *rights)

    def require_of(self, identity: Identity, log: str, *rights: Right) -> None:
        """The same for a caller whose name is read already. Raises `Refused`: NOT_GRANTED."""
        found = self.verdict(identity, log, *rights)
        if found is not None:
            self.note(identity, f"{rights[0].value} {log}", found)
            raise Refused(found)

    def verdict(self, identity: Identity, log: str, *rights: Right) -> errors_pb2.Refusal | None:
        """Why none of `rights` is granted; None if one is."""
        if not self.table.required:
            return None
        key = (identity.role.value, identity.name, log)
        granted = self._verdicts.get(key)
        if granted is None:
            if len(self._verdicts) >= VERDICTS_KEPT_MAX:
                self._verdicts.clear()
            granted = self._verdicts[key] = self.table.rights_of(*key)
        if not granted.isdisjoint(rights):
            return None
        return _not_granted(identity, log, rights[0])

    def identity_of(self, context: Context) -> Identity:
        """Who calls. Raises `IdentityError` where the interceptor would have refused."""
        return identity_of(context, self._cluster, plaintext=self._plaintext)

    def told(self, who: str, role: str, reason: str, method: str, text: str) -> None:
        """Count a refusal that others decided, and tell of it."""
        call = RefusedCall(who=who, role=role, reason=reason, what=method, text=text)
        self.refused.add(call)

    def note(self, identity: Identity, what: str, wire: errors_pb2.Refusal) -> None:
        """Count a refusal, and tell of it."""
        reason = reason_of(wire)
        name = "UNKNOWN" if reason is None else reason.name
        self.told(identity.name, identity.role.value, name, what, wire.message)


class Caller:
    """Who makes one call, read when it is first needed; for calls that ask again and again."""

    __slots__ = ("_access", "_context", "_identity", "_passed", "_use")

    def __init__(self, access: Access, context: Context, use: CallerUse | None = None) -> None:
        """`use` counts what it asks for; without it nothing does."""
        self._access = access
        self._context = context
        self._identity: Identity | None = None
        # What was granted last, and by which table: most streams append to one log.
        self._passed: tuple[AccessTable, str, Right] | None = None
        self._use = use

    def take(self, size: int) -> None:
        """It asks for something that brings `size` bytes. Raises `Refused`: OVERLOADED."""
        if self._use is not None:
            self._use.take(self._read(), self._context.peer(), size)

    async def sent(self, size: int) -> None:
        """It was sent `size` bytes; returns when it may be sent more."""
        if self._use is None:
            return
        wait_s = self._use.sent(self._read(), size)
        while wait_s > 0:
            await asyncio.sleep(wait_s)
            wait_s = self._use.sent(self._read(), 0)

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """A stream of it is open in here."""
        if self._use is None:
            yield
            return
        with self._use.open_stream(self._read(), self._context.peer()):
            yield

    def require(self, log: str, right: Right) -> None:
        """As `Access.require`. Raises `Refused`: NOT_GRANTED."""
        table = self._access.table
        if not table.required:
            return
        passed = self._passed
        if passed and passed[0] is table and passed[1] == log and passed[2] is right:
            return
        self._access.require_of(self._read(), log, right)
        self._passed = table, log, right

    @contextmanager
    def watching(self, log: str, right: Right) -> Iterator[None]:
        """As `Access.watching`: ends what is done in here when the right is taken back.

        Raises:
            Refused: NOT_GRANTED, at once or later.
        """
        self.require(log, right)
        with self._access.watching(lambda: self._verdict(log, right)):
            yield

    def _verdict(self, log: str, right: Right) -> errors_pb2.Refusal | None:
        return self._access.verdict(self._read(), log, right)

    def _read(self) -> Identity:
        if self._identity is None:
            self._identity = self._access.identity_of(self._context)
        return self._identity


def _revoked(identity: Identity, revocation: Revocation) -> errors_pb2.Refusal:
    why = f" ({revocation.why})" if revocation.why else ""
    return refusal(
        Reason.REVOKED,
        f"{identity.uri}: this certificate was revoked{why}; an administrator ends that with "
        f"`peerctl revoke {_subject(revocation)} --undo`",
    )


def _subject(revocation: Revocation) -> str:
    return f"--serial {revocation.serial}" if revocation.serial else revocation.subject


def _not_granted(identity: Identity, log: str, right: Right) -> errors_pb2.Refusal:
    return refusal(
        Reason.NOT_GRANTED,
        f"{identity.name} has no right to {right.value} {log!r}: an administrator gives it with "
        f"`peerctl grant add {identity.name} {log} {right.value}`",
    )


def serial_of(context: Context) -> str:
    """The serial number of the caller's certificate; empty if there is none."""
    found = (context.auth_context() or {}).get(_CERTIFICATE)
    return _serial_in(next(iter(found))) if found else ""


@functools.lru_cache(SERIALS_KEPT_MAX)
def _serial_in(pem: bytes) -> str:
    try:
        return f"{x509.load_pem_x509_certificate(pem).serial_number:x}"
    except ValueError:
        return ""


# ------------------------------------------------------------------------------ wire form


def encode_access(table: AccessTable) -> access_pb2.AccessTable:
    """The table on the wire."""
    return access_pb2.AccessTable(
        version=table.version,
        required=table.required,
        grants=map(encode_grant, table.grants),
        revoked=map(encode_revocation, table.revoked),
    )


def encode_grant(grant: Grant) -> access_pb2.Grant:
    """One grant."""
    return access_pb2.Grant(
        who=grant.who, log=grant.log, rights=[_RIGHTS[right] for right in grant.rights]
    )


def encode_revocation(revocation: Revocation) -> access_pb2.Revocation:
    """One revocation."""
    return access_pb2.Revocation(
        name=revocation.name,
        role=revocation.role,
        serial=revocation.serial,
        why=revocation.why,
    )


def decode_access(wire: access_pb2.AccessTable) -> AccessTable:
    """The table as a value.

    A right that this version does not know is left out: it cannot be asked for here.

    Raises:
        AccessMalformed: no LAS commits such a table.
    """
    table = AccessTable(
        version=wire.version,
        required=wire.required,
        grants=tuple(map(decode_grant, wire.grants)),
        revoked=tuple(map(decode_revocation, wire.revoked)),
    )
    for grant in table.grants:
        if wrong := grant_error(grant.who, grant.log):
            raise AccessMalformed(wrong)
    for revocation in table.revoked:
        if wrong := revocation_error(revocation):
            raise AccessMalformed(wrong)
    return table


def decode_grant(wire: access_pb2.Grant) -> Grant:
    """One grant, unchecked."""
    rights = {_RIGHTS_BACK[number] for number in wire.rights if number in _RIGHTS_BACK}
    return Grant(
        who=wire.who, log=wire.log, rights=tuple(right for right in Right if right in rights)
    )


def decode_revocation(wire: access_pb2.Revocation) -> Revocation:
    """One revocation, unchecked."""
    return Revocation(name=wire.name, role=wire.role, serial=wire.serial, why=wire.why)


def encode_refused(call: RefusedCall) -> access_pb2.RefusedCalls:
    """Its wire form."""
    return access_pb2.RefusedCalls(
        who=call.who,
        role=call.role,
        reason=call.reason,
        what=call.what,
        count=call.count,
        text=call.text,
    )


def decode_refused(wire: access_pb2.RefusedCalls) -> RefusedCall:
    """Inverse of `encode_refused`."""
    return RefusedCall(
        who=wire.who,
        role=wire.role,
        reason=wire.reason,
        what=wire.what,
        text=wire.text,
        count=wire.count,
    )

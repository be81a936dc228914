"""`las.v1.AccessService`: grants, revocations, and whether clients need grants.

A change answers when every peer that is up has it on disk, or after `HEARD_S`; then it names the
others. It is in force at each peer from the moment that the peer hears of it.
"""

import asyncio
import time

from las.core.access_commands import (
    AccessCommand,
    AddGrant,
    EndRevocation,
    RemoveGrant,
    Revoke,
    SetAccess,
)
from las.daemon.access_view import unheard
from las.daemon.audit import Auditor
from las.daemon.group import Group
from las.daemon.leader import Leadership
from las.daemon.services.callers import Callers
from las.daemon.services.results import invalid, require_ok
from las.v1 import access_pb2, access_pb2_grpc
from peerd.core.access import AccessTable, Revocation
from peerd.core.errors import Reason
from peerd.core.ids import NodeName
from peerd.pki import Role
from peerd.transport.access import (
    decode_grant,
    decode_revocation,
    encode_access,
    serial_of,
)
from peerd.transport.status import Context, Refused, refusal

# How long a change waits for the peers that are up to have it, in seconds: three heartbeats and
# a durable write; and the pause between two looks.
HEARD_S = 2.5
LOOK_S = 0.05


class AccessServicer(access_pb2_grpc.AccessServiceServicer):
    """Serves on the leader; others name it."""

    def __init__(
        self, group: Group, leadership: Leadership, callers: Callers, auditor: Auditor
    ) -> None:
        self._group = group
        self._leadership = leadership
        self._callers = callers
        self._auditor = auditor

    async def GetAccess(
        self, _request: access_pb2.GetAccessRequest, _context: Context
    ) -> access_pb2.GetAccessResponse:
        """The table, and who has not heard. Raises `Refused`: NOT_LAS_LEADER, LAS_UNAVAILABLE."""
        self._leadership.require()
        await self._group.barrier()
        return access_pb2.GetAccessResponse(
            table=encode_access(self._table), unheard=self._unheard()
        )

    async def SetAccess(
        self, request: access_pb2.SetAccessRequest, context: Context
    ) -> access_pb2.SetAccessResponse:
        """Raises `Refused`: STATE_CHANGED, LIMIT_REACHED, NOT_LAS_LEADER, LAS_UNAVAILABLE."""
        what = "grant require" if request.required else "grant require --off"
        late = await self._change(SetAccess(required=request.required), context, what)
        return access_pb2.SetAccessResponse(table=encode_access(self._table), unheard=late)

    async def AddGrant(
        self, request: access_pb2.AddGrantRequest, context: Context
    ) -> access_pb2.AddGrantResponse:
        """Raises `Refused`: INVALID_ARGUMENT, LIMIT_REACHED, NOT_LAS_LEADER, LAS_UNAVAILABLE."""
        command = AddGrant(grant=decode_grant(request.grant))
        late = await self._change(command, context, "grant add", request.grant.log)
        return access_pb2.AddGrantResponse(table=encode_access(self._table), unheard=late)

    async def RemoveGrant(
        self, request: access_pb2.RemoveGrantRequest, context: Context
    ) -> access_pb2.RemoveGrantResponse:
        """Raises `Refused`: INVALID_ARGUMENT, NOT_LAS_LEADER, LAS_UNAVAILABLE."""
        grant = decode_grant(request.grant)
        if request.grant.rights and not grant.rights:
            # Without this, rights that are not known here would mean all of them.
            raise invalid("rights: none of them is known to this version")
        command = RemoveGrant(grant=grant)
        late = await self._change(command, context, "grant remove", request.grant.log)
        return access_pb2.RemoveGrantResponse(table=encode_access(self._table), unheard=late)

    async def Revoke(
        self, request: access_pb2.RevokeRequest, context: Context
    ) -> access_pb2.RevokeResponse:
        """Raises `Refused`: INVALID_ARGUMENT (also of the caller itself), LIMIT_REACHED,
        STATE_CHANGED (the LAS would lose its majority), NOT_LAS_LEADER, LAS_UNAVAILABLE.
        """
        revocation = decode_revocation(request.revocation)
        command = Revoke(revocation=revocation)
        late = await self._change(command, context, "revoke", revocation=revocation)
        return access_pb2.RevokeResponse(table=encode_access(self._table), unheard=late)

    async def EndRevocation(
        self, request: access_pb2.EndRevocationRequest, context: Context
    ) -> access_pb2.EndRevocationResponse:
        """Raises `Refused`: INVALID_ARGUMENT, NOT_LAS_LEADER, LAS_UNAVAILABLE."""
        command = EndRevocation(revocation=decode_revocation(request.revocation))
        late = await self._change(command, context, "revoke --undo")
        return access_pb2.EndRevocationResponse(table=encode_access(self._table), unheard=late)

    # ------------------------------------------------------------------ inside

    @property
    def _table(self) -> AccessTable:
        return self._group.state.access

    async def _change(
        self,
        command: AccessCommand,
        context: Context,
        what: str,
        log: str = "",
        *,
        revocation: Revocation | None = None,
    ) -> list[NodeName]:
        """Commit it, wait for the peers, and return who has not heard. Raises `Refused`."""
        async with self._auditor.call(context, what, log=log) as call:
            await self._group.barrier()
            if revocation is not None:
                self._check_who_is_left(revocation, context)
            require_ok(await call.submit(command))
        deadline_s = time.monotonic() + HEARD_S
        while True:
            late = self._unheard()
            waits = any(self._group.state.is_node_up(name) for name in late)
            if not waits or time.monotonic() >= deadline_s:
                return late
            await asyncio.sleep(LOOK_S)

    def _check_who_is_left(self, revocation: Revocation, context: Context) -> None:
        """Refuse what could not be undone: nobody could call any more, or nothing be committed.

        Raises:
            Refused: INVALID_ARGUMENT, STATE_CHANGED.
        """
        identity = self._callers.identity_of(context)
        own_serial = revocation.serial and revocation.serial == serial_of(context)
        if own_serial or revocation.is_about(identity.role.value, identity.name):
            raise invalid(f"{revocation.subject} is the certificate that asks for it: use another")
        table = self._table
        members = tuple(self._group.addresses)
        left = [
            name
            for name in members
            if table.revocation_of(Role.LAS.value, name) is None
            and not revocation.is_about(Role.LAS.value, name)
        ]
        if revocation.name in members and len(left) <= len(members) // 2:
            text = (
                f"{len(left)} of {len(members)} LAS nodes would be left, too few to decide "
                "anything, this revocation's end included: renew or replace one of them first"
            )
            raise Refused(refusal(Reason.STATE_CHANGED, text))

    def _unheard(self) -> list[NodeName]:
        return unheard(self._group.state, self._leadership.term)

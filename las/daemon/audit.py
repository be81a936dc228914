"""Calls of people as audited commands: who called is told with what was asked for.

Invariants:
- A command that `AuditedCall.submit` takes is committed with the caller's name and role as its
  certificate has them, or not at all.
- A call that is refused before it submitted a command is recorded as refused, unless nothing can
  be recorded here now: another node leads, or the group does not answer.
- A call that only looks ahead records nothing, nor do refusals of what processes ask for again and
  again by themselves.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from las.core.commands import Audited, Caller, Command, RecordRefusal, Result, Target
from las.daemon.group import Group
from las.daemon.leader import Leadership
from las.daemon.services.callers import Callers
from peerd.core.errors import Reason
from peerd.core.ids import NodeName, ShardId
from peerd.daemon.logging import get_logger
from peerd.transport.status import Context, Refused, reason_of

# Where a call ends like this there is no leader to record it, or no room.
_NOT_RECORDED = frozenset(
    {
        Reason.NOT_LAS_LEADER,
        Reason.LAS_UNAVAILABLE,
        Reason.OVERLOADED,
        Reason.SHUTTING_DOWN,
    }
)

_log = get_logger("audit")


class Auditor:
    """Used on the event loop."""

    def __init__(self, group: Group, leadership: Leadership, callers: Callers) -> None:
        self._group = group
        self._leadership = leadership
        self._callers = callers

    @asynccontextmanager
    async def call(
        self,
        context: Context,
        what: str,
        *,
        node: str = "",
        log: str = "",
        shard: int = 0,
        model: str = "",
        refusals: bool = True,
    ) -> AsyncIterator["AuditedCall"]:
        """One call, in the words of `peerctl`. What is refused inside is recorded, if `refusals`.

        Raises:
            Refused: NOT_LAS_LEADER.
        """
        clock_ms = self._leadership.require().clock.clock_ms
        identity = self._callers.identity_of(context)
        caller = Caller(
            who=identity.name,
            role=identity.role.value,
            what=what,
            clock_ms=clock_ms,
            timestamp_ms=int(time.time() * 1000),
        )
        call = AuditedCall(self._group, caller)
        try:
            yield call
        except Refused as refused:
            reason = reason_of(refused.refusal)
            if refusals and not call.is_recorded and reason and reason not in _NOT_RECORDED:
                target = Target(node=NodeName(node), log=log, shard=ShardId(shard), model=model)
                await self._record(caller, target, reason, refused.refusal.message)
            raise

    async def _record(self, caller: Caller, target: Target, reason: Reason, text: str) -> None:
        command = RecordRefusal(caller=caller, target=target, reason=reason.name.lower(), text=text)
        _log.warning("refused", who=caller.who, role=caller.role, what=caller.what, why=text)
        try:
            await self._group.submit(command)
        except Refused as refused:
            # The caller is told why the call was refused, which matters more; the log line is left.
            _log.warning("refusal not recorded", what=caller.what, why=str(refused))


class AuditedCall:
    """`is_recorded`: a command of it was submitted, and tells of itself."""

    def __init__(self, group: Group, caller: Caller) -> None:
        self._group = group
        self._caller = caller
        self.is_recorded = False

    async def submit(self, command: Command) -> Result:
        """As `Group.submit`, with the caller's name. Raises `Refused`."""
        self.is_recorded = True
        result = await self._group.submit(Audited(caller=self._caller, command=command))
        _log.info(
            "changed" if result.ok else "refused",
            who=self._caller.who,
            role=self._caller.role,
            what=self._caller.what,
            command=type(command).__name__,
            outcome=result.text,
        )
        return result

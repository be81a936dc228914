"""Refused calls in the audit: what this node refused, and what peers tell of theirs.

`peerd.transport.refused_calls` joins them by caller and minute. The leader commits what is told;
on another node, or while nothing can be committed, it stands in the log of the process.

Bound: `WAITING_MAX` records that wait for consensus.

Must not: hold a call up. What cannot be recorded is dropped, and the log has it.
"""

import asyncio
import time
from collections import deque

from las.core.commands import Caller, RecordRefusal, Target
from las.daemon.group import Group
from las.daemon.leader import Leadership
from las.v1 import access_pb2
from peerd.core.ids import NodeName
from peerd.daemon.logging import get_logger
from peerd.transport.refused_calls import RefusedCall, RefusedCalls
from peerd.transport.status import Refused, one_line

# limit: refusals that wait to be recorded
WAITING_MAX = 256
# limit: refusals of one heartbeat, as the contract says
PER_HEARTBEAT_MAX = 32
# How often what was joined is looked at, in seconds.
LOOK_S = 0.5
# limit: calls that one record may tell of; a peer that tells of more is wrong
COUNT_MAX = 1 << 32

_log = get_logger("access")


class RefusalRecords:
    """Used on the event loop."""

    def __init__(self) -> None:
        self.calls = RefusedCalls(self._told)
        self._waiting: deque[RefusedCall] = deque(maxlen=WAITING_MAX)

    def _told(self, call: RefusedCall) -> None:
        _log.warning("calls refused", **call.facts)
        self._waiting.append(call)

    def peer_told(self, peer: NodeName, refused: "access_pb2.RefusedCalls") -> None:
        """A peer refused calls."""
        self.calls.add(
            RefusedCall(
                who=one_line(refused.who),
                role=one_line(refused.role),
                reason=one_line(refused.reason),
                what=one_line(refused.what),
                text=f"at {peer}: {one_line(refused.text)}",
                count=min(max(1, refused.count), COUNT_MAX),
            )
        )

    async def run(self, group: Group, leadership: Leadership) -> None:
        """Record what was told, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.calls.look()
            while self._waiting:
                await self._record(self._waiting.popleft(), group, leadership)

    async def _record(self, call: RefusedCall, group: Group, leadership: Leadership) -> None:
        term = leadership.term
        if term is None:
            return
        times = "once" if call.count == 1 else f"{call.count} times"
        command = RecordRefusal(
            caller=Caller(
                who=call.who or "somebody",
                role=call.role or "unknown",
                what=call.what,
                clock_ms=term.clock.clock_ms,
                timestamp_ms=int(time.time() * 1000),
            ),
            target=Target(),
            reason=call.reason.lower(),
            text=f"{times}: {call.text}",
        )
        try:
            await group.submit(command)
        except Refused as refused:
            _log.warning("refusal not recorded", who=call.who, why=str(refused))

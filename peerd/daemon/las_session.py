"""This peer's line to the LAS: register, heartbeat, map changes down, reports up.

The session finds the leader among the configured LAS nodes, follows `NOT_LAS_LEADER` to the node
that it names, and starts over whenever anything breaks.

Invariants:
- The data path never waits for it: with the LAS down this loop tries on, and nothing else notices
  (G9).
- A report is repeated until it is answered (`peerd.daemon.reports`).
- What a restart could not mend (wrong cluster, another store id, no right to be a peer) ends the
  process with the LAS's own words; everything else is tried again within a second.

Must not: understand the map or decide anything from it.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import grpc
import grpc.aio

from las.v1 import access_pb2, fleet_pb2, fleet_pb2_grpc, shard_map_pb2
from peerd.core.errors import Reason
from peerd.daemon.errors import DaemonError, RegistrationRefused, Superseded
from peerd.daemon.logging import get_logger
from peerd.daemon.reports import ReportQueue, is_evidence
from peerd.transport.channels import Channels
from peerd.transport.concurrency import CallOver, first_ended, write_to
from peerd.transport.status import reason_of, refusal_of_error

# limit: samples of one heartbeat, as the contract says
SAMPLES_PER_HEARTBEAT_MAX = 120

REGISTER_TIMEOUT_S = 3.0
REPORT_TIMEOUT_S = 2.0
# Without a session for this long the operator is told why, and again in this interval. Seconds.
COMPLAIN_AFTER_S = 10.0
COMPLAIN_AGAIN_S = 60.0
# The first pause between rounds over all LAS nodes; it doubles with each round.
RETRY_DELAY_S_MIN = 0.05
# limit: seconds between rounds; an election takes about a second, so looking often finds the new
# leader soon, and a handful of small calls a second is nothing
RETRY_DELAY_S_MAX = 0.5
# limit: heartbeat periods without an answer, each heartbeat being answered; then the leader hangs,
# or its host is gone without a word
SILENT_PERIODS_MAX = 4
# The same in seconds where periods are short: a commit of the LAS on a slow disk takes a while.
SILENCE_S_MIN = 2.0

# Trying again changes nothing about these; a person has to.
_FINAL_REASONS = frozenset(
    {
        Reason.WRONG_CLUSTER,
        Reason.STORE_ID_CHANGED,
        Reason.NO_IDENTITY,
        Reason.ROLE_NOT_ALLOWED,
        Reason.REVOKED,
        Reason.INVALID_ARGUMENT,
    }
)

_log = get_logger("las")


class LasClient(Protocol):
    """What the session asks of the peer."""

    def registration(self) -> fleet_pb2.RegisterRequest:
        """What this process and its store are, now."""

    async def registered(self, cluster_id: str) -> None:
        """The LAS accepted the registration. Raises `RegistrationRefused` on a foreign cluster."""

    def map_updated(self, update: shard_map_pb2.MapUpdate) -> None:
        """A part of the committed map, or all of it."""

    def access_updated(self, table: access_pb2.AccessTable) -> None:
        """The committed access table."""

    def map_current(self) -> None:
        """The leader has just said that map and access table are current, as known here."""

    def heartbeat(self, *, whole_window: bool) -> fleet_pb2.HeartbeatRequest:
        """The next heartbeat, with the samples since the last one, or with the whole window."""


class SessionBroken(Exception):
    """The session with one LAS node is over: try the next one."""


class PastLost(SessionBroken):
    """The LAS knows less than this store: it was set back. A person must look."""


class NotLeader(SessionBroken):
    """The node does not lead; `leader` is the address of the one that does, "" if unknown."""

    def __init__(self, leader: str) -> None:
        super().__init__("not the leader")
        self.leader = leader


HeartbeatCall = grpc.aio.StreamStreamCall[fleet_pb2.HeartbeatRequest, fleet_pb2.HeartbeatResponse]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStatistics:
    """`reports_waiting` are unanswered now, `reports_dropped` were too many since the start."""

    connected: bool
    reports_waiting: int
    reports_dropped: int


class LasSession:
    """One per process; `run` is its only task."""

    def __init__(
        self,
        addresses: Sequence[str],
        channels: Channels,
        client: LasClient,
        *,
        boot_id: str,
        explain: Callable[[str], str],
    ) -> None:
        """`explain` finds out why an address cannot be reached; it may block."""
        self._explain = explain
        self._addresses = tuple(addresses)
        self._channels = channels
        self._client = client
        self._boot_id = boot_id
        self._facts = ReportQueue()
        self._evidence = ReportQueue()
        self._period_s = 0.5
        self._connected = False
        self._past_lost_told_at_s = -COMPLAIN_AGAIN_S

    def report(self, report: fleet_pb2.PeerReport) -> None:
        """Tell the LAS, as soon as it can be reached and until it answers."""
        (self._evidence if is_evidence(report) else self._facts).add(report)

    def statistics(self) -> SessionStatistics:
        """State and counts for metrics."""
        return SessionStatistics(
            connected=self._connected,
            reports_waiting=len(self._facts) + len(self._evidence),
            reports_dropped=self._facts.dropped + self._evidence.dropped,
        )

    async def run(self) -> None:
        """Keep a session with the leader, for ever.

        Raises:
            RegistrationRefused: trying again would change nothing.
            Superseded: a registration of another process of this node was committed after that of
                this one, even if that process is long gone: each of the two calls may come late.
        """
        loop = asyncio.get_running_loop()
        delay_s, hint = RETRY_DELAY_S_MIN, ""
        complain_at_s = loop.time() + COMPLAIN_AFTER_S
        while True:
            for address in self._order(hint):
                hint = await self._try(address)
                if self._connected:
                    self._connected, delay_s = False, RETRY_DELAY_S_MIN
                    complain_at_s = loop.time() + COMPLAIN_AFTER_S
                if hint:
                    break
            if loop.time() >= complain_at_s:
                complain_at_s = loop.time() + COMPLAIN_AGAIN_S
                await self._complain()
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_DELAY_S_MAX)

    async def _try(self, address: str) -> str:
        """One session with a node, until it breaks; returns the leader's address if it told one."""
        try:
            await self._session(address)
        except NotLeader as error:
            return error.leader if error.leader != address else ""
        except PastLost as error:
            self._tell_past_lost(address, str(error))
        except SessionBroken as error:
            # Once a session: while there is no leader, each node would be told of each round.
            if self._connected:
                _log.warning("session with the LAS broke", address=address, why=str(error))
        return ""

    def _tell_past_lost(self, address: str, why: str) -> None:
        """Loudly, once a minute. What this peer serves goes on: nothing here is wrong, and it is
        asked for again, since the LAS may be given its newest data back.
        """
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._past_lost_told_at_s + COMPLAIN_AGAIN_S:
            self._past_lost_told_at_s = now_s
            _log.critical("the LAS lost its past; the data path goes on", address=address, why=why)

    async def _complain(self) -> None:
        """Tell the operator what is wrong with each address, in words."""
        for address in self._addresses:
            why = await asyncio.to_thread(self._explain, address)
            _log.warning("no session with the LAS; the data path goes on", address=address, why=why)

    async def flush(self, *, timeout_s: float) -> bool:
        """Wait until every fact was answered; False if that took longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._facts.answered()
        except TimeoutError:
            return False
        return True

    def _order(self, hint: str) -> tuple[str, ...]:
        others = tuple(address for address in self._addresses if address != hint)
        return (hint, *others) if hint else others

    async def _session(self, address: str) -> None:
        """Register with the node at `address` and serve the session until it breaks."""
        stub = fleet_pb2_grpc.FleetServiceStub(self._channels.to(address))
        request = self._client.registration()
        try:
            answer = await stub.Register(
                request, timeout=REGISTER_TIMEOUT_S, metadata=self._channels.metadata
            )
        except grpc.aio.AioRpcError as error:
            raise _refused(error) from error
        await self._client.registered(answer.cluster_id)
        self._client.map_updated(answer.map)
        if answer.HasField("access"):
            self._client.access_updated(answer.access)
        self._period_s = max(answer.heartbeat_period_ms, 1) / 1000.0
        self._connected = True
        _log.info("registered", las=address, map_version=answer.map.version)
        call = stub.Heartbeat(metadata=self._channels.metadata)
        try:
            await first_ended(
                self._send_heartbeats(call),
                self._read_updates(call),
                self._facts.send_all(partial(self._send_reports, stub)),
                self._evidence.send_all(partial(self._send_reports, stub)),
            )
        except CallOver as error:
            raise SessionBroken(str(error)) from error
        except grpc.aio.AioRpcError as error:
            raise _broken(error) from error
        finally:
            call.cancel()

    async def _send_heartbeats(self, call: HeartbeatCall) -> None:
        loop = asyncio.get_running_loop()
        whole_window = True
        due_s = loop.time()
        while True:
            await write_to(call, self._client.heartbeat(whole_window=whole_window))
            whole_window = False
            # From now on if the loop was late: a burst of heartbeats would tell nothing.
            due_s = max(due_s + self._period_s, loop.time())
            await asyncio.sleep(due_s - loop.time())

    async def _read_updates(self, call: HeartbeatCall) -> None:
        silence_s = max(SILENCE_S_MIN, SILENT_PERIODS_MAX * self._period_s)
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    response = await call.read()
            except TimeoutError as error:
                raise SessionBroken(f"no answer to heartbeats for {silence_s} s") from error
            if not isinstance(response, fleet_pb2.HeartbeatResponse):
                raise SessionBroken("the LAS ended the stream")
            if response.HasField("map"):
                self._client.map_updated(response.map)
            if response.HasField("access"):
                self._client.access_updated(response.access)
            self._client.map_current()

    async def _send_reports(
        self, stub: "fleet_pb2_grpc.FleetServiceAsyncStub", reports: Sequence[fleet_pb2.PeerReport]
    ) -> bool:
        """One call; True if it was answered. Raises `AioRpcError` when the session is over."""
        request = fleet_pb2.ReportRequest(boot_id=self._boot_id, reports=reports)
        try:
            await stub.Report(request, timeout=REPORT_TIMEOUT_S, metadata=self._channels.metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                # A commit that takes long; whether the leader hangs is seen by its heartbeats.
                return False
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                # Another version's LAS; repeating them would keep everything else from it.
                _log.error("the LAS does not understand reports", why=error.details())
                return True
            raise
        return True


def _broken(error: grpc.aio.AioRpcError) -> SessionBroken:
    """What a failed call means for the session."""
    refusal = refusal_of_error(error)
    if refusal is not None and reason_of(refusal) is Reason.NOT_LAS_LEADER:
        return NotLeader(refusal.leader)
    return SessionBroken(f"{error.code().name} {error.details() or ''}".strip())


def _refused(error: grpc.aio.AioRpcError) -> DaemonError | SessionBroken:
    """What a failed registration means: some reasons are final."""
    refusal = refusal_of_error(error)
    reason = reason_of(refusal) if refusal is not None else None
    if refusal is not None and reason is Reason.PROCESS_SUPERSEDED:
        return Superseded(f"{refusal.message}: this process ends, start it again")
    if refusal is not None and reason is Reason.LAS_LOST_ITS_PAST:
        return PastLost(refusal.message)
    if refusal is not None and reason in _FINAL_REASONS:
        return RegistrationRefused(f"the LAS refuses this peer: {refusal.message}")
    return _broken(error)

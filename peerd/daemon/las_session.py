"""This peer's line to the LAS: register, heartbeat, map changes down, reports up.

The session finds the leader among the configured LAS nodes, follows `NOT_LAS_LEADER` to the node
that it names, and starts over whenever anything breaks.

Invariants:
- The data path never waits for it: with the LAS down this loop tries on, and nothing else notices
  (G9).
- A report stays here until it was answered. The same fact is kept once, in its newest form.
- What a restart could not mend (wrong cluster, another store id, no right to be a peer) ends the
  process with the LAS's own words; everything else is tried again within a second.

Must not: understand the map or decide anything from it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
import grpc.aio

from las.v1 import fleet_pb2, fleet_pb2_grpc, shard_map_pb2
from peerd.core.errors import Reason
from peerd.daemon.channels import Channels
from peerd.daemon.errors import RegistrationRefused
from peerd.daemon.logging import get_logger
from peerd.transport.concurrency import CallOver, first_ended, write_to
from peerd.transport.status import reason_of, refusal_of_error

# limit: facts that wait for the LAS; more than a peer with 1,000 shards has to tell after a long
# absence. Beyond it new ones are dropped: their owners tell them again while they hold.
REPORTS_MAX = 4_096
# limit: reports of one call, as the contract says
REPORTS_PER_CALL_MAX = 1_024
# limit: samples of one heartbeat, as the contract says
SAMPLES_PER_HEARTBEAT_MAX = 120

REGISTER_TIMEOUT_S = 2.0
REPORT_TIMEOUT_S = 2.0
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

    def map_current(self) -> None:
        """The leader has just said that the map known here is current."""

    def heartbeat(self, *, whole_window: bool) -> fleet_pb2.HeartbeatRequest:
        """The next heartbeat, with the samples since the last one, or with the whole window."""


class SessionBroken(Exception):
    """The session with one LAS node is over: try the next one."""


class NotLeader(SessionBroken):
    """The node does not lead; `leader` is the address of the one that does, "" if unknown."""

    def __init__(self, leader: str) -> None:
        super().__init__("not the leader")
        self.leader = leader


ReportKey = tuple[str | int, ...]
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
        self, addresses: Sequence[str], channels: Channels, client: LasClient, *, boot_id: str
    ) -> None:
        self._addresses = tuple(addresses)
        self._channels = channels
        self._client = client
        self._boot_id = boot_id
        self._reports: dict[ReportKey, fleet_pb2.PeerReport] = {}
        self._reports_waiting = asyncio.Event()
        self._reports_answered = asyncio.Event()
        self._reports_answered.set()
        self._reports_dropped = 0
        self._period_s = 0.5
        self._connected = False

    def report(self, report: fleet_pb2.PeerReport) -> None:
        """Tell the LAS, as soon as it can be reached and until it answers."""
        key = report_key(report)
        if key not in self._reports and len(self._reports) >= REPORTS_MAX:
            self._reports_dropped += 1
            return
        self._reports[key] = report
        self._reports_answered.clear()
        self._reports_waiting.set()

    def statistics(self) -> SessionStatistics:
        """State and counts for metrics."""
        return SessionStatistics(
            connected=self._connected,
            reports_waiting=len(self._reports),
            reports_dropped=self._reports_dropped,
        )

    async def run(self) -> None:
        """Keep a session with the leader, for ever. Raises `RegistrationRefused`."""
        delay_s = RETRY_DELAY_S_MIN
        hint = ""
        while True:
            for address in self._order(hint):
                hint = await self._try(address)
                if self._connected:
                    self._connected, delay_s = False, RETRY_DELAY_S_MIN
                if hint:
                    break
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_DELAY_S_MAX)

    async def _try(self, address: str) -> str:
        """One session with a node, until it breaks; returns the leader's address if it told one."""
        try:
            await self._session(address)
        except NotLeader as error:
            return error.leader if error.leader != address else ""
        except SessionBroken as error:
            # Once a session: while there is no leader, each node would be told of each round.
            if self._connected:
                _log.warning("session with the LAS broke", address=address, why=str(error))
        return ""

    async def flush(self, *, timeout_s: float) -> bool:
        """Wait until every report was answered; False if that took longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._reports_answered.wait()
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
            raise _translated(error) from error
        await self._client.registered(answer.cluster_id)
        self._client.map_updated(answer.map)
        self._period_s = max(answer.heartbeat_period_ms, 1) / 1000.0
        self._connected = True
        _log.info("registered", las=address, map_version=answer.map.version)
        call = stub.Heartbeat(metadata=self._channels.metadata)
        try:
            await first_ended(
                self._send_heartbeats(call), self._read_updates(call), self._send_reports(stub)
            )
        except CallOver as error:
            raise SessionBroken(str(error)) from error
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
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
            self._client.map_current()

    async def _send_reports(self, stub: "fleet_pb2_grpc.FleetServiceAsyncStub") -> None:
        while True:
            await self._reports_waiting.wait()
            self._reports_waiting.clear()
            while self._reports:
                sent = list(self._reports.items())[:REPORTS_PER_CALL_MAX]
                request = fleet_pb2.ReportRequest(
                    boot_id=self._boot_id, reports=[report for _, report in sent]
                )
                try:
                    await stub.Report(
                        request, timeout=REPORT_TIMEOUT_S, metadata=self._channels.metadata
                    )
                except grpc.aio.AioRpcError:
                    self._reports_waiting.set()
                    raise
                for key, report in sent:
                    # A newer form of the fact has come meanwhile if it is another object.
                    if self._reports.get(key) is report:
                        del self._reports[key]
            self._reports_answered.set()


def report_key(report: fleet_pb2.PeerReport) -> ReportKey:
    """What a report is about: a later one with the same key replaces it."""
    kind = report.WhichOneof("kind") or ""
    fact = getattr(report, kind)
    match kind:
        case "segment_opened" | "holder_added" | "holder_lost" | "higher_promise":
            return (kind, fact.shard, fact.epoch)
        case "declined":
            return (kind, fact.shard, fact.prepared)
        case "stall":
            return (kind, fact.shard, fact.epoch, fact.voter.peer, fact.voter.store_id)
        case "suspect":
            return (kind, fact.peer, fact.boot_id, fact.connection_refused)
        case _:
            return (kind,)


def _translated(error: grpc.aio.AioRpcError) -> Exception:
    """The error that decides what happens next."""
    refusal = refusal_of_error(error)
    if refusal is not None and reason_of(refusal) is Reason.NOT_LAS_LEADER:
        return NotLeader(refusal.leader)
    if refusal is not None and reason_of(refusal) in _FINAL_REASONS:
        return RegistrationRefused(f"the LAS refuses this peer: {refusal.message}")
    return SessionBroken(f"{error.code().name}: {error.details()}")

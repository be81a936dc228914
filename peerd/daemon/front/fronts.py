"""The sequencer's side of its front workers: their processes, and the appends that they bring.

Correctness. An append of a worker is one more append of the host:

- It is given to `ShardHost.append` once for each `APPEND`, in the order of the socket, and its one
  outcome is sent back under the same number. When the worker has ended meanwhile, the outcome is
  dropped: the client's connection broke with the worker, so that nobody was told anything else.
- Unanswered bytes are taken from the budget of the whole peer before and given back with the
  outcome, whether the worker still lives or not.
- A worker that sends what no worker sends, does not read, or gives no sign of life is killed; what
  it holds is then as after a crash of it.

Invariants:
- A worker's process never outlives `run`; its port is not shared with another peer (`ClientPort`).
- A worker that ends is started again, with growing pauses, as long as the peer serves.

Must not: look into an append, or decide anything about it.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from google.protobuf.message import DecodeError

from peerd.core.access import AccessTable
from peerd.core.effects import AppendAccepted
from peerd.core.errors import Reason, Refusal
from peerd.core.ids import ProcessId
from peerd.daemon.config import PeerdConfig
from peerd.daemon.errors import CannotStart
from peerd.daemon.front.connection import Connection
from peerd.daemon.front.frames import (
    FrameMalformed,
    Kind,
    Settings,
    decode_append,
    decode_number,
    encode_accepted,
    encode_number,
    encode_refused,
    encode_settings,
    frame,
)
from peerd.daemon.front.port import ClientPort
from peerd.daemon.logging import get_logger
from peerd.daemon.supervisor import Supervisor
from peerd.internal.v1.front_pb2 import FrontRefusedCalls
from peerd.transport.access import Access, decode_refused, encode_access
from peerd.transport.host_api import AppendHost, AppendOutcome
from peerd.transport.limits import RETRY_AFTER_MS, ByteBudget
from peerd.transport.map_cache import MapCache, MapChange

MODULE = "peerd.daemon.front.worker"
# Pause before a worker that ended is started again. Seconds.
RESTART_WAIT_S_MIN = 0.1
# limit: seconds to which that pause doubles; a start takes the cores for seconds, so that one which
# fails each time must not be tried all the time
RESTART_WAIT_S_MAX = 5.0
# A worker that lived so long did not end for a reason that it met at its start. Seconds.
STEADY_S = 10.0
# A worker imports what a peer does, some 2 s on a quiet core; several at once on few cores take
# many times that. Seconds.
START_TIMEOUT_S = 120.0
# Between two looks at the workers, each of which should have given a sign of life since. Seconds.
LOOK_INTERVAL_S = 1.0
# limit: looks without a sign of life after which a worker is taken for hung; a busy machine delays
# one by seconds, and a worker that is killed breaks its clients' connections
SILENT_LOOKS_MAX = 30

_log = get_logger("front")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontStatistics:
    """Counts of one worker since the peer started; `cpu_s` of its present process."""

    worker: int
    up: bool
    starts: int
    appends: int
    unanswered_bytes: int
    cpu_s: float


class Link:
    """The connection to one process of a worker, and the appends that came by it."""

    def __init__(
        self,
        host: AppendHost,
        budget: ByteBudget,
        access: Access,
        *,
        serves: Callable[[], None],
        ended: Callable[[str], None],
    ) -> None:
        """`serves` is called when the worker does, `ended` with one line when it is over."""
        self.serving = False
        self.appends = 0
        self.unanswered_bytes = 0
        self.cpu_us = 0
        self.silent_looks = 0
        self.map_version = 0
        self._host = host
        self._budget = budget
        self._access = access
        self._serves = serves
        self._ended = ended
        self._connection: Connection | None = None

    async def open_on(self, end: socket.socket) -> None:
        """Use the socket `end`, and own it."""
        self._connection = await Connection.open_on(end, self._take, self._ended)

    def send(self, whole: bytes) -> None:
        """Send a frame, if there is anybody to read it."""
        if self._connection is not None:
            self._connection.send(whole)

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()

    def send_map(self, cache: MapCache) -> None:
        """Send what the worker does not know yet."""
        for update in cache.updates_since(self.map_version):
            self.send(frame(Kind.MAP, update.SerializeToString()))
        self.map_version = cache.version

    def send_access(self, table: AccessTable) -> None:
        """Send who may do what. A worker is sent it first of all: it serves nobody without it."""
        self.send(frame(Kind.ACCESS, encode_access(table).SerializeToString()))

    def _take(self, kind: Kind, body: memoryview) -> None:
        """One frame of the worker."""
        if kind is Kind.APPEND:
            self._append(body)
        elif kind is Kind.PULSE:
            self.silent_looks = 0
            self.cpu_us = decode_number(body)
        elif kind is Kind.SERVING:
            self.serving = True
            self._serves()
        elif kind is Kind.REFUSED_CALLS:
            self._refused_calls(body)
        else:
            raise FrameMalformed(f"a worker sent {kind.name}")

    def _refused_calls(self, body: memoryview) -> None:
        try:
            told = FrontRefusedCalls.FromString(bytes(body))
        except DecodeError as error:
            raise FrameMalformed(f"refused calls: {error}") from error
        for call in told.refused:
            self._access.refused.add(decode_refused(call))

    def _append(self, body: memoryview) -> None:
        append = decode_append(body)
        size = len(append.payload)
        self.appends += 1
        if not self._budget.take(size):
            self.send(encode_refused(append.request, _overloaded(self._budget)))
            return
        self.unanswered_bytes += size
        self._host.append(
            append.shard,
            append.header,
            append.payload,
            append.expected_offset,
            partial(self._done, append.request, size),
        )

    def _done(self, request: int, size: int, outcome: AppendOutcome) -> None:
        """Called by the host, once, also after the worker has ended."""
        self._budget.give(size)
        self.unanswered_bytes -= size
        if isinstance(outcome, AppendAccepted):
            self.send(encode_accepted(request, outcome))
        else:
            self.send(encode_refused(request, outcome))


def _overloaded(budget: ByteBudget) -> Refusal:
    return Refusal(
        reason=Reason.OVERLOADED,
        message=f"{budget.used_bytes} of {budget.bytes_max} bytes of {budget.whose} are "
        f"unanswered: wait {RETRY_AFTER_MS} ms and send it again",
        retry_after_ms=RETRY_AFTER_MS,
    )


class Front:
    """One worker: its process, again and again."""

    def __init__(
        self, settings: Settings, host: AppendHost, budget: ByteBudget, access: Access
    ) -> None:
        """`host` takes its appends, while `budget` has room for them."""
        self.settings = settings
        self.link: Link | None = None
        self.starts = 0
        self.appends_before = 0
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._host = host
        self._budget = budget
        self._access = access
        self._process: asyncio.subprocess.Process | None = None
        self.is_stopping = False

    async def run(self, map_cache: MapCache) -> None:
        """Keep a process of the worker running until the stop, or until this is cancelled."""
        loop = asyncio.get_running_loop()
        wait_s = RESTART_WAIT_S_MIN
        while True:
            began_s = loop.time()
            status = await self._run_once(map_cache)
            if self.is_stopping:
                return
            _log.error("worker ended", worker=self.settings.worker, status=status)
            if not self.first.done():
                number = self.settings.worker
                message = f"front worker {number} ended with status {status} before it served"
                self.first.set_exception(CannotStart(f"{message}: its last log line says why"))
            if loop.time() - began_s > STEADY_S:
                wait_s = RESTART_WAIT_S_MIN
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, RESTART_WAIT_S_MAX)

    async def _run_once(self, map_cache: MapCache) -> int:
        """One life of the process; returns its exit status."""
        link = Link(self._host, self._budget, self._access, serves=self._serves, ended=self.kill)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            descriptor = theirs.fileno()
            command = (sys.executable, "-m", MODULE, str(descriptor), str(os.getpid()))
            self._process = process = await asyncio.create_subprocess_exec(
                *command, pass_fds=(descriptor,), stdin=asyncio.subprocess.DEVNULL
            )
            await link.open_on(ours.dup())
        self.starts += 1
        try:
            link.send_access(self._access.table)
            link.send(encode_settings(self.settings))
            link.send_map(map_cache)
            # From here on it hears each change, and none before: what is, comes first.
            self.link = link
            return await process.wait()
        finally:
            # Also where this is cancelled: a process must not be left behind.
            if process.returncode is None:
                process.kill()
            self.link = None
            self.appends_before += link.appends
            link.close()

    def _serves(self) -> None:
        if not self.first.done():
            self.first.set_result(None)

    def kill(self, why: str) -> None:
        """End the present process, which is not as it should be, or gone already."""
        process = self._process
        if process is not None and process.returncode is None and not self.is_stopping:
            _log.error("link to a worker is over", worker=self.settings.worker, why=why)
            process.kill()

    async def stop(self, timeout_s: float) -> None:
        """Have the process end by itself within the time, or kill it."""
        self.is_stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        if self.link is not None:
            self.link.send(frame(Kind.STOP))
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            _log.error("worker does not stop", worker=self.settings.worker)
            process.kill()
            await process.wait()

    def statistics(self) -> FrontStatistics:
        """Counts, now."""
        link = self.link
        return FrontStatistics(
            worker=self.settings.worker,
            up=link is not None and link.serving,
            starts=self.starts,
            appends=self.appends_before + (0 if link is None else link.appends),
            unanswered_bytes=0 if link is None else link.unanswered_bytes,
            cpu_s=0.0 if link is None else link.cpu_us / 1_000_000,
        )


class Fronts:
    """All workers of one peer. Made where the ports are bound, started when all else serves."""

    def __init__(self, config: PeerdConfig) -> None:
        """Take the client port.

        Raises:
            PortInUse: another process has it.
        """
        self._config = config
        self._port = ClientPort(config.client_listen)
        self._fronts: tuple[Front, ...] = ()
        self._unsubscribe: Callable[[], None] | None = None

    @property
    def port(self) -> int:
        """The client port."""
        return self._port.port

    async def start(
        self,
        *,
        sequencer: ProcessId,
        host: AppendHost,
        budget: ByteBudget,
        map_cache: MapCache,
        access: Access,
        supervisor: Supervisor,
    ) -> None:
        """Start every worker, and return when all serve.

        Raises:
            CannotStart: one of them does not.
        """
        config = self._config.model_dump_json()
        self._fronts = tuple(
            Front(
                Settings(
                    worker=number,
                    listen=self._port.address,
                    sequencer=sequencer,
                    config=config,
                ),
                host,
                budget,
                access,
            )
            for number in range(1, self._config.workers + 1)
        )
        self._unsubscribe = map_cache.subscribe(partial(self._map_changed, map_cache))
        access.subscribe(self._access_changed)
        for front in self._fronts:
            name = f"front worker {front.settings.worker}"
            supervisor.spawn(name, front.run(map_cache))
        supervisor.start("look at the front workers", self._look(map_cache))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await asyncio.gather(*(front.first for front in self._fronts))
        except TimeoutError:
            raise CannotStart(f"workers: not all serve after {START_TIMEOUT_S:.0f} s") from None

    def _map_changed(self, map_cache: MapCache, _change: MapChange) -> None:
        for link in self._links():
            link.send_map(map_cache)

    def _access_changed(self, table: AccessTable) -> None:
        for link in self._links():
            link.send_access(table)

    def _links(self) -> list[Link]:
        return [front.link for front in self._fronts if front.link is not None]

    async def _look(self, map_cache: MapCache) -> None:
        """Tell the workers how old the map is, and end those that hang."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            for link in self._links():
                link.send(encode_number(Kind.MAP_AGE, map_cache.age_ms))
            for front in self._fronts:
                if front.link is None or not front.link.serving:
                    continue
                front.link.silent_looks += 1
                if front.link.silent_looks > SILENT_LOOKS_MAX:
                    front.kill(f"no sign of life for {SILENT_LOOKS_MAX} s")

    async def stop(self, timeout_s: float) -> None:
        """End every worker, and let go of the port."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        await asyncio.gather(*(front.stop(timeout_s) for front in self._fronts))
        self._port.close()

    def statistics(self) -> list[FrontStatistics]:
        """Counts of each, now."""
        return [front.statistics() for front in self._fronts]

"""A front worker as a process: `python -m peerd.daemon.front.worker FD`, started by a sequencer.

It takes clients' calls on the port that it shares with the other workers, and gives the appends to
the sequencer at the other end of `FD`, an inherited socket (docs/architecture.md).

Invariants:
- It never serves without its sequencer: when the socket ends, so does the process, at once and
  with whatever was unanswered. It is killed with its parent, too, so that one that hangs does not
  keep the port.
- A receipt leaves only for an answer of the sequencer (`peerd.daemon.front.host`).
- Signals that reach the whole group (SIGTERM, SIGINT) do nothing: the sequencer answers first, and
  then says when to stop.
"""

import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import NoReturn

from peerd.grpc_core import EXPERIMENTS

# As in `peerd.cli.peerd`, before grpc is imported: this process never forks.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_EXPERIMENTS", EXPERIMENTS)

import grpc.aio
import uvloop
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health

from las.v1 import access_pb2, shard_map_pb2
from peerd.allocator import keep_freed_memory
from peerd.core.access import NO_ACCESS_TABLE, AccessTable
from peerd.core.check import InvariantViolation
from peerd.daemon.certificates import daemon_credentials
from peerd.daemon.config import ConfigError, PeerdConfig, verify_identity
from peerd.daemon.cores import CoreWatch
from peerd.daemon.errors import (
    EXIT_BUG,
    EXIT_CANNOT_START,
    EXIT_FAILED,
    EXIT_OK,
    DaemonError,
)
from peerd.daemon.front.connection import Connection
from peerd.daemon.front.frames import (
    FrameMalformed,
    Kind,
    Settings,
    decode_number,
    decode_settings,
    encode_number,
    frame,
)
from peerd.daemon.front.host import SequencerAppends
from peerd.daemon.front.nothing import NothingHere
from peerd.daemon.las_door import LasDoor
from peerd.daemon.logging import configure_logging, get_logger
from peerd.daemon.ports import bind_grpc
from peerd.daemon.services import CLIENT_SERVICES, add_client_services, edge_limits
from peerd.internal.v1.front_pb2 import FrontRefusedCalls
from peerd.transport.access import Access, AccessMalformed, decode_access, encode_refused
from peerd.transport.authz import AuthorizationInterceptor
from peerd.transport.caller_limits import CallerUse
from peerd.transport.channels import Channels
from peerd.transport.log_service import LogService
from peerd.transport.map_cache import MapCache, MapForeign
from peerd.transport.map_codec import MapMalformed
from peerd.transport.options import FRONT_SERVER_OPTIONS
from peerd.transport.refused_calls import RefusedCall, RefusedCalls
from peerd.transport.tls import plaintext_metadata
from peerd.transport.typed_errors import TypedErrors
from peerd.transport.waiting import wait_for

# Between two signs of life. Seconds.
PULSE_INTERVAL_S = 1.0
# How long calls under way may take to end at a stop; no append is among them. Seconds.
CALLS_TIMEOUT_S = 0.5
_PR_SET_PDEATHSIG = 1

_log = get_logger("worker")


class Worker:
    """Takes frames from the beginning, and calls from `serve` on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._map_cache = MapCache(lambda: int(time.monotonic() * 1000))
        self._settings: asyncio.Future[Settings] = self._loop.create_future()
        self._appends: SequencerAppends | None = None
        self._table = NO_ACCESS_TABLE
        self._access: Access | None = None
        self._refused = RefusedCalls(self._tell_refused)
        self._connection: Connection | None = None
        self._stop = asyncio.Event()

    async def run(self, end: socket.socket) -> int:
        """Serve over `end` until told to stop; returns the exit status.

        Raises:
            ConfigError, DaemonError: it could not start; one line each.
        """
        self._connection = connection = await Connection.open_on(end, self._take, _end)
        settings = await self._settings
        config = PeerdConfig.model_validate_json(settings.config)
        configure_logging(peer=config.name, worker=str(settings.worker))
        self._appends = SequencerAppends(settings.sequencer, self._map_cache, self._loop.time)
        self._appends.connect(connection)
        self._access = access = Access(
            config.cluster, plaintext=config.tls is None, refused=self._refused
        )
        access.take(self._table)
        identity, credentials = verify_identity(config), daemon_credentials(config)
        channels = Channels(
            credentials, plaintext_metadata(identity) if credentials is None else ()
        )
        log_service = LogService(
            NothingHere(settings.sequencer, settings.worker),
            self._map_cache,
            channels,
            edge_limits(config, processes=config.workers),
            LasDoor(config.las, channels),
            append_host=self._appends,
            cores_are_scarce=CoreWatch().are_scarce,
            access=access,
            use=CallerUse(config.limits.of_callers(), self._refused),
        )
        health_servicer = health.HealthServicer()
        server = _server(config, access)
        add_client_services(server, log_service, self._map_cache, health_servicer)
        bind_grpc(server, settings.listen, credentials)
        await server.start()
        for service in ("", *CLIENT_SERVICES):
            await health_servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
        gc.collect()
        gc.freeze()
        connection.send(frame(Kind.SERVING))
        _log.info("serving", address=settings.listen)
        await self._pulse_until_stop(connection)
        await health_servicer.enter_graceful_shutdown()
        log_service.close()
        await server.stop(CALLS_TIMEOUT_S)
        await channels.close()
        connection.close()
        return EXIT_OK

    async def _pulse_until_stop(self, connection: Connection) -> None:
        while not self._stop.is_set():
            connection.send(encode_number(Kind.PULSE, time.process_time_ns() // 1000))
            self._refused.look()
            await wait_for(self._stop, PULSE_INTERVAL_S)

    def _take(self, kind: Kind, body: memoryview) -> None:
        """One frame of the sequencer."""
        if kind is Kind.SETTINGS and not self._settings.done():
            self._settings.set_result(decode_settings(body))
        elif kind in {Kind.ACCEPTED, Kind.REFUSED} and self._appends is not None:
            self._appends.answered(kind, body)
        elif kind is Kind.MAP:
            self._apply(body)
        elif kind is Kind.ACCESS:
            self._table = _table(body)
            if self._access is not None:
                self._access.take(self._table)
        elif kind is Kind.MAP_AGE:
            self._map_cache.heard_current(decode_number(body))
        elif kind is Kind.STOP:
            self._stop.set()
        else:
            raise FrameMalformed(f"{kind.name} came where none belongs")

    def _tell_refused(self, call: RefusedCall) -> None:
        """The sequencer joins what its workers refuse, counts it and tells it on."""
        if self._connection is not None:
            told = FrontRefusedCalls(refused=[encode_refused(call)])
            self._connection.send(frame(Kind.REFUSED_CALLS, told.SerializeToString()))

    def _apply(self, body: memoryview) -> None:
        try:
            self._map_cache.apply(shard_map_pb2.MapUpdate.FromString(bytes(body)))
        except (DecodeError, MapForeign, MapMalformed) as error:
            raise FrameMalformed(f"the sequencer's map: {error}") from error


def _table(body: memoryview) -> AccessTable:
    try:
        return decode_access(access_pb2.AccessTable.FromString(bytes(body)))
    except (DecodeError, AccessMalformed) as error:
        raise FrameMalformed(f"the sequencer's access table: {error}") from error


def _server(config: PeerdConfig, access: Access) -> grpc.aio.Server:
    plaintext = config.tls is None
    return grpc.aio.server(
        options=config.server_options(FRONT_SERVER_OPTIONS),
        interceptors=[
            AuthorizationInterceptor(config.cluster, plaintext=plaintext, guard=access),
            TypedErrors(_on_bug),
        ],
    )


def _end(why: str) -> NoReturn:
    """The sequencer is gone, or one of the two is not what the other takes it for."""
    _log.error("ending at once", why=why)
    os._exit(EXIT_FAILED)


def _on_bug(error: Exception) -> None:
    """A broken invariant ends the process; other bugs are told where they were met."""
    if isinstance(error, InvariantViolation):
        _log.critical("ending at once", why=str(error))
        os._exit(EXIT_BUG)


def _close_others(descriptor: int) -> None:
    """Close what was inherited beside the standard streams and `descriptor`: the loop that starts
    processes hands down whatever is not marked otherwise, such as the store's file.
    """
    highest = max(int(path.name) for path in Path("/dev/fd").iterdir())
    os.closerange(sys.stderr.fileno() + 1, descriptor)
    os.closerange(descriptor + 1, highest + 1)


def _die_with(parent: int) -> None:
    """Be killed when the process `parent` ends, which started this one; Linux alone knows how."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(EXIT_FAILED)


async def _serve(end: socket.socket) -> int:
    return await Worker().run(end)


def main() -> int:
    """Entry point: the arguments are the descriptor of the socket and the sequencer's pid."""
    descriptor, parent = map(int, sys.argv[1:])
    _close_others(descriptor)
    configure_logging()
    _die_with(parent)
    keep_freed_memory()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(_serve(socket.socket(fileno=descriptor)))
        except (ConfigError, DaemonError) as error:
            _log.critical("cannot serve", why=str(error))
            return EXIT_CANNOT_START


if __name__ == "__main__":
    sys.exit(main())

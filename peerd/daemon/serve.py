"""The peer as a process: what `peerd serve` runs.

Exit statuses are stable (`peerd.daemon.errors`): 0 stopped as asked, 1 something else failed, 2 it
cannot start as it is configured, 70 a broken invariant, 74 the storage failed.

Invariants:
- SIGTERM and SIGINT stop gracefully, once; a second one ends the process at once.
- What a person reads on a failure is one line; what was logged is JSON lines on stderr.
- After a broken invariant nothing is cleaned up: the process ends as by a crash, which the protocol
  survives, while going on is what it might not.
"""

import asyncio
import gc
import json
import os
import signal
from pathlib import Path

import uvloop

from peerd.allocator import keep_freed_memory
from peerd.daemon.config import PeerdConfig
from peerd.daemon.errors import EXIT_BUG, EXIT_OK, BrokenInvariant, DaemonError
from peerd.daemon.logging import get_logger
from peerd.daemon.peer import Peer
from peerd.storage.directory import write_file_durably

# A stop that takes longer than all its bounds together hangs in something that cannot be stopped,
# such as a disk that does not answer. Seconds, beyond the configured shutdown time.
STOP_TIMEOUT_S = 15.0

_log = get_logger("serve")


def serve(config: PeerdConfig, ready_file: Path | None = None) -> int:
    """Run a peer until it is told to stop; returns the exit status.

    Args:
        config: Its settings.
        ready_file: Written as JSON {"pid", "address", "http", "clients"} once the peer serves;
            "clients" is the address of its front workers, null without them.

    Raises:
        ConfigError, DaemonError: it could not start, or could not go on; one line each.
    """
    keep_freed_memory()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config, ready_file))


async def _serve(config: PeerdConfig, ready_file: Path | None) -> int:
    loop = asyncio.get_running_loop()
    stop_asked = asyncio.Event()

    def ask_to_stop(number: signal.Signals) -> None:
        if stop_asked.is_set():
            _log.warning("second signal: ending at once", signal=number.name)
            os._exit(128 + number)
        _log.info("stopping", signal=number.name)
        stop_asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask_to_stop, number)
    peer = await Peer.start(config)
    # What lives as long as the process need not be looked at by each collection.
    gc.collect()
    gc.freeze()
    if ready_file is not None:
        await asyncio.to_thread(_write_ready, ready_file, peer)
    failure = await _until_end(peer, stop_asked)
    if isinstance(failure, BrokenInvariant):
        _log.critical("ending at once", why=str(failure))
        os._exit(EXIT_BUG)
    try:
        async with asyncio.timeout(config.shutdown_timeout_ms / 1000 + STOP_TIMEOUT_S):
            await peer.stop()
    except TimeoutError:
        _log.error("the stop takes too long: ending at once")
        os._exit(EXIT_OK if failure is None else failure.exit_status)
    if failure is not None:
        raise failure
    _log.info("stopped")
    return EXIT_OK


async def _until_end(peer: Peer, stop_asked: asyncio.Event) -> DaemonError | None:
    """Wait for a signal (None) or for what ended the peer."""
    ended = asyncio.ensure_future(peer.ended())
    asked = asyncio.ensure_future(stop_asked.wait())
    try:
        await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
        return ended.result() if ended.done() else None
    finally:
        ended.cancel()
        asked.cancel()


def _write_ready(path: Path, peer: Peer) -> None:
    content = {
        "pid": os.getpid(),
        "address": peer.address,
        "http": peer.http_address,
        "clients": peer.client_address,
    }
    write_file_durably(path, json.dumps(content).encode() + b"\n")

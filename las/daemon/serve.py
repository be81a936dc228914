"""The LAS node as a process: `las serve`.

Exit statuses are those of every daemon (`peerd.daemon.errors`): 0 stopped as asked, 1 something
failed, 2 it cannot start as it is configured, 70 going on could lose a command.

Invariants:
- SIGTERM and SIGINT stop gracefully, once; a second one ends the process at once.
- A store is never made here: an empty directory is refused, since a wiped one would come back as a
  member that has forgotten its votes (`las.daemon.directory` makes them).
"""

import asyncio
import gc
import json
import os
import signal
from pathlib import Path

import uvloop

from las.daemon.config import LasConfig
from las.daemon.node import LasNode
from peerd.daemon.errors import EXIT_OK, DaemonError
from peerd.daemon.logging import get_logger
from peerd.storage.directory import write_file_durably

# A stop that takes longer than its bounds together hangs in something that cannot be stopped, such
# as a disk that does not answer. Seconds, beyond the configured shutdown time.
STOP_TIMEOUT_S = 15.0

_log = get_logger("serve")


def serve(config: LasConfig, ready_file: Path | None = None) -> int:
    """Run a LAS node until it is told to stop; returns the exit status.

    Args:
        config: Its settings.
        ready_file: Written as JSON {"pid", "address", "http"} once the node serves.

    Raises:
        ConfigError, DaemonError: it could not start, or could not go on; one line each.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config, ready_file))


async def _serve(config: LasConfig, ready_file: Path | None) -> int:
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
    node = await LasNode.start(config)
    # What lives as long as the process need not be looked at by each collection.
    gc.collect()
    gc.freeze()
    if ready_file is not None:
        await asyncio.to_thread(_write_ready, ready_file, node)
    failure = await _until_end(node, stop_asked)
    try:
        async with asyncio.timeout(config.shutdown_timeout_ms / 1000 + STOP_TIMEOUT_S):
            await node.stop()
    except TimeoutError:
        _log.error("the stop takes too long: ending at once")
        os._exit(EXIT_OK if failure is None else failure.exit_status)
    if failure is not None:
        raise failure
    _log.info("stopped")
    return EXIT_OK


async def _until_end(node: LasNode, stop_asked: asyncio.Event) -> DaemonError | None:
    """Wait for a signal (None) or for what ended the node."""
    ended = asyncio.ensure_future(node.ended())
    asked = asyncio.ensure_future(stop_asked.wait())
    try:
        await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
        return ended.result() if ended.done() else None
    finally:
        ended.cancel()
        asked.cancel()


def _write_ready(path: Path, node: LasNode) -> None:
    content = {"pid": os.getpid(), "address": node.address, "http": node.http_address}
    write_file_durably(path, json.dumps(content).encode() + b"\n")

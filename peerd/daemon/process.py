"""A daemon as a process, from its start to its exit status: what `peerd serve` and `las serve` do.

Exit statuses are stable (`peerd.daemon.errors`): 0 stopped as asked, 1 something else failed, 2 it
cannot start as it is configured, 70 a broken invariant, 74 the storage failed.

Invariants:
- SIGTERM and SIGINT stop gracefully, once; a second one ends the process at once.
- What a person reads on a failure is one line; what was logged is JSON lines on stderr.
- After a broken invariant nothing is cleaned up: the process ends as by a crash, which the protocol
  survives, while going on is what it might not.
- SIGHUP reads the settings again. They are taken as a whole or not at all: wrong ones, and those
  that would need a restart, are named in the log and change nothing.
- systemd is told that it serves after the ready file is there, and that it stops before it begins.
"""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import uvloop

from peerd.daemon.errors import EXIT_BUG, EXIT_OK, BrokenInvariant, DaemonError
from peerd.daemon.logging import get_logger
from peerd.daemon.systemd import TOLD_ONCE_WAIT_S, ServiceManager
from peerd.garbage import settle_garbage
from peerd.settings import ConfigError, Section, changed_keys
from peerd.storage.directory import write_file_durably

# A stop that takes longer than all its bounds together hangs in something that cannot be stopped,
# such as a disk that does not answer. Seconds, beyond the configured shutdown time.
STOP_TIMEOUT_S = 15.0

_log = get_logger("serve")


class Daemon(Protocol):
    """A peer or a LAS node that serves. What `RELOADABLE` names may change meanwhile: keys, or
    whole sections by their dot.
    """

    RELOADABLE: ClassVar[tuple[str, ...]]

    @property
    def config(self) -> Any:
        """Its settings in use."""

    def take_config(self, config: Any) -> None:
        """Use these settings from now on; what differs is reloadable."""

    async def ended(self) -> DaemonError:
        """What ends it, when it does."""

    async def stop(self) -> None:
        """End it gracefully, within its shutdown time."""

    def where(self) -> dict[str, str | None]:
        """Its addresses, for the ready file."""


def run(
    start: Callable[[], Awaitable[Daemon]],
    *,
    read_again: Callable[[], Section],
    shutdown_timeout_ms: int,
    ready_file: Path | None,
) -> int:
    """Run a daemon until it is told to stop; returns the exit status.

    Args:
        start: Starts it; it serves when this returns.
        read_again: Reads its settings once more, as it did before.
        shutdown_timeout_ms: How long `stop` may take.
        ready_file: Written as JSON, {"pid"} and what `where` says, once it serves.

    Raises:
        ConfigError, DaemonError: it could not start, or could not go on; one line each.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stop_timeout_s = shutdown_timeout_ms / 1000 + STOP_TIMEOUT_S
        return runner.run(_run(start, read_again, stop_timeout_s, ready_file))


async def _run(
    start: Callable[[], Awaitable[Daemon]],
    read_again: Callable[[], Section],
    stop_timeout_s: float,
    ready_file: Path | None,
) -> int:
    stop_asked = _stop_on_signals()
    manager = ServiceManager()
    # Not before there is something to tell, and not the end of the process either.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    daemon = await start()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload, daemon, read_again)
    settle_garbage()
    if ready_file is not None:
        content = json.dumps({"pid": os.getpid(), **daemon.where()}).encode() + b"\n"
        await asyncio.to_thread(write_file_durably, ready_file, content)
    serving = f"STATUS=serving at {daemon.where()['address']}"
    manager.tell("READY=1", serving, wait_s=TOLD_ONCE_WAIT_S)
    watchdog = asyncio.create_task(manager.keep_watchdog())
    failure = await _until_end(daemon, stop_asked)
    stopping = "STATUS=stopping" if failure is None else f"STATUS={failure}"
    manager.tell("STOPPING=1", stopping, wait_s=TOLD_ONCE_WAIT_S)
    if isinstance(failure, BrokenInvariant):
        _log.critical("ending at once", why=str(failure))
        os._exit(EXIT_BUG)
    try:
        async with asyncio.timeout(stop_timeout_s):
            await daemon.stop()
    except TimeoutError:
        _log.error("the stop takes too long: ending at once")
        os._exit(EXIT_OK if failure is None else failure.exit_status)
    watchdog.cancel()
    if failure is not None:
        raise failure
    _log.info("stopped")
    return EXIT_OK


def reload(daemon: Daemon, read_again: Callable[[], Section]) -> None:
    """Have a daemon take what changed in its settings, or say why it does not."""
    try:
        settings = read_again()
    except ConfigError as error:
        _log.error("not reloaded", why=str(error))
        return
    changed = changed_keys(daemon.config, settings)
    fixed = [key for key in changed if not key.startswith(daemon.RELOADABLE)]
    if fixed:
        _log.error("not reloaded", why="these need a restart; nothing was changed", keys=fixed)
        return
    daemon.take_config(settings)
    _log.info("reloaded", keys=changed)


def _stop_on_signals() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets."""
    stop_asked = asyncio.Event()

    def ask_to_stop(number: signal.Signals) -> None:
        if stop_asked.is_set():
            _log.warning("second signal: ending at once", signal=number.name)
            os._exit(128 + number)
        _log.info("stopping", signal=number.name)
        stop_asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ask_to_stop, number)
    return stop_asked


async def _until_end(daemon: Daemon, stop_asked: asyncio.Event) -> DaemonError | None:
    """Wait for a signal (None) or for what ended the daemon."""
    ended = asyncio.ensure_future(daemon.ended())
    asked = asyncio.ensure_future(stop_asked.wait())
    try:
        await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
        return ended.result() if ended.done() else None
    finally:
        ended.cancel()
        asked.cancel()

"""The peer as a process: what `peerd serve` runs; see `peerd.daemon.process`."""

from collections.abc import Callable
from pathlib import Path

from peerd.allocator import keep_freed_memory
from peerd.daemon import process
from peerd.daemon.config import PeerdConfig
from peerd.daemon.peer import Peer


def serve(
    config: PeerdConfig, read_again: Callable[[], PeerdConfig], ready_file: Path | None = None
) -> int:
    """Run a peer until it is told to stop; returns the exit status.

    Args:
        config: Its settings.
        read_again: Reads them once more, on SIGHUP; raises `ConfigError`.
        ready_file: Written as JSON {"pid", "address", "http", "clients"} once the peer serves;
            "clients" is the address of its front workers, null without them.

    Raises:
        ConfigError, DaemonError: it could not start, or could not go on; one line each.
    """
    keep_freed_memory()
    return process.run(
        lambda: Peer.start(config),
        read_again=read_again,
        shutdown_timeout_ms=config.shutdown_timeout_ms,
        ready_file=ready_file,
    )

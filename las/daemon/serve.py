"""The LAS node as a process: what `las serve` runs; see `peerd.daemon.process`.

A store is never made here: an empty directory is refused, since a wiped one would come back as a
member that has forgotten its votes (`las.daemon.directory` makes them). The exit status 70 says
that going on could lose a command.
"""

from collections.abc import Callable
from pathlib import Path

from las.daemon.config import LasConfig
from las.daemon.node import LasNode
from peerd.daemon import process


def serve(
    config: LasConfig, read_again: Callable[[], LasConfig], ready_file: Path | None = None
) -> int:
    """Run a LAS node until it is told to stop; returns the exit status.

    Args:
        config: Its settings.
        read_again: Reads them once more, on SIGHUP; raises `ConfigError`.
        ready_file: Written as JSON {"pid", "address", "http"} once the node serves.

    Raises:
        ConfigError, DaemonError: it could not start, or could not go on; one line each.
    """
    return process.run(
        lambda: LasNode.start(config),
        read_again=read_again,
        shutdown_timeout_ms=config.shutdown_timeout_ms,
        ready_file=ready_file,
    )

"""Log lines of a daemon: one JSON object a line on stderr, also from the libraries below.

Invariants:
- A line has `time` (UTC), `level`, `event` and named facts; never a free text that hides facts.
- An unexpected exception is one field (`exception`) of one line.

Must not: carry what a metric or a typed error says better, or a line per append.
"""

import logging
import sys
from typing import TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger, Processor

__all__ = ["configure_logging", "get_logger"]


def configure_logging(*, level: str = "info", stream: TextIO | None = None, **facts: str) -> None:
    """Send all log lines of this process to `stream` (stderr), each with `facts` (`peer="…"`)."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        lambda _logger, _method, event: {**facts, **event},
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def get_logger(name: str) -> FilteringBoundLogger:
    """The logger of one part of the daemon."""
    return cast("FilteringBoundLogger", structlog.stdlib.get_logger(name))

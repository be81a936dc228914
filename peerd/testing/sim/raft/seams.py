"""Where the library has no seam, virtual time is put into it from outside, for as long as a call.

pysyncobj reads the time by one name of one module. While a member is called, that name is the
member's own clock; afterwards it is what it was. Its other sources of chance are ours already: the
timeouts (`las.raft.library` draws them from a seeded generator), the order of sets of members
(`Member` has a hash of its own), threads, sockets and files (it has none).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pysyncobj.syncobj


@contextmanager
def time_is(clock_s: Callable[[], float]) -> Iterator[None]:
    """The library reads `clock_s` inside."""
    module = pysyncobj.syncobj
    real = module.monotonicTime
    module.monotonicTime = clock_s
    try:
        yield
    finally:
        module.monotonicTime = real


@contextmanager
def quiet() -> Iterator[None]:
    """Faults are expected inside: nobody wants to read of each in a log."""
    loggers = [logging.getLogger(name) for name in ("las.raft", "pysyncobj")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

"""What processes of this project ask of the C library's allocator, if it is glibc's.

A batch of 256 KiB becomes a message, bytes on a connection, and free memory again. As it is set up
by default, glibc gives such blocks back to the kernel as soon as they are free and asks for them
again for the next batch: each time 64 pages that the kernel has to find and clear, which takes ten
times as long as to copy the batch. Memory that was needed once is kept instead, up to a bound.

Measured per batch of 256 KiB that is read from the store, made a message and serialized: 1,020 µs
by default, 220 µs with what is set here.

glibc gives threads arenas of their own, eight for each core, and what is free in one is of no use
to the others. Threads that read from the store, write to it and wait for sockets take turns with
large blocks, so each arena grows to a peak of its own, one after the other for as long as there are
threads that have not met theirs. Two arenas are as fast, since Python runs one thread at a time,
and a peer that has met one peak has met them all.
"""

import ctypes
import sys

# The parameters' numbers in glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
MIB = 1024 * 1024
# limit: arenas; one for the event loop's thread, one that all others share
ARENAS_MAX = 2
# limit: bytes that are free and kept, per arena; none keeps more than it has used at one time
KEPT_BYTES_MAX = 32 * MIB
# limit: bytes of a block that is taken from kept memory; larger than any message
KEPT_BLOCK_BYTES_MAX = 16 * MIB


def keep_freed_memory() -> bool:
    """Has the allocator of this process keep what was freed; False if it is not glibc's."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    return bool(
        mallopt(_M_ARENA_MAX, ARENAS_MAX)
        and mallopt(_M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES_MAX)
        and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES_MAX)
    )

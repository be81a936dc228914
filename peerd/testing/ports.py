"""TCP ports of loopback for processes that are told theirs before they bind them.

A port that the kernel draws (`bind` to port 0) comes from the range of which it also draws the near
ends of connections: between the drawing and the bind of whoever it is meant for, any connection of
any process may take it, and on a busy host that is seconds. The ports given here lie outside that
range, so nobody but another listener can be in the way.

Invariants:
- A port was free when it was given, and no process is given the same one twice.
- Ports of one call are all different.
"""

import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"

# Below are ports of well-known services, and those that peerd has by default.
_LOWEST = 10_000
_HIGHEST = 65_535
_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")

# Where the file is not: the range of Linux, which holds those of others.
_USUAL_RANGE = (32_768, 61_000)

# limit: ports that are tried for one that is free; more are not in use on a host that runs tests.
TRIES_MAX = 2_000

_given: set[int] = set()
# Other processes draw at the same time: by chance, so that they do not draw the same.
_chance = random.SystemRandom()


def free_ports(count: int) -> list[int]:
    """So many ports, all different. Raises `OSError` if `TRIES_MAX` are in use."""
    return [free_port() for _ in range(count)]


def free_address() -> str:
    """`host:port` of loopback. Raises `OSError` as above."""
    return f"{LOOPBACK}:{free_port()}"


def free_port() -> int:
    """One port. Raises `OSError` as above."""
    candidates = _candidates()
    for _ in range(TRIES_MAX):
        port = _chance.choice(candidates)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port
    raise OSError(f"none of {TRIES_MAX} ports is free on {LOOPBACK}")


def _candidates() -> "range | list[int]":
    """The ports that no connection is given; all of them, if the range leaves too few."""
    try:
        first, last = map(int, _RANGE_FILE.read_text().split())
    except OSError:
        first, last = _USUAL_RANGE
    outside = [*range(_LOWEST, min(first, _HIGHEST)), *range(last + 1, _HIGHEST + 1)]
    return outside if len(outside) >= TRIES_MAX else range(_LOWEST, _HIGHEST + 1)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True

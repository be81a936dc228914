"""What systemd is told by a service of `Type=notify`: ready, stopping, and still alive.

Each is one datagram to the socket that `NOTIFY_SOCKET` names (sd_notify(3)); without it nothing is
told. The watchdog says that the event loop turns, and no more: a peer whose disk hangs is for the
LAS to judge, and killing it would not mend the disk.
"""

import asyncio
import os
import socket
from collections.abc import Mapping

# What is told once, at the start and at the end, waits so long for a manager that is busy: few
# datagrams wait for it at a time. An end of the start that it never hears of ends the service.
TOLD_ONCE_WAIT_S = 1.0


class ServiceManager:
    """systemd, or nobody. Used on the event loop."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """`environment` is that of the process; a socket that does not answer is nobody."""
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._watchdog_s = _watchdog_s(environment)

    def tell(self, *lines: str, wait_s: float = 0.0) -> None:
        """Send assignments such as `READY=1`, if somebody listens.

        A manager with too much to read takes no more: what must not be lost waits for it, at most
        `wait_s`, with the event loop; without that it is lost.
        """
        if not self._address:
            return
        # "@" stands for the zero byte of an abstract address.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(wait_s)
            try:
                sender.sendto("\n".join(lines).encode(), address)
            except OSError:
                pass  # it has other ways to find out; a service must not fail for its manager

    async def keep_watchdog(self) -> None:
        """Say again and again that the loop turns, twice within what is allowed; for ever."""
        while self._watchdog_s is not None:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_s / 2)


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """`WatchdogSec` of the unit, if it is meant for this very process; None without."""
    period = environment.get("WATCHDOG_USEC", "")
    meant_for = environment.get("WATCHDOG_PID", str(os.getpid()))
    if not period.isdigit() or int(period) == 0 or meant_for != str(os.getpid()):
        return None
    return int(period) / 1e6

"""Whether this machine has a core left when the event loop wants one.

The kernel counts how long a thread ran, and how long it was ready to run and had to wait for a
core. Where the wait is more than a passing part of the two, work that is saved here lets somebody
else's be done sooner.

Must not: be asked by anything whose correctness depends on the answer.
"""

import time
from collections.abc import Callable
from pathlib import Path

# Between two looks, at least. Seconds.
WINDOW_S = 0.05
# Part of the time that the thread wanted a core and had none, from which on cores are scarce.
SCARCE_SHARE = 0.2

_SCHEDSTAT = Path("/proc/self/schedstat")


def ran_and_waited_ns() -> tuple[int, int]:
    """How long the main thread ran, and how long it waited for a core. Nanoseconds.

    Raises:
        OSError, ValueError: the kernel does not count it.
    """
    ran_ns, waited_ns, _ = map(int, _SCHEDSTAT.read_text("ascii").split())
    return ran_ns, waited_ns


class CoreWatch:
    """Looks at the main thread, whose loop it is used on."""

    def __init__(
        self,
        now_s: Callable[[], float] = time.monotonic,
        count: Callable[[], tuple[int, int]] = ran_and_waited_ns,
    ) -> None:
        """`now_s` is monotonic, in seconds; `count` is as `ran_and_waited_ns`."""
        self._now_s = now_s
        self._count = count
        self._looked_s = now_s()
        self._before_ns = self._counted()
        self._scarce = False

    def are_scarce(self) -> bool:
        """As of the last look; False where the kernel does not count."""
        now_s = self._now_s()
        if now_s - self._looked_s >= WINDOW_S:
            self._looked_s = now_s
            before_ns, self._before_ns = self._before_ns, self._counted()
            ran_ns, waited_ns = (
                new - old for new, old in zip(self._before_ns, before_ns, strict=True)
            )
            self._scarce = waited_ns > SCARCE_SHARE * (ran_ns + waited_ns)
        return self._scarce

    def _counted(self) -> tuple[int, int]:
        try:
            return self._count()
        except (OSError, ValueError):
            return 0, 0

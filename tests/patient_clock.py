"""A clock for Raft groups whose members all live in the process of the test."""

import threading
import time

# As long as a step of a member and a heartbeat may take together.
STEP_S_MAX = 0.05


class PatientClock:
    """Seconds, of which those do not count in which nobody looked.

    A busy machine may not run a process for longer than an election takes. Of members on machines
    of their own one is late then, and the others go on; those of one process all hear nothing for
    so long, and whichever comes first would take the lead from one that is well.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looked_at_s = time.monotonic()
        self._passed_s = self._looked_at_s

    def __call__(self) -> float:
        with self._lock:
            now_s = time.monotonic()
            self._passed_s += min(now_s - self._looked_at_s, STEP_S_MAX)
            self._looked_at_s = now_s
            return self._passed_s

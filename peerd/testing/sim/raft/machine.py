"""The state machine of a simulated member: the real `las.core.cluster`, with somebody who watches.

It counts the commands that it was given; the count is in its snapshots, so that each state of each
member has a position to be compared at.
"""

from collections.abc import Callable

from las.core.cluster import Cluster
from las.core.state import ClusterState
from peerd.testing.sim.raft.history import History

CLUSTER_ID = "simulation"
_POSITION_BYTES = 8


class Machine:
    """See the module; `las.raft.member.StateMachine`. `position` is how many were applied."""

    def __init__(self, name: str, history: History) -> None:
        self.position = 0
        self._name = name
        self._history = history
        self._cluster = Cluster(CLUSTER_ID)

    @property
    def state(self) -> ClusterState:
        """The newest applied state."""
        return self._cluster.state

    def apply(self, command: str) -> str:
        """Apply a command as `Cluster` does."""
        result = self._cluster.apply(command)
        self.position += 1
        try:
            self._history.applied(self._name, self.position, command, result, self.state)
        except Exception as error:
            self._history.finding = error
            raise
        return result

    def freeze(self) -> Callable[[], bytes]:
        """Capture the state and its position."""
        position = self.position.to_bytes(_POSITION_BYTES, "big")
        serialise = self._cluster.freeze()
        return lambda: position + serialise()

    def restore(self, snapshot: bytes) -> None:
        """Become what `freeze` captured."""
        self._cluster.restore(snapshot[_POSITION_BYTES:])
        self.position = int.from_bytes(snapshot[:_POSITION_BYTES], "big")
        try:
            self._history.restored(self._name, self.position, self.state)
        except Exception as error:
            self._history.finding = error
            raise

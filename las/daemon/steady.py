"""For how long the nodes of the fleet have been as they are: what is not urgent waits for that."""

from collections.abc import Callable

from las.core.state import ClusterState


class SteadyNodes:
    """Looks at the state that it is given; a new leader counts from its own beginning."""

    def __init__(self, state: ClusterState, now_ms: Callable[[], int]) -> None:
        self._nodes = state.nodes
        self._now_ms = now_ms
        self._since_ms = now_ms()

    def for_ms(self, state: ClusterState) -> int:
        """Milliseconds since a node was seen to become another than before."""
        now_ms = self._now_ms()
        if state.nodes is not self._nodes:
            self._nodes = state.nodes
            self._since_ms = now_ms
        return now_ms - self._since_ms

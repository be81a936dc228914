"""The committed state as the state machine of the consensus log (`las.raft.node.StateMachine`).

Text in, text out. Owned by the consensus thread; `state` may be read from any thread, since it is
one reference to an immutable value. An unreadable command is answered `malformed` and changes
nothing: every LAS node answers it alike, and none stops for it.
"""

from collections.abc import Callable

from las.core import snapshot
from las.core.apply import apply
from las.core.codec import CodecError
from las.core.commands import Reason, Result, command_from_json, result_to_json
from las.core.state import ClusterState


class Cluster:
    """Applies commands to a `ClusterState`, starting from the empty state of `cluster_id`.

    `on_change(state)` is called on the consensus thread after each change, a restore included; it
    must not raise and not block.
    """

    def __init__(
        self, cluster_id: str, on_change: Callable[[ClusterState], None] | None = None
    ) -> None:
        self._state = ClusterState(cluster_id=cluster_id)
        self._on_change = on_change

    @property
    def state(self) -> ClusterState:
        """The newest applied state."""
        return self._state

    def apply(self, command: str) -> str:
        """Apply the JSON text of a command; its result's JSON text."""
        try:
            decoded = command_from_json(command)
        except CodecError as error:
            return result_to_json(Result(ok=False, reason=Reason.MALFORMED, text=str(error)))
        state, result = apply(self._state, decoded)
        self._become(state)
        return result_to_json(result)

    def freeze(self) -> Callable[[], bytes]:
        """Captures the state in O(1); the function it returns may run in any thread."""
        state = self._state
        return lambda: snapshot.snapshot(state)

    def restore(self, data: bytes) -> None:
        """Become the state of a snapshot. Raises `CodecError` if it is none of this cluster."""
        state = snapshot.restore(data)
        if state.cluster_id != self._state.cluster_id:
            raise CodecError(f"the snapshot is of cluster {state.cluster_id}")
        self._become(state)

    def _become(self, state: ClusterState) -> None:
        if state is not self._state:
            self._state = state
            if self._on_change is not None:
                self._on_change(state)

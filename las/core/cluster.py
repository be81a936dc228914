"""The committed state as the state machine of the consensus log (`las.raft.node.StateMachine`).

Text in, text out. Owned by the consensus thread; `state` may be read from any thread, since it is
one reference to an immutable value. An unreadable command is answered `malformed` and changes
nothing: every LAS node answers it alike, and none stops for it.

*A command of another version* is not like that (docs/protocol.md §4.7): nodes that know it change
their state by it, so one that does not know it must not answer and go on beside them. It raises
`UnknownCommand`, with nothing changed, and the consensus layer ends the process. Leaders do not use
a command before all members have said that they know it, so this meets only a member that was set
back to an older version afterwards.
"""

from collections.abc import Callable

from las.core import snapshot
from las.core.apply import apply
from las.core.codec import CodecError, UnknownName
from las.core.commands import (
    Audited,
    Command,
    RaiseCommandLevel,
    Reason,
    Result,
    command_from_json,
    result_to_json,
)
from las.core.levels import COMMAND_LEVEL, level_of
from las.core.state import ClusterState

_ADVICE = "the group runs a newer version: upgrade this LAS node, its directory can stay"


class UnknownCommand(Exception):
    """The group has committed what this version does not know. Nothing was changed."""


class Cluster:
    """Applies commands to a `ClusterState`, starting from the empty state of `cluster_id`.

    `on_change(state)` is called on the consensus thread after each change, a restore included; it
    must not raise and not block. `level` is the highest command level that is known here; another
    one than this version's is for tests.
    """

    def __init__(
        self,
        cluster_id: str,
        on_change: Callable[[ClusterState], None] | None = None,
        level: int = COMMAND_LEVEL,
    ) -> None:
        self.level = level
        self._state = ClusterState(cluster_id=cluster_id)
        self._on_change = on_change

    @property
    def state(self) -> ClusterState:
        """The newest applied state."""
        return self._state

    def apply(self, command: str) -> str:
        """Apply the JSON text of a command; its result's JSON text.

        Raises:
            UnknownCommand: this version does not know it, and others do.
        """
        try:
            decoded = command_from_json(command)
            self._require_known(decoded)
        except UnknownName as error:
            raise UnknownCommand(f"{error}; {_ADVICE}") from error
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
        """Become the state of a snapshot.

        Raises:
            CodecError: it is none of this cluster.
            UnknownCommand: the group uses commands that this version does not know.
        """
        state = snapshot.restore(data)
        self._require_level(state.command_level, "the snapshot")
        if state.cluster_id != self._state.cluster_id:
            raise CodecError(f"the snapshot is of cluster {state.cluster_id}")
        self._become(state)

    def _require_known(self, command: Command) -> None:
        inner = command.command if isinstance(command, Audited) else command
        if isinstance(inner, RaiseCommandLevel):
            self._require_level(inner.level, "the group")
        self._require_level(level_of(command), f"a {type(command).__name__}")

    def _require_level(self, level: int, what: str) -> None:
        if level > self.level:
            known = f"this LAS node knows commands up to level {self.level}"
            raise UnknownCommand(f"{what} is of command level {level}, {known}; {_ADVICE}")

    def _become(self, state: ClusterState) -> None:
        if state is not self._state:
            self._state = state
            if self._on_change is not None:
                self._on_change(state)

"""With which level a command came, so that no group uses one that a member does not know.

docs/protocol.md §4.7 says what leaders and members do with it. A new command, a new field of one or
a new value of an enum gets the next level here, and so does what peers learn that a peer of the
version before could not follow: the level that is committed is the level of the whole cluster.
"""

from collections.abc import Mapping

from las.core.access_commands import AddGrant, EndRevocation, RemoveGrant, Revoke, SetAccess
from las.core.commands import Audited, Command, RaiseCommandLevel
from las.core.holder_commands import AddHolderAgain, ReleaseHolder
from las.core.rows import StepShards
from las.core.state import ClusterState
from las.core.tier_commands import CoolShard, SetTier, TierShard
from peerd.core.ids import NodeName

COMMAND_LEVEL = 4
"""What commands this version knows: those of its level and of all below.

4 came with releases of holders, and with what needs no command: from it on neighbouring sealed
segments share an entry of the map (`las.core.state.JOINING_LEVEL`), and so do snapshots.
"""

FIRST_LEVEL = 1
"""The level that a new group begins with, before its members have heard of each other."""

RELEASES_LEVEL = 4
"""That of the commands by which holders let segments go."""

_LEVELS: Mapping[type[Command], int] = {
    StepShards: 2,
    RaiseCommandLevel: 2,
    TierShard: 2,
    CoolShard: 2,
    SetTier: 2,
    SetAccess: 3,
    AddGrant: 3,
    RemoveGrant: 3,
    Revoke: 3,
    EndRevocation: 3,
    ReleaseHolder: RELEASES_LEVEL,
    AddHolderAgain: RELEASES_LEVEL,
}
"""The level with which a command came; 1 if it is not here."""


_FEATURES: Mapping[int, int] = {1: 4, 2: 4, 3: 5, RELEASES_LEVEL: 6}
"""Of each level the feature level that all peers have to know: what came to peers with it."""


def features_of(level: int) -> int:
    """The feature level that a cluster of that command level may use."""
    return _FEATURES[level]


def level_known(state: ClusterState, members: int) -> int:
    """The level up to which everybody knows what is new; 1 at least.

    `members` is the level that all LAS nodes have said they know; of peers counts what they told
    when they registered last, whether they are up or not.
    """
    peers = min(
        (node.feature_level for node in state.nodes.values()), default=features_of(COMMAND_LEVEL)
    )
    known = [level for level in _FEATURES if level <= members and features_of(level) <= peers]
    return max(known, default=FIRST_LEVEL)


def older_nodes(state: ClusterState, level: int) -> tuple[NodeName, ...]:
    """Peers that do not know what came with `level`, by name."""
    needed = features_of(level)
    old = (node.name for node in state.nodes.values() if node.feature_level < needed)
    return tuple(sorted(old))


def level_of(command: Command) -> int:
    """The command level from which on a group may commit `command`."""
    return _LEVELS.get(
        type(command.command if isinstance(command, Audited) else command), FIRST_LEVEL
    )

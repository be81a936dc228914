"""With which level a command came, so that no group uses one that a member does not know.

docs/protocol.md §4.7 says what leaders and members do with it. A new command, a new field of one or
a new value of an enum gets the next level here.
"""

from collections.abc import Mapping

from las.core.access_commands import AddGrant, EndRevocation, RemoveGrant, Revoke, SetAccess
from las.core.commands import Audited, Command, RaiseCommandLevel
from las.core.rows import StepShards
from las.core.tier_commands import CoolShard, SetTier, TierShard

COMMAND_LEVEL = 3
"""What commands this version knows: those of its level and of all below."""

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
}
"""The level with which a command came; 1 if it is not here."""


def level_of(command: Command) -> int:
    """The command level from which on a group may commit `command`."""
    return _LEVELS.get(type(command.command if isinstance(command, Audited) else command), 1)

"""The commands by which holders of sealed segments let go, and come again: `las.core.holders` says
when they are made, and what they do.
"""

from dataclasses import dataclass

from peerd.core.ids import Epoch, ReplicaId, ShardId


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseHolder:
    """A holder of a sealed segment may let it go, since `confirmed` have just said that they have
    it whole; see `las.core.holders`.
    """

    shard: ShardId
    epoch: Epoch
    holder: ReplicaId
    confirmed: tuple[ReplicaId, ...]
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddHolderAgain:
    """A store that was told to let a segment go, and was wanted again, has it whole and verified.

    `version` is that of the map that it had before it verified it.
    """

    shard: ShardId
    epoch: Epoch
    holder: ReplicaId
    version: int


HolderCommand = ReleaseHolder | AddHolderAgain

HOLDER_COMMANDS = {"release_holder": ReleaseHolder, "add_holder_again": AddHolderAgain}
"""Their names in the consensus log."""

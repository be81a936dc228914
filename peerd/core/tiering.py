"""What the primary of a shard decides when it puts the past into the tier (docs/protocol.md §8.3).

Why nothing leaves a disk that is not in the tier: a store drops only below trimmed-to of the map,
the map moves it only up to the tier's end, and the tier's end only to where a manifest reaches that
was reported from here. So all depends on what is reported:

- *In order*: an object begins where the tier ends, or behind a lost range (`next_offset`).
- *Only what is for good*: of a sealed segment as much as may be read, of the open one only what is
  committed in its own epoch (`limit`).
- *Read back first*: an object is listed when its bytes were found to be there, whoever put them
  (`judged`). A put that succeeded proves nothing, and one that failed may have succeeded.
- *By whom the map names*: a report goes on from one manifest of the map; who is overtaken begins
  anew from the map (`outcome`).

What it does with these is `peerd.daemon.uploader`, and `peerd.testing.sim.tier` in the simulator.
Must not: read, write, or wait.
"""

from enum import Enum, auto

from peerd.core.ids import Epoch, Offset
from peerd.core.shard_map import Shard


class Verdict(Enum):
    """What becomes of an object after it was put and read back."""

    LISTED = auto()
    OTHER_NAME = auto()
    """What lies under the name is of no use: it stays, and another name is tried."""
    GIVEN_UP = auto()
    """The store gives back something else than it was just given."""


def next_offset(entry: Shard) -> Offset:
    """Where the tier goes on: behind what it has, and behind a lost range."""
    return behind_gaps(entry, entry.trimmed_to if entry.tier is None else entry.tier.end)


def behind_gaps(entry: Shard, at: Offset) -> Offset:
    """`at`, or where the lost ranges end that it lies in."""
    while (gap := entry.gap_at(at)) is not None:
        at = gap.end
    return at


def limit(
    epoch: Epoch,
    end: Offset | None,
    stable: Offset | None,
    committed: tuple[Epoch, Offset] | None,
) -> Offset | None:
    """Up to where a segment may be tiered; None: nothing of it now.

    Args:
        epoch: Its epoch.
        end: Where it ends; None: it is open.
        stable: Up to where a sealed one may be read; None: to its end.
        committed: The epoch in which this process is primary, and its commit offset; None: it is
            none.
    """
    if end is not None:
        return end if stable is None else min(stable, end)
    if committed is None or committed[0] != epoch:
        return None
    return committed[1]


def judged(*, same: bool, is_new: bool) -> Verdict:
    """What becomes of an object: `same` if what was read back is what it should be, `is_new` if
    there was nothing of its name before.
    """
    if same:
        return Verdict.LISTED
    return Verdict.GIVEN_UP if is_new else Verdict.OTHER_NAME


def outcome(before: Shard, now: Shard | None, end: Offset, manifest: str) -> bool | None:
    """Whether the map has taken a report that was made when it was `before`; None: not yet."""
    if now is None or now.open.epoch != before.open.epoch:
        return False
    if now.tier is not None and now.tier.manifest == manifest:
        return True
    overtaken = now.tier != before.tier and now.tier is not None and now.tier.end >= end
    return False if overtaken else None

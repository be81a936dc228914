"""Whose what lies in the tier is, if a cluster was restored from there (docs/backup.md).

```
clusters/<id>/heir-<8 digits>   the heir's id, in the folder of each cluster that it inherits from
clusters/<id>/ancestor-<id>     in the folder of the heir, one for each of them
```

A restored cluster has an id of its own. So nothing that it writes has a name that another cluster
uses, no store of the one before is ever taken for one of its own, and of the objects of before its
manifests say whose they are. What is left to go wrong is removal: a trim in the cluster of before,
if that lives after all, would take what the heir's manifests list, and the other way round. So:

- *One owner.* What lies in a cluster's folder is its own as long as it has no heir, and then that
  of the heir with the highest number. Numbers are taken by conditional creation: no two have one.
- *Ancestors of ancestors, too*: a restore marks the folder of the backup's cluster and those of all
  that this one inherited from. An owner owns all of these, or else something is somebody else's.
- *Marked first.* A restore marks, and looks at what is there afterwards; whoever removes looks at
  the marks right before. So an object is lacking when the restore looks, which it tells, unless a
  removal was on its way at that moment; what is lacking later is told when it is read.
- *Who lost is told*, and neither adds nor removes (`Inherited`); it may read. It looks right before
  a removal, and at most a second before it adds: what it adds nobody else reads.

Must not: remove a mark. A person does, who knows that a restore was a mistake.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from peerd.tier.errors import DamagedObject, Inherited, TierUnavailable
from peerd.tier.store import TierStore

# limit: heirs of one cluster that a restore tries to come after, all at the same time
TRIES_MAX = 8
# limit: bytes of an id of a cluster
_ID_BYTES_MAX = 256
_FOLDER = "clusters"
_HEIR = re.compile(r"heir-(\d{8})")
_ANCESTOR = "ancestor-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kin:
    """What the marks say of a cluster: who has its objects now ("": itself), by which mark, and
    whose objects it has beside its own.
    """

    heir: str = ""
    mark: str = ""
    heirs: int = 0
    ancestors: tuple[str, ...] = ()


async def kin_of(store: TierStore, cluster: str) -> Kin:
    """What the marks say of `cluster`. Raises `TierError`."""
    prefix = f"{_FOLDER}/{cluster}"
    sizes = {
        each.key.removeprefix(f"{prefix}/"): each.size_bytes for each in await store.listed(prefix)
    }
    ancestors = tuple(name.removeprefix(_ANCESTOR) for name in sizes if name.startswith(_ANCESTOR))
    marks = sorted(name for name in sizes if _HEIR.fullmatch(name))
    if not marks:
        return Kin(ancestors=ancestors)
    mark = f"{prefix}/{marks[-1]}"
    if not 0 < sizes[marks[-1]] <= _ID_BYTES_MAX:
        raise DamagedObject(f"{mark} does not name a cluster")
    heir = (await store.read(mark, 0, sizes[marks[-1]])).decode("utf-8", "replace")
    number = int(marks[-1].removeprefix("heir-"))
    return Kin(heir=heir, mark=mark, heirs=number, ancestors=ancestors)


async def owned(store: TierStore, cluster: str) -> tuple[str, ...]:
    """The clusters that `cluster` inherited from, all of whose objects are its own.

    Raises `Inherited` if one of them, or `cluster` itself, has a newer heir; `TierError`.
    """
    own = await kin_of(store, cluster)
    if own.heir:
        raise _inherited(cluster, own)
    for ancestor in own.ancestors:
        found = await kin_of(store, ancestor)
        if found.heir != cluster:
            raise _inherited(ancestor, found)
    return own.ancestors


def _inherited(cluster: str, found: Kin) -> Inherited:
    mark = found.mark or "its marks"
    return Inherited(
        f"what cluster {cluster} has in the tier is that of cluster {found.heir or 'unknown'} "
        "since a restore: this one adds and removes nothing there. Stop it for good; or, if the "
        f"restore was the mistake, stop that cluster for good and remove {mark}"
    )


async def inherit(store: TierStore, heir: str, cluster: str) -> Sequence[str]:
    """Make `heir` the owner of all that `cluster` has in the tier; from whom it inherits.

    Raises `TierError`; then some are marked already, and the heir of these is one that never lived.
    """
    ancestors = (cluster, *(await kin_of(store, cluster)).ancestors)
    for ancestor in ancestors:
        await store.create(f"{_FOLDER}/{heir}/{_ANCESTOR}{ancestor}", ancestor.encode())
    for ancestor in ancestors:
        await _mark(store, heir, ancestor)
    return ancestors


async def _mark(store: TierStore, heir: str, cluster: str) -> None:
    for _ in range(TRIES_MAX):
        found = await kin_of(store, cluster)
        if found.heir == heir:
            return  # also if the answer to a creation was lost
        name = f"heir-{found.heirs + 1:08d}"
        await store.create(f"{_FOLDER}/{cluster}/{name}", heir.encode())
    raise TierUnavailable(f"cluster {cluster} is being restored by others at the same time")

"""Which primary stalls itself, told by who accuses whom. No clock.

A primary reports each voter whose acknowledgements stall (docs/protocol.md §6), and that voter is
replaced. But of a primary whose own packets come late, or that hardly runs, *all* voters seem to
stall: what it misses are answers to its own late frames. To replace them one after the other helps
nobody, and what is appended to its shards waits for as long as it lives. So an accuser is held to
be the one that stalls if

- nobody else accuses any of those that it accuses, and
- it accuses two or more, or two or more accuse it,

for `lasting_ms`. Then what it says of others counts for nothing, and it is to be left as primary.

What it must not be:
- *Two peers with a bad link between them*: they accuse each other, and one each. Neither.
- *A machine or a network on which everybody stalls*: others accuse the same ones. Nobody.
- *A peer that has just taken over many shards*: it is busy, and to move them on would keep all
  busy. It is spared for as long as forecasts from load are (`las.core.patience`).
- *A peer with a sick disk*: others accuse it, it accuses nobody, and what it leads is acknowledged
  by its shadows. Not this one; as a voter it is replaced.

Of two voters that do stall, and vote for nobody else, their primary alone can tell; it is wrongly
taken for the sick one. Its successor accuses them in turn, or is well. A wrong guess costs a pause,
never a record: it is a change like any other.

Once found, a node stays so for `kept_ms` after its accusers fell silent, which they do when it has
nothing left: so it is not given anything new at once.

Bound: the nodes that there are, `ACCUSERS_MAX` accusers each.
"""

from collections.abc import Collection
from dataclasses import dataclass

from peerd.core.ids import NodeName, Tick

# limit: accusers kept of one node; two are enough to tell.
ACCUSERS_MAX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowTiming:
    """In milliseconds.

    Attributes:
        believed_ms: how long an accusation counts without being repeated.
        lasting_ms: how long it must look so: where everybody stalls, others say so within this.
        kept_ms: how long it counts after it last looked so.
    """

    believed_ms: int = 5_000
    lasting_ms: int = 300
    kept_ms: int = 30_000


class SlowPrimaries:
    """Of one term. Time is passed in."""

    def __init__(self, timing: SlowTiming | None = None) -> None:
        self._timing = timing or SlowTiming()
        self._accusers: dict[NodeName, dict[NodeName, Tick]] = {}
        self._looks_so_since: dict[NodeName, Tick] = {}
        self._found_at: dict[NodeName, Tick] = {}
        self.nodes: frozenset[NodeName] = frozenset()
        """Those that stall themselves, as of the last `look`; the same object until that changes.
        """

    def accused(self, accuser: NodeName, node: NodeName, now: Tick) -> None:
        """`accuser` says, as a primary, that the acknowledgements of `node` stall."""
        if accuser == node:
            return  # of its own store it says that rightly
        accusers = self._accusers.setdefault(node, {})
        if accuser in accusers or len(accusers) < ACCUSERS_MAX:
            accusers[accuser] = now

    def look(self, now: Tick, spared: Collection[NodeName] = ()) -> None:
        """Time has passed: see who looks as if it stalled itself, and for how long.

        `spared` are never found.
        """
        if not self._accusers and not self._found_at:
            return
        self._forget(now)
        look_so = [node for node in self._look_so() if node not in spared]
        self._looks_so_since = {node: self._looks_so_since.get(node, now) for node in look_so}
        for node, since in self._looks_so_since.items():
            if now - since >= self._timing.lasting_ms:
                self._found_at[node] = now
        nodes = frozenset(self._found_at)
        if nodes != self.nodes:
            self.nodes = nodes

    def _look_so(self) -> list[NodeName]:
        accused_by: dict[NodeName, list[NodeName]] = {}
        for node, accusers in self._accusers.items():
            for accuser in accusers:
                accused_by.setdefault(accuser, []).append(node)
        return [
            accuser
            for accuser, accused in accused_by.items()
            if all(len(self._accusers[node]) == 1 for node in accused)
            and max(len(accused), len(self._accusers.get(accuser, ()))) > 1
        ]

    def _forget(self, now: Tick) -> None:
        timing = self._timing
        for node, accusers in list(self._accusers.items()):
            for accuser in [each for each, at in accusers.items() if now - at > timing.believed_ms]:
                del accusers[accuser]
            if not accusers:
                del self._accusers[node]
        for node in [each for each, at in self._found_at.items() if now - at > timing.kept_ms]:
            del self._found_at[node]

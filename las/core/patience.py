"""Who has just taken over many shards, and is therefore busy and not sick. No clock.

A node to which the LAS has given hundreds of shards at once (adopt, find the producer table, become
primary, answer clients) shows what a sick one shows: late event loop, slow fsync, stalled
acknowledgements. Whoever judges it by these moves hundreds of shards off it, in the midst of the
take-over, onto nodes that are as busy.

Why it hides no real failure for long:
- It lasts `take_over_patience_ms` from the first of these shards on, however many follow, and
  then there is none for as long again. So a node is judged at least half of the time, whatever dies
  around it.
- It concerns the forecast from signs of load alone. A process that is gone or silent, a storage
  that failed and a voter that stalls are found elsewhere (docs/protocol.md §6); what an outside
  forecaster says, and errors of disk and memory, count as ever (`Outlook.hard`).
- A small take-over gives none: `take_over_shards`.

Kept by the leader alone: the next one begins with windows of its own, and with no patience.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from peerd.core.ids import NodeName


@dataclass(slots=True)
class _TakeOver:
    since_ms: int
    shards: int = 0


class TakeOvers:
    """Counts what each node was given. Bound: the nodes that there are."""

    def __init__(self, *, shards_min: int, patience_ms: int) -> None:
        self._shards_min = shards_min
        self._patience_ms = patience_ms
        self._of: dict[NodeName, _TakeOver] = {}

    def opened(self, nodes: Iterable[NodeName], now_ms: int) -> None:
        """A shard without a primary was opened on these nodes."""
        for node in nodes:
            known = self._of.get(node)
            if known is None or now_ms - known.since_ms >= 2 * self._patience_ms:
                known = self._of[node] = _TakeOver(now_ms)
            known.shards += 1

    def busy(self, now_ms: int) -> Mapping[NodeName, int]:
        """Nodes whose signs of load do not count now, each with how long still, in milliseconds."""
        return {
            node: left_ms
            for node, each in self._of.items()
            if each.shards >= self._shards_min
            and (left_ms := each.since_ms + self._patience_ms - now_ms) > 0
        }

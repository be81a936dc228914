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

Kept by the leader alone. The next one finds in the committed state who was given shards of nodes
that went down within the patience (`taken_over`): a segment that such a node led is sealed now, and
somebody else leads. Of a shard without records nothing is left to see, and it costs less, too. A
segment that was led elsewhere before its node went down is counted as well: nodes are told of as
busy that were not, for as long as it lasts.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from las.core.state import ClusterState
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


def taken_over(
    state: ClusterState, *, now_s: int, patience_ms: int
) -> Iterator[tuple[tuple[NodeName, ...], int]]:
    """Shards that nodes were given within the patience: the nodes, and how many ms ago at most.

    `now_s` is wall time, as in the history of failures. Goes through the shards only if a node went
    down that lately.
    """
    ages_ms: dict[NodeName, int] = {}
    for outage in reversed(state.history.outages):
        age_ms = max(0, now_s - outage.begin_s) * 1000
        if age_ms >= patience_ms:
            break
        ages_ms.setdefault(NodeName(outage.node), age_ms)
    if not ages_ms:
        return
    for entry in state.shards.values():
        sealed, opened = entry.shard.sealed, entry.shard.open
        led_before = sealed[-1].plan.primary if sealed else opened.plan.primary
        if led_before.peer in ages_ms and led_before != opened.plan.primary:
            voters = tuple(voter.peer for voter in opened.plan.voters)
            yield voters, ages_ms[led_before.peer]

"""Which nodes are at risk: forecasts in, changes of the committed flag out. Pure; no clock.

Rules (docs/anticipation.md §3), each with its key in `[policy]`:
- *Hysteresis.* On after `consecutive` forecasts in a row at or above `threshold`; off after
  `off_after_s` below `off_threshold`. A forecast that is not known counts for neither.
- *Budget.* At most `at_risk_share_max` of the fleet at once, at least one node, the riskiest first.
- *Circuit breaker.* If more than half of the fleet is said to fail, the model is not believed:
  nothing changes until fewer are.

Must not: forget what was committed. A new leader starts from the committed flags.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from las.daemon.config import Policy
from peerd.core.ids import NodeName

# Share of the fleet above which a common cause (a bad model, a load that it never saw) is more
# likely than so many failures at once.
BREAKER_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Probability of failing within 10 minutes; `known` is False if the base rate stands for it."""

    probability: float
    known: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows from one evaluation.

    Attributes:
        begin: nodes that are at risk from now on, the riskiest first.
        end: nodes that have recovered.
        held_back: nodes that would be at risk, but the budget is spent.
        crying: nodes at or above the threshold, if the breaker is open; else empty.
    """

    begin: tuple[NodeName, ...] = ()
    end: tuple[NodeName, ...] = ()
    held_back: tuple[NodeName, ...] = ()
    crying: tuple[NodeName, ...] = ()


class Judge:
    """Remembers how long each node has been above or below a line."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._above: dict[NodeName, int] = {}
        self._below_since_ms: dict[NodeName, int] = {}

    def judge(
        self,
        outlooks: Mapping[NodeName, Outlook],
        at_risk: Collection[NodeName],
        now_ms: int,
    ) -> Verdict:
        """Judge one evaluation.

        Args:
            outlooks: Of the nodes that are up; the others are neither judged nor counted.
            at_risk: Nodes with the committed flag.
            now_ms: Monotonic milliseconds.
        """
        policy = self._policy
        crying = tuple(
            sorted(
                (
                    node
                    for node, outlook in outlooks.items()
                    if outlook.known and outlook.probability >= policy.threshold
                ),
                key=lambda node: (-outlooks[node].probability, node),
            )
        )
        if len(crying) > 1 and len(crying) > BREAKER_SHARE * len(outlooks):
            # What is counted here is not evidence: it begins anew.
            self._above.clear()
            return Verdict(crying=crying)
        self._above = {node: self._above.get(node, 0) + 1 for node in crying}
        due = [
            node
            for node in crying
            if self._above[node] >= policy.consecutive and node not in at_risk
        ]
        budget = max(1, int(policy.at_risk_share_max * len(outlooks)))
        room = max(0, budget - sum(node in outlooks for node in at_risk))
        return Verdict(
            begin=tuple(due[:room]),
            end=self._recovered(outlooks, at_risk, now_ms),
            held_back=tuple(due[room:]),
        )

    def _recovered(
        self,
        outlooks: Mapping[NodeName, Outlook],
        at_risk: Collection[NodeName],
        now_ms: int,
    ) -> tuple[NodeName, ...]:
        below = {
            node: self._below_since_ms.get(node, now_ms)
            for node in at_risk
            if node in outlooks
            and outlooks[node].known
            and outlooks[node].probability < self._policy.off_threshold
        }
        self._below_since_ms = below
        off_after_ms = self._policy.off_after_s * 1000
        return tuple(
            sorted(node for node, since in below.items() if now_ms - since >= off_after_ms)
        )

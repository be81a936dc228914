"""What outside forecasters say of nodes, and how it enters the judgement.

An outside forecaster has a certificate of its own (role `forecaster`) and is named by it: nobody
speaks for another one. What it says is believed as the model is: the higher probability of the two
counts at each horizon, and the judgement's hysteresis, budgets and circuit breaker are the same.

Invariants:
- Only what is a forecast is kept: probabilities from 0 to 1 that do not fall with the horizon, of a
  node that is known. Anything else is refused and changes nothing.
- It counts for `VALID_MS` after it was made and not longer: who falls silent says nothing.
- Of each forecaster the newest word on a node counts, by when it was made and not by when it came.

Nothing is committed: a new leader hears from the forecasters again.

Bounds: `FORECASTERS_MAX` forecasters, one word of each on each node, `HORIZONS_MAX` horizons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from las.core.judgement import Outlook, span
from las.core.state import ClusterState
from peerd.core.errors import Reason
from peerd.core.ids import NodeName
from peerd.transport.status import Refused, refusal

# limit: outside forecasters that are heard at a time; more opinions do not make a better one.
FORECASTERS_MAX = 16
# limit: horizons of one forecast.
HORIZONS_MAX = 8
# limit: seconds of the longest horizon, thirty days.
HORIZON_S_MAX = 2_592_000
# limit: characters of the name that a forecaster gives its model.
SOURCE_CHARACTERS_MAX = 64
# limit: milliseconds for which a forecast counts from when it was made.
VALID_MS = 60_000
# limit: milliseconds between two words of one forecaster on one node.
PERIOD_MS_MIN = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideForecast:
    """What one forecaster says of one node. `made_ms` is of the leader's monotonic clock."""

    forecaster: str
    source: str
    horizons: tuple[tuple[int, float], ...]
    made_ms: int
    heard_ms: int = 0

    @property
    def author(self) -> str:
        """`acme (lifetime-3)`."""
        return f"{self.forecaster} ({self.source})" if self.source else self.forecaster

    @property
    def words(self) -> str:
        """`acme (lifetime-3) says p(10 min) 0.91, p(1 h) 0.95`."""
        told = ", ".join(f"p({span(horizon_s)}) {p:.2f}" for horizon_s, p in self.horizons)
        return f"{self.author} says {told}"


@dataclass(slots=True)
class OutsideForecasts:
    """Of one term. Used on the event loop; `now_ms` is the leader's monotonic clock."""

    _told: dict[NodeName, dict[str, OutsideForecast]] = field(default_factory=dict)
    _heard_ms: dict[str, int] = field(default_factory=dict)

    def take(
        self,
        state: ClusterState,
        forecaster: str,
        node: str,
        *,
        source: str,
        horizons: Sequence[tuple[int, float]],
        age_ms: int,
        now_ms: int,
    ) -> None:
        """Take a forecast that was made `age_ms` ago.

        Raises:
            Refused: UNKNOWN_NODE, INVALID_ARGUMENT (no forecast, or a stale one), STATE_CHANGED (a
                newer one is known), OVERLOADED (too soon after the last), LIMIT_REACHED.
        """
        if node not in state.nodes:
            text = f"no node is called {node!r}: `peerctl node list` shows them"
            raise Refused(refusal(Reason.UNKNOWN_NODE, text))
        if wrong := _error(source, horizons, age_ms):
            raise Refused(refusal(Reason.INVALID_ARGUMENT, wrong))
        self._forget_the_silent(state, now_ms)
        if forecaster not in self._heard_ms and len(self._heard_ms) >= FORECASTERS_MAX:
            text = (
                f"{FORECASTERS_MAX} outside forecasters are heard already: one has to fall silent"
            )
            raise Refused(refusal(Reason.LIMIT_REACHED, text))
        last = self._told.get(NodeName(node), {}).get(forecaster)
        if last is not None and now_ms - last.heard_ms < PERIOD_MS_MIN:
            text = f"{forecaster} spoke of {node} less than {PERIOD_MS_MIN} ms ago"
            raise Refused(refusal(Reason.OVERLOADED, text, retry_after_ms=PERIOD_MS_MIN))
        if last is not None and last.made_ms > now_ms - age_ms:
            text = f"a newer forecast of {forecaster} for {node} is known"
            raise Refused(refusal(Reason.STATE_CHANGED, text))
        self._told.setdefault(NodeName(node), {})[forecaster] = OutsideForecast(
            forecaster=forecaster,
            source=source,
            horizons=tuple(horizons),
            made_ms=now_ms - age_ms,
            heard_ms=now_ms,
        )
        self._heard_ms[forecaster] = now_ms

    def of(self, node: NodeName, now_ms: int) -> tuple[OutsideForecast, ...]:
        """What counts of a node now, by forecaster."""
        told = self._told.get(node, {})
        return tuple(told[name] for name in sorted(told) if now_ms - told[name].made_ms < VALID_MS)

    def joined(self, outlooks: Mapping[NodeName, Outlook], now_ms: int) -> dict[NodeName, Outlook]:
        """`outlooks` with what outside forecasters say of these nodes."""
        return {
            node: joined(outlook, self.of(node, now_ms)) if node in self._told else outlook
            for node, outlook in outlooks.items()
        }

    def _forget_the_silent(self, state: ClusterState, now_ms: int) -> None:
        """Forget them and their words.

        Only when somebody has fallen silent, or nodes have gone, is every word looked at: who
        forecasts ten thousand nodes has as many words to say a minute.
        """
        heard = {name: at_ms for name, at_ms in self._heard_ms.items() if now_ms - at_ms < VALID_MS}
        fell_silent = len(heard) < len(self._heard_ms)
        self._heard_ms = heard
        if not fell_silent and len(self._told) <= len(state.nodes):
            return
        kept = {
            node: {name: word for name, word in words.items() if name in heard}
            for node, words in self._told.items()
            if node in state.nodes
        }
        self._told = {node: words for node, words in kept.items() if words}


def joined(outlook: Outlook, told: Sequence[OutsideForecast]) -> Outlook:
    """The higher probability at each horizon, never falling with it.

    Of an outlook that is not known nothing is taken: the base rate says nothing of this node.
    """
    if not told:
        return outlook
    highest: dict[int, float] = dict(outlook.horizons) if outlook.known else {}
    for forecast in told:
        for horizon_s, probability in forecast.horizons:
            highest[horizon_s] = max(highest.get(horizon_s, 0.0), probability)
    reached, horizons = 0.0, []
    for horizon_s in sorted(highest):
        reached = max(reached, highest[horizon_s])
        horizons.append((horizon_s, reached))
    calibrated = outlook.calibrated if outlook.known else True
    return replace(outlook, horizons=tuple(horizons), known=True, calibrated=calibrated, hard=True)


def _error(source: str, horizons: Sequence[tuple[int, float]], age_ms: int) -> str:
    """Why this is no forecast; empty if it is one."""
    if len(source) > SOURCE_CHARACTERS_MAX or not source.isprintable():
        return f"source: at most {SOURCE_CHARACTERS_MAX} printable characters"
    if not 1 <= len(horizons) <= HORIZONS_MAX:
        return f"horizons: 1 to {HORIZONS_MAX} of them, not {len(horizons)}"
    last_s, reached = 0, 0.0
    for horizon_s, probability in horizons:
        if not last_s < horizon_s <= HORIZON_S_MAX:
            return f"horizons: seconds from 1 to {HORIZON_S_MAX}, each longer than the one before"
        if not 0.0 <= probability <= 1.0:
            return f"p({span(horizon_s)}) = {probability} is no probability"
        if probability < reached:
            return f"p({span(horizon_s)}) = {probability} is less than at a shorter horizon"
        last_s, reached = horizon_s, probability
    if age_ms >= VALID_MS:
        return f"age_ms = {age_ms}: a forecast counts for {VALID_MS} ms from when it was made"
    return ""

"""The fleet's samples from a Prometheus server, in place of those of heartbeats.

Each round asks for what came since the last one, a value a second: of the peers' own `/metrics`,
and of node_exporter what those lack. A second's value is that of the newest scrape before it, as
Prometheus has it; with 5 s between scrapes five seconds share one.

Invariants:
- A sample older than `staleness_ms`, counted from when the peer took it, is missing. Prometheus
  itself goes on with the last value for five minutes, which would make a dead peer look calm.
- Missing is NaN, never 0: a metric that neither source has, a peer that is not scraped.
- A round that fails is counted by kind, told, and changes nothing.
"""

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from las.core.state import ClusterState, Node, NodeState
from las.daemon.config import Telemetry
from las.daemon.prometheus import PrometheusClient, PrometheusError, Series
from peerd.core.ids import NodeName
from peerd.daemon.logging import get_logger
from peerd.daemon.telemetry.exporter import SAMPLE_AGE_NAME
from peerd.daemon.telemetry.schema import ALWAYS_PRESENT, TELEMETRY_SCHEMA

# Scrapes over which a rate is taken: two would be none as soon as one is lost.
RATE_SCRAPES = 4
# limit: seconds asked for at once; a first round, or one after failures, asks for a whole window
# in pieces, so that no answer is many times as large as those that follow.
PIECE_S = 30
# The scrape's own time: a value is as old as the scrape that brought it.
_SCRAPED_AT = "peerd_scraped_at"

_log = get_logger("prometheus")

TakeSample = Callable[[NodeName, int, int, Sequence[float]], None]
"""(node, second, age in ms, values in schema order)"""


class ScrapedTelemetry:
    """One term's rounds. Used on the event loop."""

    def __init__(
        self,
        telemetry: Telemetry,
        *,
        state: Callable[[], ClusterState],
        take: TakeSample,
        window_s: int,
        wall_ms: Callable[[], int],
    ) -> None:
        self._telemetry = telemetry
        self._client = PrometheusClient(telemetry)
        self._state = state
        self._take = take
        self._window_s = window_s
        self._wall_ms = wall_ms
        self._asked_to_s = 0
        self._last_seen_s: dict[NodeName, int] = {}
        self.rounds: Counter[str] = Counter()
        self.failing = ""
        """Why the last round failed; empty if it did not."""

    @property
    def node_label(self) -> str:
        """The label that names the node."""
        return self._telemetry.node_label

    async def run(self) -> None:
        """A round each `query_ms`, for ever."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                began_s = loop.time()
                await self.round()
                spent_s = loop.time() - began_s
                await asyncio.sleep(max(0.0, self._telemetry.query_ms / 1000 - spent_s))
        finally:
            await self._client.close()

    async def round(self) -> None:
        """Ask for what came since the last round; what fails is told and tried again."""
        end_s = self._wall_ms() // 1000
        if end_s < self._asked_to_s - PIECE_S:
            # The clock was set back: what was asked for lies in its future.
            self._asked_to_s = 0
            self._last_seen_s.clear()
        begin_s = max(self._asked_to_s + 1, end_s - self._window_s + 1)
        try:
            for piece_s in range(begin_s, end_s + 1, PIECE_S):
                last_s = min(piece_s + PIECE_S - 1, end_s)
                answers = await self._client.query_range(
                    self._queries(), begin_s=piece_s, end_s=last_s
                )
                self._take_in(answers, piece_s, last_s)
                self._asked_to_s = last_s
        except PrometheusError as error:
            self.rounds[error.kind] += 1
            if not self.failing:
                _log.warning("no telemetry", kind=error.kind, why=str(error))
            self.failing = str(error)
        else:
            self.rounds["ok"] += 1
            if self.failing:
                _log.info("telemetry again")
            self.failing = ""

    def unseen(self) -> list[NodeName]:
        """Nodes that are up and have no sample that is not stale; none before the first round."""
        if not self.rounds["ok"]:
            return []
        oldest_s = (self._wall_ms() - self._telemetry.staleness_ms) // 1000
        return sorted(
            name
            for name, node in self._state().nodes.items()
            if node.state is NodeState.UP and self._last_seen_s.get(name, 0) < oldest_s
        )

    # ------------------------------------------------------------------ questions

    def _queries(self) -> list[str]:
        told = self._telemetry
        matchers = f",{told.matchers}" if told.matchers else ""
        names = "|".join([*(m.exported_name for m in TELEMETRY_SCHEMA), SAMPLE_AGE_NAME])
        always = TELEMETRY_SCHEMA.metric(ALWAYS_PRESENT).exported_name
        range_s = max(1, RATE_SCRAPES * told.interval_ms // 1000)
        by = f"by ({told.node_label}, {told.host_label})"
        queries = [
            f'{{__name__=~"{names}"{matchers}}}',
            f"timestamp({always}{{{told.matchers}}})",
        ]
        queries += [
            metric.node_exporter.replace("$by", by).replace("$range", f"[{range_s}s]")
            for metric in TELEMETRY_SCHEMA
            if metric.node_exporter
        ]
        return queries

    # ------------------------------------------------------------------ answers

    def _take_in(self, answers: Sequence[Sequence[Series]], begin_s: int, end_s: int) -> None:
        own, scraped_at, *others = answers
        by_node = self._by_node(own, scraped_at)
        mapped = [metric.name for metric in TELEMETRY_SCHEMA if metric.node_exporter]
        by_host = {
            name: _by_place(series, self._telemetry)
            for name, series in zip(mapped, others, strict=True)
        }
        now_ms = self._wall_ms()
        for node in self._state().nodes.values():
            series = by_node.get(node.name)
            if series is None:
                continue
            for second in range(begin_s, end_s + 1):
                if self._is_stale(series, second):
                    continue
                values = _row(series, by_host, node, second)
                self._take(node.name, second, max(0, now_ms - second * 1000), values)
                self._last_seen_s[node.name] = second

    def _by_node(
        self, own: Iterable[Series], scraped_at: Iterable[Series]
    ) -> dict[str, dict[str, Mapping[int, float]]]:
        """Values by node, then by exported name. Of two series of one name the last counts."""
        found: dict[str, dict[str, Mapping[int, float]]] = defaultdict(dict)
        label = self._telemetry.node_label
        for series in own:
            found[series.labels.get(label, "")][series.labels.get("__name__", "")] = series.values
        for series in scraped_at:
            found[series.labels.get(label, "")][_SCRAPED_AT] = series.values
        return found

    def _is_stale(self, series: Mapping[str, Mapping[int, float]], second: int) -> bool:
        """Whether what is known of a second was taken too long before it, or nothing is."""
        scraped_at = series.get(_SCRAPED_AT, {}).get(second, math.nan)
        age_s = second - scraped_at + series.get(SAMPLE_AGE_NAME, {}).get(second, math.nan)
        return not age_s * 1000 <= self._telemetry.staleness_ms


def _by_place(
    series: Iterable[Series], telemetry: Telemetry
) -> dict[tuple[str, str], Mapping[int, float]]:
    """Values by what they are labelled with: a node, or else a host."""
    found = {}
    for each in series:
        node = each.labels.get(telemetry.node_label, "")
        place = ("node", node) if node else ("host", each.labels.get(telemetry.host_label, ""))
        found[place] = each.values
    return found


def _row(
    own: Mapping[str, Mapping[int, float]],
    others: Mapping[str, Mapping[tuple[str, str], Mapping[int, float]]],
    node: Node,
    second: int,
) -> list[float]:
    """One second's values in schema order: the peer's own, else node_exporter's, else NaN."""
    row = []
    for metric in TELEMETRY_SCHEMA:
        value = own.get(metric.exported_name, {}).get(second, math.nan)
        if math.isnan(value) and metric.name in others:
            places = others[metric.name]
            values = places.get(("node", node.name)) or places.get(("host", node.host)) or {}
            value = values.get(second, math.nan)
        row.append(value)
    return row

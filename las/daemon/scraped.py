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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from las.core.state import ClusterState, NodeState
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
                    queries(self._telemetry), begin_s=piece_s, end_s=last_s
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

    # ------------------------------------------------------------------ answers

    def _take_in(self, answers: Sequence[Sequence[Series]], begin_s: int, end_s: int) -> None:
        now_ms = self._wall_ms()
        hosts = {str(node.name): node.host for node in self._state().nodes.values()}
        told = samples(answers, self._telemetry, hosts, begin_s=begin_s, end_s=end_s)
        for name, second, values in told:
            node = NodeName(name)
            self._take(node, second, max(0, now_ms - second * 1000), values)
            self._last_seen_s[node] = second


def queries(telemetry: Telemetry) -> list[str]:
    """What to ask for: the peers' own samples, when they were scraped, node_exporter's metrics."""
    matchers = f",{telemetry.matchers}" if telemetry.matchers else ""
    names = "|".join([*(m.exported_name for m in TELEMETRY_SCHEMA), SAMPLE_AGE_NAME])
    always = TELEMETRY_SCHEMA.metric(ALWAYS_PRESENT).exported_name
    range_s = max(1, RATE_SCRAPES * telemetry.interval_ms // 1000)
    by = f"by ({telemetry.node_label}, {telemetry.host_label})"
    asked = [
        f'{{__name__=~"{names}"{matchers}}}',
        f"timestamp({always}{{{telemetry.matchers}}})",
    ]
    asked += [
        metric.node_exporter.replace("$by", by).replace("$range", f"[{range_s}s]")
        for metric in TELEMETRY_SCHEMA
        if metric.node_exporter
    ]
    return asked


def samples(
    answers: Sequence[Sequence[Series]],
    telemetry: Telemetry,
    hosts: Mapping[str, str],
    *,
    begin_s: int,
    end_s: int,
) -> Iterator[tuple[str, int, list[float]]]:
    """(node, second, values in schema order) of the answers to `queries`, none that is stale.

    `hosts` are the nodes asked for, by name, with their hosts.
    """
    own, scraped_at, *others = answers
    by_node = _by_node(own, scraped_at, telemetry.node_label)
    mapped = [metric.name for metric in TELEMETRY_SCHEMA if metric.node_exporter]
    by_host = {
        name: _by_place(series, telemetry) for name, series in zip(mapped, others, strict=True)
    }
    for node, host in hosts.items():
        series = by_node.get(node)
        if series is None:
            continue
        for second in range(begin_s, end_s + 1):
            if not _is_stale(series, second, telemetry.staleness_ms):
                yield node, second, _row(series, by_host, node, host, second)


def _by_node(
    own: Iterable[Series], scraped_at: Iterable[Series], label: str
) -> dict[str, dict[str, Mapping[int, float]]]:
    """Values by node, then by exported name. Of two series of one name the last counts."""
    found: dict[str, dict[str, Mapping[int, float]]] = defaultdict(dict)
    for series in own:
        found[series.labels.get(label, "")][series.labels.get("__name__", "")] = series.values
    for series in scraped_at:
        found[series.labels.get(label, "")][_SCRAPED_AT] = series.values
    return found


def _is_stale(series: Mapping[str, Mapping[int, float]], second: int, staleness_ms: int) -> bool:
    """Whether what is known of a second was taken too long before it, or nothing is."""
    scraped_at = series.get(_SCRAPED_AT, {}).get(second, math.nan)
    age_s = second - scraped_at + series.get(SAMPLE_AGE_NAME, {}).get(second, math.nan)
    return not age_s * 1000 <= staleness_ms


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
    node: str,
    host: str,
    second: int,
) -> list[float]:
    """One second's values in schema order: the peer's own, else node_exporter's, else NaN."""
    row = []
    for metric in TELEMETRY_SCHEMA:
        value = own.get(metric.exported_name, {}).get(second, math.nan)
        if math.isnan(value) and metric.name in others:
            places = others[metric.name]
            values = places.get(("node", node)) or places.get(("host", host)) or {}
            value = values.get(second, math.nan)
        row.append(value)
    return row

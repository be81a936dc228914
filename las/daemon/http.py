"""What a LAS node shows at `/metrics`: consensus on every node, the fleet on the leader."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from las.core.ledger import Outcome
from las.core.model_registry import ModelHead
from las.core.state import NodeState
from las.daemon.group import Group
from las.daemon.prometheus import Kind as PrometheusFailure
from las.daemon.scraped import ScrapedTelemetry
from las.daemon.status_view import StatusView
from las.daemon.term import Term
from peerd.transport.credentials import Credentials

DAY_S = 24 * 3_600.0


class LasExporter(Collector):
    """Register with a `CollectorRegistry`; everything is looked up at each scrape."""

    def __init__(
        self,
        group: Group,
        leading: Callable[[], Term | None],
        status: StatusView,
        credentials: Credentials | None,
    ) -> None:
        """`leading` gives the term under way on this node, if it leads."""
        self._credentials = credentials
        self._group = group
        self._leading = leading
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """All metrics of one scrape."""
        yield from self._consensus()
        yield from self._map()
        if self._credentials is not None:
            yield from _gauges(
                las_certificate_expiry_days=(
                    "Until this node's certificate, or the last authority it trusts, expires",
                    self._credentials.expires_in_s() / DAY_S,
                )
            )
        term = self._leading()
        if term is not None:
            yield from _fleet(term)
            if term.scraped is not None:
                yield from _scrapes(term.scraped)

    def _consensus(self) -> Iterator[Metric]:
        status = self._group.status
        yield from _gauges(
            las_raft_term=("Current term", status.term),
            las_raft_is_leader=("1 on the leader", int(status.is_leader)),
            las_raft_has_leader=("1 while a leader is known", int(status.leader is not None)),
            las_raft_commit_index=("Index up to which the log is committed", status.commit_index),
            las_raft_applied_index=("Index up to which it is applied", status.applied_index),
            las_raft_members_up=("Members in reach, this one included", len(status.members_up)),
            las_raft_voting=("0 while this member rejoins", int(status.voting)),
        )

    def _map(self) -> Iterator[Metric]:
        state, index = self._group.indexed()
        facts = self._status.facts()
        yield from _gauges(
            las_map_version=("Version of the applied map", state.version),
            las_logs=("Logs", len(state.logs)),
            las_shards=("Shards", len(state.shards)),
            las_shards_paused=("Shards that take no appends", len(facts.paused)),
            las_shards_halted=("Shards that wait for a person", len(facts.halted)),
            las_shards_unsettled=("Shards whose plan is being changed", len(index.unsettled)),
            las_segments_short=(
                "Sealed segments on fewer healthy nodes than promised",
                facts.short,
            ),
            las_copies_wanted=("Copies of sealed segments under way", index.fetching),
        )
        nodes = GaugeMetricFamily("las_nodes", "Nodes by state", labels=["state"])
        for each in NodeState:
            count = sum(node.state is each for node in state.nodes.values())
            nodes.add_metric([each.value], count)
        yield nodes
        cases = GaugeMetricFamily(
            "las_ledger_cases", "Cases in the ledger by outcome", labels=["outcome"]
        )
        for outcome in Outcome:
            count = sum(case.outcome is outcome for case in state.cases.values())
            cases.add_metric([outcome.value], count)
        yield cases
        versions = GaugeMetricFamily(
            "las_model_version",
            "Version of the forecast model that answers; 0: the shipped one",
            labels=["head"],
        )
        for head in ModelHead:
            versions.add_metric([head.value], state.models.of(head).live)
        yield versions
        flags = (("at_risk", "at risk"), ("draining", "being drained"))
        for flag, words in flags:
            count = sum(getattr(node, flag) for node in state.nodes.values())
            yield GaugeMetricFamily(f"las_nodes_{flag}", f"Nodes {words}", value=count)


def _fleet(term: Term) -> Iterator[Metric]:
    latest = term.forecaster.latest
    probability = GaugeMetricFamily(
        "las_forecast_failure_probability",
        "Probability of failing within 10 minutes; absent while it is not known",
        labels=["node"],
    )
    for name, outlook in latest.nodes.items():
        if outlook.known:
            probability.add_metric([name], outlook.p_10_min)
    yield probability
    model = GaugeMetricFamily("las_forecast_model", "1 for the model that answers", labels=["id"])
    model.add_metric([latest.model_id], 1)
    yield model
    yield from _gauges(
        las_shards_recovering=("Shards that are being recovered", term.executor.recovering),
        las_shards_without_place=(
            "Shards that need a change for which too few nodes are left",
            len(term.executor.shortages),
        ),
        las_forecast_evaluations=("Evaluations since this node leads", latest.number),
        las_forecast_breaker_open=(
            "1 while the forecast is not believed and no node is moved for it",
            int(bool(latest.verdict.distrust)),
        ),
        las_forecast_held_back=(
            "Nodes that would be at risk if the budget were larger",
            len(latest.verdict.held_back),
        ),
    )
    moves = CounterMetricFamily(
        "las_rebalance_moves",
        "Moves that make nodes carry alike, since this node leads: votes, and leads alone",
        labels=["what"],
    )
    for what, count in term.rebalancer.moved.items():
        moves.add_metric([what], count)
    yield moves
    yield CounterMetricFamily(
        "las_shard_splits",
        "Hot shards split by the LAS itself, since this node leads",
        value=term.splitter.splits,
    )
    decisions = CounterMetricFamily(
        "las_forecast_decisions", "Nodes judged since this node leads", labels=["judgement"]
    )
    for judgement, count in term.forecaster.decisions.items():
        decisions.add_metric([judgement], count)
    yield decisions


def _scrapes(scraped: ScrapedTelemetry) -> Iterator[Metric]:
    rounds = CounterMetricFamily(
        "las_prometheus_rounds",
        "Rounds of queries to Prometheus since this node leads, by how they ended",
        labels=["outcome"],
    )
    for outcome in ("ok", *PrometheusFailure):
        rounds.add_metric([outcome], scraped.rounds[outcome])
    yield rounds
    yield from _gauges(
        las_nodes_without_telemetry=(
            "Nodes that are up and of which Prometheus has no fresh sample",
            len(scraped.unseen()),
        )
    )


def _gauges(**values: tuple[str, float]) -> Iterator[Metric]:
    for name, (words, value) in values.items():
        yield GaugeMetricFamily(name, words, value=value)

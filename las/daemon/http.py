"""What a LAS node shows at `/metrics`: consensus on every node, the fleet on the leader."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

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
from peerd.monitoring.metrics import labelled, single
from peerd.transport.credentials import Credentials

DAY_S = 24 * 3_600.0


class LasExporter(Collector):
    """Register with a `CollectorRegistry`; everything is looked up at each scrape."""

    def __init__(  # noqa: PLR0917 - the parts of a node
        self,
        group: Group,
        leading: Callable[[], Term | None],
        status: StatusView,
        credentials: Credentials | None,
        members: int,
        refused: Mapping[str, int],
    ) -> None:
        """`leading` gives the term under way on this node, if it leads; `members` is the size of
        the group, `refused` counts calls by reason.
        """
        self._members = members
        self._refused = refused
        self._credentials = credentials
        self._group = group
        self._leading = leading
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """All metrics of one scrape."""
        yield from self._consensus()
        yield from self._map()
        yield labelled("las_calls_refused_total", sorted(self._refused.items()))
        if self._credentials is not None:
            yield from single(las_certificate_expiry_days=self._credentials.expires_in_s() / DAY_S)
        term = self._leading()
        if term is not None:
            yield from _fleet(term)
            if term.scraped is not None:
                yield from _scrapes(term.scraped)

    def _consensus(self) -> Iterator[Metric]:
        status = self._group.status
        yield from single(
            las_raft_term=status.term,
            las_raft_is_leader=int(status.is_leader),
            las_raft_has_leader=int(status.leader is not None),
            las_raft_commit_index=status.commit_index,
            las_raft_applied_index=status.applied_index,
            las_raft_members=self._members,
            las_raft_members_up=len(status.members_up),
            las_raft_voting=int(status.voting),
        )

    def _map(self) -> Iterator[Metric]:
        state, index = self._group.indexed()
        facts = self._status.facts()
        worst = self._status.worst(self._leading())
        yield from single(
            las_map_version=state.version,
            las_logs=len(state.logs),
            las_shards=len(state.shards),
            las_shards_paused=len(facts.paused),
            las_shards_halted=len(facts.halted),
            las_shards_unsettled=len(index.unsettled),
            las_segments_short=facts.short,
            las_at_stake_seconds=worst.exposed_ms / 1000,
            las_at_stake_shards=worst.shards,
            las_copies_wanted=index.fetching,
            las_nodes_at_risk=sum(node.at_risk for node in state.nodes.values()),
            las_nodes_draining=sum(node.draining for node in state.nodes.values()),
            las_access_version=state.access.version,
            las_access_required=int(state.access.required),
            las_access_grants=len(state.access.grants),
            las_access_revoked=len(state.access.revoked),
        )
        states = Counter(node.state for node in state.nodes.values())
        yield labelled("las_nodes", ((each.value, states[each]) for each in NodeState))
        outcomes = Counter(case.outcome for case in state.cases.values())
        yield labelled("las_ledger_cases", ((each.value, outcomes[each]) for each in Outcome))
        yield labelled(
            "las_model_version", ((head.value, state.models.of(head).live) for head in ModelHead)
        )


def _fleet(term: Term) -> Iterator[Metric]:
    latest = term.forecaster.latest
    yield labelled(
        "las_forecast_failure_probability",
        ((name, outlook.p_10_min) for name, outlook in latest.nodes.items() if outlook.known),
    )
    yield labelled("las_forecast_model", {latest.model_id: 1})
    yield from single(
        las_shards_recovering=term.executor.recovering,
        las_shards_without_place=len(term.executor.shortages),
        las_forecast_evaluations=latest.number,
        las_forecast_breaker_open=int(bool(latest.verdict.distrust)),
        las_forecast_held_back=len(latest.verdict.held_back),
        las_shard_splits_total=term.splitter.splits,
        las_released_copies_total=term.surplus.released,
    )
    moved = {**term.rebalancer.moved, "copy": term.copies.moved}
    yield labelled("las_rebalance_moves_total", moved)
    yield labelled("las_forecast_decisions_total", term.forecaster.decisions)


def _scrapes(scraped: ScrapedTelemetry) -> Iterator[Metric]:
    outcomes = ("ok", *PrometheusFailure)
    yield labelled(
        "las_prometheus_rounds_total", ((each, scraped.rounds[each]) for each in outcomes)
    )
    yield from single(las_nodes_without_telemetry=len(scraped.unseen()))

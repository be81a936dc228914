"""`las.v1.ForecastService`: what the leader expects of each node, and the story of a node."""

from collections.abc import AsyncIterator, Sequence

from las.core.explain import Explanation, explain_node, explain_shard
from las.core.ledger import CASES_MAX, Case, Estimate, effect
from las.core.state import ClusterState
from las.daemon.forecaster import Evaluation, FleetForecaster, at_risk_nodes
from las.daemon.group import Group
from las.daemon.leader import Leadership
from las.daemon.outside_forecasts import OutsideForecast
from las.daemon.services.callers import Callers
from las.daemon.slow_heads import HeadOutlook
from las.daemon.term import now_ms
from las.forecast import answer as forecast_answer
from las.forecast.contract import HORIZONS_S
from las.forecast.join import JOIN_HORIZONS_S, Part, joined
from las.v1 import forecast_pb2, forecast_pb2_grpc
from peerd.core.errors import Reason
from peerd.core.ids import NodeName, ShardId
from peerd.transport.status import Context, Refused, refusal

# Cases that are told if nobody says how many.
CASES_TOLD = 100
# limit: actions that one explanation lists.
ACTIONS_TOLD_MAX = 1_000


class ForecastServicer(forecast_pb2_grpc.ForecastServiceServicer):
    """Serves on the leader; others name it."""

    def __init__(self, group: Group, leadership: Leadership, callers: Callers) -> None:
        self._group = group
        self._leadership = leadership
        self._callers = callers

    async def GetForecast(
        self,
        request: forecast_pb2.GetForecastRequest,
        context: Context,
    ) -> forecast_pb2.GetForecastResponse:
        """The newest forecasts. Raises `Refused`: UNKNOWN_NODE, NOT_LAS_LEADER."""
        term = self._leadership.require()
        state = self._group.state
        names = sorted(state.nodes)
        if request.node:
            names = [known_node(state, request.node)]
        return forecast_pb2.GetForecastResponse(
            forecasts=[forecast_of(state, name, term.forecaster) for name in names]
        )

    async def WatchForecast(
        self,
        request: forecast_pb2.WatchForecastRequest,
        context: Context,
    ) -> AsyncIterator[forecast_pb2.WatchForecastResponse]:
        """The newest evaluation, then each one. Raises `Refused`: NOT_LAS_LEADER."""
        term = self._leadership.require()
        told = 0
        while not term.over.is_set():
            evaluated = term.forecaster.evaluated
            latest = term.forecaster.latest
            if latest.number > told:
                told = latest.number
                state = self._group.state
                yield forecast_pb2.WatchForecastResponse(
                    forecasts=[
                        forecast_of(state, name, term.forecaster, heads=False)
                        for name in sorted(state.nodes)
                    ],
                    timestamp_ms=latest.timestamp_ms,
                )
            await evaluated.wait()
        raise self._group.not_leader()

    async def Explain(
        self,
        request: forecast_pb2.ExplainRequest,
        context: Context,
    ) -> forecast_pb2.ExplainResponse:
        """Why a node or a shard is as it is.

        Raises `Refused`: UNKNOWN_NODE, UNKNOWN_SHARD, INVALID_ARGUMENT, NOT_LAS_LEADER.
        """
        term = self._leadership.require()
        state, index = self._group.indexed()
        if request.node and request.shard:
            raise Refused(refusal(Reason.INVALID_ARGUMENT, "ask for a node or for a shard"))
        if request.shard:
            shard = ShardId(request.shard)
            if shard not in state.shards:
                raise Refused(refusal(Reason.UNKNOWN_SHARD, f"there is no shard {shard}"))
            seen = explain_shard(state, term.view(), term.limits, shard, index)
            return forecast_pb2.ExplainResponse(facts=seen.facts, actions=_actions(state, seen))
        name = known_node(state, request.node)
        seen = explain_node(state, term.view(), term.limits, name, index)
        return forecast_pb2.ExplainResponse(
            facts=seen.facts,
            actions=_actions(state, seen),
            judgement=term.forecaster.judge.explain(name, at_risk_nodes(state)),
            forecast=forecast_of(state, name, term.forecaster),
            events=[
                forecast_pb2.ForecastEvent(
                    timestamp_ms=event.timestamp_ms,
                    kind=event.kind,
                    node=event.node,
                    text=event.text,
                )
                # Some lines are written a moment after what they tell of.
                for event in sorted(state.events.get(name, ()), key=lambda each: each.timestamp_ms)
            ],
        )

    async def GetLedger(
        self, request: forecast_pb2.GetLedgerRequest, context: Context
    ) -> forecast_pb2.GetLedgerResponse:
        """Alarms and their ends. Raises `Refused`: UNKNOWN_NODE, NOT_LAS_LEADER."""
        self._leadership.require()
        state = self._group.state
        node = known_node(state, request.node) if request.node else None
        numbers = sorted(
            number for number, case in state.cases.items() if node is None or case.node == node
        )
        newest = numbers[-min(request.limit or CASES_TOLD, CASES_MAX) :]
        return forecast_pb2.GetLedgerResponse(
            cases=[_ledger_case(state.cases[number]) for number in newest]
        )

    async def GetEffect(
        self, request: forecast_pb2.GetEffectRequest, context: Context
    ) -> forecast_pb2.GetEffectResponse:
        """What protection saved. Raises `Refused`: NOT_LAS_LEADER."""
        self._leadership.require()
        found = effect(self._group.state.cases.values())
        return forecast_pb2.GetEffectResponse(
            protected=found.protected,
            held_out=found.held_out,
            saved_s=_estimate(found.saved_s),
            saved_total_s=_estimate(found.saved_total_s),
            precision=_estimate(found.precision),
        )

    async def ReportForecast(
        self, request: forecast_pb2.ReportForecastRequest, context: Context
    ) -> forecast_pb2.ReportForecastResponse:
        """Take an outside forecast of one node; the newest of each forecaster counts for a minute.

        Raises:
            Refused: UNKNOWN_NODE, INVALID_ARGUMENT, STATE_CHANGED, OVERLOADED, LIMIT_REACHED,
                NOT_LAS_LEADER.
        """
        term = self._leadership.require()
        term.forecaster.outside.take(
            self._group.state,
            self._callers.name_of(context),
            request.node,
            source=request.source,
            horizons=[(each.horizon_s, each.probability) for each in request.horizons],
            age_ms=request.age_ms,
            now_ms=now_ms(),
        )
        return forecast_pb2.ReportForecastResponse()


def _estimate(found: Estimate) -> forecast_pb2.Estimate:
    return forecast_pb2.Estimate(value=found.value, low=found.low, high=found.high)


def _ledger_case(case: Case) -> forecast_pb2.LedgerCase:
    return forecast_pb2.LedgerCase(
        number=case.number,
        node=case.node,
        opened_ms=case.opened_ms,
        response=case.response.value,
        rule=case.rule,
        probability=case.probability,
        horizon_s=case.horizon_s,
        line=case.line,
        model_id=case.model_id,
        eligible=case.eligible,
        copies_spent=case.copies_spent,
        bytes_spent=case.bytes_spent,
        why=case.why,
        outcome=case.outcome.value,
        closed_ms=case.closed_ms,
        lead_ms=case.lead_ms,
        shielded_ms=case.shielded_ms,
        expendable_ms=case.expendable_ms,
        pause_ms=case.pause_ms,
        told=case.told,
    )


def _actions(state: ClusterState, seen: Explanation) -> list[forecast_pb2.PlannedAction]:
    return [
        forecast_pb2.PlannedAction(
            kind=type(action).__name__.lower(),
            shard=action.shard,
            log=state.shards[action.shard].shard.log,
            why=action.why,
        )
        for action in seen.actions[:ACTIONS_TOLD_MAX]
    ]


def known_node(state: ClusterState, name: str) -> NodeName:
    """`name`, if it is a node. Raises `Refused`: UNKNOWN_NODE."""
    node = NodeName(name)
    if node not in state.nodes:
        text = f"no node is called {name!r}: `peerctl node list` shows them"
        raise Refused(refusal(Reason.UNKNOWN_NODE, text))
    return node


def forecast_of(
    state: ClusterState, name: NodeName, forecaster: FleetForecaster, *, heads: bool = True
) -> forecast_pb2.NodeForecast:
    """The wire form of a node's newest forecast; without samples of it, one that is not known.

    `heads`: each head apart too; who watches a whole fleet does without.
    """
    evaluation, at_ms = forecaster.latest, now_ms()
    outlook = evaluation.nodes.get(name)
    slow = evaluation.slow.nodes.get(name, ())
    parts = [each.part for each in slow]
    told = forecast_pb2.NodeForecast(
        outside=[_outside(each, at_ms) for each in forecaster.outside.of(name, at_ms)],
        node=name,
        model_id=evaluation.model_id,
        at_risk=state.nodes[name].at_risk,
        heads=[_head(each, evaluation) for each in slow] if heads else [],
    )
    if outlook is not None:
        parts.append(
            Part(horizons_s=HORIZONS_S, probabilities=outlook.probabilities, known=outlook.known)
        )
        told.horizons.extend(_horizons(HORIZONS_S, outlook.probabilities))
        told.reasons.extend(_reasons(outlook.reasons))
        told.input_age_ms = outlook.input_age_ms
        told.known = outlook.known
    if parts:
        told.joined.extend(_horizons(JOIN_HORIZONS_S, joined(parts).probabilities))
    return told


def _outside(told: OutsideForecast, at_ms: int) -> forecast_pb2.OutsideForecast:
    return forecast_pb2.OutsideForecast(
        forecaster=told.forecaster,
        source=told.source,
        horizons=[
            forecast_pb2.Horizon(horizon_s=horizon_s, probability=probability)
            for horizon_s, probability in told.horizons
        ],
        age_ms=max(0, at_ms - told.made_ms),
    )


def _head(outlook: HeadOutlook, evaluation: Evaluation) -> forecast_pb2.HeadForecast:
    age_ms = evaluation.timestamp_ms - evaluation.slow.asked_s * 1000
    return forecast_pb2.HeadForecast(
        head=outlook.head,
        model_id=outlook.model_id,
        known=outlook.part.known,
        horizons=_horizons(outlook.part.horizons_s, outlook.part.probabilities),
        reasons=_reasons(outlook.reasons),
        input_age_ms=max(age_ms, 0) if outlook.part.known else 0,
        without=outlook.without,
    )


def _reasons(reasons: Sequence[forecast_answer.Reason]) -> list[forecast_pb2.ForecastReason]:
    return [
        forecast_pb2.ForecastReason(metric=each.metric, text=each.text, weight=each.weight)
        for each in reasons
    ]


def _horizons(
    horizons_s: Sequence[int], probabilities: Sequence[float]
) -> list[forecast_pb2.Horizon]:
    return [
        forecast_pb2.Horizon(horizon_s=horizon_s, probability=probability)
        for horizon_s, probability in zip(horizons_s, probabilities, strict=True)
    ]

"""One replay: a history, a fleet in virtual time, and what the judgement makes of a predictor.

Three ways to meet the same outages:
- *nothing*: nobody moves anything; a shard waits for its node.
- *react only*: failovers and repairs, as soon as a failure is seen.
- *anticipate*: the judgement of the daemon decides every `step_s`, the planner protects.

Nodes that are in service for the whole time take part, so that the fleet stays the same. Outages
that somebody wished (`Cause.OPERATOR`) happen as well, and are no failures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt

from las.core.judgement import Judge, Outlook, Rules
from las.replay.fleet import Model, Tally, VirtualFleet
from las.replay.histories import History
from las.replay.predictors import Predictor
from peerd.core.ids import NodeName

NOTHING, REACT, ANTICIPATE = "nothing", "react only", "anticipate"
# A node whose forecast is below this share of its line moves nothing: it is counted, not judged.
_CALM = 0.2
RECORD_BYTES = 1_000
"""Bytes of the record in "record-seconds"."""

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is tried. `rules` are those of the judgement; `model` is the made-up fleet."""

    way: str = ANTICIPATE
    rules: Rules = field(default_factory=Rules)
    model: Model = field(default_factory=Model)
    step_s: int = 21_600


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one replay cost."""

    way: str
    threshold: float
    at_risk_share_max: float
    exposure_cost: float
    nodes: int
    days: float
    failures: int
    shielded: int
    expendable: int
    alarms: int
    unavailable_s: float
    short_record_s: float
    loss_probability: float
    copied_bytes: float
    extra_copies: float

    def as_dict(self) -> dict[str, object]:
        """As JSON takes it."""
        return asdict(self)


def replay(
    history: History,
    predictor: Predictor | None,
    options: Options,
    *,
    begin_s: int,
    end_s: int,
    progress: Progress,
) -> Outcome:
    """Play a history from `begin_s` to `end_s`. Raises `ValueError`: too few nodes."""
    stays = (history.since_s <= begin_s) & (history.until_s >= end_s)
    rows = np.flatnonzero(stays)
    places = [history.places[row] for row in rows.tolist()]
    fleet = VirtualFleet(places, options.model, begin_s)
    events = _events(history, {place.node for place in places}, begin_s, end_s)
    names = [NodeName(place.node) for place in places]
    judge = Judge(options.rules)
    anticipates = options.way == ANTICIPATE and predictor is not None
    at = 0
    for now_s in range(begin_s, end_s, options.step_s):
        fleet.advance(now_s)
        if anticipates and predictor is not None:
            forecast = predictor.horizon_s, predictor.at(now_s)[rows]
            _judge(fleet, judge, names, forecast, now_s)
        until_s = min(now_s + options.step_s, end_s)
        while at < len(events) and events[at][0] < until_s:
            moment_s, goes_up, node, failed = events[at]
            at += 1
            fleet.advance(moment_s)
            if goes_up:
                fleet.up(node, moment_s)
            else:
                fleet.down(node, moment_s, failed=failed)
        progress((until_s - begin_s) / (end_s - begin_s))
    return _outcome(options, fleet.end(end_s), len(places), end_s - begin_s)


def _outcome(options: Options, tally: Tally, nodes: int, span_s: int) -> Outcome:
    rules, model = options.rules, options.model
    held_byte_s = nodes * model.bytes_per_node * span_s
    return Outcome(
        way=options.way,
        threshold=rules.threshold,
        at_risk_share_max=rules.at_risk_share_max,
        exposure_cost=rules.exposure_cost,
        nodes=nodes,
        days=span_s / 86_400,
        failures=tally.failures,
        shielded=tally.shielded,
        expendable=tally.expendable,
        alarms=tally.alarms,
        unavailable_s=tally.unavailable_s,
        short_record_s=tally.short_byte_s / RECORD_BYTES,
        loss_probability=float(-np.expm1(-tally.losses(model, nodes * span_s))),
        copied_bytes=tally.copied_bytes,
        extra_copies=tally.extra_byte_s * model.copies / held_byte_s,
    )


def _events(
    history: History, nodes: set[str], begin_s: int, end_s: int
) -> list[tuple[int, bool, NodeName, bool]]:
    """(second, goes up, node, failed) in order; outages that overlap are one."""
    merged: dict[str, list[list[int]]] = {}
    for outage in sorted(history.outages, key=lambda each: each.begin_s):
        if outage.node not in nodes or not begin_s <= outage.begin_s < end_s:
            continue
        spans = merged.setdefault(outage.node, [])
        ends_s = end_s if outage.end_s is None else outage.end_s
        if spans and outage.begin_s <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], ends_s)
        else:
            spans.append([outage.begin_s, ends_s, outage.is_failure])
    events = []
    for name, spans in merged.items():
        for begin, end, failed in spans:
            events.append((begin, False, NodeName(name), bool(failed)))
            if end < end_s:
                # At the same second a node goes down before it comes up again.
                events.append((max(end, begin + 1), True, NodeName(name), False))
    return sorted(events)


def _judge(
    fleet: VirtualFleet,
    judge: Judge,
    names: list[NodeName],
    forecast: tuple[int, npt.NDArray[np.float64]],
    now_s: int,
) -> None:
    """One round of the daemon's judgement, carried out at once."""
    state = fleet.state
    horizon_s, probabilities = forecast
    at_risk = {name for name, node in state.nodes.items() if node.at_risk}
    floor = _CALM * min(judge.rules.threshold, fleet.cost_line_min(judge.rules))
    outlooks, stakes, up = {}, {}, 0
    for name, probability in zip(names, probabilities.tolist(), strict=True):
        if not fleet.is_up(name):
            continue
        up += 1
        if probability >= floor or name in at_risk:
            outlooks[name] = Outlook(horizons=((horizon_s, probability),))
            stakes[name] = fleet.stake(name)
    verdict = judge.judge(outlooks, at_risk, now_s * 1_000, stakes=stakes, up=up)
    for name in verdict.end:
        fleet.set_at_risk(name, now_s, at_risk=False)
    for name in verdict.begin:
        fleet.set_at_risk(name, now_s, at_risk=True)

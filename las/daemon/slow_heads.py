"""The heads whose inputs change by the minute or the day, asked now and then for the whole fleet.

Invariants:
- They never act: what they say is joined for people and for `-o json` (las/forecast/join.py).
- A head whose file is refused, or that answers with something that is no probability, is given up
  until the next start; the others go on, and the note says so.
- Asked once a `REFRESH_S`, sooner if the history or the fleet changed, but not within
  `REST_S` of the last time: of 10,000 nodes one asking costs half a second of the model's thread.

The hardware head reads daily SMART readings (las/forecast/hardware_inputs.py). Peers do not send
them yet, so it says that it has no input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from las.core.history import FailureHistory
from las.core.state import ClusterState
from las.forecast.answer import REASONS_MAX, Reason
from las.forecast.contract import HARDWARE, HISTORY, ModelRefused
from las.forecast.heads import Head, shipped_head
from las.forecast.history_inputs import Place, history_inputs
from las.forecast.join import Part
from peerd.core.ids import NodeName
from peerd.daemon.logging import get_logger

REFRESH_S = 60
REST_S = 5
# limit: nodes whose reasons are worked out in one run, the riskiest first; each costs one run of a
# few rows.
EXPLAINED_MAX = 16

_WEEK_S = 604_800

_log = get_logger("forecast")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOutlook:
    """What one head says of one node."""

    head: str
    model_id: str
    part: Part
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowForecast:
    """By node, what each slow head says; asked at `asked_s`, seconds since 1970."""

    asked_s: int = 0
    nodes: Mapping[NodeName, tuple[HeadOutlook, ...]] = field(default_factory=dict)


class SlowHeads:
    """The shipped hardware and history heads. Used from one thread at a time."""

    def __init__(self, heads: Mapping[str, Head], note: str = "") -> None:
        """`note` is what an operator should know of them; empty if all were taken."""
        self._heads = dict(heads)
        self.note = note
        self._latest = SlowForecast()
        self._asked_of: tuple[FailureHistory, tuple[NodeName, ...]] | None = None

    @classmethod
    def load(cls) -> SlowHeads:
        """The shipped heads. Blocks while it reads the files."""
        heads, notes = {}, []
        for head in (HARDWARE, HISTORY):
            try:
                heads[head] = shipped_head(head)
            except (ModelRefused, OSError) as error:
                notes.append(f"no {head} head ({error})")
        return cls(heads, "; ".join(notes))

    def ask(self, state: ClusterState, now_s: int) -> SlowForecast:
        """What the heads say of every node, at most `REFRESH_S` old.

        A node that registered within the last `REST_S` may be missing.
        """
        fleet = tuple(sorted(state.nodes))
        told = self._asked_of
        same = told is not None and told[0] is state.history and told[1] == fleet
        if told is not None:
            age_s = now_s - self._latest.asked_s
            if 0 <= age_s < (REFRESH_S if same else REST_S):
                return self._latest
        answers: dict[NodeName, list[HeadOutlook]] = {name: [] for name in fleet}
        for name, head in list(self._heads.items()):
            try:
                outlooks = self._asked(name, head, state, fleet, now_s)
            except ModelRefused as error:
                _log.error("head given up", head=name, why=str(error))
                self.note = f"the {name} head was given up ({error})"
                del self._heads[name]
                continue
            for node, outlook in zip(fleet, outlooks, strict=True):
                answers[node].append(outlook)
        self._asked_of = (state.history, fleet)
        self._latest = SlowForecast(
            asked_s=now_s, nodes={node: tuple(each) for node, each in answers.items()}
        )
        return self._latest

    @staticmethod
    def _asked(
        name: str, head: Head, state: ClusterState, fleet: tuple[NodeName, ...], now_s: int
    ) -> list[HeadOutlook]:
        window = head.contract.window
        if name == HISTORY:
            places = [_place(state, node) for node in fleet]
            inputs = history_inputs(state.history.outages, now_s, places)[:, None]
        else:
            shape = (len(fleet), window, len(head.contract.features))
            inputs = np.full(shape, np.nan, dtype=np.float32)
        forecast = head.predict(inputs)
        week = forecast.probabilities[:, forecast.horizons_s.index(_WEEK_S)]
        # What is not above the ordinary needs no reason.
        base = head.contract.base_rates[forecast.horizons_s.index(_WEEK_S)]
        riskiest = np.argsort(-week, kind="stable")[:EXPLAINED_MAX]
        reasons = {
            row: head.reasons(inputs[row], count=REASONS_MAX)
            for row in riskiest.tolist()
            if forecast.known[row] and week[row] > base
        }
        return [
            HeadOutlook(
                head=name,
                model_id=forecast.model_id,
                part=Part(
                    horizons_s=forecast.horizons_s,
                    probabilities=tuple(row_of),
                    known=bool(forecast.known[row]),
                ),
                reasons=reasons.get(row, ()),
            )
            for row, row_of in enumerate(forecast.probabilities.tolist())
        ]


def _place(state: ClusterState, name: NodeName) -> Place:
    node = state.nodes[name]
    return Place(name, node.host, node.label("rack"), node.in_service_s or None)

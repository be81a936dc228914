"""The heads whose inputs change by the minute or the day, asked now and then for the whole fleet.

Invariants:
- They never act: what they say is joined for people and for `-o json` (las/forecast/join.py).
- A head whose file is refused, or that answers with something that is no probability, is given up
  until another version answers; the others go on, and the note says so.
- A version that was installed for a head takes the place of the shipped one (see
  las/daemon/model.py); its candidate is asked beside it, and only compared.
- Asked once a `REFRESH_S`, sooner if the history or the fleet changed, but not within
  `REST_S` of the last time: of 10,000 nodes one asking costs half a second of the model's thread.
- A node of which a head has no input is not known to it, and the outlook says why.

The hardware head reads the peers' daily SMART readings (las/daemon/disk_readings.py), the history
head the outages that the group has committed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from las.core.history import FailureHistory
from las.core.model_registry import SHIPPED, ModelHead, ModelRegistry, version_words
from las.core.state import ClusterState, NodeState
from las.daemon.disk_readings import DiskReadings
from las.forecast.answer import REASONS_MAX, Reason
from las.forecast.comparison import Comparison
from las.forecast.contract import HARDWARE, HISTORY, ModelRefused
from las.forecast.heads import TABLES, Head, HeadForecast, Inputs, shipped_head
from las.forecast.history_inputs import Place, history_inputs
from las.forecast.join import Part
from peerd.core.ids import NodeName
from peerd.daemon.logging import get_logger

REFRESH_S = 60
REST_S = 5
# limit: nodes whose reasons are worked out in one run, the riskiest first; each costs one run of a
# few rows.
EXPLAINED_MAX = 16

HEADS = (HARDWARE, HISTORY)

_WEEK_S = 604_800

_log = get_logger("forecast")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOutlook:
    """What one head says of one node. `without`: why it has no input of it; empty if it has."""

    head: str
    model_id: str
    part: Part
    reasons: tuple[Reason, ...] = ()
    without: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowForecast:
    """By node, what each slow head says; asked at `asked_s`, seconds since 1970."""

    asked_s: int = 0
    nodes: Mapping[NodeName, tuple[HeadOutlook, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class HeadShadow:
    """A version of a head that runs beside the live one. `given_up`: why it does not any more."""

    version: int
    model: Head | None
    comparison: Comparison = field(default_factory=lambda: Comparison(_WEEK_S))
    given_up: str = ""


class SlowHeads:
    """The hardware and history heads. Used from one thread at a time."""

    def __init__(self, heads: Mapping[str, Head], notes: Mapping[str, str] | None = None) -> None:
        """`notes` are what an operator should know of each; none if all were taken."""
        self._shipped = dict(heads)
        self._heads = dict(heads)
        self._shipped_notes = dict(notes or {})
        self.notes = dict(notes or {})
        self._live = dict.fromkeys(HEADS, SHIPPED)
        self.shadows: dict[str, HeadShadow] = {}
        self._latest = SlowForecast()
        self._asked_of: tuple[FailureHistory, tuple[NodeName, ...], int] | None = None

    @classmethod
    def load(cls) -> SlowHeads:
        """The shipped heads. Blocks while it reads the files."""
        heads, notes = {}, {}
        for head in HEADS:
            try:
                heads[head] = shipped_head(head)
            except (ModelRefused, OSError) as error:
                notes[head] = f"no {head} head ({error}): install the package with it"
        return cls(heads, notes)

    @property
    def note(self) -> str:
        """What an operator should know of all; empty if all is as wanted."""
        return "; ".join(self.notes.values())

    def answering(self, head: str) -> str:
        """Id of the model that answers for a head; empty if none does."""
        model = self._heads.get(head)
        return "" if model is None else model.model_id

    def shipped(self, head: str) -> str:
        """Id of the shipped model of a head; empty if it was refused."""
        model = self._shipped.get(head)
        return "" if model is None else model.model_id

    def follow(self, registry: ModelRegistry) -> None:
        """Use the versions that the group has agreed on."""
        for head in HEADS:
            wanted = registry.of(ModelHead(head))
            if wanted.live != self._live[head]:
                self._use(head, registry, wanted.live)
            shadow = self.shadows.get(head)
            if wanted.candidate != (None if shadow is None else shadow.version):
                self._run_beside(head, registry, wanted.candidate)

    def _use(self, head: str, registry: ModelRegistry, live: int) -> None:
        self._live[head] = live
        self._asked_of = None
        self._heads.pop(head, None)
        self.notes.pop(head, None)
        if head in self._shipped:
            self._heads[head] = self._shipped[head]
        if head in self._shipped_notes:
            self.notes[head] = self._shipped_notes[head]
        version = registry.version(live)
        if version is None:
            return
        try:
            self._heads[head] = Head.from_bytes(version.content, TABLES[head])
            self.notes.pop(head, None)
        except ModelRefused as error:
            _log.error("head refused", head=head, version=live, why=str(error))
            self.notes[head] = (
                f"{version_words(live)} of the {head} model cannot be used here ({error}), the "
                f"shipped one answers: `las model rollback --head {head}`"
            )

    def _run_beside(self, head: str, registry: ModelRegistry, candidate: int | None) -> None:
        self.shadows.pop(head, None)
        self._asked_of = None
        version = registry.version(candidate)
        if version is None:
            return
        try:
            model = Head.from_bytes(version.content, TABLES[head])
            self.shadows[head] = HeadShadow(version.version, model)
        except ModelRefused as error:
            why = f"it cannot be used here: {error}"
            self.shadows[head] = HeadShadow(version.version, None, given_up=why)

    def ask(self, state: ClusterState, disks: DiskReadings, now_s: int) -> SlowForecast:
        """What the heads say of every node, at most `REFRESH_S` old.

        A node that registered within the last `REST_S` may be missing.
        """
        fleet = tuple(sorted(state.nodes))
        told = self._asked_of
        basis = (state.history, fleet, disks.number)
        same = told is not None and told[0] is state.history and told[1:] == basis[1:]
        if told is not None:
            age_s = now_s - self._latest.asked_s
            if 0 <= age_s < (REFRESH_S if same else REST_S):
                return self._latest
        answers: dict[NodeName, list[HeadOutlook]] = {name: [] for name in fleet}
        for name, head in list(self._heads.items()):
            try:
                outlooks = self._asked(name, head, state=state, disks=disks, now_s=now_s)
            except ModelRefused as error:
                _log.error("head given up", head=name, why=str(error))
                self.notes[name] = f"the {name} head was given up ({error})"
                del self._heads[name]
                continue
            for node, outlook in zip(fleet, outlooks, strict=True):
                answers[node].append(outlook)
        self._asked_of = basis
        self._latest = SlowForecast(
            asked_s=now_s, nodes={node: tuple(each) for node, each in answers.items()}
        )
        return self._latest

    def _asked(
        self, name: str, head: Head, *, state: ClusterState, disks: DiskReadings, now_s: int
    ) -> list[HeadOutlook]:
        fleet = tuple(sorted(state.nodes))
        if name == HISTORY:
            places = [_place(state, node) for node in fleet]
            inputs = history_inputs(state.history.outages, now_s, places)[:, None]
        else:
            inputs = disks.windows(fleet, now_s)
        forecast = head.predict(inputs)
        self._compare(name, inputs=inputs, live=forecast, state=state, fleet=fleet, now_s=now_s)
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
                without=""
                if name == HISTORY or forecast.known[row]
                else disks.why_without(fleet[row]),
            )
            for row, row_of in enumerate(forecast.probabilities.tolist())
        ]

    def _compare(
        self,
        name: str,
        *,
        inputs: Inputs,
        live: HeadForecast,
        state: ClusterState,
        fleet: tuple[NodeName, ...],
        now_s: int,
    ) -> None:
        shadow = self.shadows.get(name)
        if shadow is None or shadow.model is None or shadow.given_up:
            return
        try:
            told = shadow.model.predict(inputs)
        except ModelRefused as error:
            shadow.given_up = str(error)
            return
        settle(shadow.comparison, state, now_s)
        rows = [
            row
            for row in np.flatnonzero(live.known & told.known).tolist()
            if state.is_node_up(fleet[row])
        ]
        week = live.horizons_s.index(_WEEK_S)
        shadow.comparison.add(
            now_s,
            [fleet[row] for row in rows],
            live.probabilities[rows, week],
            told.probabilities[rows, week],
        )


def settle(comparison: Comparison, state: ClusterState, now_s: int) -> None:
    """Tell a comparison what became of the nodes that it waits for."""
    protected = [
        name
        for name, node in state.nodes.items()
        if (node.at_risk or node.draining) and node.state is NodeState.UP
    ]
    comparison.protected(now_s, protected)
    for name in comparison.waiting:
        if state.is_node_up(NodeName(name)):
            continue
        outage = state.history.still_down(name)
        failed = NodeName(name) in state.nodes and outage is not None and outage.is_failure
        comparison.ended(name, failed=True if failed else None)


def _place(state: ClusterState, name: NodeName) -> Place:
    node = state.nodes[name]
    return Place(name, node.host, node.label("rack"), node.in_service_s or None)

"""Which nodes are at risk, and why: forecasts in, changes of the committed flag out. No clock.

Rules (docs/anticipation.md §3), each with its key in `[policy]`:
- *Threshold.* At risk after `consecutive` forecasts in a row with p(`horizon_s`) at or above
  `threshold`. That horizon is an hour at most: trouble that is under way.
- *Expected cost.* Or when, at a longer horizon, p(h) × the cost of an unforeseen failure reaches
  the cost of protecting the node now. Short horizons are left to the threshold: a few per cent
  within ten minutes are true only as far as the laboratory's share of sick nodes is.
- *Signs.* Or when it has long been far slower than its own past, or something of it is about to
  run out, whatever the model says (`las.core.signs`).
- *Patience.* For a node that has just taken over many shards (`las.core.patience`) neither the
  threshold nor signs of load count, and the model is not disbelieved for it, unless there are hard
  signs: errors of disk or memory, or an outside forecast. What was counted begins anew afterwards.
- *Hysteresis.* Off after `off_after_ms` with everything below `off_share` of its line. A forecast
  that is not known counts for neither.
- *Budgets.* So much of the fleet, so many shadows and, for what is protected for its cost alone,
  so many bytes; at least one node, the riskiest first. A node that is protected for its cost alone
  gives its place to one whose pressure is `replace_factor` times its own.
- *Circuit breaker.* If too large a part of the fleet cries, now or one after the other, if
  forecasts jump about, or if the ledger says that they have drifted, the model is not believed:
  nothing changes, and what is counted begins anew.

Must not: forget what was committed. A new leader starts from the committed flags.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from las.core.signs import (
    LOAD_SIGNS,
    NO_SIGNS,
    SIGNS,
    Rule,
    SignRules,
    Signs,
    compared_signs,
    held_signs,
)
from peerd.core.ids import NodeName

HOUR_S = 3_600
# A forecast that moves by more than this from one round to the next has jumped.
JUMP = 0.5
# Nothing is so cheap that one chance in a thousand would be worth a change.
COST_LINE_MIN = 1e-3
# Share of the fleet whose forecasts may jump in one round, but at least one node.
JUMPING_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules(SignRules):
    """Numbers of the rules; `las.daemon.config.Policy` gives each its meaning and bounds."""

    threshold: float = 0.8
    horizon_s: int = 600
    consecutive: int = 2
    off_share: float = 0.5
    off_after_ms: int = 900_000
    pause_cost_bytes: int = 64 << 20
    exposure_cost: float = 4.0
    shadow_cost_bytes: int = 8 << 20
    at_risk_share_max: float = 0.34
    shadows_max: int = 4_096
    copy_bytes_per_s: int = 800 << 20
    replace_factor: float = 1.5
    breaker_share: float = 0.5
    breaker_window_ms: int = 900_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is expected of a node.

    Attributes:
        horizons: (seconds, probability of failing within them), shortest first.
        known: False if too little was seen and the base rate stands for it.
        calibrated: whether a few per cent mean a few per cent; else the threshold alone decides.
        signs: what was read off its samples.
        hard: there are signs of trouble that no load makes.
    """

    horizons: tuple[tuple[int, float], ...] = ()
    known: bool = True
    calibrated: bool = True
    signs: Signs = NO_SIGNS
    hard: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stake:
    """What the failure of a node would touch.

    `led`, `voting`: open segments that it leads, in which it votes. `stored_bytes`: what it has;
    `copy_bytes`: what of that is still to be copied before it can be spared.
    """

    led: int = 0
    voting: int = 0
    stored_bytes: int = 0
    copy_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The strongest rule for a node in one round: `value` against the `line` that it must reach.

    `pressure` is the one divided by the other: at 1 the rule holds. `probability` and `horizon_s`
    are of the forecast that decided; a sign has `sign_words` instead.
    """

    rule: Rule
    value: float
    line: float
    probability: float = 0.0
    horizon_s: int = 0
    sign_words: str = ""

    @property
    def pressure(self) -> float:
        """How near the rule is: it holds from 1 on."""
        return self.value / self.line

    @property
    def words(self) -> str:
        """`p(10 min) 0.87 against 0.80`."""
        if self.sign_words:
            return self.sign_words
        told = f"p({span(self.horizon_s)}) {self.value:.2g} against {self.line:.2g}"
        return f"{told}, from which protecting it pays" if self.rule is Rule.COST else told


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows from one round.

    Attributes:
        begin: nodes that are at risk from now on, the riskiest first.
        end: nodes that have recovered.
        held_back: nodes that would be at risk, but a budget is spent.
        crying: nodes for which a rule holds, if the breaker is open; else empty.
        distrust: why the breaker is open; empty while it is closed.
        findings: the rule that holds for each node that is named above.
        why: in words, for each node that is named above.
    """

    begin: tuple[NodeName, ...] = ()
    end: tuple[NodeName, ...] = ()
    held_back: tuple[NodeName, ...] = ()
    crying: tuple[NodeName, ...] = ()
    distrust: str = ""
    findings: Mapping[NodeName, Finding] = field(default_factory=dict)
    why: Mapping[NodeName, str] = field(default_factory=dict)


NOBODY: Mapping[NodeName, Stake] = {}
NOBODY_BUSY: Mapping[NodeName, int] = {}
_NO_STAKE = Stake()


class Judge:
    """Remembers how long each node has been above or below its line."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._above: dict[NodeName, int] = {}
        self._signs: dict[tuple[NodeName, Rule], int] = {}
        self._below_since_ms: dict[NodeName, int] = {}
        self._alarmed_ms: dict[NodeName, int] = {}
        self._outlooks: Mapping[NodeName, Outlook] = {}
        self._stakes: Mapping[NodeName, Stake] = NOBODY
        self._busy: Mapping[NodeName, int] = NOBODY_BUSY
        self._now_ms = 0
        self._up = 0
        self.latest = Verdict()

    def judge(
        self,
        outlooks: Mapping[NodeName, Outlook],
        at_risk: Collection[NodeName],
        now_ms: int,
        *,
        stakes: Mapping[NodeName, Stake] = NOBODY,
        busy: Mapping[NodeName, int] = NOBODY_BUSY,
        drift: str = "",
        up: int = 0,
    ) -> Verdict:
        """Judge one round.

        Args:
            outlooks: Of the nodes that are up; the others are neither judged nor counted.
            at_risk: Nodes with the committed flag.
            now_ms: Monotonic milliseconds.
            stakes: What each node's failure would touch; without one, cost decides nothing.
            busy: Nodes that have just taken over many shards, and for how long still.
            drift: Why the ledger does not bear the forecasts out; empty if it does.
            up: How many nodes are up, if `outlooks` leaves out some that are calm.
        """
        self._busy = busy
        jumping = self._jumping(outlooks)
        self._outlooks, self._stakes, self._now_ms = outlooks, stakes, now_ms
        self._up = max(up, len(outlooks))
        found = {node: self._find(node) for node in outlooks}
        crying = sorted(
            (node for node, each in found.items() if each is not None and each.pressure >= 1.0),
            key=lambda node: _riskiest(node, found[node]),
        )
        findings = {node: each for node in crying if (each := found[node]) is not None}
        distrust = self._distrust(crying, jumping, now_ms) or drift
        if distrust:
            # What is counted here is not evidence: it begins anew.
            self._above.clear()
            self._signs.clear()
            self._below_since_ms.clear()
            self.latest = Verdict(
                crying=tuple(crying),
                distrust=distrust,
                findings=findings,
                why={node: each.words for node, each in findings.items()},
            )
            return self.latest
        self._above = {node: self._above.get(node, 0) + 1 for node in crying}
        due = [node for node in crying if self._is_due(node, findings[node])]
        for node in due:
            self._alarmed_ms[node] = now_ms
        wanted = [node for node in due if node not in at_risk]
        end = self._recovered(found, at_risk, now_ms)
        replaced = self._replaced(wanted, found, at_risk, end)
        staying = [node for node in at_risk if node not in replaced]
        begin, held_back = self._within_budgets(wanted, findings, staying)
        why = {node: findings[node].words for node in begin}
        why |= {node: f"{findings[node].words}; but {spent}" for node, spent in held_back.items()}
        why |= {node: self._calm_words() for node in end}
        why |= {node: f"gives its place to {riskier}" for node, riskier in replaced.items()}
        end = tuple(sorted({*end, *replaced}))
        self.latest = Verdict(
            begin=tuple(begin),
            end=end,
            held_back=tuple(held_back),
            findings={node: findings[node] for node in (*begin, *held_back)},
            why=why,
        )
        return self.latest

    # ------------------------------------------------------------------ one node
    def _find(self, node: NodeName) -> Finding | None:
        """The strongest rule for a node in the newest round; None if nothing is known of it."""
        outlook = self._outlooks[node]
        rules = self.rules
        best: Finding | None = None
        if outlook.known:
            line = self.cost_line(node) if outlook.calibrated else math.inf
            for horizon_s, probability in outlook.horizons:
                if not 0.0 <= probability <= 1.0:
                    continue  # no probability, whoever gave it
                if horizon_s == rules.horizon_s:
                    if self._is_spared(node):
                        continue
                    rule, at = Rule.THRESHOLD, rules.threshold
                elif horizon_s > HOUR_S and line < 1.0:
                    rule, at = Rule.COST, line
                else:
                    continue
                if best is None or probability / at > best.pressure:
                    best = Finding(
                        rule=rule,
                        value=probability,
                        line=at,
                        probability=probability,
                        horizon_s=horizon_s,
                    )
        return self._by_signs(node, outlook, best)

    def _by_signs(self, node: NodeName, outlook: Outlook, best: Finding | None) -> Finding | None:
        """A sign as a reason by itself, once it has lasted."""
        held = {sign.rule: sign for sign in held_signs(outlook.signs, self.rules)}
        for rule in SIGNS:
            sign = held.get(rule)
            if sign is None or (rule in LOAD_SIGNS and self._is_spared(node)):
                self._signs.pop((node, rule), None)
                continue
            rounds = self._signs[node, rule] = self._signs.get((node, rule), 0) + 1
            if rounds >= sign.consecutive and (best is None or best.pressure < 1.0):
                best = Finding(rule=rule, value=sign.value, line=sign.line, sign_words=sign.words)
        return best

    def _has_a_sign(self, node: NodeName) -> bool:
        """Also one that has not lasted yet."""
        return any((node, rule) in self._signs for rule in SIGNS)

    def _is_spared(self, node: NodeName) -> bool:
        """Whether its signs of load do not count: it has just taken over many shards."""
        return node in self._busy and not self._outlooks[node].hard

    def cost_line(self, node: NodeName) -> float:
        """Probability of a failure from which protecting the node pays; infinite: never."""
        stake, rules = self._stakes.get(node, _NO_STAKE), self.rules
        failure = stake.led * rules.pause_cost_bytes + stake.stored_bytes * rules.exposure_cost
        if failure <= 0:
            return math.inf
        protection = stake.voting * rules.shadow_cost_bytes + stake.stored_bytes
        return max(protection / failure, COST_LINE_MIN)

    def _is_due(self, node: NodeName, finding: Finding) -> bool:
        return finding.rule in SIGNS or self._above[node] >= self.rules.consecutive

    def _recovered(
        self,
        found: Mapping[NodeName, Finding | None],
        at_risk: Collection[NodeName],
        now_ms: int,
    ) -> tuple[NodeName, ...]:
        below: dict[NodeName, int] = {}
        for node in at_risk:
            finding, outlook = found.get(node), self._outlooks.get(node)
            if outlook is None or not outlook.known or self._has_a_sign(node):
                continue
            if finding is not None and finding.pressure < self.rules.off_share:
                below[node] = self._below_since_ms.get(node, now_ms)
        self._below_since_ms = below
        lasted = (n for n, since in below.items() if now_ms - since >= self.rules.off_after_ms)
        return tuple(sorted(lasted))

    def _calm_words(self) -> str:
        lasted = span(self.rules.off_after_ms // 1000)
        return f"below {self.rules.off_share:.2g} of its line for {lasted}"

    # ------------------------------------------------------------------ the whole fleet
    def _jumping(self, outlooks: Mapping[NodeName, Outlook]) -> int:
        """Nodes whose deciding forecast moved far since the last round."""
        before, horizon_s, count = self._outlooks, self.rules.horizon_s, 0
        for node, outlook in outlooks.items():
            old = before.get(node)
            if (
                (node in self._busy and not outlook.hard)
                or old is None
                or not (old.known and outlook.known)
            ):
                continue
            now = _at(outlook, horizon_s)
            count += now is not None and abs(now - (_at(old, horizon_s) or 0.0)) > JUMP
        return count

    def _distrust(self, crying: Collection[NodeName], jumping: int, now_ms: int) -> str:
        """Why the forecasts are not believed in this round; empty if they are."""
        rules, count = self.rules, self._up
        most = max(1.0, rules.breaker_share * count)
        if len(crying) > most:
            return f"it says that {len(crying)} of {count} nodes fail"
        if jumping > max(1.0, JUMPING_SHARE * count):
            return f"it jumps for {jumping} of {count} nodes from one round to the next"
        since_ms = now_ms - rules.breaker_window_ms
        self._alarmed_ms = {
            node: at_ms
            for node, at_ms in self._alarmed_ms.items()
            if at_ms > since_ms and node in self._outlooks
        }
        if len(self._alarmed_ms) > most:
            window = span(rules.breaker_window_ms // 1000)
            return f"it said within {window} that {len(self._alarmed_ms)} of {count} nodes fail"
        return ""

    def _replaced(
        self,
        wanted: list[NodeName],
        found: Mapping[NodeName, Finding | None],
        at_risk: Collection[NodeName],
        end: Collection[NodeName],
    ) -> dict[NodeName, NodeName]:
        """Nodes protected for their cost alone that give way, each with the riskier one."""
        nodes_max = max(1, int(self.rules.at_risk_share_max * self._up))
        here = [node for node in at_risk if node in self._outlooks and node not in end]
        if len(here) + len(wanted) <= nodes_max:
            return {}
        weakest = sorted(
            (each.pressure, node)
            for node in here
            if (each := found[node]) is not None
            and each.rule is Rule.COST
            and not self._has_a_sign(node)
        )
        late = wanted[max(0, nodes_max - len(here)) :]
        replaced = {}
        for riskier, (pressure, node) in zip(late, weakest, strict=False):
            finding = found[riskier]
            if finding is None or finding.pressure < self.rules.replace_factor * pressure:
                break
            replaced[node] = riskier
        return replaced

    def _within_budgets(
        self,
        wanted: list[NodeName],
        findings: Mapping[NodeName, Finding],
        at_risk: Collection[NodeName],
    ) -> tuple[list[NodeName], dict[NodeName, str]]:
        """Who may begin, the riskiest first, and which budget holds the others back."""
        rules = self.rules
        nodes_max = max(1, int(rules.at_risk_share_max * self._up))
        now = [node for node in at_risk if node in self._outlooks]
        shadows = sum(self._stakes.get(node, _NO_STAKE).voting for node in now)
        pending = sum(self._stakes.get(node, _NO_STAKE).copy_bytes for node in now)
        count = len(now)
        begin: list[NodeName] = []
        held_back: dict[NodeName, str] = {}
        for node in wanted:
            stake, finding = self._stakes.get(node, _NO_STAKE), findings[node]
            able_bytes = rules.copy_bytes_per_s * finding.horizon_s
            if count >= nodes_max:
                held_back[node] = f"{count} nodes are at risk already (policy.at_risk_share_max)"
            elif count and shadows + stake.voting > rules.shadows_max:
                held_back[node] = f"{shadows} shadows are kept already (policy.shadows_max)"
            elif count and finding.rule is Rule.COST and pending + stake.copy_bytes > able_bytes:
                told = f"{pending >> 20} MiB are to be copied already"
                held_back[node] = f"{told} (policy.copy_bytes_per_s)"
            else:
                begin.append(node)
                count += 1
                shadows += stake.voting
                pending += stake.copy_bytes
        return begin, held_back

    # ------------------------------------------------------------------ in words
    def explain(self, node: NodeName, at_risk: Collection[NodeName]) -> tuple[str, ...]:
        """What was compared with what in the newest round, and what follows, line by line."""
        outlook = self._outlooks.get(node)
        if outlook is None:
            return ("it is not judged: it is not up, or no forecast was made yet",)
        rules = self.rules
        lines = list(self._compared(node, outlook))
        if self._is_spared(node):
            left = span(max(1, self._busy[node] // 1000))
            lines.append(
                f"it has just taken over many shards: signs of load do not count for {left} more "
                "(policy.take_over_patience_s)"
            )
        if self.latest.distrust:
            lines.append(f"not believed: {self.latest.distrust}; nothing is moved")
        elif node in at_risk:
            since = self._below_since_ms.get(node)
            calm = "not below half of its line" if since is None else "calm for "
            calm = calm if since is None else f"{calm}{span((self._now_ms - since) // 1000)}"
            lines.append(f"at risk: {calm}; ends after {span(rules.off_after_ms // 1000)} of calm")
        elif node in self.latest.held_back:
            lines.append(f"held back: {self.latest.why[node]}")
        elif node in self._above:
            times = f"{self._above[node]} times in a row, {rules.consecutive} are needed"
            lines.append(f"above its line {times}")
        else:
            lines.append("not at risk")
        return tuple(lines)

    def _compared(self, node: NodeName, outlook: Outlook) -> list[str]:
        rules, line = self.rules, self.cost_line(node)
        if not outlook.known:
            lines = ["too little was seen of it: the base rate stands, and decides nothing"]
        else:
            lines = []
            for horizon_s, probability in outlook.horizons:
                told = f"p({span(horizon_s)}) {probability:.2g}"
                if horizon_s == rules.horizon_s:
                    lines.append(f"{told} against policy.threshold {rules.threshold:.2g}")
                elif horizon_s > HOUR_S and outlook.calibrated and line < math.inf:
                    pays = "never pays" if line >= 1.0 else f"pays from {line:.2g} on"
                    lines.append(f"{told}: protecting it {pays}")
                else:
                    lines.append(f"{told}, which decides nothing")
        return [*lines, *compared_signs(outlook.signs, rules)]


def _riskiest(node: NodeName, finding: Finding | None) -> tuple[float, NodeName]:
    return (0.0 if finding is None else -finding.pressure), node


def _at(outlook: Outlook, horizon_s: int) -> float | None:
    return next((p for each_s, p in outlook.horizons if each_s == horizon_s), None)


def span(seconds: int) -> str:
    """`10 min`, `1 h`, `7 d`: a time in its largest whole unit."""
    for unit_s, unit in ((86_400, "d"), (HOUR_S, "h"), (60, "min")):
        if seconds >= unit_s and seconds % unit_s == 0:
            return f"{seconds // unit_s} {unit}"
    return f"{seconds} s"

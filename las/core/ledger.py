"""The ledger: each forecast that crossed a line, what was done about it, and how it ended.

A `Case` is one alarm of one node, or one failure that nobody foresaw. It is opened when a rule of
`las.core.judgement` holds and closed once, with what became of it:

| outcome | meaning |
| - | - |
| hit | the node failed while it was protected; the lead says for how long |
| miss | it failed and was not protected: no signal, no budget, held out, or too late |
| false alarm | it was calm again and had not failed; bytes and copies were spent on it |
| unknown | an operator drained, replaced or removed it meanwhile: nobody can tell any more |

What follows from cases is counted here, too: whether the forecasts have drifted from what came
true, and what anticipation is worth by the built-in experiment (`policy.holdout`). Of the alarms
whose miss can cost only a pause a random part is left alone. Who is left alone is drawn without a
look at anything else, so the two groups differ by the protection alone, and the difference of their
means estimates what it saves. The interval is Welch's. Precision is counted on those that were left
alone: protection changes the fate of the others.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from peerd.core.ids import NodeName

# limit: cases that are kept, the newest; years of a fleet whose forecasts are worth having.
CASES_MAX = 4_096
# limit: characters of a reason in a case.
CASE_TEXT_MAX = 300
# Cases with a known end from which on a drift may be told from chance.
DRIFT_CASES_MIN = 30
# limit: newest cases that the drift is counted on.
DRIFT_CASES_MAX = 200
# Standard errors by which what came true may fall short of what was foretold.
DRIFT_ERRORS = 3.0
# limit: failures held out, below which no interval is given.
EFFECT_CASES_MIN = 2
_Z_95 = 1.959964


class Response(StrEnum):
    """What was done about an alarm."""

    PROTECT = "protect"
    HELD_OUT = "held_out"
    """Left alone for the experiment."""
    HELD_BACK = "held_back"
    """A budget was spent."""
    NONE = "none"
    """There was no alarm."""


class Outcome(StrEnum):
    """How a case ended."""

    OPEN = "open"
    HIT = "hit"
    MISS = "miss"
    FALSE_ALARM = "false_alarm"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One alarm and its end. Times are the leader's wall clock, for people and for differences.

    Attributes:
        number: grows by one with each case.
        rule, probability, horizon_s, line: the finding that held; empty and 0 if none did.
        eligible: its miss could cost only a pause, so that it took part in the experiment.
        voting, stored_bytes: what was at stake: votes to keep elsewhere, bytes to copy.
        lead_ms: from the alarm to the failure.
        shielded_ms, expendable_ms: for how long no new record, and none at all, was at stake when
            it failed; -1: it never came to that. A mirror's records are as safe as a shielded
            node's, but its death pauses what it orders.
        pause_ms: shard-milliseconds without appends that its failure cost; -1: not known.
    """

    number: int = 0
    node: NodeName
    opened_ms: int
    response: Response
    rule: str = ""
    probability: float = 0.0
    horizon_s: int = 0
    line: float = 0.0
    model_id: str = ""
    eligible: bool = False
    voting: int = 0
    stored_bytes: int = 0
    why: str = ""
    outcome: Outcome = Outcome.OPEN
    closed_ms: int = 0
    lead_ms: int = 0
    shielded_ms: int = -1
    expendable_ms: int = -1
    pause_ms: int = -1
    told: str = ""

    @property
    def is_open(self) -> bool:
        """Whether its end is not known yet."""
        return self.outcome is Outcome.OPEN

    @property
    def failed(self) -> bool:
        """Whether the node failed."""
        return self.outcome in {Outcome.HIT, Outcome.MISS}

    @property
    def label(self) -> bool | None:
        """What training may learn: failed or not; None where protection may have changed it."""
        if self.is_open or self.outcome is Outcome.UNKNOWN:
            return None
        if self.outcome is Outcome.FALSE_ALARM and self.response is Response.PROTECT:
            return None
        return self.failed

    @property
    def copies_spent(self) -> int:
        """Votes that were kept elsewhere."""
        return self.voting if self.response is Response.PROTECT else 0

    @property
    def bytes_spent(self) -> int:
        """Bytes that were copied; known once the node was expendable."""
        spent = self.response is Response.PROTECT and self.expendable_ms >= 0
        return self.stored_bytes if spent else 0


def is_held_out(draw: float, holdout: float, *, eligible: bool) -> bool:
    """Whether an alarm is left alone, by a number drawn evenly from [0, 1)."""
    return eligible and draw < holdout


def drift(cases: Iterable[Case], model_id: str) -> str:
    """Why the forecasts of this model are not to be believed any more; empty if they are.

    By its own numbers so many of its alarms should have come true; the ledger says how many did.
    """
    ended = [
        case
        for case in cases
        if case.model_id == model_id
        and case.horizon_s
        and case.outcome in {Outcome.HIT, Outcome.MISS, Outcome.FALSE_ALARM}
    ]
    ended = sorted(ended, key=lambda case: case.number)[-DRIFT_CASES_MAX:]
    if len(ended) < DRIFT_CASES_MIN:
        return ""
    expected = sum(case.probability for case in ended)
    error = math.sqrt(sum(case.probability * (1.0 - case.probability) for case in ended))
    true = sum(case.failed for case in ended)
    if true >= expected - DRIFT_ERRORS * error - 1.0:
        return ""
    return f"of its last {len(ended)} alarms {true} came true, {expected:.0f} should have"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval; NaN where too little is known."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What the experiment shows.

    Attributes:
        protected, held_out: alarms of the experiment that ended, by what was drawn.
        saved_s: seconds of pause (of one shard) that protection saves, an alarm.
        saved_total_s: the same over all alarms that were protected and ended.
        precision: share of the alarms left alone that came true.
    """

    protected: int
    held_out: int
    saved_s: Estimate
    saved_total_s: Estimate
    precision: Estimate


def effect(cases: Iterable[Case]) -> Effect:
    """What protection saved, as far as the experiment tells."""
    ended = [
        case
        for case in cases
        if not case.is_open
        and case.outcome is not Outcome.UNKNOWN
        and case.response in {Response.PROTECT, Response.HELD_OUT}
        and not (case.failed and case.pause_ms < 0)
    ]
    protected = [case for case in ended if case.response is Response.PROTECT]
    treated = [_pause_s(case) for case in protected if case.eligible]
    control = [_pause_s(case) for case in ended if case.response is Response.HELD_OUT]
    came_true = sum(case.failed for case in ended if case.response is Response.HELD_OUT)
    saved = difference(control, treated)
    count = len(protected)
    return Effect(
        protected=len(treated),
        held_out=len(control),
        saved_s=saved,
        saved_total_s=Estimate(
            value=saved.value * count, low=saved.low * count, high=saved.high * count
        ),
        precision=share(came_true, len(control)),
    )


def _pause_s(case: Case) -> float:
    return case.pause_ms / 1_000 if case.failed else 0.0


_NOT_KNOWN = Estimate(value=math.nan, low=math.nan, high=math.nan)


def difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Mean of `first` minus mean of `second`, with Welch's interval."""
    if min(len(first), len(second)) < EFFECT_CASES_MIN:
        return _NOT_KNOWN
    (mean_1, error_1), (mean_2, error_2) = _mean(first), _mean(second)
    error = error_1 + error_2
    value = mean_1 - mean_2
    if error <= 0.0:
        return Estimate(value=value, low=value, high=value)
    freedom = error**2 / (error_1**2 / (len(first) - 1) + error_2**2 / (len(second) - 1))
    reach = _student(freedom) * math.sqrt(error)
    return Estimate(value=value, low=value - reach, high=value + reach)


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its variance."""
    mean = math.fsum(values) / len(values)
    spread = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, spread / len(values)


def _student(freedom: float) -> float:
    """The 97.5 % point of Student's distribution, by its expansion around the normal one."""
    z, v = _Z_95, max(freedom, 1.0)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def share(successes: int, count: int) -> Estimate:
    """`successes` of `count`, with Wilson's interval."""
    if count == 0:
        return _NOT_KNOWN
    p, z2 = successes / count, _Z_95**2
    middle = (p + z2 / (2 * count)) / (1 + z2 / count)
    reach = _Z_95 * math.sqrt(p * (1 - p) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return Estimate(value=p, low=max(0.0, middle - reach), high=min(1.0, middle + reach))

"""Signs of trouble that need no model: a node far slower than its own past, or about to run out.

Read off its samples (`las.forecast.signs`), each is a reason by itself once it has lasted, whatever
the model says (docs/anticipation.md §3):
- *Slow.* Its storage takes `slow_factor` times what it used to, and `slow_latency_ms` at least.
- *Stalled.* Its process stands still as much longer than it used to, and `stall_ms` at least: it
  is starved, swapped, or stopped and continued.
- *Distant.* What it sends is answered so much later than it used to be, and `distant_ms` at least:
  half of its round trips, and half as much again as with half of the other nodes. Half of
  `distant_ms` is enough, and `GROWING_CONSECUTIVE` rounds, while they grow steadily, by half of
  what they are in `las.forecast.signs.GROWTH_SAMPLES` seconds: a road that is far, or becomes a
  longer one, does not go on doing so.
- *Lossy.* Its connections wait for retransmission timers, `lossy_per_s` times a second and as many
  times as often as they used to. A link that is far, or loses a little, and stays so is neither.
- *Exhausted.* Memory, descriptors or disk are `exhaustion_share` used and, on the straight line of
  the last half minute, gone within `exhaustion_s`. The line must fit: what jumps and stays is no
  trend.

Why beside a model: what it was never taught it does not see, and these are the ways in which
machines tell of troubles of any kind. The numbers were chosen on the recordings of the fault lab so
that none of its look-alikes is taken for a trouble.

Pure: one node's numbers in, findings out; the caller counts rounds.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Rule(StrEnum):
    """Why a node is at risk."""

    THRESHOLD = "threshold"
    COST = "cost"
    SLOW = "slow"
    STALLED = "stalled"
    DISTANT = "distant"
    LOSSY = "lossy"
    EXHAUSTED = "exhausted"


SIGNS = (Rule.SLOW, Rule.STALLED, Rule.DISTANT, Rule.LOSSY, Rule.EXHAUSTED)
# So many rounds are enough of round trips that grow steadily, by this share of what they are.
GROWING_CONSECUTIVE = 3
GROWTH_SHARE = 0.5
# Load makes these as well.
LOAD_SIGNS = (Rule.SLOW, Rule.STALLED, Rule.DISTANT)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignRules:
    """Numbers of the rules; `las.daemon.config.Policy` gives each its meaning and bounds."""

    slow_factor: float = 20.0
    slow_latency_ms: float = 200.0
    slow_consecutive: int = 10
    stall_ms: float = 200.0
    link_factor: float = 5.0
    link_consecutive: int = 8
    distant_ms: float = 200.0
    lossy_per_s: float = 3.0
    exhaustion_s: int = 60
    exhaustion_share: float = 0.7
    exhaustion_consecutive: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What was read off the samples of one node. Zero, and endless, where too little was seen.

    Attributes:
        slowdown: latency of its storage now, as a multiple of its own past.
        latency_ms: that latency.
        stall_factor: how long its process stands still now, as a multiple of its own past.
        stalled_ms: that time.
        distance_factor: how long its round trips take now, as a multiple of its own past.
        round_trip_ms: that time.
        growth_ms: by how much it has grown on a straight line within some seconds; 0 if none fits.
        loss_factor: how often its connections wait for a timer, as a multiple of its own past.
        timeouts_per_s: that rate.
        exhausting: what runs out first ("memory", "descriptors", "disk"); empty if nothing does.
        exhausted_in_s: seconds until it has, on a straight line.
        used_share: how much of it is used.
    """

    slowdown: float = 0.0
    latency_ms: float = 0.0
    stall_factor: float = 0.0
    stalled_ms: float = 0.0
    distance_factor: float = 0.0
    round_trip_ms: float = 0.0
    growth_ms: float = 0.0
    loss_factor: float = 0.0
    timeouts_per_s: float = 0.0
    exhausting: str = ""
    exhausted_in_s: float = math.inf
    used_share: float = 0.0


NO_SIGNS = Signs()


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A sign that holds now: `value` against its `line`, and in how many rounds it has to."""

    rule: Rule
    value: float
    line: float
    words: str
    consecutive: int


def held_signs(signs: Signs, rules: SignRules) -> Iterator[Held]:
    """The signs that hold in this round."""
    if signs.slowdown >= rules.slow_factor and signs.latency_ms >= rules.slow_latency_ms:
        yield Held(
            rule=Rule.SLOW,
            value=signs.slowdown,
            line=rules.slow_factor,
            words=f"its storage takes {signs.slowdown:.0f} × its own past "
            f"against {rules.slow_factor:.0f} ×",
            consecutive=rules.slow_consecutive,
        )
    if signs.stall_factor >= rules.slow_factor and signs.stalled_ms >= rules.stall_ms:
        yield Held(
            rule=Rule.STALLED,
            value=signs.stall_factor,
            line=rules.slow_factor,
            words=f"its process stands still for {signs.stalled_ms:.0f} ms, "
            f"{signs.stall_factor:.0f} × its own past against {rules.slow_factor:.0f} ×",
            consecutive=rules.slow_consecutive,
        )
    yield from _held_by_link(signs, rules)
    soon = 0.0 <= signs.exhausted_in_s <= rules.exhaustion_s > 0
    if soon and signs.used_share >= rules.exhaustion_share:
        left_s = max(1.0, signs.exhausted_in_s)
        yield Held(
            rule=Rule.EXHAUSTED,
            value=rules.exhaustion_s / left_s,
            line=1.0,
            words=f"its {signs.exhausting} is {signs.used_share:.0%} used and runs out "
            f"in {left_s:.0f} s at this pace",
            consecutive=rules.exhaustion_consecutive,
        )


def _held_by_link(signs: Signs, rules: SignRules) -> Iterator[Held]:
    grows = 0.0 < GROWTH_SHARE * signs.round_trip_ms <= signs.growth_ms
    distant_ms = rules.distant_ms / 2.0 if grows else rules.distant_ms
    if signs.distance_factor >= rules.link_factor and signs.round_trip_ms >= distant_ms:
        yield Held(
            rule=Rule.DISTANT,
            value=signs.distance_factor,
            line=rules.link_factor,
            words=f"its round trips take {signs.round_trip_ms:.0f} ms"
            f"{' and grow' if grows else ''}, "
            f"{signs.distance_factor:.0f} × its own past against {rules.link_factor:.0f} ×",
            consecutive=min(GROWING_CONSECUTIVE, rules.link_consecutive)
            if grows
            else rules.link_consecutive,
        )
    if signs.loss_factor >= rules.link_factor and signs.timeouts_per_s >= rules.lossy_per_s:
        yield Held(
            rule=Rule.LOSSY,
            value=signs.timeouts_per_s,
            line=rules.lossy_per_s,
            words=f"its connections wait for retransmission timers "
            f"{signs.timeouts_per_s:.0f} times a second against {rules.lossy_per_s:.0f}",
            consecutive=rules.link_consecutive,
        )


def compared_signs(signs: Signs, rules: SignRules) -> Iterator[str]:
    """What was compared with what, a line each."""
    if signs.slowdown > 0.0:
        yield (
            f"storage latency {signs.latency_ms:.0f} ms, {signs.slowdown:.1f} × its own "
            f"past, against {rules.slow_factor:.0f} × and {rules.slow_latency_ms:.0f} ms"
        )
    if signs.stall_factor > 0.0:
        yield (
            f"stands still for {signs.stalled_ms:.0f} ms, {signs.stall_factor:.1f} × its own "
            f"past, against {rules.slow_factor:.0f} × and {rules.stall_ms:.0f} ms"
        )
    if signs.distance_factor > 0.0:
        yield (
            f"round trips take {signs.round_trip_ms:.0f} ms, {signs.distance_factor:.1f} × its own "
            f"past, against {rules.link_factor:.0f} × and {rules.distant_ms:.0f} ms"
        )
    if signs.loss_factor > 0.0:
        yield (
            f"{signs.timeouts_per_s:.1f} retransmission timers a second, {signs.loss_factor:.1f} × "
            f"its own past, against {rules.link_factor:.0f} × and {rules.lossy_per_s:.0f}"
        )
    if signs.exhausting and rules.exhaustion_s:
        yield (
            f"{signs.exhausting} {signs.used_share:.0%} used, on a straight line gone in "
            f"{signs.exhausted_in_s:.0f} s, against {rules.exhaustion_share:.0%} "
            f"and {rules.exhaustion_s} s"
        )

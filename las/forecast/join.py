"""The heads joined: one probability by horizon, from all that had something to go by.

Each head foresees another kind of end, so their hazards add: the node stays up if none of them
comes, `1 - Π(1 - p)`. Pure; one node at a time.

Invariants:
- Probabilities never fall with the horizon, and are never below any single head's.
- A head without input of the node adds nothing. If none has any, the base rates stand for the node
  and `known` says so.
- Between a head's horizons its hazard runs evenly; before the first from zero. Beyond its last it
  adds no more: nobody measured what it would be worth there.

What is joined counts as uncalibrated: no data set has the inputs of all heads, so nobody has seen
how their ends go together. It informs. The line of 0.8 is for the incident head alone, which is
calibrated and sees trouble under way; a calibrated disk model hardly ever says more than a few
per cent, and an honest history head not much more.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

# What the join answers for: ten minutes, an hour, a day, a week, thirty days.
JOIN_HORIZONS_S = (600, 3600, 86_400, 604_800, 2_592_000)
# A certain end would be an endless hazard.
_PROBABILITY_MAX = 1.0 - 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one head says of one node: probabilities at its horizons, shortest first."""

    horizons_s: tuple[int, ...]
    probabilities: tuple[float, ...]
    known: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """Probabilities at `JOIN_HORIZONS_S`; `known` is False if only base rates stand in it."""

    probabilities: tuple[float, ...]
    known: bool


def joined(parts: Sequence[Part]) -> Joined:
    """All heads together. Without any part the answer is zero, and not known."""
    having = [part for part in parts if part.known]
    counted = having or parts
    probabilities = []
    for horizon_s in JOIN_HORIZONS_S:
        hazard = sum(_hazard(part, horizon_s) for part in counted)
        probabilities.append(-math.expm1(-hazard))
    return Joined(probabilities=tuple(probabilities), known=bool(having))


def _hazard(part: Part, horizon_s: int) -> float:
    """The head's cumulated hazard up to the horizon."""
    place = bisect_left(part.horizons_s, horizon_s)
    if place == len(part.horizons_s):
        return _cumulated(part.probabilities[-1])
    before_s = part.horizons_s[place - 1] if place else 0
    before = _cumulated(part.probabilities[place - 1]) if place else 0.0
    after = _cumulated(part.probabilities[place])
    share = (horizon_s - before_s) / (part.horizons_s[place] - before_s)
    return before + share * (after - before)


def _cumulated(probability: float) -> float:
    return -math.log1p(-min(probability, _PROBABILITY_MAX))

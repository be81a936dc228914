"""What will happen in a demo, drawn from a seed before anything starts.

The kill comes at `kill_s`, whatever happens meanwhile: nothing moves it, least of all the forecast.
"""

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

APPEND_SECONDS = 75.0
# limit: appends a second; past it one client process on a shared machine no longer keeps an open
# loop's pace
APPENDS_PER_S_MAX = 4_000.0
# decisions.md, Measures: a pause is told at 20 appends a second and shard, or more.
APPENDS_PER_S_PER_SHARD = 20.0
# limit: shards of the demo's log; enough that each of five peers orders two or three
SHARDS_MAX = 12
TRANSACTIONS_DEFAULT = 100_000
TRANSACTIONS_MIN = 1_500
TELEMETRIES = ("heartbeat", "prometheus")
# limit: seeds drawn when none is given; six digits are easily typed again
SEED_MAX = 1_000_000


class Fault(StrEnum):
    """What befalls the victim."""

    SLOW_STORAGE = "slow-storage"
    """Each write of its storage takes longer and longer."""
    SLOW_DISK = "slow-disk"
    """The same by a disk that serves its flushes later and later; needs root."""
    PAUSES = "pauses"
    """It is stopped and continued in turn, the stops growing."""
    SUDDEN = "sudden"
    """Nothing, until the kill."""
    LOOK_ALIKE = "look-alike"
    """A harmless load spike; nobody is sick and nobody is killed."""


class ScenarioError(Exception):
    """The environment asks for something that cannot be; one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One demo. Times in seconds from the first append."""

    seed: int
    fault: Fault
    transactions: int
    append_s: float
    shards: int
    onset_s: float
    """When the victim falls sick, or the spike begins."""
    kill_s: float | None
    """When the victim is killed; None: never."""
    grow_s: float
    """How long the fault grows from its least to its worst."""
    victim_draw: float
    """In [0, 1): which of the peers that are primaries at the onset is the victim."""

    @property
    def appends_per_s(self) -> float:
        """Rate of the open loop."""
        return self.transactions / self.append_s


def draw(seed: int, fault: Fault, transactions: int) -> Scenario:
    """The scenario of a seed. The same arguments give the same scenario for ever."""
    chance = random.Random(f"{seed}/{fault}")
    append_s = max(APPEND_SECONDS, transactions / APPENDS_PER_S_MAX)
    onset_s = chance.uniform(15.0, 25.0)
    kill_s = onset_s + chance.uniform(20.0, 40.0)
    rate = transactions / append_s
    return Scenario(
        seed=seed,
        fault=fault,
        transactions=transactions,
        append_s=append_s,
        shards=max(1, min(SHARDS_MAX, int(rate / APPENDS_PER_S_PER_SHARD))),
        onset_s=onset_s,
        kill_s=None if fault is Fault.LOOK_ALIKE else kill_s,
        grow_s=chance.uniform(12.0, 18.0),
        victim_draw=chance.random(),
    )


def from_environment(environment: Mapping[str, str], available: int) -> tuple[Scenario, Path]:
    """The scenario and the output directory that DEMO_… variables ask for.

    Args:
        environment: DEMO_TRANSACTIONS=N|all, DEMO_SEED=N, DEMO_FAULT=…, DEMO_DIR=…;
            DEMO_TELEMETRY is read by `telemetry_of`.
        available: Number of transactions that there are.

    Raises:
        ScenarioError: a variable has a value that cannot be; names it.
    """
    wanted = environment.get("DEMO_TRANSACTIONS", str(TRANSACTIONS_DEFAULT))
    transactions = available if wanted == "all" else _number("DEMO_TRANSACTIONS", wanted)
    if not TRANSACTIONS_MIN <= transactions <= available:
        raise ScenarioError(
            f"DEMO_TRANSACTIONS={wanted}: choose {TRANSACTIONS_MIN:,} to {available:,}, or all"
        )
    drawn = str(int.from_bytes(os.urandom(4), "big") % SEED_MAX)
    seed = _number("DEMO_SEED", environment.get("DEMO_SEED") or drawn)
    fault = environment.get("DEMO_FAULT") or Fault.SLOW_STORAGE
    if fault not in set(Fault):
        raise ScenarioError(f"DEMO_FAULT={fault}: choose one of {', '.join(Fault)}")
    directory = Path(environment.get("DEMO_DIR") or "build/demo")
    return draw(seed, Fault(fault), transactions), directory


def telemetry_of(environment: Mapping[str, str]) -> str:
    """Where the LAS has its telemetry from: DEMO_TELEMETRY=heartbeat|prometheus.

    Raises:
        ScenarioError: it has another value.
    """
    wanted = environment.get("DEMO_TELEMETRY") or TELEMETRIES[0]
    if wanted not in TELEMETRIES:
        raise ScenarioError(f"DEMO_TELEMETRY={wanted}: choose one of {', '.join(TELEMETRIES)}")
    return wanted


def _number(name: str, text: str) -> int:
    if not text.isdigit():
        raise ScenarioError(f"{name}={text}: a whole number is needed")
    return int(text)

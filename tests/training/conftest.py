"""A made-up fleet: nodes whose commits get slow before they fail, and some that only look so."""

import numpy as np
import pytest

from las.forecast.contract import HORIZONS_S
from las.training.windows import WINDOW_S, Moment
from peerd.daemon.telemetry.schema import ALWAYS_PRESENT, TELEMETRY_SCHEMA

LATENCY = TELEMETRY_SCHEMA.positions["commit_latency_ms_p99"]
PRESENT = TELEMETRY_SCHEMA.positions[ALWAYS_PRESENT]
STEP_S = 1_800


@pytest.fixture
def moments():
    """Makes moments at which `p(sick)` of the nodes are slow, of which `p(fail)` fail."""

    def make(count=100, *, sick=0.1, fail=0.3, later_fail=None, nodes=20, seed=1):
        chance = np.random.default_rng(seed)
        made = []
        for number in range(count):
            slow = chance.random(nodes) < sick
            share = fail if later_fail is None or number < count * 0.7 else later_fail
            failed = slow & (chance.random(nodes) < share)
            windows = np.zeros((nodes, WINDOW_S, len(TELEMETRY_SCHEMA)), dtype=np.float32)
            windows[:, :, PRESENT] = 1.0
            windows[slow, :, LATENCY] = 50.0
            labels = np.repeat(failed[:, None].astype(np.int8), len(HORIZONS_S), axis=1)
            made.append(
                Moment(
                    at_s=number * STEP_S,
                    nodes=tuple(f"peer-{n}" for n in range(nodes)),
                    weight=1.0,
                    windows=windows,
                    labels=labels,
                )
            )
        return made

    return make

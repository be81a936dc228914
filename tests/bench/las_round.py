"""One round of the LAS leader: predict, judge, plan. CPU seconds over 100, 1,000 and 10,000 nodes.

    python -m tests.bench.las_round [NODES ...]

Ten shards a node, three copies each, everything up. Windows are random around a calm past, so the
model runs on all of them; one node in a thousand, at least one, comes to be at risk, and the
planner looks at its shards and at the sweep's share of the others, as the executor does. What
heartbeats cost is not in it.
"""

import random
import resource
import sys
import time

import numpy as np

from las.core.apply import apply
from las.core.commands import CreateLog, RegisterNode, SetAtRisk
from las.core.index import indexed
from las.core.judgement import Judge, Outlook, Rules, Stake
from las.core.placement import FleetView, Limits
from las.core.planner import plan
from las.core.state import ClusterState
from las.daemon.executor import SWEEP_SHARDS_MAX
from las.forecast.contract import HORIZONS_S
from las.forecast.load import load_forecaster
from las.forecast.signs import read_signs
from peerd.core.ids import BootId, NodeName, StoreId, Tick
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

SHARDS_PER_NODE = 10
ROWS_PER_LOG = 100


def fleet(nodes: int) -> ClusterState:
    chance = random.Random(1)
    state = ClusterState(cluster_id="bench")
    names = [NodeName(f"peer-{number}") for number in range(nodes)]
    for name in names:
        command = RegisterNode(
            name=name, store=StoreId(f"s-{name}"), boot=BootId(f"b-{name}"), address=""
        )
        state, _ = apply(state, command)
    for log in range(nodes * SHARDS_PER_NODE // ROWS_PER_LOG):
        chosen = chance.sample(names, min(nodes, 300))
        rows = [tuple(chance.sample(range(len(chosen)), 3)) for _ in range(ROWS_PER_LOG)]
        state, result = apply(
            state,
            CreateLog(name=f"log-{log}", copies=3, acks=2, nodes=tuple(chosen), rows=tuple(rows)),
        )
        assert result.ok, result
    return state


def spent(began: float) -> float:
    return time.process_time() - began


def measure(nodes: int) -> dict[str, float]:
    state = fleet(nodes)
    index = indexed(state)
    forecaster, note = load_forecaster()
    assert not note, note
    window = max(forecaster.window, 120)
    chance = np.random.default_rng(1)
    windows = chance.random((nodes, window, len(TELEMETRY_SCHEMA)), dtype=np.float32) + 0.5
    judge = Judge(Rules(consecutive=1))
    names = sorted(state.nodes)
    sick = set(names[: max(1, nodes // 1_000)])
    forecaster.predict(windows[:, -forecaster.window :])  # the first run allocates

    began = time.process_time()
    forecaster.predict(windows[:, -forecaster.window :])
    signs = read_signs(windows)
    predict_s = spent(began)

    began = time.process_time()
    outlooks = {
        name: Outlook(
            horizons=((HORIZONS_S[0], 0.9 if name in sick else 0.01), (HORIZONS_S[1], 0.9)),
            signs=signs[row],
        )
        for row, name in enumerate(names)
    }
    stakes = {
        name: Stake(led=index.leading[name], voting=index.voting[name], stored_bytes=10**12)
        for name in names
    }
    verdict = judge.judge(outlooks, (), 0, stakes=stakes)
    judge_s = spent(began)
    assert set(verdict.begin) == sick

    shards = set(list(state.shards)[:SWEEP_SHARDS_MAX])
    for name in verdict.begin:
        state, _ = apply(state, SetAtRisk(node=name, at_risk=True))
        shards.update(index.shards_of(name))
    index.update(state)
    began = time.process_time()
    actions = plan(state, FleetView(now=Tick(0)), Limits(), index=index, shards=shards)
    plan_s = spent(began)
    assert actions
    return {
        "predict": predict_s,
        "judge": judge_s,
        "plan": plan_s,
        "all": predict_s + judge_s + plan_s,
    }


def main() -> None:
    sizes = [int(each) for each in sys.argv[1:]] or [100, 1_000, 10_000]
    sys.stdout.write("nodes    shards   predict s  judge s   plan s    all s     peak MB\n")
    for nodes in sizes:
        found = measure(nodes)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_000
        times = "".join(f"{found[name]:<10.3f}" for name in ("predict", "judge", "plan", "all"))
        sys.stdout.write(f"{nodes:<9}{nodes * SHARDS_PER_NODE:<9}{times}{peak_mb:.0f}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

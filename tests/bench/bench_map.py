"""What the past of many shards costs in the committed map: entries shared by segments, and not.

    make bench-fleet ONLY=map

Each variant is measured in a process of its own. Plans change by the real commands,
`PrepareSegment` and `SegmentOpened`, one after the other: the lead goes to the next of the same
three voters, as with a restart or a hand-over.

- *month*: 100,000 shards, 1 % of which change their plan each day, another 1 % each day, 30 days.
- *busy*: one shard in a hundred changed its plan 100 times: 100,000 more segments.
- *longest*: one shard that changed its plan until nothing more was taken.
"""

import gc
import multiprocessing
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from las.core.apply import apply
from las.core.commands import PrepareSegment, RaiseCommandLevel, SegmentOpened
from las.core.snapshot import restore, snapshot
from las.core.state import JOINING_LEVEL, ClusterState
from las.daemon.map_feed import encode_entry
from peerd.core.ids import Offset, ShardId
from peerd.core.shard_map import entries_of
from tests.bench.fleet_state import SHARDS, fleet

NODES = 100
DAYS = 30
SHARE_A_DAY = 0.01
BUSY_SHARE = 0.01
BUSY_CHANGES = 100
RECORDS = 1_000
SEED = 7


def _rss_anon_bytes() -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def _led_on(state: ClusterState, shard: ShardId) -> ClusterState | None:
    """The next voter of `shard` leads; None if no plan is taken any more."""
    entry = state.shards[shard].shard
    voters = entry.open.plan.voters
    at = voters.index(entry.open.plan.primary.replica)
    leader = state.nodes[voters[(at + 1) % len(voters)].peer]
    plan = replace(entry.open.plan, primary=leader.process)
    state, result = apply(state, PrepareSegment(shard=shard, epoch=entry.open.epoch, plan=plan))
    if not result.ok:
        return None
    begin = Offset((entry.open.begin or 0) + RECORDS)
    opened = SegmentOpened(shard=shard, epoch=result.epoch, begin=begin, holders=voters)
    state, result = apply(state, opened)
    assert result.ok, result
    return state


def _changes(case: str) -> list[ShardId]:
    """Which shards change their plan, in order."""
    rng = random.Random(SEED)
    if case == "month":
        of_a_day = round(SHARDS * SHARE_A_DAY)
        days = [rng.sample(range(1, SHARDS + 1), of_a_day) for _ in range(DAYS)]
        return [ShardId(shard) for day in days for shard in day]
    busy = rng.sample(range(1, SHARDS + 1), round(SHARDS * BUSY_SHARE))
    return [ShardId(shard) for _ in range(BUSY_CHANGES) for shard in busy]


def _grown(case: str, *, shared: bool) -> dict[str, object]:
    """Memory, snapshot, wire and what a command takes, after all changes of a case."""
    gc.collect()
    before = _rss_anon_bytes()
    state = fleet(NODES, SHARDS)
    if shared:
        state, _ = apply(state, RaiseCommandLevel(level=JOINING_LEVEL))
    changes = _changes(case)
    began_s = time.process_time()
    for shard in changes:
        after = _led_on(state, shard)
        assert after is not None
        state = after
    applied_s = time.process_time() - began_s
    # What readers are told of newer versions is bounded by itself and not a part of the map.
    state = replace(state, changes=state.changes.__class__())
    gc.collect()
    memory = _rss_anon_bytes() - before
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    data = snapshot(state)
    wrote_s, wrote_cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
    assert snapshot(restore(data)) == data
    entries = [entry.shard.sealed for entry in state.shards.values()]
    wire = sum(encode_entry(each, share=shared).ByteSize() for each in state.shards.values())
    return {
        "sealed_segments": sum(map(len, entries)),
        "entries": sum(len(entries_of(each)) for each in entries),
        "memory_mb": round(memory / 1e6, 1),
        "snapshot_mb": round(len(data) / 1e6, 1),
        "snapshot_s": round(wrote_s, 2),
        "snapshot_cpu_s": round(wrote_cpu_s, 2),
        "whole_map_on_the_wire_mb": round(wire / 1e6, 1),
        "cpu_us_a_command": round(applied_s / (2 * len(changes)) * 1e6, 1),
    }


def _longest(*, shared: bool) -> dict[str, object]:
    """How many plans one shard takes, and what the last of them costs."""
    state: ClusterState | None = fleet(NODES, 1)
    assert state is not None
    if shared:
        state, _ = apply(state, RaiseCommandLevel(level=JOINING_LEVEL))
    plans, times = 0, []
    while True:
        began_s = time.process_time()
        after = _led_on(state, ShardId(1))
        if after is None:
            break
        times.append(time.process_time() - began_s)
        plans, state = plans + 1, after
    entry = state.shards[ShardId(1)]
    last = times[-100:]
    return {
        "plans_taken": plans,
        "cpu_us_a_command_at_the_end": round(sum(last) / len(last) / 2 * 1e6, 1),
        "shard_on_the_wire_bytes": encode_entry(entry, share=shared).ByteSize(),
    }


def grown() -> dict[str, object]:
    """All variants."""
    found: dict[str, object] = {}
    for case in ("month", "busy", "longest"):
        for shared in (False, True):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                task = (
                    pool.submit(_longest, shared=shared)
                    if case == "longest"
                    else pool.submit(_grown, case, shared=shared)
                )
                found[f"{case}, entries {'shared' if shared else 'not shared'}"] = task.result()
    return found

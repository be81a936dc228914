"""What a large fleet costs the LAS: its memory, its snapshot, its planning, its heartbeats.

    make bench-fleet ONLY="size map heartbeats rack detect kill kill-log stutter"

- *size*: a committed state of 10,000 peers and 100,000 shards, each with a sealed past. Memory;
  the snapshot, written beside a thread that does what the consensus thread does, whose longest
  pause is told; commands applied a second; the planner's CPU after the death of one peer.
- *map*: 100,000 shards after 30 days in which 1 % of them change their plan each day, made by the
  real commands, with and without shared entries of sealed segments; and one shard in 100 that
  changed 100 times. Memory, snapshot, bytes on the wire, what a command takes (`bench_map`).
- *heartbeats*: a LAS node in a process of its own takes heartbeats, each with a second's sample,
  over 128 streams. CPU for each, and the fleet that one core bears.
- *rack*: 20 of 100 peers die at once, and with them the primaries of 20,000 shards. The real
  executor recovers them in virtual time: a commit takes 10 ms and a store 20 ms to answer, and
  whatever the leader computes takes the CPU time that it takes.
- *detect*: one of 10,000 peers after the other falls silent, as a host that is off: neighbours miss
  four frames, the real detector and executor weigh it, ask, and open its shards elsewhere. Virtual
  time as with the rack.
- *kill*: a cluster of real processes, in which each of four peers leads 1,000 shards. One gets
  SIGKILL while an append is under way to each of its shards; another one follows.
- *kill-log*: the same in a cluster of five peers with one log of 1,000 shards; then again with a
  second log and a third, while what the deaths before set off is still under way. Told beside the
  times: how often the LAS lost its leader, and whom the forecast took for sick.
- *stutter*: a primary under load is stopped and continued, 300 to 900 ms at a time. Its own view is
  that everybody else stalls. Told are its healthy shadows that were taken out of the voters.
"""

import argparse
import asyncio
import gc
import json
import multiprocessing
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc.aio
import psutil

import peerd.aio
from las.core.apply import apply
from las.core.cluster import Cluster
from las.core.commands import (
    RecordEvent,
    SetNodeState,
    command_to_json,
)
from las.core.index import FleetIndex
from las.core.placement import FleetView, Limits
from las.core.planner import Recover, plan
from las.core.snapshot import restore
from las.core.state import ClusterState, NodeState
from las.v1 import shard_map_pb2
from peerd.client.blocking import Client, connect
from peerd.client.options import ClientOptions
from peerd.core.ids import (
    NodeName,
    Tick,
)
from peerd.testing.dev_cluster import DevCluster, Shape
from peerd.testing.faults import DutyCycle
from tests.bench.bench_map import grown
from tests.bench.fleet_state import NODES, SHARDS, fleet, node
from tests.bench.virtual_fleet import detect, rack

STREAMS = 128
HEARTBEATS_S = 5.0


def rss_anon_bytes() -> int:
    """Private memory of this process."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


# ---------------------------------------------------------------------------------- size
class Pulse:
    """A thread that does a little each millisecond, as the consensus thread does; how long it was
    held up beside what it slept anyway.
    """

    def __init__(self) -> None:
        self.longest_ms = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Pulse":
        self._thread.start()
        time.sleep(0.05)
        self.longest_ms = 0.0
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            began_s = time.monotonic()
            time.sleep(0.001)
            self.longest_ms = max(self.longest_ms, (time.monotonic() - began_s) * 1000 - 1)


def size() -> dict[str, object]:
    """10,000 peers and 100,000 shards."""
    gc.collect()
    before = rss_anon_bytes()
    state = fleet(NODES, SHARDS)
    gc.collect()
    memory = rss_anon_bytes() - before
    cluster = Cluster(state.cluster_id)
    cluster._become(state)
    with Pulse() as calm:
        time.sleep(1.0)
    written: list[bytes] = []
    with Pulse() as pulse:
        began_s = time.monotonic()
        write = cluster.freeze()
        freeze_ms = (time.monotonic() - began_s) * 1000
        writer = threading.Thread(target=lambda: written.append(write()))
        writer.start()
        writer.join()
        snapshot_s = time.monotonic() - began_s
    began_s = time.monotonic()
    assert restore(written[0]) == state
    return {
        "state_mb": round(memory / 1e6, 1),
        "snapshot_mb": round(len(written[0]) / 1e6, 1),
        "snapshot_s": round(snapshot_s, 2),
        "freeze_ms": round(freeze_ms, 3),
        "other_thread_held_up_ms_max": round(pulse.longest_ms, 1),
        "other_thread_held_up_ms_max_without": round(calm.longest_ms, 1),
        "restore_and_compare_s": round(time.monotonic() - began_s, 2),
        **_applying(cluster),
        **_planning(state),
    }


def _applying(cluster: Cluster) -> dict[str, object]:
    """Commands a second: a line in a history, and a node's state, which changes the map."""
    commands = [
        command_to_json(
            RecordEvent(node=NodeName(f"peer-{at % NODES}"), kind="k", text="t", timestamp_ms=at)
            if at % 2
            else SetNodeState(
                node=NodeName(f"peer-{at % NODES}"),
                boot=node(at % NODES).boot,
                state=NodeState.DOWN,
            )
        )
        for at in range(20_000)
    ]
    began_s = time.process_time()
    for command in commands:
        cluster.apply(command)
    return {"commands_applied_per_s": round(len(commands) / (time.process_time() - began_s))}


def _planning(state: ClusterState) -> dict[str, object]:
    """CPU from the commit of one peer's death to all that is to be done about it."""
    index = FleetIndex()
    index.update(state)
    victim = node(500)
    dead = SetNodeState(node=victim.name, boot=victim.boot, state=NodeState.DOWN)
    began_s = time.process_time()
    after, result = apply(state, dead)
    assert result.ok
    index.update(after)
    shards = set(index.shards_of(victim.name))
    view = FleetView(now=Tick(0), down_since={victim.name: Tick(0)})
    actions = plan(after, view, Limits(), index=index, shards=shards)
    planned_s = time.process_time() - began_s
    recoveries = sum(isinstance(action, Recover) for action in actions)
    assert recoveries == sum(
        state.shards[shard].shard.open.plan.primary.peer == victim.name for shard in shards
    )
    return {
        "shards_of_the_dead_peer": len(shards),
        "planned_after_its_death": len(actions),
        "planner_cpu_ms": round(planned_s * 1000, 1),
    }


# ---------------------------------------------------------------------------------- heartbeats
def _serve(directory: str, told: "multiprocessing.Queue[tuple[str, int]]") -> None:
    """A LAS node until killed."""
    from las.daemon.directory import init
    from las.daemon.node import LasNode
    from tests.las_daemon.stand_in import las_config

    async def serve() -> None:
        config = las_config(Path(directory) / "las", lease_ms=60_000)
        init(config, "00000000-0000-4000-8000-000000000001")
        running = await LasNode.start(config)
        told.put((running.address, multiprocessing.current_process().pid or 0))
        await running.ended()

    asyncio.run(serve())


async def _beat(address: str, pid: int) -> dict[str, object]:
    from tests.las_daemon.stand_in import StandInPeer, until

    peers = [StandInPeer(number, address) for number in range(1, STREAMS + 1)]
    async with asyncio.timeout(60):
        while True:
            try:
                await peers[0].start()
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.2)
        for peer in peers[1:]:
            await peer.start()
    calls = [await peer.heartbeats() for peer in peers]
    await until(lambda: all(peer.updates for peer in peers), "streams")
    for peer in peers:
        peer.updates.clear()
    sample = [peer.samples(1, commit_ms=2.0)[0] for peer in peers]
    process = psutil.Process(pid)
    idle_s = await _cpu_s(process, asyncio.sleep(2.0)) / 2.0
    deadline_s = time.monotonic() + HEARTBEATS_S

    async def beat_on(at: int) -> int:
        """As fast as they are answered, one under way on each stream."""
        peer, sent = peers[at], 0
        while time.monotonic() < deadline_s:
            sample[at].sequence += 1
            await calls[at].write(peer.beat(map_version=1 << 40, samples=[sample[at]]))
            sent += 1
            async with asyncio.timeout(10):
                while len(peer.updates) < sent:  # noqa: ASYNC110 - the stand-in sets no event
                    await asyncio.sleep(0.002)
        return sent

    async def all_of_them() -> list[int]:
        return list(await asyncio.gather(*(beat_on(at) for at in range(STREAMS))))

    began_s = time.monotonic()
    sent: list[int] = []

    async def run() -> None:
        sent.extend(await all_of_them())

    cpu_s = await _cpu_s(process, run())
    wall_s = time.monotonic() - began_s
    busy_s = cpu_s - idle_s * wall_s
    each_us = busy_s / sum(sent) * 1e6
    for peer in peers:
        await peer.stop()
    per_core = 1e6 / each_us
    return {
        "streams": STREAMS,
        "heartbeats": sum(sent),
        "heartbeats_per_s": round(sum(sent) / wall_s),
        "cpu_us_per_heartbeat": round(each_us, 1),
        "idle_cpu_share": round(idle_s, 3),
        # Period = max(0.5 s, peers / 2,000 s): beyond 1,000 peers the rate is 2,000 a second.
        "cores_at_2000_heartbeats_per_s": round(2_000 / per_core, 2),
        "fleet_of_one_core_at_a_beat_each_500_ms": round(per_core * 0.5),
    }


async def _cpu_s(process: psutil.Process, work: "asyncio.Future[object] | object") -> float:
    before = process.cpu_times()
    await work  # type: ignore[misc]
    after = process.cpu_times()
    return (after.user + after.system) - (before.user + before.system)


def heartbeats() -> dict[str, object]:
    """Through the real servicer, over real streams on loopback."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="peerd-fleet-") as directory:
        told = spawn.Queue()
        server = spawn.Process(target=_serve, args=(directory, told), daemon=True)
        server.start()
        try:
            address, pid = told.get(timeout=60)
            return asyncio.run(_beat(address, pid))
        finally:
            server.kill()
            server.join()


# ---------------------------------------------------------------------------------- kill
APPENDED_AT_ONCE = 100
PROTECTED_S_MAX = 60.0


async def _protected_again(config: Path) -> float | None:
    """Seconds until no open segment has a voter on a node that is down; None: not in a minute.

    Until then a shard may lose its quorum with the next death: two of its three voters are gone.
    """
    began_s = time.monotonic()
    async with peerd.aio.connect(credentials=config) as client:
        while time.monotonic() - began_s < PROTECTED_S_MAX:
            status = await client.las.status()
            nodes = [each.node for each in status.nodes]
            up = {each.name for each in nodes if each.state == shard_map_pb2.NODE_STATE_UP}
            logs = await client.list_logs()
            plans = [
                entry.open.plan
                for log in logs
                for entry in (await client.describe_log(log.name))[1]
            ]
            if all(voter.peer in up for plan_ in plans for voter in plan_.voters):
                return round(time.monotonic() - began_s, 3)
            await asyncio.sleep(0.5)
    return None


async def _kill_a_leader_of_many(
    config: Path, kill: Callable[[str], None], *, logs: int, shards: int, first: int = 0
) -> dict[str, object]:
    """Appends are under way to all shards of the victim when it is killed, and one more follows.

    Logs are made from number `first` on; those before are there already.
    """
    options = ClientOptions(call_timeout_s=60.0, append_timeout_s=60.0)
    async with peerd.aio.connect(credentials=config, options=options) as client:
        places: dict[str, list[tuple[str, int]]] = {}
        for number in range(first + logs):
            log = f"many-{number}"
            if number >= first:
                await client.create_log(log, shards=shards, copies=3, acks=2)
            _, entries = await client.describe_log(log)
            for entry_ in entries:
                leader = entry_.open.plan.primary.peer
                places.setdefault(leader, []).append((log, entry_.shard))
        victim = max(places, key=lambda name: len(places[name]))
        led = places[victim]

        async def append(log: str, shard: int) -> float:
            await client.append(log, b"x", shard=shard)
            return time.monotonic()

        earlier: list[float | BaseException] = []
        for at in range(0, len(led), APPENDED_AT_ONCE):
            appends = (append(*each) for each in led[at : at + APPENDED_AT_ONCE])
            earlier += await asyncio.gather(*appends, return_exceptions=True)
        under_way = [client.append_nowait(log, b"y", shard=shard) for log, shard in led]
        await asyncio.sleep(0)
        began_s = time.monotonic()
        kill(victim)
        later = asyncio.gather(*(append(*each) for each in led), return_exceptions=True)
        before = await asyncio.gather(*under_way, return_exceptions=True)
        acked = await later
    pauses = sorted(at - began_s for at in acked if isinstance(at, float))
    errors = Counter(
        type(each).__name__
        for each in (*earlier, *before, *acked)
        if isinstance(each, BaseException)
    )
    return {
        "shards": (first + logs) * shards,
        "shards_led_by_the_killed_peer": len(led),
        "writable_again": len(pauses),
        "errors": dict(errors),
        "median_s": round(pauses[len(pauses) // 2], 3) if pauses else None,
        "all_within_s": round(pauses[-1], 3) if pauses else None,
    }


def _killed(peers: int, *, logs: int, shards: int, deaths: int = 1) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory(prefix="peerd-fleet-") as directory:
        shape = Shape(peers=peers, las=3)
        with DevCluster(Path(directory) / "dev", shape, port_base=None) as cluster:

            def kill_one(name: str) -> None:
                cluster.member(name).kill()

            config = cluster.peerctl_toml
            return [
                asyncio.run(
                    _kill_a_leader_of_many(
                        config, kill_one, logs=logs, shards=shards, first=logs * death
                    )
                )
                | {
                    "protected_again_s": asyncio.run(_protected_again(config)),
                    "las_leaders_lost": _told(cluster, "no longer leading"),
                    "taken_for_sick": _told(cluster, "judged"),
                }
                for death in range(deaths)
            ]


def _told(cluster: DevCluster, event: str) -> int:
    """How often the LAS nodes have told of `event` until now."""
    return sum(member.log.read_text("utf-8").count(f'"event": "{event}"') for member in cluster.las)


def kill() -> dict[str, object]:
    """1,000 shards on the killed peer."""
    return _killed(4, logs=16, shards=250)[0]


def kill_log() -> dict[str, object]:
    """A log of 1,000 shards, of which the killed peer leads a fifth; two more logs and deaths."""
    found = _killed(5, logs=1, shards=1_000, deaths=3)
    return {f"death {number}": death for number, death in enumerate(found, 1)}


# ---------------------------------------------------------------------------------- stutter
STUTTERS_MS = ((300, 700), (600, 400), (900, 600))
STUTTER_S = 10.0


def stutter() -> dict[str, object]:
    """SIGSTOP duty cycles on a primary."""
    with tempfile.TemporaryDirectory(prefix="peerd-fleet-") as directory:
        with DevCluster(Path(directory) / "dev", Shape(peers=5, las=3), port_base=None) as cluster:
            with connect(credentials=cluster.peerctl_toml) as client:
                client.create_log("stutter", shards=1, copies=3, acks=2)
                client.append("stutter", b"x")
                return {
                    f"{stopped_ms} ms stopped, {running_ms} ms running": _stutter(
                        cluster, client, stopped_ms, running_ms
                    )
                    for stopped_ms, running_ms in STUTTERS_MS
                }


def _stutter(
    cluster: DevCluster, client: Client, stopped_ms: float, running_ms: float
) -> dict[str, object]:
    plan_ = client.describe_log("stutter")[1][0].open.plan
    victim = plan_.primary.peer
    healthy = {voter.peer for voter in plan_.voters} - {victim}
    pid = cluster.member(victim).pid
    assert pid is not None
    cycle = DutyCycle(pid, stopped_ms=stopped_ms, running_ms=running_ms)
    appended, left = 0, set[str]()
    cycle.start()
    try:
        until_s = time.monotonic() + STUTTER_S
        while time.monotonic() < until_s:
            client.append("stutter", b"x")
            appended += 1
            voters = client.describe_log("stutter")[1][0].open.plan.voters
            left |= healthy - {voter.peer for voter in voters}
    finally:
        cycle.stop()
        cluster.member(victim).signal(signal.SIGCONT)
    return {
        "appended": appended,
        "healthy_shadows_replaced": sorted(left),
        "primary_replaced": client.describe_log("stutter")[1][0].open.plan.primary.peer != victim,
    }


CASES = {
    "size": size,
    "map": grown,
    "heartbeats": heartbeats,
    "rack": rack,
    "detect": detect,
    "kill": kill,
    "kill-log": kill_log,
    "stutter": stutter,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the cases that are named, or all."""
    parser = argparse.ArgumentParser(description="what a large fleet costs the LAS")
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(CASES)}; all if none")
    cases = parser.parse_args(arguments).cases or list(CASES)
    if strange := set(cases) - CASES.keys():
        parser.error(f"no case is called {', '.join(sorted(strange))}")
    results: dict[str, object] = {}
    for case in cases:
        sys.stderr.write(f"{case} …\n")
        results[case] = CASES[case]()
    sys.stdout.write(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Records runs of the fault lab.

    python -m models.lab --runs 18 --seed 1 [--out models/recordings] [--parallel 2] [--first 0]
    python -m models.lab --smoke all

Resumable: a run whose recording exists is not done again; a spoiled one is tried again, up to
`TRIES_MAX` times. Each run is a process of its own, so that its load generator has one to itself.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from models.dataset import RECORDINGS, write_run
from models.lab import kinds
from models.lab.cluster import lab_cluster, lab_peers, peers_rooms
from models.lab.load import Load, LoadFailed
from models.lab.plan import FIRST_IN_ROOMS, RunPlan, plan_run, smoke_plan
from models.lab.room import NAMESPACED, RoomError, open_bridge, own_namespaces, why_not
from models.lab.run import RunSpoiled, carry_out
from peerd.testing.dev_cluster import DevClusterError

TRIES_MAX = 3


def record(plan: RunPlan, path: Path | None) -> None:
    """Do one run and write its recording, if it shall have one.

    Raises `RunSpoiled` and what its parts raise.
    """
    scratch = Path(tempfile.mkdtemp(prefix=f"peerd-lab-{plan.number:03}-"))
    with ExitStack() as stack:
        cluster = lab_cluster(scratch / "cluster", in_rooms=plan.in_rooms)
        rooms = []
        if plan.in_rooms:
            open_bridge()
            rooms = stack.enter_context(peers_rooms(cluster, scratch, plan.descriptors_max))
        stack.enter_context(cluster)
        load = Load(
            addresses=[member.address for member in cluster.peers],
            credentials=cluster.peerctl_toml,
            shards=plan.shards,
            appends_per_s=plan.appends_per_s,
            record_bytes=plan.record_bytes,
            seed=plan.seed,
        )
        time.sleep(plan.idle_s)
        load.start()
        try:
            run = carry_out(
                plan,
                lab_peers(cluster, rooms),
                scratch,
                load_event=load.play,
                restart=cluster.restart,
            )
        finally:
            load.stop()
    if path is not None:
        write_run(path, run)
    told = [
        f"{node.peer} {node.kind} {node.onset_s}→{node.stop_s} s ({node.parameters['why']})"
        for node in run.truth.nodes
        if node.stop_s is not None or (path is None and node.onset_s is not None)
    ]
    print(f"run {plan.number}: {'; '.join(told)}; load {load.counts}", flush=True)
    shutil.rmtree(scratch)


def recording_path(out: Path, number: int) -> Path:
    """Where the recording of a run stands."""
    return out / f"run-{number:03}.parquet"


class Workers:
    """Runs in processes of their own; ended together."""

    def __init__(self, seed: int, out: Path) -> None:
        self._seed = seed
        self._out = out
        self._ending = False
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, number: int) -> bool:
        """Do one run, again when it was spoiled; whether it succeeded."""
        words = ["--one", str(number), "--seed", str(self._seed)]
        return self._do(words, TRIES_MAX, in_rooms=number >= FIRST_IN_ROOMS)

    def smoke(self, kind: str) -> bool:
        """Try one kind of fault or look-alike, once; whether it did what it should."""
        return self._do(["--one-smoke", kind], 1, in_rooms=True)

    def _do(self, words: list[str], tries: int, *, in_rooms: bool) -> bool:
        command = [sys.executable, "-m", "models.lab", *words, "--out", str(self._out)]
        environment = dict(os.environ)
        if in_rooms:
            command = own_namespaces(command)
            environment[NAMESPACED] = "1"
        for _ in range(tries):
            if self._ending:
                return False
            process = subprocess.Popen(command, env=environment)
            self._running.add(process)
            status = process.wait()
            self._running.discard(process)
            if status == 0:
                return True
        return False

    def end(self) -> None:
        """Have the runs under way stop their clusters and end."""
        self._ending = True
        for process in list(self._running):
            process.terminate()


def main(arguments: Sequence[str] | None = None) -> int:
    """Record what is missing."""
    options = _options(arguments)
    # As an exception, so that a run's cluster is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if options.one is not None:
        plan = plan_run(options.one, options.seed)
        return _one(plan, recording_path(options.out, options.one))
    if options.one_smoke is not None:
        return _one(smoke_plan(options.one_smoke), None)
    options.out.mkdir(parents=True, exist_ok=True)
    workers = Workers(options.seed, options.out)
    if options.smoke is not None:
        return _smoke(workers, kinds.EVERY if options.smoke == "all" else (options.smoke,))
    missing = [
        number
        for number in range(options.first, options.first + options.runs)
        if not recording_path(options.out, number).exists()
    ]
    roomless = why_not()
    if roomless and any(number >= FIRST_IN_ROOMS for number in missing):
        print(f"left out: runs from number {FIRST_IN_ROOMS} on, which need rooms: {roomless}")
        missing = [number for number in missing if number < FIRST_IN_ROOMS]
    begun_s = time.monotonic()
    with ThreadPoolExecutor(options.parallel) as pool:
        try:
            done = list(pool.map(workers.run, missing))
        finally:
            workers.end()
    minutes = (time.monotonic() - begun_s) / 60.0
    print(f"{sum(done)} of {len(missing)} missing runs recorded in {minutes:.0f} min")
    return 0 if all(done) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.lab", description=__doc__)
    parser.add_argument("--runs", type=int, default=18, help="how many runs there shall be")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RECORDINGS)
    parser.add_argument("--parallel", type=int, default=2, help="clusters at a time")
    parser.add_argument(
        "--smoke",
        choices=("all", *kinds.EVERY),
        help="record nothing: try a kind of fault or look-alike for half a minute",
    )
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--one-smoke", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _one(plan: RunPlan, path: Path | None) -> int:
    try:
        record(plan, path)
    except (RunSpoiled, DevClusterError, LoadFailed, RoomError) as error:
        print(f"run {plan.number}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _smoke(workers: Workers, tried: Sequence[str]) -> int:
    if roomless := why_not():
        print(f"left out: {', '.join(tried)}: {roomless}")
        return 0
    try:
        failed = [kind for kind in tried if not workers.smoke(kind)]
    finally:
        workers.end()
    print(f"{len(tried) - len(failed)} of {len(tried)} did what they should")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

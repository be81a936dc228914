"""Records runs of the fault lab.

    python -m models.lab --runs 18 --seed 1 [--out models/recordings] [--parallel 2] [--first 0]

Resumable: a run whose recording exists is not done again; a spoiled one is tried again, up to
`TRIES_MAX` times. Each run is a process of its own, so that its load generator has one to itself.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from models.dataset import RECORDINGS, write_run
from models.lab.cluster import lab_cluster, lab_peers
from models.lab.load import Load, LoadFailed
from models.lab.plan import plan_run
from models.lab.run import RunSpoiled, carry_out
from peerd.testing.dev_cluster import DevClusterError

TRIES_MAX = 3


def record(number: int, seed: int, out: Path) -> None:
    """Do one run and write its recording. Raises `RunSpoiled` and what its parts raise."""
    plan = plan_run(number, seed)
    scratch = Path(tempfile.mkdtemp(prefix=f"peerd-lab-{number:03}-"))
    with lab_cluster(scratch / "cluster") as cluster:
        load = Load(
            addresses=[member.address for member in cluster.peers],
            credentials=cluster.peerctl_toml,
            shards=plan.shards,
            appends_per_s=plan.appends_per_s,
            record_bytes=plan.record_bytes,
            seed=seed,
        )
        time.sleep(plan.idle_s)
        load.start()
        try:
            run = carry_out(
                plan,
                lab_peers(cluster),
                scratch,
                load_event=load.play,
                restart=cluster.restart,
            )
        finally:
            load.stop()
    write_run(recording_path(out, number), run)
    told = [
        f"{node.peer} {node.kind} {node.onset_s}→{node.stop_s} s ({node.parameters['why']})"
        for node in run.truth.nodes
        if node.stop_s is not None
    ]
    print(f"run {number}: {'; '.join(told)}; load {load.counts}", flush=True)
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
        command = [sys.executable, "-m", "models.lab", "--one", str(number)]
        command += ["--seed", str(self._seed), "--out", str(self._out)]
        for _ in range(TRIES_MAX):
            if self._ending:
                return False
            process = subprocess.Popen(command)
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
    parser = argparse.ArgumentParser(prog="python -m models.lab", description=__doc__)
    parser.add_argument("--runs", type=int, default=18, help="how many runs there shall be")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RECORDINGS)
    parser.add_argument("--parallel", type=int, default=2, help="clusters at a time")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    # As an exception, so that a run's cluster is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if options.one is not None:
        try:
            record(options.one, options.seed, options.out)
        except (RunSpoiled, DevClusterError, LoadFailed) as error:
            print(f"run {options.one}: {error}", file=sys.stderr, flush=True)
            return 1
        return 0
    missing = [
        number
        for number in range(options.first, options.first + options.runs)
        if not recording_path(options.out, number).exists()
    ]
    begun_s = time.monotonic()
    workers = Workers(options.seed, options.out)
    with ThreadPoolExecutor(options.parallel) as pool:
        try:
            done = list(pool.map(workers.run, missing))
        finally:
            workers.end()
    minutes = (time.monotonic() - begun_s) / 60.0
    print(f"{sum(done)} of {len(missing)} missing runs recorded in {minutes:.0f} min")
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())

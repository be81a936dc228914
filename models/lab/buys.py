"""What anticipation buys: each trouble of the lab twice, once with it and once without.

    python -m models.lab.buys --seeds 20 [--kinds packet_loss,killed] [--actions hand_over,mirror]
    python -m models.lab.buys --report        (the tables and the picture from what was measured)

One case is a kind of trouble, a seed and a policy. Onset, length, end and victim are drawn from
kind and seed alone, so the cases with and without are pairs. *Without* (`off`) no forecast reaches
the threshold, and of the signs slow alone counts, as it would with anybody. Real peers in rooms
(`models/lab/room.py`), a client that appends in open loop, and then:

pause          longest time from intended send to answer; apart for what was under way around the
               victim's stop, and for as long a time before the onset (the machine's own noise)
errors         appends that failed for good, client's retries and all
below          records of a segment × seconds that fewer peers had them than were promised
moved          bytes that peers copied
lost           acknowledged and not read back; `unlike`: segments whose stores differ in a byte

Resumable: a case that stands in `RESULTS` is not done again. Needs root, as rooms do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import peerd
from models.lab import kinds
from models.lab.cluster import lab_cluster, lab_peers, peers_rooms
from models.lab.copies import Copies, unlike_segments
from models.lab.plan import PEERS, Episode, RunPlan
from models.lab.room import NAMESPACED, RoomError, open_bridge, own_namespaces, why_not
from models.lab.run import RunSpoiled, carry_out
from peerd.testing.dev_cluster import DevClusterError, Member

RESULTS = Path(__file__).with_name("buys.jsonl")
LOG = "buys"
COPIES = 3
KINDS = (*kinds.GRADUAL, *kinds.ABRUPT)
ACTIONS = ("hand_over", "mirror")
OFF = "off"
# `slow` is left as it is: that much is done by anybody.
OFF_SETTINGS: dict[str, object] = {
    "policy.threshold": 1.0,
    "policy.exhaustion_s": 0,
    "policy.stall_ms": 600_000.0,
    "policy.distant_ms": 600_000.0,
    "policy.lossy_per_s": 1e6,
}
SHARDS = 12
APPENDS_PER_S = 120.0
RECORD_BYTES = 400
ONSET_S = (38.0, 46.0)
FAULT_S = (30.0, 60.0)
TAIL_S = 12.0
TICK_S = 0.005
MAP_PERIOD_S = 0.5
READY_S_MAX = 60.0
CLOSED_S_MAX = 15.0
# What a stop shows in: a peer counts as stopped once it was silent for 3 s.
STOP_BEFORE_S, STOP_AFTER_S = 4.0, 6.0
TRIES_MAX = 2
# Between the last switch of a shard and the stop; less is luck.
IN_TIME_MS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run. `policy` is an action, or `OFF`."""

    kind: str
    seed: int
    policy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What became of one. Times in ms, -1 where there was none; counts of the whole run."""

    kind: str
    seed: int
    policy: str
    why: str
    lasted_s: float
    sent: int
    errors: int
    pause_ms: float
    pause_at_stop_ms: float
    pause_before_ms: float
    below_record_s: float
    moved_bytes: int
    lost: int
    unlike: int
    rule: str
    outcome: str
    lead_ms: int
    shielded_ms: int
    expendable_ms: int

    @property
    def case(self) -> Case:
        """Which one it was."""
        return Case(kind=self.kind, seed=self.seed, policy=self.policy)

    @property
    def in_time(self) -> bool:
        """Whether it was foreseen, and no append needed the victim any more when it stopped."""
        return self.outcome == "hit" and self.shielded_ms >= IN_TIME_MS


def plan_of(case: Case) -> RunPlan:
    """The plan of a case, the same for each policy."""
    draw = random.Random(f"{case.kind}/{case.seed}")
    abrupt = case.kind in kinds.ABRUPT
    low_s, high_s = FAULT_S
    duration_s = 0.0 if abrupt else low_s * (high_s / low_s) ** draw.random()
    onset_s = round(draw.uniform(*ONSET_S), 1)
    trouble = Episode(
        kind=case.kind,
        peer=draw.randrange(PEERS),
        onset_s=onset_s,
        duration_s=round(duration_s, 1),
        grow_s=round(duration_s * draw.uniform(*kinds.GROW_SHARE), 1),
        parameters=kinds.fault_parameters(case.kind, draw),
    )
    return RunPlan(
        number=case.seed,
        seed=case.seed,
        idle_s=1.0,
        # To the stop, whenever that is; `measure` waits `TAIL_S` more.
        length_s=onset_s,
        appends_per_s=APPENDS_PER_S,
        record_bytes=RECORD_BYTES,
        shards=SHARDS,
        limit_memory=True,
        faults=(trouble,),
        look_alikes=(),
        shared=(),
        in_rooms=True,
        descriptors_max=512,
    )


def settings_of(policy: str) -> dict[str, object]:
    """The LAS's settings for a policy."""
    if policy == OFF:
        return dict(OFF_SETTINGS)
    return {"policy.at_risk_action": policy, "policy.holdout": 0.0}


# ---------------------------------------------------------------------- load
@dataclass(slots=True)
class Answered:
    """One append: seconds of the monotonic clock; `ended_s` is NaN while it is under way."""

    intended_s: float
    ended_s: float = math.nan
    error: str = ""
    shard: int = 0
    offset: int = -1


class Appender:
    """A thread that appends in open loop, and looks at the map, until `stop`."""

    def __init__(self, addresses: list[str], credentials: Path, seed: int) -> None:
        self.answers: list[Answered] = []
        self.copies = Copies(COPIES)
        self.error: BaseException | None = None
        self._addresses, self._credentials = addresses, credentials
        self._random = random.Random(seed)
        self._ready, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="appends", daemon=True)

    def start(self) -> None:
        """Begin, once each shard took an append. Raises `RunSpoiled`."""
        self._thread.start()
        if not self._ready.wait(READY_S_MAX) or self.error is not None:
            self.stop()
            raise RunSpoiled(f"no append was acknowledged: {self.error}")

    def stop(self) -> None:
        """End; waits for what is under way as long as the client does."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._append_all())
        except (peerd.PeerdError, OSError) as error:
            self.error = error
        finally:
            self._ready.set()

    async def _append_all(self) -> None:
        async with peerd.aio.connect(self._addresses, credentials=self._credentials) as client:
            await client.create_log(LOG, shards=SHARDS, copies=COPIES)
            await client.append(LOG, b"first", key=b"first")
            self._ready.set()
            looking = asyncio.create_task(self._look(client))
            begun_s = time.monotonic()
            under_way: set[asyncio.Future[peerd.Receipt]] = set()
            while not self._stopping.is_set():
                due = int((time.monotonic() - begun_s) * APPENDS_PER_S)
                while len(self.answers) < due:
                    self._append(client, begun_s, under_way)
                await asyncio.sleep(TICK_S)
            if under_way:
                await asyncio.wait(under_way)
            looking.cancel()

    def _append(
        self,
        client: peerd.aio.Client,
        begun_s: float,
        under_way: set[asyncio.Future[peerd.Receipt]],
    ) -> None:
        row = len(self.answers)
        answer = Answered(intended_s=begun_s + row / APPENDS_PER_S)
        self.answers.append(answer)
        value = value_of(row) + self._random.randbytes(RECORD_BYTES)
        try:
            future = client.append_nowait(LOG, value, key=value_of(row % 997))
        except peerd.PeerdError as error:
            answer.ended_s, answer.error = time.monotonic(), str(error)
            return
        under_way.add(future)

        def ended(future: asyncio.Future[peerd.Receipt]) -> None:
            under_way.discard(future)
            answer.ended_s = time.monotonic()
            error = future.exception()
            if error is not None:
                answer.error = str(error)
            else:
                receipt = future.result()
                answer.shard, answer.offset = receipt.shard, receipt.offset

        future.add_done_callback(ended)

    async def _look(self, client: peerd.aio.Client) -> None:
        while True:
            with suppress(peerd.PeerdError):
                _, shards = await client.las.describe_log(LOG)
                self.copies.see(time.monotonic(), shards)
            await asyncio.sleep(MAP_PERIOD_S)


def value_of(row: int) -> bytes:
    """What an append's value begins with."""
    return row.to_bytes(8, "big")


def longest_ms(answers: Iterable[Answered], begin_s: float, end_s: float) -> float:
    """The longest time to an answer of what was under way in that time; 0 without any."""
    longest_s = max(
        (
            each.ended_s - each.intended_s
            for each in answers
            if each.intended_s < end_s and each.ended_s >= begin_s
        ),
        default=0.0,
    )
    return round(longest_s * 1000.0, 1)


# ---------------------------------------------------------------------- one case
def measure(case: Case) -> Measured:
    """Do one case. Raises `RunSpoiled` and what its parts raise."""
    plan = plan_of(case)
    scratch = Path(tempfile.mkdtemp(prefix=f"peerd-lab-buys-{case.kind}-{case.seed}-"))
    try:
        with ExitStack() as stack:
            cluster = lab_cluster(
                scratch / "cluster", in_rooms=True, settings=settings_of(case.policy)
            )
            open_bridge()
            rooms = stack.enter_context(peers_rooms(cluster, scratch, plan.descriptors_max))
            stack.enter_context(cluster)
            time.sleep(plan.idle_s)
            load = Appender(
                [member.address for member in cluster.peers], cluster.peerctl_toml, case.seed
            )
            load.start()
            begun_s = time.monotonic()
            try:
                run = carry_out(
                    plan,
                    lab_peers(cluster, rooms),
                    scratch,
                    load_event=lambda *_: None,
                    restart=cluster.restart,
                )
                # As long after each stop: what follows it is compared between the policies.
                time.sleep(TAIL_S)
            finally:
                load.stop()
            (trouble,) = plan.faults
            node = run.truth.nodes[trouble.peer]
            assert node.onset_s is not None
            assert node.stop_s is not None
            onset_s = begun_s + trouble.onset_s
            stop_s = onset_s + (node.stop_s - node.onset_s)
            told = _told(cluster.peerctl_toml, node.peer, load.answers)
            living = [member for member in cluster.peers if member.id != node.peer]
            moved = sum(_copied_bytes(member) for member in living)
            cluster.stop()
            unlike = unlike_segments([member.data_dir for member in living])
        return Measured(
            **asdict(case),
            why=str(node.parameters["why"]),
            lasted_s=round(stop_s - onset_s, 1),
            sent=len(load.answers),
            errors=sum(bool(each.error) for each in load.answers),
            pause_ms=longest_ms(load.answers, onset_s, math.inf),
            pause_at_stop_ms=longest_ms(
                load.answers, stop_s - STOP_BEFORE_S, stop_s + STOP_AFTER_S
            ),
            pause_before_ms=longest_ms(
                load.answers, onset_s - STOP_BEFORE_S - STOP_AFTER_S, onset_s
            ),
            below_record_s=load.copies.below_record_s(
                [(a.ended_s, a.shard, a.offset) for a in load.answers if not a.error],
                {node.peer: stop_s},
            ),
            moved_bytes=moved,
            unlike=unlike,
            **told,  # type: ignore[arg-type]
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _told(credentials: Path, victim: str, answers: Sequence[Answered]) -> dict[str, object]:
    """What is read back, and what the ledger says of the victim."""
    with peerd.connect(credentials=credentials) as client:
        read = {record.value[:8] for record in client.read(LOG)}
        until_s = time.monotonic() + CLOSED_S_MAX
        while True:
            cases = [case for case in client.las.ledger(victim) if case.outcome != "open"]
            if cases or time.monotonic() > until_s:
                break
            time.sleep(0.2)
    lost = sum(not each.error and value_of(row) not in read for row, each in enumerate(answers))
    if not cases:
        nothing = {"rule": "", "outcome": "", "lead_ms": -1, "shielded_ms": -1}
        return {"lost": lost, **nothing, "expendable_ms": -1}
    last = cases[-1]
    return {
        "lost": lost,
        "rule": last.rule,
        "outcome": last.outcome,
        "lead_ms": last.lead_ms,
        "shielded_ms": last.shielded_ms,
        "expendable_ms": last.expendable_ms,
    }


def _copied_bytes(member: Member) -> int:
    with urllib.request.urlopen(f"http://{member.metrics_address}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    name = "peerd_copied_bytes_total"
    values = [
        float(line.split()[-1]) for line in lines if line.startswith((name + " ", name + "{"))
    ]
    return round(sum(values))


# ---------------------------------------------------------------------- all of them
def read_results(path: Path = RESULTS) -> list[Measured]:
    """What was measured so far."""
    if not path.exists():
        return []
    return [Measured(**json.loads(line)) for line in path.read_text().splitlines() if line]


def write_results(measured: Iterable[Measured], path: Path = RESULTS) -> None:
    """Write a line each, in an order that does not depend on when they were done."""
    lines = sorted(json.dumps(asdict(each), sort_keys=True) for each in measured)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text("".join(f"{line}\n" for line in lines))
    beside.replace(path)


class Workers:
    """Cases in processes of their own; ended together."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._ending = False

    def do(self, case: Case) -> bool:
        """Measure one, again if it was spoiled, and keep what was measured."""
        words = ["--one", case.kind, str(case.seed), case.policy]
        command = own_namespaces([sys.executable, "-m", "models.lab.buys", *words])
        environment = {**os.environ, NAMESPACED: "1"}
        for _ in range(TRIES_MAX):
            if self._ending:
                return False
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
            self._running.add(process)
            told = process.communicate()[0]
            self._running.discard(process)
            if process.returncode == 0:
                measured = Measured(**json.loads(told.splitlines()[-1]))
                with self._lock:
                    kept = [each for each in read_results(self._path) if each.case != case]
                    write_results([*kept, measured], self._path)
                print(told.splitlines()[-1], flush=True)
                return True
        return False

    def end(self) -> None:
        """Have those under way stop their clusters and end."""
        self._ending = True
        for process in list(self._running):
            process.terminate()


def cases_of(seeds: int, chosen: Sequence[str], actions: Sequence[str]) -> list[Case]:
    """Seed by seed, pairs beside each other: whenever it ends, what is there can be compared."""
    return [
        Case(kind=kind, seed=seed, policy=policy)
        for seed in range(seeds)
        for kind in chosen
        for policy in (OFF, *actions)
    ]


def main() -> int:
    """Measure what is missing, or tell what was measured."""
    parser = argparse.ArgumentParser(prog="python -m models.lab.buys", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--actions", default=",".join(ACTIONS))
    parser.add_argument("--parallel", type=int, default=1, help="clusters at a time")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="measure nothing: tell")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    # As an exception, so that a case's cluster is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if options.report:
        from models.lab.bought import publish

        publish(read_results(options.out))
        return 0
    if options.one:
        kind, seed, policy = options.one
        return _one(Case(kind=kind, seed=int(seed), policy=policy))
    if roomless := why_not():
        print(f"left out: {roomless}")
        return 0
    done = {each.case for each in read_results(options.out)}
    chosen = cases_of(options.seeds, options.kinds.split(","), options.actions.split(","))
    missing = [case for case in chosen if case not in done]
    workers = Workers(options.out)
    with ThreadPoolExecutor(options.parallel) as pool:
        try:
            succeeded = list(pool.map(workers.do, missing))
        finally:
            workers.end()
    print(f"{sum(succeeded)} of {len(missing)} missing cases measured")
    return 0 if all(succeeded) else 1


def _one(case: Case) -> int:
    try:
        print(json.dumps(asdict(measure(case)), sort_keys=True), flush=True)
    except (RunSpoiled, DevClusterError, RoomError, peerd.PeerdError, OSError) as error:
        print(f"{case.kind} {case.seed} {case.policy}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The failover benchmark: rounds of one kind of change under load, and what each cost.

- *planned*: the shard is handed over to another voter.
- *kill*: the primary's process gets SIGKILL, and is started again when appends go on elsewhere.
- *stop*: it gets SIGSTOP, as a machine that hangs, and SIGCONT when appends go on elsewhere.
- *host-off*: nothing passes its machine's link any more, either way, and nobody is told. The link
  is mended when appends go on elsewhere.
- *one-way*: the link loses what goes one way: in the first round what the primary sends, in the
  next what is sent to it, and so on in turn.

The load is open: so many appends a second, due whatever the cluster does. The pause of a round is
the longest time between two acknowledgements from its beginning to that of the next one.

Invariants:
- Every acknowledged record is read back at the end, at the offset of its receipt; one that is not
  there, or differs, is lost.
- An append that ended otherwise is an error: the client retries over a failover by itself.
"""

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from peerd.bench.machines import Machines
from peerd.bench.workers import BenchFailed
from peerd.client.blocking import Client, connect
from peerd.client.errors import PeerdError
from peerd.client.values import Receipt
from peerd.core.shard_map import Shard
from peerd.testing.dev_cluster import DevCluster

LOG = "failover"
# A change takes well below a second; whatever takes this long will not end by itself.
ROUND_TIMEOUT_S = 60.0
# Between two rounds, so that their pauses lie apart.
CALM_S = 1.0
_TICK_S = 0.002
_POLL_S = 0.02


class Kind(StrEnum):
    """What happens to the primary."""

    PLANNED = "planned"
    KILL = "kill"
    STOP = "stop"
    HOST_OFF = "host-off"
    ONE_WAY = "one-way"

    @property
    def cuts_links(self) -> bool:
        """Whether each peer needs a machine of its own."""
        return self in (Kind.HOST_OFF, Kind.ONE_WAY)


@dataclass(slots=True, kw_only=True)
class FailoverResult:
    """What the rounds cost. `lost`: acknowledged records that cannot be read."""

    pauses_ms: list[float]
    acknowledged: int
    errors: list[str]
    lost: int

    def as_json(self) -> dict[str, object]:
        """What `peerctl bench failover -o json` prints."""
        return {
            "pauses_ms": [round(pause, 1) for pause in self.pauses_ms],
            "errors": len(self.errors),
            "lost": self.lost,
        }


class SteadyLoad:
    """A context: appends `rate_per_s` records a second, evenly, and notes every ending."""

    def __init__(self, config: Path, rate_per_s: float) -> None:
        self.acked_s: list[float] = []
        self.receipts: dict[int, Receipt] = {}
        self.errors: list[str] = []
        self._appended = 0
        self._rate_per_s = rate_per_s
        self._client: Client = connect(credentials=config)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._append_all, name="steady load")

    def __enter__(self) -> "SteadyLoad":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Append no more, and wait until every append has ended."""
        self._ending.set()
        self._thread.join()
        try:
            self._client.flush()
        finally:
            self._client.close()

    @staticmethod
    def value(number: int) -> bytes:
        """The record of that number."""
        return b"record %d" % number

    def _append_all(self) -> None:
        begin_s = time.monotonic()
        while not self._ending.wait(_TICK_S):
            due = int((time.monotonic() - begin_s) * self._rate_per_s)
            while self._appended < due:
                self._append(self._appended)
                self._appended += 1

    def _append(self, number: int) -> None:
        try:
            future = self._client.append_nowait(LOG, self.value(number))
        except PeerdError as error:
            self.errors.append(str(error))
        else:
            future.add_done_callback(lambda ended: self._note(number, ended))

    def _note(self, number: int, ended: "Future[Receipt]") -> None:
        error = ended.exception()
        if error is not None:
            self.errors.append(str(error))
            return
        self.acked_s.append(time.monotonic())
        self.receipts[number] = ended.result()


class Rounds:
    """Does the rounds on a running cluster, which is whole again after each."""

    def __init__(
        self,
        cluster: DevCluster,
        kind: Kind,
        told: Callable[[int], None],
        machines: Machines | None = None,
    ) -> None:
        """`machines` are those of the cluster, for a kind that cuts links."""
        self._cluster = cluster
        self._kind = kind
        self._told = told
        self._machines = machines

    def run(self, rounds: int, rate_per_s: float) -> FailoverResult:
        """Append, let the rounds happen, and read everything back.

        Raises:
            BenchFailed: a round did not end.
            PeerdError: the log cannot be made or read.
        """
        copies = min(3, len(self._cluster.peers))
        with connect(credentials=self._cluster.peerctl_toml) as client:
            client.create_log(LOG, shards=1, copies=copies, acks=2)
            begun_s: list[float] = []
            with SteadyLoad(self._cluster.peerctl_toml, rate_per_s) as load:
                self._await_acks(load)
                for number in range(rounds):
                    time.sleep(CALM_S)
                    begun_s.append(time.monotonic())
                    self._round(client, load, number)
                    self._told(number + 1)
                time.sleep(CALM_S)
            return FailoverResult(
                pauses_ms=pauses_ms(begun_s, load.acked_s),
                acknowledged=len(load.receipts),
                errors=load.errors,
                lost=_lost(client, load),
            )

    def _round(self, client: Client, load: SteadyLoad, number: int) -> None:
        shard = _shard(client)
        before = shard.open
        primary = before.plan.primary.peer
        if self._kind is Kind.PLANNED:
            target = next(v.peer for v in before.plan.voters if v.peer != primary)
            client.las.switch_primary(shard.shard, target)
        with self._suffering(primary, number):
            self._until(lambda: _shard(client).open.epoch > before.epoch, "another primary")
            self._await_acks(load)
        if self._kind is Kind.KILL:
            self._cluster.restart(primary)
        self._cluster.wait_whole()
        wanted = len(before.plan.voters)
        self._until(lambda: len(_shard(client).open.plan.voters) >= wanted, "all copies again")

    @contextmanager
    def _suffering(self, primary: str, number: int) -> Iterator[None]:
        """Within it the primary suffers what the kind says; what can be mended is at the end."""
        victim = self._cluster.member(primary)
        with ExitStack() as mended:
            if self._kind is Kind.KILL:
                victim.kill()
            elif self._kind is Kind.STOP:
                mended.callback(victim.signal, signal.SIGCONT)
                victim.signal(signal.SIGSTOP)
            elif self._machines is not None:
                ways = (self._machines.mute, self._machines.deaf)
                cut = self._machines.off if self._kind is Kind.HOST_OFF else ways[number % 2]
                mended.enter_context(cut(primary))
            yield

    def _await_acks(self, load: SteadyLoad) -> None:
        wanted = len(load.acked_s) + 20
        self._until(lambda: len(load.acked_s) >= wanted, "appends that go on")

    @staticmethod
    def _until(condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + ROUND_TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline_s:
                raise BenchFailed(f"not within {ROUND_TIMEOUT_S:.0f} s: {what}")
            time.sleep(_POLL_S)


def _shard(client: Client) -> Shard:
    """The one shard of the log, as it is now."""
    _, shards = client.describe_log(LOG)
    return shards[0]


def pauses_ms(begun_s: Sequence[float], acked_s: Sequence[float]) -> list[float]:
    """For each round, the longest time between two acknowledgements that ends within it.

    Args:
        begun_s: When the rounds began, in order; each ends where the next begins.
        acked_s: When appends were acknowledged, in order.
    """
    pauses = [0.0] * len(begun_s)
    index = 0
    for before_s, after_s in itertools.pairwise(acked_s):
        while index + 1 < len(begun_s) and after_s >= begun_s[index + 1]:
            index += 1
        if begun_s and after_s >= begun_s[index]:
            pauses[index] = max(pauses[index], (after_s - before_s) * 1000.0)
    return pauses


def _lost(client: Client, load: SteadyLoad) -> int:
    read = {(record.shard, record.offset): record.value for record in client.read(LOG)}
    return sum(
        read.get((receipt.shard, receipt.offset)) != load.value(number)
        for number, receipt in load.receipts.items()
    )

"""The checks: each drives a client against servers that do what is chance elsewhere.

A check gets a cluster in memory (`peerd.testing.memory`: real services, no disk) with the log
`orders`, and the client. It returns nothing, or raises `Wrong` with what the client did wrong.
What is judged is what anybody can see: what is in the log, what the client said of it, and what it
sent when. The order of the names is that of the table.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from peerd.core.batch import BatchHeader
from peerd.core.errors import Reason, Refusal
from peerd.core.ids import ShardId
from peerd.testing.conformance_kit import vectors
from peerd.testing.conformance_kit.program import Program
from peerd.testing.memory import MemoryCluster
from peerd.transport.append_edge import key_hash
from peerd.v1 import batch_pb2

LOG = "orders"
KEY = b"household-900"
RETRY_AFTER_MS = 400


class Wrong(Exception):
    """What the client did, and what it should have done."""


@dataclass(slots=True)
class Scene:
    """A cluster, a client, and what came to the peers: (time in seconds, batch header)."""

    cluster: MemoryCluster
    program: Program
    came: list[tuple[float, BatchHeader]]

    def stored(self) -> Counter[bytes]:
        """How often each value is in the log."""
        found: Counter[bytes] = Counter()
        for shard in self.cluster.shards:
            for payload in self.cluster.payloads(shard):
                batch = batch_pb2.Batch.FromString(payload)
                found.update(record.value for record in batch.records.records)
        return found

    def shard_of(self, key: bytes) -> ShardId:
        """The shard that takes a key."""
        hashed = key_hash(key)
        return next(
            shard
            for shard in self.cluster.logs[LOG].shards
            if self.cluster.shards[shard].entry.key_hash_low
            <= hashed
            <= self.cluster.shards[shard].entry.key_hash_high
        )

    def refuse(self, refusal: Refusal, times: int = 1) -> None:
        """The next appends are refused, wherever they arrive."""
        name = self.cluster.shards[self.shard_of(KEY)].entry.open.plan.primary.peer
        self.cluster.hosts[name].refuse_next.extend([refusal] * times)

    async def append_once(self, value: bytes, what: str) -> None:
        """Append under the trouble that was prepared: it must end well, once in the log."""
        answer = await self.program.append(LOG, value, KEY)
        times = self.stored()[value]
        if not answer.ok:
            raise Wrong(f"after {what} it gave up: {answer.reason or 'without a reason'}")
        if times != 1:
            raise Wrong(f"after {what} the record is in the log {times} times")


async def hashes(scene: Scene) -> None:
    """Key hashes are those of docs/client-vectors.json."""
    for key in vectors.KEYS:
        said, right = await scene.program.hash(key), f"{key_hash(key):016x}"
        if said != right:
            raise Wrong(f"the hash of {key[:20]!r} is {right}, not {said}")


async def keys_find_their_shard(scene: Scene) -> None:
    """Each key's record goes to the shard whose range has its hash, in order."""
    for number in range(40):
        key = b"key-%d" % (number % 10)
        answer = await scene.program.append(LOG, b"%d" % number, key)
        if not answer.ok or answer.shard != scene.shard_of(key):
            raise Wrong(f"{key!r} belongs to shard {scene.shard_of(key)}: {answer}")
    await _read_is_what_is_stored(scene, 40)


async def reads_all_pages(scene: Scene) -> None:
    """A read of many messages loses and repeats nothing."""
    for number in range(40):
        await scene.program.append(LOG, b"%d" % number + bytes(60_000), b"key-%d" % number)
    await _read_is_what_is_stored(scene, 40)


async def _read_is_what_is_stored(scene: Scene, count: int) -> None:
    reading = await scene.program.read(LOG)
    told = Counter(value for _, _, _, value in reading.records)
    if reading.reason or told != scene.stored() or sum(told.values()) != count:
        raise Wrong(f"it read {sum(told.values())} records of {count} {reading.reason}")
    ends: dict[int, int] = {}
    for shard, offset, _, _ in reading.records:
        if offset != ends.get(shard, 0):
            raise Wrong(f"in shard {shard} offset {offset} follows {ends.get(shard, 0) - 1}")
        ends[shard] = offset + 1


async def moved(scene: Scene) -> None:
    """MOVED: the same batch goes to the leader that is named, or where the map says."""
    shard = scene.shard_of(KEY)
    await scene.append_once(b"first", "nothing")
    scene.refuse(Refusal(reason=Reason.MOVED, message="handed over", leader=None))
    await scene.append_once(b"second", "MOVED")
    scene.cluster.hand_over(shard, "peer-3", publish=False)
    await scene.append_once(b"third", "a hand-over that its map does not have")


async def fenced(scene: Scene) -> None:
    """FENCED, taken unknown, and the batch is there: sent again with its sequence, or told."""
    await scene.append_once(b"first", "nothing")
    name = scene.cluster.shards[scene.shard_of(KEY)].entry.open.plan.primary.peer
    scene.cluster.hosts[name].lose_next = 1
    answer = await scene.program.append(LOG, b"second", KEY)
    times = scene.stored()[b"second"]
    if times != 1:
        raise Wrong(f"the record whose answer was lost is in the log {times} times")
    if not answer.ok and answer.taken != "unknown":
        raise Wrong(f"it says taken {answer.taken!r} of a record that is in the log")
    await scene.append_once(b"third", "an append whose answer was lost")


async def one_sequence(scene: Scene) -> None:
    """A batch that is sent again keeps its producer id and its sequence."""
    scene.refuse(Refusal(reason=Reason.NOT_ENOUGH_PEERS, message="too few"), times=2)
    await scene.append_once(b"first", "NOT_ENOUGH_PEERS, twice")
    named = {(header.producer, header.first_sequence) for _, header in scene.came}
    if any(not producer for producer, _ in named):
        raise Wrong("it sends no producer id: its appends are at least once, not exactly once")
    if len(named) != 1:
        raise Wrong(f"{len(scene.came)} tries of one append had {len(named)} sequences")


async def waits(scene: Scene) -> None:
    """OVERLOADED: the next try comes after `retry_after_ms`, not before."""
    await scene.append_once(b"first", "nothing")
    refusal = Refusal(reason=Reason.OVERLOADED, message="busy", retry_after_ms=RETRY_AFTER_MS)
    scene.refuse(refusal)
    begun = len(scene.came)
    await scene.append_once(b"second", "OVERLOADED")
    tries = [at_s for at_s, _ in scene.came[begun:]]
    if len(tries) > 1 and tries[1] - tries[0] < 0.9 * RETRY_AFTER_MS / 1000:
        waited_ms = 1000 * (tries[1] - tries[0])
        raise Wrong(f"it waited {waited_ms:.0f} ms where {RETRY_AFTER_MS} ms were asked for")


async def split(scene: Scene) -> None:
    """SPLIT: what the parent does not have goes to the child that has the key."""
    await scene.append_once(b"first", "nothing")
    scene.cluster.split(scene.shard_of(KEY))
    await scene.append_once(b"second", "SPLIT")
    await scene.append_once(b"third", "a split that it knows")
    values = [value for _, _, key, value in (await scene.program.read(LOG)).records if key == KEY]
    if values != [b"first", b"second", b"third"]:
        raise Wrong(f"a read gives the key's records as {values}: the parent's come first")


async def a_peer_dies(scene: Scene) -> None:
    """The primary is gone without a word: the append goes where the map says then."""
    await scene.append_once(b"first", "nothing")
    shard = scene.shard_of(KEY)
    primary = scene.cluster.shards[shard].entry.open.plan.primary.peer
    await scene.cluster.stop(primary)
    other = next(name for name in scene.cluster.hosts if name != primary)
    scene.cluster.hand_over(shard, other)
    await scene.append_once(b"second", "the death of a peer")


async def deadline(scene: Scene) -> None:
    """An append without an answer ends at its deadline, and as unknown."""
    await scene.append_once(b"first", "nothing")
    for host in scene.cluster.hosts.values():
        host.holding = []
    begun_s = time.monotonic()
    answer = await scene.program.append(LOG, b"second", KEY, timeout_s=1.5)
    took_s = time.monotonic() - begun_s
    for host in scene.cluster.hosts.values():
        host.release()
    if answer.ok or answer.taken != "unknown":
        raise Wrong(f"nobody answered, and it says {answer}")
    if took_s > 4.0:
        raise Wrong(f"it took {took_s:.1f} s for a deadline of 1.5 s")


async def refusals(scene: Scene) -> None:
    """A refusal for good is told at once, with its reason, as not taken."""
    answer = await scene.program.append("no-such-log", b"x", KEY, timeout_s=3.0)
    if answer.ok or answer.reason != "UNKNOWN_LOG" or answer.taken == "unknown":
        raise Wrong(f"an append to a log that is not there: {answer}")


async def trimmed(scene: Scene) -> None:
    """TRIMMED: a read below the first offset left says so, and never skips in silence."""
    for number in range(6):
        await scene.append_once(b"%d" % number, "nothing")
    shard = scene.shard_of(KEY)
    first = scene.cluster.trim(shard, 3)
    reading = await scene.program.read(LOG, (shard, 0))
    gap_told = any(gap[0] == shard and gap[2] == first for gap in reading.gaps)
    refused = reading.reason == "TRIMMED" and reading.first_offset == first
    if not gap_told and not refused:
        raise Wrong(f"offsets below {first} are trimmed, and it says {reading}"[:300])
    reading = await scene.program.read(LOG, (shard, first))
    if [value for *_, value in reading.records] != [b"3", b"4", b"5"]:
        raise Wrong(f"from offset {first} on it reads {reading}"[:300])


Check = Callable[[Scene], Awaitable[None]]

CHECKS: tuple[tuple[str, Check], ...] = (
    ("key hash", hashes),
    ("routing by key", keys_find_their_shard),
    ("paging", reads_all_pages),
    ("MOVED", moved),
    ("one sequence for all tries", one_sequence),
    ("outcome unknown", fenced),
    ("OVERLOADED, retry_after_ms", waits),
    ("SPLIT", split),
    ("a peer dies", a_peer_dies),
    ("deadline", deadline),
    ("UNKNOWN_LOG", refusals),
    ("TRIMMED", trimmed),
)


async def run(check: Check, command: list[str]) -> str:
    """Run one check with a client and a cluster of its own; "" if it is right, else what is not.

    Raises:
        NotSupported: the client does not do what the check is about.
    """
    async with MemoryCluster(peers=3) as cluster:
        cluster.create_log(LOG, shards=4)
        scene = Scene(cluster, Program(command), [])
        for host in cluster.hosts.values():
            host.on_append = lambda header: scene.came.append((time.monotonic(), header))
        try:
            await scene.program.start(cluster.addresses)
            await check(scene)
        except Wrong as wrong:
            return str(wrong)
        finally:
            for host in cluster.hosts.values():
                host.release()
            await asyncio.shield(scene.program.close())
    return ""

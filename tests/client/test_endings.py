"""Whatever happens to it, each append ends, and as what it is (docs/client.md, "Endings").

Swarms: appends of all kinds, some with short deadlines, some cancelled, while primaries refuse,
hold answers back, hand over, die, and the map lags behind. The seed draws what happens; when it
happens is up to the loop, so that a seed is no replay, and what is checked holds for all timings.
"""

import asyncio
import collections
import random

import pytest

import peerd
import peerd.aio
from peerd.client.options import ClientOptions
from peerd.core.errors import Reason, Refusal, Taken
from peerd.testing.memory import MemoryCluster
from peerd.transport.limits import EdgeLimits
from peerd.v1 import batch_pb2

STEPS = 80
KEYS = [b"household-%d" % number for number in range(6)]
# The same whether the peer took the batch before or not: that is what makes them unknown.
REFUSALS = [
    (Reason.NOT_PRIMARY, Taken.NO),
    (Reason.OVERLOADED, Taken.NO),
    (Reason.NOT_ENOUGH_PEERS, Taken.NO),
    (Reason.BATCH_TOO_LARGE, Taken.NO),
    (Reason.CRC_MISMATCH, Taken.NO),
    (Reason.FENCED, Taken.UNKNOWN),
    (Reason.OUTCOME_UNKNOWN, Taken.UNKNOWN),
    (Reason.STORE_FAILED, Taken.UNKNOWN),
]


class Swarm:
    """One run. `appended`: each append by whom, key, values and task, in the order of the calls."""

    def __init__(self, seed: int, cluster: MemoryCluster, client: peerd.aio.Client) -> None:
        self.chance = random.Random(seed)
        self.cluster = cluster
        self.client = client
        self.producer = client.producer("orders")
        self.appended: list[tuple[object, bytes, list[bytes], asyncio.Future]] = []
        self.stopped: set[str] = set()

    async def run(self) -> None:
        actions = [
            *([self.append] * 8),
            *([self.cancel] * 2),
            *([self.refuse] * 2),
            *([self.hold] * 2),
            *([self.let_go] * 3),
            *([self.hand_over] * 2),
            self.publish,
            self.stop,
            self.split,
        ]
        for _ in range(STEPS):
            await self.chance.choice(actions)()
            await asyncio.sleep(self.chance.choice([0, 0, 0, 0.001, 0.01]))

    async def append(self) -> None:
        for _ in range(self.chance.randint(1, 5)):
            key = self.chance.choice(KEYS)
            first = sum(len(values) for _, _, values, _ in self.appended)
            values = [b"%d" % (first + index) for index in range(self.chance.choice([1, 1, 1, 3]))]
            timeout_s = self.chance.choice([0.02, 0.2, 3.0, 3.0])
            who = self.chance.choice([self.client, self.client, self.producer])
            log = ("orders",) if who is self.client else ()
            if len(values) == 1 and self.chance.random() < 0.5:
                task = who.append_nowait(*log, values[0], key=key, timeout_s=timeout_s)
            else:
                records = [peerd.NewRecord(value=value, key=key) for value in values]
                task = asyncio.ensure_future(who.append_batch(*log, records, timeout_s=timeout_s))
                # The call is made when the task begins.
                await asyncio.sleep(0)
            self.appended.append((who, key, values, task))

    async def cancel(self) -> None:
        under_way = [task for *_, task in self.appended if not task.done()]
        if under_way:
            self.chance.choice(under_way).cancel()

    def _host(self):
        return self.chance.choice(list(self.cluster.hosts.values()))

    async def refuse(self) -> None:
        reason, taken = self.chance.choice(REFUSALS)
        refusal = Refusal(reason=reason, message=f"made up: {reason.name}", taken=taken)
        self._host().refuse_next.extend([refusal] * self.chance.randint(1, 4))

    async def hold(self) -> None:
        host = self._host()
        if host.holding is None:
            host.holding = []

    async def let_go(self) -> None:
        self._host().release()

    def _shard(self) -> int:
        return self.chance.choice(
            [shard for shard, known in self.cluster.shards.items() if known.entry.split is None]
        )

    def _up(self) -> str:
        return self.chance.choice(sorted(self.cluster.hosts.keys() - self.stopped))

    async def hand_over(self) -> None:
        self.cluster.hand_over(self._shard(), self._up(), publish=self.chance.random() < 0.7)

    async def publish(self) -> None:
        self.cluster.publish()

    async def stop(self) -> None:
        """One of the three; what it led goes to another."""
        if self.stopped:
            return
        victim = self._up()
        self.stopped.add(victim)
        await self.cluster.stop(victim)
        for shard, known in list(self.cluster.shards.items()):
            if known.entry.split is None and known.entry.open.plan.primary.peer == victim:
                self.cluster.hand_over(shard, self._up(), publish=False)
        self.cluster.publish()

    async def split(self) -> None:
        if len(self.cluster.shards) == 1:
            self.cluster.split(1, publish=self.chance.random() < 0.5)

    def calm(self) -> None:
        """Nothing bad happens any more."""
        for host in self.cluster.hosts.values():
            host.refuse_next.clear()
            host.release()
        self.cluster.publish()


def check(swarm: Swarm) -> int:
    """Each append ended as what it is; returns how many were acknowledged."""
    stored = {}
    for shard, known in swarm.cluster.shards.items():
        for batch in (batch for batches in known.batches.values() for batch in batches):
            records = batch_pb2.Batch.FromString(batch.payload).records.records
            for index, record in enumerate(records):
                assert record.value not in stored, f"{record.value!r} is stored twice"
                stored[record.value] = (shard, batch.base + index)
    acknowledged = collections.defaultdict(list)
    for who, key, values, task in swarm.appended:
        assert task.done()
        places = [stored.get(value) for value in values]
        if not task.cancelled() and task.exception() is None:
            receipt = task.result()
            expected = [(receipt.shard, receipt.offset + index) for index in range(len(values))]
            assert places == expected
            acknowledged[key, who, receipt.shard].append(receipt.offset)
            continue
        taken = outcome_of(task)
        assert taken in {"no", "unknown"}
        if taken == "no":
            assert places == [None] * len(values), (values, task)
        else:
            # As a whole or not at all.
            assert None not in places or set(places) == {None}
    assert all(offsets == sorted(offsets) for offsets in acknowledged.values())
    return sum(map(len, acknowledged.values()))


def outcome_of(task) -> str:
    try:
        task.result()
    except asyncio.CancelledError as error:
        # A future of `append_nowait` that is cancelled says nothing.
        return peerd.taken_of(error) or "unknown"
    except peerd.PeerdError as error:
        return str(error.taken)
    raise AssertionError("it was acknowledged")


@pytest.mark.parametrize("seed", range(12))
async def test_each_append_ends_as_what_it_is(seed):
    limits = EdgeLimits(no_primary_wait_ms=200)
    async with MemoryCluster(peers=3, limits=limits) as cluster:
        cluster.create_log("orders")
        options = ClientOptions(
            batch_records_max=random.Random(seed).choice([1, 3, 1024]),
            batches_inflight_max=random.Random(seed + 1).choice([1, 4, 8]),
        )
        addresses = [*cluster.addresses, cluster.las_address]
        async with peerd.aio.connect(addresses, options=options) as client:
            swarm = Swarm(seed, cluster, client)
            await swarm.run()
            if seed % 3 == 0:
                # The client is closed in the middle of it.
                swarm.calm()
            else:
                swarm.calm()
                async with asyncio.timeout(20):
                    await client.flush()
                    await asyncio.wait([task for *_, task in swarm.appended])
                assert client.statistics().queued_bytes == 0
        await asyncio.wait([task for *_, task in swarm.appended])
        assert check(swarm) > 0
        assert cluster.bugs == []

"""Child process of test_crash.py: writes to a store until it is killed, and says what is durable.

    appender.py STORE

Prints `ready`, then `shard end commit` for each outcome, as soon as it is delivered. The content of
every batch follows from its place, so whoever reads the store later knows what must be in it.
"""

import os
import random
import sys
import threading
from pathlib import Path

from crc32c import crc32c

from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.durable import AdoptEpoch, AppendBatches, Outcome, Stored
from peerd.core.ids import Epoch, Offset, ProducerId, ShardId
from peerd.storage import StorageOptions, Store

SHARDS = 4
EPOCH = Epoch(1)
# Appends that wait for their outcomes: several a commit, so that kills hit groups.
IN_FLIGHT = 16


def batch_at(shard: int, base: int) -> PlacedBatch:
    """The batch that the store holds at (shard, base)."""
    draw = random.Random(shard << 32 | base)
    payload = draw.randbytes(draw.choice((10, 500, 5_000, 40_000)))
    header = BatchHeader(
        record_count=1 + base % 3,
        payload_crc=crc32c(payload),
        producer=ProducerId(bytes([1 + base % 5]) * 16),
        first_sequence=base,
        timestamp_ms=base,
        payload_bytes=len(payload),
    )
    return PlacedBatch(base=Offset(base), header=header, payload=payload)


def main() -> None:
    """Append to all shards in turn, for ever."""
    free = threading.Semaphore(IN_FLIGHT)

    def deliver(outcomes: list[tuple[object, Outcome]]) -> None:
        for _, outcome in outcomes:
            if not isinstance(outcome, Stored):
                os._exit(3)
            segment = outcome.state.segments[EPOCH]
            line = f"{outcome.state.shard} {segment.end} {segment.commit}\n"
            os.write(1, line.encode())
            free.release()

    store = Store.open(
        Path(sys.argv[1]), StorageOptions(), deliver=deliver, on_failure=lambda _: os._exit(4)
    )
    os.write(1, b"ready\n")
    ends: dict[int, int] = {}
    commits = dict.fromkeys(range(SHARDS), Offset(0))
    for shard in range(SHARDS):
        state = store.shards.get(ShardId(shard))
        ends[shard] = state.segments[EPOCH].end if state else 0
        free.acquire()
        store.submit(AdoptEpoch(shard=ShardId(shard), epoch=EPOCH, begin=Offset(0)), None)
    while True:
        for shard in range(SHARDS):
            batch = batch_at(shard, ends[shard])
            free.acquire()
            store.submit(
                AppendBatches(
                    shard=ShardId(shard),
                    epoch=EPOCH,
                    batches=(batch,),
                    commit=commits[shard],
                ),
                None,
            )
            commits[shard] = batch.base
            ends[shard] = batch.end


if __name__ == "__main__":
    main()

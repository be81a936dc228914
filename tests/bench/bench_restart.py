"""How long a large store takes to be opened after a kill, and to be verified whole.

    python tests/bench/bench_restart.py DIRECTORY GIGABYTES

Fills a new store in DIRECTORY (which is removed at the end) in a child process, kills that without
a warning in the middle of a commit, opens it twice, and walks all of it.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from crc32c import crc32c

from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.durable import AdoptEpoch, AppendBatches
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.storage import StorageOptions, Store, verify_store

EPOCH = Epoch(1)
SHARDS = 16
PAYLOAD_BYTES = 256 * 1024
IN_FLIGHT_BYTES = 32 << 20


def fill(directory: Path) -> None:
    """Append to all shards in turn until killed; prints the bytes that are durable."""
    durable = [0]

    def deliver(outcomes) -> None:
        durable[0] += len(outcomes)
        os.write(1, b"%d\n" % (durable[0] * PAYLOAD_BYTES))

    store = Store.open(
        directory, StorageOptions(), deliver=deliver, on_failure=lambda _: os._exit(4)
    )
    for shard in range(SHARDS):
        store.submit(AdoptEpoch(shard=ShardId(shard), epoch=EPOCH, begin=Offset(0)), None)
    payload = os.urandom(PAYLOAD_BYTES)
    header = BatchHeader(
        record_count=1, payload_crc=crc32c(payload), payload_bytes=len(payload), timestamp_ms=1
    )
    at = 0
    while True:
        while store.queued_bytes > IN_FLIGHT_BYTES:
            time.sleep(0.001)
        for shard in range(SHARDS):
            batch = PlacedBatch(base=Offset(at), header=header, payload=payload)
            store.submit(
                AppendBatches(
                    shard=ShardId(shard), epoch=EPOCH, batches=(batch,), commit=Offset(at)
                ),
                None,
            )
        at += 1


def main(directory: Path, gigabytes: float) -> None:
    """Fill, kill, open, verify; a line each."""
    child = subprocess.Popen(
        [sys.executable, __file__, str(directory)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= gigabytes * 1e9:
            break
    child.send_signal(signal.SIGKILL)
    child.communicate()
    size_bytes = (directory / "data.mdb").stat().st_size
    sys.stdout.write(f"killed at {size_bytes / 1e9:.1f} GB\n")
    for what in ("after the kill", "after a clean stop"):
        begin_s = time.monotonic()
        store = Store.open(
            directory, StorageOptions(), deliver=lambda _: None, on_failure=lambda _: None
        )
        sys.stdout.write(f"opened {what} in {time.monotonic() - begin_s:.2f} s\n")
        assert store.close()
    begin_s = time.monotonic()
    report = verify_store(directory)
    took_s = time.monotonic() - begin_s
    assert report.sound, report
    sys.stdout.write(f"verified in {took_s:.1f} s, {size_bytes / 1e6 / took_s:.0f} MB/s\n")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        fill(Path(sys.argv[1]))
    else:
        try:
            main(Path(sys.argv[1]), float(sys.argv[2]))
        finally:
            shutil.rmtree(sys.argv[1], ignore_errors=True)

"""A process with the telemetry and the storage hook of a peer, and nothing else of it.

It commits what arrives at a given rate to a file, as a peer's writer does (everything that queued
up in one commit), so that episodes of the lab can be tried on something real and small.

    python mini_peer.py DIRECTORY APPENDS_PER_S
"""

import asyncio
import os
import random
import sys
import threading
import time
from pathlib import Path

from peerd.daemon.telemetry.collector import Collector, TelemetrySampler, watch_loop_lag
from peerd.daemon.telemetry.own import OwnMetrics
from peerd.daemon.telemetry.window import Recorder
from peerd.testing.faults import StorageFaults

RECORD_BYTES = 800


class Writer:
    def __init__(self, directory, own):
        self.own = own
        self.faults = StorageFaults(directory / "faults.json")
        self.file = (directory / "data").open("wb", buffering=0)
        self.waiting = 0
        self.arrived = threading.Condition()

    def arrive(self, records):
        with self.arrived:
            self.waiting += records
            self.arrived.notify()

    def run(self):
        while True:
            with self.arrived:
                while not self.waiting:
                    self.arrived.wait()
                records, self.waiting = self.waiting, 0
            begun_s = time.monotonic()
            self.own.commit_begun()
            try:
                self.faults.before_commit()
                self.file.write(b"r" * (records * RECORD_BYTES))
                os.fdatasync(self.file.fileno())
            except (OSError, MemoryError):
                os._exit(74)  # as a peer whose storage failed
            duration_ms = (time.monotonic() - begun_s) * 1000.0
            self.own.record_commit(duration_ms, records * RECORD_BYTES)


async def main(directory, rate):
    own = OwnMetrics()
    writer = Writer(directory, own)
    threading.Thread(target=writer.run, daemon=True).start()
    recorder = Recorder(directory / "samples")
    TelemetrySampler(Collector(directory, own.take), recorder.add).start()
    probe = asyncio.ensure_future(watch_loop_lag(own))
    (directory / "ready").touch()
    while not probe.done():
        await asyncio.sleep(random.expovariate(rate / 3.0))
        writer.arrive(random.randint(1, 5))
        own.record_append(3, 3 * RECORD_BYTES)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), float(sys.argv[2])))

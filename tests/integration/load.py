"""Appends at a constant rate beside what a test does to the cluster, and what became of them."""

import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from peerd.cli.demo.account import compare
from peerd.cli.demo.load import Sent
from peerd.cli.demo.transactions import Transaction
from peerd.client.blocking import Client, connect
from peerd.client.options import ClientOptions
from peerd.client.values import Receipt
from peerd.testing.dev_cluster import DevCluster

KEYS = 40
DEADLINE_S = 60.0
_TICK_S = 0.005


def until(condition, what: str, deadline_s: float = DEADLINE_S, every_s: float = 0.02) -> None:
    """Wait until `condition()` is true; looked at again `every_s` after it was not."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s:.0f} s: {what}"
        time.sleep(every_s)


def tell(line: str) -> None:
    """Say how far a long run has come."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Load:
    """A context: appends `rate` rows a second, each key's in order (open loop), until `finish`.

    `sent.failed` maps the row of an append that ended without a receipt to the words of its error.
    `keys` take turns.
    """

    def __init__(
        self, credentials: Path, log: str, *, rate: float = 200.0, keys: Sequence[bytes] = ()
    ) -> None:
        self.keys = keys or [f"key-{number}".encode() for number in range(KEYS)]
        self.rows: list[Transaction] = []
        self.log = log
        self.sent = Sent()
        self._rate = rate
        self._client: Client = connect(
            credentials=credentials, options=ClientOptions(append_timeout_s=DEADLINE_S)
        )
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._append_all, name="load")
        self._begin_s = time.monotonic()

    def __enter__(self):
        self._begin_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ending.set()
        self._thread.join()
        self._client.close()

    def wait_acked(self, count: int) -> None:
        """Return once `count` more appends are acknowledged."""
        wanted = len(self.sent.acked_s) + count
        until(lambda: len(self.sent.acked_s) >= wanted, f"{wanted} appends acknowledged")

    def finish(self) -> None:
        """Append no more, and wait until every append has ended, one way or the other."""
        self._ending.set()
        self._thread.join()
        until(lambda: len(self.sent.acked_s) + len(self.sent.failed) == len(self.rows), "all ended")

    def pause_ms(self, since: int = 0) -> float:
        """The longest time from an append's intended moment to its receipt, from row `since` on."""
        intended_s, acked_s = self.sent.intended_s, dict(self.sent.acked_s)
        waits_s = (acked - intended_s[row] for row, acked in acked_s.items() if row >= since)
        return 1000.0 * max(waits_s)

    def _append_all(self) -> None:
        while not self._ending.wait(_TICK_S):
            due = int((time.monotonic() - self._begin_s) * self._rate) + 1
            for row in range(len(self.rows), due):
                self._append(
                    Transaction(row, self.keys[row % len(self.keys)], f"row {row}".encode())
                )

    def _append(self, row: Transaction) -> None:
        self.rows.append(row)
        self.sent.intended_s.append(row.row / self._rate)
        future = self._client.append_nowait(self.log, row.value, key=row.key)
        future.add_done_callback(lambda ended: self._note(row.row, ended))

    def _note(self, row: int, ended: "Future[Receipt]") -> None:
        error = ended.exception()
        if error is None:
            self.sent.acked_s[row] = time.monotonic() - self._begin_s
        else:
            self.sent.failed[row] = str(error)


def assert_nothing_lost(cluster: DevCluster, load: Load) -> None:
    """Every append of a finished load was acknowledged, and is read once, in order per key."""
    assert not load.sent.failed, list(load.sent.failed.items())[:3]
    with connect(credentials=cluster.peerctl_toml) as client:
        read = list(client.read(load.log))
    assert compare(load.rows, load.sent, read) == (0, 0, 0)
    assert len(read) == len(load.rows)

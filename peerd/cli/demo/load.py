"""Appends at a constant rate, whatever the answers do (open loop), and remembers each answer.

Latency counts from the *intended* time, so that a pause is seen by every append that it delays, not
only by the one that met it.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from peerd.cli.demo.transactions import Transaction
from peerd.client.asynchronous import Client
from peerd.client.errors import PeerdError, QueueFull
from peerd.client.values import Receipt

# Finer than any pause that is told; a tick appends all that is due.
TICK_S = 0.002


@dataclass(slots=True)
class Sent:
    """What is known of the appends, by row: times in seconds from the first append."""

    intended_s: list[float] = field(default_factory=list)
    acked_s: dict[int, float] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    @property
    def sent(self) -> int:
        """Appends that were handed to the client."""
        return len(self.intended_s)


async def append_all(
    client: Client,
    log: str,
    transactions: Sequence[Transaction],
    *,
    appends_per_s: float,
    start: float,
    progress: Callable[[Sent], None],
) -> Sent:
    """Append everything and wait for the answers. `start` is of the loop's clock."""
    loop = asyncio.get_running_loop()
    sent = Sent()
    unanswered: set[asyncio.Future[Receipt]] = set()
    while sent.sent < len(transactions):
        due = min(len(transactions), int((loop.time() - start) * appends_per_s) + 1)
        while sent.sent < due:
            row = sent.sent
            transaction = transactions[row]
            try:
                future = client.append_nowait(log, transaction.value, key=transaction.key)
            except QueueFull:
                break
            sent.intended_s.append(row / appends_per_s)
            unanswered.add(future)
            future.add_done_callback(_Answer(sent, row, start, loop, unanswered))
        progress(sent)
        await asyncio.sleep(TICK_S)
    while unanswered:
        progress(sent)
        await asyncio.wait(unanswered, timeout=0.2)
    progress(sent)
    return sent


@dataclass(slots=True)
class _Answer:
    """Notes the end of one append."""

    sent: Sent
    row: int
    start: float
    loop: asyncio.AbstractEventLoop
    unanswered: "set[asyncio.Future[Receipt]]"

    def __call__(self, future: "asyncio.Future[Receipt]") -> None:
        self.unanswered.discard(future)
        error = future.exception()
        if error is None:
            self.sent.acked_s[self.row] = self.loop.time() - self.start
        else:
            self.sent.failed[self.row] = str(error)


async def spike(
    client: Client, log: str, transactions: Sequence[Transaction], *, rate: float, duration_s: float
) -> None:
    """A harmless load spike into a log of its own; what is refused is left out."""
    loop = asyncio.get_running_loop()
    start, count = loop.time(), 0
    pending: set[asyncio.Future[Receipt]] = set()
    while (elapsed := loop.time() - start) < duration_s:
        while count < int(elapsed * rate):
            transaction = transactions[count % len(transactions)]
            count += 1
            try:
                future = client.append_nowait(log, transaction.value, key=transaction.key)
            except PeerdError:
                continue
            pending.add(future)
            future.add_done_callback(pending.discard)
            future.add_done_callback(asyncio.Future.exception)
        await asyncio.sleep(TICK_S)
    if pending:
        await asyncio.wait(pending)

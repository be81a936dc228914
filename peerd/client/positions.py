"""Positions of named consumers, kept by the cluster: where a program goes on after a restart.

A position is committed when the call returns, and survives what an acknowledged record survives.
Whoever reads it later, anywhere, gets that one or a newer one. The last commit holds, also one that
goes back. One consumer name is for one reader at a time: with two, the last to commit wins.

A commit may be tried at several peers, and a try that was given up may arrive late, even after a
later commit was answered. So commits are numbered, and the cluster ignores one that a later one of
the same client overtook.
"""

import itertools
import math
import secrets
import time

from peerd.client.any_peer import AnyPeer
from peerd.client.values import Position
from peerd.transport.limits import COMMITTER_BYTES
from peerd.v1 import log_pb2


class Positions:
    """`client.positions`."""

    def __init__(self, peers: AnyPeer) -> None:
        self._peers = peers
        self._committer = secrets.token_bytes(COMMITTER_BYTES)
        self._sequences = itertools.count(1)

    async def commit(self, log: str, consumer: str, position: Position) -> None:
        """Stores where `consumer` goes on reading `log`. Without any offset it is forgotten.

        Args:
            log: Log name.
            consumer: 1 to 128 of `a-z 0-9 . _ -`.
            position: The `position` of a read.

        Raises:
            UnknownLog, UnknownShard, InvalidRequest, LimitReached, AccessDenied: what they say;
                the position that was stored before holds.
            OutcomeUnknown: it may hold, or hold later, until a later commit is answered; commit
                again.
            Unavailable: nobody took it in time.
        """
        request = log_pb2.CommitPositionRequest(
            log=log,
            consumer=consumer,
            committer=self._committer,
            sequence=next(self._sequences),
        )
        request.position.offsets.update(position.offsets)
        await self._peers.ask(
            log,
            f"the position of {consumer!r} in {log!r}",
            lambda stub, timeout_s: stub.CommitPosition(request, timeout=timeout_s),
        )

    async def get(self, log: str, consumer: str) -> Position:
        """The position of `consumer` in `log`; without any offset if it has none.

        Raises:
            UnknownLog, InvalidRequest, AccessDenied: what they say.
            Unavailable, NotEnoughPeers, LasUnavailable: nobody could answer for sure in time.
        """
        request = log_pb2.GetPositionRequest(log=log, consumer=consumer)
        response = await self._peers.ask(
            log,
            f"the position of {consumer!r} in {log!r}",
            lambda stub, timeout_s: stub.GetPosition(request, timeout=timeout_s),
        )
        return Position(dict(response.position.offsets))

    async def list(self, log: str) -> dict[str, Position]:
        """The consumers of `log` by name, each with its position.

        Each is as `get` gives it; together they are of no single moment. Raises as `get`.
        """
        found: dict[str, Position] = {}
        request = log_pb2.ListPositionsRequest(log=log)
        while True:
            page = await self._peers.ask(
                log,
                f"the positions in {log!r}",
                lambda stub, timeout_s: stub.ListPositions(request, timeout=timeout_s),
            )
            for each in page.positions:
                found[each.consumer] = Position(dict(each.position.offsets))
            if not page.more or not page.positions:
                return found
            request.after = page.positions[-1].consumer

    async def forget(self, log: str, consumer: str) -> None:
        """Takes the position of `consumer` away. Forgetting one that has none changes nothing.

        Raises as `commit`.
        """
        await self.commit(log, consumer, Position())


class KeptPosition:
    """One consumer's position while it reads: loaded at the start, committed now and then."""

    def __init__(self, positions: Positions, log: str, consumer: str, interval_s: float) -> None:
        self._positions = positions
        self._log = log
        self._consumer = consumer
        self._interval_s = interval_s
        self._committed = Position()
        self._due_s = math.inf

    async def load(self) -> Position:
        """What was committed, maybe in an earlier life of the program."""
        self._committed = await self._positions.get(self._log, self._consumer)
        self._due_s = time.monotonic() + self._interval_s
        return self._committed

    @property
    def is_due(self) -> bool:
        """Whether the last commit is `interval_s` ago. False before `load`."""
        return time.monotonic() >= self._due_s

    async def commit(self, position: Position) -> None:
        """Commits `position` unless it is the committed one. Raises as `Positions.commit`."""
        self._due_s = time.monotonic() + self._interval_s
        if position.offsets and position != self._committed:
            await self._positions.commit(self._log, self._consumer, position)
            self._committed = position

"""Whether a log exists, when a map says that it does not.

A map may lag: the one here, and that of any peer, behind what somebody else has just created. Only
the LAS knows for sure, and a log is never called unknown on the word of one map while it can be
asked. Without it, as many maps are asked as there are addresses, and what none has is unknown.

Invariant: those who wait for one log go on in the order in which they came; so do their appends.
"""

import asyncio
import copy
import time
from collections.abc import Callable

from peerd.client.directory import Directory
from peerd.client.errors import (
    AccessDenied,
    LasUnavailable,
    PeerdError,
    Unavailable,
    UnknownLog,
)
from peerd.client.las import LasCalls
from peerd.client.options import RETRY_STEP_S
from peerd.transport.map_service import unknown_log

# How long the LAS may take to say whether there is a log, before the peers' word has to do.
LAS_PATIENCE_S = 3.0


class _Question:
    """One log that is asked about, and how many wait for the answer."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.waiting = 0
        self.failure: PeerdError | None = None


class KnownLogs:
    """Finds out about logs that are not on a map. Used on one event loop."""

    def __init__(
        self,
        directory: Directory,
        las: LasCalls,
        timeout_s: float,
        check_open: Callable[[], None],
    ) -> None:
        """`timeout_s` bounds each question; `check_open` raises when the client is closed."""
        self._directory = directory
        self._las = las
        self._timeout_s = timeout_s
        self._check_open = check_open
        self._questions: dict[str, _Question] = {}

    def has(self, log: str) -> bool:
        """Whether `log` is on the map here, and nobody waits for it any more."""
        return log not in self._questions and bool(self._directory.cache.shards_of(log))

    async def require(self, log: str) -> None:
        """Returns when the map here has `log`, which mostly is at once.

        Raises:
            UnknownLog: there is no such log.
            Unavailable: there is, but nobody gave a map that has it in time; or nobody answered.
        """
        if self.has(log):
            return
        question = self._questions.setdefault(log, _Question())
        question.waiting += 1
        try:
            async with question.turn:
                if question.failure is not None:
                    raise copy.copy(question.failure)
                await self._find(log)
        except PeerdError as error:
            question.failure = error
            raise
        finally:
            question.waiting -= 1
            if not question.waiting:
                del self._questions[log]

    async def exists(self, log: str) -> bool:
        """True: the LAS has `log`. False: the LAS cannot be asked.

        Raises:
            UnknownLog: there is no such log.
        """
        if not self._las.is_configured:
            return False
        try:
            async with asyncio.timeout(LAS_PATIENCE_S):
                await self._las.describe_log(log)
        except (TimeoutError, LasUnavailable, Unavailable, AccessDenied):
            return False
        except UnknownLog as error:
            raise UnknownLog(unknown_log(log), reason="UNKNOWN_LOG", taken="no") from error
        return True

    async def _find(self, log: str) -> None:
        deadline_s = time.monotonic() + self._timeout_s
        is_sure: bool | None = None
        tries, answers = 0, 0
        while not self._is_on_map(log):
            self._check_open()
            answers += await asyncio.shield(self._directory.refresh())
            tries += 1
            if self._is_on_map(log):
                return
            if is_sure is None:
                is_sure = await self.exists(log)
            if not is_sure and answers and tries >= len(self._directory.addresses):
                raise UnknownLog(unknown_log(log), reason="UNKNOWN_LOG", taken="no")
            if time.monotonic() > deadline_s:
                raise Unavailable(
                    f"log {log!r} is not on this client's map, and nobody gives a newer one: "
                    "check the cluster (`peerctl status`)",
                    taken="no",
                )
            await asyncio.sleep(RETRY_STEP_S)

    def _is_on_map(self, log: str) -> bool:
        return bool(self._directory.cache.shards_of(log))

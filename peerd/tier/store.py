"""What an object store is asked for: create, read a range, look, list, remove.

`Backend` is one store without patience; `TierStore` gives each call to it a deadline and repeats
what failed for reasons that pass, a bounded number of times and ever later.

Invariants:
- No call waits longer than `attempts` deadlines and the pauses between them.
- `create` makes a name or leaves it alone. False: there is something under it, whoever put it
  there. That may be this very call, whose first answer was lost; so whoever gets False looks.
- Every failure is a `TierError`.

Must not: overwrite anything. There is no call for it.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from peerd.tier.errors import DamagedObject, MissingObject, TierError, TierUnavailable

# limit: names that one listing of a prefix gives
LISTED_MAX = 100_000
_BACKOFF_MS = 100
_BACKOFF_MS_MAX = 5_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """An object below a prefix: its whole name, and its size."""

    key: str
    size_bytes: int


class Backend(Protocol):
    """An object store. Each call raises `TierError`; `TierUnavailable` stands for what may pass."""

    @property
    def name(self) -> str:
        """What people call it; without secrets."""
        ...

    async def create(self, key: str, data: bytes | bytearray) -> bool:
        """Durably make an object; False if there is one of that name."""
        ...

    async def read(self, key: str, begin: int, end: int) -> bytes:
        """Bytes [begin, end), fewer if it ends before. Raises `MissingObject`."""
        ...

    async def holds(self, key: str, begin: int, end: int, data: bytes | bytearray) -> bool:
        """Whether bytes [begin, end) of an object are those of `data`: all of them read from where
        they are kept, as far as the store lets one tell, and not from memory of this machine.
        Raises `MissingObject`.
        """
        ...

    async def size_bytes(self, key: str) -> int:
        """Raises `MissingObject`."""
        ...

    async def listed(self, prefix: str) -> list[Listed]:
        """All below `prefix`, in no order; at most `LISTED_MAX`."""
        ...

    async def folders(self, prefix: str) -> list[str]:
        """The folders right below `prefix`, by their whole names, in no order; at most
        `LISTED_MAX`. One may be empty by now.
        """
        ...

    async def remove(self, keys: Sequence[str]) -> None:
        """Remove them; what is not there is removed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TierStatistics:
    """Since the start of the process."""

    calls: int
    failures: int
    read_bytes: int
    written_bytes: int


class TierStore:
    """A backend with patience. Used on an event loop."""

    def __init__(self, backend: Backend, *, deadline_ms: int, attempts: int) -> None:
        self._backend = backend
        self._deadline_ms = deadline_ms
        self._attempts = attempts
        self._calls = self._failures = 0
        self._read_bytes = self._written_bytes = 0

    @property
    def name(self) -> str:
        """What people call it."""
        return self._backend.name

    def statistics(self) -> TierStatistics:
        """Counts, now."""
        return TierStatistics(
            calls=self._calls,
            failures=self._failures,
            read_bytes=self._read_bytes,
            written_bytes=self._written_bytes,
        )

    async def create(self, key: str, data: bytes | bytearray) -> bool:
        """Durably make an object; False if there is one of that name. Raises `TierError`."""
        made = await self._patiently(lambda: self._backend.create(key, data))
        self._written_bytes += len(data)
        return made

    async def read(self, key: str, begin: int, end: int) -> bytes:
        """Exactly bytes [begin, end). Raises `TierError`; `DamagedObject` if there are fewer."""
        data = await self._patiently(lambda: self._backend.read(key, begin, end))
        self._read_bytes += len(data)
        if len(data) != end - begin:
            raise DamagedObject(
                f"{key} has {len(data)} of the {end - begin} bytes from {begin} on: it was cut"
            )
        return data

    async def holds(self, key: str, begin: int, end: int, data: bytes | bytearray) -> bool:
        """Whether bytes [begin, end) are those of `data`, read back. Raises `TierError`."""
        same = await self._patiently(lambda: self._backend.holds(key, begin, end, data))
        self._read_bytes += end - begin
        return same

    async def size_bytes(self, key: str) -> int:
        """Raises `TierError`."""
        return await self._patiently(lambda: self._backend.size_bytes(key))

    async def listed(self, prefix: str) -> list[Listed]:
        """All below `prefix`, by name. Raises `TierError`."""
        found = await self._patiently(lambda: self._backend.listed(prefix))
        return sorted(found, key=lambda each: each.key)

    async def folders(self, prefix: str) -> list[str]:
        """The folders right below `prefix`, by their whole names. Raises `TierError`."""
        return sorted(await self._patiently(lambda: self._backend.folders(prefix)))

    async def remove(self, keys: Sequence[str]) -> None:
        """Remove what is there of them. Raises `TierError`."""
        if keys:
            await self._patiently(lambda: self._backend.remove(keys))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        attempt = 1
        while True:
            self._calls += 1
            try:
                async with asyncio.timeout(self._deadline_ms / 1000):
                    return await call()
            except TimeoutError as error:
                failure: TierError = TierUnavailable(
                    f"{self.name} did not answer within {self._deadline_ms} ms"
                )
                failure.__cause__ = error
            except TierUnavailable as error:
                failure = error
            except MissingObject:
                raise
            except TierError:
                self._failures += 1
                raise
            self._failures += 1
            if attempt >= self._attempts:
                raise failure
            await asyncio.sleep(_pause_ms(attempt) / 1000)
            attempt += 1


def _pause_ms(attempt: int) -> float:
    """Twice as long each time, and never the same for two who were refused at once."""
    longest_ms = min(_BACKOFF_MS << min(attempt - 1, 10), _BACKOFF_MS_MAX)
    return longest_ms * random.uniform(0.5, 1.0)

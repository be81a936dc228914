"""Batches, objects and a store in memory with faults, for the tests of the tier."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from crc32c import crc32c

from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.tier.errors import MissingObject, TierUnavailable
from peerd.tier.format import Index, ObjectWriter, Owner
from peerd.tier.keys import NO_KEYS, KeyRing
from peerd.tier.manifest import Manifest
from peerd.tier.store import Listed

OWNER = Owner(cluster="shop", log="orders", shard=ShardId(7), epoch=Epoch(3))
LISTED = Manifest(
    cluster="shop",
    log="orders",
    shard=ShardId(7),
    generation=1,
    epoch=Epoch(3),
    key_hash_low=0,
    key_hash_high=(1 << 64) - 1,
)


def batches_of(
    sizes: Sequence[int], *, begin: int = 0, records: int = 3, seed: int = 1
) -> list[PlacedBatch]:
    """Batches of these payload sizes, one behind the other, a second apart."""
    dice = random.Random(seed)
    made, base = [], begin
    for number, size in enumerate(sizes):
        payload = dice.randbytes(size // 2) + b"x" * (size - size // 2)
        header = BatchHeader(
            record_count=records,
            payload_crc=crc32c(payload),
            producer=b"p" * 16 if number % 2 else b"",
            first_sequence=number * records,
            timestamp_ms=1_000_000 + base // records * 1_000,
            payload_bytes=size,
        )
        made.append(PlacedBatch(base=Offset(base), header=header, payload=payload))
        base += records
    return made


def object_of(
    batches: Sequence[PlacedBatch], *, owner: Owner = OWNER, keys: KeyRing = NO_KEYS
) -> tuple[bytearray, Index]:
    writer = ObjectWriter(owner, batches[0].base, keys)
    writer.add(batches)
    return writer.finish()


def plain(batches: Sequence[PlacedBatch]) -> list[tuple[int, BatchHeader, bytes]]:
    return [(each.base, each.header, bytes(each.payload)) for each in batches]


@dataclass
class MemoryBackend:
    """A store in memory. `faults` are played one a call, `hung` calls never answer."""

    objects: dict[str, bytes] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    hung: int = 0
    reads: list[tuple[str, int, int]] = field(default_factory=list)
    spoil: bool = False
    name: str = "memory"

    async def _fault(self) -> str:
        if self.hung:
            self.hung -= 1
            await asyncio.Event().wait()
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "500":
            raise TierUnavailable("memory: 500")
        return fault

    async def create(self, key: str, data: bytes | bytearray) -> bool:
        fault = await self._fault()
        if key in self.objects:
            return False
        if self.spoil and key.endswith(".chunk"):
            data = data[:40] + bytes([data[40] ^ 1]) + data[41:]
        self.objects[key] = bytes(data)
        if fault == "lost answer":
            raise TierUnavailable("memory: the answer was lost")
        return True

    async def read(self, key: str, begin: int, end: int) -> bytes:
        await self._fault()
        if key not in self.objects:
            raise MissingObject(f"{key} is not there")
        self.reads.append((key, begin, end))
        return self.objects[key][begin:end]

    async def holds(self, key: str, begin: int, end: int, data: bytes | bytearray) -> bool:
        return await self.read(key, begin, end) == data[begin:end]

    async def size_bytes(self, key: str) -> int:
        await self._fault()
        if key not in self.objects:
            raise MissingObject(f"{key} is not there")
        return len(self.objects[key])

    async def listed(self, prefix: str) -> list[Listed]:
        await self._fault()
        return [
            Listed(key=key, size_bytes=len(data))
            for key, data in self.objects.items()
            if key.startswith(f"{prefix}/")
        ]

    async def folders(self, prefix: str) -> list[str]:
        await self._fault()
        below = [key[len(prefix) + 1 :] for key in self.objects if key.startswith(f"{prefix}/")]
        return list({f"{prefix}/{key.partition('/')[0]}" for key in below if "/" in key})

    async def remove(self, keys: Sequence[str]) -> None:
        await self._fault()
        for key in keys:
            self.objects.pop(key, None)

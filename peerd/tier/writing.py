"""One object to the tier, as safely as it goes: put, read back, compare, and only then named.

Why nothing is lost by dropping what was written so:

- *Read back*: `put_object` returns an entry only after it has read every byte of the object from
  the store and found the very bytes that it was given; or, of an object that was there before, the
  very batches (their SHA-256), as the owner's. That the bytes it was given are these batches is
  seen when they are packed (`peerd.tier.format.ObjectWriter`) and once more before they are put.
- *Twice*: a put whose answer is lost, or of a primary before this one, leaves an object of this
  name. It is read back like one's own; what is none, or damaged, stays where it is, and the object
  gets another name.
- *Interrupted*: an object that no manifest lists, and a manifest that no map names, is nothing. It
  costs room until `leftovers` tells it.

Must not: overwrite; remove.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Sequence

from peerd.core.ids import Offset
from peerd.core.tiering import Verdict, judged
from peerd.tier import manifest as manifests
from peerd.tier.errors import (
    DamagedObject,
    ForeignObject,
    FormatUnknown,
    MissingObject,
    TierError,
    WrongKey,
)
from peerd.tier.format import BlockOpener, Index, check_made
from peerd.tier.keys import KeyRing
from peerd.tier.manifest import Entry, Manifest, object_name, prefix_of
from peerd.tier.reader import read_index, read_manifest
from peerd.tier.store import TierStore

# limit: names that are tried where there is something already that cannot be used; all but the
# first are drawn by chance, so that a later try meets others
ATTEMPTS_MAX = 3
# limit: bytes of one request while an object is read back, unless one block has more
_READ_BACK_BYTES = 4 * 1024 * 1024

_UNUSABLE = (DamagedObject, ForeignObject, FormatUnknown, MissingObject, WrongKey)


async def put_object(
    store: TierStore, keys: KeyRing, listed: Manifest, data: bytes | bytearray, index: Index
) -> Entry:
    """Put an object that `ObjectWriter` made, and verify it. `listed` says of which shard.

    Raises `TierError`; then nothing may be dropped on its account.
    """
    prefix = prefix_of(listed.cluster, listed.log, listed.shard)
    await asyncio.to_thread(check_made, data, index, keys)
    failure: TierError | None = None
    for attempt in range(ATTEMPTS_MAX):
        mark = secrets.randbits(32) if attempt else 0
        name = object_name(index.owner.epoch, index.begin, index.end, mark)
        is_new = await store.create(f"{prefix}/{name}", data)
        found: Index | None = None
        try:
            if await _is_there(store, f"{prefix}/{name}", data):
                found = index
            else:
                found = await verify(store, keys, f"{prefix}/{name}", index)
        except _UNUSABLE as error:
            failure = error
        verdict = judged(same=found is not None, is_new=is_new)
        if verdict is Verdict.OTHER_NAME:
            continue
        if verdict is Verdict.GIVEN_UP or found is None:
            break  # it would do the same to another one
        return Entry(
            name=name,
            epoch=index.owner.epoch,
            begin=index.begin,
            end=index.end,
            object_bytes=found.object_bytes,
            payload_bytes=found.payload_bytes,
            timestamp_ms=found.blocks[0].timestamp_ms,
            content=found.content.hex(),
        )
    raise DamagedObject(f"what {store.name} gives back is not what it was given: {failure}")


async def _is_there(store: TierStore, key: str, data: bytes | bytearray) -> bool:
    """Whether these bytes are what the store gives back, all of them read. Raises `TierError`."""
    if await store.size_bytes(key) != len(data):
        return False
    for begin in range(0, len(data), _READ_BACK_BYTES):
        end = min(begin + _READ_BACK_BYTES, len(data))
        if not await store.holds(key, begin, end, data):
            return False
    return True


async def verify(store: TierStore, keys: KeyRing, key: str, wanted: Index) -> Index:
    """Read all of an object and compare it with what is wanted; its index. Raises `TierError`."""
    index = await read_index(store, keys, key, wanted.owner)
    same = (index.begin, index.end, index.payload_bytes, index.content)
    if same != (wanted.begin, wanted.end, wanted.payload_bytes, wanted.content):
        raise ForeignObject(f"{key} has other batches than were to be written")
    opener = BlockOpener(index, keys)
    digest = hashlib.sha256()
    number = 0
    # The magic in front goes with the first blocks.
    position = 0
    while number < len(index.blocks):
        end = number + 1
        while end < len(index.blocks) and (_block_end(index, end) - position <= _READ_BACK_BYTES):
            end += 1
        data = await store.read(key, position, _block_end(index, end - 1))
        await asyncio.to_thread(_digest, digest, opener, range(number, end), data)
        position = _block_end(index, end - 1)
        number = end
    if digest.digest() != wanted.content:
        raise DamagedObject(f"{key} has other batches than its index says")
    return index


def _block_end(index: Index, number: int) -> int:
    return index.blocks[number].position + index.blocks[number].stored_bytes


def _digest(digest: "hashlib._Hash", opener: BlockOpener, numbers: range, data: bytes) -> None:
    """Add these blocks to `digest`; they end where `data` ends."""
    view = memoryview(data)
    begin = _block_end(opener.index, numbers[-1]) - len(data)
    for number in numbers:
        at = opener.index.blocks[number].position - begin
        stored = view[at : at + opener.index.blocks[number].stored_bytes]
        digest.update(opener.checked(number, stored))


async def put_manifest(store: TierStore, listed: Manifest) -> str:
    """Put a manifest and read it back; its name, for the map. Raises `TierError`."""
    if len(listed.entries) > manifests.ENTRIES_MAX:
        raise TierError(
            f"shard {listed.shard} has {manifests.ENTRIES_MAX} objects in the tier, which is the "
            "most: shorten the log's retention, or split the shard"
        )
    name, data = await asyncio.to_thread(manifests.pack, listed)
    await store.create(f"{prefix_of(listed.cluster, listed.log, listed.shard)}/{name}", data)
    read = await read_manifest(store, listed.cluster, listed.log, listed.shard, name)
    if read != listed:
        raise DamagedObject(f"the manifest {name} is not what was written")
    return name


def trimmed(names: Sequence[str], kept_from: Offset) -> list[str]:
    """Of the names below a shard's prefix in another cluster's folder, of which this one is the
    heir, those of objects that its map does not keep. The others may be read, or are what a restore
    left out.
    """
    ends = [(name, manifests.end_of_name(name)) for name in names]
    return [name for name, end in ends if end is not None and end <= kept_from]


def leftovers(
    names: Sequence[str], listed: Manifest, *, kept_from: Offset, written_to: Offset
) -> list[str]:
    """Of the names below a shard's prefix those that nobody needs, now that the map names `listed`.

    Manifests older than the one before it, and objects that end at or below `kept_from`, or at or
    below `written_to` without being listed. What lies beyond may just be on its way.
    """
    used = {entry.name for entry in listed.entries}
    gone = []
    for name in names:
        generation = manifests.generation_of_name(name)
        end = manifests.end_of_name(name)
        if generation is not None and generation < listed.generation - 1:
            gone.append(name)
        if end is not None and end <= (kept_from if name in used else written_to):
            gone.append(name)
    return gone

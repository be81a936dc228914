"""Backups in the tier: what it takes beside the records to begin a cluster anew (docs/backup.md).

```
backups/<id>/
    state               what the LAS had committed, as `peerctl export` writes it
    shard-<20 digits>   the manifest of a shard's objects that the state names, as it was
    index-<digest>      written last: of each part its size and SHA-256, of each shard its offsets
```

The records themselves are not copied: they lie where the tier has them, and go when the log's
retention or a trim removes them.

Why a backup is never taken for what it is not:

- *Whole or none*: the index is written last. Without one there is no backup, only leftovers.
- *As it was written*: the index has half of its SHA-256 in its name, and that of each part in it;
  each part is read back and compared before the index names it.
- *Never overwritten*: ids are drawn by chance, and each name is created on condition that there is
  none.
- *Encrypted* like objects, if there is a key: each part with a key of its own, bound to its name.

Must not: decide what belongs into a backup; remove anything.
"""

import asyncio
import calendar
import hashlib
import json
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cryptography.exceptions import InvalidTag

from peerd.tier.errors import DamagedObject, FormatUnknown, MissingObject, TierError, WrongKey
from peerd.tier.format import Index
from peerd.tier.keys import NO_KEY, SALT_BYTES, KeyRing
from peerd.tier.manifest import Entry, Manifest, prefix_of
from peerd.tier.store import TierStore
from peerd.tier.writing import verify

FORMAT = 1
STATE = "state"
# limit: bytes of one part; an export of a state has at most as many
PART_BYTES_MAX = 1024 * 1024 * 1024
# limit: bytes of an index; some 200 for each shard
INDEX_BYTES_MAX = 256 * 1024 * 1024
_FOLDER = "backups"
_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
_INDEX = re.compile(r"index-([0-9a-f]{32})")
_PLAIN = b"peerdBK\x00"
_ENCRYPTED = b"peerdBK\x01"
_KEY_ID_BYTES = 16
_HEAD_BYTES = len(_ENCRYPTED) + _KEY_ID_BYTES + SALT_BYTES
# Each part has a key of its own, so one nonce is never used twice with it.
_NONCE = bytes(12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One object of a backup, as it lies there."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardBackup:
    """How far a shard is backed up: offsets [begin, end), `committed` when the backup was asked
    for. `manifest` is the name of what `part` is a copy of; both are empty if nothing is there.
    """

    log: str
    shard: int
    begin: int
    end: int
    committed: int
    manifest: str = ""
    part: Part | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all that was committed when the backup was asked for is in it."""
        return self.end >= self.committed


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """What an index says."""

    id: str
    cluster: str
    cluster_id: str
    made_at_ms: int
    state: Part
    shards: tuple[ShardBackup, ...]

    @property
    def is_whole(self) -> bool:
        """Whether all that was committed when it was asked for is in it."""
        return all(each.is_whole for each in self.shards)


def made_at_s(backup_id: str) -> float:
    """When a backup with this id was begun, by the wall clock; never, if that is no time."""
    try:
        return float(calendar.timegm(time.strptime(backup_id[:16], "%Y%m%dT%H%M%SZ")))
    except ValueError:
        return float("inf")


def folder(backup_id: str) -> str:
    """Where everything of a backup lies. Raises `MissingObject` if it is no id."""
    if not _ID.fullmatch(backup_id):
        raise MissingObject(f"{backup_id[:80]!r} is no id of a backup: `peerctl backup list`")
    return f"{_FOLDER}/{backup_id}"


def is_index(key: str) -> bool:
    """Whether this is the name of an index, below the folder of a backup."""
    return _INDEX.fullmatch(key.rsplit("/", 1)[1]) is not None


def new_id(at_s: float) -> str:
    """The id of a backup that is made at this time of the wall clock."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(at_s))}-{secrets.token_hex(4)}"


def shard_part(shard: int) -> str:
    """What the part of a shard is called."""
    return f"shard-{shard:020d}"


# ---------------------------------------------------------------------------------- parts
async def put_part(store: TierStore, keys: KeyRing, backup: str, name: str, data: bytes) -> Part:
    """Write one part, and read it back. Raises `TierError`."""
    sealed = await asyncio.to_thread(_sealed, keys, f"{backup}/{name}", data)
    await _put(store, f"{_FOLDER}/{backup}/{name}", sealed)
    digest = hashlib.sha256(sealed).hexdigest()
    return Part(name=name, size_bytes=len(sealed), sha256=digest)


async def read_part(store: TierStore, keys: KeyRing, backup: str, part: Part) -> bytes:
    """What was given to `put_part`. Raises `TierError`."""
    key = f"{_FOLDER}/{backup}/{part.name}"
    if not 0 < part.size_bytes <= PART_BYTES_MAX:
        raise DamagedObject(f"{key} cannot have {part.size_bytes} bytes")
    data = await store.read(key, 0, part.size_bytes)
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise DamagedObject(f"{key} is not what was written: a byte was flipped")
    return await asyncio.to_thread(_opened, keys, f"{backup}/{part.name}", data)


def _sealed(keys: KeyRing, name: str, data: bytes) -> bytes:
    if not keys.writing:
        return _PLAIN + data
    salt = secrets.token_bytes(SALT_BYTES)
    head = _ENCRYPTED + keys.writing.encode() + salt
    return head + keys.cipher(keys.writing, salt).encrypt(_NONCE, data, head + name.encode())


def _opened(keys: KeyRing, name: str, data: bytes) -> bytes:
    if data.startswith(_PLAIN):
        return data[len(_PLAIN) :]
    if not data.startswith(_ENCRYPTED) or len(data) < _HEAD_BYTES:
        raise FormatUnknown(f"{name} was written by a newer version: upgrade")
    head = data[:_HEAD_BYTES]
    key_id = head[len(_ENCRYPTED) : -SALT_BYTES].decode("ascii", "replace")
    cipher = keys.cipher(key_id, head[-SALT_BYTES:])
    try:
        return cipher.decrypt(_NONCE, data[_HEAD_BYTES:], head + name.encode())
    except InvalidTag as error:
        raise WrongKey(f"{name} cannot be decrypted: it was tampered with") from error


async def _put(store: TierStore, key: str, data: bytes) -> None:
    """Create an object and read it back: one that was there is this very one, or an error."""
    await store.create(key, data)
    if await store.read(key, 0, len(data)) != data or await store.size_bytes(key) != len(data):
        raise DamagedObject(f"{key}: what {store.name} gives back is not what it was given")


# ---------------------------------------------------------------------------------- the index
async def put_index(store: TierStore, backup: Backup) -> None:
    """Write the index: from here on the backup counts. Raises `TierError`."""
    data = json.dumps({"format": FORMAT, **asdict(backup)}, separators=(",", ":")).encode()
    if len(data) > INDEX_BYTES_MAX:
        raise TierError(f"the index of the backup would have {len(data)} bytes")
    digest = hashlib.sha256(data).hexdigest()[:32]
    await _put(store, f"{_FOLDER}/{backup.id}/index-{digest}", data)


async def begun_ids(store: TierStore) -> list[str]:
    """Of all backups of which something is there, oldest first. Raises `TierError`."""
    keys = (each.key.removeprefix(f"{_FOLDER}/") for each in await store.listed(_FOLDER))
    return sorted({key.partition("/")[0] for key in keys if _ID.fullmatch(key.partition("/")[0])})


async def list_ids(store: TierStore) -> list[str]:
    """Of all backups that have an index, oldest first. Raises `TierError`."""
    found = set()
    for each in await store.listed(_FOLDER):
        backup, _, name = each.key.removeprefix(f"{_FOLDER}/").partition("/")
        if _ID.fullmatch(backup) and _INDEX.fullmatch(name):
            found.add(backup)
    return sorted(found)


async def read_index(store: TierStore, backup: str) -> Backup:
    """The index of a backup. Raises `TierError`; `MissingObject` if there is no such backup."""
    prefix = folder(backup)
    for each in await store.listed(prefix):
        name = each.key.removeprefix(f"{prefix}/")
        found = _INDEX.fullmatch(name)
        if found is None:
            continue
        if each.size_bytes > INDEX_BYTES_MAX:
            raise DamagedObject(f"{each.key} is no index: it has {each.size_bytes} bytes")
        data = await store.read(each.key, 0, each.size_bytes) if each.size_bytes else b""
        if hashlib.sha256(data).hexdigest()[:32] != found[1]:
            raise DamagedObject(f"{each.key} is not what was written under this name")
        return await asyncio.to_thread(_unpacked, each.key, data)
    raise MissingObject(
        f"{store.name} has no whole backup {backup}: `peerctl backup list` names those it has"
    )


def _unpacked(key: str, data: bytes) -> Backup:
    try:
        read = json.loads(data)
        version = read.pop("format")
        if version != FORMAT:
            raise FormatUnknown(f"{key} has format {version!r:.20}, and this knows {FORMAT}")
        shards = tuple([_shard_of(each) for each in read.pop("shards")])
        return Backup(state=Part(**read.pop("state")), shards=shards, **read)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DamagedObject(f"{key} cannot be read: {error}") from error


def _shard_of(read: dict[str, Any]) -> ShardBackup:
    part = read.pop("part")
    return ShardBackup(part=None if part is None else Part(**part), **read)


# ---------------------------------------------------------------------------------- the records
async def lacking(store: TierStore, listed: Manifest) -> list[Entry]:
    """The objects of a manifest that are not there, or not in their length. Raises `TierError`."""
    sizes: dict[str, int] = {}
    for cluster in sorted({each.cluster or listed.cluster for each in listed.entries}):
        prefix = prefix_of(cluster, listed.log, listed.shard)
        sizes |= {each.key: each.size_bytes for each in await store.listed(prefix)}
    return [each for each in listed.entries if sizes.get(listed.key(each)) != each.object_bytes]


async def check_records(store: TierStore, keys: KeyRing, listed: Manifest) -> None:
    """Read every byte of every object of a manifest. Raises `TierError` at the first wrong one."""
    for each in listed.entries:
        wanted = Index(
            owner=listed.owner(each),
            begin=each.begin,
            end=each.end,
            payload_bytes=each.payload_bytes,
            content=bytes.fromhex(each.content),
            key_id=NO_KEY,
            salt=b"",
            blocks=(),
            object_bytes=each.object_bytes,
        )
        await verify(store, keys, listed.key(each), wanted)


def removed_since(listed: Manifest, missing: Sequence[Entry]) -> Manifest:
    """What is left of a manifest of which the oldest objects were removed by retention or a trim.

    Raises `MissingObject` if others are missing, too: nothing is skipped.
    """
    gone = {each.name for each in missing}
    left = [each for each in listed.entries if each.name not in gone]
    oldest = listed.entries[: len(gone)]
    if not left and gone:
        raise MissingObject(f"no object of shard {listed.shard} of log {listed.log} is there")
    if any(each.name not in gone for each in oldest):
        hole = next(each for each in missing if each.begin > left[0].begin)
        raise MissingObject(
            f"{hole.name} of shard {listed.shard} of log {listed.log} is not there, or was cut: "
            "bring it back from a copy of the tier"
        )
    return replace(listed, entries=tuple(left))

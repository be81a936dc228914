"""The list of a shard's objects, as an object of its own.

A manifest never changes: the next one has the next generation, and its name has the first half of
its SHA-256. It is created on condition that there is none of that name. The committed map names the
one that counts, so:

- Who holds another one, an old one or one that a deposed primary wrote holds nothing: it is under a
  name that the map does not give.
- Two primaries that write at once write two files, of which the LAS commits one (`TierShard` names
  the one that it follows). `epoch` says which primary wrote it, for people.
- A changed manifest does not fit its name.

A manifest of a restored cluster lists objects of the cluster before, too, each with the id of whose
it is: they stay where they are.

Entries lie in the order of their offsets and never overlap; between two there may be a gap of the
map (a lost range).

Must not: read or write anything.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from peerd.core.ids import Epoch, Offset, ShardId
from peerd.tier.errors import DamagedObject, ForeignObject, FormatUnknown
from peerd.tier.format import Owner

FORMAT = 1
FORMAT_WITH_OWNERS = 2
"""Of a manifest that lists objects of other clusters: versions before restores had an id of their
own would look for them in the wrong place.
"""
# limit: objects of one shard; 4 TiB of chunks of 64 MiB
ENTRIES_MAX = 65_536
# limit: bytes of a manifest; `ENTRIES_MAX` entries of some 230 bytes
MANIFEST_BYTES_MAX = 16 * 1024 * 1024
# limit: the largest offset, epoch or time that a manifest may name
_NUMBER_MAX = (1 << 64) - 1
_NAME = re.compile(r"manifest-(\d{20})-([0-9a-f]{32})")
_OBJECT_NAME = re.compile(r"(\d{20})-(\d{20})-(\d{20})-([0-9a-f]{8})\.chunk")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One object: its name below the shard's prefix, and what is in it."""

    name: str
    epoch: Epoch
    begin: Offset
    end: Offset
    object_bytes: int
    payload_bytes: int
    timestamp_ms: int
    """Of its first batch."""
    content: str
    """SHA-256 of its batches, in hexadecimal digits."""
    cluster: str = ""
    """Who wrote it and has it in its folder; "": the cluster whose manifest this is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the tier has of one shard. The key hashes are for a restore from the tier alone."""

    cluster: str
    log: str
    shard: ShardId
    generation: int
    epoch: Epoch
    key_hash_low: int
    key_hash_high: int
    entries: tuple[Entry, ...] = field(default=())

    def owner(self, entry: Entry) -> Owner:
        """Whose an entry's object is."""
        cluster = entry.cluster or self.cluster
        return Owner(cluster=cluster, log=self.log, shard=self.shard, epoch=entry.epoch)

    def key(self, entry: Entry) -> str:
        """Where an entry's object lies."""
        return f"{prefix_of(entry.cluster or self.cluster, self.log, self.shard)}/{entry.name}"

    def inherited_by(self, cluster: str) -> "Manifest":
        """The first one of another cluster that lists the same objects, where they are."""
        entries = tuple(
            replace(each, cluster=each.cluster or self.cluster) for each in self.entries
        )
        # An epoch that no primary has: people see that a restore wrote it.
        return replace(
            self,
            cluster=cluster,
            generation=self.generation + 1,
            epoch=Epoch(0),
            entries=entries,
        )

    def entry_at(self, offset: int) -> Entry | None:
        """The object that has `offset`."""
        low, high = 0, len(self.entries)
        while low < high:
            middle = (low + high) // 2
            if self.entries[middle].end <= offset:
                low = middle + 1
            else:
                high = middle
        if low == len(self.entries) or self.entries[low].begin > offset:
            return None
        return self.entries[low]


def cluster_folder(cluster: str) -> str:
    """Where everything of a cluster lies."""
    return f"cluster-{cluster}"


def prefix_of(cluster: str, log: str, shard: ShardId) -> str:
    """Where everything of a shard lies."""
    return f"{cluster_folder(cluster)}/log-{log}/shard-{shard:020d}"


def object_name(epoch: Epoch, begin: Offset, end: Offset, mark: int) -> str:
    """The name of an object; with another `mark` where there is one already that is of no use."""
    return f"{epoch:020d}-{begin:020d}-{end:020d}-{mark:08x}.chunk"


def end_of_name(name: str) -> Offset | None:
    """The end of the object that has this name; None if it is no object's."""
    found = _OBJECT_NAME.fullmatch(name)
    return None if found is None else Offset(int(found[3]))


def generation_of_name(name: str) -> int | None:
    """The generation of the manifest that has this name; None if it is no manifest's."""
    found = _NAME.fullmatch(name)
    return None if found is None else int(found[1])


def pack(manifest: Manifest) -> tuple[str, bytes]:
    """Its name below the shard's prefix, and its bytes."""
    data = json.dumps(
        {
            "format": _format_of(manifest.entries),
            "cluster": manifest.cluster,
            "log": manifest.log,
            "shard": manifest.shard,
            "generation": manifest.generation,
            "epoch": manifest.epoch,
            "key_hash_low": manifest.key_hash_low,
            "key_hash_high": manifest.key_hash_high,
            "objects": [
                [
                    each.name,
                    each.epoch,
                    each.begin,
                    each.end,
                    each.object_bytes,
                    each.payload_bytes,
                    each.timestamp_ms,
                    each.content,
                    *([each.cluster] if each.cluster else ()),
                ]
                for each in manifest.entries
            ],
        },
        separators=(",", ":"),
    ).encode()
    digest = hashlib.sha256(data).hexdigest()[:32]
    return f"manifest-{manifest.generation:020d}-{digest}", data


def _format_of(entries: Sequence[Entry]) -> int:
    return FORMAT_WITH_OWNERS if any(each.cluster for each in entries) else FORMAT


def unpack(name: str, data: bytes, *, cluster: str, log: str, shard: ShardId) -> Manifest:
    """The manifest with this name, of this shard.

    Raises `DamagedObject`, `ForeignObject` or `FormatUnknown`.
    """
    found = _NAME.fullmatch(name)
    if found is None or len(data) > MANIFEST_BYTES_MAX:
        raise DamagedObject(f"{name[:80]} is no manifest")
    if hashlib.sha256(data).hexdigest()[:32] != found[2]:
        raise DamagedObject(f"the manifest {name} is not what was written under this name")
    try:
        read = json.loads(data)
        version = read["format"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise DamagedObject(f"the manifest {name} cannot be read: {error}") from error
    if version not in (FORMAT, FORMAT_WITH_OWNERS):
        raise FormatUnknown(
            f"the manifest {name} has format {version!r:.20}, and this version knows {FORMAT} and "
            f"{FORMAT_WITH_OWNERS}: upgrade"
        )
    try:
        manifest = _manifest_of(read)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedObject(f"the manifest {name} cannot be read: {error}") from error
    if (manifest.cluster, manifest.log, manifest.shard) != (cluster, log, shard):
        raise ForeignObject(
            f"the manifest {name} is of cluster {manifest.cluster}, log {manifest.log}, shard "
            f"{manifest.shard}, and not of cluster {cluster}, log {log}, shard {shard}"
        )
    if manifest.generation != int(found[1]):
        raise DamagedObject(f"the manifest {name} says that it is {manifest.generation}")
    return manifest


def _manifest_of(read: Any) -> Manifest:
    rows = read["objects"]
    if not isinstance(rows, list) or len(rows) > ENTRIES_MAX:
        raise ValueError(f"at most {ENTRIES_MAX} objects are listed")
    entries = tuple([_entry_of(row) for row in rows])
    _check_order(entries)
    return Manifest(
        cluster=_text(read["cluster"]),
        log=_text(read["log"]),
        shard=ShardId(_number(read["shard"])),
        generation=_number(read["generation"]),
        epoch=Epoch(_number(read["epoch"])),
        key_hash_low=_number(read["key_hash_low"]),
        key_hash_high=_number(read["key_hash_high"]),
        entries=entries,
    )


def _entry_of(row: Any) -> Entry:
    name, epoch, begin, end, object_bytes, payload_bytes, timestamp_ms, content, *owner = row
    if len(owner) > 1 or any("/" in _text(each) for each in owner):
        raise ValueError("an object has one owner, which is a cluster")
    entry = Entry(
        name=_text(name),
        epoch=Epoch(_number(epoch)),
        begin=Offset(_number(begin)),
        end=Offset(_number(end)),
        object_bytes=_number(object_bytes),
        payload_bytes=_number(payload_bytes),
        timestamp_ms=_number(timestamp_ms),
        content=_text(content),
        cluster="".join(owner),
    )
    found = _OBJECT_NAME.fullmatch(entry.name)
    if found is None or [int(part) for part in found.groups()[:3]] != [
        entry.epoch,
        entry.begin,
        entry.end,
    ]:
        raise ValueError(f"{entry.name[:80]} is no object with these offsets")
    if entry.begin >= entry.end:
        raise ValueError(f"{entry.name} has nothing in it")
    return entry


def _check_order(entries: Sequence[Entry]) -> None:
    at = 0
    for entry in entries:
        if entry.begin < at:
            raise ValueError(f"{entry.name} overlaps the object before it")
        at = entry.end


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _NUMBER_MAX:
        raise ValueError(f"{value!r:.40} is no number that could be here")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is no text")
    return value

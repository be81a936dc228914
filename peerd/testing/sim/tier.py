"""The tier of a run: an object store that fails, primaries that fill it, and what must be in it.

Uploads go in the steps of `peerd.daemon.uploader`, each of which takes its time and may be the last
one: put an object, read it back, put the manifest, read it back, report, wait for the map. What is
decided in between is the real thing (`peerd.core.tiering`, `peerd.tier.manifest`, `leftovers`), as
is who commits (`las.core.tier`). Two primaries, of different epochs or of different processes, may
be at it at once.

Faults of the store, each by chance: a put that is lost; one that is done and not answered; a byte
that is flipped on the way in; slowness. Nothing is ever lost that was put and answered.

What must hold, at each commit that leaves something to the tier alone, and in the end: the manifest
that the map names has every batch between the tier's begin and trimmed-to, in its epoch, as the
stores had it (G1, G2), and readers get there (G10).
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from las.core.tier_commands import TierShard
from peerd.core import tiering
from peerd.core.batch import PlacedBatch
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.core.shard_map import Segment, Shard, stable_end
from peerd.core.tiering import Verdict
from peerd.testing.sim.checkers import demand
from peerd.testing.sim.process import Process
from peerd.testing.sim.world import World
from peerd.tier.errors import DamagedObject
from peerd.tier.manifest import Entry, Manifest, object_name, pack, prefix_of, unpack
from peerd.tier.writing import leftovers

if TYPE_CHECKING:
    from peerd.testing.sim.las import Las

LOOK_MS = 120
"""Each process looks about so often whether one of its shards has something for the tier."""
CALL_MS = (1, 3, 10, 60, 400)
"""What a call to the store takes."""
# limit: batches of one upload; small, so that many uploads make up a short run.
BATCHES_MAX = 6
# limit: as `peerd.tier.writing.ATTEMPTS_MAX`.
NAMES_MAX = 3
NAMED_WITHIN_MS = 1_500
"""A report that the map does not show by then is given up."""
LOST_PUTS = LOST_ANSWERS = FLIPPED_PUTS = 0.08
TIDY = 0.3
CLUSTER = "simulation"

Batches = tuple[PlacedBatch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Put:
    """One object as it lies there. `flipped`: not as it was given."""

    epoch: Epoch
    batches: Batches
    flipped: bool


@dataclass(slots=True, kw_only=True)
class _Upload:
    """One object on its way. `entry` is the map as it was when it began."""

    process: Process
    entry: Shard
    listed: Manifest
    epoch: Epoch
    batches: Batches
    names_tried: int = 0
    name: str = ""
    is_new: bool = False
    following: Manifest | None = None
    until: int = 0


_Step = Callable[[_Upload], None]


class SimTier:
    """The store, and all uploads. Does nothing in runs without a tier."""

    def __init__(self, world: World, las: "Las") -> None:
        self._world = world
        self._las = las
        self._objects: dict[str, _Put] = {}
        self._manifests: dict[str, bytes] = {}
        self._under_way: set[tuple[Process, ShardId]] = set()

    def start(self) -> None:
        """From now on processes look."""
        if self._world.options.tier:
            self._world.clock.later(LOOK_MS, self._look, None)

    # -------------------------------------------------------------- uploads
    def _look(self, _: None) -> None:
        self._world.clock.later(LOOK_MS, self._look, None)
        for peer in self._las.peers.values():
            process = peer.process
            if process is None or process.paused_until > self._world.clock.now:
                continue
            for entry in list(process.maps.values()):
                if entry.open.plan.primary == process.id:
                    self._begin(process, entry)
                    if self._world.rng.random() < TIDY:
                        self._tidy(entry)

    def _begin(self, process: Process, entry: Shard) -> None:
        if (process, entry.shard) in self._under_way:
            return
        listed = self._listed(entry)
        at = tiering.next_offset(entry)
        found = self._readable(process, entry, at)
        if listed is None or found is None:
            return
        epoch, batches = found
        upload = _Upload(process=process, entry=entry, listed=listed, epoch=epoch, batches=batches)
        self._under_way.add((process, entry.shard))
        self._put(upload)

    def _readable(self, process: Process, entry: Shard, at: Offset) -> tuple[Epoch, Batches] | None:
        """The batches of the next object: from the own store, or from a holder's."""
        segment = _segment_at(entry, at)
        replica = process.replicas.get(entry.shard)
        if segment is None or replica is None:
            return None
        stable = None if segment.end is None else stable_end(segment, Offset(0))
        committed = (replica.epoch, replica.committed) if replica.is_primary else None
        limit = tiering.limit(segment.epoch, segment.end, stable, committed)
        if limit is None:
            return None
        count = self._world.rng.randint(1, BATCHES_MAX)
        sources = [process.peer, *(self._las.peers[each.peer] for each in segment.holders)]
        for peer in sources:
            store = peer.disk.shards[entry.shard]
            batches = store.read(segment.epoch, at, limit, batches_max=count)
            fitting = tuple(batch for batch in batches if batch.end <= limit)
            if fitting and not peer.lost:
                return segment.epoch, fitting
        return None

    def _listed(self, entry: Shard) -> Manifest | None:
        """What the map names; None: it is not there any more, since the map is an old one."""
        if entry.tier is None or not entry.tier.manifest:
            return Manifest(
                cluster=CLUSTER,
                log=entry.log,
                shard=entry.shard,
                generation=0,
                epoch=entry.open.epoch,
                key_hash_low=entry.key_hash_low,
                key_hash_high=entry.key_hash_high,
            )
        return self._manifest(entry, entry.tier.manifest)

    def _manifest(self, entry: Shard, name: str) -> Manifest | None:
        data = self._manifests.get(f"{_prefix(entry)}/{name}")
        if data is None:
            return None
        return unpack(name, data, cluster=CLUSTER, log=entry.log, shard=entry.shard)

    def _put(self, upload: _Upload) -> None:
        """One call; what is lost on the way is tried again by a later look, with the same name."""
        first, last = upload.batches[0], upload.batches[-1]
        mark = self._world.rng.getrandbits(32) if upload.names_tried else 0
        upload.names_tried += 1
        upload.name = object_name(upload.epoch, first.base, last.end, mark)
        if self._world.draws(LOST_PUTS):
            self._end(upload)
            return
        key = f"{_prefix(upload.entry)}/{upload.name}"
        flipped = self._world.draws(FLIPPED_PUTS)
        put = _Put(epoch=upload.epoch, batches=upload.batches, flipped=flipped)
        upload.is_new = self._objects.setdefault(key, put) is put
        if self._world.draws(LOST_ANSWERS):
            self._end(upload)
            return
        self._after_call(self._read_back, upload)

    def _read_back(self, upload: _Upload) -> None:
        if not self._goes_on(upload, self._read_back):
            return
        there = self._objects.get(f"{_prefix(upload.entry)}/{upload.name}")
        same = (
            there is not None
            and not there.flipped
            and (there.epoch, there.batches) == (upload.epoch, upload.batches)
        )
        verdict = tiering.judged(same=same, is_new=upload.is_new)
        if verdict is Verdict.OTHER_NAME and upload.names_tried < NAMES_MAX:
            self._put(upload)
        elif verdict is Verdict.LISTED:
            self._put_manifest(upload)
        else:
            self._end(upload)

    def _put_manifest(self, upload: _Upload) -> None:
        entry, listed = upload.entry, upload.listed
        kept = [each for each in listed.entries if each.end > entry.kept_from]
        new = _entry_of(upload)
        upload.following = replace(
            listed,
            generation=listed.generation + 1,
            epoch=entry.open.epoch,
            entries=(*kept, new),
        )
        name, data = pack(upload.following)
        if self._world.draws(LOST_PUTS):
            self._end(upload)
            return
        if self._world.draws(FLIPPED_PUTS):
            data = data[:-1]
        self._manifests.setdefault(f"{_prefix(entry)}/{name}", data)
        self._after_call(self._report, upload)

    def _report(self, upload: _Upload) -> None:
        if not self._goes_on(upload, self._report) or upload.following is None:
            return
        entry = upload.entry
        name, _ = pack(upload.following)
        try:
            read = self._manifest(entry, name)
        except DamagedObject:
            read = None
        if read != upload.following:
            self._end(upload)
            return
        tier = entry.tier
        report = TierShard(
            shard=entry.shard,
            epoch=entry.open.epoch,
            by=upload.process.id,
            follows="" if tier is None else tier.manifest,
            begin=entry.trimmed_to if tier is None else tier.end,
            end=upload.batches[-1].end,
            manifest=name,
        )
        self._las.tiered(upload.process, report)
        upload.name = name
        upload.until = self._world.clock.now + NAMED_WITHIN_MS
        self._world.clock.later(20, self._await, upload)

    def _await(self, upload: _Upload) -> None:
        if not self._goes_on(upload, self._await):
            return
        now = upload.process.maps.get(upload.entry.shard)
        end = upload.batches[-1].end
        told = tiering.outcome(upload.entry, now, end, upload.name)
        if told is None and self._world.clock.now < upload.until:
            self._world.clock.later(20, self._await, upload)
        else:
            self._end(upload)

    def _after_call(self, step: _Step, upload: _Upload) -> None:
        self._world.events += 1
        self._world.clock.later(self._world.rng.choice(CALL_MS), step, upload)

    def _goes_on(self, upload: _Upload, step: _Step) -> bool:
        """Whether the process still lives and runs; one that is paused goes on later."""
        process = upload.process
        if process.dead:
            self._end(upload)
            return False
        if process.paused_until > self._world.clock.now:
            self._world.clock.at(process.paused_until + 1, step, upload)
            return False
        return True

    def _end(self, upload: _Upload) -> None:
        self._under_way.discard((upload.process, upload.entry.shard))

    # -------------------------------------------------------------- removal
    def _tidy(self, entry: Shard) -> None:
        """As the primary does: at once, since a reader with an old map is told that it is gone."""
        if entry.tier is None or not entry.tier.manifest:
            return
        listed = self._manifest(entry, entry.tier.manifest)
        if listed is None:
            return
        prefix = f"{_prefix(entry)}/"
        names = [
            key.removeprefix(prefix)
            for key in (*self._objects, *self._manifests)
            if key.startswith(prefix)
        ]
        for name in leftovers(names, listed, kept_from=entry.kept_from, written_to=entry.tier.end):
            self._objects.pop(prefix + name, None)
            self._manifests.pop(prefix + name, None)

    # -------------------------------------------------------------- reading
    def read(self, entry: Shard, offset: Offset) -> tuple[Epoch, Batches] | None:
        """Batches of one object from `offset` on, as `entry` leads there; None: there are none, or
        a typed error says why.
        """
        if entry.tier is None or not entry.kept_from <= offset < entry.trimmed_to:
            return None
        segment, listed = _segment_at(entry, offset), self._listed(entry)
        each = None if listed is None else listed.entry_at(offset)
        if each is None or segment is None or each.epoch != segment.epoch:
            return None
        there = self._objects.get(f"{_prefix(entry)}/{each.name}")
        if there is None or there.flipped or _digest(there.batches) != each.content:
            return None
        batches = tuple(
            batch
            for batch in there.batches
            if batch.end > offset and batch.end <= (segment.end or batch.end)
        )
        return (each.epoch, batches) if batches else None

    def object_ends(self, entry: Shard) -> list[tuple[Epoch, Offset]]:
        """Where a trim may end within the tier."""
        listed = self._listed(entry)
        entries = () if listed is None else listed.entries
        return [
            (each.epoch, each.end)
            for each in entries
            if entry.kept_from < each.end <= entry.trimmed_to
        ]

    # -------------------------------------------------------------- what must hold
    def committed(self, before: Shard | None, after: Shard) -> None:
        """The map changed: what stores may drop now is in the tier, if it is kept."""
        first = after.kept_from if before is None else before.trimmed_to
        self._check(after, Offset(max(first, after.kept_from)))

    def finished(self) -> None:
        """Everything that the tier alone has is there."""
        for entry in self._las.state.shards.values():
            self._check(entry.shard, entry.shard.kept_from)

    def _check(self, entry: Shard, first: Offset) -> None:
        if entry.tier is None or first >= entry.trimmed_to:
            return
        had = self._world.checks[entry.shard].book.left_behind(first, entry.trimmed_to)
        for base, (epoch, batch) in had:
            found = self.read(entry, base)
            text = f"{batch} of epoch {epoch} at {base} was left to the tier of {entry.shard}"
            demand(found is not None, "G1", f"{text}, which cannot give it")
            if found is not None:
                same = found[0] == epoch and found[1][0] == batch
                demand(same, "G2", f"{text}, which has {found[1][0]} of {found[0]}")


def _prefix(entry: Shard) -> str:
    return prefix_of(CLUSTER, entry.log, entry.shard)


def _chain(entry: Shard) -> Iterator[Segment]:
    yield from entry.sealed
    yield entry.open


def _segment_at(entry: Shard, offset: Offset) -> Segment | None:
    """The segment that the map gives for an offset."""
    for segment in _chain(entry):
        begun = segment.begin is not None and segment.begin <= offset
        if begun and (segment.end is None or offset < segment.end):
            return segment
    return None


def _digest(batches: Batches) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(f"{batch.base} {batch.end} ".encode() + bytes(batch.payload))
    return digest.hexdigest()


def _entry_of(upload: _Upload) -> Entry:
    batches = upload.batches
    size_bytes = sum(len(batch.payload) for batch in batches)
    return Entry(
        name=upload.name,
        epoch=upload.epoch,
        begin=batches[0].base,
        end=batches[-1].end,
        object_bytes=size_bytes,
        payload_bytes=size_bytes,
        timestamp_ms=batches[0].header.timestamp_ms,
        content=_digest(batches),
    )

"""Damaged batches are written anew from another holder's bytes: what may be written, and how.

Why a repair changes nothing that was promised or acknowledged:
- It moves no begin, end, commit, seal, promise or table: a repair is no operation of the protocol
  (`peerd.core.durable`), it only makes rows say again what they said.
- Under one epoch one process orders one shard (docs/protocol.md §1, §4), so at (shard, epoch, base)
  every store that has a batch has the same one. What is written is the batch that another store
  has there, checked against its payload's checksum.
- Only what is certainly the log's is written: below the seal of the committed map, or below the
  commit offset as heard. What is neither may still turn out to be dead, and is left alone.
- Whatever of the old rows still passes its checksum must fit: an own header that is sound must be
  the new one, a sound batch is not written again, and no sound batch may lie inside the new one.
  So a holder that contradicts this store changes nothing.
- All of it is judged in the writer thread, at its place in the queue: nothing of the segment can be
  dropped or begun anew between judgement and write.
- The rows are read back before they are kept, with all checks of a read, inside a nested
  transaction: if the damage is in LMDB's own pages, and what was put is not found, the repair is
  undone and the operations that share the commit are not touched.

Must not: fetch anything, or decide when to repair.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import lmdb
from crc32c import crc32c

from peerd.core.batch import PlacedBatch
from peerd.core.durable import StoredSegment, StoredShard
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.storage.environment import Database, Transaction
from peerd.storage.errors import Corrupt
from peerd.storage.layout import (
    batch_key,
    batch_rows,
    part_count,
    read_batch_key,
    read_batch_prefix,
)
from peerd.storage.reads import SegmentReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """Consecutive batches of (shard, epoch) as another holder has them."""

    shard: ShardId
    epoch: Epoch
    batches: tuple[PlacedBatch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What became of a `Repair`, once it is durable.

    `rewritten`: how many batches were damaged and are whole again; the others were sound. `refused`
    says in one line why nothing was written, empty if all of the range is sound now. `gone`: the
    store has nothing there any more, so there is nothing to repair.
    """

    rewritten: int = 0
    refused: str = ""
    gone: bool = False


def mend(
    transaction: Transaction, batches_table: Database, state: StoredShard | None, repair: Repair
) -> Repaired:
    """Carry out a repair in `transaction`, which the caller aborts if it is refused."""
    segment = None if state is None else state.segments.get(repair.epoch)
    if segment is None or repair.batches[-1].end <= segment.first:
        return Repaired(gone=True)
    try:
        refused = _why_not(segment, repair)
        if refused:
            return Repaired(refused=refused)
        reader = SegmentReader(transaction, batches_table, repair.shard, segment)
        rewritten = 0
        for batch in repair.batches:
            if _is_sound(transaction, batches_table, reader, repair, batch):
                continue
            refused = _why_contradicted(transaction, batches_table, reader, repair, batch)
            if refused:
                return Repaired(refused=refused)
            _rewrite(transaction, batches_table, repair, batch)
            rewritten += 1
            if not _is_sound(transaction, batches_table, reader, repair, batch):
                return Repaired(refused=f"the batch at {batch.base} is not found where it was put")
    except (lmdb.Error, struct.error, Corrupt) as error:
        return Repaired(refused=f"the store's own structure is damaged ({error})")
    return Repaired(rewritten=rewritten)


def _why_not(segment: StoredSegment, repair: Repair) -> str:
    """Why these batches must not be written here whatever the rows look like; empty if they may."""
    begin, at = repair.batches[0].base, repair.batches[0].base
    for batch in repair.batches:
        header = batch.header
        if batch.base != at or header.record_count < 1:
            return f"the batches do not follow each other at {at}"
        if len(batch.payload) != header.payload_bytes or crc32c(batch.payload) != (
            header.payload_crc
        ):
            return f"the payload of the batch at {batch.base} does not match its checksum"
        at = batch.end
    limit = segment.end if segment.seal is not None else segment.commit
    if begin < segment.first or at > limit:
        return f"[{begin}, {at}) is not known to be committed, only [{segment.first}, {limit}) is"
    return ""


def _is_sound(
    transaction: Transaction,
    batches_table: Database,
    reader: SegmentReader,
    repair: Repair,
    batch: PlacedBatch,
) -> bool:
    """Whether the rows from the batch's base to its end are exactly this batch's."""
    try:
        (stored,) = reader.batches(batch.base, Offset(batch.base + 1))
    except Corrupt:
        return False
    if stored != batch:
        return False
    rows = sum(1 for _ in _rows_in(transaction, batches_table, repair, batch))
    return rows == part_count(batch.header.payload_bytes)


def _why_contradicted(
    transaction: Transaction,
    batches_table: Database,
    reader: SegmentReader,
    repair: Repair,
    batch: PlacedBatch,
) -> str:
    """Which sound batch of this store does not fit the new one; empty if none."""
    try:
        before, header = reader.header_at(batch.base)
    except Corrupt:
        pass  # what is damaged contradicts nobody
    else:
        if (before, header) != (batch.base, batch.header):
            return f"the sound batch at {before} of this store contradicts it"
    for key, value in _rows_in(transaction, batches_table, repair, batch):
        _, _, base, part = read_batch_key(key)
        inside = part == 0 and base != batch.base
        if inside and read_batch_prefix(repair.shard, repair.epoch, base, value) is not None:
            return f"the sound batch at {base} of this store lies inside the one at {batch.base}"
    return ""


def _rows_in(
    transaction: Transaction, batches_table: Database, repair: Repair, batch: PlacedBatch
) -> Iterator[tuple[memoryview, memoryview]]:
    """Rows (key, value) from the batch's base to its end, whatever is in them."""
    cursor = transaction.cursor(batches_table)
    beyond = batch_key(repair.shard, repair.epoch, batch.end)
    found = cursor.set_range(batch_key(repair.shard, repair.epoch, batch.base))
    while found and bytes(cursor.key()) < beyond:
        yield cursor.key(), cursor.value()
        found = cursor.next()


def _rewrite(
    transaction: Transaction, batches_table: Database, repair: Repair, batch: PlacedBatch
) -> None:
    """Every row from the batch's base to its end goes, the batch's own come."""
    cursor = transaction.cursor(batches_table)
    beyond = batch_key(repair.shard, repair.epoch, batch.end)
    found = cursor.set_range(batch_key(repair.shard, repair.epoch, batch.base))
    while found and bytes(cursor.key()) < beyond:
        cursor.delete()  # moves on to the next row
        found = bool(cursor.key())
    cursor.putmulti(batch_rows(repair.shard, repair.epoch, batch))

"""Chunks: where a segment's batches are cut, the same on every replica (docs/protocol.md §8).

A chunk ends with the batch that brings it to `CHUNK_BYTES` of payload, and where its segment ends.
The rule looks at batches alone, in their order, so whoever has the same batches cuts at the same
offsets. A copy that begins at a cut counts from there and cuts at the same ones again.

Chunks tell how far a trim may go in whole chunks and how many bytes lie behind; what is trimmed is
said by the map, as one offset. So replicas that were configured differently disagree about where a
trim would round to, and about nothing else.
"""

from collections.abc import Iterable

from peerd.core.batch import PlacedBatch
from peerd.core.ids import Offset
from peerd.core.value import value

# limit: payload bytes of a chunk but for the batch that ends it
CHUNK_BYTES = 64 << 20


@value(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A whole chunk: the offset behind its last batch, and its payload."""

    end: Offset
    payload_bytes: int


def cut(
    uncut_bytes: int, batches: Iterable[PlacedBatch], chunk_bytes: int
) -> tuple[list[Chunk], int]:
    """The chunks that end within `batches`, and the bytes that lie behind the last of them.

    `uncut_bytes` lie before the batches, behind the last chunk.
    """
    chunks = []
    for batch in batches:
        uncut_bytes += batch.header.payload_bytes
        if uncut_bytes >= chunk_bytes:
            chunks.append(Chunk(end=batch.end, payload_bytes=uncut_bytes))
            uncut_bytes = 0
    return chunks, uncut_bytes


def uncut_after(uncut_bytes: int, batches: Iterable[PlacedBatch], chunk_bytes: int) -> int:
    """What `cut` leaves uncut."""
    for batch in batches:
        uncut_bytes += batch.header.payload_bytes
        if uncut_bytes >= chunk_bytes:
            uncut_bytes = 0
    return uncut_bytes


@value(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where a segment may be cut: everything below `offset` may go, and `kept_bytes` stay."""

    offset: Offset
    kept_bytes: int


def find_cut(
    chunks_backwards: Iterable[Chunk],
    *,
    first: Offset,
    uncut_bytes: int,
    before: Offset,
    keep_bytes: int,
) -> Cut:
    """The last cut at or below `before` behind which at least `keep_bytes` lie; else `first`.

    `chunks_backwards` are the whole chunks of what is stored from `first` on, the last one first;
    `uncut_bytes` lie behind them.
    """
    kept_bytes = uncut_bytes
    for chunk in chunks_backwards:
        if chunk.end <= before and kept_bytes >= keep_bytes:
            return Cut(offset=max(first, chunk.end), kept_bytes=kept_bytes)
        kept_bytes += chunk.payload_bytes
    return Cut(offset=first, kept_bytes=kept_bytes)

"""One range of a segment as one object: blocks, an index behind them, a trailer at the end.

```
magic (8)
block 0 … n-1    zstd frames of whole batches, each frame encrypted if there is a key
index            who it is (cluster, log, shard, epoch, range), and of each block: place, sizes,
                 CRC-32C, offsets, time. With a key: authenticated
trailer (40)     place, size and CRC of the index, size of the object, version, magic
```

A block is the batches one behind the other: base offset, header, payload. One that holds several
has at most `BLOCK_BYTES`; a larger batch has one for itself. All numbers are big-endian.

Why a wrong object is never taken for a right one:

- *Truncated, or two glued together*: the trailer names the object's size, and what was asked for
  names it, too. Blocks and index fill everything between the magic and the trailer.
- *Flipped*: each byte lies in the magics, in a block with its CRC, in the index with its own, or in
  the trailer with its own; each batch has the checksum that the client gave it besides.
- *Foreign or old*: the index says whose it is, and `open_index` compares that with what is wanted;
  `content` is the SHA-256 of all batches before they were compressed.
- *Packed wrongly*: each block is unpacked and compared with its batches while it is made.
- *Hostile*: each number is compared with a bound, or with the bytes that there are, before anything
  of that size is made. So memory is bounded by `BLOCK_RAW_BYTES_MAX`, whatever is read.
- *Encrypted*: a block's place and whose it is are authenticated with it, so none can be moved to
  another place or object; the index is authenticated whole.

Must not: read or write anything.
"""

import hashlib
import secrets
import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import zstandard
from crc32c import crc32c
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from peerd.core.batch import HEADER_BYTES, BatchHeader, PlacedBatch
from peerd.core.check import invariant
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.tier.errors import DamagedObject, ForeignObject, FormatUnknown
from peerd.tier.keys import NO_KEY, NO_KEYS, SALT_BYTES, KeyRing

FORMAT = 1
"""Version of this format; a reader refuses what it does not know."""

# limit: bytes of a block of several batches, before compression; what one read unpacks at least
BLOCK_BYTES = 256 * 1024
# limit: bytes of any block before compression: one batch, of the largest size that a peer takes
BLOCK_RAW_BYTES_MAX = 8 * 1024 * 1024
# What encryption and an incompressible frame add to a block at most.
_BLOCK_OVERHEAD_BYTES = 64 * 1024
# limit: blocks of one object; 4 GiB of them where each is full
BLOCKS_MAX = 16_384
# limit: bytes of the names in an index
_NAME_BYTES_MAX = 512
# Of 256 KiB of JSON, text or code level 3 takes 1.5 to 2 times the CPU of this one for objects that
# are 7 % smaller at best, and of orders in JSON larger (docs/benchmarks.md).
_ZSTD_LEVEL = 1

MAGIC = b"peerdTO\x01"
_END_MAGIC = b"\x01OTdreep"
_TRAILER = struct.Struct(">QIIQHHI8s")
"""Place, size and CRC of the index; size of the object; version; 0; CRC of what stands before it in
the trailer; magic."""
TRAILER_BYTES = _TRAILER.size
_TRAILER_HEAD = struct.Struct(">QIIQHH")
_PLACE = struct.Struct(">QQQQ")
_COUNTS = struct.Struct(">QI")
_BLOCK = struct.Struct(">QIIIQQq")
_BASE = struct.Struct(">Q")
_NAME = struct.Struct(">H")
_DIGEST_BYTES = 32
_TAG_BYTES = 16
_INDEX_NONCE = bytes(11) + b"\x01"
# limit: bytes of an index; those of all its blocks and names
INDEX_BYTES_MAX = BLOCKS_MAX * _BLOCK.size + 8 * _NAME_BYTES_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Whose an object is. `epoch` is that of all its batches."""

    cluster: str
    log: str
    shard: ShardId
    epoch: Epoch

    def pack(self) -> bytes:
        """The same bytes for the same owner, and for no other."""
        return _named(self.cluster) + _named(self.log) + struct.pack(">QQ", self.shard, self.epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Where a block lies, and what is in it: offsets [begin, end), the time of its first batch."""

    position: int
    stored_bytes: int
    raw_bytes: int
    crc: int
    begin: Offset
    end: Offset
    timestamp_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What an object says of itself. `content` is the SHA-256 of its batches as they were."""

    owner: Owner
    begin: Offset
    end: Offset
    payload_bytes: int
    content: bytes
    key_id: str
    salt: bytes
    blocks: tuple[Block, ...]
    object_bytes: int

    def block_at(self, offset: int) -> int:
        """The number of the block that `offset`, of [begin, end), lies in."""
        low, high = 0, len(self.blocks)
        while high - low > 1:
            middle = (low + high) // 2
            if self.blocks[middle].begin <= offset:
                low = middle
            else:
                high = middle
        return low


# ---------------------------------------------------------------------------------- writing
class ObjectWriter:
    """Grows one object in memory. `add` and `finish` take CPU time: not for an event loop.

    Each block is unpacked again and compared with its batches; `add` and `finish` raise
    `DamagedObject` if that is not what was packed.
    """

    def __init__(
        self, owner: Owner, begin: Offset, keys: KeyRing = NO_KEYS, *, room_bytes: int = 0
    ) -> None:
        """`room_bytes`: of the object, if that is known about; more is made for what is larger."""
        self.owner = owner
        self.begin = begin
        self.end = begin
        self.payload_bytes = 0
        self._key_id = keys.writing
        self._salt = secrets.token_bytes(SALT_BYTES) if self._key_id else b""
        self._cipher = keys.cipher(self._key_id, self._salt) if self._key_id else None
        self._whose = owner.pack()
        self._packer = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        self._content = hashlib.sha256()
        # One piece of memory: pieces of their own would all be there twice in the end, and one that
        # grows is copied again and again.
        self._object = bytearray(max(room_bytes, len(MAGIC)))
        self._filled_bytes = 0
        self._fill(MAGIC)
        self._blocks: list[Block] = []
        self._pieces: list[bytes | memoryview] = []
        self._raw_bytes = 0
        self._raw_begin = begin
        self._raw_time_ms = 0

    @property
    def stored_bytes(self) -> int:
        """Bytes of memory that the object takes so far."""
        return self._filled_bytes + self._raw_bytes

    @property
    def is_full(self) -> bool:
        """Whether no further batch may be added."""
        return len(self._blocks) >= BLOCKS_MAX - 1

    def add(self, batches: Iterable[PlacedBatch]) -> None:
        """The next batches, without gap to those before."""
        for batch in batches:
            invariant(
                batch.base == self.end, "a batch begins where the last one ended", end=self.end
            )
            invariant(not self.is_full, "an object that is full takes no batch", end=self.end)
            size_bytes = _BASE.size + HEADER_BYTES + len(batch.payload)
            if self._pieces and self._raw_bytes + size_bytes > BLOCK_BYTES:
                self._close_block()
            if not self._pieces:
                self._raw_begin, self._raw_time_ms = batch.base, batch.header.timestamp_ms
            self._pieces += (_BASE.pack(batch.base) + batch.header.pack(), batch.payload)
            self._raw_bytes += size_bytes
            self.end = batch.end
            self.payload_bytes += batch.header.payload_bytes

    def finish(self) -> tuple[bytearray, Index]:
        """The whole object, of one batch at least; nobody changes it any more."""
        if self._pieces:
            self._close_block()
        invariant(bool(self._blocks), "an object is not empty", owner=self.owner)
        index = Index(
            owner=self.owner,
            begin=self.begin,
            end=self.end,
            payload_bytes=self.payload_bytes,
            content=self._content.digest(),
            key_id=self._key_id,
            salt=self._salt,
            blocks=tuple(self._blocks),
            object_bytes=0,
        )
        packed = _pack_index(index)
        if self._cipher is not None:
            packed += self._cipher.encrypt(_INDEX_NONCE, b"", packed)
        position = self._filled_bytes
        object_bytes = position + len(packed) + TRAILER_BYTES
        head = _TRAILER_HEAD.pack(position, len(packed), crc32c(packed), object_bytes, FORMAT, 0)
        self._fill(packed + head + struct.pack(">I", crc32c(head)) + _END_MAGIC)
        del self._object[self._filled_bytes :]
        return self._object, replace(index, object_bytes=object_bytes)

    def _fill(self, piece: bytes) -> None:
        end = self._filled_bytes + len(piece)
        self._object[self._filled_bytes : end] = piece  # and beyond its end, if there is no room
        self._filled_bytes = end

    def _close_block(self) -> None:
        number = len(self._blocks)
        raw = b"".join(self._pieces)
        self._content.update(raw)
        packed = self._packer.compress(raw)
        stored = packed
        if self._cipher is not None:
            stored = self._cipher.encrypt(_nonce(number), packed, self._whose)
            packed = self._cipher.decrypt(_nonce(number), stored, self._whose)
        # The other way, too: what is read back is compared with these bytes and no others.
        if _unpacked(packed, len(raw), number) != raw:
            raise DamagedObject(f"block {number} unpacks to something else than was packed")
        self._blocks.append(
            Block(
                position=self._filled_bytes,
                stored_bytes=len(stored),
                raw_bytes=len(raw),
                crc=crc32c(stored),
                begin=self._raw_begin,
                end=self.end,
                timestamp_ms=self._raw_time_ms,
            )
        )
        self._fill(stored)
        self._pieces, self._raw_bytes = [], 0


def _nonce(number: int) -> bytes:
    """Of the block with this number; the index has one below all of them."""
    return (number + 2).to_bytes(12, "big")


def _named(text: str) -> bytes:
    data = text.encode()
    invariant(len(data) <= _NAME_BYTES_MAX, "a name in an index is short", text=text[:80])
    return _NAME.pack(len(data)) + data


def _pack_index(index: Index) -> bytes:
    return b"".join(
        [
            _named(index.owner.cluster),
            _named(index.owner.log),
            _named(index.key_id),
            _NAME.pack(len(index.salt)) + index.salt,
            _PLACE.pack(index.owner.shard, index.owner.epoch, index.begin, index.end),
            index.content,
            _COUNTS.pack(index.payload_bytes, len(index.blocks)),
            *(
                _BLOCK.pack(
                    each.position,
                    each.stored_bytes,
                    each.raw_bytes,
                    each.crc,
                    each.begin,
                    each.end,
                    each.timestamp_ms,
                )
                for each in index.blocks
            ),
        ]
    )


# ---------------------------------------------------------------------------------- reading
def index_range(trailer: bytes, object_bytes: int) -> tuple[int, int, int]:
    """(begin, end, CRC) of the index by the last `TRAILER_BYTES` of an object of that size.

    Raises `DamagedObject` or `FormatUnknown`.
    """
    if len(trailer) != TRAILER_BYTES:
        raise DamagedObject(f"an object of {len(trailer)} bytes is shorter than its trailer")
    position, size, crc, told_bytes, version, _, own_crc, magic = _TRAILER.unpack(trailer)
    if magic != _END_MAGIC or own_crc != crc32c(trailer[: _TRAILER_HEAD.size]):
        raise DamagedObject("its trailer is damaged, or it is no object of a tier")
    if version != FORMAT:
        raise FormatUnknown(f"it has format {version}, and this version knows {FORMAT}: upgrade")
    end = position + size
    if told_bytes != object_bytes or end + TRAILER_BYTES != object_bytes:
        raise DamagedObject(f"it has {object_bytes} bytes, and had {told_bytes} when written")
    if size > INDEX_BYTES_MAX or position < len(MAGIC):
        raise DamagedObject("its trailer names an index that cannot be")
    return position, end, crc


def open_index(
    packed: bytes, *, position: int, crc: int, object_bytes: int, keys: KeyRing, wanted: Owner
) -> Index:
    """The index that lies at `position`, of an object of `wanted`.

    Raises `DamagedObject`, `ForeignObject`, or `WrongKey`.
    """
    if crc32c(packed) != crc:
        raise DamagedObject("the checksum of its index does not fit")
    try:
        index, used = _unpack_index(packed, object_bytes)
    except (struct.error, UnicodeDecodeError) as error:
        raise DamagedObject(f"its index cannot be read: {error}") from error
    if index.owner != wanted:
        raise ForeignObject(f"it is of {_told(index.owner)}, and not of {_told(wanted)}")
    tag = packed[used:]
    if index.key_id != NO_KEY:
        try:
            keys.cipher(index.key_id, index.salt).decrypt(_INDEX_NONCE, tag, packed[:used])
        except InvalidTag as error:
            raise DamagedObject("its index was changed after it was written") from error
    elif tag:
        raise DamagedObject("something lies behind its index")
    _check_blocks(index, position)
    return index


def peeked_index(packed: bytes, *, crc: int, object_bytes: int) -> Index:
    """An index as it says it is, for people: whether it was changed since it was written is not
    looked at, so no key is needed. Raises `DamagedObject`.
    """
    if crc32c(packed) != crc:
        raise DamagedObject("the checksum of its index does not fit")
    try:
        return _unpack_index(packed, object_bytes)[0]
    except (struct.error, UnicodeDecodeError) as error:
        raise DamagedObject(f"its index cannot be read: {error}") from error


def _unpack_index(packed: bytes, object_bytes: int) -> tuple[Index, int]:
    names = []
    at = 0
    for _ in range(4):
        (size,) = _NAME.unpack_from(packed, at)
        at += _NAME.size
        if size > _NAME_BYTES_MAX or at + size > len(packed):
            raise DamagedObject("a name in its index is too long")
        names.append(packed[at : at + size])
        at += size
    shard, epoch, begin, end = _PLACE.unpack_from(packed, at)
    at += _PLACE.size
    content = packed[at : at + _DIGEST_BYTES]
    at += _DIGEST_BYTES
    payload_bytes, count = _COUNTS.unpack_from(packed, at)
    at += _COUNTS.size
    if not 1 <= count <= BLOCKS_MAX or at + count * _BLOCK.size > len(packed):
        raise DamagedObject(f"its index names {count} blocks")
    blocks = tuple(
        Block(
            position=row[0],
            stored_bytes=row[1],
            raw_bytes=row[2],
            crc=row[3],
            begin=Offset(row[4]),
            end=Offset(row[5]),
            timestamp_ms=row[6],
        )
        for row in _BLOCK.iter_unpack(packed[at : at + count * _BLOCK.size])
    )
    index = Index(
        owner=Owner(
            cluster=names[0].decode(),
            log=names[1].decode(),
            shard=ShardId(shard),
            epoch=Epoch(epoch),
        ),
        begin=Offset(begin),
        end=Offset(end),
        payload_bytes=payload_bytes,
        content=content,
        key_id=names[2].decode(),
        salt=names[3],
        blocks=blocks,
        object_bytes=object_bytes,
    )
    return index, at + count * _BLOCK.size


def _check_blocks(index: Index, index_position: int) -> None:
    position, offset = len(MAGIC), index.begin
    for block in index.blocks:
        if block.position != position or block.begin != offset or block.end <= block.begin:
            raise DamagedObject("the blocks of its index do not follow each other")
        if block.raw_bytes > BLOCK_RAW_BYTES_MAX:
            raise DamagedObject(f"a block of {block.raw_bytes} bytes cannot be")
        if block.stored_bytes > block.raw_bytes + _BLOCK_OVERHEAD_BYTES:
            raise DamagedObject(f"a block is stored in {block.stored_bytes} bytes, which cannot be")
        position += block.stored_bytes
        offset = block.end
    if position != index_position or offset != index.end:
        raise DamagedObject("the blocks of its index do not fill the object")


def open_object(data: bytes | bytearray, keys: KeyRing, wanted: Owner) -> Index:
    """The index of a whole object. Raises as `index_range` and `open_index`."""
    if data[: len(MAGIC)] != MAGIC:
        raise DamagedObject("it does not begin as an object of a tier does")
    begin, end, crc = index_range(bytes(data[-TRAILER_BYTES:]), len(data))
    return open_index(
        bytes(data[begin:end]),
        position=begin,
        crc=crc,
        object_bytes=len(data),
        keys=keys,
        wanted=wanted,
    )


class BlockOpener:
    """Blocks of one object, from their stored bytes. Takes CPU time: not for an event loop."""

    def __init__(self, index: Index, keys: KeyRing) -> None:
        """Raises `WrongKey`."""
        self.index = index
        self._whose = index.owner.pack()
        self._cipher: AESGCM | None = None
        if index.key_id != NO_KEY:
            self._cipher = keys.cipher(index.key_id, index.salt)

    def raw(self, number: int, stored: bytes | memoryview) -> bytes:
        """The block's batches as they were packed. Raises `DamagedObject`."""
        block = self.index.blocks[number]
        if len(stored) != block.stored_bytes or crc32c(stored) != block.crc:
            raise DamagedObject(f"the checksum of block {number} does not fit")
        packed: Any = stored
        if self._cipher is not None:
            try:
                packed = self._cipher.decrypt(_nonce(number), stored, self._whose)
            except InvalidTag as error:
                raise DamagedObject(f"block {number} was changed after it was written") from error
        return _unpacked(packed, block.raw_bytes, number)

    def batches(self, number: int, stored: bytes | memoryview) -> list[PlacedBatch]:
        """The block's batches, each with a sound checksum. Raises `DamagedObject`."""
        return _batches_of(self.raw(number, stored), self.index.blocks[number])

    def checked(self, number: int, stored: bytes | memoryview) -> bytes:
        """As `raw`, once its batches have passed their checks. Raises `DamagedObject`."""
        raw = self.raw(number, stored)
        _batches_of(raw, self.index.blocks[number])
        return raw


def check_made(data: bytes | bytearray, index: Index, keys: KeyRing) -> None:
    """Whether an object that was just made is what its index says: raises `DamagedObject` if it is
    not. `ObjectWriter` has compared what its blocks unpack to; here are their bytes in one piece.
    """
    if open_object(data, keys, index.owner) != index:
        raise DamagedObject("its index is not read as it was written")
    view = memoryview(data)
    for number, block in enumerate(index.blocks):
        if crc32c(view[block.position : block.position + block.stored_bytes]) != block.crc:
            raise DamagedObject(f"the checksum of block {number} does not fit")


_OF_THREAD = threading.local()


def _unpacker() -> zstandard.ZstdDecompressor:
    """That of this thread: a new one for each block took longer than to unpack it."""
    unpacker: zstandard.ZstdDecompressor | None = getattr(_OF_THREAD, "unpacker", None)
    if unpacker is None:
        unpacker = _OF_THREAD.unpacker = zstandard.ZstdDecompressor()
    return unpacker


def _unpacked(packed: bytes | memoryview, raw_bytes: int, number: int) -> bytes:
    try:
        # The frame says how much it will be, and the library would make room for all of that.
        told_bytes = zstandard.get_frame_parameters(packed).content_size
        if told_bytes != raw_bytes:
            raise DamagedObject(f"block {number} unpacks to another size than its index says")
        raw = _unpacker().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedObject(f"block {number} cannot be unpacked: {error}") from error
    if len(raw) != raw_bytes:
        raise DamagedObject(f"block {number} unpacks to another size than its index says")
    return raw


def _batches_of(raw: bytes, block: Block) -> list[PlacedBatch]:
    batches = []
    at, expected = 0, block.begin
    view = memoryview(raw)
    head_bytes = _BASE.size + HEADER_BYTES
    while at < len(raw):
        if at + head_bytes > len(raw):
            raise DamagedObject("a block ends inside a batch")
        (base,) = _BASE.unpack_from(raw, at)
        header = BatchHeader.unpack(view[at + _BASE.size : at + head_bytes])
        at += head_bytes
        payload = view[at : at + header.payload_bytes]
        at += header.payload_bytes
        if len(payload) != header.payload_bytes or base != expected or not header.record_count:
            raise DamagedObject("the batches of a block do not follow each other")
        if crc32c(payload) != header.payload_crc:
            raise DamagedObject(f"the checksum of the batch at {base} does not fit")
        batch = PlacedBatch(base=Offset(base), header=header, payload=payload)
        batches.append(batch)
        expected = batch.end
    if expected != block.end:
        raise DamagedObject("the batches of a block do not fill it")
    return batches


def content_of(raws: Sequence[bytes]) -> bytes:
    """The `content` of an object that has these blocks."""
    digest = hashlib.sha256()
    for raw in raws:
        digest.update(raw)
    return digest.digest()


def _told(owner: Owner) -> str:
    return f"cluster {owner.cluster}, log {owner.log}, shard {owner.shard}, epoch {owner.epoch}"

"""Objects: what goes in comes out, and nothing else is ever taken for it."""

import random
import struct
import tracemalloc
from dataclasses import replace

import pytest
import zstandard
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from peerd.core.check import InvariantViolation
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.tier import format as tier_format
from peerd.tier.errors import DamagedObject, ForeignObject, FormatUnknown, TierError, WrongKey
from peerd.tier.format import (
    BLOCK_BYTES,
    BlockOpener,
    ObjectWriter,
    Owner,
    check_made,
    open_object,
)
from peerd.tier.keys import NO_KEYS, KeyRing, ring_of
from tests.tier.objects import OWNER, batches_of, object_of, plain

KEY = ring_of([b"k" * 32])
RINGS = pytest.mark.parametrize("keys", [NO_KEYS, KEY], ids=["plain", "encrypted"])


def read_all(data: bytes, keys: KeyRing = NO_KEYS, owner: Owner = OWNER):
    index = open_object(data, keys, owner)
    opener = BlockOpener(index, keys)
    found = []
    for number, block in enumerate(index.blocks):
        stored = data[block.position : block.position + block.stored_bytes]
        found += opener.batches(number, stored)
    return index, found


@pytest.mark.parametrize("more", [-(10**9), -1, 0, 1, 100_000])
def test_an_object_is_the_same_whatever_room_was_made_for_it(more):
    batches = batches_of([3_000] * 30 + [BLOCK_BYTES + 5] * 2)
    data, index = object_of(batches)
    writer = ObjectWriter(OWNER, batches[0].base, room_bytes=max(0, len(data) + more))
    without = ObjectWriter(OWNER, batches[0].base)
    for each in (writer, without):
        each.add(batches)
    assert writer.stored_bytes == without.stored_bytes
    assert writer.finish() == (data, index)


@RINGS
@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 3_000), min_size=1, max_size=40),
    begin=st.integers(0, 1 << 50),
    large=st.booleans(),
)
def test_what_goes_in_comes_out(keys, sizes, begin, large):
    batches = batches_of([*sizes, BLOCK_BYTES + 5] if large else sizes, begin=begin)
    data, index = object_of(batches, keys=keys)
    read, found = read_all(data, keys)
    assert plain(found) == plain(batches)
    assert read == index
    assert (read.begin, read.end) == (begin, batches[-1].end)
    assert read.payload_bytes == sum(batch.header.payload_bytes for batch in batches)
    for batch in batches:
        block = read.blocks[read.block_at(batch.base)]
        assert block.begin <= batch.base < batch.end <= block.end


def test_blocks_are_bounded_and_a_large_batch_has_one_for_itself():
    _, index = object_of(batches_of([100_000] * 5 + [BLOCK_BYTES * 3] + [10]))
    assert [(each.begin, each.end) for each in index.blocks] == [
        (0, 6),
        (6, 12),
        (12, 15),
        (15, 18),
        (18, 21),
    ]
    assert [each.timestamp_ms for each in index.blocks] == [
        1_000_000,
        1_002_000,
        1_004_000,
        1_005_000,
        1_006_000,
    ]


def test_the_content_is_told_the_same_however_it_is_packed():
    batches = batches_of([500] * 20)
    assert object_of(batches)[1].content == object_of(batches, keys=KEY)[1].content
    assert object_of(batches)[1].content != object_of(batches_of([500] * 20, seed=2))[1].content


def test_a_gap_and_an_empty_object_are_bugs():
    batches = batches_of([10, 10, 10])
    writer = ObjectWriter(OWNER, Offset(0))
    writer.add(batches[:1])
    with pytest.raises(InvariantViolation):
        writer.add(batches[2:])
    with pytest.raises(InvariantViolation):
        ObjectWriter(OWNER, Offset(0)).finish()


@RINGS
def test_a_block_that_was_packed_wrongly_is_never_put(keys, monkeypatch):
    sound = zstandard.ZstdCompressor(level=3)

    class Careless:
        def __init__(self, level):
            pass

        def compress(self, raw):
            return sound.compress(bytes([raw[0] ^ 1]) + raw[1:])

    monkeypatch.setattr(tier_format.zstandard, "ZstdCompressor", Careless)
    with pytest.raises(DamagedObject, match="block 0 unpacks to something else"):
        object_of(batches_of([40, 700]), keys=keys)


@RINGS
def test_an_object_that_was_changed_in_memory_is_never_put(keys):
    data, index = object_of(batches_of([40, 700]), keys=keys)
    check_made(data, index, keys)
    for at in range(8, len(data)):
        bad = bytearray(data)
        bad[at] ^= 1
        with pytest.raises(TierError):
            check_made(bytes(bad), index, keys)


@RINGS
def test_every_flipped_bit_is_seen(keys):
    data, _ = object_of(batches_of([40, 700, 3], seed=4), keys=keys)
    dice = random.Random(7)
    for at in range(len(data)):
        bad = bytearray(data)
        bad[at] ^= 1 << dice.randrange(8)
        with pytest.raises(TierError):
            read_all(bytes(bad), keys)


@RINGS
def test_every_cut_is_seen(keys):
    data, _ = object_of(batches_of([40, 700, 3]), keys=keys)
    for size in range(len(data)):
        with pytest.raises(DamagedObject):
            read_all(data[:size], keys)
    with pytest.raises(DamagedObject):
        read_all(data + b"\0", keys)
    with pytest.raises(DamagedObject):
        read_all(data + data, keys)


@pytest.mark.parametrize(
    "wanted",
    [
        Owner(cluster="other", log="orders", shard=ShardId(7), epoch=Epoch(3)),
        Owner(cluster="shop", log="order", shard=ShardId(7), epoch=Epoch(3)),
        Owner(cluster="shop", log="orders", shard=ShardId(8), epoch=Epoch(3)),
        Owner(cluster="shop", log="orders", shard=ShardId(7), epoch=Epoch(4)),
    ],
)
def test_an_object_of_somebody_else_is_foreign(wanted):
    data, _ = object_of(batches_of([10]))
    with pytest.raises(ForeignObject, match="it is of cluster shop, log orders, shard 7, epoch 3"):
        open_object(data, NO_KEYS, wanted)


def test_a_newer_format_says_so():
    data, _ = object_of(batches_of([10]))
    head = bytearray(data[-40:-12])
    head[24:26] = struct.pack(">H", 2)
    newer = data[:-40] + head + struct.pack(">I", crc32c(bytes(head))) + data[-8:]
    with pytest.raises(FormatUnknown, match="upgrade"):
        open_object(newer, NO_KEYS, OWNER)


def test_old_keys_read_and_others_do_not():
    batches = batches_of([200] * 9)
    old, _ = object_of(batches, keys=KEY)
    rotated = ring_of([b"n" * 32, b"k" * 32])
    assert plain(read_all(old, rotated)[1]) == plain(batches)
    new, index = object_of(batches, keys=rotated)
    assert index.key_id == rotated.writing != KEY.writing
    assert plain(read_all(new, rotated)[1]) == plain(batches)
    with pytest.raises(WrongKey, match=r"tier\.key_files"):
        read_all(new, KEY)
    with pytest.raises(WrongKey):
        read_all(new)
    for payload in (bytes(batch.payload)[:32] for batch in batches):
        assert payload not in new


def test_an_encrypted_block_is_bound_to_its_place_and_object():
    """Checksums that fit are no help: what is moved to another place does not open."""
    data, index = object_of(batches_of([BLOCK_BYTES - 200] * 2, seed=3), keys=KEY)
    other, other_index = object_of(batches_of([BLOCK_BYTES - 200] * 2, seed=3), keys=KEY)
    assert index.content == other_index.content
    first = other_index.blocks[0]
    moved = other[first.position : first.position + first.stored_bytes]
    for number in (0, 1):
        block = replace(index.blocks[number], crc=crc32c(moved), stored_bytes=len(moved))
        blocks = tuple(block if at == number else each for at, each in enumerate(index.blocks))
        with pytest.raises(DamagedObject, match="changed after it was written"):
            BlockOpener(replace(index, blocks=blocks), KEY).raw(number, moved)
    assert data != other


@RINGS
def test_an_index_that_was_changed_and_summed_anew(keys):
    """Without a key that is all that a checksum can say; with one it is authenticated."""
    data, _ = object_of(batches_of([10] * 4), keys=keys)
    position, size = struct.unpack_from(">QI", data, len(data) - 40)
    index = bytearray(data[position : position + size])
    at = index.index(struct.pack(">QQQQ", 7, 3, 0, 12))
    index[at + 24 : at + 32] = struct.pack(">Q", 13)
    head = struct.pack(">QIIQHH", position, size, crc32c(bytes(index)), len(data), 1, 0)
    changed = data[:position] + index + head + struct.pack(">I", crc32c(head)) + data[-8:]
    with pytest.raises(DamagedObject, match="changed after" if keys is KEY else "do not fill"):
        open_object(changed, keys, OWNER)


@settings(max_examples=300)
@given(data=st.binary(max_size=300))
def test_noise_is_an_error(data):
    with pytest.raises(DamagedObject):
        open_object(data, NO_KEYS, OWNER)


@settings(max_examples=150)
@given(seed=st.integers(0, 1 << 32), encrypted=st.booleans())
def test_hostile_indexes_are_errors_and_cost_no_memory(seed, encrypted):
    """Numbers anywhere, with checksums that fit: a typed error, or what was written."""
    keys = KEY if encrypted else NO_KEYS
    dice = random.Random(seed)
    batches = batches_of([60] * 3)
    data, _ = object_of(batches, keys=keys)
    position, size = struct.unpack_from(">QI", data, len(data) - 40)
    index = bytearray(data[position : position + size])
    for _ in range(dice.randrange(1, 4)):
        at = dice.randrange(len(index))
        hostile = dice.choice([b"\xff" * 8, b"\x7f" * 4, b"\0" * 8, dice.randbytes(3)])
        index[at : at + len(hostile)] = hostile
    index = index[:size]
    head = struct.pack(">QIIQHH", position, len(index), crc32c(bytes(index)), len(data), 1, 0)
    hostile = data[:position] + index + head + struct.pack(">I", crc32c(head)) + data[-8:]
    tracemalloc.start()
    try:
        try:
            _, found = read_all(hostile, keys)
        except TierError:
            pass
        else:
            assert plain(found) == plain(batches)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_frame_that_claims_much_is_not_unpacked():
    data, index = object_of(batches_of([10]))
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    block = replace(index.blocks[0], stored_bytes=len(bomb), crc=crc32c(bomb))
    opener = BlockOpener(replace(index, blocks=(block,)), NO_KEYS)
    tracemalloc.start()
    with pytest.raises(DamagedObject, match="another size"):
        opener.raw(0, bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert data

"""Manifests: by name, in order, of one shard."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerd.core.ids import Epoch, Offset, ShardId
from peerd.tier.errors import DamagedObject, ForeignObject, FormatUnknown, TierError
from peerd.tier.manifest import Entry, Manifest, object_name, pack, unpack
from tests.tier.objects import LISTED


def entry(begin: int, end: int, *, epoch: int = 3) -> Entry:
    return Entry(
        name=object_name(Epoch(epoch), Offset(begin), Offset(end), 0),
        epoch=Epoch(epoch),
        begin=Offset(begin),
        end=Offset(end),
        object_bytes=1_000,
        payload_bytes=2_000,
        timestamp_ms=5,
        content="ab" * 32,
    )


def read(name: str, data: bytes, shard: int = 7) -> Manifest:
    return unpack(name, data, cluster="shop", log="orders", shard=ShardId(shard))


def named(value: object, generation: int = 1) -> tuple[str, bytes]:
    data = json.dumps(value).encode()
    return f"manifest-{generation:020d}-{hashlib.sha256(data).hexdigest()[:32]}", data


FULL = replace(LISTED, entries=(entry(0, 10), entry(10, 12), entry(20, 30, epoch=9)))


def test_it_comes_back_and_finds_its_objects():
    assert read(*pack(FULL)) == FULL
    found = {offset: FULL.entry_at(offset) for offset in range(32)}
    assert {offset for offset, each in found.items() if each is None} == {*range(12, 20), 30, 31}
    assert all(each.begin <= offset < each.end for offset, each in found.items() if each)


def test_another_name_or_shard_is_told():
    name, data = pack(FULL)
    with pytest.raises(DamagedObject, match="not what was written under this name"):
        read(name, data.replace(b"orders", b"order5"))
    with pytest.raises(DamagedObject, match="is no manifest"):
        read("manifest", data)
    with pytest.raises(ForeignObject, match="shard 7, and not of"):
        read(name, data, shard=8)
    with pytest.raises(DamagedObject, match="says that it is 1"):
        read(*named(json.loads(data), generation=2))
    with pytest.raises(FormatUnknown, match="upgrade"):
        read(*named(json.loads(data) | {"format": 3}))


def test_an_heir_lists_objects_where_they_are():
    heir = FULL.inherited_by("second").inherited_by("third")
    assert unpack(*pack(heir), cluster="third", log="orders", shard=ShardId(7)) == heir
    own = replace(heir, entries=(*heir.entries, entry(30, 40, epoch=12)))
    assert [own.key(each).split("/")[0] for each in own.entries[-2:]] == [
        "cluster-shop",
        "cluster-third",
    ]
    assert own.owner(own.entries[0]).cluster == "shop"
    assert own.owner(own.entries[-1]).cluster == "third"
    # Whoever does not know owners is told so, and does not look in the wrong place.
    assert json.loads(pack(own)[1])["format"] == 2
    assert json.loads(pack(FULL)[1])["format"] == 1


@pytest.mark.parametrize(
    "entries",
    [
        (entry(0, 10), entry(9, 12)),
        (entry(10, 12), entry(0, 10)),
        (entry(5, 5),),
        (replace(entry(0, 5), name="../../secret"),),
        (replace(entry(0, 5), name=entry(0, 6).name),),
        (replace(entry(0, 5), object_bytes=-1),),
        (replace(entry(0, 5), cluster="../other"),),
        (replace(entry(0, 5), payload_bytes=1 << 70),),
    ],
)
def test_entries_that_cannot_be(entries):
    with pytest.raises(DamagedObject, match="cannot be read"):
        read(*pack(replace(FULL, entries=entries)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@settings(max_examples=60)
@given(key=st.sampled_from([*json.loads(pack(FULL)[1])]), value=JSON)
def test_what_it_does_not_expect_is_an_error(key, value):
    changed = json.loads(pack(FULL)[1]) | {key: value}
    name, data = named(changed)
    try:
        found = read(name, data)
    except TierError:
        return
    assert json.loads(pack(found)[1]).items() >= {"cluster": "shop", "shard": 7}.items()


@given(data=st.binary(max_size=60) | st.sampled_from([b"[" * 100_000, b"1", b"{}", b"\xff"]))
def test_noise_is_an_error(data):
    name = f"manifest-{1:020d}-{hashlib.sha256(data).hexdigest()[:32]}"
    with pytest.raises(DamagedObject):
        read(name, data)

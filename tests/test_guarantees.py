"""One test for each promised sentence of docs/guarantees.md, which it quotes.

A cluster of real cores is talked to in the words of tests/scripts; what is told is what a client or
an operator would see.
"""

import re
from pathlib import Path

from las.core.commands import SegmentOpened
from peerd.core.ids import Epoch, Offset
from tests.core.words import C, Peer, batch
from tests.scripts.fleet import Fleet
from tests.scripts.script import Command
from tests.scripts.stage import SHARD, Cast

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guarantees.md"


def said(stage: Cast | Fleet, *lines: str) -> str:
    """Do all of it; what the last line led to."""
    told: list[str] = []
    for line in lines:
        told = stage.play(Command(line))
    return "\n".join(told)


def cluster(*lines: str, peers: str = "a b c", acks: int = 2, spare: str = "") -> Cast:
    cast = Cast()
    said(cast, f"cluster {peers} acks={acks} spare={spare}", *lines)
    return cast


def failover(cast: Cast, primary: str, voters: str) -> str:
    """Fence, ask everybody, open; the map afterwards."""
    said(cast, "fence", "ask", "deliver", "fsync all", "deliver")
    said(cast, f"open {primary} voters={voters}", "learn all", "settle", "settle")
    return said(cast, "map")


# ------------------------------------------------------------------ G1
def test_g1_acks_stores_have_it_when_it_is_acknowledged():
    """An acknowledged batch is on stable storage on at least `acks` stores when it is
    acknowledged.
    """
    for acks in (1, 2, 3):
        cast = cluster("append a producer=p seq=0", "deliver", acks=acks)
        stores = [cast.actors[name].store for name in "abc"]
        for fsynced, name in enumerate("cba"):
            having = sum(0 in store.batches.get(Epoch(1), {}) for store in stores)
            assert having == fsynced
            told = said(cast, f"fsync {name}") + said(cast, f"deliver {name}>a")
            assert ("accepted" in told) == (fsynced + 1 == acks)


def test_g1_it_stays_at_its_offset():
    """It stays at its offset as long as one of those stores, or another holder of its segment,
    survives.
    """
    for lost in "abc":
        cast = cluster("append a producer=p seq=0", "settle", f"lose {lost}")
        left = "".join(name for name in "abc" if name != lost)
        chain = failover(cast, left[0], left)
        assert "sealed 1 [0, 1)" in chain
        retry = said(cast, f"append {left[0]} producer=p seq=0")
        assert "accepted in 1 at 0" in retry


# ------------------------------------------------------------------ G2
def test_g2_one_record_at_an_offset():
    """Nobody ever reads two different records at the same offset of a shard."""
    cast = cluster("append a producer=p seq=0", "deliver drop=a>b,a>c", "fsync a", "crash a")
    failover(cast, "b", "bc")
    said(cast, "append b producer=q seq=0", "settle", "boot a")
    # a's own batch at offset 0 never was the log's: it is served neither before nor after a knows.
    assert said(cast, "read a 1") == "serves up to 0"
    said(cast, "learn a", "fsync a")
    assert said(cast, "read a 1") == "has nothing of it"
    assert said(cast, "read b 2") == "serves up to 1"


# ------------------------------------------------------------------ G3
def test_g3_later_is_behind():
    """If append A was acknowledged before B was sent to the same shard, A's offset is smaller."""
    cast = cluster("append a producer=p seq=0 count=3")
    assert "accepted in 1 at 0" in said(cast, "settle")
    said(cast, "crash a")
    failover(cast, "b", "bc")
    said(cast, "append b producer=q seq=0")
    assert "accepted in 2 at 3" in said(cast, "settle")


# ------------------------------------------------------------------ G4
def test_g4_once():
    """A sequence of a producer is in the shard at most once, however often it is sent."""
    cast = cluster(*["append a producer=p seq=0"] * 3, "settle", "append a producer=p seq=0")
    said(cast, "crash a")
    failover(cast, "c", "cb")
    said(cast, "append c producer=p seq=0", "settle", "crash b c", "boot a b c", "learn all")
    failover(cast, "b", "bca")
    said(cast, "append b producer=p seq=0", "append b producer=p seq=1", "settle")
    chain = cast.shard
    bases = [
        base
        for segment in (*chain.sealed, chain.open)
        for base in cast.actors["b"].store.batches.get(segment.epoch, {})
    ]
    assert sorted(bases) == [0, 1]


def test_g4_the_same_answer():
    """A retry gets the same shard, epoch and offsets again."""
    cast = cluster("append a producer=p seq=0 count=2", "settle", "prepare b voters=bca")
    said(cast, "learn all", "settle", "opened", "learn all", "settle")
    answer = "accepted in 1 at 0"
    assert answer in said(cast, "append b producer=p seq=0 count=2")
    said(cast, "crash b")
    failover(cast, "c", "ca")
    assert answer in said(cast, "append c producer=p seq=0 count=2")


# ------------------------------------------------------------------ G5
def test_g5_all_or_none():
    """A reader sees all records of a batch or none."""
    cast = cluster("append a count=5", "deliver", "fsync b")
    assert said(cast, "read b 1") == "serves up to 0"
    said(cast, "settle", "tick 5", "settle")
    assert said(cast, "read b 1") == "serves up to 5"
    begin, end = Offset(0), Offset(3)
    assert [each.end for each in cast.actors["b"].store.read(Epoch(1), begin, end)] == [5]


# ------------------------------------------------------------------ G6
def test_g6_nothing_older_changes_it():
    """After a replica has promised an epoch, nothing of an older epoch changes it."""
    cast = cluster("append a", "deliver", "fence", "ask b c", "deliver", "fsync b c", "deliver")
    before = cast.actors["c"].store.state
    said(cast, "append a", "deliver", "fsync c", "again a>c", "fsync c")
    assert cast.actors["c"].store.state == before


def test_g6_nothing_older_is_acknowledged():
    """It acknowledges nothing of an older epoch."""
    cast = cluster("fence", "ask", "deliver", "append a", "fsync all", "deliver", "fsync all")
    told = said(cast, "deliver", "settle", "append a")
    assert "accepted" not in told
    assert "NOT_PRIMARY" in told


# ------------------------------------------------------------------ G7
def test_g7_one_open_segment():
    """A shard has at most one open segment; its segments tile without gap or overlap; epochs only
    grow.
    """
    cast = cluster("append a", "settle", "prepare b voters=bca")
    assert "refused" in said(cast, "prepare c voters=cab")
    said(cast, "learn all", "settle", "fence")
    late = SegmentOpened(shard=SHARD, epoch=Epoch(2), begin=Offset(9), holders=())
    assert "refused" in cast.commit(late)[0]
    failover(cast, "c", "cab")
    said(cast, "append c", "settle", "prepare a voters=abc", "learn all", "settle", "opened")
    chain = (*cast.shard.sealed, cast.shard.open)
    assert [each.begin for each in chain[1:]] == [each.end for each in chain[:-1]]
    assert [each.epoch for each in chain] == sorted({each.epoch for each in chain})


# ------------------------------------------------------------------ G8
def test_g8_keys_keep_their_order():
    """Records of one key keep their order over splits and moves of shards."""
    cast = cluster("append a producer=p seq=0", "settle", "prepare b voters=bca", "learn all")
    said(cast, "settle", "opened", "learn all", "append b producer=p seq=1", "settle")
    said(cast, "split b voters=bca key=1000", "learn all", "settle")
    # No child is there as long as the parent might take something, and none is taken afterwards.
    assert len(cast.las.shards) == 1
    said(cast, "append b producer=p seq=2", "opened")
    assert "SPLIT, taken NO" in said(cast, "learn all")
    children = [entry.shard for entry in cast.las.shards.values() if entry.shard.parent]
    assert [child.parent.end for child in children] == [2, 2]
    assert [child.open.begin for child in children] == [0, 0]


# ------------------------------------------------------------------ G9
def test_g9_without_the_las():
    """With the LAS down, a shard whose primary process and `acks` voters live goes on appending
    and reading.
    """
    cast = cluster("prepare b voters=bca", "learn all", "settle")
    # The LAS takes no report any more, and nobody learns a map: the switch is done all the same.
    said(cast, "tick 60000 a b c", "settle", "crash c", "append b producer=p seq=0")
    assert "accepted in 2 at 0" in said(cast, "settle")
    assert said(cast, "read b 2") == "serves up to 1"


def test_g9_changes_wait():
    """Only changes of the map wait, and the restart of a primary is one."""
    cast = cluster("append a producer=p seq=0", "settle", "crash a", "boot a", "learn a")
    assert "NOT_PRIMARY" in said(cast, "append a producer=p seq=1")
    failover(cast, "a", "abc")
    said(cast, "append a producer=p seq=1")
    assert "accepted in 2 at 1" in said(cast, "settle")


# ------------------------------------------------------------------ G10
def test_g10_what_cannot_be_kept_is_said():
    """What cannot be kept is said: never silence, and never invented data."""
    cast = cluster("append a producer=p seq=0", "settle", "append a producer=p seq=1", "lose b")
    said(cast, "crash c", "fence", "ask", "deliver", "fsync a", "deliver")
    # What was under way is not called failed, and one answer of three decides nothing.
    assert "wait for 1 of b c" in said(cast, "decide")
    assert "wait for 1" in said(cast, "open a voters=ac")
    lost = Peer(C, batch_store())
    assert lost.replica.readable_limit(Epoch(1)) is None
    assert lost.store.read(Epoch(1), Offset(0), Offset(9)) == ()


def batch_store():
    """A store that joined in epoch 2 at offset 5, without the past."""
    cast = cluster("append a count=5", "settle", "prepare a voters=abd", spare="d")
    said(cast, "learn all", "settle", "opened", "learn all", "append a", "settle")
    store = cast.actors["d"].store
    assert store.read(Epoch(2), Offset(5), Offset(6)) == (batch(5, timestamp_ms=1_000),)
    return store


# ------------------------------------------------------------------ G11
def test_g11_it_goes_on():
    """If a majority of the LAS and enough replicas of a shard can talk, appends succeed again
    within a bounded time.
    """
    for dead in "abc":
        fleet = Fleet()
        said(fleet, "register a b c", "create orders a,b,c", f"set {dead} down")
        wanted = "recover" if dead == "a" else f"{dead} is gone"
        assert wanted in said(fleet, "plan")
        cast = cluster("append a producer=p seq=0", "settle", f"crash {dead}")
        left = "".join(name for name in "abc" if name != dead)
        failover(cast, left[0], left)
        said(cast, f"append {left[0]} producer=p seq=1")
        assert "accepted in 2 at 1" in said(cast, "settle")


# ------------------------------------------------------------------ G12
def test_g12_what_was_served_stays():
    """What a reader was served survives whatever an acknowledged batch survives."""
    cast = cluster("append a producer=p seq=0", "deliver drop=a>c", "fsync b")
    assert said(cast, "read b 1") == "serves up to 0"
    said(cast, "crash a")
    assert "holders b," in failover(cast, "c", "cb")
    assert said(cast, "read b 1") == "serves up to 0"
    said(cast, "copy b>c 1", "holder c 1", "learn all")
    assert said(cast, "read b 1") == "serves up to 1"


# ------------------------------------------------------------------ the page itself
def sentences() -> set[str]:
    """The quoted sentences of the page."""
    blocks = re.findall(r"(?:^> .*\n)+", PAGE.read_text("utf-8"), re.MULTILINE)
    return {" ".join(block.replace("> ", "").split()) for block in blocks}


def test_each_promised_sentence_has_a_test_that_quotes_it():
    quotes = {
        " ".join((each.__doc__ or "").split())
        for name, each in globals().items()
        if re.match(r"test_g\d+_", name)
    }
    assert quotes == sentences()


def test_each_test_that_the_page_names_is_there():
    named = re.findall(r"`(tests/[^`]+)`", PAGE.read_text("utf-8"))
    assert len(named) > 30
    for each in named:
        path, _, test = each.partition("::")
        text = (ROOT / path).read_text("utf-8")
        assert not test or re.search(rf"def {test}\(", text), f"{each} is not there"


def test_all_promises_are_on_the_page_as_in_the_protocol():
    promised = set(re.findall(r"\*\*(G\d+) ", (ROOT / "docs" / "protocol.md").read_text("utf-8")))
    assert promised == set(re.findall(r"^## (G\d+) ", PAGE.read_text("utf-8"), re.MULTILINE))

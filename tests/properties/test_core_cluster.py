"""A cluster of cores against a tiny reference log: a list of what was acknowledged, and no more.

Hypothesis chooses what is sent to whom, what becomes durable, what arrives, who dies and when the
LAS moves the shard; the stage is that of tests/scripts. Whatever it chooses:
- an offset has one acknowledged batch, a sequence has one place (G2, G4);
- what was acknowledged before an append was sent lies before it (G3);
- once all is well again, the log of the map has exactly what was acknowledged, at its place, and
  perhaps what was under way (G1), whole and without gap (G5, G7).
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from peerd.core.effects import AppendAccepted
from tests.scripts.script import Command
from tests.scripts.stage import Cast

PEERS = "abc"
TOGETHER = st.sampled_from(PEERS)
MAP_MOVES_MAX = 4
"""Each makes an epoch; more only make an example long."""

Name = tuple[str, int]
"""A producer and its sequence."""


class Cluster(RuleBasedStateMachine):
    """Three peers, two acks, two producers."""

    def __init__(self) -> None:
        super().__init__()
        self.cast = Cast()
        self.next = {"p": 0, "q": 0}
        self.asked: dict[int, Name] = {}
        self.log: dict[int, Name] = {}
        self.places: dict[Name, tuple[int, int]] = {}
        self.floors: dict[Name, int] = {}
        self.moves = 0

    def do(self, text: str) -> list[str]:
        return self.cast.play(Command(text))

    def alive(self) -> list[str]:
        return [name for name, actor in self.cast.actors.items() if actor.replica is not None]

    @initialize()
    def begin(self) -> None:
        self.do("cluster a b c acks=2")

    # -------------------------------------------------------------- clients
    @rule(peer=TOGETHER, producer=st.sampled_from("pq"), back=st.integers(0, 2))
    def append(self, peer: str, producer: str, back: int) -> None:
        """The next batch of a producer, or one of its last again."""
        leaders = [
            name
            for name, actor in self.cast.actors.items()
            if actor.replica is not None and actor.replica.is_primary
        ]
        if not leaders and peer not in self.alive():
            return
        # Whoever takes itself for the primary, an old one too.
        peer = leaders[len(self.asked) % len(leaders)] if leaders else peer
        sequence = max(0, self.next[producer] - back)
        name = (producer, sequence)
        self.floors.setdefault(name, max(self.log, default=-1))
        self.do(f"append {peer} producer={producer} seq={sequence}")
        self.asked[self.cast.requests] = name
        if sequence == self.next[producer]:
            self.next[producer] += 1

    # -------------------------------------------------------------- the world
    @rule(peer=TOGETHER)
    def fsync(self, peer: str) -> None:
        if peer in self.alive():
            self.do(f"fsync {peer}")

    @rule(one=st.sampled_from(("a", "b", "c", "las")), other=TOGETHER, lost=st.booleans())
    def deliver(self, one: str, other: str, lost: bool) -> None:
        way = f"{one}>{other}"
        self.do(f"deliver {way} drop={way if lost else '-'}")

    @rule()
    def deliver_all(self) -> None:
        self.do("deliver")

    @rule()
    def settle(self) -> None:
        self.do("settle")

    @rule(ms=st.sampled_from((5, 60, 300, 1_100)))
    def tick(self, ms: int) -> None:
        self.do(f"tick {ms}")

    @precondition(lambda self: len(self.alive()) == len(PEERS))
    @rule(peer=TOGETHER)
    def crash(self, peer: str) -> None:
        self.do(f"crash {peer}")

    @rule()
    def boot(self) -> None:
        """Who died starts again; streams to it break and come back."""
        for name in PEERS:
            if name not in self.alive():
                self.do(f"boot {name}")
                self.do(f"learn {name}")
                for other in PEERS:
                    if other != name and other in self.alive():
                        self.do(f"down {other}>{name}")
                        self.do(f"up {other}>{name}")

    # -------------------------------------------------------------- the LAS
    @rule(peer=TOGETHER)
    def hand_over(self, peer: str) -> None:
        if peer in self.alive() and self.moves < MAP_MOVES_MAX:
            self.moves += 1
            self.do(f"prepare {peer} voters={PEERS}")
            self.do("learn all")

    @rule()
    def confirm(self) -> None:
        if any(type(each).__name__ == "SegmentOpened" for each in self.cast.reports):
            self.do("opened")
            self.do("learn all")

    @rule()
    def fence(self) -> None:
        if self.moves < MAP_MOVES_MAX and not self.cast.shard.fence:
            self.moves += 1
            self.do("fence")
            self.cast.answers.clear()
        if self.cast.shard.fence:
            self.do("ask")

    @rule(peer=TOGETHER)
    def open(self, peer: str) -> None:
        if peer in self.alive() and self.cast.shard.fence:
            self.do(f"open {peer} voters={PEERS}")
            self.do("learn all")

    @precondition(lambda self: self.moves < MAP_MOVES_MAX and len(self.alive()) == len(PEERS))
    @rule(dead=TOGETHER, heir=TOGETHER, lag=st.booleans())
    def fail_over(self, dead: str, heir: str, lag: bool) -> None:
        """One dies, two answer, one of them leads; the one that died comes back late."""
        if dead == heir or self.cast.shard.fence:
            return
        self.moves += 1
        self.do(f"crash {dead}")
        self.do("fence")
        self.cast.answers.clear()
        self.do("ask")
        self.do("settle")
        self.do("settle")
        self.do(f"open {heir} voters={PEERS}")
        self.do(f"learn {heir}")
        self.do("settle")
        if not lag:
            self.boot()

    # -------------------------------------------------------------- what must hold
    @invariant()
    def every_receipt_fits_the_log(self) -> None:
        for reply in self.cast.replies:
            if isinstance(reply, AppendAccepted) and reply.request in self.asked:
                name = self.asked[reply.request]
                place = (reply.epoch, reply.base)
                assert self.places.setdefault(name, place) == place, f"{name} at two places"
                assert self.log.setdefault(reply.base, name) == name, f"two at {reply.base}"
                assert reply.base > self.floors[name], f"{name} before what was acknowledged"
        self.cast.replies.clear()

    def teardown(self) -> None:
        """All is well again: fence, ask everybody, open, and read the log of the map."""
        self.boot()
        if not self.cast.shard.fence:
            self.do("fence")
            self.cast.answers.clear()
        for _ in range(3):
            self.do("ask")
            self.do("settle")
        self.do(f"open a voters={PEERS}")
        self.do("learn all")
        self.do("settle")
        self.every_receipt_fits_the_log()
        self.check_log()

    def check_log(self) -> None:
        found: dict[int, tuple[int, int]] = {}
        for segment in self.cast.shard.sealed:
            at = segment.begin or 0
            while at < (segment.end or 0):
                having = [
                    batch
                    for actor in self.cast.actors.values()
                    if (batch := actor.store.batches.get(segment.epoch, {}).get(at)) is not None
                ]
                assert having, f"nobody has offset {at} of {segment.epoch}"
                assert len({batch.header for batch in having}) == 1
                found[at] = (segment.epoch, having[0].header.first_sequence)
                at = having[0].end
        for base, name in self.log.items():
            assert found.get(base) == (self.places[name][0], name[1]), f"{name} is not at {base}"


def test_a_cluster_keeps_a_tiny_reference_log():
    run_state_machine_as_test(
        Cluster, settings=settings(max_examples=100, stateful_step_count=40, deadline=None)
    )

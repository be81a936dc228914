"""Simulated clusters with a flight recorder in each process, and values of any type of the core."""

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import NewType, Union, get_args, get_origin, get_type_hints

from hypothesis import reject
from hypothesis import strategies as st

from peerd.core import ids
from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.check import InvariantViolation
from peerd.core.events import AppendRequested
from peerd.core.replica import Replica
from peerd.core.shard_map import Plan, Segment, Shard, Split
from peerd.recorder.codec import blank
from peerd.recorder.flight import FlightRecorder
from peerd.testing import trace
from peerd.testing.sim import Options, Simulation
from peerd.testing.sim.process import Peer

RING_BYTES = 4 * 1024 * 1024


class RecordedSimulation(Simulation):
    """Each peer's processes write one ring, one after the other, as after `kill -9`."""

    def __init__(self, seed: int, options: Options, directory: Path, size_bytes: int) -> None:
        self.directory = directory
        self.size_bytes = size_bytes
        self.recorders: dict[str, FlightRecorder] = {}
        self.booted: set[ids.ProcessId] = set()
        self.after_event = lambda peer, replica, event: None
        super().__init__(seed, options, on_record=self._heard)

    def core(self, peer: Peer) -> Replica:
        """A process starts on `peer`, with a core of shard 1."""
        self.fleet.boot(peer)
        return peer.process.core(ids.ShardId(1))

    def _heard(self, record: trace.Record) -> None:
        if not isinstance(record, trace.Booted | trace.Handled):
            return
        peer = self.peers[record.process.peer]
        replica = peer.process.replicas[record.shard]
        if isinstance(record, trace.Booted):
            if record.process not in self.booted:
                path = self.directory / f"{peer.name}.ring"
                recorder = FlightRecorder(path, self.size_bytes, record.process, self.world.limits)
                self.recorders[peer.name] = recorder
                self.booted.add(record.process)
            self.recorders[peer.name].booted(record.shard, replica)
        else:
            self.recorders[peer.name].handled(record.shard, record.event, record.step)
            self.after_event(peer, replica, record.event)


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12)
BYTES_16 = st.binary(min_size=16, max_size=16).filter(any)


def values(hint, field: str = ""):
    """A strategy for values of a type hint, as far as the core's classes need it."""
    if hint is ids.ProducerId:
        return st.one_of(st.just(b""), BYTES_16)
    if isinstance(hint, NewType):
        if hint.__supertype__ is str:
            return NAMES
        low = -(2**63) if hint is ids.Tick else 0
        return st.integers(low, 2**63 - 1)
    if hint is bool:
        return st.booleans()
    if hint is int:
        return (
            st.integers(0, 2**64 - 1) if "key_hash" in field else st.integers(-(2**63), 2**63 - 1)
        )
    if hint is str:
        return NAMES
    if hint is type(None):
        return st.none()
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    if get_origin(hint) is not None:
        return generic(get_origin(hint), get_args(hint), field)
    assert is_dataclass(hint), hint
    return SPECIAL[hint]() if hint in SPECIAL else plain(hint)


def generic(origin, arguments, field):
    """Values of unions, tuples and mappings."""
    if origin in {Union, types.UnionType}:
        return st.one_of([values(each, field) for each in arguments])
    if origin is tuple and arguments[-1] is not Ellipsis:
        return st.tuples(*[values(each) for each in arguments])
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    assert issubclass(origin, Mapping)
    return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)


def plain(cls, **given):
    """Any instance of a dataclass."""
    hints = get_type_hints(cls)
    wanted = {
        each.name: given[each.name] if each.name in given else values(hints[each.name], each.name)
        for each in fields(cls)
    }

    def build(**given_fields):
        try:
            return cls(**given_fields)
        except InvariantViolation:
            reject()  # no such value can exist

    return st.builds(build, **wanted)


def header():
    """Sizes as a store packs them."""
    return plain(
        BatchHeader, record_count=st.integers(1, 2**32 - 1), payload_bytes=st.integers(0, 2_000_000)
    )


def with_payload(cls):
    """Its payload is what decoding puts in its place."""

    def build(head, rest):
        return cls(header=head, payload=blank(head.payload_bytes), **rest)

    hints = get_type_hints(cls)
    others = [each.name for each in fields(cls) if each.name not in {"header", "payload"}]
    rest = st.fixed_dictionaries({name: values(hints[name], name) for name in others})
    return st.builds(build, header(), rest)


def plan():
    replicas = st.lists(plain(ids.ReplicaId), min_size=1, max_size=5, unique=True)

    def build(all_of_them, voters, acks, boot):
        voters = 1 + voters % len(all_of_them)
        first = all_of_them[0]
        return Plan(
            primary=ids.ProcessId(first.peer, first.store, boot),
            voters=tuple(all_of_them[:voters]),
            non_voters=tuple(all_of_them[voters:]),
            acks=1 + acks % voters,
        )

    return st.builds(build, replicas, st.integers(0, 9), st.integers(0, 9), NAMES)


def shard():
    """A chain of two sealed segments and the open one."""

    def build(plans, log, prepared, holders):
        segments = [
            Segment(
                epoch=2 + 2 * at,
                plan=each,
                begin=10 * at,
                end=None if at == 2 else 10 * at + 10,
                holders=holders,
            )
            for at, each in enumerate(plans)
        ]
        return Shard(
            shard=7, log=log, key_hash_low=0, key_hash_high=2**64 - 1,
            open=segments[2], sealed=tuple(segments[:2]),
            prepared=Segment(epoch=9, plan=plans[0]) if prepared else None, dead_epochs=(1, 3),
        )  # fmt: skip

    holders = st.lists(plain(ids.ReplicaId), max_size=3).map(tuple)
    plans = st.lists(plan(), min_size=3, max_size=3)
    return st.builds(build, plans, NAMES, st.booleans(), holders)


def split():
    """Pending, or with two children and X."""
    pending = plain(Split, end=st.none(), children=st.just(()))
    offset = st.integers(0, 2**63 - 1)
    return st.one_of(pending, plain(Split, end=offset, children=st.tuples(offset, offset)))


SPECIAL = {
    Split: split,
    BatchHeader: header,
    AppendRequested: lambda: with_payload(AppendRequested),
    PlacedBatch: lambda: with_payload(PlacedBatch),
    Plan: plan,
    Shard: shard,
}

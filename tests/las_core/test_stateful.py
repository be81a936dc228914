"""Random commands, sensible and not: G7 holds in every state, and all copies of it are equal."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from las.core import snapshot
from las.core.apply import apply
from las.core.cluster import Cluster
from las.core.commands import (
    AddHolder,
    Command,
    DropHolder,
    FenceSegment,
    OpenSegment,
    PrepareSegment,
    PrepareSplit,
    RaiseCommandLevel,
    RecoveredSegment,
    Result,
    SegmentOpened,
    SetAtRisk,
    WantHolders,
    WithdrawSegment,
    command_to_json,
    result_from_json,
)
from las.core.state import JOINING_LEVEL, ClusterState, ShardEntry
from peerd.core.ids import NO_EPOCH, Epoch, Offset, ShardId
from peerd.core.shard_map import Segment, Shard, joined
from tests.las_core.builders import SHARD, name, plan_of, process, register, replica, with_log

peers = st.integers(1, 5)
shards = st.sampled_from([SHARD, ShardId(2), ShardId(3)])
near = st.integers(-1, 2)
"""How far an epoch or offset lies from the right one; mostly right, sometimes not."""


@st.composite
def voters(draw: st.DrawFn) -> tuple[int, ...]:
    return tuple(draw(st.lists(peers, min_size=2, max_size=4, unique=True)))


def told_of(sealed: Sequence[Segment]) -> list[tuple[object, ...]]:
    """What is asked for of sealed segments; of a tail only what is no more known for good."""
    return [(e.epoch, e.begin, e.end, e.holders, e.wanted_holders) for e in sealed]


class RandomCommands(RuleBasedStateMachine):
    """Two LAS nodes apply the same commands; one of them restarts from snapshots now and then.

    A third is of a group in which no entries are shared: it tells the same of each segment.
    """

    @initialize()
    def start(self) -> None:
        self.cluster = Cluster("cluster-1")
        self.cluster.restore(snapshot.snapshot(with_log(rows=((0, 1, 2), (1, 2, 3)))))
        self.plain = Cluster("cluster-1")
        self.plain.restore(self.cluster.freeze()())
        self.cluster.apply(command_to_json(RaiseCommandLevel(level=JOINING_LEVEL)))
        self.other = Cluster("cluster-1")
        self.other.restore(self.cluster.freeze()())
        self.boots = dict.fromkeys(range(1, 6), 1)
        self.highest: dict[ShardId, Epoch] = {}
        self.version = self.state.version

    @property
    def state(self) -> ClusterState:
        return self.cluster.state

    def entry(self, shard: ShardId) -> ShardEntry:
        return self.state.shards.get(shard) or self.state.shards[SHARD]

    def shard(self, shard: ShardId) -> Shard:
        return self.entry(shard).shard

    def plan(self, numbers: tuple[int, ...]):
        plan = plan_of(numbers[0], *numbers)
        return type(plan)(
            primary=process(numbers[0], self.boots[numbers[0]]),
            voters=plan.voters,
            acks=plan.acks,
        )

    def submit(self, command: Command) -> Result:
        before = self.state
        text = command_to_json(command)
        answer = self.cluster.apply(text)
        assert self.other.apply(text) == answer
        assert self.plain.apply(text) == answer
        result = result_from_json(answer)
        if not result.ok:
            assert self.state is before
        drew = isinstance(command, PrepareSegment | PrepareSplit | FenceSegment) and result.ok
        if drew and self.state is not before:
            drawn = before.shards[command.shard].drawn
            assert result.epoch == drawn + 1, "an epoch is drawn once, above all before"
        return result

    @rule(shard=shards, numbers=voters(), off=near)
    def prepare(self, shard, numbers, off):
        epoch = Epoch(self.shard(shard).open.epoch + max(0, off - 1))
        self.submit(PrepareSegment(shard=shard, epoch=epoch, plan=self.plan(numbers)))

    @rule(shard=shards, numbers=voters(), off=near, key_hash=st.integers(0, 1 << 63))
    def prepare_split(self, shard, numbers, off, key_hash):
        seen = self.shard(shard)
        epoch = Epoch(seen.open.epoch + max(0, off - 1))
        at = seen.key_hash_low + key_hash
        plan = self.plan(numbers)
        self.submit(PrepareSplit(shard=seen.shard, epoch=epoch, key_hash=at, plan=plan))

    @rule(shard=shards, off=near, length=st.integers(-1, 4))
    def opened(self, shard, off, length):
        seen = self.shard(shard)
        prepared = seen.open.epoch if seen.prepared is None else seen.prepared.epoch
        self.submit(
            SegmentOpened(
                shard=shard,
                epoch=Epoch(prepared + max(0, off - 1)),
                begin=Offset((seen.open.begin or 0) + length),
                holders=seen.open.plan.voters[:1],
            )
        )

    @rule(shard=shards, number=peers)
    def withdraw(self, shard, number):
        seen = self.shard(shard)
        by = seen.open.plan.primary if number < 4 else process(number, self.boots[number])
        epoch = seen.open.epoch if seen.prepared is None else seen.prepared.epoch
        self.submit(WithdrawSegment(shard=shard, epoch=epoch, declined_by=by))

    @rule(shard=shards, blind=st.booleans())
    def fence(self, shard, blind):
        seen = self.shard(shard)
        prepared = NO_EPOCH if blind or seen.prepared is None else seen.prepared.epoch
        self.submit(FenceSegment(shard=shard, epoch=seen.open.epoch, prepared=prepared))

    @rule(shard=shards, numbers=voters(), lengths=st.tuples(near, near), recover=st.booleans())
    def open(self, shard, numbers, lengths, recover):
        seen = self.shard(shard)
        begin = seen.open.begin or 0
        ends = begin + lengths[0], begin + lengths[0] + lengths[1]
        segments = [
            RecoveredSegment(end=Offset(end), known_commit=Offset(max(begin, end)), holders=())
            for end in ends
        ]
        self.submit(
            OpenSegment(
                shard=shard,
                fence=seen.fence,
                plan=self.plan(numbers),
                ended=segments[0],
                ended_prepared=segments[1] if recover else None,
            )
        )

    @rule(shard=shards, number=peers, kind=st.sampled_from([AddHolder, DropHolder, WantHolders]))
    def holders(self, shard, number, kind):
        sealed = self.shard(shard).sealed
        if not sealed:
            return
        segment = sealed[number % len(sealed)]
        if kind is WantHolders:
            wanted = (replica(number),)
            self.submit(WantHolders(shard=shard, epoch=segment.epoch, holders=wanted))
        else:
            self.submit(kind(shard=shard, epoch=segment.epoch, holder=replica(number)))

    @rule(number=peers)
    def restart(self, number):
        self.boots[number] += 1
        assert self.submit(register(number, boot=self.boots[number])).ok

    @rule(number=peers, flag=st.booleans())
    def judge(self, number, flag):
        assert self.submit(SetAtRisk(node=name(number), at_risk=flag)).ok

    @rule()
    def restore_the_other(self):
        restarted = Cluster("cluster-1")
        restarted.restore(self.other.freeze()())
        self.other = restarted

    @invariant()
    def one_map(self):
        """G7: one open segment; segments tile [0, end) without gap or overlap; epochs only grow."""
        for shard, entry in self.state.shards.items():
            at, epoch = 0, 0
            for segment in entry.shard.sealed:
                assert segment.begin == at
                assert segment.end > at
                assert segment.epoch > epoch
                assert segment.begin <= segment.known_commit <= segment.end
                assert not set(segment.holders) & set(segment.wanted_holders)
                at, epoch = segment.end, segment.epoch
            assert entry.shard.open.begin == at
            assert epoch < entry.shard.open.epoch <= entry.drawn
            for other in (entry.shard.prepared, entry.shard.fence or None):
                if other is not None:
                    drawn = other if isinstance(other, int) else other.epoch
                    assert entry.shard.open.epoch < drawn <= entry.drawn
            assert entry.drawn >= self.highest.get(shard, 0)
            self.highest[shard] = entry.drawn

    @invariant()
    def shared_entries_say_the_same(self):
        for shard, entry in self.state.shards.items():
            plain = self.plain.state.shards[shard]
            told = [told_of(entry.shard.sealed) for entry in (entry, plain)]
            assert told[0] == told[1]
            assert replace(entry, shard=replace(entry.shard, sealed=plain.shard.sealed)) == plain
            assert joined(entry.shard.sealed) is entry.shard.sealed

    @invariant()
    def equal_everywhere(self):
        assert self.state == self.other.state
        assert self.state.version >= self.version
        self.version = self.state.version


RandomCommands.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestRandomCommands = RandomCommands.TestCase


def test_a_command_never_raises_for_what_it_says():
    """The extremes that JSON lets through: results, never exceptions."""
    state = with_log()
    huge, low = 1 << 70, -(1 << 70)
    for number in (low, -1, 0, 1, huge):
        for command in (
            FenceSegment(shard=ShardId(number), epoch=Epoch(number)),
            SegmentOpened(shard=SHARD, epoch=Epoch(1), begin=Offset(number), holders=()),
            WantHolders(shard=SHARD, epoch=Epoch(number), holders=()),
            register(7, stored=((ShardId(number), Epoch(number)),)),
        ):
            apply(state, command)

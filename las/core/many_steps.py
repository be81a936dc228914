"""Steps of planned changes of many shards in one command: prepare, begun, declined, copies.

A node that dies or comes to be at risk makes hundreds of planned changes due, and each has three or
four of these steps. `StepShards` is as many of them as there are waiting, each by itself, with a
result of its own.

Why it is the same as one command after another: as in `las.core.many_shards`. Each step is of
another shard; it reads the nodes, the logs and the entry of its shard as they were before the
command (the functions of `las.core.segments` and `las.core.holders` that give a `NextEntry`), and
replaces that entry alone. So their order is of no matter, one that is refused leaves the others
alone, and repeated a step is answered as the plain command repeated.

The exception is the step that commits a split, since its children draw ids and change their log: it
is refused here, with the advice to give it by itself. The leader does not join it.
"""

from collections.abc import Iterable, Iterator, Sequence

from las.core import holders, segments
from las.core.commands import (
    AddHolder,
    DropHolder,
    PrepareSegment,
    Reason,
    SegmentOpened,
    WantHolders,
    WithdrawSegment,
)
from las.core.many_shards import all_changed
from las.core.rows import (
    CHANGES_BYTES_MAX,
    CHANGES_MAX,
    BegunRow,
    Names,
    PlaceRow,
    PrepareRow,
    StepShards,
    Tables,
    WantRow,
)
from las.core.segments import Applied, NextEntry, refuse
from las.core.state import ClusterState
from peerd.core.check import InvariantViolation
from peerd.core.ids import ShardId
from peerd.core.shard_map import Plan

ShardStep = PrepareSegment | SegmentOpened | WithdrawSegment | WantHolders | AddHolder | DropHolder

# The order of their rows in a command, and so of their results.
_KINDS = (PrepareSegment, SegmentOpened, WithdrawSegment, WantHolders, AddHolder, DropHolder)


def step_shards(state: ClusterState, command: StepShards) -> Applied:
    """Take a step of many planned changes.

    | `StepShards(steps)` | the steps are `PrepareSegment`, `SegmentOpened` but for splits,
    `WithdrawSegment`, `WantHolders`, `AddHolder` and `DropHolder`, each of another shard | each as
    by itself: made if it finds what it expects, and with a result of its own |
    """
    try:
        steps = steps_of(command)
    except InvariantViolation as error:
        return refuse(state, Reason.INVALID_ARGUMENT, f"no step of shards: {error}")
    if len({each.shard for each in steps}) != len(steps) or len(steps) > CHANGES_MAX:
        text = f"at most {CHANGES_MAX} steps, each of another shard"
        return refuse(state, Reason.INVALID_ARGUMENT, text)
    return all_changed(state, (_stepped(state, step) for step in steps))


def _stepped(state: ClusterState, step: ShardStep) -> NextEntry:
    if isinstance(step, PrepareSegment):
        return segments.made_ready(state, step)
    if isinstance(step, WithdrawSegment):
        return segments.withdrawn(state, step)
    if isinstance(step, WantHolders):
        return holders.wanted(state, step)
    if isinstance(step, AddHolder):
        return holders.added(state, step)
    if isinstance(step, DropHolder):
        return holders.dropped(state, step)
    entry, result = segments.begun(state, step)
    if entry is not None and segments.is_splitting(state, entry):
        return refuse(None, Reason.STATE_CHANGED, "this step is a split: give it by itself")
    return entry, result


def may_join(state: ClusterState, step: ShardStep) -> bool:
    """Whether `step` may be one of many: not if it commits a split."""
    if not isinstance(step, SegmentOpened):
        return True
    entry = state.shards.get(step.shard)
    return entry is None or entry.shard.split is None or entry.shard.is_split


# ---------------------------------------------------------------------------------- to rows
class _Joiner(Tables):
    """Rows as they grow, with their tables."""

    def __init__(self) -> None:
        super().__init__()
        self._prepared: list[PrepareRow] = []
        self._begun: list[BegunRow] = []
        self._withdrawn: list[PlaceRow] = []
        self._wanted: list[WantRow] = []
        self._added: list[PlaceRow] = []
        self._dropped: list[PlaceRow] = []

    def add(self, step: ShardStep) -> None:
        """One more row."""
        if isinstance(step, PrepareSegment):
            self._prepare(step)
        elif isinstance(step, SegmentOpened):
            self.row(step.shard, step.epoch, step.begin)
            self._begun.append((step.shard, step.epoch, step.begin, self.places(step.holders)))
        elif isinstance(step, WithdrawSegment):
            process = self.process(step.declined_by)
            self.row(step.shard, step.epoch, process)
            self._withdrawn.append((step.shard, step.epoch, process))
        elif isinstance(step, WantHolders):
            self.row(step.shard, step.epoch)
            self._wanted.append((step.shard, step.epoch, self.places(step.holders)))
        else:
            self.row(step.shard, step.epoch)
            (store,) = self.places((step.holder,))
            rows = self._added if isinstance(step, AddHolder) else self._dropped
            rows.append((step.shard, step.epoch, store))

    def _prepare(self, step: PrepareSegment) -> None:
        plan = step.plan
        why, primary = self.why(step.why), self.process(plan.primary)
        self.row(step.shard, step.epoch, why, primary, plan.acks)
        voters, non_voters = self.places(plan.voters), self.places(plan.non_voters)
        row = (step.shard, step.epoch, why, primary, voters, non_voters, plan.acks)
        self._prepared.append(row)

    def command(self) -> StepShards:
        """What was added, as one command."""
        return StepShards(
            whys=self.whys,
            stores=self.stores,
            processes=self.processes,
            prepared=tuple(self._prepared),
            begun=tuple(self._begun),
            withdrawn=tuple(self._withdrawn),
            wanted=tuple(self._wanted),
            added=tuple(self._added),
            dropped=tuple(self._dropped),
        )


def joined_steps(steps: Iterable[ShardStep]) -> tuple[StepShards, list[int]]:
    """One command for the first of `steps`, as many as it has room for; and which of them these
    are, by number, in the order of its results.

    Of one shard only the first is taken: the next one may be about what that one makes.
    """
    joiner = _Joiner()
    taken: list[tuple[int, int]] = []
    shards: set[ShardId] = set()
    for number, step in enumerate(steps):
        if step.shard in shards:
            continue
        shards.add(step.shard)
        joiner.add(step)
        taken.append((_KINDS.index(type(step)), number))
        if len(taken) >= CHANGES_MAX or joiner.bytes > CHANGES_BYTES_MAX:
            break
    return joiner.command(), [number for _, number in sorted(taken)]


# ---------------------------------------------------------------------------------- from rows
def steps_of(command: StepShards) -> Sequence[ShardStep]:
    """The steps, in the order of the results.

    Raises:
        InvariantViolation: a row is none.
    """
    return list(_steps(command, Names(command)))


def _steps(command: StepShards, names: Names) -> Iterator[ShardStep]:
    for shard, epoch, why, primary, voters, non_voters, acks in command.prepared:
        plan = Plan(
            primary=names.process(primary),
            voters=names.stores(voters),
            non_voters=names.stores(non_voters),
            acks=acks,
        )
        yield PrepareSegment(shard=shard, epoch=epoch, plan=plan, why=names.why(why))
    for shard, epoch, begin, stores in command.begun:
        yield SegmentOpened(shard=shard, epoch=epoch, begin=begin, holders=names.stores(stores))
    for shard, epoch, process in command.withdrawn:
        yield WithdrawSegment(shard=shard, epoch=epoch, declined_by=names.process(process))
    for shard, epoch, stores in command.wanted:
        yield WantHolders(shard=shard, epoch=epoch, holders=names.stores(stores))
    for shard, epoch, store in command.added:
        (holder,) = names.stores((store,))
        yield AddHolder(shard=shard, epoch=epoch, holder=holder)
    for shard, epoch, store in command.dropped:
        (holder,) = names.stores((store,))
        yield DropHolder(shard=shard, epoch=epoch, holder=holder)

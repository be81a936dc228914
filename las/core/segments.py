"""The commands that change a shard's chain of segments (docs/protocol.md §4).

Correctness rests on four guards that every command below shares:

1. *Expectation.* Each names the epochs that its author saw. Of two racing plans one loses.
2. *Epochs are drawn here* and only here, one above `drawn`: an epoch names one plan for ever.
3. *A fence is final.* While one stands nothing but its own `OpenSegment` changes the chain, and it
   is never taken back.
4. *A prepared segment may already be acknowledging.* It ends by `SegmentOpened`, by the decline of
   the primary before it, or by a fence that asked its voters, and in no other way.

A halted shard (§4.4) is changed by nothing.

`fenced`, `reopened`, `made_ready`, `begun` and `withdrawn` say what becomes of one shard and touch
nothing else, so one command may do it for many (`las.core.many_shards`, `las.core.many_steps`).
Who holds the sealed ones is changed in `las.core.holders`.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from las.core import split
from las.core.commands import (
    FenceSegment,
    HaltShard,
    OpenSegment,
    PrepareSegment,
    PrepareSplit,
    Reason,
    RecoveredSegment,
    RecoverWithGap,
    Result,
    SegmentOpened,
    WithdrawSegment,
)
from las.core.state import (
    CLOSED_SEGMENTS_LEVEL,
    DEAD_EPOCHS_MAX,
    GAP_OFFSETS_MIN,
    GAPS_MAX,
    SEALED_EPOCHS_MAX,
    SEALED_SEGMENTS_MAX,
    ClusterState,
    NodeState,
    ShardEntry,
)
from peerd.core.ids import NO_EPOCH, Epoch, Offset, ReplicaId, ShardId
from peerd.core.shard_map import (
    Gap,
    Plan,
    Segment,
    Shard,
    Split,
    chain_of,
    entries_of,
)

Applied = tuple[ClusterState, Result]
NextEntry = tuple[ShardEntry | None, Result]
"""The shard's next entry, or None if it stays as it is; and the outcome."""

Kept = TypeVar("Kept", ClusterState, None)


def refuse(kept: Kept, reason: Reason, text: str, epoch: Epoch = NO_EPOCH) -> tuple[Kept, Result]:
    """What is unchanged, and why."""
    return kept, Result(ok=False, reason=reason, text=text, epoch=epoch)


def kept_as_it_is(kept: Kept, text: str, epoch: Epoch) -> tuple[Kept, Result]:
    """Unchanged because it is already what the command wants."""
    return kept, Result(ok=True, text=text, epoch=epoch)


def _put(state: ClusterState, entry: ShardEntry, text: str, epoch: Epoch) -> Applied:
    return state.changed(shards=(entry,)), Result(ok=True, text=text, epoch=epoch)


def applied(state: ClusterState, change: NextEntry) -> Applied:
    """`state` with the shard's next entry, if there is one."""
    entry, result = change
    return state if entry is None else state.changed(shards=(entry,)), result


# ---------------------------------------------------------------------------------- planned
def prepare_segment(state: ClusterState, command: PrepareSegment) -> Applied:
    """Prepare the segment after the open one.

    | `PrepareSegment(e → e′, plan)` | open is e, nothing prepared, no fence | draws e′; prepared is
    e′. |

    The plan is closed if the shard is split (§4.3).
    """
    return applied(state, made_ready(state, command))


def made_ready(state: ClusterState, command: PrepareSegment) -> NextEntry:
    """What `PrepareSegment` makes of its shard; it also reads the nodes and the log."""
    entry = state.shards.get(command.shard)
    if entry is None:
        return unknown_shard(None, command.shard)
    plan = split.closed_as(entry.shard, command.plan)
    return _prepare(state, entry, command, plan, entry.shard.split)


def prepare_split(state: ClusterState, command: PrepareSplit) -> Applied:
    """Prepare the closed segment by which the shard ends (§4.3).

    | `PrepareSplit(e → s, key hash, plan)` | open is e, nothing prepared, no fence; the shard is
    not split already; low < key hash ≤ high; there is room for another shard | draws s; prepared
    is s, closed; the split at that hash is pending. |
    """
    entry = state.shards.get(command.shard)
    if entry is None:
        return unknown_shard(state, command.shard)
    if wrong := split.split_error(entry.shard, command.key_hash):
        return refuse(state, Reason.INVALID_ARGUMENT, wrong)
    if wrong := split.room_error(state, entry.shard):
        return refuse(state, Reason.LIMIT_REACHED, wrong)
    plan = replace(command.plan, closed=True)
    pending = Split(key_hash=command.key_hash)
    return applied(state, _prepare(state, entry, command, plan, pending))


def _prepare(
    state: ClusterState,
    entry: ShardEntry,
    command: PrepareSegment | PrepareSplit,
    plan: Plan,
    pending: Split | None,
) -> NextEntry:
    shard = entry.shard
    if (refused := unless_free(None, entry)) is not None:
        return refused
    if shard.open.epoch != command.epoch:
        return _changed(None, f"open is {shard.open.epoch}, not {command.epoch}", shard.open.epoch)
    if shard.prepared is not None:
        epoch = shard.prepared.epoch
        return _changed(None, f"{epoch} is prepared already", epoch)
    entries, epochs = len(entries_of(shard.sealed)), len(shard.sealed)
    if entries >= SEALED_SEGMENTS_MAX or epochs >= SEALED_EPOCHS_MAX:
        text = f"shard {shard.shard} has {epochs} sealed segments in {entries} entries, the bound"
        return refuse(None, Reason.LIMIT_REACHED, text)
    if wrong := plan_error(state, shard.log, plan):
        return refuse(None, Reason.INVALID_ARGUMENT, wrong)
    drawn = Epoch(entry.drawn + 1)
    prepared = Segment(epoch=drawn, plan=plan)
    after = replace(entry, shard=replace(shard, prepared=prepared, split=pending), drawn=drawn)
    return after, Result(ok=True, text=f"prepared {drawn}: {command.why}", epoch=drawn)


def segment_opened(state: ClusterState, command: SegmentOpened) -> Applied:
    """The prepared segment began.

    | `SegmentOpened(e′, X, holders)` | prepared is e′, no fence | e sealed at X; open is e′;
    nothing prepared. |

    Everything below X was committed when P stopped (§4.1), so the sealed segment has no kept tail.
    With a pending split this is the split: both children are opened by the same command (§4.3).
    """
    entry, result = begun(state, command)
    if entry is None or not is_splitting(state, entry):
        return applied(state, (entry, result))
    becomes = entry.shard.split
    result = Result(
        ok=True,
        text=f"split at {command.begin}",
        epoch=command.epoch,
        shards=() if becomes is None else becomes.children,
    )
    return split.committed(state, entry), result


def is_splitting(state: ClusterState, entry: ShardEntry) -> bool:
    """Whether `entry`, the next one of its shard, commits a split: then children come with it."""
    return entry.shard.is_split and not state.shards[entry.shard.shard].shard.is_split


def begun(state: ClusterState, command: SegmentOpened) -> NextEntry:
    """What `SegmentOpened` makes of its shard; only of a split it reads more of `state`."""
    entry = state.shards.get(command.shard)
    if entry is None:
        return unknown_shard(None, command.shard)
    shard = entry.shard
    if shard.open.epoch == command.epoch and shard.open.begin == command.begin:
        return kept_as_it_is(None, "opened already", command.epoch)
    if (refused := unless_free(None, entry)) is not None:
        return refused
    if shard.prepared is None or shard.prepared.epoch != command.epoch:
        return _changed(None, f"{command.epoch} is not prepared", shard.open.epoch)
    ended = RecoveredSegment(end=command.begin, known_commit=command.begin, holders=command.holders)
    if wrong := _ending_error(shard, shard.open, shard.open.begin or Offset(0), ended):
        return refuse(None, Reason.INVALID_ARGUMENT, wrong)
    chain = _Chain(shard)
    chain.seal(shard.open, ended)
    becomes = split.at(state, shard, command.begin)
    opened = chain.open(command.epoch, shard.prepared.plan, command.begin, becomes)
    result = Result(ok=True, text=f"opened at {command.begin}", epoch=command.epoch)
    return replace(entry, shard=opened), result


def withdraw_segment(state: ClusterState, command: WithdrawSegment) -> Applied:
    """The primary of the open segment will never switch to the prepared one.

    | `WithdrawSegment(e′)` | prepared is e′, no fence, and the primary process of e has declined e′
    | nothing prepared; e′ is dead. |
    """
    return applied(state, withdrawn(state, command))


def withdrawn(state: ClusterState, command: WithdrawSegment) -> NextEntry:
    """What `WithdrawSegment` makes of its shard; it reads nothing else of `state`."""
    entry = state.shards.get(command.shard)
    if entry is None:
        return unknown_shard(None, command.shard)
    shard = entry.shard
    if shard.prepared is None and command.epoch in shard.dead_epochs:
        return kept_as_it_is(None, "withdrawn already", command.epoch)
    if (refused := unless_free(None, entry)) is not None:
        return refused
    if shard.prepared is None or shard.prepared.epoch != command.epoch:
        return _changed(None, f"{command.epoch} is not prepared", shard.open.epoch)
    if shard.open.plan.primary != command.declined_by:
        text = f"{command.declined_by.peer} is not the primary process of {shard.open.epoch}"
        return refuse(None, Reason.STALE_BOOT, text, shard.open.epoch)
    dead = _with_dead(shard.dead_epochs, command.epoch)
    after = replace(shard, prepared=None, dead_epochs=dead, split=split.undone(shard))
    return replace(entry, shard=after), Result(ok=True, text="withdrawn", epoch=command.epoch)


# ---------------------------------------------------------------------------------- unplanned
def fence_segment(state: ClusterState, command: FenceSegment) -> Applied:
    """Draw a fence over the open and the prepared segment.

    | `FenceSegment(e, e′)` | open is e, prepared is e′ (or nothing) | draws f; fence is f. A new
    LAS leader goes on with the same f. |
    """
    return applied(state, fenced(state, command))


def fenced(state: ClusterState, command: FenceSegment) -> NextEntry:
    """What `FenceSegment` makes of its shard; it reads nothing else of `state`."""
    entry = state.shards.get(command.shard)
    if entry is None:
        return unknown_shard(None, command.shard)
    shard = entry.shard
    if entry.halted:
        return refused_halted(None, entry)
    if shard.open.epoch != command.epoch or _prepared_epoch(shard) != command.prepared:
        seen = f"open {shard.open.epoch}, prepared {_prepared_epoch(shard)}"
        return _changed(None, f"the shard is not as it was seen: {seen}", shard.open.epoch)
    if shard.fence != NO_EPOCH:
        return kept_as_it_is(None, "this fence stands already; finish it", shard.fence)
    drawn = Epoch(entry.drawn + 1)
    after = replace(entry, shard=replace(shard, fence=drawn), drawn=drawn)
    return after, Result(ok=True, text=f"fenced with {drawn}: {command.why}", epoch=drawn)


def open_segment(state: ClusterState, command: OpenSegment) -> Applied:
    """Finish a fence.

    | `OpenSegment(f, plan, ends, holders)` | fence is f | e sealed at X, and e′ at [X, Y) if it was
    recovered, else dead; open is f from there; no fence, nothing prepared. |

    A pending split is undone; the plan is closed if the shard is split (§4.3). If a person gave up
    what lost commits may have opened, f is open behind a gap (§4.6).
    """
    return applied(state, reopened(state, command))


def reopened(state: ClusterState, command: OpenSegment) -> NextEntry:
    """What `OpenSegment` makes of its shard; it also reads the nodes and the log."""
    entry = state.shards.get(command.shard)
    if entry is None or not entry.gap_why or entry.shard.is_split:
        return _finish_fence(state, command, None)
    end = (command.ended_prepared or command.ended).end
    resume_at = Offset(end + GAP_OFFSETS_MIN)
    return _finish_fence(state, command, _gap(entry.shard, end, resume_at, entry.gap_why))


def recover_with_gap(state: ClusterState, command: RecoverWithGap) -> Applied:
    """Finish a fence with too few answers, by a person's word (§4.2, G10).

    | `RecoverWithGap(f, plan, ends, resume, given up, why)` | fence is f; the shard is not split;
    the given up are voters of e or e′, none of them is up, and without them too few are left to
    answer; resume is 2^40 beyond the end at least | as `OpenSegment`, but f is open from resume,
    and [end, resume) is a gap of e and e′. |
    """
    entry = state.shards.get(command.shard)
    if entry is None:
        return unknown_shard(state, command.shard)
    shard = entry.shard
    if shard.open.epoch == command.fence:
        return kept_as_it_is(state, "opened already", command.fence)
    end = (command.ended_prepared or command.ended).end
    if wrong := _gap_error(state, shard, command, end):
        return refuse(state, Reason.INVALID_ARGUMENT, wrong, command.fence)
    if len(shard.gaps) >= GAPS_MAX:
        return refuse(state, Reason.LIMIT_REACHED, f"the shard has {GAPS_MAX} gaps, the bound")
    gap = _gap(shard, end, command.resume_at, command.why)
    return applied(state, _finish_fence(state, command, gap))


def _gap(shard: Shard, begin: Offset, end: Offset, why: str) -> Gap:
    lost = [shard.open.epoch, *([shard.prepared.epoch] if shard.prepared is not None else [])]
    return Gap(begin=begin, end=end, epochs=tuple(lost), why=why)


def _gap_error(state: ClusterState, shard: Shard, command: RecoverWithGap, end: Offset) -> str:
    """Why nothing may be given up for lost like this; empty if it may."""
    if shard.is_split:
        return "a shard that is split holds no batch that could be lost"
    if command.resume_at < end + GAP_OFFSETS_MIN:
        return f"it would go on at {command.resume_at}, less than 2^40 beyond its end {end}"
    if not command.why.strip() or "\n" in command.why:
        return "readers need one line that says why the range is lost"
    plans = [shard.open.plan, *([shard.prepared.plan] if shard.prepared is not None else [])]
    given_up = set(command.given_up)
    for replica in command.given_up:
        if not any(replica in plan.voters for plan in plans):
            return f"{replica.peer} is no voter of what is fenced"
        node = state.nodes.get(replica.peer)
        if node is not None and node.replica == replica and node.state is NodeState.UP:
            return f"{replica.peer} is up and may have the records: wait for its answer"
    if not any(len(given_up.intersection(plan.voters)) >= plan.acks for plan in plans):
        return "enough voters are left: nothing acknowledged can be lost, so no gap is needed"
    return ""


def _finish_fence(
    state: ClusterState, command: OpenSegment | RecoverWithGap, gap: Gap | None
) -> NextEntry:
    entry = state.shards.get(command.shard)
    if entry is None:
        return unknown_shard(None, command.shard)
    shard = entry.shard
    if entry.halted:
        return refused_halted(None, entry)
    if shard.open.epoch == command.fence:
        return kept_as_it_is(None, "opened already", command.fence)
    if shard.fence == NO_EPOCH or shard.fence != command.fence:
        return _changed(None, f"fence is {shard.fence}, not {command.fence}", shard.open.epoch)
    plan = split.closed_as(shard, command.plan)
    wrong = plan_error(state, shard.log, plan)
    begin = shard.open.begin or Offset(0)
    wrong = wrong or _ending_error(shard, shard.open, begin, command.ended)
    if command.ended_prepared is not None:
        if shard.prepared is None:
            wrong = wrong or "nothing is prepared that could have been recovered"
        else:
            begin = command.ended.end
            wrong = wrong or _ending_error(shard, shard.prepared, begin, command.ended_prepared)
    if wrong:
        return refuse(None, Reason.INVALID_ARGUMENT, wrong, command.fence)
    chain = _Chain(shard)
    chain.seal(shard.open, command.ended)
    if shard.prepared is not None and command.ended_prepared is not None:
        chain.seal(replace(shard.prepared, begin=command.ended.end), command.ended_prepared)
    elif shard.prepared is not None:
        chain.bury(shard.prepared.epoch)
    begin = (command.ended_prepared or command.ended).end
    if gap is not None:
        begin = chain.lose(gap)
    opened = chain.open(command.fence, plan, begin, split.undone(shard))
    result = Result(ok=True, text=f"opened at {begin}", epoch=command.fence)
    return replace(entry, shard=opened, gap_why=""), result


# ---------------------------------------------------------------------------------- a halt
def halt_shard(state: ClusterState, command: HaltShard) -> Applied:
    """Stop changing a shard until a person has looked.

    | `HaltShard(epoch, node)` | the epoch is above all that was drawn, or was skipped (§4.6), or
    answers contradict each other under the standing fence | the LAS changes the shard no more. |

    `command.epoch` is the epoch that was met, `command.fence` the fence whose answers contradict. A
    promise above a fence is no contradiction by itself: a leader that was deposed meets them.
    """
    entry = state.shards.get(command.shard)
    if entry is None:
        return unknown_shard(state, command.shard)
    if entry.halted and not entry.is_held:
        return kept_as_it_is(state, entry.halted, entry.drawn)
    contradicted = command.fence != NO_EPOCH and command.fence == entry.shard.fence
    lost = entry.shows_skipped(command.epoch)
    if command.epoch <= entry.drawn and not (contradicted or lost):
        return _changed(state, f"{command.epoch} was drawn", entry.drawn)
    text = f"{command.node}: {command.why} (epoch {command.epoch}, drawn {entry.drawn})"
    return _put(state, replace(entry, halted=text), "halted", command.epoch)


# ---------------------------------------------------------------------------------- checks
def replica_error(state: ClusterState, replica: ReplicaId) -> str:
    """Why `replica` is no store of the fleet; empty if it is one."""
    node = state.nodes.get(replica.peer)
    if node is None:
        return f"no node is called {replica.peer}"
    if node.store != replica.store:
        return f"{replica.peer} has another store than {replica.store}"
    return ""


def plan_error(state: ClusterState, log: str, plan: Plan) -> str:
    """Why a segment of `log` must not be opened with `plan`; empty if it may.

    Hard rules only: registered stores, the registered process as primary, which may lead, never two
    copies on a host, and the log's `acks`. A primary votes; only one on a node at risk may order
    without a vote (*mirror*), since there its copy is the one that is about to be lost. The closed
    segment of a split is led by a voter, and with it the first child.
    """
    hosts: dict[str, ReplicaId] = {}
    for replica in plan.replicas:
        if wrong := replica_error(state, replica):
            return wrong
        host = state.nodes[replica.peer].host
        if host in hosts:
            return f"{hosts[host].peer} and {replica.peer} are both on host {host}"
        hosts[host] = replica
    primary = state.nodes[plan.primary.peer]
    if primary.process != plan.primary:
        return f"{plan.primary.peer} has restarted: its process is {primary.boot}"
    if not primary.may_lead:
        return f"{primary.name} stores copies only and is never primary"
    if plan.closed and primary.feature_level < CLOSED_SEGMENTS_LEVEL:
        return f"{primary.name} runs a version that does not know splits: upgrade it first"
    if plan.primary.replica not in plan.voters and plan.closed:
        return f"{primary.name} leads without a vote, and only a voter closes a shard: switch first"
    if plan.primary.replica not in plan.voters and not primary.at_risk:
        return f"{primary.name} would be primary without a vote, and it is not at risk"
    if plan.acks != state.logs[log].acks:
        return f"log {log} has acks = {state.logs[log].acks}, not {plan.acks}"
    return ""


def _ending_error(shard: Shard, segment: Segment, begin: Offset, ended: RecoveredSegment) -> str:
    """Why `segment`, which begins at `begin`, cannot have ended like that; empty if it can."""
    if ended.end < shard.trimmed_to:
        return f"{segment.epoch} would end at {ended.end}, below the trim at {shard.trimmed_to}"
    if ended.end < begin:
        return f"{segment.epoch} would end at {ended.end}, before its begin {begin}"
    if segment.plan.closed and ended.end != begin:
        return f"{segment.epoch} is closed, and would hold records up to {ended.end}"
    if not begin <= ended.known_commit <= ended.end:
        return f"known commit {ended.known_commit} lies outside [{begin}, {ended.end}]"
    strangers = set(ended.holders) - set(segment.plan.replicas)
    if strangers:
        return f"{min(strangers).peer} is no replica of {segment.epoch}"
    if len(set(ended.holders)) != len(ended.holders):
        return "a holder is named twice"
    return ""


def unless_free(kept: Kept, entry: ShardEntry) -> tuple[Kept, Result] | None:
    """A refusal while the shard is halted or a fence stands, else None."""
    if entry.halted:
        return refused_halted(kept, entry)
    if entry.shard.fence != NO_EPOCH:
        text = f"fence {entry.shard.fence} stands and is finished first"
        return refuse(kept, Reason.FENCED, text, entry.shard.fence)
    return None


def unknown_shard(kept: Kept, shard: ShardId) -> tuple[Kept, Result]:
    """The refusal of a command about a shard that is not there."""
    return refuse(kept, Reason.UNKNOWN_SHARD, f"there is no shard {shard}")


def _changed(kept: Kept, text: str, epoch: Epoch) -> tuple[Kept, Result]:
    return refuse(kept, Reason.STATE_CHANGED, text, epoch)


def refused_halted(kept: Kept, entry: ShardEntry) -> tuple[Kept, Result]:
    """The refusal of a command that would change a halted shard."""
    return refuse(kept, Reason.HALTED, f"shard {entry.shard.shard} is halted: {entry.halted}")


def _prepared_epoch(shard: Shard) -> Epoch:
    return NO_EPOCH if shard.prepared is None else shard.prepared.epoch


# ---------------------------------------------------------------------------------- the chain
class _Chain:
    """Builds a shard's next chain: seal what ends, bury what is dead, open what begins."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._sealed = list(entries_of(shard.sealed))
        self._dead = shard.dead_epochs
        self._gaps = shard.gaps

    def lose(self, gap: Gap) -> Offset:
        """Put `gap` behind what was sealed; the offset at which the shard goes on."""
        self._gaps = (*self._gaps, gap)
        return gap.end

    def seal(self, segment: Segment, ended: RecoveredSegment) -> None:
        """End `segment`. One without records is left out of the chain, and its epoch is dead."""
        if ended.end == segment.begin:
            self.bury(segment.epoch)
            return
        self._sealed.append(
            replace(
                segment,
                end=ended.end,
                known_commit=max(ended.known_commit, min(self._shard.trimmed_to, ended.end)),
                holders=tuple(sorted(ended.holders)),
            )
        )

    def bury(self, epoch: Epoch) -> None:
        """`epoch` holds nothing acknowledged and never will."""
        self._dead = _with_dead(self._dead, epoch)

    def open(self, epoch: Epoch, plan: Plan, begin: Offset, becomes: Split | None) -> Shard:
        """The shard with `epoch` open from `begin`, nothing prepared, no fence, and this split."""
        return replace(
            self._shard,
            sealed=chain_of(self._sealed),
            open=Segment(epoch=epoch, plan=plan, begin=begin),
            prepared=None,
            fence=NO_EPOCH,
            dead_epochs=self._dead,
            split=becomes,
            gaps=self._gaps,
        )


def _with_dead(dead: Iterable[Epoch], epoch: Epoch) -> tuple[Epoch, ...]:
    return (*dead, epoch)[-DEAD_EPOCHS_MAX:]

"""What the LAS may commit: one function per action of the formal model (docs/protocol.md §4).

As in `actions`: the answer is empty, or the broken guard in words. Guards are the model's, which
are weaker than the text's where the text is stricter than it need be: a segment may be prepared
or confirmed here while a fence stands, and fences may race.
"""

from itertools import combinations

from peerd.testing.acceptor.actions import ACCEPTED
from peerd.testing.acceptor.state import (
    NONE,
    Answer,
    EpochState,
    Plan,
    State,
    Status,
    Store,
    Switched,
)


def create(state: State, epoch: int, plan: Plan) -> str:
    """The first segment, at offset 0: nothing came before it (the model's initial state)."""
    if state.open != NONE or state.epochs:
        return "a shard is created once"
    state.epochs[epoch] = EpochState(Status.OPEN, plan, was_open=True)
    state.open = state.drawn = epoch
    return ACCEPTED


def _is_new(state: State, epoch: int) -> bool:
    return epoch > state.drawn


def prepare_segment(state: State, opened: int, prepared: int, plan: Plan) -> str:
    """`PrepareSegment(e → e′)`, or with a closed plan `PrepareSplit`: e′ is drawn and prepared."""
    if state.prepared != NONE:
        return "one segment is prepared at a time"
    if opened != state.open:
        return "a segment is prepared after the open one"
    if state.split is not None and not plan.closed:
        return "what is split stays closed"
    if not _is_new(state, prepared):
        return "an epoch is drawn once, above all before it"
    state.epochs[prepared] = EpochState(
        Status.PREPARED, plan, view_open=opened, view_prepared=prepared
    )
    state.prepared = state.drawn = prepared
    return ACCEPTED


def fence_segment(state: State, fence: int, opened: int, prepared: int) -> str:
    """`FenceSegment(e, e′)`: f is drawn over what is open and prepared."""
    if (opened, prepared) != (state.open, state.prepared):
        return "a fence names what is open and prepared"
    if not _is_new(state, fence):
        return "an epoch is drawn once, above all before it"
    state.epochs[fence] = EpochState(Status.RESERVED, view_open=opened, view_prepared=prepared)
    state.drawn = fence
    return ACCEPTED


def segment_opened(state: State, prepared: int, x: int) -> str:
    """`SegmentOpened(e′, X)`: e ended at X, e′ is open. If it is closed, the shard is split."""
    if prepared == NONE or state.prepared != prepared:
        return "only the prepared segment is confirmed"
    entry = state.epochs[prepared]
    if not entry.begun or entry.begin != x:
        return "a prepared segment is confirmed where it has begun"
    ended = state.epochs[state.open]
    ended.status, ended.end = Status.SEALED, x
    entry.status, entry.was_open = Status.OPEN, True
    state.open, state.prepared = prepared, NONE
    if state.split is None and entry.plan is not None and entry.plan.closed:
        state.split = x
    return ACCEPTED


def withdraw_segment(state: State, prepared: int) -> str:
    """`WithdrawSegment(e′)`: e′ is dead, since the old primary has declined it."""
    if prepared == NONE or state.prepared != prepared:
        return "only the prepared segment is withdrawn"
    entry = state.epochs[prepared]
    if entry.switched is not Switched.DECLINED:
        return "a prepared segment is withdrawn after the old primary has declined it"
    entry.status = Status.DEAD
    state.prepared = NONE
    return ACCEPTED


def list_holder(state: State, epoch: int, name: Store) -> str:
    """A store is named holder of a sealed segment (§8): it has it whole, or had before its loss."""
    entry = state.epochs.get(epoch)
    if entry is None or entry.status is not Status.SEALED:
        return "only a sealed segment has holders"
    return ACCEPTED if state.is_whole(name, epoch) else "a holder has the whole segment"


def open_segment(state: State, fence: int, plan: Plan, x: int, y: int | None) -> str:
    """`OpenSegment(f)`: e ended at X, and e′ at [X, Y), or it is dead (`y` None); f is open.

    Some of the answers that were given must allow it, by the rule of §4.2, step 2.
    """
    entry = state.epochs.get(fence)
    if entry is None or entry.status is not Status.RESERVED:
        return "a fence that stands is finished"
    if (entry.view_open, entry.view_prepared) != (state.open, state.prepared):
        return "nothing was opened or prepared since the fence was drawn"
    if not _is_decided(state, entry, x, y):
        return "the answers to the fence decide where its segments end"
    if plan.closed != (state.split is not None):
        return "a fence opens a closed segment exactly if the shard is split"
    ended = state.epochs[state.open]
    ended.status, ended.end = Status.SEALED, x
    entry.parent = state.open
    if state.prepared != NONE:
        recovered = state.epochs[state.prepared]
        recovered.status = Status.DEAD
        if y is not None:
            recovered.status, recovered.begin, recovered.end = Status.SEALED, x, y
            recovered.parent, entry.parent = state.open, state.prepared
    entry.status, entry.plan, entry.was_open = Status.OPEN, plan, True
    entry.begin = entry.assigned = entry.acknowledged = x if y is None else y
    state.open, state.prepared = fence, NONE
    return ACCEPTED


def _is_decided(state: State, fence: EpochState, x: int, y: int | None) -> bool:
    """Whether some set of the answers leads to this end. Closed segments need none (§4.3)."""
    if state.split is not None:
        return (x, y) == (state.epochs[state.open].begin, None)
    names = list(fence.answers)
    for count in range(len(names), 0, -1):
        for chosen in combinations(names, count):
            if _decision(state, fence, {name: fence.answers[name] for name in chosen}) == (x, y):
                return True
    return False


def _decision(
    state: State, fence: EpochState, answers: dict[Store, Answer]
) -> tuple[int, int | None] | None:
    """(X, Y) by these answers and no others; Y None: e′ is dead, or there is none."""
    first = state.epochs[fence.view_open].plan
    if first is None:
        return None
    following = state.epochs[fence.view_prepared].plan if fence.view_prepared != NONE else None
    begins = [each.next_begin for each in answers.values() if each.adopted_next]
    if following is not None:
        answered = sum(name in following.voters for name in answers)
        if answered < len(following.voters) - following.acks + 1:
            return None
    if following is not None and begins:
        x = begins[-1]
        ends = [
            each.next_end if each.adopted_next else x
            for name, each in answers.items()
            if name in following.voters
        ]
        return x, _cut(ends, following)
    ends = [each.end for name, each in answers.items() if name in first.voters]
    if len(ends) < len(first.voters) - first.acks + 1:
        return None
    return _cut(ends, first), None


def _cut(ends: list[int], plan: Plan) -> int:
    """The (a − (n − k))-th largest of k ends of n voters with `acks` = a."""
    rank = plan.acks - (len(plan.voters) - len(ends))
    return sorted(ends, reverse=True)[rank - 1]

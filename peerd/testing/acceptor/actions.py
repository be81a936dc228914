"""What processes and stores may do: one function per action of the formal model.

Each function takes the state, judges the action and, if every guard holds, takes it. The answer is
empty, or the guard that is broken, in words; then nothing has changed. Guards are those of
spec/replication.cpp in its variant `as-built`: a primary acknowledges later than it could, a
process learns of its store's promise after that is durable and until then may begin, a store writes
what its own process had queued also when that has stopped, news of the map may be old, and a copy
is filled batch by batch.

Must not: know what real code looks like (`projection` does), look at a clock, or guess.
"""

from collections.abc import Hashable

from peerd.testing.acceptor.state import (
    NONE,
    Answer,
    Batch,
    EpochState,
    Process,
    Read,
    State,
    Status,
    Store,
    Switched,
)

ACCEPTED = ""


def _is_primary(state: State, process: Process, epoch: int) -> bool:
    return epoch != NONE and state.roles.get(process) == epoch


# ---------------------------------------------------------------------------------- primaries
def order(state: State, process: Process, epoch: int, batch: Batch) -> str:
    """The primary gives a batch its place (§3, step 3)."""
    if not _is_primary(state, process, epoch):
        return "only the primary of an epoch orders in it"
    entry = state.epochs[epoch]
    if entry.plan is None or entry.plan.closed:
        return "a closed segment takes no batch"
    if batch.base != entry.assigned or batch.end <= batch.base:
        return f"offsets are given without gap: {entry.assigned} is next"
    if state.place_in(epoch, batch.record) is not None:
        return "a record that is in the producer table is not ordered again"
    entry.log[batch.base] = batch
    entry.assigned = batch.end
    state.places[batch.record] = (*state.places.get(batch.record, ()), (epoch, batch.base))
    return ACCEPTED


def acknowledge(state: State, process: Process, epoch: int, base: int, record: Hashable) -> str:
    """The primary's commit offset passes a batch, and it is acknowledged (§3, step 5)."""
    if not _is_primary(state, process, epoch):
        return "only the primary of an epoch acknowledges in it"
    entry = state.epochs[epoch]
    if base != entry.acknowledged:
        return f"batches are acknowledged in order: {entry.acknowledged} is next"
    batch = entry.log.get(base)
    if batch is None or batch.record != record:
        return "a record is acknowledged at the place that it was given"
    if state.committed(epoch) < batch.end:
        return "a batch is durable on acks voters in its epoch before it is acknowledged"
    entry.acknowledged = batch.end
    return ACCEPTED


def answer_retry(state: State, process: Process, epoch: int, base: int, record: Hashable) -> str:
    """A primary gives the first answer again: the record lies at `base` of `epoch` (§3, §4.2)."""
    role = state.roles.get(process, NONE)
    if role == NONE:
        return "only a primary answers a retry"
    if state.place_in(role, record) != (epoch, base):
        return "a retry is answered from the producer table"
    entry = state.epochs[epoch]
    batch = entry.log[base]
    if batch.end <= entry.acknowledged:
        return ACCEPTED
    if epoch == role or entry.status is not Status.SEALED:
        return "a batch that nobody acknowledged is answered from a sealed segment before the own"
    if entry.plan is None or state.copies(epoch, batch) < entry.plan.acks:
        return "a retry of a kept batch is answered once acks stores have it"
    return ACCEPTED


def decline(state: State, process: Process, prepared: int) -> str:
    """The primary will never switch to the prepared epoch (§4.1)."""
    entry = state.epochs.get(prepared)
    if entry is None or not _is_successor(state, process, entry, prepared):
        return "the primary of the open epoch declines what was prepared after it"
    if entry.switched is not Switched.NOT_YET:
        return "who has switched or declined does not decline"
    entry.switched = Switched.DECLINED
    return ACCEPTED


def switch(state: State, process: Process, prepared: int, x: int) -> str:
    """The primary stops for good and sends Begin at its commit offset X (§4.1, step 2)."""
    entry = state.epochs.get(prepared)
    if entry is None or not _is_successor(state, process, entry, prepared):
        return "the primary of the open epoch switches to what was prepared after it"
    if entry.switched is Switched.DECLINED:
        return "what was declined is never switched to"
    if entry.switched is Switched.BEGIN_SENT:
        return "a primary switches once"
    if x != state.epochs[entry.view_open].acknowledged:
        return "X is the commit offset of the primary that stops"
    entry.switched = Switched.BEGIN_SENT
    entry.x = x
    state.roles[process] = NONE
    return ACCEPTED


def repeat_begin(state: State, prepared: int, x: int) -> str:
    """Begin is said again (§4.5): nothing that was sent is ever taken back, or changed."""
    entry = state.epochs.get(prepared)
    if entry is None or entry.switched is not Switched.BEGIN_SENT or entry.x != x:
        return "Begin is repeated as it was sent"
    return ACCEPTED


def _is_successor(state: State, process: Process, entry: EpochState, prepared: int) -> bool:
    """Whether `process` is primary of the epoch after which `prepared` was prepared."""
    if entry.view_prepared != prepared or entry.status not in {Status.PREPARED, Status.DEAD}:
        return False
    return _is_primary(state, process, entry.view_open)


def stop(state: State, process: Process) -> str:
    """A process ceases to be primary; it may at any time."""
    if process not in state.lives:
        return "only a living process stops"
    state.roles[process] = NONE
    return ACCEPTED


def become_primary(state: State, process: Process, epoch: int, begin: int) -> str:
    """A process becomes primary, by Begin or by a committed OpenSegment (§4.2, step 3)."""
    entry = state.epochs.get(epoch)
    if entry is None or entry.plan is None or entry.status is Status.RESERVED:
        return "a process begins an epoch that the map names"
    if entry.plan.primary != process or process not in state.lives:
        return "the plan names the very process that begins"
    if entry.begun:
        return "an epoch begins once"
    if entry.view_prepared == epoch:
        if entry.switched is not Switched.BEGIN_SENT:
            return "a prepared epoch begins after the old primary has stopped"
        expected = entry.x
    else:
        expected = entry.begin
    if begin != expected:
        return f"the epoch begins at {expected}"
    if state.roles.get(process, NONE) >= epoch:
        return "who is primary of a higher epoch does not begin"
    if entry.view_prepared == epoch:
        entry.parent = entry.view_open
    entry.begin = entry.assigned = entry.acknowledged = begin
    entry.begun = True
    state.roles[process] = epoch
    return ACCEPTED


# ---------------------------------------------------------------------------------- reads
def get_tail(state: State, process: Process, epoch: int, read: Hashable) -> str:
    """A linearizable read of the tail comes in at the primary (§7)."""
    if not _is_primary(state, process, epoch):
        return "only the primary reads the tail"
    if read in state.reads:
        return "a read begins once"
    state.reads[read] = Read(process, epoch, state.epochs[epoch].acknowledged)
    return ACCEPTED


def confirm_epoch(state: State, store: Store, read: Hashable) -> str:
    """A voter confirms, after the read came in, that it promised nothing above its epoch."""
    asked = state.reads.get(read)
    if asked is None:
        return "a round that nobody began is not confirmed"
    plan = state.epochs[asked.epoch].plan
    if plan is None or store not in plan.voters:
        return "only voters confirm"
    place = state.store(store)
    if not place.alive:
        return "a lost store says nothing"
    if place.promised > asked.epoch:
        return "who has promised a higher epoch does not confirm"
    asked.confirmed.add(store)
    return ACCEPTED


def answer_tail(state: State, read: Hashable, tail: int) -> str:
    """The primary answers its commit offset: acks voters confirmed, and it is primary still."""
    asked = state.reads.get(read)
    if asked is None:
        return "only a read that was asked is answered"
    if not _is_primary(state, asked.process, asked.epoch):
        return "only who is still primary answers"
    entry = state.epochs[asked.epoch]
    if entry.plan is None or len(asked.confirmed) < entry.plan.acks:
        return "acks voters confirm a read of the tail"
    if not asked.floor <= tail <= entry.acknowledged:
        return "the tail is a commit offset of after the request"
    del state.reads[read]
    return ACCEPTED


def serve(state: State, name: Store, epoch: int, base: int) -> str:
    """A store serves a reader the batch at `base` of `epoch` (§7, G12)."""
    place = state.store(name)
    entry = state.epochs.get(epoch)
    batch = entry.log.get(base) if entry is not None else None
    if entry is None or batch is None or not place.alive or not state.holds(name, epoch, batch):
        return "a store serves what it has"
    if batch.end <= entry.acknowledged:
        return ACCEPTED
    if entry.plan is None or entry.status is not Status.SEALED or batch.end > entry.end:
        return "what lies at or above the commit offset is not served, nor beyond X"
    if state.copies(epoch, batch) < entry.plan.acks:
        return "a kept tail is served once acks stores have it"
    return ACCEPTED


def answer_split(state: State, process: Process, record: Hashable) -> str:
    """The primary of a closed segment says SPLIT of a record: it never will be here (§4.3)."""
    role = state.roles.get(process, NONE)
    plan = state.epochs[role].plan if role != NONE else None
    if plan is None or not plan.closed:
        return "only the primary of a closed segment answers SPLIT"
    if state.split is None or state.open != role:
        return "SPLIT is answered in the open segment, once the map has the split"
    if state.place_in(role, record) is not None:
        return "what is in the producer table is not answered SPLIT"
    return ACCEPTED


# ---------------------------------------------------------------------------------- stores
def adopt(state: State, store: Store, epoch: int, begin: int) -> str:
    """A store begins the empty segment (epoch, begin) and promises the epoch (§3)."""
    entry = state.epochs.get(epoch)
    if entry is None or not entry.begun or entry.plan is None:
        return "an epoch is adopted after its primary has begun"
    if begin != entry.begin:
        return "an epoch begins at one offset"
    if store not in entry.plan.replicas:
        return "only a replica of an epoch adopts it"
    place = state.store(store)
    if not place.alive:
        return "a lost store adopts nothing"
    if epoch <= place.adopted:
        return "an epoch is adopted once, and none below it afterwards"
    if epoch < place.promised:
        return "no epoch below the promise is adopted"
    place.promised = place.adopted = epoch
    place.segments[epoch] = (begin, begin)
    return ACCEPTED


def replicate(state: State, name: Store, epoch: int, batch: Batch) -> str:
    """A store makes a batch durable at its end in its adopted epoch, and may say so (§3)."""
    place = state.store(name)
    if not place.alive:
        return "a lost store keeps nothing"
    if place.adopted != epoch or epoch == NONE:
        return "a batch is stored in the adopted epoch alone"
    if place.promised != epoch:
        return "a batch of an epoch below the promise is not stored"
    first, last = place.segments[epoch]
    if batch.base != last:
        return f"a batch is stored at the end, which is {last}"
    entry = state.epochs[epoch]
    end = batch.end
    if _differs(entry.log.get(batch.base), batch):
        return "a store keeps what the primary of the epoch ordered at that offset"
    place.segments[epoch] = (first, end)
    entry.reported[name] = max(entry.reported.get(name, 0), end)
    return ACCEPTED


def _differs(ordered: Batch | None, told: Batch) -> bool:
    """Whether a copy is not what was ordered there; who sent it shows in the content."""
    if ordered is None or ordered.end != told.end:
        return True
    return ordered.content is not told.content and ordered.content != told.content


def acked(state: State, name: Store, epoch: int, end: int) -> str:
    """A store says that it has all of `epoch` below `end` (part of the model's Replicate)."""
    entry = state.epochs.get(epoch)
    if entry is None or not entry.begun:
        return "nothing is acked of an epoch that has not begun"
    if end > max(entry.begin, entry.reported.get(name, 0)):
        return "what is acked is durable"
    return ACCEPTED


def hear(state: State, epoch: int, commit: int) -> str:
    """A store is told a commit offset of `epoch`: its primary has passed it."""
    if commit > state.epochs[epoch].acknowledged:
        return "a commit offset is told after it was reached"
    return ACCEPTED


def promise(state: State, name: Store, fence: int, opened: int, prepared: int) -> str:
    """A voter promises a fence; what it has of e and e′ is its answer for ever (§4.2, step 1)."""
    entry = state.epochs.get(fence)
    if entry is None or entry.status is Status.PREPARED or entry.view_prepared == fence:
        return "a promise is asked for by a fence"
    if entry.view_open == NONE or (entry.view_open, entry.view_prepared) != (opened, prepared):
        return "a fence asks about what was open and prepared when it was drawn"
    if not any(
        plan is not None and name in plan.voters
        for plan in (state.epochs[each].plan for each in (opened, prepared) if each != NONE)
    ):
        return "only voters of e and e′ are fenced"
    place = state.store(name)
    if not place.alive:
        return "a lost store promises nothing"
    if place.promised >= fence:
        return "who has promised the fence or more does not promise it"
    place.promised = fence
    entry.answers[name] = _answer_now(state, name, opened, prepared)
    return ACCEPTED


def _answer_now(state: State, name: Store, opened: int, prepared: int) -> Answer:
    segments = state.stores[name].segments
    end = max(state.epochs[opened].begin, segments.get(opened, (0, 0))[1])
    if prepared == NONE or prepared not in segments:
        return Answer(end)
    return Answer(end, True, *segments[prepared])


def answer(state: State, name: Store, fence: int, given: Answer) -> str:
    """A store's answer to a fence is sent, for the first time or again. Once the fence is finished
    no guard asks for answers any more, and the map may have cut what the store has.
    """
    entry = state.epochs[fence]
    frozen = entry.answers.get(name)
    if entry.status is Status.RESERVED and frozen != given:
        return f"what a store answers to a fence is frozen: {frozen}"
    return ACCEPTED


def crash(state: State, process: Process) -> str:
    """A process ends; only what is durable stays (§4.4)."""
    if process not in state.lives:
        return "only a living process ends"
    del state.lives[process]
    state.roles.pop(process, None)
    state.reads = {key: read for key, read in state.reads.items() if read.process != process}
    return ACCEPTED


def boot(state: State, process: Process, name: Store) -> str:
    """A process starts on a store and is primary of nothing (§4.4, rule 4)."""
    if not state.store(name).alive:
        return "a lost store never comes back under its identity"
    if process in state.lives:
        return "a process starts once"
    if name in state.lives.values():
        return "two processes never share a store"
    state.lives[process] = name
    state.roles[process] = NONE
    return ACCEPTED


def lose_store(state: State, name: Store) -> str:
    """A data directory is gone, and the process on it with it."""
    place = state.store(name)
    if not place.alive:
        return "a store is lost once"
    place.alive = False
    for process, home in list(state.lives.items()):
        if home == name:
            crash(state, process)
    return ACCEPTED


def learn_open(state: State, name: Store, opened: int) -> str:
    """A store promises an epoch that the committed map shows, or showed, open (§3)."""
    place = state.store(name)
    if not place.alive:
        return "a lost store learns nothing"
    if not _was_open(state, opened):
        return "only what the map showed open is promised by its news"
    place.promised = max(place.promised, opened)
    return ACCEPTED


def drop_tail(state: State, name: Store, epoch: int, end: int) -> str:
    """A store drops what it has of a sealed epoch from its X on, or all of a dead one (§3)."""
    place = state.store(name)
    if not place.alive:
        return "a lost store drops nothing"
    entry = state.epochs.get(epoch)
    if entry is None or entry.status not in {Status.SEALED, Status.DEAD}:
        return "only of a sealed or dead epoch is anything dropped"
    first, last = place.segments.get(epoch, (0, 0))
    expected = max(first, entry.end) if entry.status is Status.SEALED else first
    if end != expected:
        return f"a store keeps what lies below {expected}"
    if last > end:
        place.segments[epoch] = (first, end)
    return ACCEPTED


def fetch(state: State, name: Store, epoch: int, opened: int, batch: Batch) -> str:
    """A store takes the next batch of a sealed segment from a holder, and promises (§3, §8)."""
    place = state.store(name)
    if not place.alive:
        return "a lost store fetches nothing"
    entry = state.epochs.get(epoch)
    if entry is None or entry.status is not Status.SEALED:
        return "only a sealed segment is fetched"
    if opened <= epoch or not _was_open(state, opened):
        return "who fetches promises an epoch that was opened after the segment"
    first, last = place.segments.get(epoch, (entry.begin, entry.begin))
    if batch.base != last or batch.end > entry.end:
        return "a copy is filled from its end up to X"
    if _differs(entry.log.get(batch.base), batch):
        return "a copy has what the primary of the epoch ordered at that offset"
    place.promised = max(place.promised, opened)
    place.segments[epoch] = (first, batch.end)
    return ACCEPTED


def _was_open(state: State, epoch: int) -> bool:
    """Whether the map showed the epoch open: it is, or it is in the chain of what was sealed."""
    entry = state.epochs.get(epoch)
    if entry is None or epoch > state.open:
        return False
    return entry.status in {Status.OPEN, Status.SEALED}

"""What a store keeps of a shard, and the rules of a write (docs/protocol.md §3, §3.1, §4.4).

The rules run **in the storage writer, at the place in the queue where the write happens**: the
writer calls `apply` on each operation in queue order before it writes it, and the simulator's disk
does the same. So what was queued before a promise is inside its answer, and nothing after it is
stored or acknowledged (spec mutant `promise-overtakes-queue`).

Invariants:
- adopted <= promised, and both only grow; neither is ever dropped (`promise-forgotten`).
- Per segment begin <= commit <= end, and end <= seal once the seal X is known. The end shrinks only
  to an X of the committed map; nothing below a known commit offset is ever dropped, but for what
  the map says is lost (a gap) or trimmed.
- Of a shard whose log was deleted there is nothing but a promise above every epoch, for ever.
- What is trimmed is committed and lies in front: batches fill [first, end) and
  begin <= first <= end. The begin stays, since it names where the epoch began.
- The durable producer table is exact as of `table_as_of` and moves only over batches that are
  certainly the log's: those of sealed segments below their seal, and those of the adopted segment
  below the commit offset as heard.

Must not: do IO, look at a clock, or know who is primary.
"""

from dataclasses import field, replace

from peerd.core.batch import PlacedBatch
from peerd.core.check import invariant
from peerd.core.chunks import CHUNK_BYTES, uncut_after
from peerd.core.ids import DELETED_EPOCH, FIRST_OFFSET, NO_EPOCH, Epoch, Offset, ShardId
from peerd.core.producer import TableSnapshot
from peerd.core.value import value


# ------------------------------------------------------------------ state
@value(frozen=True, slots=True, kw_only=True)
class StoredSegment:
    """What a store has of one epoch: batches fill [first, end) without gap; [begin, first) is
    trimmed.

    `seal` is X once the committed map told it. `commit` is the commit offset as last heard, cut to
    `end`: a lower bound, at least `begin`. `trimmed_to` is 0 if nothing is trimmed. `uncut_bytes`
    lie behind the last whole chunk (`peerd.core.chunks`).
    """

    epoch: Epoch
    begin: Offset
    end: Offset
    commit: Offset
    seal: Offset | None = None
    trimmed_to: Offset = FIRST_OFFSET
    uncut_bytes: int = 0

    @property
    def first(self) -> Offset:
        """First offset whose batch is here."""
        return max(self.begin, self.trimmed_to)


@value(frozen=True, slots=True, kw_only=True)
class StoredShard:
    """Durable state of one shard. `promised` and `adopted` only grow and outlive the data.

    `segments` must not be changed by whoever holds the state. `table_as_of`: the durable producer
    table is exact as of this offset; it lags, and stands still before a hole.
    """

    shard: ShardId
    promised: Epoch = NO_EPOCH
    adopted: Epoch = NO_EPOCH
    segments: dict[Epoch, StoredSegment] = field(default_factory=dict)
    table_as_of: Offset = FIRST_OFFSET


@value(frozen=True, slots=True, kw_only=True)
class TableRange:
    """Batches [begin, end) of `epoch`, over which the producer table is to be extended."""

    epoch: Epoch
    begin: Offset
    end: Offset


# ------------------------------------------------------------------ operations
@value(frozen=True, slots=True, kw_only=True)
class AdoptEpoch:
    """Begin the empty segment (epoch, begin). Drops nothing."""

    shard: ShardId
    epoch: Epoch
    begin: Offset


@value(frozen=True, slots=True, kw_only=True)
class AppendBatches:
    """Store consecutive batches at the end of the adopted epoch.

    `batches` may be empty, to move the commit offset alone.
    """

    shard: ShardId
    epoch: Epoch
    batches: tuple[PlacedBatch, ...]
    commit: Offset


@value(frozen=True, slots=True, kw_only=True)
class PromiseEpoch:
    """Promise `fence`, and freeze what is stored of `epoch` and `prepared` (NO_EPOCH = none)."""

    shard: ShardId
    fence: Epoch
    epoch: Epoch
    prepared: Epoch = NO_EPOCH


@value(frozen=True, slots=True, kw_only=True)
class LearnMap:
    """What the committed map says; raises the promise to its `open_epoch`.

    `seals` gives X per sealed epoch; what is stored of an epoch at or beyond its X is dropped, as
    is everything of `dead` epochs. `cut` are epochs of a gap: there, and nowhere else, what was
    known to be committed may be dropped, too, since the map says that it is lost (G10). An epoch
    that the map does not list any more is dead, or lies wholly below `trimmed_to`. `released` are
    sealed epochs that others hold, and that this store was told to let go (§8.4); what seals them
    comes before, so that the producer table has moved over them as far as it can.
    """

    shard: ShardId
    open_epoch: Epoch
    seals: tuple[tuple[Epoch, Offset], ...] = ()
    dead: tuple[Epoch, ...] = ()
    cut: tuple[Epoch, ...] = ()
    trimmed_to: Offset = FIRST_OFFSET
    released: tuple[Epoch, ...] = ()


@value(frozen=True, slots=True, kw_only=True)
class DropTrimmed:
    """Drop what lies below `trimmed_to`, as the committed map says (§8). Comes after the `LearnMap`
    of the same map, which sealed what the map says is sealed.
    """

    shard: ShardId
    open_epoch: Epoch
    trimmed_to: Offset


@value(frozen=True, slots=True, kw_only=True)
class FillSealed:
    """Store fetched batches of the sealed segment [begin, end), at the end of what is here of it.

    Raises the promise to `open_epoch`: otherwise a late `Adopt` of `epoch` would begin it anew over
    the filled copy (§3, last rule). What lies below `trimmed_to` is not filled.
    """

    shard: ShardId
    epoch: Epoch
    begin: Offset
    end: Offset
    open_epoch: Epoch
    batches: tuple[PlacedBatch, ...]
    trimmed_to: Offset = FIRST_OFFSET


@value(frozen=True, slots=True, kw_only=True)
class InstallTable:
    """Bring the durable producer table forward to `table.as_of`, across batches that are not here.

    If it is `Stored` and `table_as_of` was below `table.as_of`: with `table.since` 0 the rows of
    `table` replace all rows, else those of the producers that it names.
    """

    shard: ShardId
    table: TableSnapshot


@value(frozen=True, slots=True, kw_only=True)
class DropShard:
    """The committed map says that the shard's log was deleted (§8.2): drop all that is here, and
    promise above every epoch, so that nothing of it is ever taken again.
    """

    shard: ShardId


StoreOperation = (
    AdoptEpoch
    | AppendBatches
    | PromiseEpoch
    | LearnMap
    | DropTrimmed
    | FillSealed
    | InstallTable
    | DropShard
)


# ------------------------------------------------------------------ outcomes
@value(frozen=True, slots=True, kw_only=True)
class Stored:
    """The operation is durable. `state` is the shard's state as of its place in the queue."""

    operation: StoreOperation
    state: StoredShard


@value(frozen=True, slots=True, kw_only=True)
class Refused:
    """The rules forbid the operation; nothing was written. `state` tells what would be taken."""

    operation: StoreOperation
    state: StoredShard
    why: str


Outcome = Stored | Refused


# ------------------------------------------------------------------ the rules
def apply(
    state: StoredShard, operation: StoreOperation, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Outcome, StoredShard]:
    """What `operation` does to `state`: the outcome (which carries the new state), the new state.

    When it moves `table_as_of`, the writer adds the headers of `table_ranges(new state, from, to)`
    to its rows in the same transaction; `from` is the old `table_as_of`, or that of an installed
    table. Of a `DropTrimmed` they are those of `before_drop`.

    Raises `InvariantViolation` where the protocol says "stops the process loudly": nothing of the
    operation may be written then.
    """
    invariant(operation.shard == state.shard, "operation of this shard", operation=operation)
    changed: StoredShard | str
    if isinstance(operation, DropShard):
        changed = _drop_shard(state)
    elif state.promised == DELETED_EPOCH:
        changed = f"the log of shard {state.shard} was deleted"
    elif isinstance(operation, AppendBatches):
        changed = _append(state, operation, chunk_bytes)
    elif isinstance(operation, AdoptEpoch):
        changed = _adopt(state, operation)
    elif isinstance(operation, PromiseEpoch):
        changed = _promise(state, operation)
    elif isinstance(operation, LearnMap):
        changed = _learn(state, operation)
    elif isinstance(operation, DropTrimmed):
        changed = _drop_trimmed(state, operation)
    elif isinstance(operation, FillSealed):
        changed = _fill(state, operation, chunk_bytes)
    else:
        changed = _install(state, operation)
    if isinstance(changed, str):
        return Refused(operation=operation, state=state, why=changed), state
    return Stored(operation=operation, state=changed), changed


def _append(state: StoredShard, operation: AppendBatches, chunk_bytes: int) -> StoredShard | str:
    """§3: "It takes a `Replicate` only if its adopted epoch and its promise are both the frame's
    epoch and the base offset is its end." (G6)
    """
    epoch = operation.epoch
    segment = state.segments.get(epoch)
    if state.promised != epoch or state.adopted != epoch or segment is None:
        return f"epoch {epoch}: promised {state.promised}, adopted {state.adopted}"
    end = segment.end
    for batch in operation.batches:
        if batch.base != end:
            return f"base offset {batch.base} is not the end {end}"
        end = batch.end
    grown = StoredSegment(
        epoch=epoch,
        begin=segment.begin,
        end=end,
        commit=max(segment.commit, min(operation.commit, end)),
        seal=segment.seal,
        trimmed_to=segment.trimmed_to,
        uncut_bytes=uncut_after(segment.uncut_bytes, operation.batches, chunk_bytes),
    )
    return _with_segment(state, grown)


def _adopt(state: StoredShard, operation: AdoptEpoch) -> StoredShard | str:
    """§3: "It takes an `Adopt(e, X)` if e is not below its promise and is above its adopted epoch;
    in one transaction it sets promised and adopted to e and creates the empty segment (e, X, X). It
    drops nothing: e may turn out to be dead. The same `Adopt` again changes nothing; another X for
    the same epoch, or an `Adopt` that would empty a segment that has batches, stops the process
    loudly." (spec mutants `adopt-below-promise`, `adoption-drops-tail`)
    """
    epoch, begin = operation.epoch, operation.begin
    if epoch < state.promised:
        return f"epoch {epoch}: promised {state.promised}"
    segment = state.segments.get(epoch)
    if segment is not None:
        invariant(segment.begin == begin, "one epoch begins at one offset", operation=operation)
    if epoch == state.adopted:
        return state if segment is not None else f"epoch {epoch}: the map said that it is dead"
    if segment is not None:
        invariant(segment.end == begin, "an adoption empties no segment", operation=operation)
    fresh = StoredSegment(epoch=epoch, begin=begin, end=begin, commit=begin)
    return StoredShard(
        shard=state.shard,
        promised=epoch,
        adopted=epoch,
        segments={**state.segments, epoch: fresh},
        table_as_of=state.table_as_of,
    )


def _promise(state: StoredShard, operation: PromiseEpoch) -> StoredShard | str:
    """§4.2: "A replica that has not promised more than f makes the promise durable … Asked again it
    answers the same: what it has of e and e′ is frozen."
    """
    if operation.fence < state.promised:
        return f"fence {operation.fence}: promised {state.promised}"
    return _with_promise(state, operation.fence)


def _learn(state: StoredShard, operation: LearnMap) -> StoredShard:
    """§3: "**Only the committed map lets a store drop batches**: what it has of epoch e at or
    beyond e's X, what it has of a dead epoch", and "What a store learns from the committed map
    raises its promise to the open epoch." (spec mutant `fetch-without-promise`)
    """
    segments = dict(state.segments)
    for epoch, seal in operation.seals:
        segment = segments.get(epoch)
        if segment is not None:
            if epoch in operation.cut:
                # An end that a lost commit of the LAS told is no end (§4.6).
                segment = replace(segment, commit=min(segment.commit, seal), seal=None)
            segments[epoch] = _sealed(segment, seal)
    for epoch in operation.dead:
        dead = segments.pop(epoch, None)
        if dead is not None and epoch not in operation.cut:
            nothing = dead.commit == dead.begin or dead.commit <= operation.trimmed_to
            invariant(nothing, "a dead epoch committed nothing that is kept", segment=dead)
    for epoch in operation.released:
        released = segments.pop(epoch, None)
        sealed = released is None or released.seal is not None
        invariant(sealed, "only a sealed segment is let go", segment=released)
    learned = StoredShard(
        shard=state.shard,
        promised=state.promised,
        adopted=state.adopted,
        segments=segments,
        table_as_of=state.table_as_of,
    )
    return _with_table(_with_promise(learned, operation.open_epoch))


def before_drop(state: StoredShard, operation: DropTrimmed) -> StoredShard:
    """`state` with what a trim proves of it, and nothing dropped yet: all below `trimmed_to` is
    committed, and the producer table is brought over what is here of it while it is here.
    """
    segment = state.segments.get(operation.open_epoch)
    if segment is not None and operation.trimmed_to > segment.commit:
        # Every replica of the open segment had all of it when the trim was committed.
        invariant(operation.trimmed_to <= segment.end, "a trim passes no replica", segment=segment)
        state = _with_segment(state, replace(segment, commit=operation.trimmed_to))
    return _with_promise(state, operation.open_epoch)


def _drop_trimmed(state: StoredShard, operation: DropTrimmed) -> StoredShard:
    """§8: "trimmed-to is committed to the map first", then the holders drop. A copy that has not
    come so far begins there: what it lacks below is nowhere any more.
    """
    state = before_drop(state, operation)
    segments = dict(state.segments)
    for epoch, segment in segments.items():
        if segment.seal is not None or epoch == operation.open_epoch:
            segments[epoch] = _trimmed(segment, operation.trimmed_to)
    return replace(state, segments=segments)


def _drop_shard(state: StoredShard) -> StoredShard:
    """§8.2: "a store drops all of it and promises the last epoch of all". The promise outlives the
    data, as every promise: whatever comes late finds it.
    """
    if state.promised == DELETED_EPOCH and not state.segments:
        return state
    return StoredShard(shard=state.shard, promised=DELETED_EPOCH, adopted=state.adopted)


def _trimmed(segment: StoredSegment, trimmed_to: Offset) -> StoredSegment:
    """`segment` without what lies below `trimmed_to`; a short copy of a sealed one jumps there."""
    bound = segment.end if segment.seal is None else segment.seal
    first = min(trimmed_to, bound)
    if first <= segment.first:
        return segment
    return replace(
        segment,
        trimmed_to=first,
        end=max(segment.end, first),
        commit=max(segment.commit, first),
        uncut_bytes=segment.uncut_bytes if first < segment.end else 0,
    )


def _fill(state: StoredShard, operation: FillSealed, chunk_bytes: int) -> StoredShard | str:
    """§3: the promise rises "at the latest in the transaction in which it fills a sealed segment".

    (spec mutant `fetch-without-promise`)
    """
    epoch = operation.epoch
    invariant(epoch < operation.open_epoch, "only a sealed segment is filled", operation=operation)
    segment = state.segments.get(epoch)
    if segment is None:
        begin = operation.begin
        segment = StoredSegment(epoch=epoch, begin=begin, end=begin, commit=begin)
    invariant(segment.begin == operation.begin, "one epoch begins at one offset", segment=segment)
    segment = _trimmed(_sealed(segment, operation.end), operation.trimmed_to)
    end = segment.end
    for batch in operation.batches:
        if batch.base != end:
            return f"base offset {batch.base} is not the end {end}"
        end = batch.end
    if end > operation.end:
        return f"batches reach to {end}, beyond the seal {operation.end}"
    uncut_bytes = uncut_after(segment.uncut_bytes, operation.batches, chunk_bytes)
    filled = replace(segment, end=end, uncut_bytes=uncut_bytes)
    return _with_segment(_with_promise(state, operation.open_epoch), filled)


def _install(state: StoredShard, operation: InstallTable) -> StoredShard | str:
    """The table moves forward only, and over changes only from where it stands or beyond."""
    table = operation.table
    invariant(table.complete, "only a complete table is durable", as_of=table.as_of)
    if table.as_of <= state.table_as_of:
        return state
    if table.since > state.table_as_of:
        return f"table: changes since {table.since}, but here it is as of {state.table_as_of}"
    installed = StoredShard(
        shard=state.shard,
        promised=state.promised,
        adopted=state.adopted,
        segments=state.segments,
        table_as_of=table.as_of,
    )
    return _with_table(installed)


# ------------------------------------------------------------------ parts of the rules
def _sealed(segment: StoredSegment, seal: Offset) -> StoredSegment:
    """`segment` with X known: its tail at or beyond X is dropped, and nothing committed is."""
    known = segment.seal is None or segment.seal == seal
    invariant(known, "one epoch is sealed at one offset", segment=segment, seal=seal)
    invariant(segment.commit <= seal, "no cut below a commit offset", segment=segment, seal=seal)
    if seal < segment.end:
        # How much of what lay behind the last chunk is gone is not known: count too little.
        return replace(segment, end=seal, seal=seal, uncut_bytes=0)
    return replace(segment, seal=seal)


def _with_promise(state: StoredShard, epoch: Epoch) -> StoredShard:
    """`state` with its promise at least `epoch`."""
    if epoch <= state.promised:
        return state
    return StoredShard(
        shard=state.shard,
        promised=epoch,
        adopted=state.adopted,
        segments=state.segments,
        table_as_of=state.table_as_of,
    )


def _with_segment(state: StoredShard, segment: StoredSegment) -> StoredShard:
    """`state` with `segment` in place of what was known of its epoch, and the table moved on."""
    segments = state.segments.copy()
    segments[segment.epoch] = segment
    as_of = state.table_as_of
    # The way of every append: the table stands inside the open segment; nothing need be searched.
    # Before what is trimmed it stands, and says nothing of what it has not learned.
    inside = segment.epoch == state.adopted and segment.seal is None and segment.first <= as_of
    changed = StoredShard(
        shard=state.shard,
        promised=state.promised,
        adopted=state.adopted,
        segments=segments,
        table_as_of=max(as_of, segment.commit) if inside else as_of,
    )
    return changed if inside else _with_table(changed)


def _with_table(state: StoredShard) -> StoredShard:
    """`state` with `table_as_of` as far as this store knows the log without gap."""
    as_of = state.table_as_of
    while (part := _log_part(state, as_of)) is not None:
        as_of = part.end
    if as_of == state.table_as_of:
        return state
    return StoredShard(
        shard=state.shard,
        promised=state.promised,
        adopted=state.adopted,
        segments=state.segments,
        table_as_of=as_of,
    )


def _log_part(state: StoredShard, begin: Offset) -> TableRange | None:
    """Batches from `begin` on that are certainly the log's, of one epoch; None: none are here.

    A commit offset that was heard in an epoch proves that the epoch is in the chain of the map; a
    seal is of the map itself. An older tail proves nothing (§3: "The store is cut by epoch").
    """
    adopted = state.segments.get(state.adopted)
    if adopted is not None and adopted.first <= begin < adopted.commit:
        return TableRange(epoch=adopted.epoch, begin=begin, end=adopted.commit)
    for segment in state.segments.values():
        if segment.seal is not None and segment.first <= begin < segment.end:
            return TableRange(epoch=segment.epoch, begin=begin, end=segment.end)
    return None


def table_ranges(state: StoredShard, begin: Offset, end: Offset) -> tuple[TableRange, ...]:
    """Where the batches of the log in [begin, end) lie in this store, in order and without gap.

    The ranges begin at `begin`; if they end before `end`, this store does not know the log from
    there. `begin` and `end` lie between batches.
    """
    ranges = []
    while begin < end and (part := _log_part(state, begin)) is not None:
        ranges.append(TableRange(epoch=part.epoch, begin=begin, end=min(part.end, end)))
        begin = ranges[-1].end
    return tuple(ranges)

"""Messages, writes and answers of the cores in words: one line each, for scripts and people."""

from collections.abc import Callable, Iterable

from peerd.core import durable as d
from peerd.core import effects as e
from peerd.core import messages as m
from peerd.core.batch import PlacedBatch
from peerd.core.ids import ReplicaId
from peerd.core.producer import TableSnapshot
from peerd.core.shard_map import Plan, Segment, Shard


def names(replicas: Iterable[ReplicaId]) -> str:
    return " ".join(each.peer for each in replicas) or "nobody"


def plan(value: Plan) -> str:
    non_voters = f", non-voters {names(value.non_voters)}" if value.non_voters else ""
    closed = ", closed" if value.closed else ""
    voters = f"voters {names(value.voters)}{non_voters}"
    return f"{value.primary.peer} leads, {voters}, {value.acks} acks{closed}"


def _batches(batches: tuple[PlacedBatch, ...]) -> str:
    if not batches:
        return "no batch"
    forgets = max(each.header.forget_before for each in batches)
    told = f" forgetting who is silent since {forgets}" if forgets else ""
    return f"[{batches[0].base}, {batches[-1].end}){told}"


def _table(table: TableSnapshot) -> str:
    since = f" with changes since {table.since}" if table.since else ""
    partial = "" if table.complete else ", incomplete"
    return f"table as of {table.as_of}{since}, {len(table.producers)} producers{partial}"


def message(value: m.Message) -> str:
    if isinstance(value, m.Adopt):
        return f"adopt {value.epoch} at {value.begin} ({plan(value.plan)})"
    if isinstance(value, m.Frame):
        return f"frame of {value.epoch}: {_batches(value.batches)}, commit {value.commit}"
    if isinstance(value, m.Ack):
        return f"ack of {value.epoch} up to {value.end}"
    if isinstance(value, m.Expect):
        return (
            f"refuses {value.refused_epoch}: promised {value.promised}, "
            f"adopted {value.adopted} up to {value.end}"
        )
    if isinstance(value, m.ConfirmEpoch):
        return f"confirm {value.epoch}, round {value.round}"
    if isinstance(value, m.Ready):
        return f"ready for {value.epoch}, table as of {value.table_as_of}"
    return (
        f"begin {value.epoch} at {value.begin} after {value.old_epoch}, "
        f"{_table(value.table)}, holders {names(value.holders)}"
    )


def operation(value: d.StoreOperation) -> str:
    if isinstance(value, d.AdoptEpoch):
        return f"adopt {value.epoch} at {value.begin}"
    if isinstance(value, d.AppendBatches):
        return f"append to {value.epoch}: {_batches(value.batches)}, commit {value.commit}"
    if isinstance(value, d.PromiseEpoch):
        return f"promise {value.fence}"
    if isinstance(value, d.LearnMap):
        seals = "".join(f", {epoch} ends at {end}" for epoch, end in value.seals)
        dead = "".join(f", {epoch} is dead" for epoch in value.dead)
        gone = "".join(f", {epoch} is let go" for epoch in value.released)
        return f"map: open is {value.open_epoch}{seals}{dead}{gone}"
    if isinstance(value, d.DropTrimmed):
        return f"drop below {value.trimmed_to}"
    if isinstance(value, d.DropShard):
        return "drop all of it: its log was deleted"
    if isinstance(value, d.FillSealed):
        return f"fill {value.epoch} with {_batches(value.batches)}, it ends at {value.end}"
    return f"install {_table(value.table)}"


def load(value: e.Load) -> str:
    if isinstance(value, e.LoadBatches):
        return f"read [{value.begin}, {value.end}) of {value.epoch} for {value.replica.peer}"
    later = " or later" if value.or_later else ""
    if isinstance(value, e.FetchTable):
        since = f", changes since {value.since}" if value.since else ""
        return f"asks for the table as of {value.as_of}{later}{since}"
    start = "own table" if value.from_store else "headers alone"
    over = "".join(f" over [{each.begin}, {each.end}) of {each.epoch}" for each in value.ranges)
    return f"read the {start}{over} as of {value.as_of}{later}"


def _epoch_answer(answer: e.EpochAnswer | None) -> str:
    if answer is None:
        return ""
    if not answer.adopted:
        return f", {answer.epoch} not adopted"
    return f", {answer.epoch} [{answer.begin}, {answer.end}) commit {answer.commit}"


def reply(value: e.Reply) -> str:
    if isinstance(value, e.AppendAccepted):
        again = ", as before" if value.duplicate else ""
        return (
            f"accepted in {value.epoch} at {value.base}, "
            f"on disk at {names(value.durable_on)}{again}"
        )
    if isinstance(value, e.AppendRefused):
        refusal = value.refusal
        leader = f", ask {refusal.leader.peer}" if refusal.leader else ""
        following = f", next {refusal.next_sequence}" if refusal.next_sequence is not None else ""
        return f"{refusal.reason.name}, taken {refusal.taken.name}{leader}{following}"
    if isinstance(value, e.PromiseAnswered):
        parts = _epoch_answer(value.open) + _epoch_answer(value.prepared)
        return f"promised {value.promised}{parts}"
    if isinstance(value, e.BeginAnswer):
        begun = "has begun" if value.begun else "has not begun"
        return f"{begun} {value.epoch}, promised {value.promised}"
    if isinstance(value, e.HasBegunAnswer):
        if not value.begun:
            return "has not begun"
        return f"has begun at {value.begin}, holders {names(value.holders)}"
    if isinstance(value, e.TableAnswer):
        return _table(value.table) if value.table is not None else "has no such table"
    if isinstance(value, e.ConfirmAnswer):
        return f"round {value.round}, promised {value.promised}"
    if isinstance(value, e.TailAnswered):
        if value.refusal is not None:
            return value.refusal.reason.name
        return f"the tail is {value.tail}"
    return _plain(value)


def report(value: e.Report) -> str:
    if isinstance(value, e.SegmentOpened):
        return f"{value.epoch} opened at {value.begin}, holders {names(value.holders)}"
    if isinstance(value, e.Declined):
        return f"declines {value.prepared}: {value.why}"
    if isinstance(value, e.Stall):
        return f"{value.replica.peer} stalls for {value.stalled_ms} ms in {value.epoch}"
    if isinstance(value, e.HigherPromise):
        return f"{value.epoch} was refused: {value.promised} is promised"
    return _plain(value)


def _plain(value: object) -> str:
    return f"{type(value).__name__}"


def step(peer: str, value: e.Step) -> list[str]:
    """All effects of one event, in the order in which they are carried out."""
    parts: list[tuple[str, Callable[..., str], tuple[object, ...]]] = [
        ("queues", operation, value.persist),
        ("loads", load, value.load),
        ("reports", report, value.report),
    ]
    lines = [f"{peer} {verb} {word(each)}" for verb, word, items in parts for each in items]
    lines += [f"{peer} > {each.to.peer}: {message(each.message)}" for each in value.send]
    lines += [f"{peer} answers #{each.request}: {reply(each)}" for each in value.reply]
    lines += [f"{peer} notes {each.kind.value}: {each.message}" for each in value.note]
    return lines


def stored(state: d.StoredShard) -> str:
    """What a store has of the shard."""
    parts = [f"promised {state.promised}, adopted {state.adopted}"]
    for segment in sorted(state.segments.values(), key=lambda each: each.epoch):
        seal = f", ends at {segment.seal}" if segment.seal is not None else ""
        parts.append(
            f"{segment.epoch} [{segment.begin}, {segment.end}) commit {segment.commit}{seal}"
        )
    parts.append(f"table as of {state.table_as_of}")
    return "; ".join(parts)


def segment(value: Segment) -> str:
    begin = "?" if value.begin is None else value.begin
    end = "" if value.end is None else value.end
    holders = f"holders {names(value.holders)}, known commit {value.known_commit}"
    tail = holders if value.end is not None else plan(value.plan)
    return f"{value.epoch} [{begin}, {end}) {tail}"


def chain(value: Shard) -> list[str]:
    """The map's entry of a shard."""
    lines = [f"trimmed to {value.trimmed_to}"] if value.trimmed_to else []
    lines += [f"sealed {segment(each)}" for each in value.sealed]
    lines += [
        f"gap [{gap.begin}, {gap.end}) of {' '.join(map(str, gap.epochs))}: {gap.why}"
        for gap in value.gaps
    ]
    lines.append(f"open {segment(value.open)}")
    if value.prepared is not None:
        lines.append(f"prepared {segment(value.prepared)}")
    if value.fence:
        lines.append(f"fence {value.fence}")
    if value.split is not None:
        children = " and ".join(str(each) for each in value.split.children)
        done = f" done at {value.split.end} into {children}" if children else " pending"
        lines.append(f"split at key hash {value.split.key_hash}{done}")
    if value.parent is not None:
        lines.append(f"child of {value.parent.shard}, which ended at {value.parent.end}")
    if value.dead_epochs:
        lines.append(f"dead {' '.join(str(each) for each in value.dead_epochs)}")
    return lines

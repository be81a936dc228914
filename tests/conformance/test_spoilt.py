"""A trace that breaks one rule is refused: accepted runs, each spoilt in one place."""

import functools
from dataclasses import replace

import pytest

from las.core import commands as c
from peerd.core import durable
from peerd.core import events as ev
from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.effects import AppendAccepted, Declined, PromiseAnswered
from peerd.core.messages import Ack, Begin
from peerd.testing import trace
from peerd.testing.acceptor import judge
from peerd.testing.sim import Options, Simulation

RESTLESS = Options(
    crashes_per_s=1.5, whims_per_s=4.0, loss=0.02, bit_flips_per_s=0, failed_disks_per_s=0
)


@functools.cache
def run(seed: int) -> tuple[trace.Record, ...]:
    records: list[trace.Record] = []
    Simulation(seed, RESTLESS, on_record=records.append).run()
    return tuple(records)


# ---------------------------------------------------------------- ways to spoil a record
def outcomes(kind, change):
    """Change the first operation of that kind that was stored, if `change` gives another one."""

    def spoil(record):
        if not isinstance(record, trace.Stored):
            return None
        for number, outcome in enumerate(record.outcomes):
            if isinstance(outcome, durable.Stored) and isinstance(outcome.operation, kind):
                operation = change(outcome.operation)
                if operation is not None:
                    after = replace(outcome, operation=operation)
                    told = (*record.outcomes[:number], after, *record.outcomes[number + 1 :])
                    return [replace(record, outcomes=told)]
        return None

    return spoil


def step_of(field, kind, change):
    """Change the first effect of that kind in a step, if `change` gives another one."""

    def spoil(record):
        if not isinstance(record, trace.Handled):
            return None
        effects = getattr(record.step, field)
        for number, effect in enumerate(effects):
            value = effect.message if field == "send" else effect
            if isinstance(value, kind) and (other := change(value)) is not None:
                told = replace(effect, message=other) if field == "send" else other
                all_told = (*effects[:number], told, *effects[number + 1 :])
                return [replace(record, step=replace(record.step, **{field: all_told}))]
        return None

    return spoil


def command_of(kind, change):
    def spoil(record):
        if not isinstance(record, trace.MapCommitted) or not isinstance(record.command, kind):
            return None
        other = change(record.command) if record.result.ok else None
        return [replace(record, command=other)] if other is not None else None

    return spoil


def with_batch(operation, **header):
    """The operation with its first batch under another header."""
    if not operation.batches:
        return None
    first, *others = operation.batches
    return replace(
        operation, batches=(replace(first, header=replace(first.header, **header)), *others)
    )


def booted(change):
    def spoil(record):
        if isinstance(record, trace.Booted) and record.stored.promised > 1:
            stored = change(record.stored)
            return None if stored is None else [replace(record, stored=stored)]
        return None

    return spoil


def shortened(stored):
    for epoch, segment in stored.segments.items():
        if segment.end > segment.begin:
            shorter = replace(segment, end=segment.end - 1, commit=segment.begin, seal=None)
            return replace(stored, segments={**stored.segments, epoch: shorter})
    return None


def without_promise(record):
    if isinstance(record, trace.Stored):
        kept = tuple(
            each
            for each in record.outcomes
            if not (
                isinstance(each, durable.Stored)
                and isinstance(each.operation, durable.PromiseEpoch)
            )
        )
        if kept != record.outcomes:
            return [replace(record, outcomes=kept)] if kept else []
    return None


def ordered_twice(record):
    """What was ordered is ordered once more behind itself."""
    if not isinstance(record, trace.Handled) or not isinstance(record.event, ev.AppendRequested):
        return None
    if not record.event.header.producer:
        return None
    for operation in record.step.persist:
        if isinstance(operation, durable.AppendBatches) and operation.batches:
            again = tuple(replace(b, base=b.end) for b in operation.batches)
            step = trace.Step(persist=(replace(operation, batches=again),))
            return [record, replace(record, step=step)]
    return None


def begun_twice(record):
    if not isinstance(record, trace.Handled) or isinstance(record.event, ev.AdoptReceived):
        return None
    begins = any(isinstance(each, durable.AdoptEpoch) for each in record.step.persist)
    return [record, record] if begins else None


def ordered_after_begin(record):
    """A primary that has handed over orders one batch more."""
    if isinstance(record, trace.Handled):
        for send in record.step.send:
            if isinstance(send.message, Begin):
                message = send.message
                header = BatchHeader(record_count=1, payload_crc=7, payload_bytes=1)
                batch = PlacedBatch(base=message.begin, header=header, payload=b"x")
                operation = durable.AppendBatches(
                    shard=message.shard,
                    epoch=message.old_epoch,
                    batches=(batch,),
                    commit=message.begin,
                )
                step = trace.Step(persist=(operation,))
                return [record, replace(record, event=ev.Ticked(now=0), step=step)]
    return None


def receipt_without_waiting(record):
    """A batch is acknowledged in the step that orders it."""
    if isinstance(record, trace.Handled) and isinstance(record.event, ev.AppendRequested):
        for operation in record.step.persist:
            if isinstance(operation, durable.AppendBatches) and operation.batches:
                batch = operation.batches[0]
                reply = AppendAccepted(
                    request=record.event.request,
                    shard=operation.shard,
                    epoch=operation.epoch,
                    base=batch.base,
                    record_count=batch.header.record_count,
                    timestamp_ms=0,
                    durable_on=(),
                )
                return [replace(record, step=replace(record.step, reply=(reply,)))]
    return None


def undeclined(record):
    if isinstance(record, trace.Handled):
        kept = tuple(each for each in record.step.report if not isinstance(each, Declined))
        if kept != record.step.report:
            return [replace(record, step=replace(record.step, report=kept))]
    return None


def prepared_twice(record):
    if not isinstance(record, trace.MapCommitted) or not record.result.ok:
        return None
    prepared = record.shard.prepared
    if prepared is None or not isinstance(record.command, c.PrepareSegment):
        return None
    prepared = replace(prepared, epoch=prepared.epoch + 1)
    shard = replace(record.shard, prepared=prepared)
    result = replace(record.result, epoch=prepared.epoch)
    return [record, replace(record, shard=shard, result=result)]


def ended(lower):
    def change(command):
        end = command.ended.end + lower
        if end < command.ended.known_commit - 1:
            return None
        return replace(command, ended=replace(command.ended, end=end))

    return change


def answered(change):
    def spoil(reply):
        if reply.open is None or not reply.open.adopted:
            return None
        return replace(reply, open=change(reply.open))

    return spoil


SPOILT = {
    "a promise is left out": without_promise,
    "an end is raised in an answer to a fence": step_of(
        "reply", PromiseAnswered, answered(lambda a: replace(a, end=a.end + 5))
    ),
    "an answer hides batches": step_of(
        "reply",
        PromiseAnswered,
        answered(lambda a: replace(a, end=a.begin) if a.end > a.begin else a),
    ),
    "batches are stored under another epoch": outcomes(
        durable.AppendBatches, lambda o: replace(o, epoch=o.epoch + 1) if o.batches else None
    ),
    "another batch is stored than was ordered": outcomes(
        durable.AppendBatches, lambda o: with_batch(o, payload_crc=1)
    ),
    "a batch is stored beyond a gap": outcomes(
        durable.AppendBatches,
        lambda o: replace(o, batches=o.batches[1:]) if len(o.batches) > 1 else None,
    ),
    "a commit offset is told that was not reached": outcomes(
        durable.AppendBatches, lambda o: replace(o, commit=o.commit + 1_000)
    ),
    "an epoch is adopted at another offset": outcomes(
        durable.AdoptEpoch, lambda o: replace(o, begin=o.begin + 1)
    ),
    "a fence is promised that nobody drew": outcomes(
        durable.PromiseEpoch, lambda o: replace(o, fence=o.fence + 50)
    ),
    "a fence asks about another epoch": outcomes(
        durable.PromiseEpoch, lambda o: replace(o, epoch=o.epoch - 1)
    ),
    "the map cuts more than it says": outcomes(
        durable.LearnMap,
        lambda o: replace(o, seals=((o.seals[0][0], o.seals[0][1] - 1),)) if o.seals else None,
    ),
    "a copy is filled without a promise": outcomes(
        durable.FillSealed, lambda o: replace(o, open_epoch=o.epoch)
    ),
    "a copy has another batch": outcomes(
        durable.FillSealed, lambda o: with_batch(o, payload_crc=1)
    ),
    "more is acked than is durable": step_of("send", Ack, lambda m: replace(m, end=m.end + 1)),
    "Begin names another offset": step_of("send", Begin, lambda m: replace(m, begin=m.begin + 1)),
    "a batch is acknowledged at another offset": step_of(
        "reply", AppendAccepted, lambda r: replace(r, base=r.base + 1)
    ),
    "a batch is acknowledged before acks voters have it": receipt_without_waiting,
    "a retry is told another epoch": step_of(
        "reply", AppendAccepted, lambda r: replace(r, epoch=r.epoch + 1) if r.duplicate else None
    ),
    "a record is ordered twice": ordered_twice,
    "an epoch begins twice": begun_twice,
    "a primary orders after it has handed over": ordered_after_begin,
    "a restarted store has forgotten its promise": booted(
        lambda stored: replace(stored, promised=stored.promised - 1)
    ),
    "a restarted store has lost a batch": booted(shortened),
    "a segment is confirmed at another offset": command_of(
        c.SegmentOpened, lambda m: replace(m, begin=m.begin + 1)
    ),
    "recovery ends a segment too early": command_of(c.OpenSegment, ended(-1)),
    "recovery ends a segment too late": command_of(c.OpenSegment, ended(+1)),
    "two segments are prepared at once": prepared_twice,
}


@pytest.mark.parametrize("way", SPOILT)
def test_a_spoilt_trace_is_refused(way):
    refused = 0
    for seed in range(300, 306):
        records = run(seed)
        for number, record in enumerate(records):
            told = SPOILT[way](record)
            if told is not None and told != [record]:
                verdict = judge((*records[:number], *told, *records[number + 1 :]))
                assert not verdict.accepted, f"seed {seed}, record {number}: {told}"
                assert verdict.number >= number
                assert verdict.why
                refused += 1
                break
        if refused == 2:
            return
    assert refused > 0, "no run has a place to spoil in this way"


@pytest.mark.parametrize("seed", range(300, 306))
def test_the_run_itself_is_accepted(seed):
    verdict = judge(run(seed))
    assert verdict.accepted, str(verdict)


def moved(records, picked, to):
    record = records[picked]
    rest = [*records[:picked], *records[picked + 1 :]]
    return [*rest[:to], record, *rest[to:]]


def test_a_decision_before_the_answers_is_refused():
    records = run(300)
    fences = [
        number
        for number, record in enumerate(records)
        if isinstance(record, trace.MapCommitted) and isinstance(record.command, c.FenceSegment)
    ]
    ends = [
        number
        for number, record in enumerate(records)
        if isinstance(record, trace.MapCommitted) and isinstance(record.command, c.OpenSegment)
    ]
    verdict = judge(moved(records, ends[0], fences[0] + 1))
    assert not verdict.accepted
    assert verdict.why == "the answers to the fence decide where its segments end"


def test_a_withdrawal_that_nobody_declined_is_refused():
    for seed in range(300, 330):
        records = run(seed)
        withdrawn = [
            record
            for record in records
            if isinstance(record, trace.MapCommitted)
            and isinstance(record.command, c.WithdrawSegment)
            and record.result.ok
        ]
        if withdrawn:
            kept = [(undeclined(record) or [record])[0] for record in records]
            verdict = judge(kept)
            assert not verdict.accepted
            assert "declined" in verdict.why
            return
    pytest.fail("no run withdraws a prepared segment")

"""A run in words: what a person reads who replays a seed."""

from collections.abc import Callable

from peerd.core import durable
from peerd.testing import trace
from peerd.testing.sim.raft.record import Stepped

# limit: of an event that `V=1` prints, in characters
EVENT_CHARACTERS_MAX = 160


def timed(at_ms: int, text: str) -> str:
    """One line: virtual seconds, then what happened."""
    return f"{at_ms / 1_000:9.3f}  {text}"


def every_event(write: Callable[[str], None]) -> trace.OnRecord:
    """Writes one line for each record of the trace."""

    def heard(record: trace.Record) -> None:
        write(timed(record.at_ms, f"  {_line(record)}"))

    return heard


def every_step(write: Callable[[str], None]) -> Callable[[object], None]:
    """Writes one line for each step of a LAS member that set something free."""

    def heard(record: object) -> None:
        if isinstance(record, Stepped):
            write(timed(record.at_ms, f"  {_step_line(record)}"))

    return heard


def _step_line(record: Stepped) -> str:
    frames = ", ".join(
        f"{kind} of {len(content)} bytes to {peer}" for peer, kind, content in record.frames
    )
    outcomes = "; ".join(each[:EVENT_CHARACTERS_MAX] for each in record.outcomes)
    known = f"term {record.term} of {record.leader or 'nobody'}"
    return (
        f"{record.name} in {known}, committed {record.commit_index}, applied "
        f"{record.applied_index}; sends {frames or 'nothing'}; answers {outcomes or 'nothing'}"
    )


def _line(record: trace.Record) -> str:
    if isinstance(record, trace.Handled):
        at = f"{record.process.peer} shard {record.shard}"
        event = repr(record.event)[:EVENT_CHARACTERS_MAX]
        return f"{at} takes {event} and wants {_wants(record)}"
    if isinstance(record, trace.Stored):
        kinds = " ".join(
            type(each.operation).__name__
            + ("" if isinstance(each, durable.Stored) else " (refused)")
            for each in record.outcomes
        )
        return f"{record.process.peer} shard {record.shard} has on disk: {kinds}"
    if isinstance(record, trace.Booted):
        return f"{record.process.peer} shard {record.shard} begins as {record.process.boot}"
    return repr(record)[:EVENT_CHARACTERS_MAX]


def _wants(record: trace.Handled) -> str:
    step = record.step
    wanted = [
        *(f"write {type(each).__name__}" for each in step.persist),
        *(f"{type(each.message).__name__} to {each.to.peer}" for each in step.send),
        *(type(each).__name__ for each in (*step.load, *step.reply, *step.report)),
    ]
    return ", ".join(wanted) or "nothing"

"""`las.v1.HistoryService`: when nodes were down, and why; import of what was seen elsewhere.

Invariants:
- A call whose outages are not all as they should be changes nothing.
- Outages of a call are committed in commands of bounded size. One that fails in the middle has
  imported a part; the same call again adds what is missing and nothing twice.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import islice

from las.core.codec import encode, to_json
from las.core.commands import RecordOutages
from las.core.history import Cause, Outage
from las.core.patterns import Tally, patterns
from las.daemon.audit import Auditor
from las.daemon.group import Group
from las.daemon.leader import Leadership
from las.daemon.services.results import invalid, require_ok
from las.daemon.term import wall_ms
from las.v1 import history_pb2, history_pb2_grpc
from peerd.transport.status import Context

# limit: outages of one message, as the contract says.
OUTAGES_PER_MESSAGE_MAX = 1_000
# limit: bytes of the outages in one command; a command in the consensus log has 64 KiB at most.
COMMAND_OUTAGES_BYTES_MAX = 48 * 1024
# limit: seconds for which an imported outage may lie after now: clocks differ.
FUTURE_S_MAX = 3_600

_PREFIX = "OUTAGE_CAUSE_"


class HistoryServicer(history_pb2_grpc.HistoryServiceServicer):
    """Serves on the leader; others name it."""

    def __init__(self, group: Group, leadership: Leadership, auditor: Auditor) -> None:
        self._group = group
        self._leadership = leadership
        self._auditor = auditor

    async def ListOutages(
        self, request: history_pb2.ListOutagesRequest, context: Context
    ) -> AsyncIterator[history_pb2.ListOutagesResponse]:
        """Outages, the newest first. Raises `Refused`: NOT_LAS_LEADER."""
        self._leadership.require()
        history = self._group.state.history
        wanted: Iterator[Outage] = (
            outage
            for outage in reversed(history.outages)
            if not request.node or outage.node == request.node
        )
        if request.count_max:
            wanted = islice(wanted, request.count_max)
        while piece := list(islice(wanted, OUTAGES_PER_MESSAGE_MAX)):
            yield history_pb2.ListOutagesResponse(
                outages=[encode_outage(outage) for outage in piece], dropped=history.dropped
            )

    async def ImportOutages(
        self, request: history_pb2.ImportOutagesRequest, context: Context
    ) -> history_pb2.ImportOutagesResponse:
        """Take outages that were seen elsewhere.

        Raises:
            Refused: INVALID_ARGUMENT (too many, or one cannot be: nothing is changed),
                NOT_LAS_LEADER, LAS_UNAVAILABLE (a part may be imported: call again).
        """
        added = changed = too_old = 0
        async with self._auditor.call(context, "history import") as call:
            if len(request.outages) > OUTAGES_PER_MESSAGE_MAX:
                raise invalid(
                    f"{len(request.outages)} outages in one call: at most {OUTAGES_PER_MESSAGE_MAX}"
                )
            until_s = wall_ms() // 1000 + FUTURE_S_MAX
            rows = [
                _decoded(number, each, until_s) for number, each in enumerate(request.outages, 1)
            ]
            for part in _commands(rows):
                taken = require_ok(await call.submit(part)).taken
                added += taken.added
                changed += taken.changed
                too_old += taken.too_old
        return history_pb2.ImportOutagesResponse(added=added, changed=changed, too_old=too_old)

    async def GetPatterns(
        self, request: history_pb2.GetPatternsRequest, context: Context
    ) -> history_pb2.GetPatternsResponse:
        """What the history shows. Raises `Refused`: NOT_LAS_LEADER."""
        self._leadership.require()
        history = self._group.state.history
        # The longest history takes a tenth of a second, in which heartbeats would wait.
        found = await asyncio.to_thread(patterns, history.outages)
        return history_pb2.GetPatternsResponse(
            failures=found.failures,
            wished=found.wished,
            going_on=found.going_on,
            begin_s=found.begin_s,
            end_s=found.end_s,
            by_cause=_tallies(found.by_cause),
            by_host=_tallies(found.by_host),
            by_rack=_tallies(found.by_rack),
            by_age=_tallies(found.by_age),
            repeats=[
                history_pb2.OutageRepeats(
                    window_s=each.window_s, failures=each.failures, repeated=each.repeated
                )
                for each in found.repeats
            ],
            together=[
                history_pb2.OutageGroup(
                    begin_s=each.begin_s,
                    nodes=each.nodes,
                    nodes_total=each.nodes_total,
                    rack=each.rack,
                )
                for each in found.together
            ],
            groups=found.groups,
            failures_together=found.failures_together,
            dropped=history.dropped,
        )


def encode_outage(outage: Outage) -> history_pb2.Outage:
    """The wire form of an outage."""
    return history_pb2.Outage(
        node=outage.node,
        host=outage.host,
        rack=outage.rack,
        begin_s=outage.begin_s,
        end_s=outage.end_s,
        cause=history_pb2.OutageCause.Value(_PREFIX + outage.cause.name),
        in_service_s=outage.in_service_s,
    )


def _decoded(number: int, outage: history_pb2.Outage, until_s: int) -> Outage:
    """The `number`-th outage of a call. Raises `Refused`: INVALID_ARGUMENT.

    What lies in the future would stand in the way of all that is still to be seen. Names go to
    terminals and files, where what cannot be printed does harm.
    """
    try:
        for what, name in (("node", outage.node), ("host", outage.host), ("rack", outage.rack)):
            if not name.isprintable():
                raise ValueError(f"its {what} has characters that cannot be printed")
        if max(outage.begin_s, outage.end_s) > until_s:
            raise ValueError(f"the outage of {outage.node} lies in the future")
        return Outage(
            node=outage.node,
            host=outage.host,
            rack=outage.rack,
            begin_s=outage.begin_s,
            end_s=outage.end_s if outage.HasField("end_s") else None,
            cause=_cause(outage.cause),
            in_service_s=outage.in_service_s if outage.HasField("in_service_s") else None,
        )
    except ValueError as error:
        raise invalid(f"outage {number} of the call: {error}; nothing is changed") from error


def _cause(value: "history_pb2.OutageCause.ValueType") -> Cause:
    if value == history_pb2.OUTAGE_CAUSE_UNSPECIFIED:
        return Cause.UNKNOWN
    return Cause(history_pb2.OutageCause.Name(value).removeprefix(_PREFIX).lower())


def _commands(rows: Iterable[Outage]) -> Iterator[RecordOutages]:
    """The rows in commands that fit the consensus log."""
    part: list[Outage] = []
    size = 0
    for row in rows:
        row_bytes = len(to_json(encode(row)).encode()) + 1
        if part and size + row_bytes > COMMAND_OUTAGES_BYTES_MAX:
            yield RecordOutages(outages=tuple(part))
            part, size = [], 0
        part.append(row)
        size += row_bytes
    if part:
        yield RecordOutages(outages=tuple(part))


def _tallies(tallies: Sequence[Tally]) -> list[history_pb2.OutageTally]:
    return [
        history_pb2.OutageTally(
            name=each.name, failures=each.failures, length_s_median=each.length_s_median
        )
        for each in tallies
    ]

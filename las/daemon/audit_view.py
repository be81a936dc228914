"""The audit records as a call asks for them."""

from collections import deque

from las.core.state import AuditRecord, ClusterState
from las.daemon.services.results import invalid
from las.v1 import fleet_pb2

# limit: audit records of one answer, some 1 kB each.
RECORDS_PER_ANSWER_MAX = 1_000


def audit_view(
    state: ClusterState, request: fleet_pb2.ListAuditRequest
) -> fleet_pb2.ListAuditResponse:
    """The newest records that fit the request, oldest first. Raises `Refused`: INVALID_ARGUMENT."""
    if request.limit > RECORDS_PER_ANSWER_MAX:
        raise invalid(f"limit = {request.limit}: at most {RECORDS_PER_ANSWER_MAX} records")
    newest: deque[AuditRecord] = deque()
    matching = 0
    for number in range(state.audited, state.audited - len(state.audit), -1):
        record = state.audit[number]
        if _fits(record, request):
            matching += 1
            if len(newest) < (request.limit or RECORDS_PER_ANSWER_MAX):
                newest.appendleft(record)
    return fleet_pb2.ListAuditResponse(
        records=map(_encoded, newest),
        matching=matching,
        recorded=state.audited,
        dropped=state.audited - len(state.audit),
    )


def _fits(record: AuditRecord, request: fleet_pb2.ListAuditRequest) -> bool:
    return (
        record.timestamp_ms >= request.since_ms
        and (not request.node or record.node == request.node)
        and (not request.log or record.log == request.log)
    )


def _encoded(record: AuditRecord) -> fleet_pb2.AuditRecord:
    return fleet_pb2.AuditRecord(
        number=record.number,
        clock_ms=record.clock_ms,
        timestamp_ms=record.timestamp_ms,
        who=record.who,
        role=record.role,
        what=record.what,
        node=record.node,
        log=record.log,
        shard=record.shard,
        model=record.model,
        before=record.before,
        after=record.after,
        ok=record.ok,
        reason=record.reason,
        text=record.text,
    )

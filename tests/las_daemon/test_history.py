"""The service of the history of failures, and what the LAS writes there by itself."""

import pytest

from las.core.history import TIME_S_MAX, Cause
from las.core.state import NodeState
from las.daemon.services import history as service
from las.v1 import fleet_pb2, history_pb2, history_pb2_grpc
from peerd.pki import Role
from tests.las_daemon.stand_in import ADMIN, metadata, refused, until


def stub(las):
    return history_pb2_grpc.HistoryServiceStub(las.channel)


def row(node="p1", begin_s=1_000, **changes):
    fields = {"end_s": begin_s + 60, "cause": history_pb2.OUTAGE_CAUSE_DISK, "rack": "r1"}
    return history_pb2.Outage(node=node, begin_s=begin_s, **(fields | changes))


async def take(las, *rows):
    request = history_pb2.ImportOutagesRequest(outages=rows)
    return await stub(las).ImportOutages(request, metadata=ADMIN, timeout=30)


async def listed(las, **wanted):
    call = stub(las).ListOutages(
        history_pb2.ListOutagesRequest(**wanted), metadata=ADMIN, timeout=30
    )
    return [outage async for answer in call for outage in answer.outages]


async def test_imported_rows_are_listed_the_newest_first_and_count_once(las, monkeypatch):
    # So that a call becomes several commands.
    monkeypatch.setattr(service, "COMMAND_OUTAGES_BYTES_MAX", 200)
    rows = [row(begin_s=at) for at in range(1_000, 1_009)] + [row("p2", 1)]
    assert (await take(las, *rows)).added == 10
    again = await take(las, *rows, row(begin_s=1_003, cause=history_pb2.OUTAGE_CAUSE_POWER))
    assert (again.added, again.changed) == (0, 1)
    assert [each.begin_s for each in await listed(las, count_max=2)] == [1_008, 1_007]
    (only,) = await listed(las, node="p2")
    assert only == row("p2", 1)
    found = await stub(las).GetPatterns(
        history_pb2.GetPatternsRequest(), metadata=ADMIN, timeout=30
    )
    assert [(each.name, each.failures) for each in found.by_cause] == [("disk", 9), ("power", 1)]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (row("", 5), "outage 2 of the call: the node of an outage has no name"),
        (row("p2", 5, end_s=1), "outage 2 of the call: the outage of p2 ends at 1 s"),
        (row("p2", 5, cause=99), "outage 2 of the call: "),
        (row("p" * 129, 5), "outage 2 of the call: the node name"),
        (row("p2", 5, host="h\x1b[2J"), "its host has characters that cannot be printed"),
        (row("p2", 5, end_s=TIME_S_MAX), "the outage of p2 lies in the future"),
    ],
)
async def test_a_row_that_cannot_be_refuses_the_call(las, bad, says):
    reason, refusal = await refused(take(las, row(), bad))
    assert reason == "INVALID_ARGUMENT"
    assert says in refusal.message
    assert await listed(las) == []


async def test_a_call_is_bounded_and_not_for_everybody(las):
    rows = [row(begin_s=at) for at in range(1, 1_002)]
    reason, refusal = await refused(take(las, *rows))
    assert (reason, "at most 1000" in refusal.message) == ("INVALID_ARGUMENT", True)
    call = stub(las).ImportOutages(
        history_pb2.ImportOutagesRequest(), metadata=metadata(Role.READER, "x"), timeout=30
    )
    assert (await refused(call))[0] == "ROLE_NOT_ALLOWED"


async def test_what_a_node_says_before_it_goes_is_the_cause(las):
    first, second = await las.add_peers(2)
    await first.report(fleet_pb2.PeerReport(leaving=fleet_pb2.Leaving()))
    first.boot = "b" * 32
    await first.register()
    await second.report(fleet_pb2.PeerReport(storage_failed=fleet_pb2.StorageFailed(why="EIO")))
    await until(lambda: las.state.nodes["peer-2"].state is NodeState.FAILED)
    causes = {each.node: each.cause for each in las.state.history.outages}
    assert causes == {"peer-1": Cause.OPERATOR, "peer-2": Cause.DISK}
    second.boot = "c" * 32
    await second.register()
    assert las.state.history.still_down("peer-2") is None

"""The access table on a peer's disk: it holds through a restart, and is never guessed."""

import asyncio
import json
import os

import pytest

from las.v1 import access_pb2
from peerd.core.access import AccessTable, Revocation
from peerd.daemon import access as daemon_access
from peerd.daemon.access import (
    FILE_NAME,
    TOLD_PER_HEARTBEAT_MAX,
    TOUCH_EVERY_S,
    AccessKeeper,
    RefusalsTold,
)
from peerd.daemon.errors import StoreUnusable
from peerd.transport.access import Access, AccessMalformed, encode_access
from peerd.transport.refused_calls import RefusedCall
from tests.daemon.fleet import DEADLINE_S

TABLE = AccessTable(version=7, required=True, revoked=(Revocation(name="shop-1"),))


def keeper(directory, **clocks):
    return AccessKeeper(directory, Access("shop"), **clocks)


async def written(kept, version):
    task = asyncio.create_task(kept.run())
    async with asyncio.timeout(DEADLINE_S):
        while kept.durable_version != version:  # noqa: ASYNC110 - as many turns as it takes
            await asyncio.sleep(0)
    task.cancel()


async def test_what_the_las_told_holds_after_a_restart_and_its_age_goes_on(tmp_path):
    kept = keeper(tmp_path)
    kept.load("id")
    assert kept.access.table.version == 0
    kept.told(encode_access(TABLE), "id")
    assert kept.access.table == TABLE
    assert kept.durable_version == 0
    await written(kept, 7)
    written_s = (tmp_path / FILE_NAME).stat().st_mtime
    again = keeper(tmp_path, now_s=lambda: 1_000.0, wall_s=lambda: written_s + 90)
    again.load("id")
    assert again.access.table == TABLE
    assert again.durable_version == 7
    assert again.age_s == pytest.approx(90)
    again.heard_current()
    assert again.age_s == 0


async def test_an_older_table_is_not_written(tmp_path):
    kept = keeper(tmp_path)
    kept.told(encode_access(TABLE), "id")
    await written(kept, 7)
    before = (tmp_path / FILE_NAME).read_bytes()
    kept.told(access_pb2.AccessTable(version=6), "id")
    assert not kept._changed.is_set()
    assert (tmp_path / FILE_NAME).read_bytes() == before


async def test_a_write_that_fails_is_tried_again_and_not_told_before(tmp_path, monkeypatch):
    writes = []

    def write(path, content):
        writes.append(path)
        if len(writes) == 1:
            raise OSError(28, "no space")
        path.write_bytes(content)

    monkeypatch.setattr(daemon_access, "write_file_durably", write)
    monkeypatch.setattr(daemon_access, "RETRY_S", 0.0)
    kept = keeper(tmp_path)
    kept.told(encode_access(TABLE), "id")
    await written(kept, 7)
    assert len(writes) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-9], "char|Expecting|delimiter"),
        (lambda text: text.replace('"shop-1"', '"shop-2"'), "checksum"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format 1"),
        (lambda text: "[]", "format 1"),
        (lambda text: "{}", "format 1"),
    ],
)
async def test_a_file_that_cannot_be_trusted_stops_the_peer(tmp_path, change, words):
    kept = keeper(tmp_path)
    kept.told(encode_access(TABLE), "id")
    await written(kept, 7)
    path = tmp_path / FILE_NAME
    path.write_text(change(path.read_text()))
    with pytest.raises(StoreUnusable, match=words) as refused:
        keeper(tmp_path).load("id")
    assert "who was revoked could get in" in str(refused.value)


async def test_a_file_of_another_cluster_stops_the_peer(tmp_path):
    kept = keeper(tmp_path)
    kept.told(encode_access(TABLE), "id")
    await written(kept, 7)
    assert json.loads((tmp_path / FILE_NAME).read_text())["cluster_id"] == "id"
    with pytest.raises(StoreUnusable, match="of cluster 'id'"):
        keeper(tmp_path).load("other")


async def test_its_file_is_touched_once_a_minute(tmp_path):
    now = [0.0]
    kept = keeper(tmp_path, now_s=lambda: now[0])
    kept.told(encode_access(TABLE), "id")
    await written(kept, 7)
    path = tmp_path / FILE_NAME
    os.utime(path, (1, 1))
    now[0] = TOUCH_EVERY_S - 1
    kept.heard_current()
    assert path.stat().st_mtime == 1
    now[0] = TOUCH_EVERY_S
    kept.heard_current()
    assert path.stat().st_mtime > 1
    path.unlink()
    now[0] = 2 * TOUCH_EVERY_S
    kept.heard_current()


def test_a_table_that_no_las_commits_is_refused(tmp_path):
    for wire in (
        access_pb2.AccessTable(version=1, grants=[access_pb2.Grant(who="", log="x")]),
        access_pb2.AccessTable(version=1, revoked=[access_pb2.Revocation()]),
    ):
        with pytest.raises(AccessMalformed):
            keeper(tmp_path).told(wire, "id")


def test_a_heartbeat_takes_some_refusals_along():
    told = RefusalsTold()
    for number in range(TOLD_PER_HEARTBEAT_MAX + 5):
        told._told(RefusedCall(who=f"a{number}", role="reader", reason="R", what="/x", text="t"))
    assert [each.who for each in told.take()][:2] == ["a0", "a1"]
    assert len(told.take()) == 5
    assert told.take() == []

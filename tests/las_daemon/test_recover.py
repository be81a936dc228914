"""Exports, and a group that begins from one: files, directories, and a node on them."""

import asyncio
import hashlib
import json

import pytest

from las.core.recovered import SKIPPED
from las.core.snapshot import FORMAT
from las.daemon import exports, recover
from las.daemon.directory import init, rejoin
from las.daemon.exports import Export, ExportUnusable
from las.daemon.release import PERIOD_S
from las.raft import StoreError, WrongCluster, open_directory
from las.v1 import fleet_pb2
from las.v1 import log_admin_pb2 as pb
from peerd.daemon.errors import StoreUnusable
from peerd.internal.v1 import replication_pb2
from peerd.pki import Role
from tests.las_daemon.stand_in import ADMIN, StandInPeer, las_config, metadata, refused, until

WHY = "two LAS hosts burned"


async def with_a_log(las, peers: int = 3):
    await las.add_peers(peers)
    request = pb.CreateLogRequest(name="orders", shards=2, copies=3, acks=2)
    await las.logs.CreateLog(request, metadata=ADMIN, timeout=30)


async def left_over(las, tmp_path) -> Export:
    """What is in the directory of a node that has ended."""
    await with_a_log(las)
    state = las.state
    await las.stop()
    found = recover.from_directory(las_config(tmp_path / "las-1"))
    assert found.state == state
    return found


@pytest.fixture
async def export(las, tmp_path) -> Export:
    return await left_over(las, tmp_path)


async def begun_anew(start_las, tmp_path, export: Export):
    """The leader of a group that began from `export`, with peers that have not registered."""
    (tmp_path / "las-1").rename(tmp_path / "before")
    manifest = init(las_config(tmp_path / "las-1"), None, recover.recovered(export))
    assert manifest.group_id == f"{manifest.cluster_id}+{manifest.recovery}"
    las = await (await start_las()).leading()
    las.peers = [StandInPeer(number, las.node.address) for number in (1, 2, 3)]
    for peer in las.peers:
        await peer._server.start()
    return las


# ---------------------------------------------------------------------------------- files
async def test_an_export_is_read_as_it_was_written(export, tmp_path):
    path = tmp_path / "export.las"
    exports.write(path, export)
    assert exports.read(path) == export
    assert export.origin.source == "las-1"
    assert export.origin.index > 2
    first = json.loads(path.read_text().splitlines()[0])
    assert (first["magic"], first["format"]) == (exports.MAGIC, exports.FORMAT)
    with pytest.raises(ExportUnusable, match="there already"):
        exports.write(path, export)
    with pytest.raises(ExportUnusable, match="nowhere is no directory to write into"):
        exports.write(tmp_path / "nowhere" / "x", export)


def framed(body: bytes) -> bytes:
    end = json.dumps({"sha256": hashlib.sha256(body).hexdigest()})
    return body + end.encode() + b"\n"


async def test_what_is_no_export_is_refused_by_name(export, tmp_path):
    data = export.to_bytes()
    head, _, rest = data.partition(b"\n")
    body = data[: data[:-1].rindex(b"\n") + 1]
    now = b'"format":%d' % FORMAT
    assert now in body
    later = json.dumps({**json.loads(head), "format": exports.FORMAT + 1}).encode()
    foreign = json.dumps({**json.loads(head), "members": []}).encode()
    for bad, why in (
        (b"", "not an export"),
        (b"\x00\xff" * 50, "not an export"),
        (b'{"magic":"another"}\n', "not an export"),
        (b"[" * 100_000, "not an export"),
        (later + b"\n" + rest, "format 2, this program knows 1"),
        (data.replace(b"orders", b"ordes", 1), "checksum is wrong"),
        (data[:-30], "not copied whole|checksum"),
        (framed(foreign + b"\n" + body[len(head) + 1 :]), "no field is called"),
        (framed(body.replace(now, b'"format":99')), f"format {FORMAT} or older"),
        (framed(head + b"\n{}\n"), "format"),
    ):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(ExportUnusable, match=why):
            exports.read(tmp_path / "bad")
    for cut in range(0, len(data), 211):
        with pytest.raises(ExportUnusable):
            exports.parse(data[:cut])
    with pytest.raises(ExportUnusable, match="No such file"):
        exports.read(tmp_path / "missing")


async def test_only_what_was_made_for_it_begins_a_group_and_only_an_empty_directory_takes_it(
    export, tmp_path
):
    config = las_config(tmp_path / "new")
    with pytest.raises(ExportUnusable, match="las recover"):
        init(config, None, export)
    assert not config.data_dir.exists()
    with pytest.raises(StoreUnusable, match="not empty"):
        init(las_config(tmp_path / "las-1"), None, recover.recovered(export))
    with pytest.raises(ExportUnusable, match="wrote it already"):
        recover.recovered(recover.recovered(export))
    path = tmp_path / "export.las"
    exports.write(path, export)
    with pytest.raises(ExportUnusable, match="of cluster shop, not of else"):
        recover.from_file(path, "else")
    assert recover.from_file(path, "shop") == export


async def test_the_look_ahead_says_how_far_it_goes_and_what_it_knows(export):
    told = "\n".join(recover.report(export))
    assert f"up to entry {export.origin.index} of term {export.origin.term}" in told
    assert "taken as committed" in told
    assert "3 nodes: peer-1, peer-2, peer-3" in told
    assert "1 logs (with their shards): orders (2)" in told
    assert "log create by ann" in told


async def test_a_group_that_runs_gives_an_export_to_operators_alone(las):
    await with_a_log(las)
    call = las.fleet.ExportState(fleet_pb2.ExportStateRequest(), metadata=ADMIN, timeout=10)
    export = exports.parse(b"".join([answer.chunk async for answer in call]))
    assert export.state == las.state
    assert export.origin.cluster == "shop"
    assert export.origin.proven_index == export.origin.index > 2
    stranger = las.fleet.ExportState(
        fleet_pb2.ExportStateRequest(), metadata=metadata(Role.READER, "rob"), timeout=10
    )
    reason, _ = await refused(stranger.read())
    assert reason == "ROLE_NOT_ALLOWED"


# ---------------------------------------------------------------------------------- directories
async def test_a_directory_in_use_or_damaged_is_not_read(las, tmp_path):
    config = las_config(tmp_path / "las-1")
    with pytest.raises(StoreUnusable, match="in use"):
        recover.from_directory(config)
    await with_a_log(las)
    await las.stop()
    journal = tmp_path / "las-1" / "journal"
    before = journal.read_bytes()
    recover.from_directory(config)
    assert journal.read_bytes() == before
    journal.write_bytes(before[:100] + b"\xff" + before[101:])
    with pytest.raises(StoreUnusable, match="damaged"):
        recover.from_directory(config)


async def test_members_of_two_imports_are_of_two_groups(export, tmp_path):
    first = init(las_config(tmp_path / "a"), None, recover.recovered(export))
    second = init(las_config(tmp_path / "b"), None, recover.recovered(export))
    assert first.cluster_id == second.cluster_id
    assert first.group_id != second.group_id
    again = rejoin(las_config(tmp_path / "c"), first.group_id)
    assert (again.group_id, again.rejoining) == (first.group_id, True)
    # The directory of the group before is moved aside by a rejoin, and that of a stranger is not.
    assert rejoin(las_config(tmp_path / "las-1"), first.group_id).group_id == first.group_id
    other = "00000000-0000-4000-8000-000000000009"
    with pytest.raises(StoreUnusable, match="belongs to cluster shop"):
        rejoin(las_config(tmp_path / "c"), other)
    with pytest.raises(StoreUnusable, match="is not a UUID"):
        rejoin(las_config(tmp_path / "d"), f"{first.cluster_id}+yesterday")
    with pytest.raises(WrongCluster):
        open_directory(tmp_path / "c", cluster="else", name="las-1", members=("las-1",))
    assert issubclass(WrongCluster, StoreError)


# ---------------------------------------------------------------------------------- a node
async def test_a_shard_is_free_when_its_primary_says_that_it_leads(start_las, export, tmp_path):
    las = await begun_anew(start_las, tmp_path, export)
    assert las.state.version > SKIPPED
    assert all(entry.is_held for entry in las.state.shards.values())
    shard, other = las.state.shards[1].shard, las.state.shards[2].shard
    primary = next(p for p in las.peers if p.name == shard.open.plan.primary.peer)
    second, third = (peer for peer in las.peers if peer is not primary)

    def leads(request):
        cuts = [replication_pb2.FoundCut(leads=each.shard == 1) for each in request.orders]
        return replication_pb2.FindCutsResponse(store_id=primary.store, cuts=cuts)

    primary.answers["FindCuts"] = leads
    answer = await primary.register()
    await second.register()
    older = primary.beat(map_version=answer.map.version - SKIPPED)
    call = await primary.heartbeats(older)
    await until(lambda: bool(primary.updates), "its heartbeat was heard")
    await asyncio.sleep(2 * PERIOD_S)
    assert las.state.shards[1].is_held
    await call.write(primary.beat(map_version=answer.map.version))
    await until(lambda: not las.state.shards[1].halted, "the first shard is free")
    assert las.state.shards[2].is_held
    status = await las.fleet.GetStatus(fleet_pb2.GetStatusRequest(), metadata=ADMIN, timeout=30)
    assert any(f"held ({other.log}/2)" in line and third.name in line for line in status.warnings)
    assert status.group_id == f"{las.state.cluster_id}+{las.state.recovery.id}"
    await third.register()
    await until(lambda: not las.state.shards[2].halted, "the second one, when all were heard")


async def test_what_outlived_the_export_waits_for_a_person(start_las, export, tmp_path):
    las = await begun_anew(start_las, tmp_path, export)
    lost = int(export.state.shards[1].drawn + 1)
    stray = int(export.state.next_shard)
    stored = [
        fleet_pb2.StoredShard(shard=1, promised=lost, adopted=lost),
        fleet_pb2.StoredShard(shard=stray, promised=1, adopted=1),
    ]
    first, *others = las.peers
    answer = await first.register(shards=stored)
    assert answer.map.next_shard > SKIPPED
    assert [(each.first, each.last) for each in answer.map.skipped_shards] == [
        (stray, stray + SKIPPED - 1)
    ]
    for peer in others:
        await peer.register()
    assert "a commit that is lost" in las.state.shards[1].halted
    assert not las.state.shards[2].halted
    status = await las.fleet.GetStatus(fleet_pb2.GetStatusRequest(), metadata=ADMIN, timeout=30)
    assert any(f"shard {stray} is on {first.name}" in line for line in status.warnings)
    request = pb.RecoverShardRequest(shard=1, why=WHY)
    ahead = await las.logs.RecoverShard(request, metadata=ADMIN, timeout=30)
    assert (ahead.recovered, "a commit that is lost" in ahead.waits) == (False, True)
    assert las.state.shards[1].halted
    silent = pb.RecoverShardRequest(shard=1, accept_loss=True)
    reason, _ = await refused(las.logs.RecoverShard(silent, metadata=ADMIN, timeout=30))
    assert reason == "INVALID_ARGUMENT"
    request.accept_loss = True
    assert (await las.logs.RecoverShard(request, metadata=ADMIN, timeout=30)).recovered
    await until(lambda: bool(las.state.shards[1].shard.gaps), "the fence ends with a gap")
    gap = las.state.shards[1].shard.gaps[0]
    assert WHY in gap.why
    newest = las.state.audit[las.state.audited]
    assert (newest.what, newest.ok) == ("recover shard", True)


async def test_a_report_of_a_segment_that_a_lost_commit_prepared_halts(start_las, export, tmp_path):
    las = await begun_anew(start_las, tmp_path, export)
    lost = int(export.state.shards[1].drawn + 1)
    for peer in las.peers:
        await peer.register()
    await until(lambda: not las.state.shards[1].halted, "it is free")
    opened = fleet_pb2.SegmentOpened(shard=1, epoch=lost, begin=0)
    await las.peers[0].report(fleet_pb2.PeerReport(segment_opened=opened))
    assert "a commit that is lost" in las.state.shards[1].halted
    promise = fleet_pb2.HigherPromise(shard=2, epoch=1, promised=lost)
    await las.peers[1].report(fleet_pb2.PeerReport(higher_promise=promise))
    assert "a commit that is lost" in las.state.shards[2].halted

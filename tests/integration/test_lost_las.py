"""A majority of the LAS is lost for good: a new group begins from what is left, under load."""

import json
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from peerd.client.blocking import Client, connect
from peerd.client.errors import LasUnavailable, RecordsMissing
from peerd.storage.options import StorageOptions
from peerd.storage.store import Store
from peerd.testing.dev_cluster import DevCluster, Shape
from peerd.testing.ports import free_address
from tests.integration.load import Load, assert_nothing_lost, until
from tests.integration.test_membership import peerctl

pytestmark = pytest.mark.timeout(300)

LOG = "orders"
SURVIVOR = "las-3"


def las(cluster: DevCluster, name: str, command: str, *more: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command on the host of a LAS node."""
    config = str(cluster.member(name).config)
    done = subprocess.run(
        [sys.executable, "-m", "las.daemon.cli", command, *map(str, more), "-c", config],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def lose_the_majority(cluster: DevCluster) -> None:
    """Every LAS node ends, and the disks of two are gone."""
    for member in cluster.las:
        if member.running:
            member.kill()
    for member in cluster.las:
        if member.id != SURVIVOR:
            shutil.rmtree(member.data_dir)


def begin_anew(cluster: DevCluster, file: Path) -> str:
    """As docs/operations.md says; returns what the look ahead told."""
    status, ahead, told = las(cluster, SURVIVOR, "recover", file)
    assert status == 0, told
    assert not file.exists()
    assert "nothing was written" in ahead
    status, said, told = las(cluster, SURVIVOR, "recover", file, "--accept-data-loss")
    assert status == 0, told
    assert f"las init --import {file}" in said
    survivor = cluster.member(SURVIVOR).data_dir
    assert las(cluster, SURVIVOR, "init", "--import", file)[0] == 2
    survivor.rename(survivor.with_name("old"))
    ids = set()
    for member in cluster.las:
        status, said, told = las(cluster, member.id, "init", "--import", file)
        assert status == 0, told
        ids.add(said)
    assert len(ids) == 1
    for member in cluster.las:
        member.start()
    for member in cluster.las:
        member.wait_ready()
    return ahead


def warnings(client: Client) -> str:
    return "\n".join(client.las.status().warnings)


def acts(client: Client) -> list[tuple[str, str]]:
    """Who did what, as the audit has it."""
    return [(record.who, record.what) for record in client.las.audit().records]


def test_a_new_group_begins_from_an_older_member_and_appends_never_stop(tmp_path: Path):
    with (
        DevCluster(tmp_path / "dev", Shape(peers=3, las=3), port_base=None) as cluster,
        connect(credentials=cluster.peerctl_toml) as client,
    ):
        client.create_log(LOG, shards=2, copies=3, acks=2)
        client.create_log("switched", shards=1, copies=3, acks=2)
        client.append("switched", b"before")
        assert peerctl(cluster, "export", str(tmp_path / "export.las"))[0] == 0
        with Load(cluster.peerctl_toml, LOG) as load:
            load.wait_acked(100)
            # From here on the survivor learns nothing.
            cluster.member(SURVIVOR).kill()
            name = switch(cluster, client, "switched")
            client.append("switched", b"in the lost segment")
            client.create_log("unknown", shards=1, copies=3, acks=2)
            stray = client.describe_log("unknown")[1][0].shard
            client.append("unknown", b"kept")
            lose_the_majority(cluster)
            look_at_exports(cluster, tmp_path)
            load.wait_acked(100)
            assert f"{LOG} (2), switched (1)" in begin_anew(cluster, tmp_path / "begin.las")
            cluster.wait_whole()
            until(lambda: "held" not in warnings(client), "what outlived nothing is free")
            go_on_where_they_are(client, name, stray)
            replace_a_host(cluster, client, load)
            survive_a_death(cluster, client, load)
            load.finish()
        assert_nothing_lost(cluster, load)
        give_up(cluster, client, name)
        assert "las recover" in {what for _, what in acts(client)}
        refuse_the_old_member(cluster)
        for peer in cluster.peers:
            peer.kill()
        assert sum(stray in stored(peer.data_dir) for peer in cluster.peers) == 3


def look_at_exports(cluster: DevCluster, directory: Path) -> None:
    """An export does as well as a member's directory, of which one can be made, too."""
    export = directory / "export.las"
    status, said, told = las(cluster, "las-1", "recover", directory / "x", "--from", export)
    assert (status, f"{LOG} (2)" in said) == (0, True), told
    status, said, told = las(cluster, SURVIVOR, "export", directory / "offline.las")
    assert (status, f"from {SURVIVOR}" in said) == (0, True), told


def go_on_where_they_are(client: Client, name: str, stray: int) -> None:
    """A segment and a log that lost commits made take appends and are read; status tells."""
    told = warnings(client)
    assert f"shard {name} is halted" in told
    assert "which was drawn by a commit that is lost" in told
    assert f"shard {stray} is on" in told
    assert client.append("switched", b"still").offset == 2
    assert values(client, "switched") == [b"before", b"in the lost segment", b"still"]
    assert client.append("unknown", b"still").offset == 1
    assert values(client, "unknown") == [b"kept", b"still"]


def survive_a_death(cluster: DevCluster, client: Client, load: Load) -> None:
    """The map can be changed again: by a person, and for a death."""
    client.create_log("after", shards=1)
    assert client.append("after", b"x").offset == 0
    victim = client.describe_log(LOG)[1][0].open.plan.primary.peer
    cluster.member(victim).kill()
    load.wait_acked(300)
    cluster.restart(victim)
    cluster.wait_whole()


def group_id(cluster: DevCluster) -> str:
    manifest = json.loads((cluster.member("las-1").data_dir / "manifest.json").read_text())
    return f"{manifest['cluster_id']}+{manifest['recovery']}"


def replace_a_host(cluster: DevCluster, client: Client, load: Load) -> None:
    """A LAS host is gone with its disk; another one takes its name, at another address."""
    lost = cluster.member("las-2")
    lost.kill()
    shutil.rmtree(lost.data_dir)
    address = free_address()
    for member in cluster.las:
        text = member.config.read_text()
        member.config.write_text(text.replace(f'"{lost.address}"', f'"{address}"'))
    status, _, told = las(cluster, lost.id, "rejoin", "--cluster-id", group_id(cluster))
    assert status == 0, told
    cluster.restart(lost.id)
    for name in ("las-1", "las-3"):
        cluster.member(name).signal(signal.SIGTERM)
        cluster.member(name).wait()
        cluster.restart(name)
    manifest = lost.data_dir / "manifest.json"
    until(lambda: not json.loads(manifest.read_text())["rejoining"], "it votes")
    load.wait_acked(100)
    until(lambda: "cannot be reached" not in warnings(client), "everybody has found it")
    until(lambda: (lost.id, "las rejoin") in acts(client), "the audit has it")


def refuse_the_old_member(cluster: DevCluster) -> None:
    """The directory of the group before is of no use in the new one, until it rejoins."""
    member = cluster.member(SURVIVOR)
    member.kill()
    shutil.rmtree(member.data_dir)
    member.data_dir.with_name("old").rename(member.data_dir)
    member.start()
    log = cluster.directory / "logs" / f"{SURVIVOR}.log"
    until(lambda: "has no members of the one before" in log.read_text(), "it is refused")
    member.kill()
    status, said, told = las(cluster, SURVIVOR, "rejoin", "--cluster-id", group_id(cluster))
    assert (status, group_id(cluster) in said) == (0, True), told
    member.start()
    manifest = member.data_dir / "manifest.json"
    until(lambda: not json.loads(manifest.read_text())["rejoining"], "it votes again")


def switch(cluster: DevCluster, client: Client, log: str) -> str:
    """Give a shard of `log` another primary, by a person's word; its name."""
    shard = client.describe_log(log)[1][0]
    to = next(
        each.peer for each in shard.open.plan.voters if each.peer != shard.open.plan.primary.peer
    )
    status, _, told = peerctl(cluster, "shard", "switch", f"{log}/{shard.shard}", to)
    assert status == 0, told

    def switched() -> bool:
        # Two of three LAS nodes on a busy machine: a leader may be missed for a while.
        with suppress(LasUnavailable):
            return bool(client.describe_log(log)[1][0].open.epoch > shard.open.epoch)
        return False

    until(switched, f"{log} has switched")
    return f"{log}/{shard.shard}"


def values(client: Client, log: str) -> list[bytes]:
    return [record.value for record in client.read(log)]


def give_up(cluster: DevCluster, client: Client, name: str) -> None:
    """A person lets the shard go on without what the lost segment holds; readers are told."""
    status, ahead, told = peerctl(cluster, "recover", "shard", name)
    assert (status, "nothing was changed" in ahead) == (0, True), told
    word = ("--why", "two LAS hosts burned", "--accept-data-loss")
    status, _, told = peerctl(cluster, "recover", "shard", name, *word)
    assert status == 0, told
    until(lambda: client.describe_log("switched")[1][0].gaps != (), "the gap is in the map")
    reader = client.read("switched", start="earliest")
    seen: list[bytes] = []
    with pytest.raises(RecordsMissing, match="two LAS hosts burned"):
        seen.extend(record.value for record in reader)
    assert seen == [b"before"]


def stored(directory: Path) -> set[int]:
    """Ids of the shards of which a stopped peer's store has segments."""
    store = Store.open(
        directory, StorageOptions(), deliver=lambda _: None, on_failure=lambda _: None
    )
    try:
        return {int(shard) for shard, found in store.shards.items() if found.segments}
    finally:
        store.close()

"""A rolling upgrade under load, as the manual says, from the version before to this one.

The version before is a commit of this repository, named in `tests/upgrade/previous`: its sources
are taken from the history, its protobuf code is made anew, and daemons run from there until their
turn comes. LAS nodes and peers of both versions work together meanwhile.

`python -m tests.integration.test_upgrade [ROUNDS]` prints the longest pause of each daemon's turn;
with ROUNDS, restarts of one version follow.
"""

import io
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from peerd.client.blocking import connect
from peerd.client.errors import PeerdError
from peerd.testing.dev_cluster import DevCluster, Member, Shape
from tests.integration.load import Load, assert_nothing_lost, tell, until

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).parents[2]
PREVIOUS = (ROOT / "tests/upgrade/previous").read_text().strip()
SHAPE = Shape(peers=4, las=3)
# What a hand-over may take on a crowded machine; a turn that waits for a detection takes longer.
PAUSE_MS_MAX = 5_000.0


def has_previous() -> bool:
    """Whether the history that this checkout has goes back that far."""
    found = subprocess.run(
        ["git", "cat-file", "-e", f"{PREVIOUS}^{{commit}}"],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return found.returncode == 0


def previous_version(directory: Path) -> Path:
    """The sources of the version before in `directory`, fit to run."""
    archive = subprocess.run(
        ["git", "archive", PREVIOUS], cwd=ROOT, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        packed.extractall(directory, filter="data")
    subprocess.run([sys.executable, "hatch_build.py"], cwd=directory, check=True)
    return directory


@contextmanager
def cluster_of(directory: Path, sources: Path) -> Iterator[DevCluster]:
    """A cluster whose daemons run from `sources` until they are started again without."""
    cluster = DevCluster(directory, SHAPE, port_base=None)
    for member in cluster.members:
        # Python would find this version in the directory that it is started in.
        member.environment = {"PYTHONPATH": str(sources), "PYTHONSAFEPATH": "1"}
    with cluster:
        yield cluster


def restart(member: Member) -> None:
    """Stop a daemon as a service manager does, and start the version at hand."""
    member.signal(signal.SIGTERM)
    assert member.wait(60.0) == 0, member.log.read_text()[-2_000:]
    member.environment = {}
    member.start()
    member.wait_ready(60.0)


def leads(cluster: DevCluster) -> bool:
    """Whether the LAS has a leader and hears all of its nodes."""
    with connect(credentials=cluster.peerctl_toml) as client:
        try:
            status = client.las.status()
        except PeerdError:
            return False
        return bool(status.las_leader) and all(node.up for node in status.las)


def entry(cluster: DevCluster, name: str):
    with connect(credentials=cluster.peerctl_toml) as client:
        return next(each for each in client.las.status().nodes if each.node.name == name)


def turn_of_peer(cluster: DevCluster, member: Member) -> None:
    """Drain, stop, start, undrain: docs/operations.md, Maintenance."""
    with connect(credentials=cluster.peerctl_toml) as client:
        client.las.drain(member.id)
        until(lambda: entry(cluster, member.id).expendable, f"{member.id} is expendable")
        boot = entry(cluster, member.id).node.boot_id
        restart(member)
        until(lambda: entry(cluster, member.id).node.boot_id != boot, f"{member.id} came again")
        client.las.undrain(member.id)


def turn_of_las(cluster: DevCluster, member: Member) -> None:
    restart(member)
    until(lambda: leads(cluster), "the group is whole and has a leader")


def roll(cluster: DevCluster, load: Load, members: Iterable[Member]) -> dict[str, float]:
    """The turns of these daemons; the longest pause of each, in milliseconds."""
    pauses = {}
    for member in members:
        begin_s = time.monotonic()
        since = len(load.rows)
        (turn_of_las if member in cluster.las else turn_of_peer)(cluster, member)
        load.wait_acked(40)
        pauses[member.id] = load.pause_ms(since)
        tell(f"{member.id}: {pauses[member.id]:.0f} ms, turn of {time.monotonic() - begin_s:.1f} s")
    return pauses


@pytest.mark.skipif(not has_previous(), reason="needs the history of the repository")
def test_daemons_of_two_versions_work_together_while_one_after_the_other_is_upgraded(
    tmp_path, record_property
):
    sources = previous_version(tmp_path / "previous")
    with cluster_of(tmp_path / "cluster", sources) as cluster:
        with connect(credentials=cluster.peerctl_toml) as client:
            client.create_log("orders", shards=4, copies=3)
        with Load(cluster.peerctl_toml, "orders", rate=100.0) as load:
            load.wait_acked(50)
            # Some of each, to be quick; the program does them all.
            pauses = roll(cluster, load, (cluster.las[0], *cluster.peers[:2]))
            load.finish()
        record_property("pauses_ms", pauses)
        assert max(pauses.values()) < PAUSE_MS_MAX
        assert_nothing_lost(cluster, load)


def main() -> None:
    """As the module says."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    with tempfile.TemporaryDirectory() as directory:
        sources = previous_version(Path(directory) / "previous")
        with cluster_of(Path(directory) / "cluster", sources) as cluster:
            with connect(credentials=cluster.peerctl_toml) as client:
                client.create_log("orders", shards=4, copies=3)
            with Load(cluster.peerctl_toml, "orders", rate=200.0) as load:
                load.wait_acked(200)
                every = [
                    pause
                    for _ in range(rounds)
                    for pause in roll(cluster, load, cluster.members).values()
                ]
                load.finish()
            assert_nothing_lost(cluster, load)
    tell(f"{len(load.rows)} appends, none failed, none lost; longest pause {max(every):.0f} ms")


if __name__ == "__main__":
    main()

"""A rolling upgrade under load, as the manual says, from the version before to this one.

The version before is a commit of this repository, named in `tests/upgrade/previous`: its sources
are taken from the history, its protobuf code is made anew, and daemons run from there until their
turn comes. LAS nodes and peers of both versions work together meanwhile. Until the upgrade is
finalised each daemon can be set back to the version before the same way.

`python -m tests.integration.test_upgrade [ROUNDS]` upgrades every daemon, sets every one back,
upgrades all again and finalises, and prints the longest pause of each daemon's turn; with ROUNDS,
restarts of one version follow.
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

from peerd.client.blocking import Client, connect
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
        # Python before 3.11.4 knows no filters; the archive is the repository's own.
        kind = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        packed.extractall(directory, **kind)
    subprocess.run([sys.executable, "hatch_build.py"], cwd=directory, check=True)
    return directory


@contextmanager
def cluster_of(directory: Path, sources: Path) -> Iterator[DevCluster]:
    """A cluster whose daemons run from `sources` until they are started again without."""
    cluster = DevCluster(directory, SHAPE, port_base=None)
    for member in cluster.members:
        member.environment = version_of(sources)
    with cluster:
        yield cluster


def version_of(sources: Path | None) -> dict[str, str]:
    """The environment of a daemon that runs from `sources`, or the version at hand."""
    if sources is None:
        return {}
    # Python would find this version in the directory that it is started in.
    return {"PYTHONPATH": str(sources), "PYTHONSAFEPATH": "1"}


def restart(member: Member, sources: Path | None = None) -> None:
    """Stop a daemon as a service manager does, and start it from `sources`."""
    member.signal(signal.SIGTERM)
    assert member.wait(60.0) == 0, member.log.read_text()[-2_000:]
    member.environment = version_of(sources)
    member.start()
    member.wait_ready(60.0)


def leads(client: Client) -> bool:
    """Whether the LAS has a leader and hears all of its nodes."""
    try:
        status = client.las.status()
    except PeerdError:
        return False
    return bool(status.las_leader) and all(node.up for node in status.las)


def entry(client: Client, name: str):
    return next(each for each in client.las.status().nodes if each.node.name == name)


def watch(condition, what: str) -> None:
    """Wait as an operator does: who asks more often measures the asking, where cores are few."""
    until(condition, what, every_s=0.2)


def turn_of_peer(cluster: DevCluster, member: Member, sources: Path | None) -> None:
    """Drain, stop, start, undrain: docs/operations.md, Maintenance."""
    with connect(credentials=cluster.peerctl_toml) as client:
        client.las.drain(member.id)
        watch(lambda: entry(client, member.id).expendable, f"{member.id} is expendable")
        boot = entry(client, member.id).node.boot_id
        restart(member, sources)
        watch(lambda: entry(client, member.id).node.boot_id != boot, f"{member.id} came again")
        client.las.undrain(member.id)


def turn_of_las(cluster: DevCluster, member: Member, sources: Path | None) -> None:
    restart(member, sources)
    with connect(credentials=cluster.peerctl_toml) as client:
        watch(lambda: leads(client), "the group is whole and has a leader")


def levels(cluster: DevCluster) -> tuple[int, int]:
    """Of the cluster: in use, and known by all."""
    with connect(credentials=cluster.peerctl_toml) as client:
        status = client.las.status()
    return status.level_used, status.level_known


def roll(
    cluster: DevCluster, load: Load, members: Iterable[Member], sources: Path | None = None
) -> dict[str, float]:
    """The turns of these daemons to `sources`; the longest pause of each, in milliseconds."""
    pauses = {}
    for member in members:
        begin_s = time.monotonic()
        since = len(load.rows)
        (turn_of_las if member in cluster.las else turn_of_peer)(cluster, member, sources)
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
            pauses = roll(cluster, load, (cluster.las[0], cluster.peers[0]))
            # What was upgraded and not finalised can be set back.
            back = roll(cluster, load, (cluster.las[0], cluster.peers[0]), sources)
            pauses |= {f"{name} back": pause for name, pause in back.items()}
            load.finish()
        record_property("pauses_ms", pauses)
        assert max(pauses.values()) < PAUSE_MS_MAX
        assert_nothing_lost(cluster, load)


def there_and_back(cluster: DevCluster, load: Load, sources: Path) -> list[float]:
    """Upgrade all, set all back, upgrade all again and finalise; every pause in milliseconds."""
    pauses: list[float] = []
    for version in (None, sources, None):
        tell("to the version before" if version else "to this version")
        pauses += roll(cluster, load, cluster.members, version).values()
    used, known = levels(cluster)
    assert used < known, "an upgrade that waits for a person"
    with connect(credentials=cluster.peerctl_toml) as client:
        answer = client.las.finalize_upgrade()
    assert (answer.level_before, answer.level_used) == (used, known)
    tell(f"finalised: level {known} is in use, before it {used}")
    load.wait_acked(40)
    return pauses


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
                every = there_and_back(cluster, load, sources)
                for _ in range(rounds - 1):
                    every += roll(cluster, load, cluster.members).values()
                load.finish()
            assert_nothing_lost(cluster, load)
    tell(f"{len(load.rows)} appends, none failed, none lost; longest pause {max(every):.0f} ms")


if __name__ == "__main__":
    main()

"""`peerctl backup` and `peerctl restore` on a directory; with processes: tests/integration."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from las.core.commands import CreateLog
from las.core.state import GAP_OFFSETS_MIN, ClusterState
from las.core.tier_commands import TierShard
from las.daemon import exports
from las.daemon.exports import Export, Origin
from peerd.cli import backing_up
from peerd.cli.peerctl import app
from peerd.core.ids import Epoch, Offset
from peerd.tier.directory import DirectoryBackend
from peerd.tier.errors import Inherited, MissingObject, WrongKey
from peerd.tier.format import Owner
from peerd.tier.heirs import owned
from peerd.tier.keys import NO_KEYS, KeyRing, ring_of
from peerd.tier.manifest import Manifest, generation_of_name, prefix_of
from peerd.tier.reader import read_manifest
from peerd.tier.store import TierStore
from peerd.tier.writing import put_manifest, put_object
from tests.las_core.builders import SHARD, done, name, process, with_log
from tests.tier.objects import batches_of, object_of

ORIGIN = Origin(cluster="dev", source="las-1", index=9, term=2, proven_index=9)
OWNER = Owner(cluster="cluster-1", log="orders", shard=SHARD, epoch=Epoch(1))
PREFIX = prefix_of("cluster-1", "orders", SHARD)


class Place:
    """A tier in a directory, and a cluster that has records of one shard there."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "tier"
        self.config = directory / "peerd.toml"
        self.config.write_text(f'data_dir = "/nowhere"\n[tier]\nurl = "file://{self.root}"\n')
        self.file = directory / "begin.las"

    @property
    def store(self) -> TierStore:
        return TierStore(DirectoryBackend(self.root), deadline_ms=5_000, attempts=1)

    def run(self, *arguments: object, status: int = 0) -> str:
        done = CliRunner().invoke(app, [*map(str, arguments), "--tier", str(self.config)])
        assert done.exit_code == status, done.output
        return done.output

    def json(self, *arguments: object) -> object:
        return json.loads(self.run(*arguments, "-o", "json"))

    async def manifest(self, *, objects: int = 2, keys: KeyRing = NO_KEYS) -> tuple[str, int]:
        """The name of the manifest of as many objects, and its end."""
        entries, at, empty = [], 0, manifest_of(())
        for number in range(objects):
            batches = batches_of([500] * 4, begin=at, seed=number)
            made = object_of(batches, owner=OWNER, keys=keys)
            entries.append(await put_object(self.store, keys, empty, *made))
            at = batches[-1].end
        return await put_manifest(self.store, manifest_of(tuple(entries))), at

    def backed_up(
        self,
        state: ClusterState,
        committed: int = 0,
        at_s: float = 1e9,
        keys: KeyRing = NO_KEYS,
    ) -> str:
        # `scratch` is in no tier; without records there is nothing that would lack.
        data = Export(origin=ORIGIN, state=state).to_bytes()
        known = {SHARD: Offset(committed)}
        work = backing_up.write(self.store, keys, lambda: data, known, at_s)
        return asyncio.run(work).id


def manifest_of(entries) -> Manifest:
    return Manifest(
        cluster="cluster-1",
        log="orders",
        shard=SHARD,
        generation=5,
        epoch=Epoch(1),
        key_hash_low=0,
        key_hash_high=(1 << 64) - 1,
        entries=entries,
    )


def state_with(manifest: str, end: int) -> ClusterState:
    """`orders` is in the tier up to `end`; `_positions` and `scratch` are not."""
    logs = [
        CreateLog(name=each, copies=1, acks=1, nodes=(name(1),), rows=((0,),))
        for each in ("_positions", "scratch")
    ]
    tiered = TierShard(
        shard=SHARD,
        epoch=Epoch(1),
        by=process(1),
        follows="",
        begin=Offset(0),
        end=Offset(end),
        manifest=manifest,
    )
    return done(with_log(), *logs, tiered)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def backup(place: Place) -> str:
    manifest, end = asyncio.run(place.manifest())
    return place.backed_up(state_with(manifest, end), committed=end)


def test_backups_are_listed_and_verified(place: Place, backup: str):
    assert backup in place.run("backup", "list")
    (listed,) = place.json("backup", "list")
    assert (listed["id"], listed["cluster"], listed["whole"]) == (backup, "dev", True)
    assert [each["log"] for each in listed["shards"]] == ["orders", "scratch"]
    told = place.json("backup", "verify", backup, "--deep")["shards"][0]
    assert (told["begin"], told["end"], told["objects"]) == (0, 24, 2)
    assert "is sound" in place.run("backup", "verify", backup)


def test_old_backups_go_and_the_newest_whole_one_stays(place: Place, backup: str):
    manifest, end = asyncio.run(place.manifest())
    later = [
        place.backed_up(state_with(manifest, end), committed=end + 3, at_s=1e9 + day * 86_400)
        for day in (1, 2, 3)
    ]
    prune = ("backup", "prune", "--keep", 1)
    assert place.json(*prune) == {"removed": False, "backups": later[:2]}
    assert "with --remove" in place.run(*prune).lower()
    young = (time.time() - 1e9) / 86_400 - 0.5
    assert "is old enough" in place.run(*prune, "--older-than-days", young)
    assert len(place.json("backup", "list")) == 4
    records = sorted(place.root.rglob("*.chunk"))
    assert "2 backups removed" in place.run(*prune, "--remove")
    assert [each["id"] for each in place.json("backup", "list")] == [backup, later[2]]
    assert sorted(path.name for path in (place.root / "backups").rglob("*") if path.is_file())
    assert not any((place.root / "backups" / later[0]).glob("*"))
    assert sorted(place.root.rglob("*.chunk")) == records
    place.run("backup", "verify", backup, "--deep")
    assert "is old enough" in place.run(*prune, "--remove")


def test_a_damaged_backup_is_told_and_left_to_a_person(place: Place, backup: str):
    manifest, end = asyncio.run(place.manifest())
    newer = place.backed_up(state_with(manifest, end), committed=end, at_s=1e9 + 9)
    index = next((place.root / "backups" / backup).glob("index-*"))
    index.write_bytes(index.read_bytes()[:-1] + b"x")
    told = place.run("backup", "list", status=1)
    assert f"{backup}: DAMAGED_OBJECT" in told
    assert newer in told
    assert "is old enough" in place.run("backup", "prune", "--keep", 1, "--remove")
    assert index.exists()


def test_what_is_behind_is_told(place: Place):
    manifest, end = asyncio.run(place.manifest())
    place.backed_up(state_with(manifest, end), committed=end + 3)
    (listed,) = place.json("backup", "list")
    assert listed["whole"] is False


def test_errors_are_one_line(place: Place, backup: str, tmp_path: Path):
    told = place.run("backup", "verify", "20010101T000000Z-00000000", status=1)
    assert "MISSING_OBJECT" in told
    newest = max(place.root.rglob("*.chunk"))
    newest.unlink()
    for command in (("backup", "verify", backup), ("restore", backup, place.file)):
        assert "MISSING_OBJECT" in place.run(*command, status=1)
    assert not place.file.exists()
    place.config.write_text("name = 'x'\n")
    assert "tier.url is not set" in place.run("backup", "list", status=2)
    place.config = tmp_path / "none.toml"
    assert "no such file" in place.run("backup", "list", status=2)


def test_a_look_ahead_changes_nothing(place: Place, backup: str):
    before = sorted(place.root.rglob("*"))
    assert "nothing was written" in place.run("restore", backup, place.file)
    assert not place.file.exists()
    assert sorted(place.root.rglob("*")) == before


def test_a_file_that_cannot_be_made_changes_nothing(place: Place, backup: str):
    before = sorted(place.root.rglob("*"))
    file = place.file.parent / "none" / "begin.las"
    for word in ([], ["--old-cluster-is-gone"]):
        assert "no directory to write into" in place.run("restore", backup, file, *word, status=2)
    assert sorted(place.root.rglob("*")) == before


def test_a_group_may_begin_with_what_is_written(place: Place, backup: str):
    said = place.run("restore", backup, place.file, "--old-cluster-is-gone")
    assert f"las init --import {place.file}" in said
    export = exports.read(place.file)
    assert export.is_recovered
    assert set(export.state.logs) == {"orders", "scratch"}
    entry = export.state.shards[SHARD].shard
    assert (entry.tier.begin, entry.tier.end) == (0, 24)
    assert entry.open.begin == 24 + GAP_OFFSETS_MIN
    assert "backup " + backup in entry.gaps[0].why
    heir = export.state.cluster_id
    assert heir != "cluster-1"
    prefix = prefix_of(heir, "orders", SHARD)
    assert (place.root / prefix / entry.tier.manifest).exists()
    listed = asyncio.run(read_manifest(place.store, heir, "orders", SHARD, entry.tier.manifest))
    assert generation_of_name(entry.tier.manifest) == 6
    assert all((place.root / listed.key(each)).exists() for each in listed.entries)
    assert not any((place.root / prefix).glob("*.chunk"))
    place.run("restore", backup, place.file, "--old-cluster-is-gone", status=2)


def test_of_two_restores_the_last_has_the_tier_and_the_others_are_told(place: Place, backup: str):
    heirs = []
    for number in range(2):
        place.file = place.file.with_name(f"begin-{number}.las")
        place.run("restore", backup, place.file, "--old-cluster-is-gone")
        heirs.append(exports.read(place.file).state.cluster_id)
    assert f"restored before, as {heirs[1]}" in place.run("backup", "verify", backup)
    assert place.json("backup", "verify", backup)["restored_as"] == heirs[1]
    assert asyncio.run(owned(place.store, heirs[1])) == ("cluster-1",)
    for loser in ("cluster-1", heirs[0]):
        with pytest.raises(Inherited, match=f"that of cluster {heirs[1]} since"):
            asyncio.run(owned(place.store, loser))


def test_what_retention_removed_since_then_is_left_out(place: Place, backup: str):
    min(place.root.rglob("*.chunk")).unlink()
    place.run("restore", backup, place.file, "--old-cluster-is-gone")
    tier = exports.read(place.file).state.shards[SHARD].shard.tier
    assert (tier.begin, tier.end) == (12, 24)


def test_a_manifest_that_was_replaced_meanwhile_is_looked_for_in_a_newer_state(place: Place):
    manifest, end = asyncio.run(place.manifest())
    old = Export(origin=ORIGIN, state=state_with("manifest-" + "0" * 20 + "-" + "a" * 32, end))
    new = Export(origin=ORIGIN, state=state_with(manifest, end))
    states = [old.to_bytes(), old.to_bytes(), new.to_bytes()]
    work = backing_up.write(place.store, NO_KEYS, lambda: states.pop(0), {}, 1e9)
    assert asyncio.run(work).shards[0].manifest == manifest
    work = backing_up.write(place.store, NO_KEYS, old.to_bytes, {}, 1e9)
    with pytest.raises(MissingObject):
        asyncio.run(work)


def test_a_backup_is_not_written_for_all_to_read_where_records_are_encrypted(place: Place):
    keys = ring_of([b"k" * 32])
    manifest, end = asyncio.run(place.manifest(keys=keys))
    state = state_with(manifest, end)
    with pytest.raises(WrongKey, match=r"nothing was written; add tier\.key_files"):
        place.backed_up(state)
    assert place.json("backup", "list") == []
    assert place.backed_up(state, keys=keys)


def test_other_commands_do_not_wait_for_what_these_need():
    code = "import sys, peerd.cli.peerctl; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"las.daemon.exports", "peerd.tier.backup"} & set(done.stdout.split())

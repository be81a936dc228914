"""Data directories: whose they are, and when they may be used."""

import json
import uuid

import pytest

from las.raft import (
    DirectoryEmpty,
    DirectoryInUse,
    DirectoryNotEmpty,
    StoreCorrupt,
    StoreError,
    WrongCluster,
    WrongMember,
    init_directory,
    open_directory,
    rejoin_directory,
)
from las.raft.errors import PeerRefused

CLUSTER_ID = str(uuid.UUID(int=7))
NAMES = ["a", "b", "c"]


def init(directory, **changes):
    arguments = {"cluster": "test", "name": "a", "members": NAMES, "cluster_id": CLUSTER_ID}
    return init_directory(directory, **{**arguments, **changes})


def rejoin(directory, **changes):
    arguments = {"cluster": "test", "name": "a", "members": NAMES, "cluster_id": CLUSTER_ID}
    return rejoin_directory(directory, **{**arguments, **changes})


@pytest.fixture
def open_store():
    stores = []

    def open_store(directory, **changes):
        arguments = {"cluster": "test", "name": "a", "members": NAMES}
        stores.append(open_directory(directory, **{**arguments, **changes}))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def test_a_new_directory_says_whose_it_is(tmp_path, open_store):
    made = init(tmp_path / "las")
    manifest = open_store(tmp_path / "las").manifest
    assert manifest == made
    assert (manifest.cluster_id, manifest.members) == (CLUSTER_ID, ("a", "b", "c"))
    assert not manifest.rejoining


def test_two_directories_never_have_one_id(tmp_path):
    assert init(tmp_path / "1").store_id != init(tmp_path / "2").store_id


@pytest.mark.parametrize("missing", [True, False])
def test_an_empty_directory_is_refused_and_the_way_out_is_named(tmp_path, open_store, missing):
    directory = tmp_path / "las"
    if not missing:
        directory.mkdir()
    with pytest.raises(DirectoryEmpty, match=r"las init.*las rejoin"):
        open_store(directory)


def test_a_directory_is_initialised_once(tmp_path):
    init(tmp_path)
    with pytest.raises(DirectoryNotEmpty, match="las rejoin"):
        init(tmp_path)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"cluster": "other"}, WrongCluster),
        ({"name": "b"}, WrongMember),
        ({"members": ["a", "b"]}, WrongMember),
        ({"members": ["a", "b", "d"]}, WrongMember),
    ],
)
def test_a_foreign_directory_is_refused(tmp_path, open_store, changes, error):
    init(tmp_path)
    with pytest.raises(error):
        open_store(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"name": "x"}, WrongMember),
        ({"members": ["a", "a", "b"]}, StoreError),
        ({"members": [chr(97 + number) for number in range(8)]}, StoreError),
        ({"cluster_id": "not a uuid"}, StoreError),
    ],
)
def test_names_and_ids_are_checked(tmp_path, changes, error):
    with pytest.raises(error):
        init(tmp_path / "las", **changes)
    assert not (tmp_path / "las").exists()


def test_a_directory_that_cannot_be_made_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        init(tmp_path / "file" / "las")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 1}', '{"members": 3}', '{"nonsense": 1, "members": []}']
)
def test_a_manifest_that_makes_no_sense_is_refused(tmp_path, open_store, text):
    init(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(StoreCorrupt, match="las rejoin"):
        open_store(tmp_path)


def test_a_newer_format_is_refused(tmp_path, open_store):
    init(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(StoreCorrupt, match="format 2"):
        open_store(tmp_path)


def test_one_process_at_a_time(tmp_path, open_store):
    init(tmp_path)
    store = open_store(tmp_path)
    with pytest.raises(DirectoryInUse):
        open_store(tmp_path)
    with pytest.raises(DirectoryInUse):
        rejoin(tmp_path)
    store.directory.joinpath("x.draft").write_text("")


def test_drafts_are_removed_at_start(tmp_path, open_store):
    init(tmp_path)
    (tmp_path / "journal.draft").write_bytes(b"half")
    open_store(tmp_path)
    assert not (tmp_path / "journal.draft").exists()


def test_rejoin_moves_the_old_store_aside(tmp_path, open_store):
    first = init(tmp_path)
    (tmp_path / "snapshot").write_bytes(b"old")
    second = rejoin(tmp_path)
    third = rejoin(tmp_path)
    assert second.rejoining
    assert len({first.store_id, second.store_id, third.store_id}) == 3
    assert (tmp_path / "before-rejoin-1" / "snapshot").read_bytes() == b"old"
    assert (tmp_path / "before-rejoin-2" / "manifest.json").exists()
    store = open_store(tmp_path)
    assert store.manifest == third
    store.finish_rejoin(9)
    assert (store.manifest.rejoining, store.manifest.vote_floor) == (False, 9)


def test_rejoin_works_on_nothing_and_on_a_damaged_manifest(tmp_path):
    assert rejoin(tmp_path / "new").rejoining
    init(tmp_path / "old")
    (tmp_path / "old" / "manifest.json").write_text("{")
    assert rejoin(tmp_path / "old").rejoining


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"cluster_id": str(uuid.UUID(int=8))}, WrongCluster),
        ({"name": "b"}, WrongMember),
    ],
)
def test_rejoin_does_not_take_a_foreign_directory(tmp_path, changes, error):
    init(tmp_path)
    with pytest.raises(error):
        rejoin(tmp_path, **changes)
    assert (tmp_path / "manifest.json").exists()


def test_a_replaced_store_of_another_member_is_refused_unless_it_rejoins(tmp_path, open_store):
    init(tmp_path)
    store = open_store(tmp_path)
    store.meet("b", "one", rejoined=False)
    store.meet("b", "one", rejoined=False)
    with pytest.raises(PeerRefused, match="las rejoin"):
        store.meet("b", "two", rejoined=False)
    store.meet("b", "two", rejoined=True)
    with pytest.raises(PeerRefused):
        store.meet("b", "one", rejoined=False)
    assert "two" in (tmp_path / "manifest.json").read_text()
    assert store.manifest.known_stores == {"b": "two"}

"""Old backups go whole, the newest that is whole stays, and so does what nobody can read."""

from dataclasses import replace

import pytest

from peerd.tier import backup as backups
from peerd.tier import pruning
from peerd.tier import store as tier_store
from peerd.tier.errors import MissingObject, TierUnavailable
from peerd.tier.keys import NO_KEYS
from peerd.tier.pruning import Stored, all_stored, prunable, remove
from tests.tier.objects import MemoryBackend
from tests.tier.test_backup import made
from tests.tier.test_reading import patient

DAY_S = 86_400.0


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(tier_store, "_BACKOFF_MS", 0)


async def some(backend: MemoryBackend, whole: str, cluster: str = "shop") -> list[Stored]:
    """One a day; `whole` says of each whether it is: `+` or `-`."""
    found = []
    for day, sign in enumerate(whole):
        backup = await made(backend, at_s=day * DAY_S)
        shards = tuple(replace(each, committed=12 + (sign == "-")) for each in backup.shards)
        found.append(Stored(id=backup.id, backup=replace(backup, cluster=cluster, shards=shards)))
    return found


@pytest.mark.parametrize(
    ("whole", "keep", "older_days", "gone"),
    [
        ("++++", 2, 0, [0, 1]),
        ("++++", 9, 0, []),
        ("++++", 1, 3, [0, 1]),
        ("+---", 1, 0, [1, 2]),
        ("----", 1, 0, [0, 1, 2]),
        ("", 1, 0, []),
    ],
)
async def test_which_go(whole, keep, older_days, gone):
    backend = MemoryBackend()
    found = await some(backend, whole)
    told = prunable(found, keep=keep, older_than_s=older_days * DAY_S, now_s=4 * DAY_S)
    assert [each.id for each in told] == [found[number].id for number in gone]


async def test_each_cluster_has_its_own_and_what_cannot_be_read_stays():
    backend = MemoryBackend()
    found = await some(backend, "++") + await some(backend, "++", cluster="other")
    found.append(Stored(id=backups.new_id(0), error="DAMAGED_OBJECT: x"))
    unfinished = [Stored(id=backups.new_id(at_s)) for at_s in (2 * DAY_S, 3.1 * DAY_S)]
    found += [*unfinished, Stored(id="99999999T999999Z-00000000")]
    told = prunable(found, keep=1, older_than_s=0, now_s=4 * DAY_S)
    assert {each.id for each in told} == {found[0].id, found[2].id, unfinished[0].id}


async def test_one_is_none_before_any_part_of_it_goes():
    backend = MemoryBackend()
    store = patient(backend)
    first, second = await made(backend), await made(backend)
    before = {key for key in backend.objects if second.id in key}
    taken = backend.remove

    async def once(keys) -> None:
        await taken(keys)
        backend.faults = ["500"] * 9

    backend.remove = once
    with pytest.raises(TierUnavailable):
        await remove(store, first.id)
    backend.remove, backend.faults = taken, []
    assert [(each.id, each.backup is None) for each in await all_stored(store)] == sorted(
        [(first.id, True), (second.id, False)]
    )
    assert await remove(store, first.id) == 2
    assert set(backend.objects) == before
    for no_id in ("../shop", "", "20010101T000000Z-0000000"):
        with pytest.raises(MissingObject):
            await remove(store, no_id)


async def test_a_store_that_does_not_answer_tells_of_no_backup():
    backend = MemoryBackend()
    await made(backend)
    await backups.put_part(patient(backend), NO_KEYS, backups.new_id(9), backups.STATE, b"x")
    backend.faults = ["", "", *["500"] * 9]
    with pytest.raises(TierUnavailable):
        await pruning.all_stored(patient(backend))

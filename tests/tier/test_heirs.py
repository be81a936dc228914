"""Whose what lies in the tier is, when clusters were restored from there."""

import pytest

from peerd.tier import heirs
from peerd.tier import store as tier_store
from peerd.tier.errors import DamagedObject, Inherited, TierUnavailable
from peerd.tier.heirs import Kin, inherit, kin_of, owned
from tests.tier.objects import MemoryBackend
from tests.tier.test_reading import patient


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(tier_store, "_BACKOFF_MS", 0)


async def owner_of_all(store, *clusters: str) -> dict[str, tuple[str, ...] | str]:
    """What each of them inherited from; of who lost, whom the error names."""
    found: dict[str, tuple[str, ...] | str] = {}
    for cluster in clusters:
        try:
            found[cluster] = await owned(store, cluster)
        except Inherited as error:
            found[cluster] = str(error).split("that of cluster ")[1].split()[0]
    return found


async def test_a_cluster_that_was_never_restored_owns_what_it_has():
    store = patient(MemoryBackend())
    assert await kin_of(store, "a") == Kin()
    assert await owned(store, "a") == ()


async def test_an_heir_owns_all_that_those_before_it_have():
    store = patient(MemoryBackend())
    await inherit(store, "b", "a")
    assert await owner_of_all(store, "a", "b") == {"a": "b", "b": ("a",)}
    await inherit(store, "c", "b")
    assert await owner_of_all(store, "a", "b", "c") == {"a": "c", "b": "c", "c": ("a", "b")}
    # Back to a backup of the first one: whoever has anything of it has lost.
    await inherit(store, "d", "a")
    assert await owner_of_all(store, "a", "b", "c", "d") == {
        "a": "d",
        "b": "c",
        "c": "d",
        "d": ("a",),
    }


async def test_a_restore_that_was_broken_off_leaves_nobody_in_doubt():
    backend = MemoryBackend()
    store = patient(backend)
    await inherit(store, "b", "a")
    create, calls = backend.create, []

    async def breaks_off(key: str, data: bytes) -> bool:
        calls.append(key)
        if len(calls) >= 4:  # the marks of the heir, and the first of two of those before it
            raise TierUnavailable("no")
        return await create(key, data)

    backend.create = breaks_off
    with pytest.raises(TierUnavailable):
        await inherit(store, "c", "b")
    backend.create = create
    # Neither of them may go on, and the next restore puts it right.
    assert await owner_of_all(store, "a", "b") == {"a": "b", "b": "c"}
    await inherit(store, "d", "b")
    assert await owner_of_all(store, "a", "b", "d") == {"a": "d", "b": "d", "d": ("a", "b")}


async def test_two_restores_at_once_leave_one_owner(monkeypatch):
    backend = MemoryBackend()
    store = patient(backend)
    create, others = backend.create, ["x", "y"]

    async def overtaken(key: str, data: bytes) -> bool:
        if key.startswith("clusters/a/heir-") and others:
            other = others.pop()
            await create(key, other.encode())
        return await create(key, data)

    backend.create = overtaken
    await inherit(store, "b", "a")
    assert (await kin_of(store, "a")).heir == "b"
    monkeypatch.setattr(heirs, "TRIES_MAX", 0)
    with pytest.raises(TierUnavailable, match="by others at the same time"):
        await inherit(store, "e", "a")


async def test_an_answer_that_is_lost_and_a_repeated_restore_change_nothing():
    backend = MemoryBackend(faults=["", "lost answer", "", "", "lost answer"])
    store = patient(backend)
    await inherit(store, "b", "a")
    await inherit(store, "b", "a")
    assert sorted(backend.objects) == ["clusters/a/heir-00000001", "clusters/b/ancestor-a"]


async def test_a_mark_that_names_nobody_is_told():
    store = patient(MemoryBackend(objects={"clusters/a/heir-00000001": b""}))
    with pytest.raises(DamagedObject, match="does not name a cluster"):
        await owned(store, "a")

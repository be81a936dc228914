"""Loads of the cores: who waits for whom, and what is fetched beside everything else."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from peerd.core import effects, events
from peerd.core.ids import NodeName, Offset, ReplicaId, RequestId, ShardId, StoreId
from peerd.core.producer import TableSnapshot
from peerd.daemon import outside
from peerd.daemon.outside import FETCHES_MAX, LOADS_MAX, QUIET_FETCHES_MAX, Surroundings
from peerd.daemon.peer_calls import PeerUnreachable
from peerd.daemon.supervisor import Supervisor
from tests.daemon.fleet import until

HANGS = ReplicaId(NodeName("hangs"), StoreId("1" * 32))
LIVES = ReplicaId(NodeName("lives"), StoreId("2" * 32))
DEAD = ReplicaId(NodeName("dead"), StoreId("3" * 32))
TABLE = TableSnapshot(as_of=Offset(5))


class Outer:
    """The other end of everything: calls, the store, and what the host was given."""

    def __init__(self) -> None:
        self.given: list[tuple[int, object]] = []
        self.under_way: dict[str, int] = {}
        self.fetched: list[tuple[int, int]] = []
        self.released = asyncio.Event()

    def loaded(self, shard: ShardId, event: object) -> None:
        self.given.append((shard, event))

    async def load_table(self, load: effects.LoadTable) -> TableSnapshot:
        return TABLE

    async def fetch_table(
        self, source: ReplicaId, shard: ShardId, as_of: Offset, since: Offset, *, or_later: bool
    ) -> TableSnapshot:
        self.under_way[source.peer] = self.under_way.get(source.peer, 0) + 1
        self.fetched.append((shard, as_of))
        try:
            if source == HANGS:
                await self.released.wait()
            if source == DEAD:
                raise PeerUnreachable("dead: UNAVAILABLE")
        finally:
            self.under_way[source.peer] -= 1
        return TABLE

    def kinds(self, kind: type[object]) -> list[int]:
        return [shard for shard, event in self.given if isinstance(event, kind)]


@pytest.fixture
async def outer() -> AsyncIterator[tuple[Outer, Surroundings]]:
    others = Outer()
    supervisor = Supervisor()
    around = Surroundings(
        me=SimpleNamespace(peer="me"),
        host=others,
        map_cache=SimpleNamespace(),
        links=SimpleNamespace(),
        neighbours=SimpleNamespace(),
        calls=others,
        reader=others,
        repairer=SimpleNamespace(),
        report=lambda _: None,
        supervisor=supervisor,
    )
    yield others, around
    others.released.set()
    await supervisor.stop(timeout_s=5)


def fetch(shard: int, source: ReplicaId, *, as_of: int = 5, is_waited_for: bool = True):
    return effects.FetchTable(
        shard=ShardId(shard),
        token=RequestId(shard),
        source=source,
        as_of=Offset(as_of),
        or_later=True,
        since=Offset(0),
        is_waited_for=is_waited_for,
    )


def load(shard: int) -> effects.LoadTable:
    return effects.LoadTable(
        shard=ShardId(shard),
        token=RequestId(shard),
        from_store=True,
        ranges=(),
        as_of=Offset(5),
        or_later=True,
    )


async def test_no_load_waits_for_a_fetch_and_no_fetch_for_one_from_another_store(outer) -> None:
    """Peers that look for tables at each other answer each other from their stores. If a load
    waited behind fetches, they would wait for each other.
    """
    others, around = outer
    for shard in range(2 * FETCHES_MAX + LOADS_MAX):
        around.load(fetch(shard, HANGS))
    await until(lambda: others.under_way.get("hangs") == FETCHES_MAX, "as many as may be")
    around.load(load(1_000))
    around.load(fetch(1_001, LIVES))
    await until(lambda: others.kinds(events.TableLoaded) == [1_000], "the load is answered")
    await until(lambda: others.kinds(events.TableFetched) == [1_001], "the other store, too")
    assert others.under_way["hangs"] == FETCHES_MAX
    others.released.set()
    await until(lambda: len(others.given) == 2 * FETCHES_MAX + LOADS_MAX + 2, "all are answered")


async def test_what_nothing_waits_for_is_fetched_a_little_at_a_time_and_once(outer) -> None:
    others, around = outer
    for as_of in (1, 2, 3):
        for shard in range(20):
            around.load(fetch(shard, HANGS, as_of=as_of, is_waited_for=False))
        await asyncio.sleep(0)
    await until(lambda: others.under_way.get("hangs") == QUIET_FETCHES_MAX, "they began")
    around.load(fetch(1_001, LIVES))
    await until(lambda: others.kinds(events.TableFetched) == [1_001], "it waits for none of them")
    assert others.under_way["hangs"] == QUIET_FETCHES_MAX
    others.released.set()
    await until(lambda: len(others.given) == QUIET_FETCHES_MAX + 1 + 20, "all came")
    # Those that still waited were asked for once, as they were wanted last.
    waited = others.fetched[QUIET_FETCHES_MAX + 1 :]
    assert sorted(waited) == [(shard, 3) for shard in range(20)]


async def test_a_quiet_fetch_is_followed_by_a_rest(outer, monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []

    async def rest(seconds: float) -> None:
        rests.append(seconds)

    others, around = outer
    monkeypatch.setattr(
        outside, "asyncio", SimpleNamespace(get_running_loop=asyncio.get_running_loop, sleep=rest)
    )
    for shard in range(5):
        around.load(fetch(shard, LIVES, is_waited_for=False))
    await until(lambda: len(others.given) == 5, "all came")
    assert len(rests) == 5
    assert all(0 <= seconds <= outside.QUIET_REST_S_MAX for seconds in rests)


async def test_a_store_that_does_not_answer_is_told_once(
    outer, monkeypatch: pytest.MonkeyPatch
) -> None:
    others, around = outer
    told: list[str] = []
    monkeypatch.setattr(
        outside, "_log", SimpleNamespace(info=lambda event, **_facts: told.append(event))
    )
    for shard in range(40):
        around.load(fetch(shard, DEAD))
    await until(lambda: len(others.kinds(events.TableUnavailable)) == 40, "all are answered")
    assert told == ["producer table not fetched"]

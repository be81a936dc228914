"""When copies are moved: last of all, some at a time, and how moves end that break off."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest

from las.core.commands import (
    AddHolder,
    Command,
    DropHolder,
    RaiseCommandLevel,
    RecordEvent,
    Result,
    SetAtRisk,
    SetNodeState,
    WantHolders,
)
from las.core.holder_commands import ReleaseHolder
from las.core.index import FleetIndex, indexed
from las.core.levels import COMMAND_LEVEL, RELEASES_LEVEL
from las.core.placement import FleetView, Limits
from las.core.planner import Want, plan
from las.core.state import ClusterState, NodeState
from las.daemon.config import Policy
from las.daemon.copy_moves import (
    COPY_MS,
    PLAN_REST_MS,
    QUIET_MS,
    RELEASE_MS,
    TAKES_MAX,
    CopyMover,
)
from las.daemon.rebalance_view import asked_for, rebalance_view
from las.daemon.rebalancer import Rebalancer
from las.daemon.splitter import Splitter
from las.daemon.surplus import SurplusReleaser
from peerd.core.ids import Epoch, NodeName, ReplicaId, ShardId, Tick
from peerd.transport.status import Reason, Refused, refusal
from tests.las_core.builders import do, done, name, process, replica
from tests.las_core.test_stored_balance import MIB, Sizes, bytes_of, node
from tests.las_core.test_stored_balance import fleet as fleet_of
from tests.las_daemon.stand_in import until

SIZE = 8 * MIB


class Clock:
    def __init__(self) -> None:
        self.ms = 0


class Fleet:
    """A group that commits at once, and stores that say what the committed map says."""

    def __init__(self, state: ClusterState, sizes: Sizes) -> None:
        self.state = done(state, RaiseCommandLevel(level=COMMAND_LEVEL))
        self.sizes = sizes
        self.silent: set[NodeName] = set()
        self.commands: list[Command] = []
        self.factor = 1.0
        self.down = False

    def indexed(self) -> tuple[ClusterState, FleetIndex]:
        return self.state, indexed(self.state)

    async def submit(self, command: Command) -> Result:
        if self.down:
            raise Refused(refusal(Reason.LAS_UNAVAILABLE, "no outcome"))
        self.state, result = do(self.state, command)
        self.commands.append(command)
        return result

    async def sizes_of(self, segments: Sequence[tuple[ShardId, Epoch]]) -> Sequence[int]:
        return [self.sizes.get(each, 0) for each in segments]

    async def holds(
        self, target: ReplicaId, segments: Sequence[tuple[ShardId, Epoch]]
    ) -> Sequence[bool]:
        return [True] * len(segments)

    def stored_bytes(self, node_name: NodeName) -> int | None:
        if node_name in self.silent:
            return None
        return round(self.factor * bytes_of(self.state, self.sizes).get(node_name, 0))

    def copy(self) -> None:
        """Everybody who is wanted has fetched."""
        for entry in self.state.shards.values():
            for segment in entry.shard.sealed:
                for store in segment.wanted_holders:
                    added = AddHolder(shard=entry.shard.shard, epoch=segment.epoch, holder=store)
                    self.state = done(self.state, added)

    def wanted(self) -> list[ReplicaId]:
        return [
            store
            for entry in self.state.shards.values()
            for segment in entry.shard.sealed
            for store in segment.wanted_holders
        ]


class Sizes512:
    """The calls of the fleet, of which each counts the segments."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.asked: list[NodeName] = []

    async def sizes(
        self, target: ReplicaId, segments: Sequence[tuple[ShardId, Epoch]]
    ) -> Sequence[int]:
        assert len(segments) <= 512
        self.asked.append(target.peer)
        return await self.fleet.sizes_of(segments)


class Works:
    """The mover with the rebalancer before it and the releases behind it."""

    def __init__(self, fleet: Fleet, clock: Clock, **policy: object) -> None:
        self.fleet = fleet
        self.clock = clock
        facts: dict[str, object] = {"rebalance_bytes_min": 0, "rebalance_after_s": 0}
        settings = Policy(**(facts | policy))
        self.calls = Sizes512(fleet)
        self.copies = CopyMover(
            fleet,
            self.calls,
            settings,
            view=self.view,
            limits=Limits(),
            stored_bytes=fleet.stored_bytes,
            now_ms=lambda: clock.ms,
            wall_ms=itertools.count(1).__next__,
        )
        self.rebalancer = Rebalancer(
            fleet,
            settings,
            view=self.view,
            limits=Limits(),
            writes=dict,
            now_ms=lambda: clock.ms,
            wall_ms=itertools.count(1).__next__,
            copies=self.copies,
        )
        self.surplus = SurplusReleaser(
            fleet,
            fleet,
            settings,
            stored_bytes=lambda node_name: fleet.stored_bytes(node_name) or 0,
            now_ms=lambda: clock.ms,
            moving=self.copies.moving,
            givers=self.copies.givers,
        )

    def view(self) -> FleetView:
        return FleetView(now=Tick(self.clock.ms), moving=frozenset(self.copies.moving()))

    def planner(self) -> None:
        """What the executor would do with wishes that nobody needs."""
        for action in plan(self.fleet.state, self.view(), Limits()):
            if not isinstance(action, Want):
                continue
            self.fleet.state = done(
                self.fleet.state,
                WantHolders(shard=action.shard, epoch=action.epoch, holders=action.holders),
            )

    async def step(self, *, copies: bool = True) -> bool:
        self.clock.ms += 1_000
        moving = await self.rebalancer.look()
        self.planner()
        if copies:
            self.fleet.copy()
        await self.surplus.look()
        return moving

    async def come_to_rest(self, steps: int = 500) -> None:
        still = 0
        for _ in range(steps):
            still = 0 if await self.step() else still + 1
            if still > 2 * QUIET_MS // 1_000:
                return
        raise AssertionError(f"it does not come to rest: {self.rebalancer.told}")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def even_votes(sizes: list[int], *, peers: int = 5, joined: int = 3) -> Fleet:
    """Votes and leads as they lie are even: those who joined may not lead, nor does it matter."""
    return Fleet(*fleet_of(sizes, peers=peers, joined=joined))


def works(fleet: Fleet, clock: Clock, **policy: object) -> Works:
    """Works whose votes are left alone, so that only copies move."""
    found = Works(fleet, clock, **policy)
    found.rebalancer._look_at_votes = _no_votes  # type: ignore[method-assign]
    return found


async def _no_votes() -> str:
    return "even"


async def test_copies_come_to_lie_evenly_and_are_let_go_by_who_gave(clock):
    fleet = even_votes([SIZE] * 64)
    works_now = works(fleet, clock)
    await works_now.come_to_rest()
    now = bytes_of(fleet.state, fleet.sizes)
    even = sum(now.values()) / len(now)
    assert all(abs(each - even) <= 0.05 * even for each in now.values())
    assert works_now.rebalancer.told == "even"
    released = [each for each in fleet.commands if isinstance(each, ReleaseHolder)]
    assert works_now.copies.moved == len(released)
    assert all(each.why.startswith("rebalance: others store less") for each in released)
    assert {each.holder.peer for each in released} <= {name(n) for n in range(1, 6)}
    assert works_now.copies.moved <= 1.1 * 3 / 8 * 3 * 64
    told = [each for each in fleet.commands if isinstance(each, RecordEvent)]
    assert any("peer-6 holds in place of peer-1: shard" in each.text for each in told)
    assert len(told) <= 2 * 5 * 3
    count = len(fleet.commands)
    for _ in range(100):
        clock.ms += 60_000
        assert not await works_now.step()
    assert len(fleet.commands) == count


async def test_votes_go_first_and_then_what_they_sealed(clock):
    fleet = even_votes([SIZE] * 64)
    works_now = Works(fleet, clock, rebalance_moves_per_s=10)
    assert await works_now.step()
    assert works_now.rebalancer.told.startswith("moving: peer-4 carries")
    assert not fleet.wanted()


async def test_a_few_are_under_way_at_once(clock):
    fleet = even_votes([SIZE] * 64)
    works_now = works(fleet, clock)
    for _ in range(QUIET_MS // 1_000 + 3):
        await works_now.step(copies=False)
    wanted = fleet.wanted()
    assert len(wanted) == 3 * TAKES_MAX
    assert {each.peer for each in wanted} == {name(6), name(7), name(8)}
    told = works_now.rebalancer.told
    assert told.startswith(f"moving: {len(wanted)} copies under way, ")
    found = await works_now.copies.propose()
    assert found.moves[0].key in works_now.copies.givers()
    assert sum(found.before.values()) == sum(found.after.values())
    shown = rebalance_view(
        fleet.state, await works_now.rebalancer.propose(), found, works_now.rebalancer.told
    )
    assert shown.copies[0].taker in {name(6), name(7), name(8)}
    assert shown.nodes[0].stored_bytes > shown.nodes[0].stored_bytes_after


async def test_what_is_proposed_asks_the_givers_and_begins_nothing(clock):
    fleet = even_votes([SIZE] * 64)
    works_now = works(fleet, clock)
    fleet.factor = 1.5
    found = await works_now.copies.propose()
    assert sorted(set(works_now.calls.asked)) == [name(n) for n in range(1, 6)]
    assert {each.size_bytes for each in found.moves} == {round(1.5 * SIZE)}
    assert not fleet.wanted()
    none = await works(even_votes([SIZE] * 64, joined=0), clock).copies.propose()
    assert none.moves == ()
    event = asked_for(await works_now.rebalancer.propose(), found, 7)
    assert "moves and" in event.text
    even = await Rebalancer.propose(works(even_votes([SIZE] * 5, joined=0), clock).rebalancer)
    assert asked_for(even, found, 7).node == found.moves[0].giver.peer


async def test_it_waits_for_repairs_and_until_nothing_else_moves(clock):
    fleet = even_votes([SIZE] * 64)
    works_now = works(fleet, clock)
    await works_now.step()
    assert works_now.rebalancer.told == "waits: what nodes store has just changed"
    before = fleet.state
    (shard, epoch), *_ = sorted(fleet.sizes)
    lost = DropHolder(shard=shard, epoch=epoch, holder=replica(1))
    repair = WantHolders(shard=shard, epoch=epoch, holders=(replica(4),))
    fleet.state = done(fleet.state, lost, repair)
    clock.ms += QUIET_MS
    await works_now.step(copies=False)
    assert works_now.rebalancer.told == "waits: 1 copies are being made"
    fleet.state = before
    fleet.silent = {name(7)}
    await works_now.step()
    assert works_now.rebalancer.told == "waits: 1 nodes have not told what they store"
    fleet.silent = set()
    assert await works_now.step(copies=False)


async def test_other_works_wait_for_repairs_only(clock):
    fleet = even_votes([SIZE] * 64)
    works_now = works(fleet, clock)
    while not fleet.wanted():
        await works_now.step(copies=False)
    splitter = Splitter(
        fleet,
        Policy(split_bytes_per_s=1),
        None,  # type: ignore[arg-type]
        writes=dict,
        now_ms=lambda: clock.ms,
        wall_ms=lambda: 1,
        moving=works_now.copies.moving,
    )
    await splitter.look()
    # One comes to be held too often while others are being moved: it is let go all the same.
    key = next(key for key in sorted(fleet.sizes) if key not in works_now.copies.givers())
    free = next(n for n in range(1, 6) if _holds(fleet, key, n) is False)
    added = AddHolder(shard=key[0], epoch=key[1], holder=replica(free))
    fleet.state = done(fleet.state, added)
    assert await works_now.surplus.look()


def _holds(fleet: Fleet, key: tuple[ShardId, Epoch], number: int) -> bool:
    sealed = fleet.state.shards[key[0]].shard.sealed
    return any(replica(number) in each.holders for each in sealed if each.epoch == key[1])


@pytest.mark.parametrize(
    ("policy", "level", "told"),
    [
        ({"rebalance_copies": False}, COMMAND_LEVEL, "`policy.rebalance_copies` is off"),
        ({"release_surplus": False}, COMMAND_LEVEL, "`policy.release_surplus` is off"),
        ({}, RELEASES_LEVEL - 1, "a version that lets nothing go"),
    ],
)
async def test_it_can_be_switched_off(clock, policy, level, told):
    fleet = even_votes([SIZE] * 64)
    fleet.state = replace(fleet.state, command_level=level)
    works_now = works(fleet, clock, **policy)
    for _ in range(10):
        assert not await works_now.step()
    assert told in works_now.rebalancer.told
    assert not fleet.wanted()
    assert (await works_now.copies.propose()).moves == ()


async def test_what_cannot_be_moved_is_not_asked_for_again_and_again(clock):
    fleet = even_votes([SIZE], peers=3, joined=1)
    works_now = works(fleet, clock)
    for _ in range(PLAN_REST_MS // 1_000 - 10):
        await works_now.step()
    assert works_now.rebalancer.told == "even; copies are as even as can be"
    assert len(works_now.calls.asked) == 3
    works_now.rebalancer.ask()
    await works_now.step()
    assert len(works_now.calls.asked) == 6


async def test_a_node_that_joins_is_told_of_at_once_and_planned_for(clock):
    fleet = even_votes([SIZE], peers=3, joined=1)
    works_now = works(fleet, clock, rebalance_after_s=2)
    while works_now.rebalancer.told != "even; copies are as even as can be":
        await works_now.step()
    planned = len(works_now.calls.asked)
    fleet.state = done(fleet.state, node(5))
    # Before anybody looks again.
    assert works_now.rebalancer.told.startswith("waits: nodes, or the LAS leader, changed")
    for _ in range(5):
        await works_now.step()
    assert len(works_now.calls.asked) == 2 * planned
    assert works_now.rebalancer.told == "even; copies are as even as can be"


async def test_an_operator_who_asks_gets_nodes_evener(clock):
    fleet = even_votes([SIZE] * 60, peers=5, joined=0)
    # 8 % above even, which is inside of the band.
    moved = 0
    for (shard, epoch), _ in sorted(fleet.sizes.items()):
        if moved < 3 and not _holds(fleet, (shard, epoch), 1):
            giver = next(n for n in range(2, 6) if _holds(fleet, (shard, epoch), n))
            fleet.state = done(
                fleet.state,
                AddHolder(shard=shard, epoch=epoch, holder=replica(1)),
                DropHolder(shard=shard, epoch=epoch, holder=replica(giver)),
            )
            moved += 1
    works_now = works(fleet, clock, rebalance=False)
    for _ in range(10):
        assert not await works_now.step()
    assert works_now.rebalancer.told == "off"
    works_now.rebalancer.ask()
    await works_now.come_to_rest()
    assert works_now.copies.moved == 2
    assert works_now.rebalancer.told == "off"


# ---------------------------------------------------------------------------------- breaking off
async def begun(fleet: Fleet, clock: Clock) -> tuple[Works, tuple[ShardId, Epoch], ReplicaId]:
    works_now = works(fleet, clock)
    while not fleet.wanted():
        await works_now.step(copies=False)
    key, _ = next(iter(works_now.copies.givers().items()))
    (taker,) = [each[2] for each in works_now.copies.moving() if each[:2] == key]
    return works_now, key, taker


async def test_a_taker_that_dies_ends_the_move(clock):
    fleet = even_votes([SIZE] * 64)
    works_now, key, taker = await begun(fleet, clock)
    number = int(taker.peer.removeprefix("peer-"))
    died = SetNodeState(node=taker.peer, boot=process(number).boot, state=NodeState.DOWN)
    fleet.state = done(fleet.state, died)
    works_now.planner()
    await works_now.step(copies=False)
    assert all(each[2] != taker for each in works_now.copies.moving())
    assert key not in works_now.copies.givers()
    assert len(_holders(fleet, key)) == 3


def _holders(fleet: Fleet, key: tuple[ShardId, Epoch]) -> tuple[ReplicaId, ...]:
    sealed = fleet.state.shards[key[0]].shard.sealed
    return next(each.holders for each in sealed if each.epoch == key[1])


async def test_a_copy_that_does_not_come_is_given_up(clock):
    fleet = even_votes([SIZE] * 64)
    works_now, key, taker = await begun(fleet, clock)
    clock.ms += COPY_MS + 60_000
    works_now.copies.tend()
    assert key not in works_now.copies.givers()
    works_now.planner()
    assert taker not in fleet.wanted(), "the planner takes back what no move wants"


async def test_a_giver_that_is_needed_meanwhile_stays(clock):
    fleet = even_votes([SIZE] * 64)
    works_now, key, _ = await begun(fleet, clock)
    giver = works_now.copies.givers()[key]
    other = next(each for each in _holders(fleet, key) if each != giver)
    fleet.copy()
    fleet.state = done(fleet.state, SetAtRisk(node=other.peer, at_risk=True))
    for _ in range(3):
        await works_now.step()
    assert giver in _holders(fleet, key)
    clock.ms += RELEASE_MS + 1_000
    works_now.copies.tend()
    assert key not in works_now.copies.givers()


async def test_what_is_gone_ends_the_move(clock):
    fleet = even_votes([SIZE] * 64)
    works_now, key, _ = await begun(fleet, clock)
    entry = fleet.state.shards[key[0]]
    trimmed = replace(
        entry, shard=replace(entry.shard, sealed=(), trimmed_to=entry.shard.open.begin)
    )
    fleet.state = fleet.state.changed(shards=[trimmed])
    works_now.copies.tend()
    assert key not in works_now.copies.givers()


async def test_a_wish_that_is_refused_or_not_committed_is_no_move(clock, monkeypatch):
    fleet = even_votes([SIZE] * 64)
    works_now = works(fleet, clock)
    while not works_now.copies.busy:
        await works_now.step(copies=False)
    fleet.copy()
    await works_now.step(copies=False)
    fleet.down = True
    for _ in range(3):
        clock.ms += 1_000
        fleet.copy()
        try:
            await works_now.rebalancer.look()
        except Refused:
            break
    fleet.down = False
    assert all(each in fleet.wanted() for each in {each[2] for each in works_now.copies.moving()})
    submit = fleet.submit

    async def refuse(command: Command) -> Result:
        if isinstance(command, WantHolders):
            return Result(ok=False, text="no")
        return await submit(command)

    monkeypatch.setattr(fleet, "submit", refuse)
    before = set(works_now.copies.givers())
    for _ in range(5):
        await works_now.step()
    assert set(works_now.copies.givers()) <= before


async def test_a_new_leader_goes_on_with_what_is_copied(clock):
    fleet = even_votes([SIZE] * 64)
    _, key, taker = await begun(fleet, clock)
    wanted = fleet.wanted()
    next_leader = works(fleet, clock)
    next_leader.planner()
    assert fleet.wanted() == wanted, "nothing is taken back"
    assert next_leader.copies.busy
    assert next_leader.copies.givers() == {}
    await next_leader.step()
    assert taker in _holders(fleet, key), "the copy stays, and who stores most lets go"
    await next_leader.come_to_rest()
    assert all(len(each.holders) == 3 for each in _all_sealed(fleet))
    now = bytes_of(fleet.state, fleet.sizes)
    assert max(now.values()) - min(now.values()) <= 0.12 * sum(now.values()) / 8


def _all_sealed(fleet: Fleet):
    return [each for entry in fleet.state.shards.values() for each in entry.shard.sealed]


async def test_a_new_leader_that_moves_nothing_lets_wishes_be_taken_back(clock):
    fleet = even_votes([SIZE] * 64)
    await begun(fleet, clock)
    off = works(fleet, clock, rebalance=False)
    off.planner()
    assert not fleet.wanted()


async def test_a_giver_that_still_drops_is_waited_for(clock):
    fleet = even_votes([SIZE] * 64)
    works_now = works(fleet, clock)
    await works_now.come_to_rest()
    # New peers join, and who gave tells less and less for a while.
    fleet.state = done(fleet.state, *(node(n) for n in (9, 10)))
    told = fleet.stored_bytes
    extra = 100 * MIB
    fleet.stored_bytes = (  # type: ignore[method-assign]
        lambda each: (told(each) or 0) + (extra if each == name(1) else 0)
    )
    works_now.copies._falling = {name(1): (told(name(1)) or 0) + 2 * extra}
    await works_now.step()
    assert works_now.rebalancer.told == "waits: what nodes store has just changed"
    assert not fleet.wanted()


async def test_it_runs_by_itself(clock):
    fleet = even_votes([SIZE] * 64)
    works_now = works(fleet, clock)
    clock.ms += QUIET_MS
    running = asyncio.create_task(works_now.rebalancer.run())
    await until(lambda: bool(fleet.wanted()), "copies are wanted")
    running.cancel()

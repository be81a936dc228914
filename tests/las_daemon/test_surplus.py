"""When holders that are too many let go: last of all, and when the others have said so."""

from collections.abc import Sequence

import pytest

from las.core.commands import Command, RaiseCommandLevel, Result, SetAtRisk, WantHolders
from las.core.index import FleetIndex, indexed
from las.core.levels import COMMAND_LEVEL
from las.core.state import ClusterState
from las.daemon.config import Policy
from las.daemon.surplus import SurplusReleaser
from peerd.core.ids import Epoch, ReplicaId, ShardId
from tests.las_core.builders import SHARD, do, done, name, replica
from tests.las_core.test_holders import sealed, sealed_state

WAIT_MS = 60_000
WHOLE, SHORT = True, False


class Group:
    """Commits at once."""

    def __init__(self, state: ClusterState) -> None:
        self.state = state

    def indexed(self) -> tuple[ClusterState, FleetIndex]:
        return self.state, indexed(self.state)

    async def submit(self, command: Command) -> Result:
        self.state, result = do(self.state, command)
        return result


class Stores:
    """What each store answers; who is not here does not."""

    def __init__(self, **answers: bool) -> None:
        self.answers = answers
        self.asked: list[ReplicaId] = []

    async def holds(
        self, target: ReplicaId, segments: Sequence[tuple[ShardId, Epoch]]
    ) -> Sequence[bool]:
        self.asked.append(target)
        answer = self.answers.get(target.store.replace("-", "_"))
        return () if answer is None else [answer] * len(segments)


def all_whole() -> Stores:
    return Stores(store_1=WHOLE, store_2=WHOLE, store_3=WHOLE, store_4=WHOLE)


class Clock:
    def __init__(self) -> None:
        self.ms = 0


@pytest.fixture
def clock() -> Clock:
    return Clock()


def group(*held_by: int, level: int = COMMAND_LEVEL) -> Group:
    state = sealed_state(*(held_by or (1, 2, 3, 4)))
    return Group(done(state, RaiseCommandLevel(level=level)))


def releaser(group: Group, stores: Stores, clock: Clock, **policy: object) -> SurplusReleaser:
    works = SurplusReleaser(
        group,
        stores,
        Policy(**policy),
        stored_bytes=lambda node: {name(4): 9}.get(node, 0),
        now_ms=lambda: clock.ms,
    )
    clock.ms += WAIT_MS
    return works


async def test_one_lets_go_when_the_others_have_said_that_they_have_it(clock):
    fleet, stores = group(), all_whole()
    works = releaser(fleet, stores, clock)
    assert await works.look()
    assert sealed(fleet.state).holders == (replica(1), replica(2), replica(3))
    assert sorted(stores.asked) == [replica(1), replica(2), replica(3)]
    assert works.released == 1
    assert not await works.look(), "and that is all"


@pytest.mark.parametrize(
    "stores",
    [
        pytest.param(Stores(store_1=WHOLE, store_2=WHOLE), id="one is silent"),
        pytest.param(Stores(store_1=WHOLE, store_2=WHOLE, store_3=SHORT), id="one has it not"),
    ],
)
async def test_nobody_lets_go_while_somebody_has_not_said_so(clock, stores):
    fleet = group()
    works = releaser(fleet, stores, clock)
    assert not await works.look()
    assert len(sealed(fleet.state).holders) == 4
    assert works.released == 0


async def test_it_waits_for_copies_and_for_the_nodes_to_stay_as_they_are(clock):
    fleet, stores = group(), all_whole()
    works = releaser(fleet, stores, clock)
    fleet.state = done(fleet.state, SetAtRisk(node=name(5), at_risk=True))
    assert not await works.look(), "a node has changed"
    fleet.state = done(fleet.state, SetAtRisk(node=name(5), at_risk=False))
    assert not await works.look()
    clock.ms += WAIT_MS
    before = fleet.state
    want = WantHolders(shard=SHARD, epoch=Epoch(1), holders=(replica(5),))
    fleet.state = done(fleet.state, want)
    assert not await works.look(), "a copy is made"
    fleet.state = before
    assert await works.look()


async def test_it_can_be_switched_off_and_is_not_used_before_all_know_it(clock):
    fleet = group()
    assert not await releaser(fleet, all_whole(), clock, release_surplus=False).look()
    old = group(level=COMMAND_LEVEL - 1)
    assert not await releaser(old, all_whole(), clock).look()

"""A group of mixed versions: what not all members know is not used, and who meets it stops."""

import contextlib
import shutil

import pytest

from las.core.cluster import Cluster
from las.core.commands import RaiseCommandLevel, command_to_json
from las.core.rows import StepShards
from tests.raft.test_node import CLUSTER_ID, NAMES, Group

OLD = NAMES[-1]


class Versions(Group):
    """The real state machine on each member, of the level that `levels` says."""

    levels: dict[str, int]
    directories: dict[str, str]

    def directory(self, name):
        return self.root / self.directories.get(name, name)

    def make_node(self, name):
        self.options = {"command_level": self.levels[name]}
        node = super().make_node(name)
        self.machines[name] = Cluster(CLUSTER_ID, level=self.levels[name])
        node._machine = self.machines[name]
        return node

    def levels_seen(self):
        return {name: node.status().command_level for name, node in self.nodes.items()}


@pytest.fixture
async def mixed(tmp_path):
    group = Versions(tmp_path)
    group.levels = dict.fromkeys(NAMES, 2) | {OLD: 1}
    group.directories = {}
    group.init()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(group.stop_all)
        await group.start_all()
        yield group


async def test_a_level_counts_when_all_members_have_said_it(mixed):
    await mixed.until(mixed.leader)
    await mixed.until(lambda: all(len(n.status().members_up) == 3 for n in mixed.nodes.values()))
    assert set(mixed.levels_seen().values()) == {1}
    await mixed.stop(OLD)
    # Its last word stands while it is away.
    assert set(mixed.levels_seen().values()) == {1}
    mixed.levels[OLD] = 2
    await mixed.start(OLD)
    await mixed.until(lambda: set(mixed.levels_seen().values()) == {2})


async def test_a_member_that_meets_what_it_does_not_know_stops_and_changes_nothing(mixed):
    """As if somebody had set it back to an older version after the group began to use a command."""
    await mixed.until(mixed.leader)
    await mixed.submit(command_to_json(RaiseCommandLevel(level=2)), command_id=("test", 1))
    await mixed.until(lambda: mixed.failures)
    assert "this LAS node knows commands up to level 1" in mixed.failures[0]
    assert "upgrade this LAS node" in mixed.failures[0]
    assert mixed.machines[OLD].state.command_level == 1
    await mixed.submit(command_to_json(StepShards()), command_id=("test", 2))
    new = NAMES[:-1]
    await mixed.until(lambda: {mixed.machines[name].state.command_level for name in new} == {2})
    assert len(mixed.failures) == 1
    # With the version that knows it the directory serves: the lock of a process that ended itself
    # is gone, but here it is this one, so a copy stands in.
    await mixed.stop(OLD)
    shutil.copytree(mixed.root / OLD, mixed.root / "again")
    mixed.levels[OLD] = 2
    mixed.directories[OLD] = "again"
    await mixed.start(OLD)
    await mixed.until(lambda: mixed.machines[OLD].state.command_level == 2)

"""An upgrade is ended by a person: until then nothing that older versions do not know is used."""

from functools import partial

import pytest

from las.core.cluster import Cluster
from las.core.levels import COMMAND_LEVEL, features_of
from las.daemon import group as las_group
from las.v1 import fleet_pb2
from peerd.pki import Role
from peerd.testing.ports import free_port
from tests.las_daemon.stand_in import ADMIN, metadata, refused, until
from tests.las_daemon.test_audit import audit

OLIVE = metadata(Role.OPERATOR, "olive")
OLD, NEW = COMMAND_LEVEL - 1, COMMAND_LEVEL


@pytest.fixture
async def upgraded(start_las, monkeypatch):
    """A LAS node that was started with the version before and then with this one."""
    with monkeypatch.context() as older:
        older.setattr(las_group, "Cluster", partial(Cluster, level=OLD))
        before = await (await start_las()).leading()
        await until(lambda: before.state.command_level == OLD, "the level of a new cluster")
        await before.node.stop()
    return await (await start_las()).leading()


def finalize(las, caller=OLIVE):
    request = fleet_pb2.FinalizeUpgradeRequest()
    return las.fleet.FinalizeUpgrade(request, metadata=caller, timeout=30)


async def levels(las) -> tuple[int, int]:
    """In use, and known."""
    answer = await las.fleet.GetStatus(fleet_pb2.GetStatusRequest(), metadata=ADMIN, timeout=30)
    return answer.level_used, answer.level_known


async def test_a_new_cluster_begins_with_all_that_it_knows(las):
    await until(lambda: las.state.command_level == NEW, "the level of a new cluster")
    assert await levels(las) == (NEW, NEW)
    answer = await finalize(las)
    assert (answer.level_before, answer.level_used) == (NEW, NEW)


async def test_an_upgrade_is_used_once_it_was_finalised_and_all_peers_know_it(upgraded):
    assert await levels(upgraded) == (OLD, NEW)
    (peer,) = await upgraded.add_peers(1)
    await peer.register(feature_level=features_of(NEW) - 1)
    assert await levels(upgraded) == (OLD, OLD)
    reason, refusal = await refused(finalize(upgraded))
    assert reason == "STATE_CHANGED"
    assert "peer-1 registered last with a version that does not know level" in refusal.message
    await peer.register(feature_level=features_of(NEW))
    assert await levels(upgraded) == (OLD, NEW)
    assert upgraded.state.command_level == OLD
    answer = await finalize(upgraded)
    assert (answer.level_before, answer.level_used) == (OLD, NEW)
    assert await levels(upgraded) == (NEW, NEW)
    said, done = (await audit(upgraded)).records
    assert (said.what, said.reason) == ("cluster finalize", "state_changed")
    assert (done.who, done.before, done.after) == ("olive", f"level {OLD}", f"level {NEW}")


async def test_a_las_node_that_does_not_say_what_it_knows_holds_it_up(start_las):
    members = {f"las-{number}": f"127.0.0.1:{free_port()}" for number in (1, 2, 3)}
    las = await start_las(members=members)
    assert "not all LAS nodes have said" in las.node.status.not_final()

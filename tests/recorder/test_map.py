"""What a LAS node records is the whole history of the map, also when its ring has wrapped."""

from dataclasses import replace

import pytest

from las.core.cluster import Cluster
from las.core.commands import CreateLog, FenceSegment, command_to_json
from las.core.many_shards import joined
from las.core.model_registry import NO_MODELS
from las.core.state import ClusterState
from las.daemon import recorder
from las.daemon.recorder import RecordedMachine
from peerd.core.ids import Epoch, ShardId
from peerd.recorder.recording import Committed, MapState, Recording
from peerd.recorder.ring import RingError
from peerd.testing.replay import Replay, main
from peerd.testing.replay_map import MapReplay
from peerd.testing.trace import MapCommitted
from tests.las_core.builders import name, register
from tests.las_core.test_models import install, installed, pieces

CLUSTER = "11111111-2222-3333-4444-555555555555"
RING_BYTES = 1024 * 1024
# A few dozen commands and a state fill a segment of it.
SMALL_RING_BYTES = 128 * 1024


def commands(logs: int, boots: int):
    yield from (register(number) for number in range(3))
    for number in range(logs):
        nodes = tuple(name(each) for each in range(3))
        yield CreateLog(name=f"log-{number}", copies=3, acks=2, nodes=nodes, rows=((0, 1, 2),))
    yield from (register(1, boot=2 + number) for number in range(boots))


def recorded(
    directory, logs: int, size_bytes: int = RING_BYTES, node: str = "las-1", boots: int = 0
) -> Cluster:
    cluster = Cluster(CLUSTER)
    machine = RecordedMachine(cluster, directory / f"{node}.ring", size_bytes, node)
    for command in commands(logs, boots):
        machine.apply(command_to_json(command))
    return cluster


def last_state(path):
    replay = MapReplay()
    for item in Recording(path).items():
        if isinstance(item, MapState):
            replay.begin(item.snapshot)
        elif isinstance(item, Committed):
            replay.command(0, item.command)
    return replay.state


def test_the_commands_lead_to_the_state(tmp_path):
    cluster = recorded(tmp_path, 5)
    assert last_state(tmp_path / "las-1.ring") == cluster.state
    records = list(Replay(tmp_path).records())
    assert [record.shard.log for record in records] == [f"log-{number}" for number in range(5)]
    assert all(isinstance(record, MapCommitted) for record in records)


def test_models_are_no_part_of_what_is_recorded(tmp_path):
    cluster = Cluster(CLUSTER)
    machine = RecordedMachine(cluster, tmp_path / "las-1.ring", SMALL_RING_BYTES, "las-1")
    for command in commands(3, 0):
        machine.apply(command_to_json(command))
    state = installed(ClusterState(cluster_id=CLUSTER), bytes(400_000))
    for piece in pieces(bytes(400_000)):
        machine.apply(command_to_json(piece))
    machine.apply(command_to_json(install(bytes(400_000))))
    assert cluster.state.models == state.models
    for command in commands(0, 200):  # the ring wraps: a state is recorded anew
        machine.apply(command_to_json(command))
    assert last_state(tmp_path / "las-1.ring") == replace(cluster.state, models=NO_MODELS)


def test_a_command_for_many_shards_is_told_as_the_plain_one_of_each(tmp_path):
    fences = [FenceSegment(shard=ShardId(each), epoch=Epoch(1), why="gone") for each in (1, 2, 3)]
    stale = replace(fences[2], epoch=Epoch(7))
    cluster = recorded(tmp_path, 3)
    machine = RecordedMachine(cluster, tmp_path / "las-1.ring", RING_BYTES, "las-1")
    machine.apply(command_to_json(joined([*fences[:2], stale])[0]))
    told = [each for each in Replay(tmp_path).records() if isinstance(each.command, FenceSegment)]
    assert [each.command for each in told] == fences[:2]
    assert [each.result.epoch for each in told] == [2, 2]
    assert last_state(tmp_path / "las-1.ring") == cluster.state


def test_what_every_node_applied_is_told_once(tmp_path):
    for node in ("las-1", "las-2", "las-3"):
        recorded(tmp_path, 5, node=node)
    # One starts again and applies its journal once more.
    recorded(tmp_path, 5, node="las-2")
    replay = Replay(tmp_path)
    assert len(list(replay.records())) == 5
    assert replay.has_map
    assert len(list(replay.accounts())) == 4


def test_a_ring_that_has_wrapped_begins_with_a_state(tmp_path):
    cluster = recorded(tmp_path, 3, SMALL_RING_BYTES, boots=1_200)
    path = tmp_path / "las-1.ring"
    items = list(Recording(path).items())
    assert 20 < sum(isinstance(item, Committed) for item in items) < 1_200
    assert last_state(path) == cluster.state


def test_a_map_that_is_too_large_is_not_written_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "STATE_SHARDS_MAX", 2)
    recorded(tmp_path, 3, SMALL_RING_BYTES, boots=1_200)
    assert last_state(tmp_path / "las-1.ring") is None
    assert list(Replay(tmp_path).records()) == []


def test_a_snapshot_is_recorded_as_the_state(tmp_path):
    other = recorded(tmp_path, 3, node="other")
    (tmp_path / "other.ring").unlink()
    cluster = Cluster(CLUSTER)
    machine = RecordedMachine(cluster, tmp_path / "las-1.ring", RING_BYTES, "las-1")
    machine.restore(other.freeze()())
    assert last_state(tmp_path / "las-1.ring") == other.state == cluster.state


def test_an_unreadable_command_changes_nothing_in_the_replay_either(tmp_path):
    cluster = Cluster(CLUSTER)
    machine = RecordedMachine(cluster, tmp_path / "las-1.ring", RING_BYTES, "las-1")
    assert "malformed" in machine.apply("no command")
    assert list(Replay(tmp_path).records()) == []


def test_a_run_without_peers_is_accepted_by_the_acceptor(tmp_path, capsys):
    recorded(tmp_path, 2)
    assert main([str(tmp_path)]) == 0
    assert "acceptor: accepted: 2 records" in capsys.readouterr().out


def test_a_recorder_that_cannot_begin_says_so(tmp_path):
    with pytest.raises(RingError, match="No such file"):
        RecordedMachine(Cluster(CLUSTER), tmp_path / "none" / "ring", RING_BYTES, "las-1")
